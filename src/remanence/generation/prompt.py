"""How much of a text can be turned into tokens before the rest of it is known, and with what an empty one begins.

Bytes and characters stand alone. Words and lines belong together as far as the next line break. Sub-words may
depend on what follows, so a text is cut between two words, and only where cutting is seen to change nothing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from remanence.errors import InputError

ENOUGH = 1 << 13
"""Characters of sub-word text held back before a cut is looked for: a short prompt is tokenized as a whole."""
MOST = 1 << 18
"""Characters after which a text in which no cut is harmless is cut all the same, because memory is bounded."""
BEYOND = 1 << 10
"""Characters to the right of a cut, by which it is seen to change nothing."""
ATTEMPTS = 8

# A single space between two words: pre-tokenizers of all common kinds begin a new piece there.
_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")


def settled(text: str, tokenizer: Any) -> int:
    """How many characters from the left get the tokens they would get in any longer text."""
    if tokenizer.unit in ("byte", "character"):
        return len(text)
    if tokenizer.unit in ("symbol", "pixel"):
        return re.search(r"\S*\Z", text).start()  # pyright: ignore[reportOptionalMemberAccess]
    if tokenizer.unit == "word":
        return max(text.rfind(" "), text.rfind("\n")) + 1
    if len(text) < ENOUGH:
        return 0
    whole = tokenizer.encode(text)
    for cut in itertools.islice(_cuts(text), ATTEMPTS):
        parts = np.concatenate([tokenizer.encode(text[:cut]), tokenizer.encode(text[cut:])])
        if np.array_equal(parts, whole):
            return cut
    return 0 if len(text) < MOST else len(text) - BEYOND


def opening(tokenizer: Any) -> np.ndarray:
    """The one token from which a model begins when it is given no text: a line break where there is one, else a
    blank.

    A line break is how texts begin as seen from the text before; in word-level corpora it is the token <eos>. Where
    all documents begin with one start token it is that.
    """
    if (start := getattr(tokenizer, "start_token", None)) is not None:
        return np.array([start])
    for text in ("\n", " "):
        try:
            ids = tokenizer.encode(text)
        except InputError:
            continue
        if len(ids):
            return ids[-1:]
    return np.zeros(1, dtype=np.int64)


def _cuts(text: str) -> Iterator[int]:
    """Places between words, the last first."""
    return reversed([match.start() for match in _BETWEEN_WORDS.finditer(text, 0, len(text) - BEYOND)])
