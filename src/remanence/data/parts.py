"""A corpus that many machines prepare: parts that know nothing of each other, and the manifest that joins them.

    remanence prepare TEXT --tokenizer T --out DIR --part I/N      for every I, anywhere, in any order, again if killed
    remanence prepare --join DIR                                   once, when all N folders lie in DIR

Part I gets consecutive files of the sorted list, about an N-th of the bytes, so that the parts one after the other are
the text in its order. Joining writes a manifest that names the shards where they lie; no token is copied.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from remanence.data.corpus import Corpus
from remanence.data.manifest import PART, SPLITS, corpus_fingerprint, divided
from remanence.data.progress import Progress
from remanence.data.published import Sourced
from remanence.data.workers import cores, in_threads
from remanence.errors import InputError
from remanence.files import sha256_file, write_json

LARGEST = 999_999
"""Parts at most."""


@dataclass(frozen=True)
class Which:
    """The `index`-th of `count` parts, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "I/N". Raises InputError where it is none."""
        index, slash, count = text.partition("/")
        if not (slash and index.isascii() and count.isascii() and index.isdigit() and count.isdigit()):
            raise InputError(f'The part {text!r} is not of the form I/N; write "3/64" for the third of 64 parts.')
        if max(len(index), len(count)) > 6 or not 1 <= int(index) <= int(count):
            raise InputError(f"The part {text} does not exist; parts are 1/N to N/N, and N is {LARGEST:,} at most.")
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def folder(self) -> str:
        return f"part-{self.index:06}-of-{self.count:06}"

    def share(self, sourced: Sourced) -> Sourced:
        """The files of this part: consecutive ones of each split. Raises InputError where they are too few."""
        chosen: Sourced = []
        for where in ("all", *SPLITS):
            files: Sourced = [(place, source) for place, source in sourced if place == where]
            if where == "all" and len(files) < self.count:
                raise InputError(
                    f"The text has {len(files)} files, too few for {self.count} parts, since files are not divided; "
                    "take fewer parts or cut the text into more files."
                )
            begin, end = _cuts([source.size for _, source in files], self.count)[self.index - 1 : self.index + 1]
            chosen += files[begin:end]
        return chosen


def listing_of(sourced: Sourced) -> str:
    """SHA-256 of the names and sizes of all files, in which parts of one corpus agree."""
    listed = [(where, source.name, source.size) for where, source in sourced]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def join(
    out: str | Path,
    *,
    verify: bool = True,
    workers: int | None = None,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Corpus:
    """Make one corpus of the parts that lie in `out`, by a manifest. This is what `remanence prepare --join` does.

    Every file's hash is checked, or with `verify` off its size alone. A manifest of the same parts is left as it is.
    Raises InputError where a part is missing or does not fit the others.
    """
    out = Path(out)
    parts = [Corpus.open(out / which.folder) for which in _found(out)]
    for part in parts[1:]:
        _check_alike(parts[0], part)
    try:
        manifest = _joined(parts)
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"A manifest among the parts in {out} was edited by hand; prepare that part again.") from None
    if (out / "manifest.json").exists():
        corpus = Corpus.open(out)
        if corpus.fingerprint != manifest["fingerprint"]:
            raise InputError(
                f"{out} holds the manifest of another corpus; remove its manifest.json, or join the parts elsewhere."
            )
        say(f"{out} joins these parts already; nothing was done.")
        return corpus
    if verify:
        with Progress(progress) as bar:
            _verify(parts, workers or cores(), bar)
    parts[0].tokenizer.save(out / "tokenizer")
    write_json(out / "manifest.json", manifest)
    return Corpus.open(out)


def _cuts(sizes: list[int], count: int) -> list[int]:
    """(count + 1) where each of so many parts begins in a list of files: about even in bytes, none empty as long as
    there are files.
    """
    total, cuts, reached, index = sum(sizes), [0], 0, 0
    for part in range(1, count + 1):
        most = max(cuts[-1], len(sizes) - (count - part))
        # Up to the file whose middle lies beyond the part's share.
        while index < most and (
            index < min(cuts[-1] + 1, len(sizes)) or (2 * reached + sizes[index]) * count < 2 * total * part
        ):
            reached += sizes[index]
            index += 1
        cuts.append(index)
    cuts[-1] = len(sizes)
    return cuts


def _found(out: Path) -> list[Which]:
    """The parts in a folder, in order; all of them are there."""
    if not out.is_dir():
        raise InputError(f"There is no folder {out}; name the one that the parts were prepared in by --out.")
    names = [match for entry in out.iterdir() if (match := PART.fullmatch(entry.name))]
    counts = sorted({int(match[2]) for match in names})
    if not counts:
        raise InputError(f"{out} holds no parts; prepare them with --part I/N and --out {out}.")
    if len(counts) > 1:
        raise InputError(
            f"{out} holds parts of {counts[0]} and parts of {counts[1]}; move those of one preparation elsewhere."
        )
    there = {int(match[1]) for match in names}
    if missing := [index for index in range(1, counts[0] + 1) if index not in there][:5]:
        lacking = counts[0] - len(there)
        named = ", ".join(f"{index}/{counts[0]}" for index in missing) + (", ..." if lacking > len(missing) else "")
        raise InputError(f"{lacking} of {counts[0]} parts are missing in {out} ({named}); prepare them first.")
    return [Which(index, counts[0]) for index in sorted(there)]


def _check_alike(first: Corpus, other: Corpus) -> None:
    """Raise InputError unless two parts were prepared in the same way from the same list of files."""
    for what, one, two in (
        ("tokenizer", first.manifest["tokenizer"], other.manifest["tokenizer"]),
        ("list of files", _listing(first), _listing(other)),
        *((name, value, _settings(other).get(name)) for name, value in _settings(first).items()),
    ):
        if one != two:
            raise InputError(
                f"{Path(other.folder).name} was prepared with another {what} than {Path(first.folder).name}; prepare "
                "the one that is wrong again."
            )


def _listing(part: Corpus) -> Any:
    sources = part.manifest.get("sources")
    return sources.get("listing") if isinstance(sources, dict) else None


def _settings(part: Corpus) -> dict[str, Any]:
    settings = part.manifest.get("settings")
    if not isinstance(settings, dict):
        raise InputError(f"The manifest of {Path(part.folder).name} was edited by hand; prepare that part again.")
    return {name: value for name, value in settings.items() if name not in ("part", "tokenizer")}


def _joined(parts: list[Corpus]) -> dict[str, Any]:
    """The manifest of all parts together."""
    first = parts[0].manifest
    splits = {}
    for split in SPLITS:
        entries = [(Path(part.folder).name, part.manifest["splits"].get(split)) for part in parts]
        shards = [shard for folder, entry in entries if entry for shard in _shards(folder, split, entry)]
        if shards:
            counts: Counter[str] = Counter()
            for _, entry in entries:
                counts.update(entry["counts"] if entry else {})
            splits[split] = {
                "counts": dict(counts),
                "documents": sum(shard["documents"] for shard in shards),
                "sha256": divided(shards),
                "shards": shards,
            }
    sources = [part.manifest["sources"] for part in parts]
    told = {
        "files": sum(each["files"] for each in sources),
        "bytes": sum(each["bytes"] for each in sources),
        "sha256": hashlib.sha256("".join(each["sha256"] for each in sources).encode()).hexdigest(),
        "first": sources[0]["first"],
        "listing": _listing(parts[0]),
    }
    return first | {
        "splits": splits,
        "sources": told,
        "settings": first["settings"] | {"part": None},
        "parts": len(parts),
        "fingerprint": corpus_fingerprint(first["tokenizer"]["fingerprint"], splits),
    }


def _shards(folder: str, split: str, entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    whole = {
        "file": split,
        "tokens": entry["counts"]["tokens"],
        "documents": entry["documents"],
        "sha256": entry["sha256"],
    }
    for shard in entry.get("shards", [whole]):
        yield shard | {"file": f"{folder}/{shard['file']}"}


def _verify(parts: list[Corpus], threads: int, bar: Progress) -> None:
    """Read every file of all parts and compare its hash."""
    files = [
        (Path(part.folder) / f"{shard['file'].rpartition('/')[2]}.{kind}", shard["sha256"][kind])
        for part in parts
        for split, entry in part.manifest["splits"].items()
        for shard in _shards("", split, entry)
        for kind in ("tokens", "documents")
    ]
    bar.stage("Checking", sum(path.stat().st_size for path, _ in files))
    with closing(in_threads(lambda file: (file[0], sha256_file(file[0]) == file[1]), files, threads)) as checked:
        for path, same in checked:
            if not same:
                raise InputError(
                    f"The file {path} has another hash than the manifest of its part says; it was damaged on its way, "
                    "so copy or prepare that part again."
                )
            bar.advance(path.stat().st_size)
