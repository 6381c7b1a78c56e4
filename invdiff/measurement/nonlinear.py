"""Nonlinear forward models: magnitudes, Fourier magnitudes, saturation.

    Magnitude         A(x) = |x_re + i x_im|
    PhaseRetrieval    A(x) = |F x|, F the orthonormal DFT of x on a zero-padded grid
    Saturation        A(x) = x / (1 + |x / level|^p)^(1/p)

All are differentiable almost everywhere, with gradient 0 where a magnitude is 0. Unlike a linear model
they leave ambiguities that no data resolve: a magnitude the phase; a Fourier magnitude the sign, and
with it every shift and reflection that the support allows (Bendory et al., arXiv 1705.09590).

Sources: Fienup, Applied Optics 21(15), 1982 (oversampled phase retrieval); Rapp, ESA SP-332, 1991
(the saturation curve of amplifiers).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.operator import Operator


def require_complex(x: Float[Tensor, "batch two *event"], operator: str) -> None:
    """Refuse events that are not complex images as [2, ...]."""
    if x.ndim < 2 or x.shape[1] != 2:
        raise InputError(
            f"{operator} takes complex events of shape [2, ...], real and imaginary part first; "
            f"found {list(x.shape[1:])}"
        )


class Magnitude(Operator):
    """`|x|` of complex events [2, ...]; the data lose the first axis."""

    def forward(self, x: Float[Tensor, "batch two *event"]) -> Float[Tensor, "batch *event"]:
        require_complex(x, "Magnitude")
        size: Tensor = torch.linalg.vector_norm(x, dim=1)
        return size


class PhaseRetrieval(Operator):
    """`|F x|` of images, real [..., y, x] or complex [2, ..., y, x].

    Args:
        oversampling: side of the padded grid over that of the image, at least 1; from 2 on the
            magnitudes hold the whole autocorrelation.
        mask: measured frequencies of the padded grid, in FFT order; all by default. The data are
            then a list [..., measured], so that nothing unmeasured is among them.
        complex_images: whether the first axis of an event is real and imaginary part.
    """

    def __init__(
        self,
        oversampling: float = 1.0,
        mask: Bool[Tensor, "grid_y grid_x"] | None = None,
        complex_images: bool = False,
    ) -> None:
        if not (oversampling >= 1 and math.isfinite(oversampling)):
            raise InputError(
                f"the oversampling is {oversampling}; a padded grid needs a number of at least 1"
            )
        if mask is not None and not bool(mask.any()):
            raise InputError("the mask measures no frequency at all; set at least one entry to true")
        self.oversampling, self.mask, self.complex_images = oversampling, mask, complex_images

    def grid(self, side: int) -> int:
        """Padded side of an image side."""
        return math.ceil(self.oversampling * side)

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        if self.complex_images:
            require_complex(x, "PhaseRetrieval with complex_images")
            image = torch.complex(x[:, 0], x[:, 1])
        else:
            image = x
        if image.ndim < 3:
            raise InputError(f"PhaseRetrieval takes images [..., y, x]; found events {list(x.shape[1:])}")
        padded = (self.grid(image.shape[-2]), self.grid(image.shape[-1]))
        spectrum: Tensor = torch.fft.fft2(image, s=padded, norm="ortho").abs()
        if self.mask is None:
            return spectrum
        if tuple(self.mask.shape) != padded:
            raise InputError(
                f"the mask has shape {list(self.mask.shape)} and the padded grid {list(padded)}; "
                "make the mask on the padded grid"
            )
        return spectrum[..., self.mask.to(x.device)]


class Saturation(Operator):
    """`x / (1 + |x / level|^p)^(1/p)`: the identity for small x, +-level for large.

    Args:
        level: largest value that the instrument shows.
        sharpness: p; 2 is gentle, 10 is almost a clip.
    """

    def __init__(self, level: float, sharpness: float = 4.0) -> None:
        if not (level > 0 and math.isfinite(level)):
            raise InputError(f"the saturation level is {level}; give a finite number above zero")
        if not (sharpness >= 1 and math.isfinite(sharpness)):
            raise InputError(f"the sharpness is {sharpness}; give a finite number of at least 1")
        self.level, self.sharpness = level, sharpness

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        relative = x / self.level
        # The same fraction with numerator and denominator over max(1, |relative|): no overflow.
        scale = relative.detach().abs().clamp_min(1)
        power = self.sharpness
        root = scale**-power + (relative.abs() / scale) ** power
        return self.level * (relative / scale) * root ** (-1 / power)
