"""Gaussian basis functions on [0, 1], where 1 is now.

psi_k(t) = exp(-(t - c_k)^2 / (2 s_k^2)) / (s_k sqrt(2 pi))        densities: their peak is 1 / (s_k sqrt(2 pi))

J = N / W centres 0, 1/(J-1), .., 1, each with W widths; k = W j + w. Shapes: N basis functions, n places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Basis:
    """N functions of W widths. N must be a multiple of W, and at least 2 W."""

    number: int
    widths: tuple[float, ...]

    @property
    def centres(self) -> int:
        """J."""
        return self.number // len(self.widths)

    def parameters(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """The centre c_k and the width s_k of every function."""
        places = torch.arange(self.centres, dtype=dtype, device=device) / (self.centres - 1)
        # Filled where they are wanted: a copy from elsewhere would have the device wait.
        widths = torch.cat([torch.full((1,), width, dtype=dtype, device=device) for width in self.widths])
        return places.repeat_interleave(len(self.widths)), widths.repeat(self.centres)


def default_widths(number: int) -> tuple[float, float]:
    """(1.275, 2.55) / (J - 1) for two widths: 0.005 and 0.01 for the published 512 functions."""
    return 1.275 / (number // 2 - 1), 2.55 / (number // 2 - 1)


def gaussians(
    places: Float[Tensor, "*lanes n"], centres: Float[Tensor, " N"], widths: Float[Tensor, " N"]
) -> Float[Tensor, "*lanes n N"]:
    """psi_k(t_i) for every place and function."""
    return torch.exp(((places[..., None] - centres) / widths).square() * -0.5) / (widths * math.sqrt(2 * math.pi))
