"""Super-resolution beside the classical methods, through the product's own command path.

    python benchmarks/superres.py table DATA [--set kodak12|set5|heldout] [--count N] [key=value ...]
    python benchmarks/superres.py gain DATA [--count K] [--figure FILE] [key=value ...]

DATA is the folder of the shared data. `heldout` are crops of the photographs held out from training:
settings are chosen on them, never on the test sets. Data are the references, downsampled and rounded to 8
bits. Means over images; every table says its versions and settings. Two processes of one thread each.

`table` with `--natural` adds measures that ask whether an image looks like a photograph: NIQE, whose model is
fitted to the training photographs (lower is better; no reference), and VIF (higher is better).

`gain` runs the deterministic sampler from K random starts (noise of full strength, as in arXiv 2305.15357)
on 20 held-out references and the centres of the 12 Kodak crops at 5, 10 and 20 steps, and asks what a start
chosen among k of them on r references gains on the Kodak images over a random start: the mean over 400 draws
of candidates and references; beside it the start at the prior's mean, which needs no search.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
import torch
from common import closing, solve

HELD_OUT = 10  # of configs/train/photo.yaml: every tenth photograph
FACTS = ("within_1_std", "within_2_std", "std_factor", "correlation of std and error")


def images(data: Path, name: str, count: int | None) -> dict[str, np.ndarray]:
    """References of a set by name, uint8 [y, x, 3]."""
    if name == "heldout":
        with np.load(data / "superres/bsds500_train_rgb128.npz") as file:
            crops, ids = file["images"], file["ids"]
        wanted = np.unique(ids)[::HELD_OUT]
        found = {str(one): crops[np.flatnonzero(ids == one)[number % 4]] for number, one in enumerate(wanted)}
    else:
        file_name = {"kodak12": "kodak12_hr256.npz", "set5": "set5_hr_mod4.npz"}[name]
        with np.load(data / "superres" / file_name) as file:
            found = {key: file[key] for key in file}
    return dict(list(found.items())[:count])


class Naturalness:
    """NIQE with a model of the training photographs, and VIF; both on luminance.

    NIQE (IEEE SPL 20:209) is deepinv's with patches of 48 pixels, for images of 256 have too few of 96.
    """

    def __init__(self, data: Path) -> None:
        from deepinv.loss.metric import NIQE

        with np.load(data / "superres/bsds500_train_rgb128.npz") as file:
            crops, ids = file["images"], file["ids"]
        held_out = np.unique(ids)[::HELD_OUT]
        kept = crops[~np.isin(ids, held_out)].transpose(0, 3, 1, 2) / 255.0
        metric = NIQE(weights_path=None, patch_size=48)
        metric.create_weights([self._luminance(one)[0] for one in kept])
        self.model = metric.mu_p, metric.cov_p

    def niqe(self, y: torch.Tensor) -> float:
        """Of a luminance [1, 1, y, x] in 0 .. 255."""
        from deepinv.loss.metric import NIQE

        metric = NIQE(weights_path=None, patch_size=48)
        metric.mu_p, metric.cov_p = self.model
        return float(metric(y))

    @staticmethod
    def _luminance(image: np.ndarray) -> torch.Tensor:
        from invdiff_superres.metrics import luminance, rounded

        return torch.from_numpy(luminance(rounded(image))).float()[None, None]

    def of_run(self, settings: list[str], reference: Path, run: Path) -> dict[str, dict[str, float]]:
        """NIQE of the reference, and NIQE and VIF of every method of a run, by its name in the table."""
        from PIL import Image
        from torchmetrics.functional.image import visual_information_fidelity

        from invdiff.config import compose
        from invdiff.registry import load
        from invdiff_superres.baselines import TITLES

        def picture(path: Path) -> np.ndarray:
            return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) / 255.0

        domain = load("domains", "superres")()
        problem = domain.problems(compose(settings))[0]
        shown = {
            TITLES[name]: problem.context.image(x)
            for name, x in domain.baselines(problem, lambda: None).items()
        }
        folder = next((run / "items").iterdir())
        shown["posterior mean"] = picture(folder / "mean.png")
        shown["one sample"] = picture(folder / "samples/00.png")
        exact = self._luminance(picture(reference))
        found = {"reference": {"niqe": self.niqe(exact)}}
        for name, image in shown.items():
            y = self._luminance(image)
            y = y[..., : exact.shape[-2], : exact.shape[-1]]
            vif = visual_information_fidelity(y, exact[..., : y.shape[-2], : y.shape[-1]])
            found[name] = {"niqe": self.niqe(y), "vif": float(vif)}
        return found


def job(folder: str, name: str, overrides: list[str], natural: Naturalness | None = None) -> dict[str, Any]:
    """One picture; its metrics and times."""
    run = Path(folder) / f"run-{name}"
    settings = ["domain=superres", f"input.path={folder}/{name}.png", "domain.truth=true", *overrides]
    result = solve(settings, run)
    if natural is not None:
        looks = natural.of_run(settings, Path(folder) / f"{name}.png", run)
        result["item"]["table"] = {
            method: {**row, **looks.get(method, {})} for method, row in result["item"]["table"].items()
        }
        result["reference"] = looks["reference"]
    return result


def table(
    data: Path, name: str, count: int | None, overrides: list[str], processes: int, natural: bool
) -> None:
    """Means over a set of every method's metrics, coverage, misfit and seconds."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(processes) as pool:
        references = images(data, name, count)
        for key, value in references.items():
            Image.fromarray(value).save(Path(folder) / f"{key}.png")
        model = Naturalness(data) if natural else None
        jobs = [pool.submit(job, folder, key, overrides, model) for key in references]
        results = [one.result() for one in jobs]
    items = [result["item"] for result in results]
    for method in items[0]["table"]:
        rows = [item["table"][method] for item in items]
        means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        print(f"{method:28s}" + "  ".join(f"{key} {value:7.4f}" for key, value in means.items()))
    if natural:
        print(
            f"reference                   niqe {np.mean([one['reference']['niqe'] for one in results]):7.4f}"
        )
    chi2 = float(np.mean([np.mean(item["chi2_per_sample"]) for item in items]))
    facts = {key: float(np.mean([item["facts"].get(key, np.nan) for item in items])) for key in FACTS}
    calls = items[0]["network_calls_per_sample"]
    seconds = float(np.median([result["seconds"]["sampling"] for result in results]))
    print(f"chi2 of a sample {chi2:.3f}  " + "  ".join(f"{key} {value:.3f}" for key, value in facts.items()))
    print(f"{len(items)} images of {name}, {calls} network calls a sample, median {seconds:.1f} s an image")


STEPS = (5, 10, 20)
CANDIDATES, REFERENCES = (4, 16, 64), (1, 4, 20)
DRAWS = 400


def gain(data: Path, keys: int, overrides: list[str], figure: Path | None) -> None:
    """What a searched start gains over a random one on other images, by candidates, references and steps."""
    from PIL import Image

    from invdiff.config import compose
    from invdiff.registry import load
    from invdiff.run.boundary import Runs
    from invdiff.run.solve import choose_device, make_prior, make_sampler
    from invdiff.run.start import deterministic
    from invdiff.sampler.boundary import FixedStart, paired

    torch.set_num_threads(1)
    domain = load("domains", "superres")()
    curves: dict[int, dict[tuple[int, int], tuple[float, float]]] = {}
    sets = {name: images(data, name, None) for name in ("heldout", "kodak12")}
    for steps in STEPS:
        config = compose(["domain=superres", *overrides, f"sampler.steps={steps}"])
        prior = make_prior(config["prior"])
        sampler = deterministic(make_sampler(config["sampler"], prior.card))
        scores = {}
        with tempfile.TemporaryDirectory() as temporary:
            for name, found in sets.items():
                folder = Path(temporary) / name
                folder.mkdir()
                for key, value in found.items():
                    top = (value.shape[0] - 128) // 2
                    Image.fromarray(value[top : top + 128, top : top + 128]).save(folder / f"{key}.png")
                runs = Runs(domain, domain.references(config, folder), prior, sampler, choose_device("cpu"))
                starts = [FixedStart(0, key) for key in range(keys)] + [FixedStart(0, 0, 0.0)]
                rows = [runs.row("", start).values for start in starts]
                scores[name] = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        random = np.random.default_rng(0)
        judged, tried = scores["kodak12"], scores["heldout"]["haarpsi"]
        curves[steps] = {}
        print(f"\n{steps} steps: HaarPSI of random starts {judged['haarpsi'][:-1].mean():.4f}")
        for count in CANDIDATES:
            for size in REFERENCES:
                gains = []
                for _ in range(DRAWS):
                    among = random.choice(keys, min(count, keys), replace=False)
                    on = random.choice(tried.shape[1], size, replace=False)
                    best = among[tried[np.ix_(among, on)].mean(axis=1).argmax()]
                    gains.append(judged["haarpsi"][best].mean() - judged["haarpsi"][:-1].mean())
                curves[steps][count, size] = float(np.mean(gains)), float(np.std(gains))
                mean, spread = curves[steps][count, size]
                print(f"K {count:3d}  R {size:3d}  gain {mean:+.4f} (sd over draws {spread:.4f})")
        best = int(tried[:-1].mean(axis=1).argmax())
        for name, start in (("found among all", best), ("mean of the prior", keys)):
            for key, values in judged.items():
                lead = paired(values[start], values[:-1].mean(axis=0))
                print(
                    f"{name:18s} - random {key:8s} {lead.mean:+.4f} "
                    f"(95 % {lead.low:+.4f} to {lead.high:+.4f}; p {lead.p:.2g})"
                )
        curves[steps][0, 0] = float(judged["haarpsi"][keys].mean() - judged["haarpsi"][:-1].mean()), 0.0
    if figure is not None:
        draw_gain(curves, figure)


def draw_gain(curves: dict[int, dict[tuple[int, int], tuple[float, float]]], path: Path) -> None:
    """Gain against candidates, a panel for each number of steps, a line for each number of references."""
    from invdiff.imaging import page_of, save

    page = page_of(3.6 * len(curves), 3.2)
    panels = page.subplots(1, len(curves), sharey=True)
    for axes, (steps, found) in zip(panels, curves.items(), strict=True):
        for size, colour in zip(REFERENCES, ("#bf8700", "#1a7f37", "#0969da"), strict=True):
            means, spreads = (np.array([found[count, size][k] for count in CANDIDATES]) for k in (0, 1))
            label = f"{size} references" if size > 1 else "1 reference"
            axes.errorbar(CANDIDATES, means, spreads, color=colour, capsize=3, label=label)
        axes.axhline(0, color="#888", linewidth=0.8)
        axes.axhline(found[0, 0][0], color="#57606a", linestyle="--", label="prior's mean, no search")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("candidates")
        axes.set_title(f"{steps} steps", fontsize=10)
    panels[0].set_ylabel("HaarPSI over a random start")
    panels[-1].legend(fontsize=7)
    save(page, path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["table", "gain"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--set", default="kodak12", choices=["kodak12", "set5", "heldout"])
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--natural", action="store_true")
    parser.add_argument("--figure", type=Path, default=None)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    if given.what == "gain":
        gain(given.data, given.count or 64, given.overrides, given.figure)
        closing("superres.py gain DATA", given.overrides, 1)
        return
    table(given.data, given.set, given.count, given.overrides, given.processes, given.natural)
    closing(f"superres.py table DATA --set {given.set}", given.overrides, given.processes)


if __name__ == "__main__":
    main()
