"""Text to token ids and back.

A tokenizer is kept in a folder: `settings.json` says its kind and, where there is one, `vocabulary.json` or
`tokenizer.json` (the format of the `tokenizers` library) holds its vocabulary. Loading one runs no code it finds.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from remanence.errors import InputError
from remanence.files import read_json


class StreamDecoder(Protocol):
    """Turns ids into text as they come, never showing half a character."""

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete."""
        ...

    def finish(self) -> str:
        """What is left, with a replacement character for half a character."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON from which `restore` goes on."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Tokenizer(Protocol):
    """What every tokenizer can do."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str:
        """What one token is: "byte", "character", "word", "symbol", "pixel" or "token"."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides which ids a text gets."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """(n,) int64 ids of a text. Raises InputError for what the vocabulary lacks."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids. Raises InputError for ids outside the vocabulary."""
        ...

    def stream_decoder(self) -> StreamDecoder: ...

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer to a folder, which is made when it does not exist."""
        ...


_HOMES = {
    "byte": ("byte", "ByteTokenizer"),
    "char": ("char", "CharTokenizer"),
    "word": ("word", "WordTokenizer"),
    "bpe": ("subword", "SubwordTokenizer"),
    "subword": ("subword", "SubwordTokenizer"),
    "symbol": ("number", "SymbolTokenizer"),
    "pixel": ("number", "PixelTokenizer"),
}


LARGEST_VOCABULARY = 1 << 24
"""Ids of a vocabulary. Models have a row for each, and none in use has a tenth of these."""


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer kept in a folder by `save`. Raises InputError when it is missing or damaged."""
    folder = Path(folder)
    settings = read_json(folder / "settings.json", "The settings file of the tokenizer")
    kind = settings.get("kind") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or kind not in _HOMES:
        raise InputError(
            f"{folder / 'settings.json'} names the tokenizer kind {kind!r}; known are {', '.join(_HOMES)}."
        )
    module, name = _HOMES[kind]
    tokenizer: Tokenizer = getattr(importlib.import_module(f"{__name__}.{module}"), name).load(folder, settings)
    if tokenizer.vocab_size > LARGEST_VOCABULARY:
        raise InputError(
            f"The tokenizer in {folder} has {tokenizer.vocab_size:,} ids, and at most {LARGEST_VOCABULARY:,} can be "
            "used; give another one."
        )
    return tokenizer


def check_ids(ids: Iterable[int], vocab_size: int) -> np.ndarray:
    """Ids as an int64 array. Raises InputError for one outside the vocabulary."""
    array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
    if array.size and (int(array.min()) < 0 or int(array.max()) >= vocab_size):
        wrong = int(array[(array < 0) | (array >= vocab_size)][0])
        raise InputError(f"Token id {wrong} is outside the vocabulary of {vocab_size}; it came from another tokenizer.")
    return array
