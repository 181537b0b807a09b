"""In which order a training epoch takes the documents of a split: drawn from the seed and the epoch alone.

One file of tokens: all its documents are shuffled together. Many: the shards are shuffled, and the documents inside
each, so that an epoch needs the starts of one shard at a time, however many documents there are.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from remanence.data.corpus import Split
from remanence.data.shards import Starts
from remanence.errors import InputError


class Order(Protocol):
    """The documents of a split, numbered, in an order of their own for every epoch."""

    def __len__(self) -> int:
        """Documents of an epoch; some of a divided split may be too short to be read."""
        ...

    def arrange(self, seed: int, epoch: int) -> None: ...

    def number(self, place: int) -> int:
        """Which document comes at a place of the order."""
        ...

    def part(self, number: int) -> tuple[int, int] | None:
        """Where the inputs of a document begin and end in the split; None where it has nothing to score."""
        ...


def order_of(split: Split, shift: int) -> Order:
    """The order for training on a split, of which what follows `shift` tokens on is scored."""
    if isinstance(split.documents, Starts) and len(split.documents.shards) > 1:
        return Divided(split, split.documents, shift)
    return Whole(split, shift)


class Whole:
    """All documents that have a token to score, shuffled together."""

    def __init__(self, split: Split, shift: int) -> None:
        self._parts = document_parts(split, shift)
        self._order = np.arange(len(self._parts))

    def __len__(self) -> int:
        return len(self._parts)

    def arrange(self, seed: int, epoch: int) -> None:
        self._order = np.random.default_rng([seed, epoch]).permutation(len(self._parts))

    def number(self, place: int) -> int:
        return int(self._order[place])

    def part(self, number: int) -> tuple[int, int] | None:
        begin, end = self._parts[number]
        return int(begin), int(end)


class Divided:
    """Shards shuffled, then documents inside each."""

    def __init__(self, split: Split, starts: Starts, shift: int) -> None:
        self._split = split
        self._starts = starts
        self._shift = shift
        self._counts = starts.counts()
        self._drawn = (0, 0)
        self._shards = np.arange(len(starts.shards))
        self._edges = self._counts
        self._inside: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return int(self._counts[-1])

    def arrange(self, seed: int, epoch: int) -> None:
        self._drawn = (seed, epoch)
        self._shards = np.random.default_rng([seed, epoch]).permutation(len(self._starts.shards))
        self._edges = np.concatenate([[0], np.cumsum(np.diff(self._counts)[self._shards])])
        self._inside = None

    def number(self, place: int) -> int:
        turn = int(np.searchsorted(self._edges, place, side="right")) - 1
        shard = int(self._shards[turn])
        if self._inside is None or self._inside[0] != shard:
            count = int(self._counts[shard + 1] - self._counts[shard])
            # The draw of a shard is its own, so that a position in an epoch needs no other.
            self._inside = shard, np.random.default_rng([*self._drawn, shard]).permutation(count)
        return int(self._counts[shard] + self._inside[1][place - int(self._edges[turn])])

    def part(self, number: int) -> tuple[int, int] | None:
        shard = int(np.searchsorted(self._counts, number, side="right")) - 1
        begin, end = self._starts.range(shard, number - int(self._counts[shard]))
        found = trimmed(np.array([[begin, end]]), self._split, self._shift)
        return None if not len(found) else (int(found[0, 0]), int(found[0, 1]))


def document_parts(split: Split, shift: int) -> np.ndarray:
    """(n, 2) where the inputs of each document that has a token to score begin and end, in the order of the split."""
    edges = np.append(split.documents, len(split)).astype(np.int64)
    return trimmed(np.stack([edges[:-1], edges[1:]], 1), split, shift)


def least(split: Split, shift: int) -> int:
    """Tokens that a document must have for one to be scored."""
    return 1 + (shift or split.start_token is not None)


def trimmed(documents: np.ndarray, split: Split, shift: int) -> np.ndarray:
    """(n, 2) the inputs of those documents that have a token to score."""
    documents = documents[documents[:, 1] - documents[:, 0] >= least(split, shift)]
    return documents + ([0, -1] if shift else [int(split.start_token is not None), 0])


def nothing_to_read(split: Split) -> InputError:
    """What to say when an epoch holds no document that has a token to score."""
    return InputError(
        f"No document of the {split.name} split is long enough to be scored; take more text or the protocol "
        '"published".'
    )
