"""Sinusoidal codes of distances and positions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sinusoids(distances: Int[Tensor, " P"], width: int, dtype: torch.dtype) -> Float[Tensor, "P D"]:
    """R_d = [sin(d w_0 .. w_{D/2-1}), cos(same)], w_j = 10000^(-2j/D): halves, not interleaved.

    Angles are computed in float32 or better whatever `dtype`: counted in bfloat16, most positions would coincide.

    Source: Dai et al. 2019 (arXiv 1901.02860) and its published code.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    frequencies = 10000 ** (-torch.arange(0, width, 2, device=distances.device, dtype=torch.float64) / width)
    angles = distances.to(exact)[:, None] * frequencies.to(exact)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)
