"""Text gathered from all its sources into one file on the disk, and the parts of it that become splits.

Everything after gathering (training a vocabulary, counting, encoding on many cores) reads byte ranges of the spool, so
that memory stays bounded and the sources are read once.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from remanence.data.reading import Reading, read_all
from remanence.data.sources import Source
from remanence.errors import InputError

DocumentRule = Literal["file", "separator", "none"]

_LONGEST_LINE = 8 << 20
"""Bytes of one line that are held while looking for separators."""
_NEAR = 1 << 16
"""Bytes searched for a good place to cut."""


@dataclass
class Spool:
    """Text on the disk, where its documents begin, and which source each byte came from."""

    path: Path
    size: int = 0
    documents: array[int] = field(default_factory=lambda: array("q"))
    """Ascending byte offsets at which documents begin, 0 first."""
    readings: list[Reading] = field(default_factory=list)
    origins: array[int] = field(default_factory=lambda: array("q"))
    """Byte offset at which each reading begins."""

    def origin(self, offset: int) -> tuple[str, int]:
        """The name of the source that a byte came from, and where in it, separator lines not counted."""
        index = bisect_right(self.origins, offset) - 1
        return self.readings[index].source.name, offset - self.origins[index]

    def read(self, begin: int, end: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(begin)
            return file.read(end - begin)

    def whole(self) -> Part:
        return Part(self, 0, self.size)


@dataclass(frozen=True)
class Part:
    """A byte range of a spool; its documents are those of the spool, the first one perhaps begun before."""

    spool: Spool
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin

    def documents(self) -> np.ndarray:
        """Offsets in the spool at which the documents of this part begin, its own beginning first."""
        inside = np.array(self.spool.documents, np.int64)
        inside = inside[(inside > self.begin) & (inside < self.end)]
        return np.concatenate([[self.begin], inside])


def gather(
    sources: list[Source],
    path: Path,
    rule: DocumentRule,
    separator: bytes,
    threads: int,
    advance: Callable[[int], None] = lambda size: None,
) -> Spool:
    """Write the text of all sources to `path`, one after the other, and find where documents begin.

    Lines that consist of the separator are left out. Raises InputError for a named file that is empty, or when there
    is no text at all.
    """
    spool = Spool(path)
    if rule == "none":
        spool.documents.append(0)
    with open(path, "wb") as file, closing(read_all(sources, threads, advance)) as readings:
        for reading, blocks in readings:
            spool.readings.append(reading)
            spool.origins.append(spool.size)
            pieces = _documents(blocks, separator) if rule == "separator" else ((False, block) for block in blocks)
            fresh = True
            for begins, piece in pieces:
                fresh = fresh or begins
                if not piece:
                    continue
                if fresh and rule != "none":
                    spool.documents.append(spool.size)
                fresh = False
                spool.size += file.write(piece)
            if reading.source.given and not reading.bytes:
                raise InputError(f"{reading.source.name} is empty; name a file that holds text.")
    if not spool.size:
        raise InputError("The files that were named hold no text; name at least one that does.")
    return spool


def divide(spool: Spool, fractions: dict[str, float]) -> dict[str, Part]:
    """Cut a spool into consecutive parts, as near to the fractions as the text allows.

    A cut goes to the nearest beginning of a document when that moves it by less than half the smallest part asked
    for, otherwise to the beginning of a line close by, otherwise between two characters. Raises InputError when a part
    would be empty.
    """
    names = [name for name, fraction in fractions.items() if fraction > 0]
    slack = min(fractions[name] for name in names) * spool.size * 0.49
    edges = [0]
    reached = 0.0
    for name in names[:-1]:
        reached += fractions[name]
        edges.append(_cut(spool, round(reached * spool.size), slack))
    edges.append(spool.size)
    parts = {name: Part(spool, begin, end) for name, begin, end in zip(names, edges[:-1], edges[1:], strict=True)}
    for name, part in parts.items():
        if part.end <= part.begin:
            raise InputError(
                f"The text has {spool.size} bytes, too few to give the {name} split its {fractions[name]:.4g} of it; "
                "take more text, a larger fraction or a fraction of 0."
            )
    return parts


def cut_at(spool: Spool, sizes: dict[str, int]) -> dict[str, Part]:
    """Cut a spool into parts of exactly so many bytes; the sizes sum to that of the spool."""
    parts, begin = {}, 0
    for name, size in sizes.items():
        parts[name] = Part(spool, begin, begin + size)
        begin += size
    assert begin == spool.size
    return parts


def _documents(blocks: Iterator[bytes], separator: bytes) -> Iterator[tuple[bool, bytes]]:
    """Pieces of text without separator lines; True with a piece that follows one."""
    held, line_start, follows = b"", True, False
    for block in blocks:
        held += block
        cut = held.rfind(b"\n") + 1
        if not cut and len(held) > _LONGEST_LINE:
            yield follows, held
            held, line_start, follows = b"", False, False
            continue
        for piece in _between(held[:cut], separator, line_start):
            if piece is None:
                follows = True
            else:
                yield follows, piece
                follows = False
        held, line_start = held[cut:], line_start or bool(cut)
    if held and not (line_start and held.rstrip(b"\r") == separator):
        yield follows, held


def _between(lines: bytes, separator: bytes, line_start: bool) -> Iterator[bytes | None]:
    """Runs of text in whole lines, with None for every separator line between them."""
    begin = search = 0
    while (at := lines.find(separator, search)) >= 0:
        end = at + len(separator)
        end += lines[end : end + 1] == b"\r"
        starts = line_start if at == 0 else lines[at - 1 : at] == b"\n"
        if starts and lines[end : end + 1] == b"\n":
            if at > begin:
                yield lines[begin:at]
            yield None
            begin = search = end + 1
        else:
            search = at + 1
    if begin < len(lines):
        yield lines[begin:]


def _cut(spool: Spool, target: int, slack: float) -> int:
    index = bisect_left(spool.documents, target)
    near = [offset for offset in spool.documents[max(0, index - 1) : index + 1] if offset > 0]
    best = min(near, key=lambda offset: abs(offset - target), default=0)
    if best and abs(best - target) <= slack:
        return best
    reach = int(min(_NEAR, slack))
    window = spool.read(target, min(target + reach, spool.size))
    line = window.find(b"\n") + 1
    if line and target + line < spool.size and spool.read(target - 1, target) != b"\n":
        return target + line
    return character_start(spool, target)


def character_start(spool: Spool, offset: int) -> int:
    """The first beginning of a UTF-8 character at or after an offset; the offset itself in text that is not UTF-8."""
    for skipped, byte in enumerate(spool.read(offset, offset + 4)):
        if byte & 0xC0 != 0x80:
            return offset + skipped
    return offset if spool.read(offset, offset + 4) else spool.size
