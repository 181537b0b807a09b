"""Writing the token files of a split as the tokens come: one pair of files, or shards of about so many tokens.

A shard ends where the first document begins after N of its tokens, and at 2 N where none does: most documents lie in
one shard, and no shard outgrows the size asked for. The cuts depend on tokens and documents alone.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from remanence.data.encoding import Encoded
from remanence.data.manifest import divided
from remanence.errors import InputError
from remanence.files import writing

_ENDLESS = 1 << 62


def write_split(
    folder: Path,
    name: str,
    encoded: Generator[Encoded],
    dtype: np.dtype,
    advance: Callable[[int], None],
    shard_tokens: int | None = None,
) -> dict[str, Any]:
    """Write the token and document files of a split; returns its entry for the manifest and closes `encoded`."""
    counts: Counter[str] = Counter()
    with closing(encoded), _Files(folder, name, dtype, shard_tokens) as files:
        for result in encoded:
            files.add(np.ascontiguousarray(result.tokens, dtype), result.documents)
            counts.update(result.counts)
            advance(result.counts["bytes"])
        shards = files.end()
    if not counts["tokens"]:
        raise InputError(f"The {name} split holds no tokens; take more text or a larger fraction.")
    order = ("tokens", "bytes", "characters", "words", "lines")
    entry = {
        "counts": {key: counts[key] for key in order} | {k: n for k, n in counts.items() if k not in order},
        "documents": sum(shard["documents"] for shard in shards),
    }
    if shard_tokens is None:
        return entry | {"sha256": shards[0]["sha256"]}
    return entry | {"sha256": divided(shards), "shards": shards}


class _Files:
    """The files of one split on their way to the disk."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, shard_tokens: int | None) -> None:
        self._folder = folder
        self._name = name
        self._dtype = dtype
        self._wanted = shard_tokens
        self._least = shard_tokens or _ENDLESS
        self._shards: list[dict[str, Any]] = []
        self._begins = False
        """Whether a document begins with the next token."""
        self._open = ExitStack()
        self._file: IO[bytes] | None = None
        self._size = 0
        self._documents = array("q")
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the file of a shard that was not ended is taken back.
        self._open.__exit__(kind, error, trace)

    def add(self, tokens: np.ndarray, documents: np.ndarray) -> None:
        """Write tokens (n,); `documents` are the offsets in them at which documents begin, which may be n."""
        # A document without tokens (white space alone, say) is none: two may not begin at the same token.
        starts = np.unique(np.append(documents, 0)) if self._begins else np.unique(documents)
        self._begins = bool(len(starts)) and int(starts[-1]) >= len(tokens)
        starts = starts[starts < len(tokens)]
        at = 0
        while at < len(tokens):
            following = starts[np.searchsorted(starts, at + max(self._least - self._size, 0)) :]
            cut = at + 2 * self._least - self._size
            if len(following):
                cut = min(cut, int(following[0]))
            end = min(cut, len(tokens))
            self._write(tokens[at:end], starts[(starts >= at) & (starts < end)] - at)
            at = end
            if end == cut:
                self._end_shard()

    def end(self) -> list[dict[str, Any]]:
        """Finish the last shard; the entries of all."""
        if self._size:
            self._end_shard()
        return self._shards

    def _write(self, tokens: np.ndarray, documents: np.ndarray) -> None:
        if not len(tokens):
            return
        if self._file is None:
            self._file = self._open.enter_context(writing(self._folder / f"{self._called()}.tokens"))
        block = tokens.view(np.uint8).data
        self._digest.update(block)
        self._file.write(block)
        self._documents.extend((documents + self._size).tolist())
        self._size += len(tokens)

    def _end_shard(self) -> None:
        if not self._size:
            return
        name = self._called()
        self._open.close()
        offsets = np.array(self._documents, "<i8").tobytes()
        with writing(self._folder / f"{name}.documents") as file:
            file.write(offsets)
        shard: dict[str, Any] = {"file": name, "tokens": self._size, "documents": len(self._documents)}
        if continues := self._documents[0] if self._documents else self._size:
            shard["continues"] = continues
        shard["sha256"] = {"tokens": self._digest.hexdigest(), "documents": hashlib.sha256(offsets).hexdigest()}
        self._shards.append(shard)
        self._file, self._size, self._documents, self._digest = None, 0, array("q"), hashlib.sha256()

    def _called(self) -> str:
        return self._name if self._wanted is None else f"{self._name}-{len(self._shards):05}"
