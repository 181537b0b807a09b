"""Sorting symbols by how often they occurred: a task that needs all of a long sequence, and nothing else.

    p_j = (1 - r) a / Σa + r b / Σb,   r = j / n        token j ~ Categorical(p_j),  j = 1 .. n

a and b are 20 integers each, uniform on 1 to 9 and drawn anew for every sequence, so that what is frequent changes on
the way. A document is the n tokens, a separator, and the 20 symbols by decreasing count; only these are scored.

Source: Martins, Marinho and Martins 2022 (∞-former), section 4.1 and its published generator.

Shapes: n length of the sequence, J positions of a block.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from remanence.data.corpus import Corpus
from remanence.data.made import Made, write
from remanence.data.manifest import SPLITS
from remanence.data.settings import check_name
from remanence.data.tokenizers.number import SymbolTokenizer
from remanence.errors import InputError

SYMBOLS = 20
SEPARATOR = 20
VOCABULARY = 22
"""As published, where the last id marked targets that are not scored; it never occurs here."""
LARGEST_WEIGHT = 9
LENGTH = 8000
SEQUENCES = (8000, 800, 800)
"""Of training, validation and test, as published for n = 8000."""
LONGEST = 10_000_000
MOST = 10_000_000
LARGEST_SEED = 2**32 - 1
"""What numpy's RandomState takes."""
BLOCK = 1 << 12
"""Positions whose probabilities are held at a time."""

Generator = Literal["independent", "published"]


def prepare_sorting(
    length: int = LENGTH,
    out: str | Path | None = None,
    *,
    name: str | None = None,
    sequences: tuple[int, ...] = SEQUENCES,
    seed: int = 0,
    generator: Generator = "independent",
    overwrite: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Corpus:
    """Make the corpus of the sorting task. This is what `remanence prepare sorting` does.

    length      n, the symbols of a sequence before the separator
    sequences   how many for training, validation and test; 0 leaves a split out, as do numbers that are not given
    generator   "independent": each sequence has a generator of its own, from the seed, its split and its index, so that
                more or other splits change none. "published": one numpy RandomState goes through training, validation
                and test, and gives what the published script gives with that seed.

    Raises InputError for numbers out of range, and as `made.write` does.
    """
    if not 1 <= length <= LONGEST:
        raise InputError(f"The length is {length:,}; it must be at least 1 and at most {LONGEST:,}.")
    if not 1 <= len(sequences) <= len(SPLITS) or not all(0 <= count <= MOST for count in sequences) or not sequences[0]:
        raise InputError(
            f"The numbers of sequences are {' '.join(map(str, sequences))}; give up to three, of training (at least "
            f"1), validation and test, at most {MOST:,} each."
        )
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"The seed is {seed}; it must be at least 0 and at most {LARGEST_SEED}.")
    name = name or f"sorting-{length}"
    check_name(name)
    counts = {split: count for split, count in zip(SPLITS, sequences, strict=False) if count}
    tokens = length + 1 + SYMBOLS
    words = ["remanence", "prepare", "sorting", "--length", length, "--sequences", *sequences, "--seed", seed]
    made = Made(
        name=name,
        title=f"Sorting by frequency: sequences of {length:,} symbol{'s' * (length > 1)} of {SYMBOLS} kinds, then the "
        "kinds by count",
        licence="made, no text",
        command=shlex.join(map(str, [*words, "--generator", generator])),
        settings={
            "task": "sorting",
            "length": length,
            "sequences": counts,
            "seed": seed,
            "generator": generator,
        },
        tokenizer=SymbolTokenizer(VOCABULARY),
        scored_last=SYMBOLS,
    )
    state = np.random.RandomState(seed)
    splits: dict[str, tuple[int, Callable[[], Iterator[np.ndarray]]]] = {}
    for split, count in counts.items():
        if generator == "published":
            documents = _Replayed(length, count, state)
        else:
            documents = _Independent(length, count, seed, SPLITS.index(split))
        splits[split] = (count * tokens, documents)
    folder = Path(out) if out is not None else Path("data") / name
    return write(made, splits, folder, overwrite=overwrite, progress=progress, say=say)


class _Independent:
    """Sequences with a generator each."""

    def __init__(self, length: int, count: int, seed: int, split: int) -> None:
        self.length, self.count, self.key = length, count, (seed, split)

    def __call__(self) -> Iterator[np.ndarray]:
        for index in range(self.count):
            random = np.random.default_rng([*self.key, index])
            begin, end = random.integers(1, LARGEST_WEIGHT + 1, (2, SYMBOLS))
            yield document(sequence(begin, end, self.length, random.random))


class _Replayed:
    """Sequences of one generator, drawn in the order of the published script."""

    def __init__(self, length: int, count: int, state: Any) -> None:
        self.length, self.count, self.state = length, count, state

    def __call__(self) -> Iterator[np.ndarray]:
        for _ in range(self.count):
            begin = self.state.randint(1, LARGEST_WEIGHT + 1, SYMBOLS)
            end = self.state.randint(1, LARGEST_WEIGHT + 1, SYMBOLS)
            yield document(sequence(begin, end, self.length, self.state.random_sample))


def sequence(begin: np.ndarray, end: np.ndarray, length: int, uniform: Callable[[int], np.ndarray]) -> np.ndarray:
    """(n,) symbols whose distribution goes from `begin` to `end`, (20,) weights each, over the sequence.

    Token j is the number of entries of the cumulative distribution that are at most U_j, one of n uniform doubles.
    """
    first, last = begin / begin.sum(), end / end.sum()
    symbols = np.empty(length, np.uint8)
    for low in range(0, length, BLOCK):
        share = np.arange(low + 1, min(low + BLOCK, length) + 1)[:, None] / length
        cumulative = np.cumsum((1 - share) * first + share * last, axis=1)
        cumulative /= cumulative[:, -1:]
        drawn = uniform(len(share))
        symbols[low : low + len(share)] = (cumulative <= drawn[:, None]).sum(1)
    return symbols


def document(symbols: np.ndarray) -> np.ndarray:
    """A sequence, the separator and the answer: (n + 21,)."""
    return np.concatenate([symbols, [SEPARATOR], by_count(symbols)]).astype(np.uint8)


def by_count(symbols: np.ndarray) -> np.ndarray:
    """The 20 symbols by decreasing count; ties by first appearance, those that never came last and in order."""
    counts = np.bincount(symbols, minlength=SYMBOLS)
    first = np.full(SYMBOLS, len(symbols))
    seen, places = np.unique(symbols, return_index=True)
    first[seen] = places
    return np.lexsort((np.arange(SYMBOLS), first, -counts))
