"""Lanes: a split of a corpus read as B token streams side by side, one segment of T tokens at a time.

Two protocols, for training and for evaluation:

    published   the split is one stream, memory is never forgotten inside it (Transformer-XL, LaMemo)
    document    a lane reads whole documents and forgets where one starts

What a model's output n scores is token n + `shift` of its text. With shift 1 that is the next token, and the first
token of a text is read but not scored. With shift 0 it is the token itself, predicted from those before it by a model
that brings a start symbol of its own; so a constant start token of the corpus is left out of its documents, and every
token that is left is scored.

Shapes
    B   lanes
    T   segment
    N   tokens in the split
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from remanence.data.corpus import Split
from remanence.data.order import document_parts, least, nothing_to_read, order_of
from remanence.errors import InputError

Protocol = Literal["published", "document"]

EVERY = slice(None)
"""All lanes."""
_MOST = (1 << 63) - 1
"""No epoch and no seed of a saved position is larger."""


@dataclass(frozen=True)
class Batch:
    """One segment of every lane."""

    tokens: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    """The token that follows, or with shift 0 the token itself; -1 where nothing is scored."""
    starts: Bool[Tensor, "B"]
    """True where the lane's memory is forgotten before this segment."""
    lengths: Int[Tensor, "B"] | None = None
    """Real tokens of each lane, the rest being padding on the right; None when all T of every lane are real."""

    @property
    def scored(self) -> int:
        """How many targets count."""
        return int((self.targets >= 0).sum())

    def to(self, device: torch.device | str) -> Batch:
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("tokens", "targets", "starts")}
        return replace(self, **moved, lengths=None if self.lengths is None else self.lengths.to(device))


class Lanes:
    """Endless lanes for training; their state is a few integers a lane.

    "published": the split is cut into B contiguous columns of N // B tokens, the remainder dropped. At the start of
    every epoch each column is rotated by a random offset and memory starts empty; an epoch is the whole segments of a
    column (LaMemo's published training).

    "document": lanes read whole documents in an order shuffled anew each epoch, memory starts empty at each, and the
    last segment of a document is padded. Where only the last tokens of a document are scored, there are batches in
    which nothing is.

    With `part`, only those of the lanes are read, for one of several processes that share them: where all lanes are is
    known to each of them, and what one reads is what it would read among all.

    Raises InputError when the split is too short for these lanes.
    """

    def __init__(
        self,
        split: Split,
        lanes: int,
        segment_length: int,
        protocol: Protocol = "published",
        seed: int = 0,
        shift: int = 1,
        part: slice = EVERY,
    ) -> None:
        _check_shape(lanes, segment_length, protocol, shift)
        if seed < 0:
            raise InputError(f"The seed of the lanes is {seed}; it must be 0 or more.")
        self.split = split
        self.lanes = lanes
        self.segment_length = segment_length
        self.protocol = protocol
        self.seed = seed
        self.shift = shift
        self.part = part
        self.epoch = 0
        """Passes over the split that were completed."""
        self.position = 0
        """How far this pass has come: tokens of every lane ("published"), documents begun ("document")."""
        self.remembered = 0
        """The most tokens that one of all lanes had read since its memory was empty, before the latest segment."""
        if protocol == "published":
            self._column = len(split) // lanes
            if self._column < segment_length + shift:
                raise InputError(
                    f"The {split.name} split has {len(split)} tokens and {lanes} lanes with segments of "
                    f"{segment_length} need {lanes * (segment_length + shift)}; take fewer lanes, shorter segments or "
                    "more text."
                )
        else:
            self._order = order_of(split, shift)
            if len(self._order) < lanes:
                raise InputError(
                    f"The {split.name} split has {len(self._order)} documents of {least(split, shift)} or more "
                    f'tokens and {lanes} lanes need one each; take fewer lanes or the protocol "published".'
                )
            self._reading = np.full(lanes, -1, np.int64)
            """Which document each lane reads; -1 before the first."""
            self._read = np.zeros(lanes, np.int64)
            """How many tokens of it the lane has read."""
            self._parts = np.zeros((lanes, 2), np.int64)
            """Where the inputs of it begin and end."""
        self._arrange()

    def next(self) -> Batch:
        """The next segment of every lane."""
        return self._next_published() if self.protocol == "published" else self._next_document()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next()

    def state(self) -> dict[str, Any]:
        """Where the lanes are: JSON that `restore` takes back exactly."""
        state = {**self._shape(), "seed": self.seed, "epoch": self.epoch, "position": self.position}
        if self.protocol == "document":
            state |= {"reading": self._reading.tolist(), "read": self._read.tolist()}
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises InputError when it belongs to other lanes or another split."""
        for key, mine in self._shape().items():
            # Positions of before there was a shift are of shift 1.
            if state.get(key, 1 if key == "shift" else None) != mine:
                raise InputError(
                    f"The saved lane position has {key} {state.get(key)!r} and these lanes have {mine!r}; "
                    "resume with the settings and the corpus it was saved with."
                )
        limit = self._column if self.protocol == "published" else len(self._order)
        most = {"seed": _MOST, "epoch": _MOST, "position": limit}
        fits = all(type(state.get(key)) is int and 0 <= state[key] <= most[key] for key in most)
        if self.protocol == "document":
            reading, read = state.get("reading"), state.get("read")
            fits = fits and self._are_places(reading, -1, limit - 1) and self._are_places(read, 0, len(self.split))
        if not fits:
            raise InputError("The saved lane position is no place of these lanes; resume from another checkpoint.")
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        if self.protocol == "document":
            self._reading = np.array(state["reading"], np.int64)
            known = [self._order.part(number) if number >= 0 else None for number in state["reading"]]
            self._parts = np.array([part or (0, 0) for part in known], np.int64).reshape(self.lanes, 2)
            # A lane reads no further than to the end of its document.
            self._read = np.minimum(np.array(state["read"], np.int64), self._parts[:, 1] - self._parts[:, 0])
        self._arrange()

    @staticmethod
    def once(
        split: Split,
        lanes: int,
        segment_length: int,
        protocol: Protocol = "published",
        shift: int = 1,
        part: slice = EVERY,
    ) -> Once:
        """Lanes for evaluation, read once: see `Once`."""
        return Once(split, lanes, segment_length, protocol, shift, part)

    def _are_places(self, numbers: Any, least: int, most: int) -> bool:
        """Whether there is a whole number in that range for each lane."""
        return (
            isinstance(numbers, list)
            and len(numbers) == self.lanes
            and all(type(number) is int and least <= number <= most for number in numbers)
        )

    def _shape(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "lanes": self.lanes,
            "segment_length": self.segment_length,
            "tokens": len(self.split),
            "shift": self.shift,
        }

    def _arrange(self) -> None:
        """Draw what is random in this epoch, from the seed and the epoch alone."""
        if self.protocol == "published":
            self._offsets = np.random.default_rng([self.seed, self.epoch]).integers(0, self._column, self.lanes)
        else:
            self._order.arrange(self.seed, self.epoch)

    def _next_published(self) -> Batch:
        if self.position + self.segment_length + self.shift > self._column:
            self.epoch, self.position = self.epoch + 1, 0
            self._arrange()
        lanes = np.arange(self.lanes)[self.part]
        steps = self._offsets[lanes, None] + self.position + np.arange(self.segment_length + self.shift)
        places = steps % self._column + self._column * lanes[:, None]
        starts = np.full(self.lanes, self.position == 0)
        self.remembered = self.position
        self.position += self.segment_length
        return _batch(self.split, places, self.shift, starts[self.part], None)

    def _next_document(self) -> Batch:
        starts = np.zeros(self.lanes, bool)
        for lane in range(self.lanes):
            if self._reading[lane] < 0 or self._read[lane] >= self._parts[lane, 1] - self._parts[lane, 0]:
                self._reading[lane], self._parts[lane] = self._take()
                self._read[lane] = 0
                starts[lane] = True
        begins, ends = self._parts[:, 0] + self._read, self._parts[:, 1]
        lengths = np.minimum(ends - begins, self.segment_length)
        self.remembered = int(self._read.max())
        self._read += lengths
        places = _places(begins[self.part], self.segment_length, self.shift)
        return _batch(self.split, places, self.shift, starts[self.part], lengths[self.part])

    def _take(self) -> tuple[int, tuple[int, int]]:
        """The next document of the shuffled order that has a token to score, and where its inputs begin and end."""
        # At most the rest of this epoch and the whole of the next.
        for _ in range(2 * len(self._order)):
            if self.position == len(self._order):
                self.epoch, self.position = self.epoch + 1, 0
                self._arrange()
            self.position += 1
            number = self._order.number(self.position - 1)
            if (part := self._order.part(number)) is not None:
                return number, part
        raise nothing_to_read(self.split)


class Once:
    """Every token of a split scored exactly once: an iterable of batches that knows its length.

    "published": every token of the stream is scored, but for the first where shift is 1. The lanes share the stream
    evenly, in order, and each starts with an empty memory; with shift 1 the first token a lane reads is the last one
    that the lane before it scores.

    "document": likewise every token of each document, but for the first where shift is 1 or it is a constant start.
    Documents go to the lanes longest first, each to the lane that is free first, so that few lanes idle.

    Of a split that says so (`scored_last`), only the last tokens of each document count among them.

    A lane that has nothing left has length 0. No batch is wider than the longest text that a lane reads at once,
    however long segments may be: the rest would be padding for every lane. With `part`, only those of the lanes are
    read, in as many batches as all of them need.

    Raises InputError when the split is too short for these lanes.
    """

    def __init__(
        self,
        split: Split,
        lanes: int,
        segment_length: int,
        protocol: Protocol = "published",
        shift: int = 1,
        part: slice = EVERY,
    ) -> None:
        _check_shape(lanes, segment_length, protocol, shift)
        self.split = split
        self.lanes = lanes
        self.segment_length = segment_length
        self.protocol = protocol
        self.shift = shift
        self.part = part
        if protocol == "published":
            inputs = len(split) - shift
            if inputs < lanes:
                raise InputError(
                    f"The {split.name} split has {_count(len(split), 'token')} and {_count(lanes, 'lane')} "
                    f"{'needs' if lanes == 1 else 'need'} at least {lanes + shift:,}; take fewer lanes or more text."
                )
            edges = np.arange(lanes + 1, dtype=np.int64) * inputs // lanes
            self._schedule = [[(int(begin), int(end))] for begin, end in pairwise(edges)]
        else:
            documents = document_parts(split, shift)
            if not len(documents):
                raise InputError(
                    f"No document of the {split.name} split has {('one token', 'two tokens')[least(split, shift) - 1]}"
                    ', so there is nothing to score; take more text or the protocol "published".'
                )
            self._schedule = _share(documents, lanes, segment_length)
        longest = max(end - begin for parts in self._schedule for begin, end in parts)
        self._width = min(segment_length, longest)

    def __len__(self) -> int:
        """Batches in one pass."""
        return max(sum(_segments(part, self.segment_length) for part in parts) for parts in self._schedule)

    @cached_property
    def scored(self) -> int:
        """Tokens scored in one pass, by all lanes."""
        parts = np.array([part for parts in self._schedule for part in parts], np.int64) + self.shift
        if self.split.scored_last is None:
            return int((parts[:, 1] - parts[:, 0]).sum())
        # Counted up to each edge: what the documents before it score, and what its own has scored so far.
        ends = np.append(self.split.documents[1:], len(self.split))
        firsts = np.maximum(self.split.documents, ends - self.split.scored_last)
        before = np.concatenate([[0], np.cumsum(ends - firsts)])
        index = np.searchsorted(self.split.documents, parts, side="right") - 1
        return int(np.diff(before[index] + np.maximum(parts - firsts[index], 0), axis=1).sum())

    def __iter__(self) -> Iterator[Batch]:
        ahead = [iter(parts) for parts in self._schedule[self.part]]
        begins = np.zeros(len(ahead), np.int64)
        ends = np.zeros(len(ahead), np.int64)
        for _ in range(len(self) if ahead else 0):
            starts = np.zeros(len(ahead), bool)
            for lane in np.flatnonzero(begins >= ends):
                part = next(ahead[lane], None)
                if part is None:
                    begins[lane] = ends[lane] = 0
                else:
                    begins[lane], ends[lane] = part
                    starts[lane] = True
            lengths = np.clip(ends - begins, 0, self._width)
            places = _places(begins, self._width, self.shift)
            yield _batch(self.split, places, self.shift, starts, None if (lengths == self._width).all() else lengths)
            begins = begins + lengths


def _batch(split: Split, places: np.ndarray, shift: int, starts: np.ndarray, lengths: np.ndarray | None) -> Batch:
    """Inputs and targets from the places of T + shift tokens; padding is blanked out, and what is not scored.

    A place beyond the split is padding to the caller.
    """
    places = np.minimum(places, len(split) - 1)
    window = split.tokens[places].astype(np.int64)
    width = window.shape[1] - shift
    tokens, targets = window[:, :width].copy(), window[:, shift:].copy()
    if lengths is not None:
        padding = np.arange(width) >= lengths[:, None]
        tokens[padding], targets[padding] = 0, -1
    split.check(tokens)
    split.check(targets)
    if split.scored_last is not None:
        targets[~split.is_scored(places[:, shift:])] = -1
    real = None if lengths is None else torch.from_numpy(lengths)
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(starts), real)


def _places(begins: np.ndarray, segment_length: int, shift: int) -> np.ndarray:
    """Where T + shift tokens from each begin lie in the split."""
    return begins[:, None] + np.arange(segment_length + shift)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _segments(part: tuple[int, int], segment_length: int) -> int:
    return -(-(part[1] - part[0]) // segment_length)


def _share(documents: np.ndarray, lanes: int, segment_length: int) -> list[list[tuple[int, int]]]:
    schedule: list[list[tuple[int, int]]] = [[] for _ in range(lanes)]
    load = np.zeros(lanes, np.int64)
    for document in np.argsort(documents[:, 0] - documents[:, 1], kind="stable"):
        lane = int(load.argmin())
        part = (int(documents[document, 0]), int(documents[document, 1]))
        schedule[lane].append(part)
        load[lane] += _segments(part, segment_length)
    return schedule


def _check_shape(lanes: int, segment_length: int, protocol: str, shift: int) -> None:
    assert shift in (0, 1)
    if lanes < 1:
        raise InputError(f"The number of lanes is {lanes}; it must be at least 1.")
    if segment_length < 1:
        raise InputError(f"The segment length is {segment_length}; it must be at least 1.")
    if protocol not in get_args(Protocol):
        raise InputError(f'The protocol is {protocol!r}; it must be "published" or "document".')
