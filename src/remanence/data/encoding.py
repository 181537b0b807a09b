"""Turning parts of a spool into token files, on all cores, in bounded memory.

A part is cut into tasks, ranges of a few megabytes that consist of pieces. A piece is a document, or a stretch of a
long one that was cut where no tokenizer here looks across: after a lone newline or before a lone space. The cuts depend
on the text alone, so the tokens do not depend on the number of cores.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from remanence.data.counting import count
from remanence.data.spool import Part, Spool, character_start
from remanence.errors import InputError
from remanence.files import writing

TASK = 4 << 20
"""Bytes of text handed to a core at once."""
PIECE = 1 << 20
"""Bytes after which a document is cut at the next good place."""
_REACH = 1 << 16
"""Bytes searched for a good place."""

Answer = TypeVar("Answer")


class Encoder(Protocol):
    """How a tokenizer encodes the pieces of a corpus."""

    def encode(self, piece: bytes, ends_document: bool) -> np.ndarray:
        """Ids of a piece. Raises UnicodeDecodeError where the text is not UTF-8, InputError for what is unknown."""
        ...


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

    for begin, end in zip(documents.tolist(), [*documents[1:].tolist(), part.end]):
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
    drop = getattr(encoder, "drop", b"")
    for begin, end, last in zip(edges[:-1].tolist(), edges[1:].tolist(), task.ends_document):
        try:
            pieces.append(encoder.encode(data[begin:end], last).astype(dtype))
        except UnicodeDecodeError as error:
            raise NotText(task.begin + begin + error.start) from None
        if drop:
            kept.append(data[begin:end].translate(None, drop))
    tokens = np.concatenate(pieces)
    token_edges = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
    if drop:
        data = b"".join(kept)
        edges = np.concatenate([[0], np.cumsum([len(piece) for piece in kept])]).astype(np.int64)
    counted = edges[:-1][begins]
    counts = count(data, counted[counted < len(data)], task.before.translate(None, drop))
    return Encoded(tokens, token_edges[:-1][begins], {**counts, "tokens": len(tokens)})


class NotText(Exception):
    """Bytes at an offset of the spool are not UTF-8."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


def not_text(spool: Spool, offset: int) -> InputError:
    """The sentence for a user whose text is not UTF-8."""
    name = spool.origin(offset)
    return InputError(
        f"{name} is not UTF-8 text (byte {offset} of what was read); convert it to UTF-8, leave it out or "
        "prepare with the byte tokenizer."
    )


def write_split(
    folder: Path, name: str, encoded: Iterable[Encoded], dtype: np.dtype, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Write the token and document files of a split; returns its entry for the manifest."""
    counts: Counter[str] = Counter()
    documents = array("q")
    digest = hashlib.sha256()
    with writing(folder / f"{name}.tokens") as file:
        for result in encoded:
            block = np.ascontiguousarray(result.tokens, dtype).view(np.uint8).data
            digest.update(block)
            file.write(block)
            # A document without tokens (white space alone, say) is none: two may not begin at the same token.
            for begin in (result.documents + counts["tokens"]).tolist():
                if not documents or begin > documents[-1]:
                    documents.append(begin)
            counts.update(result.counts)
            advance(result.counts["bytes"])
    if not counts["tokens"]:
        raise InputError(f"The {name} split holds no tokens; take more text or a larger fraction.")
    while documents[-1] >= counts["tokens"]:
        documents.pop()
    offsets = np.array(documents, "<i8").tobytes()
    with writing(folder / f"{name}.documents") as file:
        file.write(offsets)
    order = ("tokens", "bytes", "characters", "words", "lines")
    return {
        "counts": {key: counts[key] for key in order} | {k: n for k, n in counts.items() if k not in order},
        "documents": len(documents),
        "sha256": {"tokens": digest.hexdigest(), "documents": hashlib.sha256(offsets).hexdigest()},
    }


def in_threads(
    function: Callable[[Task], Answer], work: Iterable[Task], threads: int
) -> Iterator[Answer]:
    """`function` of every task in order, at most twice as many of them begun as there are threads."""
    with ThreadPoolExecutor(threads, "encode") as pool:
        begun: deque[Future[Answer]] = deque()
        try:
            for task in work:
                begun.append(pool.submit(function, task))
                if len(begun) >= 2 * threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


def cores() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _good_cut(spool: Spool, target: int, end: int) -> int:
    """A place at or after `target` over which no tokenizer looks: after a lone newline, else before a lone space."""
    window = spool.read(target, min(target + _REACH, end - 1) + 1)
    block = np.frombuffer(window, np.uint8)
    space = np.isin(block, (9, 10, 11, 12, 13, 28, 29, 30, 31, 32))
    # Multi-byte characters may be white space too, so both neighbours must be ASCII.
    plain = ~space & (block < 128)
    alone = np.flatnonzero(plain[:-2] & space[1:-1] & plain[2:]) + 1
    newlines = alone[block[alone] == 10]
    spaces = alone[block[alone] == 32]
    if len(newlines):
        return target + int(newlines[0]) + 1
    if len(spaces):
        return target + int(spaces[0])
    return character_start(spool, target)
