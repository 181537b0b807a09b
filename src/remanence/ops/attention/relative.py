"""Relative attention as training uses it: matrix products, a shift that copies nothing, one pass of softmax."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from remanence.ops.attention.cpu import attend
from remanence.ops.attention.fused import applies, fused_attention
from remanence.ops.attention.shift import shift
from remanence.ops.attention.single import single_query
from remanence.ops.attention.softmax import masked_softmax
from remanence.ops.dropout import dropout as drop


class Read(NamedTuple):
    """What queries got from the keys they may see."""

    context: Float[Tensor, "B H T K"]
    logsum: Float[Tensor, "B H T"] | None
    """Log of the softmax denominator, float32 or better; None unless asked for."""
    weights: Float[Tensor, "B H T S"] | None
    """Attention weights before dropout; None unless asked for."""


def relative_attention(
    queries: Float[Tensor, "B H T K"],
    keys: Float[Tensor, "B H S K"],
    values: Float[Tensor, "B H S K"],
    visible: Bool[Tensor, "#B T S"] | None,
    *,
    content_bias: Float[Tensor, "H K"] | None = None,
    position_bias: Float[Tensor, "H K"] | None = None,
    positions: Float[Tensor, "S H K"] | None = None,
    distance_bias: Float[Tensor, "S H"] | None = None,
    dropout: float = 0.0,
    with_logsum: bool = False,
    with_weights: bool = False,
) -> Read:
    """What `naive.relative_attention` defines. `positions` begin with the LARGEST distance, S - 1.

    `visible` None lets every query see every key. Dropout acts on the weights, not on the log-sum. Every query must
    see a key, or its row of the result must be discarded by `visible` alone: it is zero. The weights are given only
    `with_weights`, to be looked at: then they are held whole, and carry no gradient that is promised.

    Source: Dai et al. 2019 (arXiv 1901.02860), section 3.3 and appendix B.
    """
    biases: dict[str, Any] = {
        "content_bias": content_bias,
        "position_bias": position_bias,
        "positions": positions,
        "distance_bias": distance_bias,
    }
    if not with_weights and applies(queries, keys, values):
        context, logsum = fused_attention(queries, keys, values, visible, **biases, dropout=dropout)
        return Read(context, logsum if with_logsum else None, None)
    num_queries, head_width = queries.shape[-2:]
    if num_queries == 1 and not (dropout or torch.is_grad_enabled()):
        context, logsum, weights = single_query(queries, keys, values, visible, **biases, with_logsum=with_logsum)
        return Read(context, logsum, weights if with_weights else None)
    if queries.device.type == "cpu" and not torch.compiler.is_compiling():
        offset = num_queries - 1 if num_queries > 1 else 0
        context, logsum, weights = attend(
            queries, keys, values, visible, **biases, offset=offset, dropout=dropout, with_weights=with_weights
        )
        return Read(context, logsum if with_logsum else None, weights)
    scale = 1 / math.sqrt(head_width)
    content = (queries if content_bias is None else queries + content_bias[:, None].to(queries.dtype)) * scale
    scores = content @ keys.transpose(-2, -1)
    position = None
    if positions is not None:
        table = positions.permute(1, 2, 0)
        bias = None if distance_bias is None else distance_bias.T[:, None] * scale
        if num_queries > 1:
            # The shift reads one column past the table; the last query's future is masked anyway.
            table = F.pad(table, (0, 1))
            bias = None if bias is None else F.pad(bias, (0, 1))
        asked = (queries if position_bias is None else queries + position_bias[:, None].to(queries.dtype)) * scale
        position = asked @ table.to(asked.dtype)
        if bias is not None:
            position = position + bias.to(position.dtype)
        position = shift(position, num_queries - 1 if num_queries > 1 else 0, keys.shape[-2])
    return read(scores, position, values, visible, dropout, with_logsum, with_weights)


def read(
    content: Float[Tensor, "B H T S"],
    position: Float[Tensor, "B H T S"] | None,
    values: Float[Tensor, "B H S K"],
    visible: Bool[Tensor, "#B T S"] | None,
    dropout: float = 0.0,
    with_logsum: bool = False,
    with_weights: bool = False,
) -> Read:
    """Weigh the values by the softmax of the two halves of the scores."""
    weights, logsum = masked_softmax(content, position, visible, with_logsum)
    context = drop(weights, dropout) @ values
    if visible is not None:
        seen = visible.any(-1)[:, None, :, None]
        context = context * seen
    return Read(context, logsum, weights if with_weights else None)
