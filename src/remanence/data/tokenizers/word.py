"""Whole words, as in the published word-level work on WikiText.

Every line is stripped, split at white space and followed by `<eos>`, also when it is blank. Id 0 is `<eos>`; then come
the words of the training text by descending frequency, ties in order of first appearance; case is kept and no word is
too rare. `<unk>` is an ordinary word where the text holds it (WikiText does), and stands for unknown words then.
"""

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

END_OF_LINE = "<eos>"
UNKNOWN = "<unk>"


class WordTokenizer:
    """Words as ids in the order given; the first one is `<eos>`."""

    name = "word"
    unit = "word"

    def __init__(self, words: Iterable[str]) -> None:
        self.words = list(words)
        self._ids = {word: index for index, word in enumerate(self.words)}
        if not self.words or self.words[0] != END_OF_LINE or len(self._ids) != len(self.words):
            raise InputError(f"The vocabulary of a word tokenizer must be distinct words, {END_OF_LINE} first.")
        self.unknown = self._ids.get(UNKNOWN)

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(["word", self.words]).encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, with `<eos>` for every newline; an unfinished last line gets none, so a prompt can go on."""
        words = text.replace("\n", f" {END_OF_LINE} ").split()
        if self.unknown is not None:
            known, unknown = self._ids.get, self.unknown
            return np.array([known(word, unknown) for word in words], np.int64)
        try:
            return np.fromiter(map(self._ids.__getitem__, words), np.int64, len(words))
        except KeyError as error:
            raise InputError(
                f"The text holds the word {error.args[0]!r}, which the vocabulary of {self.vocab_size} words lacks "
                f"and which has no {UNKNOWN}; use another word or another tokenizer."
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        return self.stream_decoder().push(ids)

    def stream_decoder(self) -> WordStreamDecoder:
        return WordStreamDecoder(self)

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / "vocabulary.json", self.words)
        write_json(Path(folder) / "settings.json", {"kind": "word"})

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> WordTokenizer:
        vocabulary = read_json(folder / "vocabulary.json", "The word vocabulary")
        if not isinstance(vocabulary, list) or not all(isinstance(word, str) for word in vocabulary):
            raise InputError(f"{folder / 'vocabulary.json'} is not a list of words; prepare the corpus again.")
        return cls(vocabulary)


class WordStreamDecoder:
    """Puts a blank between words and a newline for `<eos>`."""

    def __init__(self, tokenizer: WordTokenizer) -> None:
        self._tokenizer = tokenizer
        self._line_start = True

    def push(self, ids: Iterable[int]) -> str:
        pieces = []
        for index in check_ids(ids, self._tokenizer.vocab_size).tolist():
            if index == 0:
                pieces.append("\n")
            else:
                pieces += ["" if self._line_start else " ", self._tokenizer.words[index]]
            self._line_start = index == 0
        return "".join(pieces)

    def finish(self) -> str:
        return ""

    def state(self) -> dict[str, Any]:
        return {"line_start": self._line_start}

    def restore(self, state: dict[str, Any]) -> None:
        self._line_start = bool(state["line_start"])
