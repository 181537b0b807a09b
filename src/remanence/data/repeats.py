"""What lies in the folder already: the same preparation, another one, or something that is not ours to touch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from remanence.data.corpus import Corpus
from remanence.data.manifest import SPLITS
from remanence.data.published import Published, Sourced
from remanence.data.settings import Settings
from remanence.data.sources import hash_source
from remanence.data.spool import Spool
from remanence.errors import InputError

LISTED = 100
"""Source files that a manifest names one by one."""


def already(
    out: Path,
    settings: Settings,
    sourced: Sourced,
    known: Published | None,
    overwrite: bool,
    say: Callable[[str], None],
) -> Corpus | None:
    """The corpus that is there when it is the one asked for; None when there is none or it is to be replaced.

    Anything else is refused, and a folder that is no corpus is never replaced.
    """
    if not holds_something(out):
        return None
    if not (out / "manifest.json").is_file():
        raise InputError(f"{out} exists and is not a prepared corpus; name another folder with --out.")
    if overwrite:
        return None
    corpus = _existing(out)
    mine, theirs = _comparable(settings.json()), _comparable(corpus.manifest.get("settings", {}))
    for key, value in mine.items():
        if theirs.get(key) != value:
            raise InputError(
                f"{out} holds another preparation ({key} is {told(theirs.get(key))} there and {told(value)} here); "
                "name another folder with --out or replace it with --overwrite."
            )
    if known is not None and known.fixed_splits:
        say(f"{out} holds this preparation already; nothing was done.")
        return corpus
    if known is not None:
        sourced = known.sources(None, Path(), None, lambda size: None)
    if any(source.path is None for _, source in sourced):
        return None
    listed = [(where, hash_source(source)) for where, source in sourced]
    return compare(out, {"sha256": _digest(listed)}, say)


def holds_something(out: Path) -> bool:
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))


def _existing(out: Path, verify: bool = False) -> Corpus:
    try:
        return Corpus.open(out, verify)
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}, replacing the folder with --overwrite.") from None


def compare(out: Path, records: dict[str, Any], say: Callable[[str], None]) -> Corpus:
    # The sources were read in full to come here, so that reading the result as well costs little.
    corpus = _existing(out, verify=True)
    if corpus.manifest.get("sources", {}).get("sha256") != records["sha256"]:
        raise InputError(
            f"{out} was prepared the same way from other text; name another folder with --out or replace it with "
            "--overwrite."
        )
    say(f"{out} holds this preparation already; nothing was done.")
    return corpus


def source_records(spools: dict[str, Spool]) -> dict[str, Any]:
    """What was read: counted, hashed as a whole, and named one by one as long as the list stays readable."""
    readings = [(where, reading) for where, spool in spools.items() for reading in spool.readings]
    return {
        "files": len(readings),
        "bytes": sum(reading.bytes for _, reading in readings),
        "sha256": _digest([(where, reading.sha256) for where, reading in readings]),
        "first": [reading.record() for _, reading in readings[:LISTED]],
    }


def _digest(listed: list[tuple[str, str]]) -> str:
    """Of the contents of all sources in order, whatever their names."""
    order = {where: index for index, where in enumerate(("all", *SPLITS))}
    ordered = sorted(listed, key=lambda entry: order[entry[0]])
    return hashlib.sha256(json.dumps(ordered).encode()).hexdigest()


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the names of files, whose contents are what counts."""
    names = {"inputs": None, "tokenizer": "given" if settings.get("tokenizer_fingerprint") else settings["tokenizer"]}
    shares = {key: "files" if isinstance(settings[key], list) else settings[key] for key in ("validation", "test")}
    return settings | names | shares


def told(value: Any) -> str:
    """A setting in words: "train 8, validation 2"; what is long, such as a hash, by its beginning."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {told(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(told, value)) or "nothing"
    if value is None or isinstance(value, bool):
        return {None: "not given", True: "true", False: "false"}[value]
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:12]}..."
