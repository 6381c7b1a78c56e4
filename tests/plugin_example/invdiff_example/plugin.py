"""An operator that averages neighbouring rows, and a white Gaussian prior."""

from invdiff import InputError, LinearOperator, PriorCard


class RowAverage(LinearOperator):
    """y(i) = mean of rows i f ... i f + f - 1."""

    def __init__(self, factor):
        self.factor = factor

    def forward(self, x):
        return x.unflatten(-2, (-1, self.factor)).mean(dim=-2)

    def adjoint(self, y):
        return y.repeat_interleave(self.factor, dim=-2) / self.factor


def row_average(settings, shape):
    if shape is not None and shape[-2] % settings["factor"]:
        raise InputError(f"row_average needs a multiple of {settings['factor']} rows; found {shape[-2]}")
    return RowAverage(settings["factor"])


class White:
    """x ~ N(0, std^2)."""

    def __init__(self, std):
        self.card = PriorCard("white", std=std, exact=True)

    def denoise(self, x, sigma):
        return x * self.card.std**2 / (self.card.std**2 + sigma**2)


def white(settings):
    return White(settings["std"])
