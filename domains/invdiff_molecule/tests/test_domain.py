"""The molecule domain through the command path: questions, files, refusals."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from rdkit import Chem

from invdiff import InputError
from invdiff.config import compose
from invdiff.prior.training import Denoising
from invdiff.run.solve import begin, execute, plan
from invdiff.run.train import train_from_config
from invdiff_molecule.chemistry import Vocabulary, decode, formula_of, read_smiles
from invdiff_molecule.domain import MoleculeDomain, read_references
from invdiff_molecule.masked import load_masked
from invdiff_molecule.objective import Experts, Values, term_of
from invdiff_molecule.state import graphs_of, of_graph
from invdiff_molecule.training import Molecules

QM9 = Vocabulary.of(["C", "N", "O", "F"])


def config(*overrides):
    return compose(["domain=molecule", *overrides])


def run(out, *overrides):
    job = plan(config(f"run.out={out}", *overrides))
    folder = begin(job)
    return folder, execute(job, folder)


def rows_of(folder, item="question"):
    return list(csv.DictReader((folder / "items" / item / "molecules.csv").open()))


def test_a_formula_is_answered(tmp_path):
    """64 draws; four in five and more have the formula, 5 standard deviations below .95."""
    folder, metrics = run(tmp_path / "run", "operator.formula=C5H9NO")
    row = metrics["question"]["table"]["posterior samples"]
    assert row["hit"] > 0.8
    assert row["hit"] > metrics["question"]["table"]["prior alone"]["hit"] + 0.3
    table = rows_of(folder)
    hits = [one for one in table if one["answers"] == "True"]
    assert {one["formula"] for one in hits} == {"C5H9NO"}
    assert sum(int(one["draws"]) for one in table) == 64
    items = folder / "items/question"
    assert len((items / "molecules.smi").read_text().splitlines()) <= len(table)
    supplier = Chem.SDMolSupplier(str(items / "molecules.sdf"))
    again = [molecule for molecule in supplier if molecule.GetProp("answers") == "True"]
    assert len(again) == len(hits)
    assert {formula_of(molecule) for molecule in again} == {"C5H9NO"}
    assert again[0].GetNumConformers() == 1
    report = (folder / "report.html").read_text()
    assert "C5H9NO" in report
    assert "network calls an answer" in report
    answers = round(64 * row["hit"])
    calls = metrics["question"]["network_calls_per_sample"] * 64 / answers
    assert metrics["question"]["network_calls_per_answer"] == pytest.approx(calls, abs=0.06)
    assert "prior alone" in report


def test_the_same_seed_gives_the_same_molecules(tmp_path):
    one, _ = run(tmp_path / "one", "samples=8", "sampler.particles=16", "sampler.keep=8", "seed=3")
    two, _ = run(tmp_path / "two", "samples=8", "sampler.particles=16", "sampler.keep=8", "seed=3")
    other, _ = run(tmp_path / "other", "samples=8", "sampler.particles=16", "sampler.keep=8", "seed=4")
    texts = [(folder / "items/question/molecules.csv").read_text() for folder in (one, two, other)]
    assert texts[0] == texts[1] != texts[2]


def test_a_substructure_is_in_every_answer(tmp_path):
    pattern = Chem.MolFromSmarts("C1CO1")
    small = ["samples=16", "sampler.particles=32", "sampler.keep=16"]
    folder, metrics = run(tmp_path / "run", "operator=substructure", "operator.smarts=C1CO1", *small)
    assert metrics["question"]["table"]["posterior samples"]["hit"] > 0.8
    for row in rows_of(folder):
        if row["answers"] == "True":
            assert read_smiles(row["smiles"]).HasSubstructMatch(pattern)


def test_a_pattern_that_is_no_fragment_is_a_reward(tmp_path):
    small = ["samples=16", "sampler.particles=32", "sampler.keep=16"]
    _, metrics = run(tmp_path / "run", "operator=substructure", "operator.smarts=[#7,#8]=[#6]", *small)
    table = metrics["question"]["table"]
    assert table["posterior samples"]["hit"] > table["prior alone"]["hit"]


def test_a_property_moves_to_its_target(tmp_path):
    """Two runs with targets far apart: their means lie on their own sides."""
    means = []
    for target in (-1.0, 2.0):
        settings = ["operator=property", "operator.name=logp", f"operator.target={target}"]
        folder, _ = run(tmp_path / f"run{target}", *settings, "samples=32", "operator.sigma=0.4")
        rows = [row for row in rows_of(folder) if row["valid_connected"] == "True"]
        weights = torch.tensor([float(row["draws"]) for row in rows])
        values = torch.tensor([float(row["logp"]) for row in rows])
        means.append(float((weights * values).sum() / weights.sum()))
    assert abs(means[0] + 1.0) < 0.6
    assert abs(means[1] - 2.0) < 0.6


def test_several_properties_at_once(tmp_path):
    terms = "operator.operators=[{name:logp,target:0.5},{name:qed,direction:maximise,target:0.4}]"
    folder, metrics = run(tmp_path / "run", "operator=product", terms, "samples=32")
    table = metrics["question"]["table"]
    assert table["posterior samples"]["hit"] > table["prior alone"]["hit"]
    assert {"logp", "qed"} <= set(rows_of(folder)[0])


def test_files_of_molecules_are_questions(tmp_path):
    path = tmp_path / "some.smi"
    path.write_text("smiles\nCC(=O)NC\nC[C@H](O)C#N second\n")
    small = ["samples=8", "sampler.particles=16", "sampler.keep=8"]
    folder, metrics = run(tmp_path / "run", f"input.path={path}", *small)
    assert set(metrics) == {"molecule0001", "molecule0002"}
    assert "C3H7NO" in (folder / "report.html").read_text()
    problem = MoleculeDomain().problems(config(f"input.path={path}"))[1]
    assert problem.notes["simulated from"].startswith("CC(O)C#N (stereo")
    asked = config(f"input.path={path}", "operator=property", "operator.name=logp")
    value = float(MoleculeDomain().problems(asked)[0].measurement.y[0])
    assert value == pytest.approx(-0.2475, abs=1e-3)  # Crippen's of N-methylacetamide


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["operator.formula=C6H6Br"], "holds Br"),
        (["operator.formula=C10H10"], "10 heavy atoms"),
        (["operator.formula=C3H9"], "hydrogens"),
        (["domain.heavy_atoms=4"], "C6H8N2O has 9"),
        (["operator=substructure", "operator.smarts=c1ccc2[nH]ccc2c1Cl"], "atom 9 is Cl"),
        (["operator=substructure", "operator.smarts=CCCCCCCCCC"], "10 heavy atoms"),
        (["operator=substructure", "operator.smarts=(("], "not a SMARTS"),
        (["operator=property"], r"operator\.target=VALUE"),
        (["operator=property", "operator.name=taste", "operator.target=1"], "unknown property 'taste'"),
        (["operator=property", "operator.direction=up"], "found up"),
        (["operator=property", "operator.target=1", "operator.sigma=0"], "must be positive"),
        (["operator=product", "operator.operators=[]"], "a list such as"),
        (
            ["operator=product", "operator.operators=[{name:logp,target:0},{name:logp,target:3}]"],
            "contradict each other",
        ),
        (["input.path=nowhere.smi"], "there is no file"),
        (["sampler=dps"], "has no noise levels"),
        (["prior=gaussian"], "is no prior of molecules|not of tokens"),
    ],
)
def test_bad_questions_are_refused_before_any_work(overrides, message):
    with pytest.raises(InputError, match=message):
        plan(config(*overrides))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CCO\nC1CC\n", r"row 2: 'C1CC' is not a SMILES"),
        ("CCO.[Na]\n", "2 fragments"),
        ("CBr\n", "row 1: CH3Br holds Br"),
        ("id,smiles\n7,CCO\n8,C1CC\n", r"row 3: 'C1CC' is not a SMILES"),
        ("id,smiles\n7\n", "row 2 has no column 2"),
        ("", "holds no molecules"),
    ],
)
def test_bad_rows_are_named(tmp_path, text, message):
    path = tmp_path / "bad.smi"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        plan(config(f"input.path={path}"))


def test_masked_priors_and_samplers_of_levels_do_not_mix():
    with pytest.raises(InputError, match="not of tokens"):
        plan(compose(["domain=array", "operator=identity", "sampler=first_hitting", "prior=gaussian"]))


def test_experts_add_up_and_spare_what_is_no_molecule():
    terms = [
        term_of({"name": "logp", "target": 1.0, "sigma": 0.5}),
        term_of({"name": "tpsa", "direction": "minimise", "target": 20, "sigma": 10}),
    ]
    operator, noise = Values(terms, QM9, 9), Experts(tuple(terms))
    molecule = read_smiles("CCO")
    good = of_graph(QM9.graph(molecule), 9, 4)
    bad = good.clone()
    bad[2, 4 + 3] = 3.0  # a bond to nowhere: that node is not there
    broken = good.clone()
    broken[0, 4 + 1] = 0.0  # two fragments
    x = torch.stack([good, bad, broken])
    assert [decode(graph, QM9).smiles for graph in graphs_of(x, 4)] == ["CCO", "CCO", "C.CO"]
    values = operator(x)
    assert values[2].isnan().all()
    y = torch.tensor([1.0, 20.0], dtype=torch.float64)
    logs = noise.log_likelihood(values, y, 2)
    logp, tpsa = (one.measured.value(molecule) for one in terms)
    expected = -0.5 * ((logp - 1) / 0.5) ** 2 - (tpsa - 20) / 10
    torch.testing.assert_close(logs, torch.tensor([expected, expected, -20.0], dtype=torch.float64))
    assert torch.isfinite(noise.mean_at(values)).all()
    assert terms[1].hit(20.0)
    assert not terms[1].hit(20.1)
    anywhere = term_of({"name": "qed", "direction": "maximise"})
    assert anywhere.hit(0.01)
    assert "a hit" not in anywhere.words


def test_a_reward_that_fails_names_itself_and_the_molecule():
    from invdiff_molecule.properties import PROPERTIES, register

    x = of_graph(QM9.graph(read_smiles("CCO")), 9, 4)[None]
    register("broken", lambda molecule: 1 / 0, 1.0)
    register("empty", lambda molecule: float("nan"), 1.0)
    try:
        for name, message in (("broken", "broken failed on CCO: ZeroDivision"), ("empty", "NaN on CCO")):
            with pytest.raises(InputError, match=message):
                Values([term_of({"name": name, "target": 1})], QM9, 9)(x)
    finally:
        del PROPERTIES["broken"], PROPERTIES["empty"]


@pytest.mark.parametrize("name", ["molecule", "molecule_conditional"])
def test_training_resumes_and_its_file_samples(tmp_path, name):
    """Eight steps in one go and in two give the same weights."""
    path = tmp_path / "few.smi"
    names = [a + b + c for a in ("C", "CC", "N", "O", "CO") for b in ("C", "C=C", "C#C") for c in "CNOF"]
    path.write_text("\n".join(names) + "\n")
    settings = [
        f"data.root={tmp_path}", "data.path=few.smi", "training.steps=8", "training.save_every=4",
        "network.width=16", "network.edge_width=8", "network.heads=2", "network.layers=1",
        "training.stages=[{share: 1.0, crop: 0, batch: 8}]",
    ]  # fmt: skip
    from invdiff.config import config_folder

    yaml = config_folder() / f"train/{name}.yaml"
    said: list[str] = []
    whole = train_from_config(yaml, [*settings, f"out={tmp_path / 'whole'}"], said.append)
    assert any("validation loss" in line for line in said)

    class Stop(Exception):
        pass

    def stop(line):
        if line.startswith("step 4/8  validation"):
            raise Stop

    parts = [*settings, f"out={tmp_path / 'parts'}"]
    with pytest.raises(Stop):
        train_from_config(yaml, parts, stop)
    again = train_from_config(yaml, parts, said.append)
    prior, resumed = (load_masked({"path": str(one)}) for one in (whole, again))
    for part, value in prior.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[part]), part
    assert prior.card.name == {"molecule": "qm9_masked", "molecule_conditional": "qm9_conditional"}[name]
    tokens = prior.start(4, torch.Generator().manual_seed(0))
    assert prior.log_conditionals(tokens).shape == (4, 45, 5)
    with pytest.raises(InputError, match="no denoiser"):
        from invdiff import load_safetensors

        load_safetensors({"path": str(whole)})


def test_molecules_that_do_not_fit_are_counted(tmp_path):
    path = tmp_path / "some.csv"
    ethers = ["C" * n + "O" + "C" * m for n in range(1, 16) for m in range(1, n)]
    path.write_text("smiles\n" + "\n".join([*ethers, "C" * 41, "CBr", "C.C", "xx"]) + "\n")
    data = Molecules(path, Vocabulary.of(["C", "N", "O", "F"]), 40)
    assert data.skipped == 4
    assert sum(len(rows) for rows in data.tokens.values()) == len(ethers)
    assert float(data.sizes.sum()) == pytest.approx(1)
    assert not isinstance(data, Denoising)


def test_results_are_json(tmp_path):
    folder, _ = run(tmp_path / "run", "samples=4", "sampler.particles=8", "sampler.keep=4")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["question"]["facts"]["answers"].endswith("different molecules")


def test_larger_molecules_with_charges(tmp_path):
    """An indole in molecules of 14 heavy atoms of the second bundled prior."""
    asked = ["operator=substructure", "operator.smarts=c1ccc2[nH]ccc2c1", "prior=zinc_masked", "samples=8"]
    sizes = ["domain.heavy_atoms=14", "sampler.particles=16", "sampler.keep=8"]
    folder, metrics = run(tmp_path / "run", *asked, *sizes)
    assert metrics["question"]["table"]["posterior samples"]["hit"] >= 0.5
    pattern = Chem.MolFromSmarts("c1ccc2[nH]ccc2c1")
    for row in rows_of(folder):
        if row["answers"] == "True":
            molecule = Chem.MolFromSmiles(row["smiles"])
            assert molecule.HasSubstructMatch(pattern)
            assert molecule.GetNumHeavyAtoms() == 14


def test_a_formula_with_a_charge(tmp_path):
    """Ammonium: the net charge is a datum, checked on the decoded molecule."""
    asked = ["operator=formula", "operator.formula=C6H14NO+", "prior=zinc_masked", "samples=8"]
    folder, metrics = run(tmp_path / "run", *asked, "sampler.particles=64", "sampler.keep=8")
    assert metrics["question"]["table"]["posterior samples"]["hit"] >= 0.5
    answers = [row for row in rows_of(folder) if row["answers"] == "True"]
    assert all(formula_of(Chem.MolFromSmiles(row["smiles"])) == "C6H14NO+" for row in answers)


@pytest.mark.parametrize("sampler", ["daps", "moment_twisted"])
def test_rewards_have_no_derivative(sampler):
    asked = ["operator=property", "operator.name=qed", "operator.target=0.5", "prior=qm9_edm"]
    with pytest.raises(InputError, match=r"needs the derivative of the forward model and Values has none"):
        plan(config(*asked, f"sampler={sampler}", "domain.heavy_atoms=9"))


def test_samplers_of_levels_need_the_number_of_atoms():
    with pytest.raises(InputError, match=r"how many nodes there are; set domain\.heavy_atoms"):
        MoleculeDomain().problems(config("operator=property", "operator.name=qed", "operator.target=0.5",
                                         "prior=qm9_edm", "sampler=dps"))  # fmt: skip


def test_a_formula_by_guidance(tmp_path):
    """A denoiser of graphs under second-order Tweedie: .62 of draws in a run over 20 formulas."""
    asked = ["operator=formula", "operator.formula=C7H9NO", "prior=qm9_edm", "sampler=formula_matching"]
    _, metrics = run(tmp_path / "run", *asked, "samples=32")
    table = metrics["question"]["table"]
    assert table["posterior samples"]["hit"] > 0.15
    assert table["posterior samples"]["hit"] > 2 * table["prior alone"]["hit"]


def test_denoised_graphs_are_molecules(tmp_path):
    """Steered to a property by potentials; nearly every draw of the bundled denoiser is a molecule."""
    asked = ["operator=property", "operator.name=logp", "operator.target=1.5", "prior=qm9_edm"]
    _, metrics = run(tmp_path / "run", *asked, "samples=32")
    table = metrics["question"]["table"]
    assert table["prior alone"]["valid, connected"] > 0.5
    assert table["posterior samples"]["hit"] > table["prior alone"]["hit"] + 0.2


def test_references_say_what_real_molecules_reach(tmp_path):
    """Distances of a set to itself are 0, what it holds is not new, and a file of one molecule is refused."""
    path = tmp_path / "real.smi"
    path.write_text("smiles\nCCO\nOCC\nCCN\nc1ccccc1\nCC(=O)N\nC1CC1O\n")
    found = read_references(str(path))
    assert sorted(found.smiles) == ["CC(N)=O", "CCN", "CCO", "OC1CC1", "c1ccccc1"]
    decoded = [decode(QM9.graph(read_smiles(one)), QM9) for one in found.smiles]
    row = found.compared(decoded)
    assert row["novel"] == 0
    assert row["WL-MMD"] == pytest.approx(0, abs=1e-12)
    assert row["FCD"] == pytest.approx(0, abs=1e-2)
    assert found.compared([decode(QM9.graph(read_smiles("CCC")), QM9)])["novel"] == 1
    assert found.floor(2)["WL-MMD"] > 0.1
    (tmp_path / "one.smi").write_text("CCO\n")
    with pytest.raises(InputError, match="holds 1 molecules"):
        read_references(str(tmp_path / "one.smi"))


def test_references_are_read_before_any_work(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        MoleculeDomain().problems(config(f"domain.references={tmp_path / 'none.smi'}"))
