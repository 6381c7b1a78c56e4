"""Masses, fragments with attachment points and files of structures: exact where it can be enumerated."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import Descriptors

from invdiff import FilterSettings, FirstHitting, InputError, keyed_stream, load_plugin, run_filter, solve
from invdiff.config import compose
from invdiff_molecule.chemistry import (
    Fragment,
    Vocabulary,
    formula_of,
    holds,
    read_formula,
    read_sdf,
    read_smiles,
    without_dummies,
)
from invdiff_molecule.domain import MoleculeDomain
from invdiff_molecule.formula import Formula
from invdiff_molecule.mass import HYDROGEN, MassProposal, formulas_within, mass_of
from invdiff_molecule.state import unpack
from tests.small_graphs import Small

QM9 = Vocabulary.of(["C", "N", "O", "F"])


def test_masses_are_those_of_rdkit():
    for smiles in ("CCO", "Cc1ccc(F)nc1", "OC#N"):
        molecule = read_smiles(smiles)
        counts = read_formula(formula_of(molecule))
        found = sum(number * (HYDROGEN if e == "H" else mass_of(e)) for e, number in counts.items())
        assert found == pytest.approx(Descriptors.ExactMolWt(molecule), abs=1e-6)


def test_formulas_of_a_mass_are_all_there():
    """Against every formula of up to four atoms that has closed shells."""
    operator = Formula(QM9, 4)
    masses = torch.tensor([mass_of(element) for element in operator.elements])
    known = []
    for counts in np.ndindex(5, 5, 5, 5):
        if not 1 <= sum(counts) <= 4:
            continue
        for hydrogens in range(11):
            text = "".join(f"{e}{n}" for e, n in zip("CNOF", counts, strict=True) if n)
            try:
                operator.data(text + (f"H{hydrogens}" if hydrogens else ""))
            except InputError:
                continue
            known.append((counts, float(torch.tensor(counts).float() @ masses) + hydrogens * HYDROGEN))
    for target in (44.0, 46.04, 58.005):
        expected = {counts for counts, mass in known if abs(mass - target) <= 0.03}
        if expected:
            found = formulas_within(target, 0.03, QM9, 4)
            assert {tuple(row) for row in found.tolist()} == expected
        else:
            with pytest.raises(InputError, match="no neutral formula"):
                formulas_within(target, 0.03, QM9, 4)


def test_the_mass_proposal_samples_the_exact_posterior():
    """Graphs of three atoms and a mass that three formulas have: total variation at 20 000 particles."""
    prior, vocabulary = Small(), Vocabulary.of(["C", "O"])
    operator = Formula(vocabulary, 3)
    weights = torch.tensor([mass_of("C"), mass_of("O"), HYDROGEN], dtype=torch.float64)
    target, width = 44.04, 0.03  # CO2 (43.990), C2H4O (44.026), C3H8 (44.063)

    def reward(tokens):
        masses = operator(prior.embed(tokens)).double() @ weights
        return -0.5 * ((masses - target) / width).square()

    logs = prior.probabilities.log() + reward(prior.states)
    exact, evidence = logs.softmax(0), float(logs.logsumexp(0))
    formulas = formulas_within(target, 4 * width, vocabulary, 3)
    assert len(formulas) == 3
    proposal = MassProposal(prior.layout, operator, formulas.double(), target)
    model = FirstHitting(prior, reward, completions=0, proposal=proposal)
    out = run_filter(model, FilterSettings(20_000), torch.Generator().manual_seed(1))
    found = prior.found(out.particles, out.weights)
    assert 0.5 * float((found - exact).abs().sum()) < 0.03
    assert out.log_evidence == pytest.approx(evidence, abs=0.05)
    counts = {tuple(row) for row in operator(prior.embed(out.particles.tokens))[:, :2].int().tolist()}
    assert counts == {tuple(row) for row in formulas.tolist()}


def test_molecules_of_a_mass(tmp_path):
    """Every answer has it to the parts per million that were asked for."""
    few = ["samples=16", "sampler.particles=32", "sampler.keep=16"]
    found = solve(
        "domain=molecule", "operator=mass", "operator.mass=111.0684", *few, out=str(tmp_path / "run")
    )
    assert found["metrics"]["question"]["table"]["posterior samples"]["hit"] > 0.8
    assert "C6H9NO" in found["metrics"]["question"]["facts"]["formulas of the answers"]
    for row in csv.DictReader((tmp_path / "run/items/question/molecules.csv").open()):
        if row["answers"] == "True":
            mass = Descriptors.ExactMolWt(Chem.MolFromSmiles(row["smiles"]))
            assert abs(mass / 111.0684 - 1) <= 10.1e-6


def test_sizes_that_a_mass_allows():
    """Only they are drawn, also where the training set has none of them."""
    problem = MoleculeDomain().problems(
        compose(["domain=molecule", "operator=mass", "operator.mass=44.0262"])
    )[0]
    prior = problem.context.prior
    assert prior.sizes == (3,)
    tokens = prior.start(20, keyed_stream(0, 1))
    assert ((tokens[:, :9] != prior.layout.absent).sum(1) == 3).all()


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("c1ccccc1[*].[*]N1CCOCC1", [5, 6]),
        ("c1ccn([*:1])c1", [3]),
        ("[*]C([*:2])O", [0, 0]),
    ],
)
def test_attachment_points_are_counted(text, points):
    plain, found = without_dummies(Chem.MolFromSmiles(text))
    assert sorted(np.repeat(np.arange(len(found)), found).tolist()) == points
    assert all(atom.GetAtomicNum() for atom in plain.GetAtoms())


def test_fragments_go_on_at_their_points_alone():
    plain, points = without_dummies(Chem.MolFromSmiles("c1ccccc1[*].[*]N1CCOCC1"))
    verdicts = {
        "c1ccccc1CCN1CCOCC1": True,
        "c1ccccc1N1CCOCC1": True,
        "Cc1ccccc1CCN1CCOCC1": False,
        "c1ccccc1CN1CCOC(C)C1": False,
        "c1ccccc1CN1CCCCC1": False,
    }
    assert {smiles: holds(read_smiles(smiles), plain, points) for smiles in verdicts} == verdicts


def test_closed_atoms_have_no_bond_from_the_start():
    prior = load_plugin("priors", "qm9_masked")({})
    plain, points = without_dummies(Chem.MolFromSmiles("C1CC1[*]"))
    graph = prior.vocabulary_of_atoms.graph(plain)
    given = prior.given(Fragment(graph.atoms, graph.bonds, points), 7)
    model = FirstHitting(given, lambda tokens: torch.zeros(len(tokens)), completions=0)
    out = run_filter(model, FilterSettings(16), keyed_stream(0, 2))
    edges = unpack(model.state(out.particles), 4)[1]
    assert float(edges[:, :2, 3:].abs().sum()) == 0
    assert float(edges[:, 2, 3:].abs().sum()) > 0


def test_linkers(tmp_path):
    few = ["samples=8", "sampler.particles=16", "sampler.keep=8", "domain.heavy_atoms=9"]
    smarts = 'operator.smarts="C1CC1[*].[*]C#N"'
    found = solve(
        "domain=molecule", "operator=linker", "prior=qm9_masked", smarts, *few, out=str(tmp_path / "run")
    )
    assert found["metrics"]["question"]["table"]["posterior samples"]["hit"] > 0.8


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["operator=mass", "operator.mass=-4"], "needs a mass and ppm above 0"),
        (["operator=mass", "operator.mass=13.5"], "no neutral formula"),
        (["operator=mass", "prior=qm9_edm"], "needs to know how many atoms"),
        (["operator=substructure", 'operator.smarts="C=[*]"'], "by a single bond"),
    ],
)
def test_bad_questions_are_refused(overrides, words):
    with pytest.raises(InputError, match=words):
        MoleculeDomain().problems(compose(["domain=molecule", *overrides]))


def test_structure_files_are_read(tmp_path):
    writer = Chem.SDWriter(str(tmp_path / "two.sdf"))
    for smiles in ("CCO", "C1CC1N"):
        writer.write(Chem.MolFromSmiles(smiles))
    writer.close()
    assert list(read_sdf(tmp_path / "two.sdf")) == [(1, "CCO"), (2, "NC1CC1")]
    config = compose(["domain=molecule", f"input.path={tmp_path / 'two.sdf'}"])
    assert [problem.context.truth for problem in MoleculeDomain().problems(config)] == ["CCO", "NC1CC1"]
    text = (tmp_path / "two.sdf").read_text()
    (tmp_path / "bad.sdf").write_text(text.replace(" O ", " Qq"))
    with pytest.raises(InputError, match="record 1 is not a molecule"):
        list(read_sdf(tmp_path / "bad.sdf"))
