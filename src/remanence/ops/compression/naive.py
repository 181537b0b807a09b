"""The compressed memory of one lane in loops over rows, for reading and for tests.

    full = [m ; h];   e = c floor( max(0, len(full) - M) / c );   old = first e rows of full
    m <- the others;  cm <- last C rows of [cm ; f_c(old)]

Source: Rae et al. 2020 (arXiv 1911.05507), section 3. Shapes: E evicted rows, a multiple of rate c, G = E / c groups,
T rows of the segment, M raw and C compressed slots, H heads, K head width, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Row = Tensor


def evict(
    compressed: Sequence[Row],
    raw: Sequence[Row],
    segment: Sequence[Row],
    memory_length: int,
    compressed_length: int,
    rate: int,
    compress: Callable[[Tensor], Tensor],
) -> tuple[list[Row], list[Row], list[Row]]:
    """The compressed and the raw rows after a segment, and the rows that were evicted; all oldest first."""
    full = [*raw, *segment]
    count = rate * (max(0, len(full) - memory_length) // rate)
    old, kept = full[:count], full[count:]
    squeezed = [*compressed, *(compress(torch.stack(old)) if old else ())]
    return squeezed[max(0, len(squeezed) - compressed_length) :], kept, old


def mean_pooling(old: Float[Tensor, "E D"], rate: int) -> Float[Tensor, "G D"]:
    return torch.stack([sum(group, torch.zeros_like(group[0])) / rate for group in old.split(rate)])


def max_pooling(old: Float[Tensor, "E D"], rate: int) -> Float[Tensor, "G D"]:
    return torch.stack([torch.stack([column.max() for column in group.T]) for group in old.split(rate)])


def convolution(
    old: Float[Tensor, "E D"], taps: Sequence[Float[Tensor, "D D"]], bias: Float[Tensor, " D"]
) -> Float[Tensor, "G D"]:
    """Kernel and stride are the number of taps: each group is the sum of its rows, each through its own matrix."""
    groups = old.split(len(taps))
    return torch.stack([sum((tap @ row for tap, row in zip(taps, group, strict=True)), bias) for group in groups])


def transposed_convolution(
    rows: Float[Tensor, "G D"], taps: Sequence[Float[Tensor, "D D"]], bias: Float[Tensor, " D"]
) -> Float[Tensor, "E D"]:
    """Each row becomes a group of rows, one for each tap."""
    return torch.stack([tap @ row + bias for row in rows for tap in taps])


def dilated_convolutions(
    old: Float[Tensor, "E D"],
    first: Sequence[Float[Tensor, "D D"]],
    first_bias: Float[Tensor, " D"],
    second: Sequence[Float[Tensor, "D D"]],
    second_bias: Float[Tensor, " D"],
    rate: int,
) -> Float[Tensor, "G D"]:
    """Three neighbours, ReLU, then three rows two apart around the middle of each group. Beyond the rows is zero."""
    zero = torch.zeros_like(old[0])
    inner = []
    for place in range(len(old)):
        near = [old[at] if 0 <= at < len(old) else zero for at in (place - 1, place, place + 1)]
        inner.append(sum((tap @ row for tap, row in zip(first, near, strict=True)), first_bias).relu())
    groups = []
    for start in range(0, len(old), rate):
        middle = start + (rate - 1) // 2
        near = [inner[at] if 0 <= at < len(old) else zero for at in (middle - 2, middle, middle + 2)]
        groups.append(sum((tap @ row for tap, row in zip(second, near, strict=True)), second_bias))
    return torch.stack(groups)


def most_used(old: Float[Tensor, "E D"], usage: Float[Tensor, " E"], rate: int) -> Float[Tensor, "G D"]:
    """The E / c rows that received most attention, in their order; of equals the older."""
    ranked = sorted(range(len(old)), key=lambda place: (-usage[place].item(), place))
    return old[sorted(ranked[: len(old) // rate])]


def attention_loss(
    queries: Float[Tensor, "H T K"],
    old_keys: Float[Tensor, "H E K"],
    old_values: Float[Tensor, "H E K"],
    keys: Float[Tensor, "H G K"],
    values: Float[Tensor, "H G K"],
) -> Float[Tensor, ""]:
    """Mean squared difference between what the queries read from the evicted rows and from the compressed ones."""
    difference = _attend(queries, old_keys, old_values) - _attend(queries, keys, values)
    return difference.square().mean()


def autoencoding_loss(old: Float[Tensor, "E D"], rebuilt: Float[Tensor, "E D"]) -> Float[Tensor, ""]:
    return (old - rebuilt).square().mean()


def _attend(
    queries: Float[Tensor, "H T K"], keys: Float[Tensor, "H N K"], values: Float[Tensor, "H N K"]
) -> Float[Tensor, "H T K"]:
    """Attention by content alone: no positions, no biases, no mask."""
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    return scores.softmax(-1) @ values
