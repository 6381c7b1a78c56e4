"""The mode of a posterior under a Gaussian prior, and the Gaussian of its curvature there (Laplace).

    x = m + U sqrt(V) z,   z ~ N(0, I)            the prior's whitened coordinates
    z* = argmin  Phi(z) + |z|^2 / 2,   Phi = -log p(y | x(z))
    q = N(z*, (I + H)^-1),   H = Phi''(z*)

The mode is found by L-BFGS; a list of measurements from coarse to fine, each starting where the one before
ended, helps where Phi has many basins. Where the data see some coordinates far better than others it runs in

    y = (1 + c s)^(1/2) z,   c = max(0, <r, H r>) / sum s,   r: random signs

with s the caller's guess of the shape of diag H; c is one product at the start of every measurement.

H is known by its largest eigenvalues only, found by block power iteration with products H v from double
backward; what is left of it is taken as 0, where q is the prior. Negative eigenvalues (away from a mode) are
taken as 0 too.

Where the data see too many directions for that, q is drawn from without its eigenvalues, with H = J^T J of
Gauss and Newton, J the derivative of the forward model at z* over sigma:

    (I + J^T J) delta = e + J^T n,   e, n ~ N(0, I),   z = z* + delta

by conjugate gradients in the coordinates y from delta = e, so that where the data say nothing a draw of the
prior is kept as it is. Source: Papandreou & Yuille, NIPS 2010; Bardsley et al., SISC 36, 2014 (of nonlinear
models, where the equation is solved anew for every draw and not at the mode).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.linear import conjugate_gradients
from invdiff.measurement.measurement import Measurement
from invdiff.prior.gaussian import GaussianPrior
from invdiff.prior.prior import Prior

Potential = Callable[[Tensor], Tensor]
CHUNK = 32  # rows that are differentiated together
TOLERANCE = 1e-6  # of conjugate gradients, on the residual


def gaussian_of(prior: Prior, what: str) -> GaussianPrior:
    """The Gaussian prior inside, counted or not.

    Raises:
        InputError: for any other prior.
    """
    inner = getattr(prior, "inner", prior)
    if not isinstance(inner, GaussianPrior):
        raise InputError(
            f"sampler {what!r} needs a Gaussian prior in closed form and {prior.card.name!r} is none; use "
            "sampler=daps, dps or a particle method"
        )
    return inner


def unwhiten(prior: GaussianPrior, z: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
    """x of whitened coordinates z."""
    return prior.mean.to(z) + prior.back(prior.variance.to(z).sqrt() * z)


@torch.enable_grad()
def posterior_mode(
    prior: GaussianPrior,
    measurements: Sequence[Measurement],
    shape: tuple[int, ...],
    *,
    start: Float[Tensor, "*event"] | None = None,
    iterations: int = 40,
    seen: Float[Tensor, "*event"] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "*event"]:
    """z*, in whitened coordinates, through the measurements in turn (the last is the one that counts).

    Args:
        start: where to begin; the prior's mean by default.
        iterations: of L-BFGS with a strong Wolfe search, for each measurement.
        seen: s, up to a factor how well the data see each coordinate: for data on the voxels of a field, the
            prior's variance of its modes. None: all alike.

    Raises:
        FloatingPointError: where the log-likelihood is not finite on the way.
    """
    z = (torch.zeros(shape) if start is None else start.detach().clone()).to(device=device, dtype=dtype)
    for measurement in measurements:

        def potential(z: Tensor, measurement: Measurement = measurement) -> Tensor:
            return -measurement.log_likelihood(unwhiten(prior, z))

        scale = torch.ones_like(z)
        if seen is not None:
            signs = signs_like(z)
            scale = scales(float((signs * hessian_rows(potential, z, signs[None])[0]).sum()), seen.to(z))
        y = (z / scale).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [y], lr=1.0, max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure(potential: Potential = potential, y: Tensor = y, scale: Tensor = scale) -> Tensor:
            optimizer.zero_grad()  # noqa: B023  the optimiser of this turn: step calls it at once
            z = scale * y
            value = potential(z[None])[0] + 0.5 * z.double().square().sum()
            if not bool(torch.isfinite(value)):
                raise FloatingPointError("the log-likelihood is not finite on the way to the mode")
            torch.autograd.backward(value)
            return value.detach()

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        z = (scale * y).detach()
    return z


def signs_like(z: Float[Tensor, "*event"]) -> Float[Tensor, "*event"]:
    """Random signs, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, z.shape, generator=generator).to(z) * 2 - 1


def scales(curvature: float, seen: Float[Tensor, "*event"]) -> Float[Tensor, "*event"]:
    """(1 + c s)^(-1/2), see above, of `curvature` = <r, H r>."""
    return (1 + max(curvature, 0.0) / float(seen.sum()) * seen).rsqrt()


def hessian_rows(
    potential: Potential, z: Float[Tensor, "*event"], rows: Float[Tensor, "n *event"]
) -> Float[Tensor, "n *event"]:
    """H times each of some vectors, by double backward."""
    with torch.enable_grad():
        leaf = z.detach().expand(len(rows), *z.shape).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(potential(leaf).sum(), leaf, create_graph=True)
        (product,) = torch.autograd.grad(gradient, leaf, rows)
    return product


@dataclass(frozen=True)
class Laplace:
    """q = N(centre, Sigma), Sigma^(1/2) = I + U diag((1 + e)^(-1/2) - 1) U^T.

    Attributes:
        centre: z*.
        vectors: U, orthonormal columns, of flattened events.
        values: e, the eigenvalues of H along them.
    """

    centre: Float[Tensor, "*event"]
    vectors: Float[Tensor, "dim rank"]
    values: Float[Tensor, "rank"]

    @property
    def log_determinant(self) -> float:
        """log |Sigma^(1/2)|."""
        return -0.5 * float(torch.log1p(self.values.double()).sum())

    def __call__(self, w: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """z of standard normal coordinates w."""
        flat = w.flatten(1)
        shrink = (1 + self.values).rsqrt() - 1
        moved = flat + ((flat @ self.vectors) * shrink) @ self.vectors.mT
        return self.centre + moved.reshape(w.shape)


def standard(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Laplace:
    """The prior itself: z = w."""
    size = int(torch.Size(shape).numel())
    zero = torch.zeros((), dtype=dtype, device=device)
    return Laplace(zero.expand(shape), zero.expand(size, 1)[:, :0], zero.expand(1)[:0])


def curvature_at(
    potential: Potential,
    z: Float[Tensor, "*event"],
    rank: int,
    generator: torch.Generator,
    rounds: int = 3,
    chunk: int = CHUNK,
) -> Laplace:
    """The Laplace approximation at z: the `rank` largest eigenvalues of the Hessian of `potential`.

    Args:
        potential: Phi of a batch of z.
        rank: eigenvalues kept; the whole Hessian, exactly, where it is at least the dimension.
        generator: of the first block.
        rounds: of block power iteration, with `rank` / 4 more columns than are kept.
        chunk: rows that are differentiated together.
    """
    size = z.numel()

    def product(block: Tensor) -> Tensor:
        parts = torch.split(block.mT, chunk)
        rows = [hessian_rows(potential, z, part.reshape(-1, *z.shape)).flatten(1) for part in parts]
        return torch.cat(rows).mT

    columns = min(size, rank + max(8, rank // 4))
    if columns == size:
        block = torch.eye(size, dtype=z.dtype, device=z.device)
    else:
        block = torch.randn((size, columns), generator=generator, dtype=z.dtype).to(z.device)
        for _ in range(rounds):
            block = torch.linalg.qr(product(block)).Q
    small = block.mT @ product(block)
    values, vectors = torch.linalg.eigh(0.5 * (small + small.mT))
    keep = values.argsort(descending=True)[:rank] if columns < size else values.argsort(descending=True)
    keep = keep[values[keep] > 0]
    return Laplace(z, block @ vectors[:, keep], values[keep])


@dataclass(frozen=True)
class GaussNewton:
    """q = N(centre, (I + J^T J)^-1), drawn by conjugate gradients.

    Attributes:
        centre: z*.
        push, pull: products with J and J^T, of one event and of one list of data over sigma.
        data: shape of those.
        scale: of the coordinates y.
        products: iterations of a draw at most, one product with J and one with J^T each.
    """

    centre: Float[Tensor, "*event"]
    push: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor], Tensor]
    data: tuple[int, ...]
    scale: Float[Tensor, "*event"]
    products: int

    def draws(self, count: int, generator: torch.Generator) -> Float[Tensor, "count *event"]:
        """z of the law q, one after the other."""
        return torch.stack([self._draw(generator) for _ in range(count)])

    def _draw(self, generator: torch.Generator) -> Float[Tensor, "*event"]:
        z, scale = self.centre, self.scale
        prior = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z)
        noise = torch.randn(self.data, generator=generator, dtype=z.dtype).to(z)

        def matvec(y: Float[Tensor, "one *event"]) -> Float[Tensor, "one *event"]:
            event = scale * y[0]
            return (scale * (event + self.pull(self.push(event))))[None]

        found = conjugate_gradients(
            matvec,
            (scale * (prior + self.pull(noise)))[None],
            start=(prior / scale)[None],
            iterations=self.products,
            tolerance=TOLERANCE,
        )
        return z + scale * found.x[0]


def gauss_newton(
    prior: GaussianPrior,
    measurement: Measurement,
    z: Float[Tensor, "*event"],
    what: str,
    products: int,
    seen: Float[Tensor, "*event"] | None = None,
) -> GaussNewton:
    """The Laplace approximation at z with the curvature of Gauss and Newton, see above.

    Args:
        measurement: of Gaussian noise.
        what: the sampler that asks, for a refusal.
        products: at most, of a draw.
        seen: see `posterior_mode`.

    Raises:
        InputError: for noise that is not Gaussian.
    """
    sigma = measurement.gaussian(what).sigma
    with torch.enable_grad():
        leaf = z.detach().clone().requires_grad_()
        clean = measurement.operator(unwhiten(prior, leaf[None]))[0] / sigma
        clean = torch.view_as_real(clean) if clean.is_complex() else clean
        probe = torch.zeros_like(clean, requires_grad=True)
        (pulled,) = torch.autograd.grad(clean, leaf, probe, create_graph=True)  # linear in the probe

    def pull(data: Tensor) -> Tensor:
        return torch.autograd.grad(clean, leaf, data, retain_graph=True)[0]

    def push(event: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, probe, event, retain_graph=True)[0]

    scale = torch.ones_like(z)
    if seen is not None:
        scale = scales(float(push(signs_like(z)).square().sum()), seen.to(z))
    return GaussNewton(z.detach(), push, pull, tuple(clean.shape), scale, products)
