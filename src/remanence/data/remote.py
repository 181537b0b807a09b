"""A prepared corpus at an address that fsspec reads: an object store, a web server, memory.

Tokens come in ranges, through blocks that are kept as long as lanes need them:

    lane 1   [block][block]->         a lane reads one block after the other; the next one is fetched
    lane 2        [block][block]->    in the background while this one is read

The blocks least recently used go first once the cache is full. With room for two blocks a lane, nothing that a lane
reads is fetched twice. A connection that breaks is tried again for PATIENCE seconds, with growing pauses.

Names come from a checked manifest and are appended to the address; credentials are found by fsspec's own means
(environment, files of the provider's tools), never in the address.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from remanence.data.places import CHUNK, LARGEST_MANIFEST
from remanence.data.shards import Reader, Shard, Span
from remanence.data.tokenizers import Tokenizer, load_tokenizer
from remanence.errors import InputError, SettingWarning
from remanence.files import LARGEST_JSON, parse_json

BLOCK = 1 << 18
"""Bytes of a block: long enough that a lane asks seldom, short enough that many lanes fit."""
CACHE = 1 << 30
"""Bytes of blocks that are kept, unless REMANENCE_READ_CACHE says another number of MiB."""
THREADS = 16
"""Requests at once."""
PATIENCE = 300.0
"""Seconds for which a place that fails is tried again."""
PAUSE = 0.5
"""Seconds before the second try; each pause is twice the one before, up to LONGEST."""
LONGEST = 15.0
_TOKENIZER_FILES = {"char": "vocabulary.json", "word": "vocabulary.json", "bpe": "tokenizer.json"}


class Remote:
    """A folder at an address. Raises InputError where fsspec, or what it needs for the address, is missing."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise InputError(
                f"The address of a corpus ({parts.scheme}://{parts.hostname or ''}...) has a password or a query in "
                "it; give the plain address, and credentials as the tools of the provider take them."
            )
        self.url = url.rstrip("/")
        self._files, self._root = _open(self.url)
        self._sizes: dict[str, int | None] = {}

    def manifest(self) -> Any:
        return self._parsed(
            "manifest.json", self._text("manifest.json", LARGEST_MANIFEST), "The manifest of the corpus"
        )

    def check(self, shard: Shard, dtype: np.dtype) -> None:
        """Nothing: sizes are looked at when a shard is first read, since each costs a request."""

    def reader(self, shards: Sequence[Shard], dtype: np.dtype) -> Reader:
        return _Ranges(self, shards, dtype)

    def chunks(self, name: str) -> Iterator[bytes]:
        size = self.size(name)
        if size is None:
            raise InputError(f"The server of {self.url} does not tell how long {name} is; use one that does.")
        for begin in range(0, size, CHUNK):
            yield self.range(name, begin, min(begin + CHUNK, size))

    def tokenizer(self) -> Tokenizer:
        with tempfile.TemporaryDirectory(prefix="remanence-") as folder:
            settings = self._text("tokenizer/settings.json")
            Path(folder, "settings.json").write_bytes(settings)
            told = self._parsed("tokenizer/settings.json", settings, "The settings file of the tokenizer")
            kind = told.get("kind") if isinstance(told, dict) else None
            beside = {**_TOKENIZER_FILES, "subword": "tokenizer.json"}.get(kind if isinstance(kind, str) else "")
            if beside is not None:
                Path(folder, beside).write_bytes(self._text(f"tokenizer/{beside}"))
            return load_tokenizer(folder)

    @cached_property
    def blocks(self) -> Blocks:
        """The cache that all splits share."""
        return Blocks(self, _cache_size())

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where the server does not tell."""
        if name not in self._sizes:
            size = self._patiently(name, lambda path: self._files.info(path).get("size"))
            self._sizes[name] = size if isinstance(size, int) else None
        return self._sizes[name]

    def range(self, name: str, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of a file. Raises InputError once patience is at its end."""

        def fetch(path: str) -> bytes:
            data = self._files.cat_file(path, start=begin, end=end)
            if len(data) > end - begin:
                raise InputError(
                    f"{self.url}/{name} was asked for {end - begin} bytes and gave {len(data)}: the server does not "
                    "answer range requests; use one that does, or copy the corpus to a folder."
                )
            if len(data) < end - begin:
                raise OSError(f"the connection ended after {len(data)} of {end - begin} bytes")
            return data

        return self._patiently(name, fetch) if end > begin else b""

    def demand(self, name: str, size: int) -> None:
        """Raise InputError unless a file has the size that the manifest says, as far as the server tells."""
        found = self.size(name)
        if found is not None and found != size:
            raise InputError(
                f"The file {self.url}/{name} has {found} bytes and its manifest says {size}; it was cut short or "
                "altered, so copy it there again."
            )

    def _text(self, name: str, most: int = LARGEST_JSON) -> bytes:
        """A small file as a whole."""
        size = self.size(name)
        if size is None or size > most:
            told = "does not tell its size" if size is None else f"is {size:,} bytes long"
            raise InputError(f"{self.url}/{name} {told}; {most:,} bytes are the most that are read.")
        return b"".join(self.chunks(name))

    def _parsed(self, name: str, data: bytes, what: str) -> Any:
        try:
            return parse_json(data.decode("utf-8"))
        except ValueError as error:
            raise InputError(
                f"{what} at {self.url}/{name} is not valid JSON ({error}); copy the corpus there again."
            ) from None

    def _patiently(self, name: str, ask: Any) -> Any:
        """What `ask` gives, tried again while the place fails in a way that may pass."""
        given_up, pause, tries = time.monotonic() + PATIENCE, PAUSE, 0
        while True:
            tries += 1
            try:
                return ask(f"{self._root}/{name}")
            except InputError:
                raise
            except Exception as error:  # Every library below raises errors of its own for a lost connection.
                if isinstance(error, PermissionError) or _status(error) in (401, 403):
                    raise InputError(
                        f"{self.url}/{name} may not be read ({_told(error)}); check the credentials that fsspec finds."
                    ) from None
                if isinstance(error, FileNotFoundError) and _is_missing(error):
                    raise InputError(
                        f"There is no file {self.url}/{name}; check the address, or copy the whole corpus there."
                    ) from None
                if _lacks_credentials(error):
                    raise InputError(
                        f"{self.url} needs credentials ({_told(error)}); give them as the tools of the provider do."
                    ) from None
                if time.monotonic() + pause > given_up:
                    raise InputError(
                        f"{self.url}/{name} could not be read in {tries} tries over {PATIENCE:.0f} seconds "
                        f"({_told(error)}); check the connection and start again, which goes on from the last "
                        "checkpoint."
                    ) from None
            time.sleep(pause)
            pause = min(2 * pause, LONGEST)


class Blocks:
    """Blocks of remote files, fetched by threads and kept while there is room.

    The threads are daemons: nothing that is fetched ahead keeps a program from ending.
    """

    def __init__(self, place: Remote, capacity: int, block: int | None = None) -> None:
        self.block = block or BLOCK
        self.requests = 0
        """Ranges that were asked for, tries that failed not counted."""
        self.bytes = 0
        """Bytes that came."""
        self._place = place
        self._most = max(1, capacity // self.block)
        self._held: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._jobs: queue.SimpleQueue[tuple[str, int, int, Future[bytes]]] = queue.SimpleQueue()
        self._threads = 0
        self._lock = threading.Lock()
        self._warned = False

    def gather(
        self, wanted: Sequence[tuple[str, int, int, int]], ahead: Sequence[tuple[str, int, int]] = ()
    ) -> list[bytes]:
        """Bytes of each (file, its size, begin, end); `ahead` are (file, size, offset) of blocks wanted soon."""
        with self._lock:
            asked = [
                (begin, end, [self._ask(name, size, index) for index in range(begin // self.block, self._last(end))])
                for name, size, begin, end in wanted
            ]
            if 2 * len(ahead) <= self._most:
                for name, size, offset in ahead:
                    self._ask(name, size, offset // self.block)
            elif not self._warned:
                self._warned = True
                warnings.warn(
                    f"The cache of {self._most * self.block >> 20} MiB has no room for two blocks of {len(ahead)} "
                    "lanes, so nothing is fetched ahead; set REMANENCE_READ_CACHE to more MiB.",
                    SettingWarning,
                    stacklevel=2,
                )
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        pieces = []
        for begin, end, futures in asked:
            data = b"".join(future.result() for future in futures)
            skipped = begin - begin // self.block * self.block
            pieces.append(data[skipped : skipped + end - begin])
        return pieces

    def _last(self, end: int) -> int:
        return -(-end // self.block)

    def _ask(self, name: str, size: int, index: int) -> Future[bytes]:
        """A block that is there or on its way; one that failed is asked for again."""
        key = name, index
        found = self._held.get(key)
        if found is None or (found.done() and found.exception() is not None):
            found = self._held[key] = Future()
            self._jobs.put((name, size, index, found))
            if self._threads < THREADS:
                self._threads += 1
                threading.Thread(target=self._work, name=f"read-{self._threads}", daemon=True).start()
        self._held.move_to_end(key)
        return found

    def _work(self) -> None:
        while True:
            name, size, index, future = self._jobs.get()
            begin = index * self.block
            try:
                self._place.demand(name, size)
                data = self._place.range(name, begin, min(begin + self.block, size))
            except BaseException as error:
                future.set_exception(error)
                continue
            with self._lock:
                self.requests += 1
                self.bytes += len(data)
            future.set_result(data)


class _Ranges:
    """Shards read through the blocks of a place."""

    def __init__(self, place: Remote, shards: Sequence[Shard], dtype: np.dtype) -> None:
        self._place = place
        self._shards = shards
        self._dtype = dtype

    def gather(self, spans: Sequence[Span], heads: Sequence[tuple[int, int]] = ()) -> list[np.ndarray]:
        width = self._dtype.itemsize
        wanted = [(*self._file(shard), begin * width, end * width) for shard, begin, end in spans]
        ahead = [each for shard, at in heads if (each := self._next(shard, at * width)) is not None]
        return [np.frombuffer(data, self._dtype) for data in self._place.blocks.gather(wanted, ahead)]

    def starts(self, shard: int) -> np.ndarray:
        name, size = f"{self._shards[shard].file}.documents", self._shards[shard].documents * 8
        self._place.demand(name, size)
        pieces = [self._place.range(name, begin, min(begin + CHUNK, size)) for begin in range(0, size, CHUNK)]
        return np.frombuffer(b"".join(pieces), "<i8").astype(np.int64)

    def _file(self, shard: int) -> tuple[str, int]:
        return f"{self._shards[shard].file}.tokens", self._shards[shard].tokens * self._dtype.itemsize

    def _next(self, shard: int, offset: int) -> tuple[str, int, int] | None:
        """The beginning of the block after the one that holds an offset, perhaps that of the next shard."""
        name, size = self._file(shard)
        offset = (offset // self._place.blocks.block + 1) * self._place.blocks.block
        if offset < size:
            return name, size, offset
        return (*self._file(shard + 1), 0) if shard + 1 < len(self._shards) else None


def _open(url: str) -> tuple[Any, str]:
    """The file system of an address and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise InputError(f"A corpus at {url} is read through fsspec; install `remanence[remote]`.") from None
    try:
        files, root = url_to_fs(url)
    except ImportError as error:
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
        needed = package.get(url.partition("://")[0], "the package that fsspec names")
        raise InputError(f"A corpus at {url} needs {needed} beside fsspec ({error}); install it.") from None
    except ValueError as error:
        raise InputError(f"{url} is no address that fsspec reads ({error}); give a folder or another one.") from None
    return files, root.rstrip("/")


def _cache_size() -> int:
    given = os.environ.get("REMANENCE_READ_CACHE")
    if given is None:
        return CACHE
    with suppress(ValueError):
        if (size := int(given)) > 0:
            return size << 20
    raise InputError(f"REMANENCE_READ_CACHE is {given!r}; it must be a whole number of MiB, at least 1.")


def _is_missing(error: FileNotFoundError) -> bool:
    """Whether a file is not there, rather than its server: fsspec says the same of both and keeps the cause."""
    cause = error.__cause__
    return cause is None or isinstance(cause, FileNotFoundError) or _status(error) in (404, 410)


def _status(error: Exception) -> int:
    """The HTTP status that an error tells of, itself or by its cause; 0 where there is none."""
    return getattr(error, "status", 0) or getattr(error.__cause__, "status", 0)


def _lacks_credentials(error: Exception) -> bool:
    return type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")


def _told(error: Exception) -> str:
    return (str(error).split("\n")[0] or type(error).__name__)[:200]
