"""Active subsampling of phase-encode lines: candidates, and the scanner that measures them.

A candidate is one line of k-space, all coils. A fully sampled file plays the scanner (retrospective), or
another process does (prospective, see `invdiff.FileExchange`): it is then asked for lines as complex
[line, coil, readout] in the units of the input, which holds what was measured to begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from invdiff import (
    Acquisition,
    Design,
    FileExchange,
    InputError,
    Measurement,
    Pending,
    Problem,
    centre_block,
    check_budget,
    make_design,
)
from invdiff_mri.masks import mask_from_data
from invdiff_mri.noise import NoiseCovariance, from_periphery
from invdiff_mri.operators import CartesianSense, to_real
from invdiff_mri.prepare import Prepared, PrepareSettings
from invdiff_mri.scan import Scan

MAP_LINES = 12  # central lines that ESPIRiT maps need


class CandidateLines(CartesianSense):
    """Every phase-encode line of the grid, along `axis` of [y, x]; lines are the candidates."""

    def __init__(self, coil_maps: Complex[Tensor, "coil y x"], axis: int = -1) -> None:
        super().__init__(torch.ones(coil_maps.shape[-2:], dtype=torch.bool), coil_maps)
        self.axis = axis % 2

    def candidates(self) -> Int[Tensor, "2 coil y x"]:
        """The line of every sample."""
        lines = torch.arange(self.mask.shape[self.axis])
        wide = lines[:, None] if self.axis == 0 else lines[None, :]
        return wide.expand(2, *self.coil_maps.shape).clone()

    def select(
        self, chosen: Sequence[int], y: Float[Tensor, "2 coil y x"]
    ) -> tuple[CartesianSense, Float[Tensor, "2 coil y x"]]:
        """Cartesian undersampling by the chosen lines."""
        mask = line_mask((self.mask.shape[0], self.mask.shape[1]), chosen, self.axis)
        return CartesianSense(mask, self.coil_maps), y * mask.to(y)


def line_mask(shape: tuple[int, int], lines: Sequence[int], axis: int) -> Bool[Tensor, "y x"]:
    """The mask of whole lines along `axis`."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.index_fill_(axis % 2, torch.tensor(list(lines), dtype=torch.int64), True)
    return mask


def whole(scan: Scan, operator: Mapping[str, Any]) -> tuple[Bool[Tensor, "y x"], bool]:
    """The samples that the file holds, and whether it is a full scan that plays the scanner.

    Raises:
        InputError: for an undersampled scan without an instrument to ask.
    """
    present = mask_from_data(scan.kspace.flatten(0, 1))
    full = float(present.float().mean()) > 0.999
    if full and (operator.get("design") or {}).get("exchange") is None:
        return torch.ones_like(present), True
    if (operator.get("design") or {}).get("exchange") is None:
        raise InputError(
            f"choosing lines needs a full scan and {100 * float(present.float().mean()):.1f} % of it was "
            "measured; give it all, or operator.design.exchange=FOLDER to ask an instrument"
        )
    return present, False


def known_noise(scan: Scan, index: int, settings: PrepareSettings) -> NoiseCovariance | None:
    """The noise of a full scan that plays the scanner, which would have made a noise scan; None if given."""
    if scan.noise is not None or settings.sigma is not None:
        return None
    kspace = scan.kspace[index]
    found = from_periphery(kspace, torch.ones(kspace.shape[1:], dtype=torch.bool))
    return replace(found, source=f"{found.source} of the full scan, for a scanner's noise scan")


@dataclass(frozen=True)
class Lines:
    """How the lines of a scan are chosen.

    Attributes:
        axis: phase-encode axis of [y, x].
        count: lines of the grid.
        initial: lines that are measured to begin with.
        budget: lines in all.
        design: of the others.
        exchange: folder of the instrument; None where the file plays it.
        timeout: seconds to wait for it.
    """

    axis: int
    count: int
    initial: tuple[int, ...]
    budget: int
    design: Design
    exchange: Path | None
    timeout: float

    @classmethod
    def of(
        cls, scan: Scan, mask: Bool[Tensor, "y x"], operator: Mapping[str, Any], seed: int, espirit: bool
    ) -> Lines:
        """From an operator's settings.

        Raises:
            InputError: for a budget or a start that cannot be measured.
        """
        settings = dict(operator.get("design") or {})
        axis, budget = int(operator["axis"]) % 2, int(operator["budget"])
        count = mask.shape[axis]
        exchange = settings.get("exchange")
        if exchange is not None:
            filled = mask.all(dim=1 - axis)
            if not bool((mask.any(dim=1 - axis) == filled).all()) or not bool(filled.any()):
                raise InputError(
                    "the scan to begin with must hold whole phase-encode lines; check operator.axis"
                )
            initial = [int(line) for line in filled.nonzero()[:, 0]]
        else:
            given = settings.get("initial")
            coils = scan.kspace.shape[1]
            least = min(MAP_LINES, budget) if espirit and coils > 1 else max(4, round(0.04 * count))
            size = min(least, budget) if given is None else int(given)
            initial = centre_block(count, size)
        check_budget(budget, initial, count)
        return cls(
            axis,
            count,
            tuple(initial),
            budget,
            make_design(settings, seed),
            None if exchange is None else Path(str(exchange)),
            float(settings.get("timeout") or 600.0),
        )

    def pending(
        self,
        index: int,
        kspace: Complex[Tensor, "coil y x"],
        problem: Callable[[int, Tensor, Tensor], Problem],
    ) -> Problem:
        """The problem of the start, with what is still to be measured."""
        shape = (kspace.shape[1], kspace.shape[2])
        start = line_mask(shape, self.initial, self.axis)
        first = problem(index, kspace * start, start)
        prepared: Prepared = first.context[0].prepared
        assert isinstance(prepared.measurement, Measurement)
        operator = prepared.measurement.operator
        assert isinstance(operator, CartesianSense)
        scanner = Scanner(self, kspace if self.exchange is None else kspace * start, prepared)

        def finish(acquisition: Acquisition) -> Problem:
            scanner.close()
            mask = line_mask(shape, acquisition.order, self.axis)
            return problem(index, scanner.kspace * mask, mask)

        pending = Pending(
            CandidateLines(operator.coil_maps, self.axis),
            prepared.measurement.noise.sigma,  # type: ignore[attr-defined]
            scanner,
            self.initial,
            self.budget,
            self.design,
            finish,
        )
        return replace(first, pending=pending)


class Scanner:
    """Answers with whitened lines in prior units; the k-space so far is in `kspace`, in the scan's units."""

    def __init__(self, lines: Lines, kspace: Complex[Tensor, "coil y x"], prepared: Prepared) -> None:
        self.lines, self.kspace, self.prepared = lines, kspace.clone(), prepared
        self.whiten = torch.linalg.inv(prepared.unmix)
        coils, height, width = kspace.shape
        readout = height if lines.axis == 1 else width
        self.instrument = (
            None
            if lines.exchange is None
            else FileExchange(
                lines.exchange,
                f"phase-encode lines of {lines.count}, along axis {lines.axis} of [y, x], from 0",
                (coils, readout),
                "complex64",
                lines.timeout,
            )
        )

    def __call__(self, chosen: Sequence[int]) -> Float[Tensor, "2 coil y x"]:
        wanted = [line for line in chosen if line not in set(self.lines.initial)]
        if self.instrument is not None and wanted:
            fresh = torch.from_numpy(self.instrument.ask(wanted))
            if self.lines.axis == 1:
                self.kspace[:, :, wanted] = fresh.permute(1, 2, 0)
            else:
                self.kspace[:, wanted, :] = fresh.permute(1, 0, 2)
        white = torch.einsum("ij,jyx->iyx", self.whiten, self.kspace) / self.prepared.scale
        return to_real(white[None])[0]

    def close(self) -> None:
        """Tell the instrument that all is measured."""
        if self.instrument is not None:
            self.instrument.close()
