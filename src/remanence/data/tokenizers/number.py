"""Symbols and pixels, which are numbers already: their text is the numbers, between blanks."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from remanence.data.tokenizers import check_ids
from remanence.errors import InputError
from remanence.files import write_json


class NumberTokenizer(abc.ABC):
    """What symbols and pixels have in common: "3 17 20" stands for ids 3, 17 and 20."""

    name: ClassVar[str]
    unit: ClassVar[str]
    start_token: int | None = None
    """The first token of every document, never drawn; None where there is none."""

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self._settings(), sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        words = text.split()
        for word in words:
            if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word) < self.vocab_size):
                raise InputError(
                    f"The text holds {word[:20]!r}, but {self.unit}s are written as numbers from 0 to "
                    f"{self.vocab_size - 1} with blanks between them; correct it."
                )
        return np.array([int(word) for word in words], np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, check_ids(ids, self.vocab_size).tolist()))

    def stream_decoder(self) -> NumberStreamDecoder:
        return NumberStreamDecoder(self)

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / "settings.json", self._settings())

    @abc.abstractmethod
    def _settings(self) -> dict[str, Any]: ...


class SymbolTokenizer(NumberTokenizer):
    """Symbols that mean nothing by themselves, 0 to size - 1."""

    name = "symbol"
    unit = "symbol"

    def __init__(self, size: int) -> None:
        if size < 1:
            raise InputError(f"A vocabulary of {size} symbols was asked for; give 1 or more.")
        self.size = size

    @property
    def vocab_size(self) -> int:
        return self.size

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> SymbolTokenizer:
        return cls(*_counts(folder, settings, "size"))

    def _settings(self) -> dict[str, Any]:
        return {"kind": "symbol", "size": self.size}


class PixelTokenizer(NumberTokenizer):
    """Grey values 0 (black) to levels - 1 (white) of images in raster order, and one more id with which each begins."""

    name = "pixel"
    unit = "pixel"

    def __init__(self, levels: int, rows: int, columns: int) -> None:
        if levels < 2 or rows < 1 or columns < 1:
            raise InputError(f"Images of {rows} x {columns} pixels with {levels} grey levels cannot be told apart.")
        self.levels, self.rows, self.columns = levels, rows, columns
        self.start_token = levels

    @property
    def vocab_size(self) -> int:
        return self.levels + 1

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> PixelTokenizer:
        return cls(*_counts(folder, settings, "levels", "rows", "columns"))

    def _settings(self) -> dict[str, Any]:
        return {"kind": "pixel", "levels": self.levels, "rows": self.rows, "columns": self.columns}


class NumberStreamDecoder:
    """A number is whole as soon as it is there; all but the first follow a blank."""

    def __init__(self, tokenizer: NumberTokenizer) -> None:
        self._tokenizer = tokenizer
        self._begun = False

    def push(self, ids: Iterable[int]) -> str:
        text = self._tokenizer.decode(ids)
        text, self._begun = (f" {text}" if self._begun and text else text), self._begun or bool(text)
        return text

    def finish(self) -> str:
        return ""

    def state(self) -> dict[str, Any]:
        return {"begun": self._begun}

    def restore(self, state: dict[str, Any]) -> None:
        self._begun = bool(state["begun"])


def _counts(folder: Path, settings: dict[str, Any], *names: str) -> list[int]:
    values = [settings.get(name) for name in names]
    if not all(type(value) is int for value in values):
        raise InputError(f"{folder / 'settings.json'} lacks {' or '.join(names)}; prepare the corpus again.")
    return values  # pyright: ignore[reportReturnType]
