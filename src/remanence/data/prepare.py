"""Preparation: text from anywhere becomes a folder that `Corpus.open` opens.

    sources -> spool (text gathered on the disk) -> parts (splits) -> vocabulary -> token files -> manifest

Everything is made in a hidden folder beside the target, which takes its name at the end: an interrupt, a full disk or a
bad input leaves nothing behind, and the same command can be run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from remanence.data.corpus import Corpus
from remanence.data.encoding import NotText, not_text, tasks
from remanence.data.fetch import cache_folder
from remanence.data.learning import KINDS, make_tokenizer
from remanence.data.manifest import FORMAT, SPLITS, VERSION, corpus_fingerprint, token_type
from remanence.data.parts import Which, listing_of
from remanence.data.progress import Progress
from remanence.data.published import LEGACY_ENWIK8_SYMBOLS, PUBLISHED, Published, Sourced, Where
from remanence.data.repeats import already, compare, holds_something, source_records
from remanence.data.settings import (
    Settings,
    Share,
    as_list,
    check_name,
    check_options,
    check_part,
    check_settings,
    command,
    corpus_name,
    share_of,
    shown_name,
)
from remanence.data.sources import find_sources
from remanence.data.spool import DocumentRule, Part, Spool, cut_at, divide, gather
from remanence.data.staging import FULL, finish, staging
from remanence.data.tokenizers import Tokenizer
from remanence.data.workers import Crew, cores
from remanence.data.writing import write_split
from remanence.errors import InputError
from remanence.files import write_json


def prepare(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    name: str | None = None,
    tokenizer: str | Path | None = None,
    vocab_size: int | None = None,
    min_count: int = 1,
    documents: DocumentRule | None = None,
    separator: str | None = None,
    validation: Share = None,
    test: Share = None,
    legacy_newlines: bool = False,
    licence: str | None = None,
    from_folder: str | Path | None = None,
    mirror: str | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    shard_tokens: int | None = None,
    part: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Corpus:
    """Prepare a corpus in the folder `out` and open it. This is what `remanence prepare` does.

    `inputs` are files, folders, patterns or "-" for standard input, or the name of a published corpus. Where nothing
    is said, a published corpus is prepared as in its papers, and other text as bytes, one document a file, with 5 % for
    validation and 5 % for test. `out` is `data/NAME` by default. `say` hears what happens, in sentences.

    With `shard_tokens` every split is written as shards of about so many tokens. With `part` "I/N" only the I-th of N
    parts of the files is prepared, in a folder of its own in `out`; `join` makes one corpus of them (`parts.py`).

    A folder that holds the result of the same preparation of the same text is left as it is; another one is refused
    unless `overwrite` is set. Raises InputError for whatever cannot be prepared.
    """
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    known = PUBLISHED.get(str(given[0])) if len(given) == 1 else None
    check_options(
        known, vocab_size, min_count, documents, separator, workers, legacy_newlines, from_folder, mirror, shard_tokens
    )
    if name is not None:
        check_name(name)
    cache = Path(cache) if cache is not None else cache_folder()
    workers = workers or cores()
    sourced, shown = ([], (known.name,)) if known else _find(given, validation, test)
    chosen, kind, ready = _tokenizer(tokenizer, known)
    settings = Settings(
        name=name or (known.name if known else corpus_name(given)),
        inputs=shown,
        tokenizer=chosen,
        tokenizer_fingerprint=ready.fingerprint if ready else None,
        vocab_size=vocab_size if vocab_size is not None or known is None or kind != "bpe" else known.vocab_size,
        min_count=min_count,
        documents=documents or (known.documents if known else "separator" if separator is not None else "file"),
        separator=separator if separator is not None else "\f" if documents == "separator" else None,
        validation=share_of(validation, "validation", known),
        test=share_of(test, "test", known),
        legacy_newlines=legacy_newlines,
        licence=licence or (known.licence if known else "not stated"),
        shard_tokens=shard_tokens,
        part=None if part is None else str(Which.parse(part)),
    )
    check_settings(settings, kind, ready)
    out = Path(out) if out is not None else Path("data") / settings.name
    sourced = _outside(sourced, out)
    listing = None
    if part is not None:
        check_part(settings, known, kind, ready)
        which = Which.parse(part)
        # What all parts must agree on is taken before the text is shared out.
        listing, out = listing_of(sourced), out / which.folder
        sourced = which.share(sourced)
    try:
        if (same := already(out, settings, sourced, known, overwrite, say)) is not None:
            return same
        job = _Job(out, settings, known, kind, ready, workers, overwrite, say, listing)
        with staging(out) as folder, Progress(progress) as bar:
            if known:
                bar.stage("Fetching", known.archive.size if known.archive and from_folder is None else None)
                sourced = known.sources(Path(from_folder) if from_folder else None, cache, mirror, bar.advance)
            return job.run(folder, sourced, bar)
    except OSError as error:
        if error.errno in FULL:
            where = cache if str(error.filename or "").startswith(str(cache)) else out
            raise InputError(
                f"The disk that holds {where} is full; nothing half-made was kept, so make room and run the same "
                "command again."
            ) from None
        raise


@dataclass
class _Job:
    """One preparation on its way."""

    out: Path
    settings: Settings
    known: Published | None
    kind: str
    ready: Tokenizer | None
    workers: int
    overwrite: bool
    say: Callable[[str], None]
    listing: str | None = None
    """Hash of the names and sizes of all files, of which a part has some."""

    def run(self, folder: Path, sourced: Sourced, bar: Progress) -> Corpus:
        spools = self._gather(folder, sourced, bar)
        records = source_records(spools)
        if not self.overwrite and holds_something(self.out):
            # Only standard input comes this far: what it holds is known now.
            return compare(self.out, records, self.say)
        if self.settings.separator is not None and all(
            len(spool.documents) <= len(spool.readings) for spool in spools.values()
        ):
            self.say(
                f"remanence: warning: The separator {self.settings.separator!r} divides nothing: no line between two "
                "others consists of it."
            )
        parts = self._parts(spools)
        size = sum(map(len, parts.values()))
        try:
            with Crew(self.workers, size) as crew:
                tokenizer, splits = self._encode(folder, parts, crew, bar)
        except NotText as error:
            raise not_text(error, spools.values()) from None
        self._verify(tokenizer, splits)
        manifest = self._manifest(tokenizer, splits, records)
        for spool in spools.values():
            spool.path.unlink()
        write_json(folder / "manifest.json", manifest)
        finish(folder, self.out)
        return Corpus.open(self.out)

    def _gather(self, folder: Path, sourced: Sourced, bar: Progress) -> dict[str, Spool]:
        bar.stage("Reading", sum(source.size for _, source in sourced))
        spools = {}
        for where in ("all", *SPLITS):
            sources = [source for place, source in sourced if place == where]
            if sources:
                spools[where] = gather(
                    sources,
                    folder / f"{where}.text",
                    self.settings.documents,
                    (self.settings.separator or "\f").encode("utf-8", "surrogateescape"),
                    self.workers,
                    bar.advance,
                )
        return spools

    def _parts(self, spools: dict[str, Spool]) -> dict[str, Part]:
        parts = {where: spool.whole() for where, spool in spools.items() if where != "all"}
        if "all" in spools:
            sizes = self.known.sizes if self.known else None
            if sizes is None:
                held_out = {
                    split: share
                    for split, share in (("validation", self.settings.validation), ("test", self.settings.test))
                    if isinstance(share, float) and split not in parts
                }
                parts |= divide(spools["all"], {"train": 1 - sum(held_out.values()), **held_out})
            elif sum(sizes.values()) == spools["all"].size:
                parts |= cut_at(spools["all"], dict(sizes))
            else:
                raise InputError(
                    f"{self.settings.inputs[0]} has {sum(sizes.values())} bytes and the file given has "
                    f"{spools['all'].size}; name the published file."
                )
        return {split: parts[split] for split in SPLITS if split in parts}

    def _encode(
        self, folder: Path, parts: dict[str, Part], crew: Crew, bar: Progress
    ) -> tuple[Tokenizer, dict[str, Any]]:
        drop = b"\n" if self.settings.legacy_newlines else b""
        tokenizer = self.ready or make_tokenizer(self.kind, parts, crew, self.settings, drop, self.known is None, bar)
        if self.kind == "bpe" and tokenizer.vocab_size < (self.settings.vocab_size or 0):
            self.say(
                f"remanence: warning: The training text has no more than {tokenizer.vocab_size:,} sub-words that occur "
                f"twice, so the vocabulary is smaller than the {self.settings.vocab_size:,} that were asked for."
            )
        tokenizer.save(folder / "tokenizer")
        dtype = token_type(tokenizer.vocab_size)
        bar.stage("Encoding", sum(map(len, parts.values())))
        splits = {}
        for split, part in parts.items():
            encoded = crew.encode(tasks(part), folder / "tokenizer", drop, dtype)
            entry = write_split(folder, split, encoded, dtype, bar.advance, self.settings.shard_tokens)
            counts = entry["counts"]
            if tokenizer.unit == "word":
                counts["words"] = counts["tokens"]
            elif self.known and self.known.words_count_lines:
                counts["words"] += counts["lines"]
            splits[split] = entry
        return tokenizer, splits

    def _verify(self, tokenizer: Tokenizer, splits: dict[str, Any]) -> None:
        """Hold the result against the published sizes."""
        if self.known is None:
            return
        for unit, expected in self.known.expected.items():
            if unit == "bytes" and self.settings.legacy_newlines:
                continue
            for split, count in expected.items():
                got = splits[split]["documents"] if unit == "documents" else splits[split]["counts"][unit]
                if got != count:
                    raise InputError(
                        f"The {split} split of {self.known.name} came out with {got} {unit} and the published one has "
                        f"{count}; the files are another version, so fetch them anew."
                    )
        published = LEGACY_ENWIK8_SYMBOLS if self.settings.legacy_newlines else self.known.expected_vocabulary
        trimmed = self.settings.vocab_size is not None or self.settings.min_count > 1
        as_published = self.kind == self.known.tokenizer and not trimmed
        if published and as_published and tokenizer.vocab_size != published:
            raise InputError(
                f"The vocabulary of {self.known.name} came out with {tokenizer.vocab_size} entries and the published "
                f"one has {published}; the files are another version, so fetch them anew."
            )

    def _manifest(self, tokenizer: Tokenizer, splits: dict[str, Any], records: dict[str, Any]) -> dict[str, Any]:
        from remanence import __version__

        if tokenizer.unit == "word":
            words = "tokens, <eos> among them"
        elif self.known and self.known.words_count_lines:
            words = "runs without white space, and one for the end of every line, as in the published counts"
        else:
            words = "runs without white space"
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.settings.name,
            "title": self.known.title if self.known else self.settings.name,
            "licence": self.settings.licence,
            "homepage": self.known.homepage if self.known else None,
            "command": command(self.settings),
            "prepared_by": f"remanence {__version__}",
            "tokenizer": {
                "name": tokenizer.name,
                "unit": tokenizer.unit,
                "vocab_size": tokenizer.vocab_size,
                "fingerprint": tokenizer.fingerprint,
            },
            "token_type": token_type(tokenizer.vocab_size).name,
            "words": words,
            "splits": splits,
            "sources": records if self.listing is None else records | {"listing": self.listing},
            "settings": self.settings.json(),
            "fingerprint": corpus_fingerprint(tokenizer.fingerprint, splits),
        }


def _find(
    given: list[str | Path],
    validation: Share,
    test: Share,
) -> tuple[Sourced, tuple[str, ...]]:
    """Sources of the splits, and the inputs as the manifest names them."""
    for name in map(str, given):
        near = get_close_matches(name, PUBLISHED, 1, 0.8)
        if name in PUBLISHED:
            raise InputError(f"The published corpus {name} is prepared alone; leave the other inputs out.")
        if near and not Path(name).exists():
            raise InputError(f"There is no file {name}; the published corpus is called {near[0]}.")
    sourced: Sourced = []
    wanted: tuple[tuple[Where, Any], ...] = (("all", given), ("validation", validation), ("test", test))
    for where, named in wanted:
        if isinstance(named, (str, Path, Sequence)):
            for source in find_sources(as_list(named)):
                sourced.append((where, source))
    if sum(source.path is None for _, source in sourced) > 1:
        raise InputError('Standard input ("-") was given twice and can be read once; give it once.')
    seen: dict[Path, str] = {}
    for where, source in sourced:
        if source.path is not None and seen.setdefault(source.path.resolve(), where) != where:
            raise InputError(f"{source.name} was named for two splits; leave it out of one of them.")
    return sourced, tuple(shown_name(name) for name in given)


def _outside(sourced: Sourced, out: Path) -> Sourced:
    """Sources without those that an earlier preparation put there, where the corpus lies in a folder of the text."""
    inside = out.resolve()
    kept: Sourced = []
    for where, source in sourced:
        if source.given or source.path is None or not source.path.resolve().is_relative_to(inside):
            kept.append((where, source))
    if sourced and not kept:
        raise InputError(f"All files that were named lie in {out}, where the corpus is to go; name another folder.")
    return kept


def _tokenizer(given: str | Path | None, known: Published | None) -> tuple[str, str, Tokenizer | None]:
    """How the settings call it, its kind, and the tokenizer itself where it exists already."""
    text = str(given) if given is not None else known.tokenizer if known else "byte"
    if text in KINDS:
        return text, text, None
    path = Path(text)
    if path.is_dir():
        from remanence.data.tokenizers import load_tokenizer

        inner = path if (path / "settings.json").is_file() else path / "tokenizer"
        if (inner / "settings.json").is_file():
            tokenizer = load_tokenizer(inner)
            return shown_name(path), tokenizer.name, tokenizer
        path = path / "tokenizer.json"
    elif not path.exists():
        raise InputError(
            f"There is no tokenizer {text}; choose {', '.join(KINDS)}, a tokenizer.json or the folder of a prepared "
            "corpus."
        )
    from remanence.data.tokenizers.subword import SubwordTokenizer

    return shown_name(path), "subword", SubwordTokenizer.from_file(path)
