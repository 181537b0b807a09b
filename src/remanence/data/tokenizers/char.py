"""One token a character: the alphabet of a corpus, numbered by descending frequency."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from remanence.data.tokenizers import check_ids
from remanence.errors import InputError
from remanence.files import read_json, write_json

_CODES = 0x110000


class CharTokenizer:
    """Characters (Unicode code points) as ids, in the order given."""

    name = "char"
    unit = "character"

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = list(characters)
        if not self.characters or len(set(self.characters)) != len(self.characters):
            raise InputError("The vocabulary of a character tokenizer must be distinct characters, and at least one.")
        self._codes = np.array([ord(character) for character in self.characters], "<u4")
        self._ids = np.full(_CODES, -1, np.int32)
        self._ids[self._codes] = np.arange(len(self._codes))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(["char", self.characters]).encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        ids = self._ids[codes]
        if (ids < 0).any():
            raise InputError(
                f"The text holds the character {chr(codes[(ids < 0).argmax()])!r}, which the vocabulary of "
                f"{self.vocab_size} characters lacks; leave it out or use a byte tokenizer."
            )
        return ids.astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return self._codes[check_ids(ids, self.vocab_size)].tobytes().decode("utf-32-le", "surrogatepass")

    def stream_decoder(self) -> CharStreamDecoder:
        return CharStreamDecoder(self)

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / "vocabulary.json", self.characters)
        write_json(Path(folder) / "settings.json", {"kind": "char"})

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> CharTokenizer:
        vocabulary = read_json(folder / "vocabulary.json", "The character vocabulary")
        if not isinstance(vocabulary, list) or not all(isinstance(c, str) and len(c) == 1 for c in vocabulary):
            raise InputError(f"{folder / 'vocabulary.json'} is not a list of characters; prepare the corpus again.")
        return cls(vocabulary)


class CharStreamDecoder:
    """Every id is a whole character, so nothing is held back."""

    def __init__(self, tokenizer: CharTokenizer) -> None:
        self._tokenizer = tokenizer

    def push(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(ids)

    def finish(self) -> str:
        return ""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass
