"""Tokens that lie in many files and are read as one stream, and the documents that begin in them.

    tokens     0 ........ e1 ........ e2 ........ N          e_k: the tokens of the first k shards together
    files      shard 0     shard 1     shard 2

A document may go on in the next shard; how many tokens of a shard belong to one that began before is in the manifest
(`continues`), so that where documents end is known without opening other shards. Nothing here is wholly in memory but
the table of shards: tokens are read where they are asked for, starts of documents shard by shard.

Shapes
    N   tokens of the split
    K   shards
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from remanence.errors import InputError

OPEN = 128
"""Files that are mapped at once; each map holds a file descriptor, of which systems allow about a thousand."""
INDEXES = 64
"""Shards whose starts of documents are held at once."""
MOST_DOCUMENTS = 1 << 27
"""Documents whose starts are held in memory together, 1 GiB of them, where something asks for all."""


@dataclass(frozen=True)
class Shard:
    """One file of tokens and one of the starts of documents, as the manifest describes them."""

    file: str
    """Without ".tokens" or ".documents"; may lie in the folder of a part."""
    tokens: int
    documents: int
    """Documents that begin in it."""
    continues: int = 0
    """Its first tokens that belong to a document begun in an earlier shard."""


Span = tuple[int, int, int]
"""A shard and where in it a range of tokens begins and ends."""


class Reader(Protocol):
    """How the files of shards are read."""

    def gather(self, spans: Sequence[Span], heads: Sequence[tuple[int, int]] = ()) -> list[np.ndarray]:
        """The tokens of each span; `heads` are the places, a shard and where in it, after which more is wanted soon."""
        ...

    def starts(self, shard: int) -> np.ndarray:
        """(documents,) int64 offsets in a shard at which documents begin, as the file has them."""
        ...


class Maps:
    """Shards on this machine, mapped into memory when they are used, a bounded number at once."""

    def __init__(self, folder: Path, shards: Sequence[Shard], dtype: np.dtype) -> None:
        self._folder = folder
        self._shards = shards
        self._dtype = dtype
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def gather(self, spans: Sequence[Span], heads: Sequence[tuple[int, int]] = ()) -> list[np.ndarray]:
        return [self._map(shard)[begin:end] for shard, begin, end in spans]

    def starts(self, shard: int) -> np.ndarray:
        path = self._folder / f"{self._shards[shard].file}.documents"
        try:
            return np.fromfile(path, "<i8").astype(np.int64)
        except OSError as error:
            raise _unreadable(path, error) from None

    def _map(self, shard: int) -> np.ndarray:
        with self._lock:
            if (found := self._maps.get(shard)) is not None:
                self._maps.move_to_end(shard)
                return found
            path = self._folder / f"{self._shards[shard].file}.tokens"
            try:
                found = np.memmap(path, self._dtype, mode="r")
            except (OSError, ValueError) as error:
                raise _unreadable(path, error) from None
            if len(found) != self._shards[shard].tokens:
                raise InputError(
                    f"The file {path} holds {len(found)} tokens and its manifest says {self._shards[shard].tokens}; it "
                    "was changed while it was read, so prepare the corpus again."
                )
            self._maps[shard] = found
            while len(self._maps) > OPEN:
                self._maps.popitem(last=False)
            return found


class Tokens:
    """The tokens of all shards as one read-only array of shape (N,): what is asked for is read, and nothing else."""

    ndim = 1

    def __init__(self, shards: Sequence[Shard], dtype: np.dtype, reader: Reader, length: int | None = None) -> None:
        self.dtype = dtype
        self._shards = shards
        self._edges = edges([shard.tokens for shard in shards])
        self._reader = reader
        self._length = int(self._edges[-1]) if length is None else length

    def __len__(self) -> int:
        return self._length

    @property
    def shape(self) -> tuple[int]:
        return (self._length,)

    @property
    def size(self) -> int:
        return self._length

    def __getitem__(self, places: Any) -> Any:
        """The tokens at a place, in a slice, or at an array of places of any shape.

        Places that follow one another are read as one range. With an array of shape (lanes, tokens) what follows the
        last place of each lane is fetched ahead where tokens come from afar.
        """
        if isinstance(places, slice):
            begin, end, step = places.indices(self._length)
            if step == 1:
                return self._range(begin, max(begin, end))
            places = np.arange(begin, end, step)
        places = np.asarray(places)
        if places.dtype.kind not in "iu":
            raise TypeError("places of tokens are whole numbers")
        flat = places.reshape(-1).astype(np.int64)
        flat = np.where(flat < 0, flat + self._length, flat)
        if flat.size and (int(flat.min()) < 0 or int(flat.max()) >= self._length):
            raise IndexError(f"a place lies outside the {self._length} tokens")
        taken = self._take(flat, flat.reshape(places.shape)[:, -1] if places.ndim == 2 and flat.size else flat[:0])
        return taken.reshape(places.shape) if places.ndim else taken[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self._range(0, self._length)
        return whole if dtype is None else whole.astype(dtype)

    def first(self, length: int) -> Tokens:
        """The first so many tokens, not read yet."""
        return Tokens(self._shards, self.dtype, self._reader, min(length, self._length))

    def _range(self, begin: int, end: int) -> np.ndarray:
        pieces = self._reader.gather(self._spans(begin, end))
        return np.concatenate([np.empty(0, self.dtype), *pieces]) if len(pieces) != 1 else np.array(pieces[0])

    def _take(self, places: np.ndarray, heads: np.ndarray) -> np.ndarray:
        """Tokens at places (n,), as few ranges as they form: a range goes on where a place is the last or the next."""
        step = np.diff(places)
        cuts = np.flatnonzero((step < 0) | (step > 1)) + 1
        runs = [(int(a), int(b)) for a, b in pairwise([0, *cuts.tolist(), len(places)]) if b > a]
        spans, owners = [], []
        for run, (begin, end) in enumerate(runs):
            for span in self._spans(int(places[begin]), int(places[end - 1]) + 1):
                spans.append(span)
                owners.append(run)
        ahead = [(shard, begin) for place in heads.tolist() for shard, begin, _ in self._spans(place, place + 1)]
        pieces: list[list[np.ndarray]] = [[] for _ in runs]
        for run, piece in zip(owners, self._reader.gather(spans, ahead), strict=True):
            pieces[run].append(piece)
        taken = np.empty(len(places), self.dtype)
        for (begin, end), held in zip(runs, pieces, strict=True):
            block = held[0] if len(held) == 1 else np.concatenate(held)
            taken[begin:end] = block[places[begin:end] - places[begin]]
        return taken

    def _spans(self, begin: int, end: int) -> list[Span]:
        spans = []
        shard = int(np.searchsorted(self._edges, begin, side="right")) - 1
        while begin < end:
            first, last = int(self._edges[shard]), int(self._edges[shard + 1])
            spans.append((shard, begin - first, min(end, last) - first))
            begin = last
            shard += 1
        return spans


class Starts:
    """Where documents begin, shard by shard; as a whole array of numbers only where something asks for that."""

    def __init__(self, shards: Sequence[Shard], reader: Reader, name: str) -> None:
        self.shards = shards
        self._reader = reader
        self._name = name
        self._edges = edges([shard.tokens for shard in shards])
        self._counts = edges([shard.documents for shard in shards])
        self._held: OrderedDict[int, np.ndarray] = OrderedDict()
        self._whole: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self._counts[-1])

    def __getitem__(self, places: Any) -> Any:
        return self.whole()[places]

    def __lt__(self, other: Any) -> np.ndarray:
        return self.whole() < other

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.whole() if dtype is None else self.whole().astype(dtype)

    def whole(self) -> np.ndarray:
        """(documents,) offsets of all shards in the split. Raises InputError where they would not fit into memory."""
        if self._whole is None:
            if len(self) > MOST_DOCUMENTS:
                raise InputError(
                    f"The {self._name} split has {len(self):,} documents and this needs all their places at once, for "
                    f"which {MOST_DOCUMENTS:,} are the most; take a smaller split for it."
                )
            self._whole = np.concatenate([self._of(shard) for shard in range(len(self.shards))])
        return self._whole

    def counts(self) -> np.ndarray:
        """(K + 1,) how many documents begin in the first k shards."""
        return self._counts

    def ranges(self, shard: int) -> np.ndarray:
        """(n, 2) where in the split the documents that begin in a shard begin and end."""
        begins = self._begins(shard)
        return np.stack([begins, np.append(begins[1:], self._end(shard))[: len(begins)]], 1)

    def range(self, shard: int, place: int) -> tuple[int, int]:
        """Where in the split the document begins and ends that is at this place of those that begin in a shard.

        The cost does not grow with the documents of the shard, once its starts are held.
        """
        begins = self._begins(shard)
        if not 0 <= place < len(begins):
            raise IndexError(f"{len(begins)} documents begin in the shard, and none is at place {place}")
        return int(begins[place]), int(begins[place + 1]) if place + 1 < len(begins) else self._end(shard)

    def _begins(self, shard: int) -> np.ndarray:
        """(n,) where in the split the documents of a shard begin; those of the last shards asked for are held."""
        begins = self._held.get(shard)
        if begins is None:
            begins = self._held[shard] = self._of(shard)
            while len(self._held) > INDEXES:
                self._held.popitem(last=False)
        self._held.move_to_end(shard)
        return begins

    def _end(self, shard: int) -> int:
        """Where in the split the last document ends that begins in a shard."""
        after = shard + 1
        # Past shards that lie wholly in a document begun before.
        while after < len(self.shards) and self.shards[after].continues == self.shards[after].tokens:
            after += 1
        return int(self._edges[after]) + (self.shards[after].continues if after < len(self.shards) else 0)

    def _of(self, shard: int) -> np.ndarray:
        about = self.shards[shard]
        starts = self._reader.starts(shard)
        first = int(starts[0]) if len(starts) else about.tokens
        fits = len(starts) == about.documents and first == about.continues
        if not fits or (np.diff(starts) <= 0).any() or (len(starts) and not 0 <= starts[-1] < about.tokens):
            raise InputError(
                f"The file {about.file}.documents of the {self._name} split does not fit its tokens; prepare the "
                "corpus again."
            )
        return starts + self._edges[shard]


def shards_of(name: str, entry: Mapping[str, Any]) -> list[Shard]:
    """The shards of a split as its checked entry in a manifest has them; one where it is not divided."""
    if "shards" not in entry:
        return [Shard(name, entry["counts"]["tokens"], entry["documents"])]
    return [
        Shard(each["file"], each["tokens"], each["documents"], each.get("continues", 0)) for each in entry["shards"]
    ]


def edges(sizes: Iterable[int]) -> np.ndarray:
    """(K + 1,) where each of K consecutive ranges begins, and where the last ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.fromiter(sizes, np.int64))])


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"The file {path} of the corpus cannot be read ({getattr(error, 'strerror', None) or error}); restore it or "
        "prepare the corpus again."
    )
