"""`grf2`: two Gaussian fields that differ by a feature which the data hardly see.

    prior      w_0 N(m_0, C) + w_1 N(m_1, C), C circulant with spectrum S,  m_0 = -m_1
    feature    Delta = T (m_1 - m_0), T the modes that the measurement is diagonal in
    data       as in `grf`: y = M T x + sigma_y e

    log r_1 / r_0 = log w_1 / w_0 + sum_k [ |x_k - m_0k|^2 - |x_k - m_1k|^2 ] / (2 (S + sigma^2))
    D(x; sigma)   = sum_j r_j D_j,   D_j = m_j + C (C + sigma^2)^-1 (x - m_j)

and p(1 | y) is the same sum over the measured modes, with y for x and sigma_y for sigma. The evidence that
the scan has is E = sum_M |Delta|^2 / (S + sigma_y^2): the log-odds are N(+-E/2, E). The feature is a small
Gaussian lesion whose measured part is scaled to E = 2 (undecided data) and whose other part to
sum |Delta|^2 / S = 40 (distinct modes): right is only a sampler that spreads its draws over both modes by
their probability. Judged by the mean over draws of r_1(x), which is p(1 | y) in expectation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invdiff.benchmark.fields import Coordinates, DiagonalInModes, power_spectrum
from invdiff.benchmark.grf import Posterior, band_distance, bands, conditioned, field_operator
from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.prior.gaussian import GaussianPrior, hartley
from invdiff.prior.prior import PriorCard, Sigma, sigma_like

EVIDENCE, DISTANCE = 2.0, 40.0


class TwoFields:
    """Two periodic Gaussian fields with one spectrum, a mixture.

    Args:
        weights: of the two.
        means: m_0 and m_1.
        spectrum: variance of each orthonormal DFT mode, even.
    """

    def __init__(
        self,
        weights: Float[Tensor, "2"],
        means: Float[Tensor, "2 channels y x"],
        spectrum: Float[Tensor, "y x"],
    ) -> None:
        self.weights = weights / weights.sum()
        self.means, self.spectrum = means, spectrum
        self.fields = [GaussianPrior.circulant(mean, spectrum) for mean in means]
        center = torch.einsum("j,jcyx->cyx", self.weights, means)
        between = torch.einsum("j,jcyx->cyx", self.weights, (means - center) ** 2)
        self._card = PriorCard(
            name="two_fields",
            shape=tuple(means.shape[2:]),
            std=float((spectrum.mean() + between.mean()).sqrt()),
            mean=float(center.mean()),
            sigma_range=(1e-6, 1e6),
            exact=True,
        )

    @property
    def card(self) -> PriorCard:
        return self._card

    def _log_odds(self, modes: Float[Tensor, "batch *event"], variance: Tensor) -> Float[Tensor, "batch"]:
        """log r_1 / r_0 of the Hartley modes of x, S + sigma^2 = `variance`."""
        low, high = hartley(self.means.to(modes))
        terms = (high - low) * (modes - 0.5 * (low + high)) / variance
        prior = torch.log(self.weights[1] / self.weights[0]).to(modes)
        odds: Tensor = prior + terms.flatten(1).sum(dim=1)
        return odds

    def feature_probability(
        self, x: Float[Tensor, "batch *event"], sigma: Sigma = 0.0
    ) -> Float[Tensor, "batch"]:
        """r_1(x) = p(1 | x_sigma = x)."""
        variance = self.spectrum.to(x) + sigma_like(sigma, x) ** 2
        return torch.sigmoid(self._log_odds(hartley(x), variance))

    def denoise(self, x: Float[Tensor, "batch *event"], sigma: Sigma) -> Float[Tensor, "batch *event"]:
        modes, spectrum = hartley(x), self.spectrum.to(x)
        variance = spectrum + sigma_like(sigma, x) ** 2
        share = torch.sigmoid(self._log_odds(modes, variance)).reshape(-1, *[1] * (x.ndim - 1))
        low, high = hartley(self.means.to(x))
        mean = low + share * (high - low)
        return hartley(mean + spectrum / variance * (modes - mean))

    def log_density(self, x: Float[Tensor, "batch *event"], sigma: Sigma = 0.0) -> Float[Tensor, "batch"]:
        """`log p_sigma(x)`, in float64."""
        parts = [field.log_density(x, sigma) for field in self.fields]
        weights = self.weights.to(parts[0])
        return torch.logsumexp(torch.stack(parts, dim=1) + weights.log(), dim=1)

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count *event"]:
        """Exact draws."""
        pick = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return self.means[pick] - self.means[0] + self.fields[0].sample(count, generator)


@dataclass(frozen=True)
class Grf2:
    """A problem with its posterior.

    Attributes:
        coordinates: in which each field is independent given y.
        laws: the posterior of the coordinates without and with the feature.
        probability: p(1 | y), of the feature.
    """

    prior: TwoFields
    measurement: Measurement
    operator: DiagonalInModes
    coordinates: Coordinates
    laws: tuple[Posterior, Posterior]
    probability: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.laws[0].mean.shape)

    @property
    def log_evidence(self) -> float:
        """log p(y)."""
        logs = torch.tensor([law.log_evidence for law in self.laws], dtype=torch.float64)
        return float(torch.logsumexp(logs + self.prior.weights.log(), dim=0))

    @property
    def chi2(self) -> float:
        """Posterior expectation of |y - A x|^2 / sigma_y^2 per measured component."""
        return (1 - self.probability) * self.laws[0].chi2 + self.probability * self.laws[1].chi2

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count channels y x"]:
        """Exact draws."""
        uniform = torch.rand(count, generator=generator, dtype=torch.float64)
        white = torch.randn((count, *self.shape), generator=generator, dtype=torch.float64)
        mean = self.means(uniform < self.probability)
        return self.coordinates.back(mean + self.laws[0].variance.sqrt() * white)

    def means(self, feature: Bool[Tensor, "count"]) -> Float[Tensor, "count channels y x"]:
        """Posterior means of the coordinates without and with the feature."""
        return torch.stack([law.mean for law in self.laws])[feature.long()]

    def feature(self, x: Float[Tensor, "count channels y x"]) -> float:
        """Mean of r_1 over the draws; p(1 | y) in expectation for exact ones."""
        return float(self.prior.feature_probability(x.double()).mean())

    def distance(self, x: Float[Tensor, "count channels y x"], other: Tensor | None = None) -> float:
        """`band_distance` of the draws from the field that each most probably belongs to."""
        wide = x.double()
        feature = self.prior.feature_probability(wide) > 0.5
        z = (self.coordinates.to(wide) - self.means(feature)) / self.laws[0].variance.sqrt()
        return band_distance(z, bands(self.coordinates.gain != 0))


def grf2(kind: str = "mri", side: int = 32, sigma: float = 0.1, seed: int = 0, factor: int = 4) -> Grf2:
    """The problem of `seed`, with equal prior weights.

    Args:
        kind: `mri` or `ct`, see `grf`.
        side: pixels of a side.
        sigma: noise level per real component.
        seed: of mask, truth and noise.
        factor: acceleration.

    Raises:
        InputError: for another kind.
    """
    operator = field_operator(kind, side, factor, seed) if kind in ("mri", "ct") else None
    if not isinstance(operator, DiagonalInModes):
        raise InputError(f"grf2 knows mri and ct; found {kind!r}")
    spectrum = power_spectrum(side)
    half = 0.5 * operator.image(lesion(operator, spectrum, sigma)[None])[0]
    weights = torch.full((2,), 0.5, dtype=torch.float64)
    prior = TwoFields(weights, torch.stack([-half, half]), spectrum)
    g = torch.Generator().manual_seed(seed)
    clean = operator.forward(prior.sample(1, g))
    noise = torch.randn(clean.shape, generator=g, dtype=torch.float64)
    y = (clean + sigma * noise * (operator.gain > 0))[0]
    coordinates = operator.coordinates(spectrum)
    low, high = (conditioned(coordinates, y, sigma, mean) for mean in operator.modes(prior.means))
    odds = high.log_evidence - low.log_evidence
    return Grf2(
        prior,
        Measurement(operator, GaussianNoise(sigma), y),
        operator,
        coordinates,
        (low, high),
        1 / (1 + math.exp(-odds)),
    )


def lesion(
    operator: DiagonalInModes, spectrum: Float[Tensor, "y x"], sigma: float, width: float = 1.5
) -> Float[Tensor, "channels y x"]:
    """Delta: a Gaussian of std `width` pixels, its measured and its other part scaled as said above."""
    side = len(spectrum)
    pixel = torch.arange(side, dtype=torch.float64) - side // 2
    profile = torch.exp(-0.5 * (pixel / width) ** 2)
    image = torch.zeros((operator.channels, side, side), dtype=torch.float64)
    image[0] = profile[:, None] * profile
    modes = operator.modes(image[None])[0]
    seen = operator.gain > 0
    evidence = (modes.square() / (spectrum + sigma**2))[:, seen].sum()
    hidden = (modes.square() / spectrum)[:, ~seen].sum()
    return torch.where(seen, (EVIDENCE / evidence).sqrt(), (DISTANCE / hidden).sqrt()) * modes
