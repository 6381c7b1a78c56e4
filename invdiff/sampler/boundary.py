"""Reusable boundary conditions of the diffusion ODE (arXiv 2305.15357): one start for every image.

The end h(x_T, y) of a deterministic sampler is a function of its start. The paper's claim is that a good x_T
is good for other data too: explored once on a reference set, it can be used for every image,

    x* = argmax_k  mean_i M( h(x_T^k, y_i), x_i ),        x_T^k = m + c_k sqrt(sigma^2 + v) z_k.

What theory says. For a Gaussian prior h = m(y) + C (x_T - m(y)) with C independent of y, so sharing is exact;
under squared error no start beats x_T = m(y), the posterior mean (expected error tr P, against 2 tr P of a
random start), and a search can only shrink what the start adds. A searched start is an optimiser's result:
one image, no posterior, and it must be compared with the trivial starts (`zero`, c = 0) on images that the
search has not seen.

z_k is a field of standard normal numbers on an unbounded grid, keyed by (seed, k, block of pixels): a
candidate is one integer, is defined for every image size, and crops agree.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from invdiff.errors import InputError
from invdiff.prior.prior import Prior, PriorCard
from invdiff.sampler.guidance.guidance import Claim
from invdiff.sampler.keys import ParticleNoise, stream

BLOCK = 32  # pixels along a side of a block of the field
FORMAT = 1


def field_of(seed: int, key: int, shape: tuple[int, ...]) -> Float[Tensor, "*event"]:
    """z_k on the first pixels of its grid; axes before the last two are channels."""
    channels = math.prod(shape[:-2])
    height, width = shape[-2:]
    rows = []
    for top in range(0, height, BLOCK):
        row = [
            torch.randn(
                (channels, BLOCK, BLOCK), generator=stream(seed, key, 1 + top // BLOCK, 1 + left // BLOCK)
            )
            for left in range(0, width, BLOCK)
        ]
        rows.append(torch.cat(row, dim=2))
    return torch.cat(rows, dim=1)[:, :height, :width].reshape(shape)


@dataclass(frozen=True)
class FixedStart:
    """`m + c sqrt(sigma^2 + v) z_k`, the same for every particle; c = 0 is the mean of the prior.

    Attributes:
        seed, key: which field.
        scale: c.
    """

    seed: int = 0
    key: int = 0
    scale: float = 1.0
    claim: ClassVar[Claim] = "point"

    def __call__(
        self, card: PriorCard, shape: tuple[int, ...], sigma: float, noise: ParticleNoise
    ) -> Float[Tensor, "particles *event"]:
        drawn = field_of(self.seed, self.key, shape).to(noise.device, noise.dtype)
        x = card.mean + self.scale * math.sqrt(sigma**2 + card.std**2) * drawn
        return x.expand(len(noise.particles), *shape).clone()


@dataclass(frozen=True)
class Boundary:
    """A start that was found, with where it comes from.

    Attributes:
        start: the start.
        prior: name and digest of the prior.
        sampler: settings of the deterministic sampler it was found with.
        operator: settings of the forward model it was found with.
        criterion: what was maximised.
        shape: event shape of the first reference.
        references: digests of the reference data.
        scores: mean criterion of the winner and of the trivial starts, and what else was measured.
    """

    start: FixedStart
    prior: dict[str, str]
    sampler: dict[str, Any]
    operator: dict[str, Any]
    criterion: str
    shape: tuple[int, ...]
    references: tuple[str, ...] = ()
    scores: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> Path:
        """One safetensors file: the field on the searched shape, and everything else as its header."""
        tensors = {"z": field_of(self.start.seed, self.start.key, self.shape).contiguous()}
        header = {"format": FORMAT, **asdict(self)}
        part = path.with_name("." + path.name)
        save_file(tensors, part, {"invdiff_boundary": json.dumps(header)})
        os.replace(part, path)
        return path

    @classmethod
    def load(cls, path: Path) -> Boundary:
        """Read what `save` wrote.

        Raises:
            InputError: for a missing or damaged file, another kind or version, or a field that this version
                of the generator does not reproduce.
        """
        if not path.is_file():
            raise InputError(f"there is no boundary condition {path}")
        try:
            with safe_open(path, "pt") as file:
                text, z = (file.metadata() or {}).get("invdiff_boundary"), file.get_tensor("z")
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path.name} cannot be read as a boundary condition ({str(error).splitlines()[0]})"
            ) from None
        if text is None:
            raise InputError(f"{path.name} is no boundary condition; make one with `invdiff boundary find`")
        header = json.loads(text)
        if header.pop("format", None) != FORMAT:
            raise InputError(f"{path.name} is of another format version; find the boundary condition again")
        start = FixedStart(**header.pop("start"))
        header["shape"] = tuple(header["shape"])
        header["references"] = tuple(header["references"])
        if not torch.equal(field_of(start.seed, start.key, header["shape"]), z):
            raise InputError(
                f"{path.name} was made by a random generator that this torch does not have; find it again"
            )
        return cls(start, **header)

    def check(self, digest: str, sampler: dict[str, Any], operator: dict[str, Any]) -> list[str]:
        """Refuse another prior or another sampler; say where the forward model differs.

        Raises:
            InputError: where the start would not be the one that was found.
        """
        if digest != self.prior["digest"]:
            raise InputError(
                f"the boundary condition was found for prior {self.prior['name']!r} with other weights; find "
                "one for this prior"
            )
        set_by_the_start = {"eta", "end"}
        for key in sorted((set(sampler) | set(self.sampler)) - set_by_the_start):
            found, here = self.sampler.get(key), sampler.get(key)
            if found != here:
                raise InputError(
                    f"the boundary condition was found with sampler.{key}={found} and the run has {here}; "
                    f"set sampler.{key}={found} or find another"
                )
        differing = [key for key in sorted(operator) if operator[key] != self.operator.get(key)]
        if not differing:
            return []
        found = ", ".join(f"{key}={self.operator.get(key)}" for key in differing)
        return [f"The boundary condition was found for another forward model ({found})."]


def prior_digest(prior: Prior) -> str:
    """What identifies a prior: its weights, or for a law in closed form its denoiser at a fixed point."""
    import hashlib

    network = getattr(prior, "network", None)
    digest = hashlib.sha256(prior.card.name.encode())
    if isinstance(network, torch.nn.Module):
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:32]


Evaluate = Callable[[FixedStart, int], float]
"""Score of a start on reference i; larger is better."""


@dataclass(frozen=True)
class Found:
    """What a search saw.

    Attributes:
        best: the winner.
        scores: of every candidate on every reference that it was tried on, NaN elsewhere.
        lead: by how many standard errors the winner leads the median survivor of the last round.
        transfer: Spearman correlation, over all candidates, of the mean scores on the two halves of the
            references of the first round. Near zero: what is good for one image says nothing of another.
    """

    best: FixedStart
    scores: Float[np.ndarray, "candidates references"]
    lead: float
    transfer: float


def search(
    candidates: Sequence[FixedStart],
    references: int,
    evaluate: Evaluate,
    first: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Successive halving: all candidates on `first` references, the better half on twice as many, and on.

    Raises:
        InputError: for fewer than two candidates or references.
    """
    if len(candidates) < 2 or references < 2:
        raise InputError(
            f"a search over starts needs two candidates and two references; found {len(candidates)} and "
            f"{references}"
        )
    seen = np.full((len(candidates), references), np.nan)
    alive, upto = np.arange(len(candidates)), min(first, references)
    total, left, size = 0, len(candidates), upto
    while True:
        total += left * size
        if size == references:
            break
        left, size = max(2, math.ceil(left / 2)), min(2 * size, references)
    done = 0
    while True:
        for number in alive:
            for reference in range(upto):
                if np.isnan(seen[number, reference]):
                    seen[number, reference] = evaluate(candidates[int(number)], reference)
                    done += 1
                    if progress is not None:
                        progress(min(done, total), total)
        mean = seen[alive, :upto].mean(axis=1)
        order = np.argsort(-mean, kind="stable")
        if upto == references:
            break
        alive = alive[order[: max(2, math.ceil(len(alive) / 2))]]
        upto = min(2 * upto, references)
    best, middle = alive[order[0]], alive[order[len(order) // 2]]
    gap = seen[best] - seen[middle]
    error = float(gap.std(ddof=1)) / math.sqrt(references)
    half = min(first, references) // 2
    transfer = rank_correlation(seen[:, :half].mean(axis=1), seen[:, half : 2 * half].mean(axis=1))
    return Found(candidates[int(best)], seen, float(gap.mean()) / error if error > 0 else 0.0, transfer)


def rank_correlation(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]) -> float:
    """Spearman's."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


@dataclass(frozen=True)
class Difference:
    """A paired difference over test images.

    Attributes:
        mean: of (ours - control).
        low, high: 95 % interval, 10 000 bootstrap resamples of the images.
        p: two-sided, by 10 000 random sign flips.
    """

    mean: float
    low: float
    high: float
    p: float


def paired(
    ours: Float[np.ndarray, "images"], control: Float[np.ndarray, "images"], seed: int = 0
) -> Difference:
    """Mean difference over images with its bootstrap interval and sign-flip p."""
    gaps = np.asarray(ours, dtype=np.float64) - control
    random = np.random.default_rng(seed)
    means = gaps[random.integers(len(gaps), size=(10_000, len(gaps)))].mean(axis=1)
    flips = (random.integers(0, 2, size=(10_000, len(gaps))) * 2 - 1) * gaps
    extreme = np.abs(flips.mean(axis=1)) >= abs(gaps.mean()) - 1e-15
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(gaps.mean()), float(low), float(high), float((1 + extreme.sum()) / 10_001))
