"""The feed-forward part of a layer as it is defined (Vaswani et al. 2017, section 3.3), for reading and for tests."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from remanence.ops.dropout.naive import apply_mask


def feed_forward(
    rows: Float[Tensor, "*N D"],
    widen: Float[Tensor, "F D"],
    widen_bias: Float[Tensor, " F"],
    narrow: Float[Tensor, "D F"],
    narrow_bias: Float[Tensor, " D"],
    kept: Tensor,
    rate: float,
) -> Float[Tensor, "*N D"]:
    """W_2 dropout(relu(W_1 x + b_1)) + b_2, with the mask of the dropout, (*N, F)."""
    inner = torch.clamp(rows @ widen.T + widen_bias, min=0)
    return apply_mask(inner, kept, rate) @ narrow.T + narrow_bias
