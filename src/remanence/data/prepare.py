"""Preparation: text from anywhere becomes a folder that `Corpus.open` opens.

    sources -> spool (one file of text) -> parts (splits) -> vocabulary -> token files -> manifest

Everything is made in a hidden folder beside the target, which takes its name at the end: an interrupt, a full disk or a
bad input leaves nothing behind, and the same command can be run again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from remanence.data.corpus import FORMAT, VERSION, Corpus, corpus_fingerprint, token_type
from remanence.data.encoding import cores, encode_task, in_threads, tasks, write_split
from remanence.data.progress import Progress
from remanence.data.published import PUBLISHED
from remanence.data.sources import Source, find_sources, hash_source, standard_library
from remanence.data.spool import DocumentRule, Part, Spool, divide, gather
from remanence.data.staging import finish, staging
from remanence.data.tokenizers import Tokenizer
from remanence.data.tokenizers.byte import ByteTokenizer
from remanence.errors import InputError
from remanence.files import read_json, write_json


@dataclass(frozen=True)
class Settings:
    """Everything that decides what comes out, apart from the text itself."""

    name: str
    tokenizer: str = "byte"
    documents: DocumentRule = "file"
    separator: str | None = None
    validation: float = 0.05
    test: float = 0.05


def prepare(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    name: str | None = None,
    tokenizer: str = "byte",
    documents: DocumentRule | None = None,
    separator: str | None = None,
    validation: float | None = None,
    test: float | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Corpus:
    """Prepare a corpus and open it; what `remanence prepare` does."""
    named, sources = _resolve(inputs)
    settings = Settings(
        name=name or named,
        tokenizer=tokenizer,
        documents=documents or "file",
        separator=separator,
        validation=0.05 if validation is None else validation,
        test=0.05 if test is None else test,
    )
    out = Path(out) if out is not None else Path("data") / settings.name
    workers = workers or cores()
    try:
        with staging(out) as folder, Progress(progress) as bar:
            bar.stage("Reading", sum(source.size for source in sources))
            spool = gather(
                sources, folder / "text", settings.documents, (separator or "\f").encode(), workers, bar.advance
            )
            parts = divide(spool, _fractions(settings))
            chosen = ByteTokenizer()
            chosen.save(folder / "tokenizer")
            dtype = token_type(chosen.vocab_size)
            bar.stage("Encoding", spool.size)
            splits = {
                split: write_split(
                    folder,
                    split,
                    in_threads(lambda task: encode_task(task, None, dtype), tasks(part), min(workers, 4)),
                    dtype,
                    bar.advance,
                )
                for split, part in parts.items()
            }
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "name": settings.name,
                "tokenizer": {
                    "name": chosen.name,
                    "unit": chosen.unit,
                    "vocab_size": chosen.vocab_size,
                    "fingerprint": chosen.fingerprint,
                },
                "splits": splits,
                "settings": asdict(settings),
                "fingerprint": corpus_fingerprint(chosen.fingerprint, splits),
            }
            spool.path.unlink()
            write_json(folder / "manifest.json", manifest)
            finish(folder, out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise InputError(
                f"The disk that holds {out} is full; nothing was kept, so make room and run the same command again."
            ) from None
        raise
    return Corpus.open(out)


def _resolve(inputs: str | Path | Sequence[str | Path]) -> tuple[str, list[Source]]:
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    if len(given) == 1 and given[0] in PUBLISHED:
        return str(given[0]), standard_library()
    return Path(str(given[0])).stem if given else "corpus", find_sources(given)


def _fractions(settings: Settings) -> dict[str, float]:
    return {
        "train": 1 - settings.validation - settings.test,
        "validation": settings.validation,
        "test": settings.test,
    }
