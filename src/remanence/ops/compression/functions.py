"""The compression functions on batches: (B, E, D) rows in, (B, E / c, D) rows out, oldest first.

Lanes may have fewer real rows than E; what stands behind them is arbitrary and makes arbitrary groups, which the caller
drops. Only where a group looks beyond itself must the function know which rows are real.

Source: Rae et al. 2020 (arXiv 1911.05507), section 3.2. Shapes: B lanes, E rows, c rate, G = E / c groups, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from remanence.ops.compression.eviction import gather


def mean_pooling(old: Float[Tensor, "B E D"], rate: int) -> Float[Tensor, "B G D"]:
    """The mean of every `rate` rows."""
    return old.unflatten(1, (-1, rate)).mean(2)


def max_pooling(old: Float[Tensor, "B E D"], rate: int) -> Float[Tensor, "B G D"]:
    """The largest of every `rate` rows, in each column."""
    return old.unflatten(1, (-1, rate)).amax(2)


def convolution(
    old: Float[Tensor, "B E D"], weight: Float[Tensor, "D W"], bias: Float[Tensor, " D"]
) -> Float[Tensor, "B G D"]:
    """Kernel and stride are c: one matrix product. The columns of the weight are those of tap 0, tap 1 and so on."""
    rate = weight.shape[1] // weight.shape[0]
    return F.linear(old.unflatten(1, (-1, rate)).flatten(2), weight, bias)


def transposed_convolution(
    rows: Float[Tensor, "B G D"], weight: Float[Tensor, "W D"], bias: Float[Tensor, " D"]
) -> Float[Tensor, "B E D"]:
    """Kernel and stride are c: every row becomes c rows. The rows of the weight are those of tap 0, tap 1 and so on."""
    rate = weight.shape[0] // weight.shape[1]
    return F.linear(rows, weight).unflatten(2, (rate, -1)).flatten(1, 2) + bias


def dilated_convolutions(
    old: Float[Tensor, "B E D"],
    real: Bool[Tensor, "B E"],
    first: Float[Tensor, "D W"],
    first_bias: Float[Tensor, " D"],
    second: Float[Tensor, "D W"],
    second_bias: Float[Tensor, " D"],
    rate: int,
) -> Float[Tensor, "B G D"]:
    """Three taps one row apart, ReLU, then three taps two rows apart around the middle of each group.

    Together they see 7 rows. Beyond the real rows is zero.
    """
    length = old.shape[1]
    padded = F.pad(old * real[..., None], (0, 0, 1, 1))
    near = torch.cat([padded[:, tap : tap + length] for tap in range(3)], dim=2)
    inner = F.relu(F.linear(near, first, first_bias)) * real[..., None]
    padded = F.pad(inner, (0, 0, 2, 2))
    starts = [(rate - 1) // 2 + 2 * tap for tap in range(3)]
    near = torch.cat([padded[:, start : start + length : rate][:, : length // rate] for start in starts], dim=2)
    return F.linear(near, second, second_bias)


def most_used(
    old: Float[Tensor, "B E D"],
    usage: Float[Tensor, "B E"],
    real: Bool[Tensor, "B E"],
    groups: Int[Tensor, " B"],
    rate: int,
) -> Float[Tensor, "B G D"]:
    """The rows that received most attention, as many as a lane has groups, in their order; of equals the older.

    `usage` is anything that is proportional to the attention received, and not negative.
    """
    length = old.shape[1]
    ranked = usage.masked_fill(~real, -1.0).argsort(dim=1, descending=True, stable=True)[:, : length // rate]
    idle = torch.arange(length // rate, device=old.device) >= groups[:, None]
    chosen = ranked.masked_fill(idle, length).sort(dim=1).values
    return gather(old, chosen.clamp(max=length - 1))
