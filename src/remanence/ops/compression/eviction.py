"""Which rows leave the raw memory, and where every row of the next memory comes from.

Both first-in-first-out memories lie in one tensor of R rows, right-aligned: [never written ; compressed ; raw], oldest
first. The newest `raw` rows of a lane are its raw memory. See README.md.

Shapes
    B   lanes
    R   rows of both memories together
    T   rows of the segment
    E   rows that may be evicted: G whole groups of c
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


class Eviction(NamedTuple):
    """What one segment does to a memory; the same in every layer."""

    old: Int[Tensor, "B E"]
    """Rows of [memory ; segment] that leave the raw memory, oldest first; arbitrary beyond the real ones."""
    real: Bool[Tensor, "B E"]
    """Which of them are."""
    groups: Int[Tensor, " B"]
    """How many groups of each lane are real."""
    rows: Int[Tensor, "B R"]
    """Where the next memory comes from among [memory ; segment ; G groups ; one row of zeros]."""
    valid: Bool[Tensor, "B R"]
    raw: Int[Tensor, " B"]


def evict(
    valid: Bool[Tensor, "B R"],
    raw: Int[Tensor, " B"],
    read: Int[Tensor, " B"],
    tokens: int,
    memory_length: int,
    compressed_length: int,
    rate: int,
) -> Eviction:
    """What `naive.evict` does, as indices of a fixed shape.

    `read` says how many of the `tokens` rows of the segment are real on each lane, from the left. Requires what every
    memory keeps: raw rows fewer than memory_length + rate, compressed rows at most compressed_length. Without
    compressed slots there are no groups (G = 0): what leaves is dropped.

    Source: Rae et al. 2020 (arXiv 1911.05507), algorithm 1, but in whole groups (README.md).
    """
    slots, device = valid.shape[1], valid.device
    possible = (rate - 1 + tokens) // rate if compressed_length else 0
    groups = (raw + read - memory_length).clamp(min=0) // rate
    kept = raw + read - groups * rate
    place = torch.arange(possible * rate, device=device)
    old = (slots - raw[:, None] + place).clamp(max=max(slots + tokens - 1, 0))

    age = torch.arange(slots - 1, -1, -1, device=device)
    older = age - kept[:, None]
    held, new = valid.sum(1)[:, None] - raw[:, None], groups[:, None]
    rows = torch.where(
        older < 0,
        slots + read[:, None] - 1 - age,
        torch.where(older < new, slots + tokens + new - 1 - older, slots - 1 - raw[:, None] - (older - new)),
    )
    written = (older < 0) | ((older < compressed_length) & (older < new + held))
    return Eviction(
        old=old,
        real=place < (groups * rate)[:, None],
        groups=groups,
        rows=torch.where(written, rows, slots + tokens + possible),
        valid=written,
        raw=kept,
    )


def gather(rows: Shaped[Tensor, "B N *D"], index: Int[Tensor, "B K"]) -> Shaped[Tensor, "B K *D"]:
    """Rows of each lane by their number."""
    lanes = torch.arange(rows.shape[0], device=rows.device)[:, None] * rows.shape[1]
    return rows.flatten(0, 1)[(lanes + index).flatten()].unflatten(0, tuple(index.shape))
