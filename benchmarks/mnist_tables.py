"""How well tables predict the pixels of a corpus of images: what any model must beat, and by how much it does.

Tables are counted on the training images and scored on the test images, in nats a pixel and as perplexity:

    histogram           p(x)
    previous pixel      p(x | left), the image read in raster order
    left and upper      p(x | left, upper)

A count of `ALPHA` is added to every entry. Run it as `python benchmarks/mnist_tables.py data/mnist data/mnist-16`.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

from remanence.data import Corpus

ALPHA = 0.1
IMAGES = 5000
"""Images counted at a time."""


def images(corpus: Corpus, split: str) -> np.ndarray:
    """(N, R, C) ids of the pixels of a split."""
    tokenizer = corpus.tokenizer
    rows, columns = tokenizer.rows, tokenizer.columns  # pyright: ignore[reportAttributeAccessIssue]
    tokens = corpus.split(split).tokens
    return tokens.reshape(-1, 1 + rows * columns)[:, 1:].reshape(-1, rows, columns)


def contexts(pixels: np.ndarray, table: str, levels: int) -> np.ndarray:
    """One number for what each pixel is predicted from, (N, R · C); beyond the edge lies the level `levels`."""
    count = len(pixels)
    flat = pixels.reshape(count, -1).astype(np.int64)
    before = np.concatenate([np.full((count, 1), levels), flat[:, :-1]], axis=1)
    if table == "histogram":
        return np.zeros_like(flat)
    if table == "previous pixel":
        return before
    upper = np.concatenate([np.full((count, 1, pixels.shape[2]), levels), pixels[:, :-1].astype(np.int64)], axis=1)
    return before * (levels + 1) + upper.reshape(count, -1)


def nats(corpus: Corpus, table: str) -> float:
    """Mean nats a pixel of the test images."""
    levels = corpus.tokenizer.levels  # pyright: ignore[reportAttributeAccessIssue]
    size = {"histogram": 1, "previous pixel": levels + 1, "left and upper": (levels + 1) ** 2}[table]
    counts = np.zeros(size * levels, np.int64)
    train = images(corpus, "train")
    for begin in range(0, len(train), IMAGES):
        block = np.array(train[begin : begin + IMAGES])
        places = contexts(block, table, levels) * levels + block.reshape(len(block), -1)
        counts += np.bincount(places.ravel(), minlength=len(counts))
    weights = counts.reshape(size, levels) + ALPHA
    costs = -np.log(weights / weights.sum(1, keepdims=True)).ravel()
    test = np.array(images(corpus, "test"))
    return float(costs[contexts(test, table, levels) * levels + test.reshape(len(test), -1)].mean())


def main(folders: list[str]) -> None:
    print(f"{'corpus':<12}{'table':<18}{'nats':>8}{'bits':>8}{'perplexity':>12}")
    for folder in folders:
        corpus = Corpus.open(Path(folder))
        for table in ("histogram", "previous pixel", "left and upper"):
            cost = nats(corpus, table)
            print(f"{corpus.name:<12}{table:<18}{cost:>8.4f}{cost / math.log(2):>8.4f}{math.exp(cost):>12.3f}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["data/mnist"])
