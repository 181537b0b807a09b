"""Corpora that are no text: documents of numbers, made or read, written as any prepared corpus is.

Each knows what it is (`Made`) and yields its documents split by split; nothing but the documents at hand is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from remanence.data.corpus import Corpus
from remanence.data.encoding import Encoded
from remanence.data.manifest import FORMAT, SPLITS, VERSION, corpus_fingerprint, token_type
from remanence.data.progress import Progress
from remanence.data.repeats import holds_something, told
from remanence.data.staging import FULL, finish, staging
from remanence.data.tokenizers import Tokenizer
from remanence.data.writing import write_split
from remanence.errors import InputError
from remanence.files import write_json

BLOCK = 1 << 20
"""Tokens written at a time."""

Documents = Callable[[], Iterator[np.ndarray]]
"""Gives documents one after the other, each an array of token ids."""


@dataclass(frozen=True)
class Made:
    """Everything about such a corpus but its documents."""

    name: str
    title: str
    licence: str
    command: str
    """The command that makes it again."""
    settings: dict[str, Any]
    """What decides the documents: two corpora with the same settings are the same."""
    tokenizer: Tokenizer
    homepage: str | None = None
    scored_last: int | None = None
    start_token: int | None = None
    sources: dict[str, Any] = field(default_factory=dict)

    def manifest(self, splits: dict[str, Any]) -> dict[str, Any]:
        from remanence import __version__

        tokenizer = self.tokenizer
        facts = {"scored_last": self.scored_last, "start_token": self.start_token}
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "title": self.title,
            "licence": self.licence,
            "homepage": self.homepage,
            "command": self.command,
            "prepared_by": f"remanence {__version__}",
            "tokenizer": {
                "name": tokenizer.name,
                "unit": tokenizer.unit,
                "vocab_size": tokenizer.vocab_size,
                "fingerprint": tokenizer.fingerprint,
            },
            "token_type": token_type(tokenizer.vocab_size).name,
            "words": "none: the corpus is no text",
            **facts,
            "splits": splits,
            "sources": self.sources,
            "settings": self.settings,
            "fingerprint": corpus_fingerprint(tokenizer.fingerprint, splits, **facts),
        }


def write(
    made: Made,
    splits: Mapping[str, tuple[int, Documents]],
    out: Path,
    *,
    overwrite: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Corpus:
    """Write a corpus to the folder `out` and open it; `splits` gives the tokens and the documents of each.

    A folder that holds the same corpus is left as it is; another one is refused unless `overwrite` is set. Raises
    InputError where the folder is no corpus or the disk is full.
    """
    if (same := _already(made, out, overwrite, say)) is not None:
        return same
    dtype = token_type(made.tokenizer.vocab_size)
    try:
        with staging(out) as folder, Progress(progress) as bar:
            made.tokenizer.save(folder / "tokenizer")
            bar.stage("Writing", sum(tokens for tokens, _ in splits.values()) * dtype.itemsize)
            entries = {}
            for split in SPLITS:
                if split in splits:
                    encoded = _encoded(splits[split][1](), dtype, bar)
                    entries[split] = write_split(folder, split, encoded, dtype, lambda size: None)
            write_json(folder / "manifest.json", made.manifest(entries))
            finish(folder, out)
    except OSError as error:
        if error.errno in FULL:
            raise InputError(
                f"The disk that holds {out} is full; nothing half-made was kept, so make room and run the same command "
                "again."
            ) from None
        raise
    return Corpus.open(out)


def _encoded(documents: Iterator[np.ndarray], dtype: np.dtype, bar: Progress) -> Generator[Encoded]:
    held: list[np.ndarray] = []
    size = 0
    for document in documents:
        held.append(document.astype(dtype))
        size += len(document)
        bar.advance(len(document) * dtype.itemsize)
        if size >= BLOCK:
            yield _joined(held)
            held, size = [], 0
    if held:
        yield _joined(held)


def _joined(documents: list[np.ndarray]) -> Encoded:
    begins = np.cumsum([0, *(len(document) for document in documents)])
    counts = {"tokens": int(begins[-1]), "bytes": 0, "characters": 0, "words": 0, "lines": 0}
    return Encoded(np.concatenate(documents), begins[:-1].astype(np.int64), counts)


def _already(made: Made, out: Path, overwrite: bool, say: Callable[[str], None]) -> Corpus | None:
    """The corpus that is there when it is the one asked for; None when there is none or it is to be replaced."""
    if not holds_something(out):
        return None
    if not (out / "manifest.json").is_file():
        raise InputError(f"{out} exists and is not a prepared corpus; name another folder with --out.")
    if overwrite:
        return None
    corpus = Corpus.open(out)
    theirs = corpus.manifest.get("settings", {})
    for key, value in made.settings.items():
        if theirs.get(key) != value:
            raise InputError(
                f"{out} holds another preparation ({key} is {told(theirs.get(key))} there and {told(value)} here); "
                "name another folder with --out or replace it with --overwrite."
            )
    say(f"{out} holds this preparation already; nothing was done.")
    return corpus
