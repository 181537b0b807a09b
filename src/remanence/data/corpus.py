"""A prepared corpus: a folder of token files that are mapped into memory, and the manifest that describes them.

    manifest.json          what the folder holds, where it came from, and the hash of every file
    tokenizer/             the tokenizer that made the tokens
    train.tokens           token ids, little-endian uint8, uint16 or uint32 by size of the vocabulary
    train.documents        little-endian int64 offsets at which documents begin, in tokens; the first is 0
    validation.*, test.*   likewise

A split of a large corpus consists of shards, `train-00000.tokens` and so on, perhaps in the folders of parts that many
machines prepared; the manifest lists them in order with their sizes and hashes. Such tokens are read as one array that
opens files as they are used (`shards.py`).

Two facts that most corpora lack say what is scored: `scored_last`, that only the last tokens of every document are, and
`start_token`, that every document begins with one constant symbol, which models that bring their own skip.

Opening a corpus reads the manifest and the sizes of the files, whatever their length, and runs nothing it finds there.
Opening a split of up to a gigabyte compares its hash; a larger one is compared by `Corpus.verify` only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from remanence.data.manifest import SPLITS, check_manifest, token_type
from remanence.data.places import Place, is_url, place_of
from remanence.data.shards import Starts, Tokens, shards_of
from remanence.data.tokenizers import Tokenizer
from remanence.errors import InputError

HASHED = 1 << 30
"""Bytes of a split up to which its hash is compared when it is opened, which takes a second or two at most."""


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a corpus: a stream of tokens and the places where documents begin in it."""

    tokens: np.ndarray | Tokens
    """(N,) token ids of an unsigned type; mapped from a file, or read from many."""
    vocab_size: int
    documents: np.ndarray | Starts = field(default_factory=lambda: np.zeros(1, np.int64))
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
        begun = np.asarray(self.documents)
        kept = self.tokens.first(tokens) if isinstance(self.tokens, Tokens) else self.tokens[:tokens]
        return replace(self, tokens=kept, documents=begun[begun < tokens], counts=self.counts)

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

    folder: Path | str
    """A path, or an address."""
    manifest: dict[str, Any]
    place: Place

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> Corpus:
        """Open a prepared folder, or one at an address such as "s3://bucket/books" (`places.py`).

        The manifest and, in a folder of this machine, the sizes of all files are checked; `verify` reads every file and
        checks its hash and the range of its token ids too. Raises InputError when anything is missing, damaged or does
        not fit.
        """
        folder = str(folder) if is_url(folder) else Path(folder)
        place = place_of(folder)
        manifest = place.manifest()
        check_manifest(f"{folder}/manifest.json", manifest)
        corpus = cls(folder, manifest, place)
        for name, entry in manifest["splits"].items():
            for shard in shards_of(name, entry):
                place.check(shard, corpus.dtype)
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
        tokenizer = self.place.tokenizer()
        if tokenizer.fingerprint != self.manifest["tokenizer"]["fingerprint"]:
            raise InputError(
                f"The tokenizer in {self.folder} is not the one the corpus was prepared with; prepare it again."
            )
        return tokenizer

    def split(self, name: str) -> Split:
        """The split of that name, mapped from its file. Raises InputError where there is none, or it was altered."""
        entry = self.manifest["splits"].get(name)
        if entry is None:
            raise InputError(f"The corpus {self.name} has no {name!r} split; it has {', '.join(self.splits)}.")
        folder = self.folder
        if isinstance(folder, Path) and "shards" not in entry:
            tokens, documents = self._one(folder, name)
        else:
            tokens, documents = self._shards(name)
        small = len(tokens) * self.dtype.itemsize <= HASHED
        if small and isinstance(folder, Path) and name not in self._compared:
            self._compare(name)
        return Split(
            tokens, self.vocab_size, documents, entry["counts"], self.unit, name, self.scored_last, self.start_token
        )

    def _one(self, folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and starts of documents of a split that is one file here."""
        tokens = np.memmap(folder / f"{name}.tokens", self.dtype, mode="r")
        documents = np.fromfile(folder / f"{name}.documents", "<i8").astype(np.int64)
        if documents[0] != 0 or (np.diff(documents) <= 0).any() or documents[-1] >= len(tokens):
            raise InputError(
                f"The file {name}.documents of the corpus {self.name} does not fit its tokens; prepare it again."
            )
        return tokens, documents

    def _shards(self, name: str) -> tuple[Tokens, Starts]:
        shards = shards_of(name, self.manifest["splits"][name])
        reader = self.place.reader(shards, self.dtype)
        return Tokens(shards, self.dtype, reader), Starts(shards, reader, name)

    @cached_property
    def _compared(self) -> set[str]:
        """The splits whose hashes have been found right."""
        return set()

    def _compare(self, name: str, ids: bool = False) -> None:
        """Raise InputError where a file of the split has another hash than when it was prepared.

        With `ids` its token ids are looked at as well.
        """
        split = Split(np.zeros(1, self.dtype), self.vocab_size, name=name) if ids else None
        entry = self.manifest["splits"][name]
        for shard in entry.get("shards", [{"file": name, "sha256": entry["sha256"]}]):
            for kind in ("tokens", "documents"):
                self._compare_file(
                    f"{shard['file']}.{kind}", shard["sha256"][kind], split if kind == "tokens" else None
                )
        self._compared.add(name)

    def verify(self) -> None:
        """Read everything once: hashes, token ids, tokenizer. Raises InputError at the first thing that differs."""
        for name in self.splits:
            self._compare(name, ids=True)
            split = self.split(name)
            if isinstance(split.documents, Starts):
                for shard in range(len(split.documents.shards)):
                    split.documents.ranges(shard)
        self.tokenizer.fingerprint  # noqa: B018  loading it is the check

    def _compare_file(self, name: str, expected: str, split: Split | None) -> None:
        digest, wrong = hashlib.sha256(), None
        for chunk in self.place.chunks(name):
            digest.update(chunk)
            if split is not None and wrong is None:
                try:
                    split.check(np.frombuffer(chunk, self.dtype))
                except InputError as error:
                    wrong = error
        if digest.hexdigest() != expected:
            raise InputError(
                f"The file {name} of the corpus {self.name} has another hash than its manifest says; it was altered, "
                "so prepare the corpus again."
            )
        if wrong is not None:
            raise wrong
