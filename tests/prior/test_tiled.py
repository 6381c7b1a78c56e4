"""Tiles against the whole: equality where the network sees less than the overlap, no seams otherwise."""

import pytest
import torch
import torch.nn.functional as F

from invdiff import InputError
from invdiff.prior.prior import PriorCard
from invdiff.prior.tiled import TiledPrior


class Smoother:
    """A denoiser that sees `reach` pixels around, zero beyond the border as convolutions do."""

    def __init__(self, reach: int) -> None:
        self.reach, self.card = reach, PriorCard("smoother", std=1.0)
        self.largest = 0

    def denoise(self, x, sigma):
        self.largest = max(self.largest, x.shape[-2] * x.shape[-1])
        side = 2 * self.reach + 1
        kernel = torch.ones(x.shape[1], 1, side, side, dtype=x.dtype) / side**2
        return torch.tanh(F.conv2d(x, kernel, padding=self.reach, groups=x.shape[1]))


@pytest.mark.parametrize("shape", [(2, 97, 130), (1, 64, 200), (3, 65, 64), (1, 40, 30)])
def test_tiles_are_the_whole_where_the_overlap_holds_the_view(shape):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape, generator=g, dtype=torch.float64)
    whole = Smoother(4)
    tiled = TiledPrior(Smoother(4), tile=64, overlap=32)
    torch.testing.assert_close(tiled.denoise(x, 0.1), whole.denoise(x, 0.1), rtol=0, atol=1e-12)
    assert tiled.prior.largest <= 64 * 64


def test_one_tile_is_the_prior():
    x = torch.randn(1, 1, 48, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(TiledPrior(Smoother(9), 64, 16).denoise(x, 0.1), Smoother(9).denoise(x, 0.1))


def test_weights_sum_to_something_everywhere():
    for tile, overlap, length in ((64, 32, 65), (64, 8, 200), (32, 16, 33), (256, 64, 1000)):
        total = torch.zeros(length, dtype=torch.float64)
        ends = []
        for window, weight in TiledPrior(Smoother(1), tile, overlap).windows(length):
            total[window] += weight
            ends.append(window)
        assert float(total.min()) > 0.2
        assert ends[0].start == 0
        assert ends[-1].stop == length


@pytest.mark.parametrize("kind", ["constant", "gradient"])
def test_no_seams(kind):
    """A network that sees more than the overlap: no jump larger than the image's own."""
    axis = torch.linspace(-0.5, 0.5, 160, dtype=torch.float64)
    image = torch.full((160, 160), 0.3, dtype=torch.float64) if kind == "constant" else axis.expand(160, 160)
    out = TiledPrior(Smoother(12), 64, 16).denoise(image[None, None], 0.1)[0, 0]
    whole = Smoother(12).denoise(image[None, None], 0.1)[0, 0]
    inner = slice(30, 130)
    jump = (out - whole)[inner, inner].diff(dim=1).abs().max()
    assert float(jump) < 0.02
    assert float((out - whole)[inner, inner].abs().max()) < 0.1


def test_refusals():
    with pytest.raises(InputError, match="overlap"):
        TiledPrior(Smoother(1), 32, 20)
    fixed = Smoother(1)
    fixed.card = PriorCard("fixed", shape=(28, 28))
    with pytest.raises(InputError, match="do not fit"):
        TiledPrior(fixed, 64, 16)
