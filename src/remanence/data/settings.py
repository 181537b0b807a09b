"""What a preparation is asked to do, checked, and as the manifest tells it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from remanence.data.published import PUBLISHED, Published
from remanence.data.sources import STDIN
from remanence.data.spool import DocumentRule
from remanence.data.tokenizers import Tokenizer
from remanence.errors import InputError

FRACTION = 0.05
"""Of the text, for validation and for test each, where nothing else is said."""

Share = float | str | Path | Sequence[str | Path] | None
"""A held-out split as callers name it: a fraction of the text, or files."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides what comes out, apart from the text itself. Kept in the manifest."""

    name: str
    inputs: tuple[str, ...] = ()
    tokenizer: str = "byte"
    """byte, char, word, bpe or the name of a tokenizer file."""
    tokenizer_fingerprint: str | None = None
    """Of a tokenizer that was given rather than trained."""
    vocab_size: int | None = None
    min_count: int = 1
    documents: DocumentRule = "file"
    separator: str | None = None
    validation: float | tuple[str, ...] = FRACTION
    """A fraction of the text, or the files that make up the split."""
    test: float | tuple[str, ...] = FRACTION
    legacy_newlines: bool = False
    licence: str = "not stated"
    shard_tokens: int | None = None
    """Tokens of a shard, about; one file a split where None."""
    part: str | None = None
    """"I/N" where this is one part of a corpus that N independent commands prepare."""

    def json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))


def command(settings: Settings) -> str:
    """The command that repeats a preparation; files that were named by a full path appear by their last part."""
    words = ["remanence", "prepare", *settings.inputs]
    plain = Settings(settings.name)
    for option in fields(Settings):
        value = getattr(settings, option.name)
        if option.name in ("inputs", "tokenizer_fingerprint", "licence") or value == getattr(plain, option.name):
            continue
        if settings.inputs[0] in PUBLISHED and value == getattr(PUBLISHED[settings.inputs[0]], option.name, 0.0):
            continue
        flag = "--" + option.name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is not None:
            values = value if isinstance(value, tuple) else (value,)
            words += [flag, *(str(item).replace("\f", r"\f").replace("\t", r"\t") for item in values)]
    return shlex.join(words)


def check_options(
    known: Published | None,
    vocab_size: int | None,
    min_count: int,
    documents: str | None,
    separator: str | None,
    workers: int | None,
    legacy_newlines: bool,
    from_folder: str | Path | None,
    mirror: str | None,
    shard_tokens: int | None,
) -> None:
    if known is None and from_folder is not None:
        raise InputError(f"--from is for published corpora ({', '.join(PUBLISHED)}); name files as inputs instead.")
    if known is None and mirror is not None:
        raise InputError(f"--mirror is for published corpora ({', '.join(PUBLISHED)}); leave it out.")
    if mirror is not None and (not mirror.startswith(("http://", "https://")) or "@" in mirror):
        raise InputError("The mirror must be an http or https address without a password in it; give such a one.")
    if legacy_newlines and (known is None or known.name != "enwik8"):
        raise InputError("--legacy-newlines is how published work prepared enwik8; leave it out for other text.")
    if vocab_size is not None and vocab_size < 1:
        raise InputError(f"The vocabulary size is {vocab_size}; it must be at least 1.")
    if min_count < 1:
        raise InputError(f"The least count of a word is {min_count}; it must be at least 1.")
    if shard_tokens is not None and shard_tokens < 1:
        raise InputError(f"A shard is to hold about {shard_tokens} tokens; it must be at least 1.")
    if workers is not None and workers < 1:
        raise InputError(f"The number of workers is {workers}; it must be at least 1.")
    if documents not in (None, "file", "separator", "none"):
        raise InputError(f'Documents can be told apart by "file", by "separator" or by "none", not by {documents!r}.')
    if separator is not None and (not separator or "\n" in separator):
        raise InputError("The separator stands alone on a line between documents; give some text without a newline.")
    if separator is not None and documents not in (None, "separator"):
        raise InputError(f'A separator has no effect with documents by "{documents}"; leave one of the two out.')


def check_settings(settings: Settings, kind: str, ready: Tokenizer | None) -> None:
    if settings.vocab_size is not None and (ready is not None or kind not in ("word", "bpe")):
        raise InputError(f"A vocabulary size has no effect with the tokenizer {settings.tokenizer}; leave it out.")
    if kind == "bpe" and ready is None and settings.vocab_size is None:
        raise InputError("The tokenizer bpe needs the size of its vocabulary; give --vocab-size, for instance 16384.")
    if settings.min_count > 1 and (ready is not None or kind != "word"):
        raise InputError("A least count is for the tokenizer word; leave it out.")
    held_out = sum(share for share in (settings.validation, settings.test) if isinstance(share, float))
    if held_out >= 1:
        raise InputError(f"Validation and test take {held_out:.4g} of the text; they must leave some for training.")
    if settings.legacy_newlines and (ready is not None or kind != "byte"):
        raise InputError("--legacy-newlines goes with the byte tokenizer; leave one of the two out.")


def check_part(settings: Settings, known: Published | None, kind: str, ready: Tokenizer | None) -> None:
    """Raise InputError where parts that know nothing of each other would not come out alike."""
    if known is not None:
        raise InputError(f"The published corpus {known.name} is prepared as a whole; leave --part out.")
    if STDIN in settings.inputs:
        raise InputError("Standard input is read once and cannot be shared out; name files, or leave --part out.")
    if ready is None and kind != "byte":
        raise InputError(
            f"A part cannot make a tokenizer ({kind}), since it sees its own text alone; prepare a sample first and "
            "name its folder by --tokenizer."
        )


def check_name(name: str) -> None:
    """Raise InputError unless a corpus may be called this: it is also the name of a folder in data/."""
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise InputError(f'The name "{name}" is not one plain folder name; give one without / and \\.')


def share_of(given: Share, split: str, known: Published | None) -> float | tuple[str, ...]:
    if known is not None and known.fixed_splits:
        if given is not None:
            raise InputError(f"The splits of {known.name} are published; leave --validation and --test out.")
        return 0.0
    if given is None:
        return FRACTION
    if isinstance(given, (str, Path, Sequence)):
        return tuple(shown_name(name) for name in as_list(given))
    if not 0 <= given < 1:
        raise InputError(f"The {split} fraction is {given}; it must be at least 0 and below 1.")
    return float(given)


def as_list(given: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [given] if isinstance(given, (str, Path)) else list(given)


def shown_name(given: str | Path) -> str:
    """An input as the manifest names it, without folders above what was named in full."""
    path = Path(given)
    if str(given) == STDIN or not (path.is_absolute() or ".." in path.parts):
        return str(given)
    return path.name or path.resolve().name


def corpus_name(given: list[str | Path]) -> str:
    """A name for text that has none: that of its first file or folder."""
    first = str(given[0]) if given else ""
    if first == STDIN:
        return "stdin"
    path = Path(first).absolute()
    while any(letter in path.name for letter in "*?[") or path.name == "..":
        path = path.parent if path.name != ".." else path.resolve()
    return path.name.lstrip(".").split(".")[0] or "text"
