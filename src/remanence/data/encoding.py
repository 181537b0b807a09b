"""Turning parts of a spool into tokens, on all cores, in bounded memory.

A part is cut into tasks, ranges of a few megabytes that consist of pieces. A piece is a document, or a stretch of a
long one that was cut where no tokenizer here looks across: after a lone newline or before a lone space. The cuts depend
on the text alone, so the tokens do not depend on the number of cores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from remanence.data.counting import count, white_space
from remanence.data.spool import Part, Spool, character_start
from remanence.data.tokenizers import Tokenizer
from remanence.data.tokenizers.byte import ByteTokenizer
from remanence.data.tokenizers.word import WordTokenizer
from remanence.data.vocabulary import Symbol, count_symbols
from remanence.errors import InputError

TASK = 4 << 20
"""Bytes of text handed to a core at once."""
PIECE = 1 << 20
"""Bytes after which a document is cut at the next good place."""
_REACH = 1 << 16
"""Bytes searched for a good place."""


class Encoder(Protocol):
    """How a tokenizer encodes the pieces of a corpus."""

    @property
    def drop(self) -> bytes:
        """Bytes that are left out of the text."""
        ...

    def encode(self, piece: bytes, ends_document: bool) -> np.ndarray:
        """Ids of a piece. Raises UnicodeDecodeError where the text is not UTF-8, InputError for what is unknown."""
        ...

    def unknown(self, ids: np.ndarray) -> int | None:
        """How many ids stand for unknown words; None where there is no such id."""
        ...


@dataclass(frozen=True)
class _Bytes:
    tokenizer: ByteTokenizer
    drop: bytes

    def encode(self, piece: bytes, ends_document: bool) -> np.ndarray:
        return self.tokenizer.encode_bytes(piece.translate(None, self.drop))

    def unknown(self, ids: np.ndarray) -> int | None:
        return None


@dataclass(frozen=True)
class _Text:
    tokenizer: Tokenizer
    drop: bytes = b""

    def encode(self, piece: bytes, ends_document: bool) -> np.ndarray:
        return self.tokenizer.encode(piece.decode("utf-8"))

    def unknown(self, ids: np.ndarray) -> int | None:
        return None


@dataclass(frozen=True)
class _Words:
    tokenizer: WordTokenizer
    drop: bytes = b""

    def encode(self, piece: bytes, ends_document: bool) -> np.ndarray:
        text = piece.decode("utf-8")
        # The last line of a document ends there, whether or not a newline says so.
        return self.tokenizer.encode(text + "\n" if ends_document and not text.endswith("\n") else text)

    def unknown(self, ids: np.ndarray) -> int | None:
        return None if self.tokenizer.unknown is None else int((ids == self.tokenizer.unknown).sum())


def encoder_for(tokenizer: Tokenizer, drop: bytes = b"") -> Encoder | None:
    """How to encode a corpus with a tokenizer; None when the bytes of the text are the tokens as they stand."""
    if isinstance(tokenizer, ByteTokenizer):
        return None if tokenizer.symbols is None and not drop else _Bytes(tokenizer, drop)
    if isinstance(tokenizer, WordTokenizer):
        return _Words(tokenizer)
    return _Text(tokenizer)


@dataclass(frozen=True)
class Task:
    """A range of a file of text that one core encodes."""

    path: str
    begin: int
    sizes: list[int]
    """Bytes of each piece; pieces follow one another."""
    begins_document: list[bool]
    ends_document: list[bool]
    before: bytes = b""
    """The last bytes of the same document before the range."""

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.begin)
            return file.read(sum(self.sizes))

    def __len__(self) -> int:
        return sum(self.sizes)


@dataclass(frozen=True)
class Encoded:
    """What became of a task."""

    tokens: np.ndarray
    documents: np.ndarray
    """Offsets in `tokens` at which documents begin."""
    counts: dict[str, int]


def tasks(part: Part, piece: int = PIECE, task: int = TASK) -> Iterator[Task]:
    """The tasks that a part consists of, in order."""
    documents = part.documents()
    sizes: list[int] = []
    begins: list[bool] = []
    ends: list[bool] = []
    at, before, held = part.begin, b"", 0

    for begin, end in pairwise([*documents.tolist(), part.end]):
        cut = begin
        while cut < end:
            following = end if end - cut <= 2 * piece else _good_cut(part.spool, cut + piece, end)
            if held and held + following - cut > task:
                yield Task(str(part.spool.path), at, sizes, begins, ends, before)
                before = part.spool.read(max(begin, cut - 3), cut)
                sizes, begins, ends, at, held = [], [], [], cut, 0
            sizes.append(following - cut)
            begins.append(cut == begin)
            ends.append(following == end)
            held += following - cut
            cut = following
    if sizes:
        yield Task(str(part.spool.path), at, sizes, begins, ends, before)


def encode_task(task: Task, encoder: Encoder | None, dtype: np.dtype) -> Encoded:
    """Encode one task; without an encoder the bytes are the tokens."""
    data = task.read()
    edges = np.concatenate([[0], np.cumsum(task.sizes)]).astype(np.int64)
    begins = np.array(task.begins_document)
    if encoder is None:
        counts = count(data, edges[:-1][begins], task.before)
        return Encoded(np.frombuffer(data, np.uint8), edges[:-1][begins], {**counts, "tokens": len(data)})
    pieces: list[np.ndarray] = []
    kept: list[bytes] = []
    drop = encoder.drop
    for begin, end, last in zip(edges[:-1].tolist(), edges[1:].tolist(), task.ends_document, strict=True):
        try:
            pieces.append(encoder.encode(data[begin:end], last).astype(dtype))
        except UnicodeDecodeError as error:
            raise NotText(task.path, task.begin + begin + error.start) from None
        if drop:
            kept.append(data[begin:end].translate(None, drop))
    tokens = np.concatenate(pieces)
    token_edges = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
    if drop:
        data = b"".join(kept)
        edges = np.concatenate([[0], np.cumsum([len(piece) for piece in kept])]).astype(np.int64)
    counted = edges[:-1][begins]
    counts = {**count(data, counted[counted < len(data)], task.before.translate(None, drop)), "tokens": len(tokens)}
    unknown = encoder.unknown(tokens)
    if unknown is not None:
        counts["unknown"] = unknown
    return Encoded(tokens, token_edges[:-1][begins], counts)


def count_task(task: Task, kind: Symbol) -> dict[str, int]:
    """How often each symbol occurs in a task, in order of first appearance."""
    data, begin, counts = task.read(), 0, Counter[str]()
    for size in task.sizes:
        try:
            counts.update(count_symbols(kind, data[begin : begin + size]))
        except UnicodeDecodeError as error:
            raise NotText(task.path, task.begin + begin + error.start) from None
        begin += size
    return dict(counts)


class NotText(Exception):
    """Bytes at an offset of a spool are not UTF-8."""

    def __init__(self, path: str, offset: int) -> None:
        super().__init__(path, offset)
        self.path = path
        self.offset = offset


def not_text(error: NotText, spools: Iterable[Spool]) -> InputError:
    """The sentence for a user whose text is not UTF-8."""
    spool = next(spool for spool in spools if str(spool.path) == error.path)
    name, byte = spool.origin(error.offset)
    return InputError(
        f"{name} is not UTF-8 text (near byte {byte}); convert it to UTF-8, leave it out or prepare with the byte "
        "tokenizer."
    )


def _good_cut(spool: Spool, target: int, end: int) -> int:
    """A place at or after `target` over which no tokenizer looks: after a lone newline, else before a lone space.

    Where there is neither close by, before any white space, else between two characters.
    """
    target = character_start(spool, target)
    window = spool.read(target, min(target + _REACH, end))
    block = np.frombuffer(window, np.uint8)
    space = white_space(window)
    # White space may be cut by the end of the window, and is up to three bytes long.
    alone = np.flatnonzero(~space[:-5] & space[1:-4] & ~space[2:-3]) + 1
    newlines, blanks = alone[block[alone] == 10], alone[block[alone] == 32]
    if len(newlines):
        return target + int(newlines[0]) + 1
    if len(blanks):
        return target + int(blanks[0])
    any_space = np.flatnonzero(~space[:-4] & space[1:-3]) + 1
    return target + int(any_space[0]) if len(any_space) else target
