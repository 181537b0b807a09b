"""Vocabularies counted from text: which bytes, characters or words there are, and how often.

Counts are kept in order of first appearance, so that counting ranges on several cores and adding them up in the order
of the text gives the same vocabulary as reading it once.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np

from remanence.data.tokenizers.word import END_OF_LINE, UNKNOWN
from remanence.errors import InputError

Symbol = Literal["byte", "char", "word"]


def count_symbols(kind: Symbol, piece: bytes) -> dict[str, int]:
    """How often each symbol occurs in a piece, in order of first appearance; bytes as the characters 0 to 255.

    Raises UnicodeDecodeError where characters or words are asked for and the text is not UTF-8.
    """
    if kind == "word":
        return dict(Counter(piece.decode("utf-8").split()))
    if kind == "byte":
        codes = np.frombuffer(piece, np.uint8)
    else:
        codes = np.frombuffer(piece.decode("utf-8").encode("utf-32-le"), "<u4")
    if not len(codes):
        return {}
    counts = np.bincount(codes)
    first = np.empty(len(counts), np.int64)
    # Written back to front, so that the first occurrence is the one that stays.
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    present = np.flatnonzero(counts)
    present = present[np.argsort(first[present])]
    return {chr(code): int(counts[code]) for code in present}


def by_frequency(counts: Counter[str]) -> list[str]:
    """Symbols by descending frequency, ties in order of first appearance."""
    return sorted(counts, key=lambda symbol: -counts[symbol])


def word_vocabulary(counts: Counter[str], vocab_size: int | None, min_count: int, unknown: bool) -> list[str]:
    """`<eos>`, then words by descending frequency, cut to those that occur often enough and fit.

    With `unknown`, `<unk>` gets a place of its own, the last, unless the text has the word already.
    """
    words = [word for word in by_frequency(counts) if word != END_OF_LINE and counts[word] >= min_count]
    extra = [UNKNOWN] if unknown and UNKNOWN not in words else []
    if vocab_size is not None:
        if vocab_size < 2 + len(extra):
            raise InputError(f"A word vocabulary of {vocab_size} leaves no room for words; ask for more.")
        words = words[: vocab_size - 1 - len(extra)]
        if unknown and not extra and UNKNOWN not in words:
            words[-1] = UNKNOWN
    return [END_OF_LINE, *words, *extra]
