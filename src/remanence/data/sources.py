"""Where text comes from: files, folders, patterns, standard input, archives; compressed or not."""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import lzma
import os
import queue
import sys
import sysconfig
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from remanence.errors import InputError

BLOCK = 1 << 20
"""Bytes read at once."""
STDIN = "-"

_BROKEN = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile)


@dataclass(frozen=True)
class Source:
    """One file of text, or standard input when `path` is None."""

    name: str
    """How manifests and errors call it: never a folder above what the user named."""
    path: Path | None
    member: str | None = None
    """The file inside a zip archive."""
    given: bool = False
    """Named by the user as it stands; such a file must not be empty."""
    digest: str | None = None
    """What the text must hash to, decompressed, where that is known: "sha256:..." or "md5:..."."""

    @property
    def size(self) -> int:
        """Bytes on the disk; 0 for standard input."""
        return 0 if self.path is None else self.path.stat().st_size


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


def find_sources(inputs: Iterable[str | Path]) -> list[Source]:
    """The files that inputs stand for: a file, a folder (all files in it, sorted, hidden ones left out), a pattern
    with *, ** or ? (sorted), or "-" for standard input.

    Raises InputError when one stands for nothing.
    """
    sources: list[Source] = []
    for given in inputs:
        text = os.fspath(given)
        if text == STDIN:
            if any(source.path is None for source in sources):
                raise InputError('Standard input ("-") was given twice and can be read once; give it once.')
            sources.append(Source("standard input", None, given=True))
        elif os.path.isdir(text):
            found = _files_in(Path(text))
            if not found:
                raise InputError(f"The folder {text} holds no files; check the path.")
            sources += [Source(_shown(text, path.relative_to(text)), path) for path in found]
        elif os.path.exists(text):
            sources.append(Source(_shown(text), Path(text), given=True))
        elif glob.has_magic(text):
            found = sorted(Path(path) for path in glob.glob(text, recursive=True) if os.path.isfile(path))
            if not found:
                raise InputError(f"No file fits the pattern {text}; check it, or quote it if the shell reads it first.")
            sources += [Source(_shown(str(path)), path) for path in found]
        else:
            raise InputError(f"There is no file, folder or pattern {text}; check the path.")
    if not sources:
        raise InputError('Nothing to read was named; name files, folders, patterns, a known corpus or "-".')
    return sources


def standard_library() -> list[Source]:
    """The modules of the running interpreter's standard library, sorted, without its tests.

    Left out, so that machines agree and nothing local is read: installed packages, test folders (many systems do not
    ship them), files made at build time or by the administrator, and files that are not valid UTF-8.
    """
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "config"}
    sources = []
    for path in _files_in(root, left_out):
        inside = path.relative_to(root)
        local = inside.name.startswith(("_sysconfigdata", "_sysconfig_vars")) or inside.name in (
            "sitecustomize.py",
            "usercustomize.py",
        )
        if path.suffix == ".py" and not local and _is_utf8(path):
            sources.append(Source(inside.as_posix(), path))
    if not sources:
        raise InputError(f"The standard library of this Python has no source files at {root}; use another Python.")
    return sources


def hash_source(source: Source) -> str:
    """SHA-256 of a file as it lies on the disk, as `read_all` reports it."""
    assert source.path is not None
    with open(source.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_all(
    sources: list[Source], threads: int, advance: Callable[[int], None] = lambda size: None
) -> Iterator[tuple[Reading, Iterator[bytes]]]:
    """Each source with the blocks of its text, in order, later ones being read and decompressed ahead.

    Standard input is read without a thread, so that an interrupt ends it at once. Memory is bounded: each of `threads`
    readers runs at most four blocks ahead. `advance` hears of bytes read from the disk. The reading is complete once
    its blocks are used up. Raises InputError for what cannot be decompressed, and when the text of a source does not
    have the hash it must have.
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
            archive = zipfile.ZipFile(raw)
            self._open.append(archive)
            try:
                return archive.open(source.member)
            except KeyError:
                raise InputError(f"The archive {source.name} holds no file {source.member}; fetch it anew.") from None
        if suffix == ".gz":
            return gzip.GzipFile(fileobj=raw)
        if suffix == ".xz":
            return lzma.open(raw)
        if suffix == ".bz2":
            return bz2.open(raw)
        if suffix == ".zst":
            return _open_zstandard(raw, source)
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


def _open_zstandard(raw: Any, source: Source) -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found]  # Python 3.14
    except ImportError:
        pass
    else:
        return zstd.open(raw)
    try:
        import zstandard
    except ImportError:
        raise InputError(
            f"{source.name} is compressed with Zstandard, which this Python cannot read; "
            "install `remanence[zstd]` or decompress it first."
        ) from None
    return _Zstandard(raw, zstandard.ZstdDecompressor)


class _Zstandard:
    """Zstandard frames one after the other; unlike the library's own reader it minds a frame that is cut short."""

    _FED = 1 << 12
    """Bytes unpacked at once: few, since each may stand for very many."""

    def __init__(self, raw: Any, decompressor: Callable[[], Any]) -> None:
        self._raw = raw
        self._new = lambda: decompressor().decompressobj()
        self._frame: Any = None
        self._left = b""

    def read(self, size: int) -> bytes:
        pieces, have = [], 0
        while have < size:
            packed = self._left or self._raw.read(self._FED)
            self._left = b""
            if not packed:
                if self._frame is not None:
                    raise EOFError("it ended before the end of its last frame")
                break
            self._frame = self._frame or self._new()
            pieces.append(self._frame.decompress(packed))
            have += len(pieces[-1])
            if self._frame.eof:
                self._left = self._frame.unused_data
                self._frame = None
        return b"".join(pieces)


def _files_in(folder: Path, left_out: Collection[str] = ()) -> list[Path]:
    """All files below a folder, sorted by path, without hidden files and folders and folders of some names."""
    found = []
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in left_out]
        found += [Path(here, name) for name in files if not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(folder).parts)


def _shown(given: str, inside: Path | None = None) -> str:
    """A path as the user typed it when it is relative, and without its folders when that could tell where they live."""
    path = Path(given)
    if path.is_absolute() or ".." in path.parts:
        path = Path(path.resolve().name)
    return (path if inside is None else path / inside).as_posix()


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
