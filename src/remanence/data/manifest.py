"""The manifest of a prepared corpus: what it may say, checked before anything it names is opened or made room for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from remanence.errors import InputError

FORMAT = "remanence-corpus"
VERSION = 1
SPLITS = ("train", "validation", "test")
UNITS = ("byte", "character", "word", "token", "symbol", "pixel")
PART = re.compile(r"part-(\d{1,9})-of-(\d{1,9})")
"""The folder of one part of a corpus that many machines prepare."""
_FILE = re.compile(rf"(?:{PART.pattern}/)?(?P<split>{'|'.join(SPLITS)})(?:-\d{{1,9}})?", re.ASCII)
"""Names that files of shards may have: none leads out of the corpus."""
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MOST = 1 << 62
"""No count is larger, so that sums fit into 64 bits."""


def token_type(vocab_size: int) -> np.dtype:
    """The smallest unsigned little-endian integer that holds every id of the vocabulary."""
    for name in ("<u1", "<u2", "<u4"):
        if vocab_size <= 2 ** (8 * np.dtype(name).itemsize):
            return np.dtype(name)
    raise InputError(f"A vocabulary of {vocab_size} ids is larger than 32 bits can number; make it smaller.")


def corpus_fingerprint(tokenizer_fingerprint: str, splits: Mapping[str, Mapping[str, Any]], **facts: int | None) -> str:
    """SHA-256 of what a model can see of a corpus: its tokens, where documents begin, and how text maps to tokens.

    `facts` are scored_last and start_token, of a corpus that has them.
    """
    seen: list[Any] = [tokenizer_fingerprint, {name: entry["sha256"] for name, entry in splits.items()}]
    if stated := {name: value for name, value in facts.items() if value is not None}:
        seen.append(stated)
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def divided(shards: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The hashes of a split that consists of shards: of the hashes of their files in order, whatever their names."""
    digests = {kind: hashlib.sha256() for kind in ("tokens", "documents")}
    for shard in shards:
        for kind, digest in digests.items():
            digest.update(f"{shard['tokens']} {shard['documents']} {shard['sha256'][kind]}\n".encode())
    return {kind: digest.hexdigest() for kind, digest in digests.items()}


def check_manifest(path: str, manifest: Any) -> None:
    """Everything later code relies on, so that a damaged manifest is one sentence and not a KeyError somewhere."""

    def fits() -> bool:
        tokenizer, splits = manifest["tokenizer"], manifest["splits"]
        facts = {name: manifest.get(name) for name in ("scored_last", "start_token")}
        return (
            isinstance(manifest["name"], str)
            and type(tokenizer["vocab_size"]) is int
            and 0 < tokenizer["vocab_size"] <= 1 << 32
            and tokenizer["unit"] in UNITS
            and isinstance(tokenizer["fingerprint"], str)
            and bool(splits)
            and set(splits) <= set(SPLITS)
            and all(_is_entry(name, entry) for name, entry in splits.items())
            and _is_fact(facts["scored_last"], 1, None)
            and _is_fact(facts["start_token"], 0, tokenizer["vocab_size"])
            and manifest["fingerprint"] == corpus_fingerprint(tokenizer["fingerprint"], splits, **facts)
        )

    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path} is not the manifest of a prepared corpus; make one with `remanence prepare`.")
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{path} is of version {manifest.get('version')!r} and this library reads version {VERSION}; "
            "prepare the corpus again."
        )
    try:
        sound = fits()
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise InputError(f"{path} was damaged or edited by hand; prepare the corpus again.")


def _is_fact(value: Any, least: int, below: int | None) -> bool:
    """Whether a fact is absent or a whole number in its range."""
    return value is None or (type(value) is int and least <= value and (below is None or value < below))


def _is_count(value: Any, least: int = 0, most: int = _MOST) -> bool:
    return type(value) is int and least <= value <= most


def _is_entry(name: str, entry: Mapping[str, Any]) -> bool:
    counts = entry["counts"]
    whole = (
        all(_is_count(counts[key]) for key in ("tokens", "bytes", "characters", "words"))
        and counts["tokens"] > 0
        and _is_count(entry["documents"], 1, counts["tokens"])
        and all(isinstance(entry["sha256"][kind], str) for kind in ("tokens", "documents"))
    )
    return whole and ("shards" not in entry or _are_shards(name, entry))


def _are_shards(name: str, entry: Mapping[str, Any]) -> bool:
    """Whether shards are named as shards are, each once, and hold together what the split is said to hold."""
    shards = entry["shards"]
    if not isinstance(shards, list) or not shards:
        return False
    for shard in shards:
        file = _FILE.fullmatch(shard["file"])
        tokens, continues = shard["tokens"], shard.get("continues", 0)
        if file is None or file["split"] != name or not _is_count(tokens, 1):
            return False
        # A document begins in a shard unless the one before goes on to its end.
        if not _is_count(continues, 0, tokens) or not _is_count(
            shard["documents"], int(continues < tokens), tokens - continues
        ):
            return False
        if not all(_HASH.fullmatch(shard["sha256"][kind]) for kind in ("tokens", "documents")):
            return False
    return (
        shards[0].get("continues", 0) == 0
        and len({shard["file"] for shard in shards}) == len(shards)
        and sum(shard["tokens"] for shard in shards) == entry["counts"]["tokens"]
        and sum(shard["documents"] for shard in shards) == entry["documents"]
        and dict(entry["sha256"]) == divided(shards)
    )
