"""The deformation domain: from two images, or points, to displacement fields with their spread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invdiff import Config, Estimates, Figure, Posterior, Prior, Problem, Summary, Tick
from invdiff_deformation import metrics
from invdiff_deformation.baselines import TITLES, all_baselines, has_simpleitk
from invdiff_deformation.drdm_training import CardiacSlices
from invdiff_deformation.item import begun
from invdiff_deformation.judge import Case, facts_of, row_of
from invdiff_deformation.learned import LearnedVelocity
from invdiff_deformation.prepare import prepared
from invdiff_deformation.results import write_results
from invdiff_deformation.velocity_training import Velocities

TEMPERED = "Similarity of images is no noise model: sigma and beta are choices that temper the posterior."


class DeformationDomain:
    """The `deformation` domain."""

    name = "deformation"
    baseline_names = tuple(TITLES)

    def problems(self, config: Config) -> list[Problem]:
        item, measurement, mode = begun(prepared(config))
        if mode is not None:
            measurement.operator.guess = lambda: mode  # type: ignore[attr-defined]
        shape = item.transform.coordinates.event_shape
        return [Problem(item.name, measurement, shape, Case(item, mode), item.notes)]

    def training_data(self, settings: Mapping[str, Any]) -> CardiacSlices | Velocities:
        """Slices for `invdiff train`: `root` and `path`, the rest as in `CardiacSlices`; or with
        `velocities`, a file that keeps them, the velocities of their registrations.
        """
        path = Path(str(settings["root"])) / str(settings["path"])
        if settings.get("velocities"):
            return Velocities(path, Path(str(settings["velocities"])))
        size = settings.get("size")
        return CardiacSlices(
            path,
            held_out=int(settings.get("held_out", 10)),
            published=bool(settings.get("published", False)),
            size=None if size is None else int(size),
        )

    def adapt_prior(self, prior: Prior, problem: Problem) -> Prior:
        """The velocity prior on the fixed grid, with what the evidence of points made of it."""
        case: Case = problem.context
        return prior if isinstance(prior, LearnedVelocity) else case.item.prior

    def baselines(self, problem: Problem, tick: Tick) -> Estimates:
        case: Case = problem.context
        return all_baselines(case.item, case.mode, tick)

    def summarise(self, problem: Problem, posterior: Posterior, baselines: Estimates) -> Summary:
        case: Case = problem.context
        item, drawn = case.item, case.drawn(posterior)
        rows = {TITLES[name]: value for name, value in baselines.items()}
        rows |= {"one sample": drawn.u[0], "posterior, exp of the mean": drawn.representative}
        table = {name: row_of(item, value) for name, value in rows.items()}
        warnings = []
        if item.imaged:
            warnings.append(TEMPERED)
            if not has_simpleitk():
                warnings.append("SimpleITK is not installed; its demons are missing from the table.")
        if folded := table["posterior, exp of the mean"]["folded_strict_%"]:
            warnings.append(f"The representative deformation folds at {folded:.3g} % of the voxels.")
        return Summary(table, facts_of(drawn), metrics.CONVENTION, tuple(warnings))

    def write(self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path) -> None:
        write_results(problem.context.drawn(posterior), folder)

    def figures(
        self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path
    ) -> list[Figure]:
        from invdiff_deformation.figures import draw_figures

        return draw_figures(problem.context.drawn(posterior), folder)
