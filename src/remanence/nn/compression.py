"""Learned compression: what squeezes the rows that leave a memory, and what tries to bring them back.

Source: Rae et al. 2020 (arXiv 1911.05507), section 3.2. Shapes: B lanes, E rows, G = E / c groups, c rate, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from remanence.nn.initialization import normal
from remanence.ops.compression import convolution, dilated_convolutions, transposed_convolution


class Convolution(nn.Module):
    """A convolution over time with kernel = stride = c and a bias. It begins as the mean: every tap is I / c."""

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()
        self.taps = nn.Linear(rate * width, width)

    def initialize(self, generator: torch.Generator) -> None:
        """Fill the parameters. Draws nothing."""
        width, columns = self.taps.weight.shape
        if not self.taps.weight.is_meta:
            rate = columns // width
            self.taps.weight.data.copy_(torch.eye(width, dtype=torch.float64).repeat(1, rate) / rate)
            self.taps.bias.data.zero_()

    def forward(self, old: Float[Tensor, "B E D"], real: Bool[Tensor, "B E"]) -> Float[Tensor, "B G D"]:
        return convolution(old, self.taps.weight, self.taps.bias)


class DilatedConvolutions(nn.Module):
    """Three taps one row apart, ReLU, three taps two rows apart with stride c. Begins with the scale of its input."""

    REACH = 7
    """Rows that one group sees."""

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.first = nn.Linear(3 * width, width)
        self.second = nn.Linear(3 * width, width)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights with variance 2 / 3D (He et al. 2015), at which rows keep their scale."""
        fan = self.first.weight.shape[1]
        for layer in (self.first, self.second):
            normal(layer.weight, (2 / fan) ** 0.5, generator)
            layer.bias.data.zero_()

    def forward(self, old: Float[Tensor, "B E D"], real: Bool[Tensor, "B E"]) -> Float[Tensor, "B G D"]:
        first, second = self.first, self.second
        return dilated_convolutions(old, real, first.weight, first.bias, second.weight, second.bias, rate=self.rate)


class TransposedConvolution(nn.Module):
    """One compressed row becomes c rows. It begins by repeating it: every tap is I."""

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rate * width, width))
        self.bias = nn.Parameter(torch.empty(width))

    def initialize(self, generator: torch.Generator) -> None:
        """Fill the parameters. Draws nothing."""
        rows, width = self.weight.shape
        if not self.weight.is_meta:
            self.weight.data.copy_(torch.eye(width).repeat(rows // width, 1))
            self.bias.data.zero_()

    def forward(self, rows: Float[Tensor, "B G D"]) -> Float[Tensor, "B E D"]:
        return transposed_convolution(rows, self.weight, self.bias)
