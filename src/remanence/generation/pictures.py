"""Pictures of what a model of pixels draws: whole images, and images of which it was given the upper half.

Shapes
    N   images
    R   rows of an image
    C   columns
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from remanence.data import Corpus
from remanence.errors import InputError
from remanence.files import write_text, writing
from remanence.generation.sampling import Sampling
from remanence.generation.session import Session

ACROSS = 8
"""Images side by side."""
SCALE = 3
"""Points of the picture for a pixel, in each direction."""
GAP = 2
"""Points between images."""
PAPER = 96
"""Grey of what lies between images, and where nothing was given."""
MOST = 1024
"""Images at once."""


def sample_images(run: Any, count: int = 16, *, sampling: Sampling | None = None, seed: int = 0) -> np.ndarray:
    """Draw whole images with a run of pixels: (N, R, C) uint8, 0 black and 255 white. Image i is drawn with seed + i.

    Raises InputError for a run of something else, and a number of images out of range.
    """
    tokenizer = _tokenizer(run, count)
    session = Session(run, samples=count, sampling=sampling, seed=seed)
    return grey(_drawn(session, tokenizer.rows * tokenizer.columns), tokenizer)


def complete_images(
    run: Any, given: np.ndarray, rows: int | None = None, *, sampling: Sampling | None = None, seed: int = 0
) -> np.ndarray:
    """Go on with images from their first `rows` rows (half of them, unless given): (N, R, C) uint8.

    `given` are ids, (N, R · C), as a corpus has them without the start token. Raises InputError as `sample_images`.
    """
    tokenizer = _tokenizer(run, len(given))
    upper: int = tokenizer.rows // 2 if rows is None else rows
    if not 0 < upper < tokenizer.rows:
        raise InputError(f"{upper} rows were to be given; give at least 1 and fewer than {tokenizer.rows}.")
    known = np.asarray(given, np.int64)[:, : upper * tokenizer.columns]
    session = Session(run, samples=len(known), sampling=sampling, seed=seed)
    start = np.full((len(known), run.model.shift), tokenizer.start_token, np.int64)
    session.read_each(np.concatenate([start, known], axis=1))
    drawn = _drawn(session, (tokenizer.rows - upper) * tokenizer.columns)
    return grey(np.concatenate([known, drawn], axis=1), tokenizer)


def first_images(corpus: Corpus, count: int, split: str = "test") -> np.ndarray:
    """(N, R · C) ids of the first images of a split, without their start tokens.

    Raises InputError for a corpus of something else, and where the split has fewer images.
    """
    chosen = corpus.split(split)
    if chosen.start_token is None or chosen.unit != "pixel":
        raise InputError(f"The corpus {corpus.name} holds no images; make one with `remanence prepare mnist`.")
    if count > len(chosen.documents):
        raise InputError(
            f"{count:,} images of the {split} split were asked for, which holds {len(chosen.documents):,}; ask for so "
            "many or fewer."
        )
    begins = chosen.documents[:count]
    size = int(chosen.documents[1] - chosen.documents[0]) if len(chosen.documents) > 1 else len(chosen)
    return np.stack([chosen.tokens[begin + 1 : begin + size] for begin in begins]).astype(np.int64)


def grey(ids: np.ndarray, tokenizer: Any) -> np.ndarray:
    """Ids of pixels, (N, R · C), as images (N, R, C) uint8."""
    values = ids.astype(np.int64) * 255 // (tokenizer.levels - 1)
    return values.clip(0, 255).astype(np.uint8).reshape(-1, tokenizer.rows, tokenizer.columns)


def grid(bands: Sequence[np.ndarray], across: int = ACROSS) -> np.ndarray:
    """One picture of images, `across` side by side: (height, width) uint8.

    Bands are (N, R, C) each; image i of every band stands below image i of the one before.
    """
    number, rows, columns = bands[0].shape
    across = min(across, number)
    height, width = rows * SCALE + GAP, columns * SCALE + GAP
    lines = -(-number // across)
    step = height * len(bands) + GAP * (len(bands) > 1)
    picture = np.full((step * lines + GAP, width * across + GAP), PAPER, np.uint8)
    for level, band in enumerate(bands):
        for index, image in enumerate(band):
            top = GAP + (index // across) * step + level * height
            left = GAP + (index % across) * width
            large = image.repeat(SCALE, 0).repeat(SCALE, 1)
            picture[top : top + large.shape[0], left : left + large.shape[1]] = large
    return picture


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a (height, width) uint8 array as a PNG of greys, whole or not at all."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = picture.shape
    # Every line begins with the number of its filter; 0 is none.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), picture], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    with writing(path) as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head))
        file.write(chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b""))


def samples_picture(run: Any, count: int = 16, *, sampling: Sampling | None = None, seed: int = 0) -> np.ndarray:
    """A grid of images drawn from nothing."""
    return grid([sample_images(run, count, sampling=sampling, seed=seed)])


def completions_picture(
    run: Any, corpus: Corpus, count: int = 16, *, sampling: Sampling | None = None, seed: int = 0
) -> np.ndarray:
    """A grid of the first test images in three bands: the upper half, as given; gone on with; and as it was."""
    given = first_images(corpus, count)
    original = grey(given, run.tokenizer)
    upper = original.copy()
    upper[:, run.tokenizer.rows // 2 :] = PAPER
    return grid([upper, complete_images(run, given, sampling=sampling, seed=seed), original])


def leave_pictures(run: Any, corpus: Corpus, folder: Path, count: int = 16) -> None:
    """Write both pictures, each with a caption of one sentence, into a folder, which a comparison shows."""
    folder.mkdir(exist_ok=True)
    tested = min(count, len(corpus.split("test").documents))
    pictures = {
        "samples": (
            samples_picture(run, count),
            f"{count} images drawn pixel by pixel from the model's own distribution (temperature 1).",
        ),
        "completions": (
            completions_picture(run, corpus, tested),
            f"The first {tested} test images. Above: the upper half, which the model was given; in the middle: how it "
            "went on (temperature 1); below: the image itself.",
        ),
    }
    for name, (picture, caption) in pictures.items():
        write_png(folder / f"{name}.png", picture)
        write_text(folder / f"{name}.txt", caption + "\n")


def _tokenizer(run: Any, count: int) -> Any:
    if run.tokenizer.unit != "pixel":
        raise InputError(
            f"{run.folder} is a run of {run.tokenizer.unit}s and draws no images; name a run on a corpus of "
            "`remanence prepare mnist`."
        )
    if not 1 <= count <= MOST:
        raise InputError(f"{count} images were asked for; give 1 to {MOST:,}.")
    return run.tokenizer


def _drawn(session: Session, number: int) -> np.ndarray:
    """(samples, number) ids drawn by a session."""
    return np.array([step.ids for step in session.steps(number)], np.int64).T
