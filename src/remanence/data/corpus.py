"""A prepared corpus: a folder of token files that are mapped into memory, and the manifest that describes them.

    manifest.json          what the folder holds, where it came from, and the hash of every file
    tokenizer/             the tokenizer that made the tokens
    train.tokens           token ids, little-endian uint8, uint16 or uint32 by size of the vocabulary
    train.documents        little-endian int64 offsets at which documents begin, in tokens; the first is 0
    validation.*, test.*   likewise

Two facts that most corpora lack say what is scored: `scored_last`, that only the last tokens of every document are, and
`start_token`, that every document begins with one constant symbol, which models that bring their own skip.

Opening a corpus reads the manifest and the sizes of the files, whatever their length, and runs nothing it finds there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from remanence.data.tokenizers import Tokenizer, load_tokenizer
from remanence.errors import InputError
from remanence.files import read_json, sha256_file

FORMAT = "remanence-corpus"
VERSION = 1
SPLITS = ("train", "validation", "test")
UNITS = ("byte", "character", "word", "token", "symbol", "pixel")


def token_type(vocab_size: int) -> np.dtype:
    """The smallest unsigned little-endian integer that holds every id of the vocabulary."""
    for name in ("<u1", "<u2", "<u4"):
        if vocab_size <= 2 ** (8 * np.dtype(name).itemsize):
            return np.dtype(name)
    raise InputError(f"A vocabulary of {vocab_size} ids is larger than 32 bits can number; make it smaller.")


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a corpus: a stream of tokens and the places where documents begin in it."""

    tokens: np.ndarray
    """(N,) token ids of an unsigned type; usually mapped from a file."""
    vocab_size: int
    documents: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    """Ascending int64 offsets at which documents begin; always contains 0."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """"tokens", "bytes", "characters", "words" and "lines" of the text that the tokens stand for."""
    unit: str = "token"
    name: str = "split"
    scored_last: int | None = None
    """Only so many last tokens of every document are scored; None scores all."""
    start_token: int | None = None
    """The first token of every document, where that is the same for all; None where it is text."""

    def __post_init__(self) -> None:
        if not self.counts:
            object.__setattr__(self, "counts", {"tokens": len(self.tokens)})

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def whole_documents(self) -> bool:
        """Whether a part of a document means nothing: where only ends are scored, or all begin alike."""
        return self.scored_last is not None or self.start_token is not None

    def is_scored(self, positions: np.ndarray) -> np.ndarray:
        """Which positions in the split are scored as targets: those close enough to the end of their document."""
        if self.scored_last is None:
            return np.ones(positions.shape, bool)
        ends = np.append(self.documents[1:], len(self))
        return ends[np.searchsorted(self.documents, positions, side="right") - 1] - positions <= self.scored_last

    def first(self, tokens: int) -> Split:
        """The split up to so many tokens; where documents must stay whole they do, and at least one is there."""
        if tokens >= len(self):
            return self
        if self.whole_documents:
            edges = np.append(self.documents[1:], len(self))
            tokens = int(edges[max(0, int(np.searchsorted(edges, tokens, side="right")) - 1)])
        return replace(
            self, tokens=self.tokens[:tokens], documents=self.documents[self.documents < tokens], counts=self.counts
        )

    def check(self, tokens: np.ndarray) -> None:
        """Raise InputError where an id lies outside the vocabulary: the file was altered or is another corpus's."""
        if tokens.size and int(tokens.max()) >= self.vocab_size:
            raise InputError(
                f"The {self.name} split holds token id {int(tokens.max())}, outside its vocabulary of "
                f"{self.vocab_size}; the file was altered or belongs to another corpus, so prepare it again."
            )


@dataclass(frozen=True, eq=False)
class Corpus:
    """A prepared folder; make one with `remanence prepare`, open it with `Corpus.open`."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> Corpus:
        """Open a prepared folder.

        The manifest and the sizes of all files are checked; `verify` reads every file and checks its hash and the
        range of its token ids too. Raises InputError when anything is missing, damaged or does not fit.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(
                f"There is no prepared corpus at {folder}; make one with `remanence prepare` or check the path."
            )
        manifest = read_json(folder / "manifest.json", "The manifest of the corpus")
        _check_manifest(folder, manifest)
        corpus = cls(folder, manifest)
        for name, entry in manifest["splits"].items():
            _check_files(folder, name, entry, corpus.dtype)
        if verify:
            corpus.verify()
        return corpus

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def vocab_size(self) -> int:
        return self.manifest["tokenizer"]["vocab_size"]

    @property
    def unit(self) -> str:
        """What one token is: "byte", "character", "word", "symbol", "pixel", or "token" for sub-words."""
        return self.manifest["tokenizer"]["unit"]

    @property
    def scored_last(self) -> int | None:
        """How many last tokens of every document are scored; None where all are."""
        return self.manifest.get("scored_last")

    @property
    def start_token(self) -> int | None:
        """The constant first token of every document; None where there is none."""
        return self.manifest.get("start_token")

    @property
    def fingerprint(self) -> str:
        """Depends on the tokens, the documents and the tokenizer, and on nothing else."""
        return self.manifest["fingerprint"]

    @property
    def dtype(self) -> np.dtype:
        return token_type(self.vocab_size)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(name for name in SPLITS if name in self.manifest["splits"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = load_tokenizer(self.folder / "tokenizer")
        if tokenizer.fingerprint != self.manifest["tokenizer"]["fingerprint"]:
            raise InputError(
                f"The tokenizer in {self.folder} is not the one the corpus was prepared with; prepare it again."
            )
        return tokenizer

    def split(self, name: str) -> Split:
        """The split of that name, mapped from its file. Raises InputError when the corpus has none."""
        entry = self.manifest["splits"].get(name)
        if entry is None:
            raise InputError(f"The corpus {self.name} has no {name!r} split; it has {', '.join(self.splits)}.")
        tokens = np.memmap(self.folder / f"{name}.tokens", self.dtype, mode="r")
        documents = np.fromfile(self.folder / f"{name}.documents", "<i8").astype(np.int64)
        if documents[0] != 0 or (np.diff(documents) <= 0).any() or documents[-1] >= len(tokens):
            raise InputError(
                f"The file {name}.documents of the corpus {self.name} does not fit its tokens; prepare it again."
            )
        return Split(
            tokens, self.vocab_size, documents, entry["counts"], self.unit, name, self.scored_last, self.start_token
        )

    def verify(self) -> None:
        """Read everything once: hashes, token ids, tokenizer. Raises InputError at the first thing that differs."""
        for name in self.splits:
            entry = self.manifest["splits"][name]
            for kind in ("tokens", "documents"):
                if sha256_file(self.folder / f"{name}.{kind}") != entry["sha256"][kind]:
                    raise InputError(
                        f"The file {name}.{kind} of the corpus {self.name} has another hash than its manifest says; "
                        "it was altered, so prepare the corpus again."
                    )
            split = self.split(name)
            for begin in range(0, len(split), 1 << 22):
                split.check(split.tokens[begin : begin + (1 << 22)])
        self.tokenizer.fingerprint  # noqa: B018  loading it is the check


def corpus_fingerprint(tokenizer_fingerprint: str, splits: Mapping[str, Mapping[str, Any]], **facts: int | None) -> str:
    """SHA-256 of what a model can see of a corpus: its tokens, where documents begin, and how text maps to tokens.

    `facts` are scored_last and start_token, of a corpus that has them.
    """
    seen: list[Any] = [tokenizer_fingerprint, {name: entry["sha256"] for name, entry in splits.items()}]
    if stated := {name: value for name, value in facts.items() if value is not None}:
        seen.append(stated)
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def _check_manifest(folder: Path, manifest: Any) -> None:
    """Everything later code relies on, so that a damaged manifest is one sentence and not a KeyError somewhere."""

    def fits() -> bool:
        tokenizer, splits = manifest["tokenizer"], manifest["splits"]
        facts = {name: manifest.get(name) for name in ("scored_last", "start_token")}
        return (
            isinstance(manifest["name"], str)
            and isinstance(tokenizer["vocab_size"], int)
            and tokenizer["vocab_size"] > 0
            and tokenizer["unit"] in UNITS
            and bool(splits)
            and set(splits) <= set(SPLITS)
            and all(_is_entry(entry) for entry in splits.values())
            and _is_count(facts["scored_last"], 1, None)
            and _is_count(facts["start_token"], 0, tokenizer["vocab_size"])
            and manifest["fingerprint"] == corpus_fingerprint(tokenizer["fingerprint"], splits, **facts)
        )

    path = folder / "manifest.json"
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path} is not the manifest of a prepared corpus; make one with `remanence prepare`.")
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{path} is of version {manifest.get('version')!r} and this library reads version {VERSION}; "
            "prepare the corpus again."
        )
    try:
        sound = fits()
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise InputError(f"{path} was damaged or edited by hand; prepare the corpus again.")


def _is_count(value: Any, least: int, below: int | None) -> bool:
    """Whether a fact is absent or a whole number in its range."""
    return value is None or (type(value) is int and least <= value and (below is None or value < below))


def _is_entry(entry: Mapping[str, Any]) -> bool:
    counts = entry["counts"]
    return (
        all(isinstance(counts[key], int) for key in ("tokens", "bytes", "characters", "words"))
        and counts["tokens"] > 0
        and isinstance(entry["documents"], int)
        and entry["documents"] > 0
        and all(isinstance(entry["sha256"][kind], str) for kind in ("tokens", "documents"))
    )


def _check_files(folder: Path, name: str, entry: Mapping[str, Any], dtype: np.dtype) -> None:
    sizes = {"tokens": entry["counts"]["tokens"] * dtype.itemsize, "documents": entry["documents"] * 8}
    for kind, size in sizes.items():
        path = folder / f"{name}.{kind}"
        if not path.is_file():
            raise InputError(f"The corpus in {folder} lacks its file {path.name}; prepare it again.")
        if path.stat().st_size != size:
            raise InputError(
                f"The file {path} has {path.stat().st_size} bytes and its manifest says {size}; "
                "it was cut short or altered, so prepare the corpus again."
            )
