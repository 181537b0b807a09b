"""Where a prepared corpus lies: a folder of this machine, or an address that fsspec knows how to read.

data/books                        files are mapped into memory
s3://bucket/books  gs://...       read in ranges through a cache of blocks (`remote.py`)
https://host/books  file:///...   likewise
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from remanence.data.shards import Maps, Reader, Shard
from remanence.data.tokenizers import Tokenizer, load_tokenizer
from remanence.errors import InputError
from remanence.files import read_json

LARGEST_MANIFEST = 1 << 28
"""Bytes of a manifest that are read: those of about 800,000 shards."""
CHUNK = 8 << 20
"""Bytes at once where a whole file is read."""


class Place(Protocol):
    """What a corpus needs of the folder it lies in."""

    def manifest(self) -> Any:
        """The manifest, parsed and not checked. Raises InputError where there is none."""
        ...

    def check(self, shard: Shard, dtype: np.dtype) -> None:
        """Raise InputError where files are missing or of another size, as far as that costs no request for each."""
        ...

    def reader(self, shards: Sequence[Shard], dtype: np.dtype) -> Reader: ...

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a whole file."""
        ...

    def tokenizer(self) -> Tokenizer: ...


def is_url(place: str | Path) -> bool:
    """Whether this is an address rather than a folder."""
    return isinstance(place, str) and "://" in place


def place_of(folder: str | Path) -> Place:
    """The place that a folder or address names. Raises InputError where it cannot be one."""
    if isinstance(folder, str) and is_url(folder):
        from remanence.data.remote import Remote

        return Remote(folder)
    return Local(Path(folder))


class Local:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def manifest(self) -> Any:
        if not self._folder.is_dir():
            raise InputError(
                f"There is no prepared corpus at {self._folder}; make one with `remanence prepare` or check the path."
            )
        return read_json(self._folder / "manifest.json", "The manifest of the corpus", LARGEST_MANIFEST)

    def check(self, shard: Shard, dtype: np.dtype) -> None:
        sizes = {"tokens": shard.tokens * dtype.itemsize, "documents": shard.documents * 8}
        for kind, size in sizes.items():
            path = self._folder / f"{shard.file}.{kind}"
            try:
                found = path.stat().st_size if path.is_file() else None
            except OSError:
                found = None
            if found is None:
                raise InputError(f"The corpus in {self._folder} lacks its file {shard.file}.{kind}; prepare it again.")
            if found != size:
                raise InputError(
                    f"The file {path} has {found} bytes and its manifest says {size}; "
                    "it was cut short or altered, so prepare the corpus again."
                )

    def reader(self, shards: Sequence[Shard], dtype: np.dtype) -> Reader:
        return Maps(self._folder, shards, dtype)

    def chunks(self, name: str) -> Iterator[bytes]:
        with open(self._folder / name, "rb") as file:
            while block := file.read(CHUNK):
                yield block

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self._folder / "tokenizer")
