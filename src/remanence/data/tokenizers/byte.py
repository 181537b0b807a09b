"""One token a byte: nothing to train, nothing unknown, any text and any file."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from remanence.data.tokenizers import check_ids
from remanence.errors import InputError
from remanence.files import write_json


class ByteTokenizer:
    """Bytes as ids 0 to 255, or, with `symbols`, only some bytes, numbered in the order given.

    `symbols` exists for published work that counted the distinct bytes of its corpus (enwik8: 204 without newlines).
    """

    name = "byte"
    unit = "byte"

    def __init__(self, symbols: bytes | None = None) -> None:
        if symbols is not None and (not symbols or len(set(symbols)) != len(symbols)):
            raise InputError("The symbols of a byte tokenizer must be distinct bytes, and at least one.")
        self.symbols = symbols
        self._bytes = np.frombuffer(bytes(range(256)) if symbols is None else symbols, np.uint8)
        self._ids = np.full(256, -1, np.int64)
        self._ids[self._bytes] = np.arange(len(self._bytes))

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self._settings(), sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        # Bytes that are not UTF-8 reach a command line as escaped surrogates; they get their own ids back here.
        try:
            return self.encode_bytes(text.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:
            raise InputError("The text holds half a surrogate pair, which is no character; remove it.") from None

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """(n,) int64 ids of raw bytes. Raises InputError for a byte that is not among the symbols."""
        ids = self._ids[np.frombuffer(data, np.uint8)]
        if self.symbols is not None and (ids < 0).any():
            wrong = data[int((ids < 0).argmax())]
            raise InputError(
                f"The text holds byte {wrong} ({bytes([wrong])!r}), which the vocabulary of {self.vocab_size} bytes "
                "lacks; leave it out or prepare the corpus with all 256 bytes."
            )
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._bytes[check_ids(ids, self.vocab_size)].tobytes()

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream_decoder(self) -> ByteStreamDecoder:
        return ByteStreamDecoder(self)

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / "settings.json", self._settings())

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> ByteTokenizer:
        symbols = settings.get("symbols")
        try:
            return cls(None if symbols is None else _bytes(symbols))
        except (TypeError, ValueError):
            raise InputError(
                f"{folder / 'settings.json'} holds symbols that are not distinct bytes; prepare the corpus again."
            ) from None

    def _settings(self) -> dict[str, Any]:
        return {"kind": "byte", "symbols": None if self.symbols is None else list(self.symbols)}


class ByteStreamDecoder:
    """Holds back the bytes of a UTF-8 character until it is whole."""

    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        return self._utf8.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text

    def state(self) -> dict[str, Any]:
        return {"held": list(self._utf8.getstate()[0])}

    def restore(self, state: dict[str, Any]) -> None:
        held = _bytes(state["held"])
        if len(held) > 3:
            raise ValueError(f"{len(held)} bytes are held back, and a character has at most 4")
        self._utf8.setstate((held, 0))


def _bytes(values: Any) -> bytes:
    # What is made of a number is so many zeros.
    if not isinstance(values, list):
        raise TypeError("a list of bytes is wanted")
    return bytes(values)
