"""Molecules: the bundled prior by itself, and how often questions are answered.

    python benchmarks/molecule.py prior DATA [--count 500]       validity, novelty, FCD with its floor
    python benchmarks/molecule.py formula DATA [--count 40]      formulas of held-out molecules, 8 draws each
    python benchmarks/molecule.py fragment DATA [--count 150]    connected fragments of 5 atoms, one draw each
    python benchmarks/molecule.py reward DATA [--count 20]       QED and 13C environments, beside best-of-N
    python benchmarks/molecule.py qed DATA [--count 4]           drug-likeness of larger molecules
    python benchmarks/molecule.py edm DATA [--count 40]          qm9_edm: draws, and formulas by guidance
    python benchmarks/molecule.py aim DATA [--count 8]           a prior given properties, as a proposal

`prior` takes `prior=zinc_masked` too, and then the molecules of ZINC250k.

DATA is the folder of the shared data. Held out: by the hash of the canonical SMILES, see
`invdiff_molecule.training`. Calls are network calls, one a particle and site. One thread.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from common import closing
from rdkit import Chem

from invdiff import MASK, FirstHitting, keyed_stream
from invdiff.config import compose
from invdiff.prior.counted import counted
from invdiff.run.solve import make_prior, make_sampler
from invdiff.sampler import feynman_kac
from invdiff.sampler.loop import draw
from invdiff_molecule.chemistry import canonical, decode, formula_of, read_smiles
from invdiff_molecule.diffusion import GraphDiffusion, GraphModel
from invdiff_molecule.domain import MoleculeDomain
from invdiff_molecule.metrics import diversity, fcd, rates
from invdiff_molecule.properties import PROPERTIES
from invdiff_molecule.state import graphs_of
from invdiff_molecule.training import lines_of, split_of


def molecules(data: Path, name: str = "qm9") -> dict[str, list[str]]:
    """Canonical SMILES by split."""
    found: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for _, smiles in lines_of(data / f"molecules/{name}.csv.gz"):
        text = canonical(read_smiles(smiles))
        found[split_of(text)].append(text)
    return found


def unguided(prior, count: int, seed: int, proposal=None):
    """Draws of the prior, or of a proposal, without weights."""
    model = FirstHitting(prior, lambda tokens: torch.zeros(len(tokens)), completions=0, proposal=proposal)
    settings = feynman_kac.Settings(count, threshold=0.0)
    done = feynman_kac.run(model, settings, keyed_stream(seed, 5))
    vocabulary = prior.vocabulary_of_atoms
    states = model.state(done.particles)
    return [decode(graph, vocabulary) for graph in graphs_of(states, len(vocabulary))]


def prior_alone(data: Path, count: int, overrides: list[str]) -> None:
    """The unconditional table."""
    settings = compose(["domain=molecule", *overrides])["prior"]
    known = molecules(data, "zinc250k" if settings["name"] == "zinc_masked" else "qm9")
    prior = counted(make_prior(settings))
    began = time.perf_counter()
    decoded = unguided(prior, count, 0)
    seconds = time.perf_counter() - began
    quality(decoded, known)
    print(f"{prior.calls / count:.1f} calls and {seconds / count:.4f} s a molecule")


def quality(decoded, known: dict[str, list[str]]) -> None:
    """Shares, novelty and FCD of draws, with its floor."""
    row = rates(decoded, [one.valid_connected for one in decoded])
    connected = [one.smiles for one in decoded if one.valid_connected]
    train, whole = set(known["train"]), set().union(*known.values())
    row["novel"] = float(np.mean([smiles not in train for smiles in set(connected)]))
    row["novel, of the whole file"] = float(np.mean([smiles not in whole for smiles in set(connected)]))
    rng = np.random.default_rng(0)
    reference = [known["train"][i] for i in rng.choice(len(known["train"]), 5000, replace=False)]
    held_out = [known["test"][i] for i in rng.choice(len(known["test"]), len(connected), replace=False)]
    row["FCD"] = fcd(connected, reference)
    row["FCD of as many held-out molecules"] = fcd(held_out, reference)
    for name, value in row.items():
        print(f"{name:36s} {value:.4f}")


def answered(overrides: list[str], draws: int, seed: int):
    """Decoded draws of a question, whether each is a hit, and network calls."""
    config = compose(["domain=molecule", f"samples={draws}", *overrides])
    prior = make_prior(config["prior"])
    problem = MoleculeDomain().problems(config)[0]
    adapted = counted(MoleculeDomain().adapt_prior(prior, problem))
    sampler = make_sampler(config["sampler"], prior.card)
    out = draw(sampler, adapted, problem.measurement, problem.shape, particles=range(draws), seed=seed)
    decoded = problem.context.decoded(out.x)
    return decoded, problem.context.hits(decoded), adapted.calls


def formulas(data: Path, count: int, overrides: list[str]) -> None:
    """Formulas of held-out molecules."""
    wanted = formulas_of(molecules(data)["test"], count)
    for title in ("prior alone", "proposal, unweighted", "posterior, 8 of 64 particles"):
        shares, distinct, calls = [], [], 0
        for number, formula in enumerate(wanted):
            settings = [f"operator.formula={formula}", *overrides]
            if title.startswith("posterior"):
                filtered = ["sampler.particles=64", "sampler.keep=8"]
                decoded, hits, used = answered([*settings, *filtered], 8, number)
            else:
                decoded, hits, used = unweighted(settings, title.startswith("proposal"), number)
            shares.append(np.mean(hits))
            distinct.append(len({one.smiles for one, hit in zip(decoded, hits, strict=True) if hit}))
            calls += used
        solved = np.mean(np.array(shares) > 0)
        print(
            f"{title:30s} draws with the formula {np.mean(shares):.3f}  formulas solved {solved:.3f}  "
            f"distinct of 8 {np.mean(distinct):.2f}  calls {calls / count:.0f}"
        )


def unweighted(settings: list[str], proposed: bool, seed: int):
    """Eight draws of the prior given the size, or of the formula's proposal, without weights."""
    config = compose(["domain=molecule", *settings])
    problem = MoleculeDomain().problems(config)[0]
    prior = MoleculeDomain().adapt_prior(make_prior(config["prior"]), problem)
    make = problem.measurement.operator.proposal
    proposal = make(prior, problem.measurement) if proposed else None
    adapted = counted(prior)
    decoded = unguided(adapted, 8, seed, proposal)
    return decoded, problem.context.hits(decoded), adapted.calls


def fragments(data: Path, count: int, overrides: list[str]) -> None:
    """Random connected fragments of five atoms of held-out molecules with eight or more."""
    rng = np.random.default_rng(2)
    known = molecules(data)
    test, train = known["test"], set(known["train"])
    prior = make_prior(compose(["domain=molecule", *overrides])["prior"])
    vocabulary = prior.vocabulary_of_atoms
    hits, smiles, total = [], [], 0
    while total < count:
        molecule = read_smiles(test[int(rng.integers(len(test)))])
        if molecule.GetNumAtoms() < 8:
            continue
        atoms = {int(rng.integers(molecule.GetNumAtoms()))}
        while len(atoms) < 5:
            edge = {n.GetIdx() for a in atoms for n in molecule.GetAtomWithIdx(a).GetNeighbors()} - atoms
            atoms.add(int(rng.choice(sorted(edge))))
        graph = vocabulary.graph(molecule)
        order = np.array(sorted(atoms))
        fragment = type(graph)(graph.atoms[order], graph.bonds[np.ix_(order, order)])
        pattern = vocabulary.molecule(fragment)
        given = prior.given(fragment, molecule.GetNumAtoms())
        one = unguided(given, 1, total)[0]
        found = one.valid_connected and contains(one.molecule, pattern)
        hits.append(found)
        smiles.append(one.smiles)
        total += 1
    distinct = {s for s, hit in zip(smiles, hits, strict=True) if hit}
    print(f"valid, connected, fragment present {np.mean(hits):.3f} (n {count}); {len(distinct)} distinct")
    print(f"of them not in the training split {np.mean([s not in train for s in distinct]):.3f}")


def contains(molecule, fragment) -> bool:
    """Whether the Kekule fragment is in a Kekule form of the molecule."""
    plain = Chem.RWMol(molecule)
    Chem.Kekulize(plain, clearAromaticFlags=True)
    if plain.HasSubstructMatch(fragment):
        return True
    forms = Chem.ResonanceMolSupplier(molecule, Chem.KEKULE_ALL)
    return any(form is not None and form.HasSubstructMatch(fragment) for form in forms)


def rewards(data: Path, count: int, overrides: list[str]) -> None:
    """Steering against drawing as often: every particle and every call counts."""
    questions = {
        "13C environments = 4": ["operator.name=nmr_carbons", "operator.target=4", "operator.tolerance=0.1"],
        "QED, maximise, hit from .6": [
            "operator.name=qed", "operator.direction=maximise", "operator.target=0.6", "operator.sigma=0.02",
        ],
    }  # fmt: skip
    for title, question in questions.items():
        for name, extra in (
            ("prior alone", ["sampler.completions=0", "sampler.threshold=0"]),
            ("weighted at the end", ["sampler.completions=0"]),
            ("potentials", []),
        ):
            share, best, distinct, calls, spread = [], [], 0, 0, []
            for seed in range(count):
                settings = ["operator=property", *question, "sampler.particles=32", "sampler.keep=32"]
                if name == "prior alone":
                    settings += ["operator.sigma=1e6"]
                decoded, hits, used = answered([*settings, *extra, *overrides], 32, seed)
                values = [PROPERTIES["qed"].value(d.molecule) for d in decoded if d.valid_connected]
                share.append(np.mean(hits))
                best.append(max(values, default=0))
                distinct += len({d.smiles for d, hit in zip(decoded, hits, strict=True) if hit})
                spread.append(diversity(decoded))
                calls += used
            print(
                f"{title:28s} {name:20s} hits {np.mean(share):.3f}  "
                f"distinct hits per 1000 calls {1000 * distinct / calls:.2f}  "
                f"best QED {np.median(best):.3f}  diversity {np.mean(spread):.3f}"
            )


def drug_likeness(data: Path, count: int, overrides: list[str]) -> None:
    """QED of every draw, not of the best: filters of 32 particles, beside 32 chains of an argmax."""
    asked = ["operator=property", "prior=zinc_masked", "operator.name=qed", "operator.direction=maximise"]
    asked += ["operator.sigma=0.01", "sampler.particles=32", "sampler.keep=32", *overrides]
    for title, extra in (
        ("prior alone", ["sampler.completions=0", "sampler.threshold=0", "operator.sigma=1e6"]),
        ("weighted at the end", ["sampler.completions=0"]),
        ("potentials", ["sampler.every=10", "sampler.last=200"]),
    ):
        keep = int(compose(["domain=molecule", *asked])["sampler"]["keep"])
        rows = [answered([*asked, *extra], keep, seed) for seed in range(count)]
        told(title, [one for decoded, _, _ in rows for one in decoded], sum(calls for _, _, calls in rows))
    for children, last in ((4, None), (4, 200)):
        decoded, calls = argmax(asked, 32, children, last)
        told(f"argmax of {children}, last {last or 'all'}", decoded, calls)


def denoiser(data: Path, count: int, overrides: list[str]) -> None:
    """500 draws of qm9_edm, and 8 draws of each formula by the samplers of levels."""
    known = molecules(data)
    bare = make_prior(compose(["domain=molecule", "prior=qm9_edm"])["prior"])
    prior = counted(bare)
    options = GraphDiffusion(corrector=False, noise="exact", temperature=1.0)
    done = feynman_kac.run(
        GraphModel(options, bare, None, prior), feynman_kac.Settings(500, threshold=0.0), keyed_stream(0, 5)
    )
    vocabulary = bare.vocabulary_of_atoms
    states = bare.rounded(done.particles.denoised)
    print(f"ancestral, {prior.calls / 500:.0f} calls")
    quality([decode(graph, vocabulary) for graph in graphs_of(states, len(vocabulary))], known)
    wanted = formulas_of(known["test"], count)
    for sampler in ("graph_sde", "proximal", "formula_matching"):
        shares, distinct, calls = [], [], 0
        levels = [] if sampler != "proximal" else ["sampler.sigma_max=10", "sampler.sigma_min=0.02"]
        for number, formula in enumerate(wanted):
            settings = [f"operator.formula={formula}", "prior=qm9_edm", f"sampler={sampler}", *levels]
            decoded, hits, used = answered([*settings, *overrides], 8, number)
            shares.append(np.mean(hits))
            distinct.append(len({one.smiles for one, hit in zip(decoded, hits, strict=True) if hit}))
            calls += used
        print(
            f"{sampler:20s} draws with the formula {np.mean(shares):.3f}  formulas solved "
            f"{np.mean(np.array(shares) > 0):.3f}  distinct of 8 {np.mean(distinct):.2f}  "
            f"calls {calls / count:.0f}"
        )


def formulas_of(test: list[str], count: int) -> list[str]:
    """Different formulas of held-out molecules."""
    rng = np.random.default_rng(1)
    wanted: list[str] = []
    for index in rng.permutation(len(test)):
        formula = formula_of(read_smiles(test[index]))
        if formula not in wanted:
            wanted.append(formula)
        if len(wanted) == count:
            break
    return wanted


def told(title: str, decoded, calls: int) -> None:
    """One row."""
    values = [PROPERTIES["qed"].value(one.molecule) for one in decoded if one.valid_connected]
    smiles = {one.smiles for one in decoded if one.valid_connected}
    print(
        f"{title:24s} draws {len(decoded)}  connected {len(values) / len(decoded):.3f}  median QED "
        f"{np.median(values):.3f}  distinct {len(smiles)}  diversity {diversity(decoded):.3f}  "
        f"calls a draw {calls / len(decoded):.0f}",
        flush=True,
    )


def argmax(asked: list[str], chains: int, children: int, last: int | None):
    """Every site: that of `children` drawn tokens whose completion has the best reward (arXiv 2408.08252).

    Of the `last` masked sites alone, where a completion says something; before them one token is drawn.
    """
    config = compose(["domain=molecule", *asked])
    problem = MoleculeDomain().problems(config)[0]
    prior = counted(MoleculeDomain().adapt_prior(make_prior(config["prior"]), problem))
    measurement = problem.measurement

    def reward(tokens):
        return measurement.log_likelihood(prior.embed(tokens))

    model = FirstHitting(prior, reward, completions=1, every=1, last=last)
    generator = keyed_stream(0, 8)
    particles, _ = model.start(chains, generator)
    rows = torch.arange(chains)
    for k in range(model.steps):
        many = children if last is None or int((particles.tokens == MASK).sum(1).min()) <= last else 1
        spread = feynman_kac.gather(particles, rows.repeat_interleave(many))
        moved, _ = model.move(k, spread, generator)
        best = moved.log_twist.reshape(chains, many).argmax(1)
        particles = feynman_kac.gather(moved, rows * many + best)
    vocabulary = prior.vocabulary_of_atoms
    return [decode(g, vocabulary) for g in graphs_of(model.state(particles), len(vocabulary))], prior.calls


def aimed(data: Path, count: int, overrides: list[str]) -> None:
    """Questions about properties: the conditional prior as a proposal, beside potentials and no steering."""
    questions = {
        "logP = 2": ["operator=property", "operator.name=logp", "operator.target=2"],
        "logP = -1": ["operator=property", "operator.name=logp", "operator.target=-1"],
        "logP = 1.5, QED = .58": [
            "operator=product", "operator.operators=[{name: logp, target: 1.5}, {name: qed, target: 0.58}]",
        ],
        "TPSA = 60, SA = 3": [
            "operator=product", "operator.operators=[{name: tpsa, target: 60}, {name: sa, target: 3}]",
        ],
    }  # fmt: skip
    ways = {
        "qm9_masked, weighted at the end": ["prior=qm9_masked", "sampler=first_hitting"],
        "qm9_masked, potentials": ["prior=qm9_masked", "sampler=molecule_reward"],
        "qm9_conditional": ["prior=qm9_conditional"],
    }
    for title, question in questions.items():
        for name, extra in ways.items():
            share, distinct, calls, spread = [], [], 0, []
            for seed in range(count):
                settings = [*question, *extra, "sampler.particles=64", "sampler.keep=32", *overrides]
                decoded, hits, used = answered(settings, 32, seed)
                share.append(np.mean(hits))
                distinct.append(len({d.smiles for d, hit in zip(decoded, hits, strict=True) if hit}))
                spread.append(diversity(decoded))
                calls += used
            print(
                f"{title:24s} {name:32s} hits {np.mean(share):.3f}  distinct of 32 {np.mean(distinct):.1f}  "
                f"diversity {np.mean(spread):.3f}  calls a draw {calls / (32 * count):.0f}",
                flush=True,
            )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    tables = {
        "prior": (prior_alone, 500),
        "formula": (formulas, 40),
        "fragment": (fragments, 150),
        "reward": (rewards, 20),
        "qed": (drug_likeness, 4),
        "edm": (denoiser, 40),
        "aim": (aimed, 8),
    }
    parser.add_argument("what", choices=tuple(tables))
    parser.add_argument("data", type=Path)
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    table, count = tables[given.what]
    table(given.data, given.count or count, given.overrides)
    closing(f"molecule.py {given.what} DATA", given.overrides, 1)


if __name__ == "__main__":
    main()
