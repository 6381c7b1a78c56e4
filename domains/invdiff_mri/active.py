"""Active subsampling of phase-encode lines: candidates, and the scanner that measures them.

A candidate is one line of k-space, all coils. A fully sampled file plays the scanner (retrospective), or
another process does (prospective, see `invdiff.FileExchange`): it is then asked for lines as complex
[line, coil, readout] in the units of the input, which holds what was measured to begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from invdiff import (
    Acquisition,
    GaussianNoise,
    InputError,
    Pending,
    Plan,
    Problem,
    centre_block,
    exchange_folder,
    start_size,
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
    share = float(present.float().mean())
    if exchange_folder(operator) is not None:
        return present, False
    if share <= 0.999:
        raise InputError(
            f"choosing lines needs a full scan and {100 * share:.1f} % of it was measured; give it all, or "
            "operator.design.exchange=FOLDER to ask an instrument"
        )
    return torch.ones_like(present), True


def known_noise(scan: Scan, index: int, settings: PrepareSettings) -> NoiseCovariance | None:
    """The noise of a full scan that plays the scanner, which would have made a noise scan; None if given."""
    if scan.noise is not None or settings.sigma is not None:
        return None
    kspace = scan.kspace[index]
    found = from_periphery(kspace, torch.ones(kspace.shape[1:], dtype=torch.bool))
    return replace(found, source=f"{found.source} of the full scan, for a scanner's noise scan")


def plan_of(
    scan: Scan, mask: Bool[Tensor, "y x"], operator: Mapping[str, Any], seed: int, espirit: bool
) -> Plan:
    """How the lines are chosen; with an instrument, the lines of `mask` are the start, else central ones.

    Raises:
        InputError: for a budget or a start that cannot be measured.
    """
    axis = int(operator["axis"]) % 2
    count = mask.shape[axis]
    if exchange_folder(operator) is None:
        few = espirit and scan.kspace.shape[1] > 1
        initial = centre_block(count, start_size(operator, MAP_LINES if few else max(4, round(0.04 * count))))
        return Plan.of(operator, count, initial, seed)
    filled = mask.all(dim=1 - axis)
    if not bool((mask.any(dim=1 - axis) == filled).all()) or not bool(filled.any()):
        raise InputError("the scan to begin with must hold whole phase-encode lines; check operator.axis")
    return Plan.of(operator, count, [int(line) for line in filled.nonzero()[:, 0]], seed)


def pending(
    plan: Plan,
    axis: int,
    kspace: Complex[Tensor, "coil y x"],
    problem: Callable[[Tensor, Tensor], Problem],
) -> Problem:
    """The problem of the start, with what is still to be measured; `problem` takes k-space and mask."""
    shape = (kspace.shape[1], kspace.shape[2])
    start = line_mask(shape, plan.initial, axis)
    first = problem(kspace * start, start)
    prepared: Prepared = first.context[0].prepared
    operator, noise = prepared.measurement.operator, prepared.measurement.noise
    assert isinstance(operator, CartesianSense) and isinstance(noise, GaussianNoise)
    scanner = Scanner(plan, axis, kspace, prepared)

    def finish(acquisition: Acquisition) -> Problem:
        scanner.close()
        mask = line_mask(shape, acquisition.order, axis)
        return problem(scanner.kspace * mask, mask)

    lines = CandidateLines(operator.coil_maps, axis)
    return replace(first, pending=Pending(lines, noise.sigma, scanner, plan, finish))


class Scanner:
    """Answers with whitened lines in prior units; the k-space so far is in `kspace`, in the scan's units."""

    def __init__(
        self, plan: Plan, axis: int, kspace: Complex[Tensor, "coil y x"], prepared: Prepared
    ) -> None:
        self.axis, self.initial = axis % 2, set(plan.initial)
        self.kspace, self.prepared = kspace.clone(), prepared
        self.whiten = torch.linalg.inv(prepared.unmix)
        what = f"phase-encode lines of {plan.count}, along axis {self.axis} of [y, x], from 0"
        row = (kspace.shape[0], kspace.shape[2 - self.axis])
        self.instrument = plan.instrument(what, row, "complex64")

    def __call__(self, chosen: Sequence[int]) -> Float[Tensor, "2 coil y x"]:
        wanted = [line for line in chosen if line not in self.initial]
        if self.instrument is not None and wanted:
            fresh = torch.from_numpy(self.instrument.ask(wanted))
            self.kspace.movedim(1 + self.axis, 0)[wanted] = fresh
        white = torch.einsum("ij,jyx->iyx", self.whiten, self.kspace) / self.prepared.scale
        return to_real(white[None])[0]

    def close(self) -> None:
        """Tell the instrument that all is measured."""
        if self.instrument is not None:
            self.instrument.close()
