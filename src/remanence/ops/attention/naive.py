"""Relative attention as the Transformer-XL paper writes it (Dai et al. 2019, section 3.3), for reading and for tests.

    s_ij = [ (q_i + u) k_j + (q_i + v) r_d + t_d ] / sqrt(K),   d = S - T + i - j
    c_i = sum_j softmax_j(s_ij) v_j,   logsum_i = log sum_j exp(s_ij)

Shapes: B lanes, H heads, T queries, S keys (the last T keys are the queries' own tokens), K head width.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def relative_attention(
    queries: Float[Tensor, "B H T K"],
    keys: Float[Tensor, "B H S K"],
    values: Float[Tensor, "B H S K"],
    visible: Bool[Tensor, "#B T S"],
    *,
    content_bias: Float[Tensor, "H K"] | None = None,
    position_bias: Float[Tensor, "H K"] | None = None,
    positions: Float[Tensor, "S H K"] | None = None,
    distance_bias: Float[Tensor, "S H"] | None = None,
) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T"], Float[Tensor, "B H T S"]]:
    """Context, log-sum and weights. `positions` and `distance_bias` begin with the LARGEST distance, S - 1.

    A query that sees no key gets zeros, and the lowest finite number as its log-sum.
    """
    queries, keys, values = (tensor.to(_exact(tensor)) for tensor in (queries, keys, values))
    num_queries, num_keys = queries.shape[-2], keys.shape[-2]
    content = queries if content_bias is None else queries + content_bias[:, None]
    scores = torch.einsum("bhtk,bhsk->bhts", content, keys)
    if positions is not None:
        position = queries if position_bias is None else queries + position_bias[:, None]
        # Row of the table for each pair; pairs in the future have no row and are masked below.
        distance = num_keys - num_queries + torch.arange(num_queries)[:, None] - torch.arange(num_keys)
        row = (num_keys - 1 - distance).clamp(0, num_keys - 1)
        scores = scores + torch.einsum("bhtk,tshk->bhts", position, positions[row].to(scores.dtype))
        if distance_bias is not None:
            scores = scores + distance_bias[row].permute(2, 0, 1)
    return softmax_and_read(scores / math.sqrt(queries.shape[-1]), values, visible)


def softmax_and_read(
    scores: Float[Tensor, "B H T S"], values: Float[Tensor, "B H S K"], visible: Bool[Tensor, "#B T S"]
) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T"], Float[Tensor, "B H T S"]]:
    seen = visible[:, None]
    scores = torch.where(seen, scores, torch.finfo(scores.dtype).min)
    logsum = scores.logsumexp(-1)
    weights = torch.where(seen, (scores - logsum[..., None]).exp(), 0.0)
    logsum = torch.where(seen.any(-1), logsum, torch.finfo(scores.dtype).min)
    return torch.einsum("bhts,bhsk->bhtk", weights, values), logsum, weights


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
