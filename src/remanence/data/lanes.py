"""Lanes: a split of a corpus read as B token streams side by side, one segment of T tokens at a time.

Two protocols, for training and for evaluation:

    published   the split is one stream, memory is never forgotten inside it (Transformer-XL, LaMemo)
    document    a lane reads whole documents and forgets where one starts

Shapes
    B   lanes
    T   segment
    N   tokens in the split
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from remanence.data.corpus import Split
from remanence.errors import InputError

Protocol = Literal["published", "document"]


@dataclass(frozen=True)
class Batch:
    """One segment of every lane."""

    tokens: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    """The token that follows; -1 where nothing is scored."""
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
    last segment of a document is padded.

    Raises InputError when the split is too short for these lanes.
    """

    def __init__(
        self, split: Split, lanes: int, segment_length: int, protocol: Protocol = "published", seed: int = 0
    ) -> None:
        _check_shape(lanes, segment_length, protocol)
        if seed < 0:
            raise InputError(f"The seed of the lanes is {seed}; it must be 0 or more.")
        self.split = split
        self.lanes = lanes
        self.segment_length = segment_length
        self.protocol = protocol
        self.seed = seed
        self.epoch = 0
        """Passes over the split that were completed."""
        self.position = 0
        """How far this pass has come: tokens of every lane ("published"), documents begun ("document")."""
        if protocol == "published":
            self._column = len(split) // lanes
            if self._column <= segment_length:
                raise InputError(
                    f"The {split.name} split has {len(split)} tokens and {lanes} lanes with segments of "
                    f"{segment_length} need {lanes * (segment_length + 1)}; take fewer lanes, shorter segments or "
                    "more text."
                )
        else:
            self._documents = _scorable_documents(split)
            if len(self._documents) < lanes:
                raise InputError(
                    f"The {split.name} split has {len(self._documents)} documents of two or more tokens and {lanes} "
                    'lanes need one each; take fewer lanes or the protocol "published".'
                )
            self._reading = np.full(lanes, -1, np.int64)
            """Which document each lane reads; -1 before the first."""
            self._read = np.zeros(lanes, np.int64)
            """How many tokens of it the lane has read."""
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
            if state.get(key) != mine:
                raise InputError(
                    f"The saved lane position has {key} {state.get(key)!r} and these lanes have {mine!r}; "
                    "resume with the settings and the corpus it was saved with."
                )
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        if self.protocol == "document":
            self._reading = np.array(state["reading"], np.int64)
            self._read = np.array(state["read"], np.int64)
        self._arrange()

    @staticmethod
    def once(split: Split, lanes: int, segment_length: int, protocol: Protocol = "published") -> Once:
        """Lanes for evaluation, read once: see `Once`."""
        return Once(split, lanes, segment_length, protocol)

    def _shape(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "lanes": self.lanes,
            "segment_length": self.segment_length,
            "tokens": len(self.split),
        }

    def _arrange(self) -> None:
        """Draw what is random in this epoch, from the seed and the epoch alone."""
        generator = np.random.default_rng([self.seed, self.epoch])
        if self.protocol == "published":
            self._offsets = generator.integers(0, self._column, self.lanes)
        else:
            self._order = generator.permutation(len(self._documents))

    def _next_published(self) -> Batch:
        if self.position + self.segment_length >= self._column:
            self.epoch, self.position = self.epoch + 1, 0
            self._arrange()
        steps = self._offsets[:, None] + self.position + np.arange(self.segment_length + 1)
        window = self.split.tokens[steps % self._column + self._column * np.arange(self.lanes)[:, None]]
        starts = np.full(self.lanes, self.position == 0)
        self.position += self.segment_length
        return _batch(self.split, window, starts, None)

    def _next_document(self) -> Batch:
        starts = np.zeros(self.lanes, bool)
        for lane in range(self.lanes):
            if self._reading[lane] < 0 or self._read[lane] + 1 >= self._length(lane):
                self._reading[lane] = self._take()
                self._read[lane] = 0
                starts[lane] = True
        begins = self._documents[self._reading, 0] + self._read
        ends = self._documents[self._reading, 1]
        lengths = np.minimum(ends - begins - 1, self.segment_length)
        self._read += lengths
        return _batch(self.split, _windows(self.split, begins, self.segment_length), starts, lengths)

    def _length(self, lane: int) -> int:
        begin, end = self._documents[self._reading[lane]]
        return int(end - begin)

    def _take(self) -> int:
        """The next document of the shuffled order."""
        if self.position == len(self._order):
            self.epoch, self.position = self.epoch + 1, 0
            self._arrange()
        self.position += 1
        return int(self._order[self.position - 1])


class Once:
    """Every token of a split scored exactly once: an iterable of batches that knows its length.

    "published": every token but the first of the stream is scored. The lanes share the stream evenly, in order; the
    first token a lane reads is the last one that the lane before it scores, and each starts with an empty memory.

    "document": every token but the first of each document is scored. Documents go to the lanes longest first, each to
    the lane that is free first, so that few lanes idle.

    A lane that has nothing left has length 0. No batch is wider than the longest text that a lane reads at once,
    however long segments may be: the rest would be padding for every lane.

    Raises InputError when the split is too short for these lanes.
    """

    def __init__(self, split: Split, lanes: int, segment_length: int, protocol: Protocol = "published") -> None:
        _check_shape(lanes, segment_length, protocol)
        self.split = split
        self.lanes = lanes
        self.segment_length = segment_length
        self.protocol = protocol
        if protocol == "published":
            scored = len(split) - 1
            if scored < lanes:
                raise InputError(
                    f"The {split.name} split has {_count(len(split), 'token')} and {_count(lanes, 'lane')} "
                    f"{'needs' if lanes == 1 else 'need'} at least {lanes + 1:,}; take fewer lanes or more text."
                )
            edges = np.arange(lanes + 1, dtype=np.int64) * scored // lanes
            self._schedule = [[(int(begin), int(end) + 1)] for begin, end in pairwise(edges)]
        else:
            documents = _scorable_documents(split)
            if not len(documents):
                raise InputError(
                    f"No document of the {split.name} split has two tokens, so there is nothing to score; "
                    'take more text or the protocol "published".'
                )
            self._schedule = _share(documents, lanes, segment_length)
        longest = max(end - begin - 1 for parts in self._schedule for begin, end in parts)
        self._width = min(segment_length, longest)

    def __len__(self) -> int:
        """Batches in one pass."""
        return max(sum(_segments(part, self.segment_length) for part in parts) for parts in self._schedule)

    @property
    def scored(self) -> int:
        """Tokens scored in one pass."""
        return sum(end - begin - 1 for parts in self._schedule for begin, end in parts)

    def __iter__(self) -> Iterator[Batch]:
        ahead = [iter(parts) for parts in self._schedule]
        begins = np.zeros(self.lanes, np.int64)
        ends = np.zeros(self.lanes, np.int64)
        for _ in range(len(self)):
            starts = np.zeros(self.lanes, bool)
            for lane in np.flatnonzero(begins + 1 >= ends):
                part = next(ahead[lane], None)
                if part is None:
                    begins[lane] = ends[lane] = 0
                else:
                    begins[lane], ends[lane] = part
                    starts[lane] = True
            lengths = np.clip(ends - begins - 1, 0, self._width)
            window = _windows(self.split, begins, self._width)
            yield _batch(self.split, window, starts, None if (lengths == self._width).all() else lengths)
            begins = begins + lengths


def _batch(split: Split, window: np.ndarray, starts: np.ndarray, lengths: np.ndarray | None) -> Batch:
    """Inputs and targets from windows of T + 1 tokens, padding blanked out."""
    window = window.astype(np.int64)
    tokens, targets = window[:, :-1].copy(), window[:, 1:].copy()
    if lengths is None:
        split.check(window)
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(starts))
    padding = np.arange(tokens.shape[1]) >= lengths[:, None]
    tokens[padding], targets[padding] = 0, -1
    split.check(tokens)
    split.check(targets)
    return Batch(*map(torch.from_numpy, (tokens, targets, starts, lengths)))


def _windows(split: Split, begins: np.ndarray, segment_length: int) -> np.ndarray:
    """T + 1 tokens from each begin; what lies beyond the split repeats its last token and is padding to the caller."""
    return split.tokens[np.minimum(begins[:, None] + np.arange(segment_length + 1), len(split) - 1)]


def _scorable_documents(split: Split) -> np.ndarray:
    """(n, 2) begins and ends of the documents that have a token to score, in the order of the split."""
    edges = np.append(split.documents, len(split))
    documents = np.stack([edges[:-1], edges[1:]], 1)
    return documents[documents[:, 1] - documents[:, 0] >= 2]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _segments(part: tuple[int, int], segment_length: int) -> int:
    return -(-(part[1] - part[0] - 1) // segment_length)


def _share(documents: np.ndarray, lanes: int, segment_length: int) -> list[list[tuple[int, int]]]:
    schedule: list[list[tuple[int, int]]] = [[] for _ in range(lanes)]
    load = np.zeros(lanes, np.int64)
    for document in np.argsort(documents[:, 0] - documents[:, 1], kind="stable"):
        lane = int(load.argmin())
        part = (int(documents[document, 0]), int(documents[document, 1]))
        schedule[lane].append(part)
        load[lane] += _segments(part, segment_length)
    return schedule


def _check_shape(lanes: int, segment_length: int, protocol: str) -> None:
    if lanes < 1:
        raise InputError(f"The number of lanes is {lanes}; it must be at least 1.")
    if segment_length < 1:
        raise InputError(f"The segment length is {segment_length}; it must be at least 1.")
    if protocol not in get_args(Protocol):
        raise InputError(f'The protocol is {protocol!r}; it must be "published" or "document".')
