"""MNIST as documents of pixels: 784 grey values in raster order after one start token.

    idx file    magic 0x00000803 · images · rows · columns (big-endian 32-bit), then a byte a pixel

Training is the published training file without its last twelfth (55,000 of 60,000 images), validation that twelfth
(5,000), test the published test file (10,000). The labels are not used.

Hashes. Those of the pixels were computed from the decompressed files; those of the compressed files, which differ from
one compression to the next, are the ones that several independent public projects state for the files of the mirrors.
"""

from __future__ import annotations

import gzip
import hashlib
import shlex
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from remanence.data.corpus import Corpus
from remanence.data.fetch import Remote, cache_folder, fetch
from remanence.data.made import Made, write
from remanence.data.settings import check_name
from remanence.data.tokenizers.number import PixelTokenizer
from remanence.errors import InputError

MAGIC = 0x0803
LABELS = 0x0801
LEVELS = (2, 16, 256)
HELD_OUT = 12
"""One image in so many of the training file is for validation."""
LARGEST_SIDE = 1024
MOST_IMAGES = 10_000_000
BLOCK = 1 << 21
"""Bytes of images read at a time; at least one image."""

FILES = ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")
PIXELS = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
)
"""SHA-256 of the two published files, decompressed."""
_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")
REMOTES = tuple(
    Remote(f"mnist/{name}", tuple(f"{mirror}/{name}" for mirror in _MIRRORS), f"sha256:{digest}", size)
    for name, digest, size in (
        (FILES[0], "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9_912_422),
        (FILES[1], "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1_648_877),
    )
)


def prepare_mnist(
    inputs: Sequence[str | Path] = (),
    out: str | Path | None = None,
    *,
    name: str | None = None,
    levels: int = 256,
    mirror: str | None = None,
    cache: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Corpus:
    """Prepare MNIST, or other images in its format. This is what `remanence prepare mnist` does.

    inputs      the folder of the files, or the training and the test file; fetched unless given
    levels      grey levels: 256 as in the files, or 16 or 2, of equal width

    Raises InputError for a file that is not such images, cut short, too large or of another size than the other.
    """
    if levels not in LEVELS:
        raise InputError(f"{levels} grey levels were asked for; choose one of {', '.join(map(str, LEVELS))}.")
    name = name or ("mnist" if levels == 256 else f"mnist-{levels}")
    check_name(name)
    train, test = (Images.open(path) for path in _files(inputs, mirror, cache))
    if (train.rows, train.columns) != (test.rows, test.columns):
        raise InputError(
            f"{train.path.name} has images of {train.rows} x {train.columns} and {test.path.name} of {test.rows} x "
            f"{test.columns}; name two files that belong together."
        )
    if train.count < 2:
        raise InputError(f"{train.path.name} holds {train.count} images; it must hold 2 or more.")
    digests = train.digest(), test.digest()
    held_out = max(1, train.count // HELD_OUT)
    published = digests == PIXELS
    size = f"{train.rows} x {train.columns}"
    made = Made(
        name=name,
        title=f"{'MNIST' if published else 'Images'}: {size} pixels of {levels} grey levels, one document an image",
        licence="CC BY-SA 3.0 (Yann LeCun and Corinna Cortes)" if published else "not stated",
        homepage="http://yann.lecun.com/exdb/mnist/" if published else None,
        command=shlex.join(["remanence", "prepare", "mnist", *[Path(path).name for path in inputs]])
        + f" --levels {levels}",
        settings={
            "task": "images",
            "levels": levels,
            "rows": train.rows,
            "columns": train.columns,
            "held_out": held_out,
            "pixels": list(digests),
        },
        tokenizer=PixelTokenizer(levels, train.rows, train.columns),
        start_token=levels,
        sources={
            "files": 2,
            "first": [
                {"name": images.path.name, "images": images.count, "pixels": digest}
                for images, digest in zip((train, test), digests, strict=True)
            ],
        },
    )
    ranges = {
        "train": (train, 0, train.count - held_out),
        "validation": (train, train.count - held_out, train.count),
        "test": (test, 0, test.count),
    }
    splits = {
        split: ((end - begin) * (1 + train.rows * train.columns), _Documents(images, begin, end, levels))
        for split, (images, begin, end) in ranges.items()
    }
    folder = Path(out) if out is not None else Path("data") / name
    return write(made, splits, folder, overwrite=overwrite, progress=progress, say=say)


@dataclass(frozen=True)
class Images:
    """A file of images, compressed by gzip or not, and read a few images at a time."""

    path: Path
    count: int
    rows: int
    columns: int

    @classmethod
    def open(cls, path: Path) -> Images:
        """Read the head of a file. Raises InputError when it is no file of images, or one too large."""
        with _reading(path) as file:
            head = _exactly(file, 16, path)
        magic, count, rows, columns = struct.unpack(">4I", head)
        if magic != MAGIC:
            change = (
                "name the file with the images, not the labels" if magic == LABELS else f"name {' and '.join(FILES)}"
            )
            raise InputError(
                f"{path.name} begins with {magic:#010x} and a file of images with {MAGIC:#010x}; {change}."
            )
        if not (1 <= rows <= LARGEST_SIDE and 1 <= columns <= LARGEST_SIDE and 1 <= count <= MOST_IMAGES):
            raise InputError(
                f"{path.name} says that it holds {count:,} images of {rows:,} x {columns:,} pixels; 1 to "
                f"{MOST_IMAGES:,} images of at most {LARGEST_SIDE:,} x {LARGEST_SIDE:,} can be read."
            )
        return cls(path, count, rows, columns)

    def digest(self) -> str:
        """SHA-256 of the decompressed file. Raises InputError when it is cut short, damaged or too long."""
        digest = hashlib.sha256(struct.pack(">4I", MAGIC, self.count, self.rows, self.columns))
        for block in self.blocks():
            digest.update(block.data)
        return digest.hexdigest()

    def blocks(self) -> Iterator[np.ndarray]:
        """All images, (n, rows, columns) uint8 at a time. Raises InputError as `digest` does."""
        with _reading(self.path) as file:
            _exactly(file, 16, self.path)
            most = max(1, BLOCK // (self.rows * self.columns))
            for begin in range(0, self.count, most):
                number = min(most, self.count - begin)
                data = _exactly(file, number * self.rows * self.columns, self.path)
                yield np.frombuffer(data, np.uint8).reshape(number, self.rows, self.columns)
            if _read(file, 1, self.path):
                raise InputError(
                    f"{self.path.name} goes on after the {self.count:,} images that it says it holds; fetch it anew."
                )


class _Documents:
    """Some images of a file, each as a start token and its pixels."""

    def __init__(self, images: Images, begin: int, end: int, levels: int) -> None:
        self.images, self.begin, self.end, self.levels = images, begin, end, levels

    def __call__(self) -> Iterator[np.ndarray]:
        index = 0
        with closing(self.images.blocks()) as blocks:  # pyright: ignore[reportArgumentType]
            for block in blocks:
                for image in block:
                    if self.begin <= index < self.end:
                        pixels = image.reshape(-1).astype(np.int64) * self.levels // 256
                        yield np.concatenate([[self.levels], pixels])
                    index += 1
                if index >= self.end:
                    return


def _files(inputs: Sequence[str | Path], mirror: str | None, cache: str | Path | None) -> list[Path]:
    """The training and the test file. Raises InputError when they are not there."""
    given = [Path(path) for path in inputs]
    if not given:
        where = Path(cache) if cache is not None else cache_folder()
        return [fetch(_mirrored(remote, mirror), where) for remote in REMOTES]
    for path in given:
        if not path.exists():
            raise InputError(f"There is no file or folder {path}; check the path.")
    if len(given) == 1 and given[0].is_dir():
        return [_in(given[0], name) for name in FILES]
    if len(given) != 2:
        number = "One file was" if len(given) == 1 else f"{len(given)} inputs were"
        raise InputError(
            f"{number} named after mnist; name the folder that holds {' and '.join(FILES)}, or these two files."
        )
    for path in given:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name one folder alone, or the file of training and that of test.")
    return given


def _mirrored(remote: Remote, mirror: str | None) -> Remote:
    if mirror is None:
        return remote
    url = f"{mirror.rstrip('/')}/{Path(remote.name).name}"
    return Remote(remote.name, (url, *remote.urls), remote.digest, remote.size)


def _in(folder: Path, name: str) -> Path:
    """A file in a folder by its published name, compressed or not, with a hyphen or a dot."""
    plain = name.removesuffix(".gz")
    for candidate in (name, plain):
        for spelled in (candidate, candidate.replace("-idx3", ".idx3")):
            if (folder / spelled).is_file():
                return folder / spelled
    dotted = plain.replace("-idx3", ".idx3")
    raise InputError(
        f"The folder {folder} does not hold {name} or, decompressed, {plain} or {dotted}; name the folder that does."
    )


def _reading(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else open(path, "rb")  # type: ignore[return-value]


def _exactly(file: IO[bytes], size: int, path: Path) -> bytes:
    data = _read(file, size, path)
    if len(data) < size:
        raise InputError(f"{path.name} ends before the images that it says it holds; fetch it anew.")
    return data


def _read(file: Any, size: int, path: Path) -> bytes:
    try:
        return file.read(size)
    except EOFError:
        raise InputError(f"{path.name} was cut short: its compressed data has no end; fetch it anew.") from None
    except (gzip.BadGzipFile, zlib.error):
        raise InputError(f"{path.name} is damaged: it cannot be decompressed; fetch it anew.") from None
