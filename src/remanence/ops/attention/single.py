"""Relative attention of one query a lane, without gradients: what decoding and reading token by token consist of.

    s_j = [ (q + u) k_j + (q + v) r_d + t_d ] / sqrt(K),   d = S - 1 - j

There is nothing to shift, and the product with the table of distances is one for all lanes. On a CPU everything is
computed in float32 or better: of one row, products in bfloat16 take longer.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def single_query(
    queries: Float[Tensor, "B H 1 K"],
    keys: Float[Tensor, "B H S K"],
    values: Float[Tensor, "B H S K"],
    visible: Bool[Tensor, "#B 1 S"] | None,
    *,
    content_bias: Float[Tensor, "H K"] | None,
    position_bias: Float[Tensor, "H K"] | None,
    positions: Float[Tensor, "S H K"] | None,
    distance_bias: Float[Tensor, "S H"] | None,
    with_logsum: bool,
) -> tuple[Float[Tensor, "B H 1 K"], Float[Tensor, "B H 1"] | None, Float[Tensor, "B H 1 S"]]:
    """Context, log-sum (None unless asked for) and weights: what `naive.relative_attention` defines for T = 1."""
    exact = torch.promote_types(queries.dtype, torch.float32)
    if torch.is_autocast_enabled(queries.device.type):
        with torch.autocast(queries.device.type, enabled=False):
            return single_query(
                queries,
                keys,
                values,
                visible,
                content_bias=content_bias,
                position_bias=position_bias,
                positions=positions,
                distance_bias=distance_bias,
                with_logsum=with_logsum,
            )
    lanes, heads, _, width = queries.shape
    num_keys, scale = keys.shape[2], width**-0.5
    dtype = exact if queries.device.type == "cpu" else queries.dtype
    asked = queries.to(dtype)
    if keys.dtype != dtype:
        keys, values = keys.to(dtype), values.to(dtype)
    content = asked if content_bias is None else asked + content_bias[:, None].to(dtype)
    content, columns = content.reshape(-1, 1, width), keys.reshape(-1, num_keys, width).transpose(1, 2)
    if positions is None:
        scores = torch.baddbmm(content.new_zeros(()), content, columns, beta=0, alpha=scale)
    else:
        rows = asked[:, :, 0] if position_bias is None else asked[:, :, 0] + position_bias.to(dtype)
        scores = torch.bmm(rows.transpose(0, 1), positions.to(dtype).permute(1, 2, 0))
        if distance_bias is not None:
            scores += distance_bias.T[:, None].to(dtype)
        scores = scores.transpose(0, 1).reshape(-1, 1, num_keys).baddbmm_(content, columns, beta=scale, alpha=scale)
    scores = scores.view(lanes, heads, 1, num_keys).to(exact)
    hidden = None if visible is None else ~visible[:, None]
    if hidden is not None:
        scores = scores.masked_fill_(hidden, torch.finfo(exact).min)
    weights = torch.softmax(scores, -1)
    # Any key gives log-sum = s_j - log p_j; the largest is the most exact, and cheaper than exponentials.
    logsum = scores.amax(-1) - weights.amax(-1).log_() if with_logsum else None
    if hidden is not None:
        # A row that sees nothing is zero.
        weights = weights.masked_fill_(hidden, 0)
    context = torch.bmm(weights.view(-1, 1, num_keys).to(dtype), values.reshape(-1, num_keys, width))
    return context.view(lanes, heads, 1, width).to(queries.dtype), logsum, weights
