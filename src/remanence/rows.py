"""Rows that grow at their end, without copying those that are there.

A row once written is never written again while anyone may see it. So a longer tensor can share its first rows with the
one that it continues: both are views of one buffer that has room at its end, and only the new rows are copied into it.

The room belongs to the storage. Anything that makes a tensor of its own (a selection of lanes, a cast, a file) leaves
it behind, and what was continued once cannot be continued a second time in the same place: then all rows are copied to
a new buffer, with room for about as many again. So what is seen is always that of `torch.cat`, at a cost for each row
that does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

ATTRIBUTE = "remanence_room"


@dataclass
class Room:
    """Where the next row of a contiguous buffer goes."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    axis: int
    dtype: torch.dtype
    ends: list[int]
    """The rows written so far; empty while one writes. Taking the number out of the list is what claims the room: in
    CPython two threads cannot both do it."""

    def behind(self, rows: Tensor, axis: int) -> int | None:
        """Where these rows end in the buffer; None unless they are rows of all of it, as they were written."""
        same = rows.stride() == self.stride and axis == self.axis and rows.dtype == self.dtype
        shape = rows.shape
        if not (same and shape[:axis] == self.shape[:axis] and shape[axis + 1 :] == self.shape[axis + 1 :]):
            return None
        return int(rows.storage_offset()) // self.stride[axis] + shape[axis]


_taken: ContextVar[list[tuple[Room, int]] | None] = ContextVar("taken", default=None)
"""Where rows went in a rehearsal."""


@contextmanager
def rehearsing() -> Iterator[None]:
    """What is appended inside is seen by nobody afterwards, so that its room is free again."""
    taken: list[tuple[Room, int]] = []
    token = _taken.set(taken)
    try:
        yield
    finally:
        _taken.reset(token)
        for room, end in reversed(taken):
            room.ends[:] = [end]


def sharing() -> bool:
    """Whether rows may be shared: without gradients, and not in a compiled graph, which is made for given strides."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def append(old: Tensor, new: Tensor, axis: int = 1, room: int | None = None) -> Tensor:
    """`torch.cat([old, new], axis)`, of which only the new rows are copied where possible.

    `room` is how many further rows a new buffer takes; as many as there are unless given.
    """
    if not sharing():
        return torch.cat([old, new], axis)
    if (grown := _in_place(old, new, axis)) is not None:
        return grown
    shape, count = list(old.shape), new.shape[axis]
    length = old.shape[axis] + count
    shape[axis] = length + (length if room is None else room)
    buffer = torch.empty(shape, dtype=torch.promote_types(old.dtype, new.dtype), device=old.device)
    grown = buffer.narrow(axis, 0, length)
    grown.narrow(axis, 0, old.shape[axis]).copy_(old)
    grown.narrow(axis, old.shape[axis], count).copy_(new)
    kept = Room(tuple(shape), buffer.stride(), axis, buffer.dtype, [length])
    setattr(buffer.untyped_storage(), ATTRIBUTE, kept)
    return grown


def _in_place(old: Tensor, new: Tensor, axis: int) -> Tensor | None:
    """The longer view; None where there is no room right behind `old`."""
    room: Room | None = getattr(old.untyped_storage(), ATTRIBUTE, None)
    if room is None or (end := room.behind(old, axis)) is None:
        return None
    length, count = old.shape[axis], new.shape[axis]
    promoted = new.dtype != old.dtype and torch.promote_types(old.dtype, new.dtype) != old.dtype
    if end + count > room.shape[axis] or promoted or old.is_inference() != torch.is_inference_mode_enabled():
        return None
    try:
        room.ends.remove(end)
    except ValueError:
        return None
    # As data, for what is written was seen by nobody: no graph that holds the older rows is out of date.
    shape = (*old.shape[:axis], length + count, *old.shape[axis + 1 :])
    grown = old.data.as_strided(shape, room.stride, old.storage_offset())
    grown.narrow(axis, length, count).copy_(new)
    room.ends.append(end + count)
    if (taken := _taken.get()) is not None:
        taken.append((room, end))
    return grown
