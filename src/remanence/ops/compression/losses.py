"""What a compression loses, for each lane: the mean squared difference over what is real.

    attention       || attn(h, old) - attn(h, f_c(old)) ||^2
    autoencoding    || old - g(f_c(old)) ||^2

What they may teach is decided by what the caller stops. Lanes that evict nothing lose nothing.

Source: Rae et al. 2020 (arXiv 1911.05507), section 3.2. Shapes: B lanes, H heads, T queries, E evicted rows, G groups,
K head width, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remanence.ops.attention import relative_attention


def attention_loss(
    queries: Float[Tensor, "B H T K"],
    old_keys: Float[Tensor, "B H E K"],
    old_values: Float[Tensor, "B H E K"],
    keys: Float[Tensor, "B H G K"],
    values: Float[Tensor, "B H G K"],
    groups: Int[Tensor, " B"],
    asking: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, " B"]:
    """What the queries read from the evicted rows against what they read from the compressed ones.

    Attention by content alone: no positions, no biases, no mask but that of the real rows. `asking` says which queries
    are real; None means all of them.
    """
    rate = old_keys.shape[2] // keys.shape[2]
    wanted = relative_attention(queries, old_keys, old_values, _seen(queries, old_keys, groups * rate)).context
    read = relative_attention(queries, keys, values, _seen(queries, keys, groups)).context
    squares = (_exact(wanted) - _exact(read)).square().mean((1, 3))
    if asking is None:
        return squares.mean(1)
    return (squares * asking).sum(1) / asking.sum(1).clamp(min=1)


def autoencoding_loss(
    old: Float[Tensor, "B E D"], rebuilt: Float[Tensor, "B E D"], real: Bool[Tensor, "B E"]
) -> Float[Tensor, " B"]:
    """The evicted rows against those made out of the compressed ones."""
    squares = (_exact(old) - _exact(rebuilt)).square().mean(2)
    return (squares * real).sum(1) / real.sum(1).clamp(min=1)


def _seen(queries: Tensor, keys: Tensor, counts: Tensor) -> Tensor:
    """The first `counts` keys of each lane, for every query."""
    seen = torch.arange(keys.shape[2], device=keys.device) < counts[:, None]
    return seen[:, None].expand(-1, queries.shape[2], -1)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)
