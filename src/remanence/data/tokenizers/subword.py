"""Sub-words through the `tokenizers` library: byte-level BPE trained here, or any `tokenizer.json` made elsewhere.

The library is an extra (`pip install "remanence[tokenizers]"`) and is imported when it is used. Its files are JSON that
names its own components; loading one runs nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from remanence.data.tokenizers import check_ids
from remanence.errors import InputError
from remanence.files import LARGEST_JSON, read_text, write_json, write_text

FILE = "tokenizer.json"
_LONGEST_CHARACTER = 16
ALPHABET = 256
"""Every byte is a token of a BPE trained here, so no text is unknown to it."""


class SubwordTokenizer:
    """A tokenizer of the `tokenizers` library, given as the text of its `tokenizer.json`.

    No special tokens are added to a text; padding and truncation that the file may ask for are off. `source` is where
    the text came from, for errors.
    """

    unit = "token"

    def __init__(self, text: str, name: str = "subword", source: str | Path = "The text given") -> None:
        library = _library()
        self.name = name
        try:
            self._tokenizer = library.Tokenizer.from_str(text)
        except BaseException as error:  # the library raises plain Exception, and lets its panics through as more
            if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
                raise
            raise InputError(
                f"{source} is not a tokenizer.json that the tokenizers library reads ({error}); name one that it wrote."
            ) from None
        self._text = text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Numbers may be left out in a vocabulary, and models need a row for each.
        self.vocab_size: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not self.vocab_size:
            raise InputError("The tokenizer.json has an empty vocabulary; name one that was trained.")

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._text.encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        try:
            # "fast" leaves out where in the text each token stands, which nobody asks for here.
            return np.array(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids, np.int64)
        except Exception as error:  # the library raises plain Exception, and TypeError for half a surrogate pair
            raise InputError(f"The tokenizer cannot encode the text ({error}); remove what it does not know.") from None

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(check_ids(ids, self.vocab_size).tolist(), skip_special_tokens=False)

    def stream_decoder(self) -> SubwordStreamDecoder:
        return SubwordStreamDecoder(self)

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_text(Path(folder) / FILE, self._text)
        write_json(Path(folder) / "settings.json", {"kind": "bpe" if self.name == "bpe" else "subword"})

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> SubwordTokenizer:
        return cls.from_file(folder / FILE, settings["kind"])

    @classmethod
    def from_file(cls, path: Path, name: str = "subword") -> SubwordTokenizer:
        """Read a `tokenizer.json`. Raises InputError when it is missing or not one."""
        try:
            text = read_text(path, LARGEST_JSON)
        except FileNotFoundError:
            raise InputError(f"There is no tokenizer file {path}; check the path.") from None
        except UnicodeDecodeError:
            raise InputError(f"{path} is not a tokenizer.json: it is not UTF-8 text.") from None
        return cls(text, name, path)


class SubwordStreamDecoder:
    """Decodes a little behind: what ends in half a character waits for the ids that complete it.

    Some tokenizers treat the beginning of a text specially, so new ids are decoded together with those before them,
    and what those alone gave is cut off.
    """

    def __init__(self, tokenizer: SubwordTokenizer) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []
        """The latest ids whose text was given out."""
        self._held: list[int] = []

    def push(self, ids: Iterable[int]) -> str:
        # One at a time, so that the text does not depend on how the ids were cut into calls.
        return "".join(self._push(index) for index in check_ids(ids, self._tokenizer.vocab_size).tolist())

    def finish(self) -> str:
        text = self._new_text()
        self._shown, self._held = [], []
        return text

    def state(self) -> dict[str, Any]:
        return {"shown": list(self._shown), "held": list(self._held)}

    def restore(self, state: dict[str, Any]) -> None:
        self._shown, self._held = (
            check_ids(state[name], self._tokenizer.vocab_size).tolist() for name in ("shown", "held")
        )

    def _push(self, index: int) -> str:
        self._held.append(index)
        text = self._new_text()
        # No character has this many tokens, so what waits is not half of one: the ids stand for no valid text.
        if text.endswith("\ufffd") and len(self._held) < _LONGEST_CHARACTER:
            return ""
        if not text:
            return ""
        self._shown, self._held = self._held, []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode([*self._shown, *self._held])[len(before) :]


def train_bpe(texts: Iterator[str], vocab_size: int) -> SubwordTokenizer:
    """Byte-level BPE with GPT-2's rule for where words part; deterministic; decoding gives back every text exactly.

    Raises InputError when the vocabulary is smaller than the 256 bytes it begins with.
    """
    library = _library()
    if vocab_size < ALPHABET:
        raise InputError(f"A BPE vocabulary of {vocab_size} is smaller than its {ALPHABET} bytes; ask for more.")
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = library.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return SubwordTokenizer(tokenizer.to_str(), "bpe")


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise InputError(
            'Sub-word tokenizers need the tokenizers library; install it with `pip install "remanence[tokenizers]"` '
            "or choose byte, char or word."
        ) from None
    return tokenizers
