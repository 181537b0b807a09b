"""Relative positions: the biases that stand in for a query's own position, and the tables of distances.

    s_ij = [ (q_i + u) k_j + (q_i + v) r_d ] / sqrt(K)            sinusoids (Dai et al. 2019)
    s_ij = [ (q_i + u) k_j + q_i T_d + t_d ] / sqrt(K)            learned (Shaw et al. 2018, as in the published code)

Tables begin with the largest distance: the last row is distance 0, so a longer table serves shorter sequences by its
tail. Shapes: H heads, K head width, S keys, L layers.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class DirectionBiases(nn.Module):
    """u and v for looking in one direction; one pair for all layers, or one for each."""

    def __init__(
        self, num_layers: int | None, num_heads: int, head_width: int, *, content: bool, position: bool
    ) -> None:
        super().__init__()
        shape = (num_heads, head_width) if num_layers is None else (num_layers, num_heads, head_width)
        self.content = nn.Parameter(torch.empty(shape)) if content else None
        self.position = nn.Parameter(torch.empty(shape)) if position else None

    def of(self, layer: int) -> tuple[Any, Any]:
        """U and v of one layer; None for one that this direction does not have."""
        content, position = (
            bias if bias is None or bias.dim() == 2 else bias[layer] for bias in (self.content, self.position)
        )
        return content, position


class LearnedPositions(nn.Module):
    """T and t: a vector and a number for each head and distance, for each layer. Larger distances reuse the largest."""

    def __init__(self, num_layers: int, num_distances: int, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(num_layers, num_distances, num_heads, head_width))
        self.distance_bias = nn.Parameter(torch.empty(num_layers, num_distances, num_heads))

    def of(
        self, layer: int, distances: Int[Tensor, " S"], limit: int | None
    ) -> tuple[Float[Tensor, "S H K"], Float[Tensor, "S H"]]:
        """Rows for distances, which are held at `limit`. Row 0 of the weights is the largest distance they know."""
        largest = self.table.shape[1] - 1
        held = distances.clamp(max=largest if limit is None else min(limit, largest))
        return self.table[layer, largest - held], self.distance_bias[layer, largest - held]


def falling(keys: int, limit: int | None, device: torch.device) -> Int[Tensor, " S"]:
    """Distances S - 1 .. 0, those beyond `limit` held there."""
    return torch.arange(keys - 1, -1, -1, device=device).clamp(max=keys if limit is None else limit)


def tightest(*limits: int | None) -> int | None:
    """The smallest of several limits, where None is no limit."""
    given = [limit for limit in limits if limit is not None]
    return min(given) if given else None
