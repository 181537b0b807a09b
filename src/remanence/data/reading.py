"""Reading sources: ahead of time on threads, hashed and decompressed on the way."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import queue
import struct
import sys
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import IO, Any

from remanence.data.sources import Source, hash_source
from remanence.errors import InputError

BLOCK = 1 << 20
"""Bytes read at once."""

MOST_MEMORY = 1 << 27
"""Bytes that a decompressor may take, whatever window a file asks for: xz -9 needs half of that."""

_BROKEN = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile)


@dataclass
class Reading:
    """What was learnt by reading a source to its end."""

    source: Source
    sha256: str = ""
    """Of the bytes as they lie on the disk."""
    bytes: int = 0
    """Of text, decompressed."""

    def record(self) -> dict[str, Any]:
        return {"name": self.source.name, "bytes": self.bytes, "sha256": self.sha256}


def read_all(
    sources: list[Source], threads: int, advance: Callable[[int], None] = lambda size: None
) -> Generator[tuple[Reading, Iterator[bytes]]]:
    """Each source with the blocks of its text, in order, later ones being read and decompressed ahead.

    Standard input is read without a thread, so that an interrupt ends it at once. Memory is bounded: each of `threads`
    readers runs at most four blocks ahead. `advance` hears of bytes read from the disk. The reading is complete once
    its blocks are used up. Raises InputError for what cannot be decompressed, and when the text of a source does not
    have the hash it must have. To be closed by whoever does not read to the end, which ends the threads.
    """
    stop = threading.Event()
    ahead: deque[_Pipe] = deque()
    rest = iter(sources)
    with ThreadPoolExecutor(max(1, min(threads, len(sources))), "read") as pool:
        try:
            while True:
                # A few at a time: there may be a million files.
                while len(ahead) < 2 * threads and (source := next(rest, None)) is not None:
                    ahead.append(_Pipe(source, advance, stop))
                    if source.path is not None:
                        pool.submit(ahead[-1].fill)
                if not ahead:
                    return
                pipe = ahead.popleft()
                yield pipe.reading, pipe.drain() if pipe.reading.source.path is not None else pipe.blocks()
        finally:
            stop.set()


class _Pipe:
    """Blocks of one source on their way from the thread that reads it."""

    def __init__(self, source: Source, advance: Callable[[int], None], stop: threading.Event) -> None:
        self.reading = Reading(source)
        self._advance = advance
        self._stop = stop
        self._blocks: queue.Queue[bytes | BaseException | None] = queue.Queue(4)

    def fill(self) -> None:
        """Read to the end; runs in a thread."""
        try:
            for block in self.blocks():
                self._put(block)
            self._put(None)
        except BaseException as error:
            self._put(error)

    def blocks(self) -> Iterator[bytes]:
        with closing(_Text(self.reading, self._advance)) as text:
            while block := text.read():
                yield block

    def drain(self) -> Iterator[bytes]:
        """What the thread has read, as it comes."""
        while True:
            try:
                block = self._blocks.get(timeout=0.1)
            except queue.Empty:
                assert not self._stop.is_set(), "blocks of a source are taken before the next source is asked for"
                continue
            if block is None:
                return
            if isinstance(block, BaseException):
                raise block
            yield block

    def _put(self, block: bytes | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._blocks.put(block, timeout=0.1)
            except queue.Full:
                continue
            return


@dataclass
class _Text:
    """Decompressed blocks of one source, with its hashes taken on the way."""

    reading: Reading
    advance: Callable[[int], None]
    _open: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        source = self.reading.source
        self._algorithm = source.digest.partition(":")[0] if source.digest else "sha256"
        self._wanted = hashlib.new(self._algorithm) if source.digest else None
        raw = sys.stdin.buffer if source.path is None else open(source.path, "rb")  # noqa: SIM115
        if source.path is not None:
            self._open.append(raw)
        self._raw = _Hashing(raw, self.advance)
        try:
            self._stream = self._decompressed(source)
        except BaseException as error:
            self.close()
            raise self._damaged(error) if isinstance(error, _BROKEN) else error from None

    def read(self) -> bytes:
        try:
            block = self._stream.read(BLOCK)
        except _BROKEN as error:
            raise self._damaged(error) from None
        except Exception as error:
            # bz2 raises OSError without a number, and the makers of Zstandard errors may not be installed.
            unnumbered = isinstance(error, OSError) and error.errno is None
            if unnumbered or type(error).__module__.split(".")[0] in ("zstandard", "compression"):
                raise self._damaged(error) from None
            raise
        self.reading.bytes += len(block)
        if self._wanted is not None:
            self._wanted.update(block)
        if not block:
            self._finish()
        return block

    def close(self) -> None:
        for file in reversed(self._open):
            file.close()

    def _decompressed(self, source: Source) -> Any:
        raw: Any = self._raw
        suffix = "" if source.path is None else source.path.suffix.lower()
        if source.member is not None:
            archive = _archive(raw)
            self._open.append(archive)
            try:
                kind = archive.getinfo(source.member).compress_type
                if kind not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
                    raise zipfile.BadZipFile(f"its file {source.member} is packed in a way that is not read")
                return archive.open(source.member)
            except KeyError:
                raise InputError(f"The archive {source.name} holds no file {source.member}; fetch it anew.") from None
            except (OSError, RuntimeError, ValueError, struct.error) as error:
                raise zipfile.BadZipFile(str(error)) from None
        if suffix == ".gz":
            return gzip.GzipFile(fileobj=raw)
        if suffix == ".xz":
            return _Frames(raw, lambda: lzma.LZMADecompressor(memlimit=MOST_MEMORY))
        if suffix == ".bz2":
            return bz2.open(raw)
        if suffix == ".zst":
            return _Frames(raw, _zstandard(source))
        return raw

    def _finish(self) -> None:
        source = self.reading.source
        # A decompressor may stop before the last bytes of the file, which belong to its hash.
        if source.member is None:
            while self._raw.read(BLOCK):
                pass
            self.reading.sha256 = self._raw.hash.hexdigest()
        elif source.path is not None:
            self.reading.sha256 = hash_source(source)
        if self._wanted is not None and (got := f"{self._algorithm}:{self._wanted.hexdigest()}") != source.digest:
            raise InputError(
                f"The text of {source.name} has the hash {got} and the published file has {source.digest}; it is "
                "another version or was altered, so fetch it anew."
            )

    def _damaged(self, error: BaseException) -> InputError:
        return InputError(
            f"{self.reading.source.name} cannot be decompressed ({error}); the file is damaged or cut short, so "
            "fetch or compress it anew."
        )


class _Hashing:
    """A file that is hashed while it is read from the beginning; seeking (zip archives) leaves the hash unused."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], None]) -> None:
        self._file = file
        self._advance = advance
        self.hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self.hash.update(block)
        self._advance(len(block))
        return block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _archive(raw: Any) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(raw)
    except (OSError, RuntimeError, ValueError, struct.error) as error:
        # A damaged directory leads to places before the file, or to features that nobody has.
        raise zipfile.BadZipFile(str(error)) from None


def _zstandard(source: Source) -> Callable[[], Any]:
    """Makes decompressors of one frame each. They refuse windows of more than 128 MiB by themselves."""
    try:
        from compression import zstd  # type: ignore[import-not-found]  # Python 3.14
    except ImportError:
        pass
    else:
        return lambda: zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 27})
    try:
        import zstandard
    except ImportError:
        raise InputError(
            f"{source.name} is compressed with Zstandard, which this Python cannot read; "
            "install `remanence[zstd]` or decompress it first."
        ) from None
    return lambda: zstandard.ZstdDecompressor().decompressobj()


class _Frames:
    """Frames one after the other (xz streams, Zstandard); a frame that is cut short is an error."""

    _FED = 1 << 10
    """Bytes unpacked at once: few, since each may stand for very many."""

    def __init__(self, raw: Any, decompressor: Callable[[], Any]) -> None:
        self._raw = raw
        self._new = decompressor
        self._frame: Any = None
        self._left = b""
        self._begun = False

    def read(self, size: int) -> bytes:
        pieces, have = [], 0
        while have < size:
            packed = self._left or self._raw.read(self._FED)
            self._left = b""
            if not packed:
                if self._frame is not None:
                    raise EOFError("it ended before the end of its last frame")
                break
            if self._frame is None:
                # Streams of xz may be followed by zeros, in fours.
                if self._begun and not (packed := packed.lstrip(b"\0")):
                    continue
                self._frame, self._begun = self._new(), True
            pieces.append(self._frame.decompress(packed))
            have += len(pieces[-1])
            if self._frame.eof:
                self._left = self._frame.unused_data
                self._frame = None
        return b"".join(pieces)
