"""Look-ahead attention at a cost that is linear in the number of slots."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from remanence.ops.attention.cpu import attend
from remanence.ops.attention.fused import applies, fused_attention
from remanence.ops.attention.relative import Read, read
from remanence.ops.attention.shift import shift

LEAST_IN_TURN = 32
"""Keys that a block must have to be read by itself; smaller ones are read all at once, in one batch of products."""


def look_ahead(
    queries: Float[Tensor, "B H M K"],
    keys: Float[Tensor, "B H n K"],
    values: Float[Tensor, "B H n K"],
    visible: Bool[Tensor, "#B M n"],
    *,
    content_bias: Float[Tensor, "H K"],
    position_bias: Float[Tensor, "H K"],
    positions: Float[Tensor, "P H K"],
    forward_only: bool,
    dropout: float = 0.0,
) -> Read:
    """What `naive.look_ahead` defines, with its log-sum. `positions` holds rho_d for d = 2 - n .. M, P = M + n - 1.

    `forward_only` promises that `visible` hides every key at d < 1, which saves work when M <= 2 n.

    Source: Ji et al. 2022 (arXiv 2204.07341), section 3.1; the blocks are derived in README.md.
    """
    if applies(queries, keys, values):
        biases = {"content_bias": content_bias, "position_bias": position_bias, "positions": positions}
        return Read(*fused_attention(queries, keys, values, visible, **biases, dropout=dropout), None)
    large = keys.shape[2] >= LEAST_IN_TURN
    if large and queries.device.type == "cpu" and not torch.compiler.is_compiling():
        biases = (content_bias, position_bias)
        return _in_turn(queries, keys, values, visible, biases, positions, forward_only, dropout)
    scale = 1 / math.sqrt(queries.shape[-1])
    content = (queries + content_bias[:, None].to(queries.dtype)) * scale
    asked = (queries + position_bias[:, None].to(queries.dtype)) * scale
    positions = positions.to(asked.dtype)
    num_slots, num_keys = queries.shape[-2], keys.shape[-2]
    if forward_only and num_slots <= 2 * num_keys:
        position = _dense(asked, positions, num_keys)
    else:
        position = _blocks(asked, positions, num_keys)
    return read(content @ keys.transpose(-2, -1), position, values, visible, dropout, with_logsum=True)


def _in_turn(
    queries: Float[Tensor, "B H M K"],
    keys: Float[Tensor, "B H n K"],
    values: Float[Tensor, "B H n K"],
    visible: Bool[Tensor, "#B M n"],
    biases: tuple[Tensor, Tensor],
    positions: Float[Tensor, "P H K"],
    forward_only: bool,
    dropout: float,
) -> Read:
    """Blocks of n slots one after the other, the oldest one with what is left, each with its own distances."""
    num_slots, num_keys = queries.shape[2], keys.shape[2]
    oldest = (num_slots - 1) % num_keys + 1
    sizes = [oldest] + [num_keys] * ((num_slots - oldest) // num_keys)
    contexts, logsums = [], []
    newer = num_slots
    for asking, seen in zip(queries.split(sizes, dim=2), visible.split(sizes, dim=1), strict=True):
        rows = asking.shape[2]
        newer -= rows
        # Row r and key c are newer + rows + c - r - n + 1 apart; row 0 of the table is distance 2 - n.
        first = newer
        last, offset = first + num_keys + rows - 1, rows - 1
        if newer == 0 and forward_only:
            # Of the newest slots no key to the left is seen.
            first, offset = num_keys - 1, rows - num_keys
        context, logsum, _ = attend(asking, keys, values, seen, *biases, positions[first:last], None, offset, dropout)
        contexts.append(context)
        logsums.append(logsum)
    return Read(torch.cat(contexts, dim=2), torch.cat(logsums, dim=2), None)


def _dense(
    asked: Float[Tensor, "B H M K"], positions: Float[Tensor, "P H K"], num_keys: int
) -> Float[Tensor, "B H M n"]:
    """All slots against all distances 1..M; one spare column for the shift."""
    num_slots = asked.shape[-2]
    table = F.pad(positions[num_keys - 1 :].permute(1, 2, 0), (0, 1))
    return shift(asked @ table, num_slots - num_keys, num_keys)


def _blocks(
    asked: Float[Tensor, "B H M K"], positions: Float[Tensor, "P H K"], num_keys: int
) -> Float[Tensor, "B H M n"]:
    """Blocks of n slots, each against the 2 n - 1 distances that its keys can have."""
    num_slots = asked.shape[-2]
    blocks = -(-num_slots // num_keys)
    missing = blocks * num_keys - num_slots
    # The newest block is full; the oldest is filled up with slots that do not exist.
    asked = F.pad(asked, (0, 0, missing, 0)).unflatten(2, (blocks, num_keys))
    table = F.pad(positions, (0, 0, 0, 0, 0, missing))
    windows = table.unfold(0, 2 * num_keys - 1, num_keys).flip(0).permute(1, 0, 2, 3)
    position = shift(asked @ windows, num_keys - 1, num_keys)
    return position.flatten(2, 3)[:, :, missing:]
