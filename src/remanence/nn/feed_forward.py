"""Two linear maps with a rectifier between them, by the way that the maps allow."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from remanence.nn.packed import PackedLinear
from remanence.ops.dropout import dropout
from remanence.ops.feed_forward import feed_forward


def through(widen: Any, narrow: Any, rows: Float[Tensor, "*N D"], rate: float = 0.0) -> Float[Tensor, "*N D"]:
    """W_2 dropout(max(0, W_1 x + b_1)) + b_2; packed maps are for reading, so there `rate` is 0."""
    if type(widen) is nn.Linear:
        return feed_forward(rows, widen.weight, widen.bias, narrow.weight, narrow.bias, rate)
    if isinstance(widen, PackedLinear):
        return narrow(widen.rectified(rows))
    # Maps with a way of their own to the same products.
    return narrow(dropout(F.relu(widen(rows)), rate))
