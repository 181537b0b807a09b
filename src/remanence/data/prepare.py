"""Preparation: text from anywhere becomes a folder that `Corpus.open` opens.

    sources -> spool (text gathered on the disk) -> parts (splits) -> vocabulary -> token files -> manifest

Everything is made in a hidden folder beside the target, which takes its name at the end: an interrupt, a full disk or a
bad input leaves nothing behind, and the same command can be run again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from remanence.data.corpus import FORMAT, SPLITS, VERSION, Corpus, corpus_fingerprint, token_type
from remanence.data.encoding import NotText, not_text, tasks, write_split
from remanence.data.fetch import cache_folder
from remanence.data.learning import KINDS, make_tokenizer
from remanence.data.progress import Progress
from remanence.data.published import LEGACY_ENWIK8_SYMBOLS, PUBLISHED, Published, Sourced, Where
from remanence.data.sources import STDIN, find_sources, hash_source
from remanence.data.spool import DocumentRule, Part, Spool, cut_at, divide, gather
from remanence.data.staging import finish, staging
from remanence.data.tokenizers import Tokenizer
from remanence.data.workers import Crew, cores
from remanence.errors import InputError
from remanence.files import write_json

FRACTION = 0.05
"""Of the text, for validation and for test each, where nothing else is said."""
_FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EFBIG", "EDQUOT") if hasattr(errno, name))
LISTED = 100
"""Source files that a manifest names one by one."""


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

    def json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))


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
    validation: float | str | Path | Sequence[str | Path] | None = None,
    test: float | str | Path | Sequence[str | Path] | None = None,
    legacy_newlines: bool = False,
    licence: str | None = None,
    from_folder: str | Path | None = None,
    mirror: str | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Corpus:
    """Prepare a corpus in the folder `out` and open it. This is what `remanence prepare` does.

    `inputs` are files, folders, patterns or "-" for standard input, or the name of a published corpus. Where nothing
    is said, a published corpus is prepared as in its papers, and other text as bytes, one document a file, with 5 % for
    validation and 5 % for test. `out` is `data/NAME` by default. `say` hears what happens, in sentences.

    A folder that holds the result of the same preparation of the same text is left as it is; another one is refused
    unless `overwrite` is set. Raises InputError for whatever cannot be prepared.
    """
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    known = PUBLISHED.get(str(given[0])) if len(given) == 1 else None
    _check_options(known, vocab_size, min_count, documents, separator, workers, legacy_newlines, from_folder, mirror)
    cache = Path(cache) if cache is not None else cache_folder()
    workers = workers or cores()
    sourced, shown = ([], (known.name,)) if known else _find(given, validation, test)
    chosen, kind, ready = _tokenizer(tokenizer, known)
    settings = Settings(
        name=name or (known.name if known else _name(given)),
        inputs=shown,
        tokenizer=chosen,
        tokenizer_fingerprint=ready.fingerprint if ready else None,
        vocab_size=vocab_size if vocab_size is not None or known is None or kind != "bpe" else known.vocab_size,
        min_count=min_count,
        documents=documents or (known.documents if known else "separator" if separator is not None else "file"),
        separator=separator if separator is not None else "\f" if documents == "separator" else None,
        validation=_share(validation, "validation", known),
        test=_share(test, "test", known),
        legacy_newlines=legacy_newlines,
        licence=licence or (known.licence if known else "not stated"),
    )
    _check_settings(settings, kind, ready)
    out = Path(out) if out is not None else Path("data") / settings.name
    try:
        if (same := _already(out, settings, sourced, known, overwrite, say)) is not None:
            return same
        job = _Job(out, settings, known, kind, ready, workers, overwrite, say)
        with staging(out) as folder, Progress(progress) as bar:
            if known:
                bar.stage("Fetching", known.archive.size if known.archive and from_folder is None else None)
                sourced = known.sources(Path(from_folder) if from_folder else None, cache, mirror, bar.advance)
            return job.run(folder, sourced, bar)
    except OSError as error:
        if error.errno in _FULL:
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

    def run(self, folder: Path, sourced: Sourced, bar: Progress) -> Corpus:
        spools = self._gather(folder, sourced, bar)
        records = _records(spools)
        if not self.overwrite and _holds_something(self.out):
            # Only standard input comes this far: what it holds is known now.
            return _compare(self.out, records, self.say)
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
                f"The training text has no more than {tokenizer.vocab_size} sub-words that occur twice, so the "
                f"vocabulary is smaller than the {self.settings.vocab_size} that were asked for."
            )
        tokenizer.save(folder / "tokenizer")
        dtype = token_type(tokenizer.vocab_size)
        bar.stage("Encoding", sum(map(len, parts.values())))
        splits = {}
        for split, part in parts.items():
            encoded = crew.encode(tasks(part), folder / "tokenizer", drop, dtype)
            entry = write_split(folder, split, encoded, dtype, bar.advance)
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
            "sources": records,
            "settings": self.settings.json(),
            "fingerprint": corpus_fingerprint(tokenizer.fingerprint, splits),
        }


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


def _find(
    given: list[str | Path],
    validation: float | str | Path | Sequence[str | Path] | None,
    test: float | str | Path | Sequence[str | Path] | None,
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
            for source in find_sources(_listed(named)):
                sourced.append((where, source))
    if sum(source.path is None for _, source in sourced) > 1:
        raise InputError('Standard input ("-") was given twice and can be read once; give it once.')
    seen: dict[Path, str] = {}
    for where, source in sourced:
        if source.path is not None and seen.setdefault(source.path.resolve(), where) != where:
            raise InputError(f"{source.name} was named for two splits; leave it out of one of them.")
    return sourced, tuple(_shown(name) for name in given)


def _already(
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
    if not _holds_something(out):
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
                f"{out} holds another preparation ({key} is {theirs.get(key)!r} there and {value!r} here); name "
                "another folder with --out or replace it with --overwrite."
            )
    if known is not None and known.fixed_splits:
        say(f"{out} holds this preparation already; nothing was done.")
        return corpus
    if known is not None:
        sourced = known.sources(None, Path(), None, lambda size: None)
    if any(source.path is None for _, source in sourced):
        return None
    listed = [(where, hash_source(source)) for where, source in sourced]
    return _compare(out, {"sha256": _digest(listed)}, say)


def _holds_something(out: Path) -> bool:
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))


def _existing(out: Path) -> Corpus:
    try:
        return Corpus.open(out)
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}, replacing the folder with --overwrite.") from None


def _compare(out: Path, records: dict[str, Any], say: Callable[[str], None]) -> Corpus:
    corpus = _existing(out)
    if corpus.manifest.get("sources", {}).get("sha256") != records["sha256"]:
        raise InputError(
            f"{out} was prepared the same way from other text; name another folder with --out or replace it with "
            "--overwrite."
        )
    say(f"{out} holds this preparation already; nothing was done.")
    return corpus


def _records(spools: dict[str, Spool]) -> dict[str, Any]:
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
            return _shown(path), tokenizer.name, tokenizer
        path = path / "tokenizer.json"
    elif not path.exists():
        raise InputError(
            f"There is no tokenizer {text}; choose {', '.join(KINDS)}, a tokenizer.json or the folder of a prepared "
            "corpus."
        )
    from remanence.data.tokenizers.subword import SubwordTokenizer

    return _shown(path), "subword", SubwordTokenizer.from_file(path)


def _check_options(
    known: Published | None,
    vocab_size: int | None,
    min_count: int,
    documents: str | None,
    separator: str | None,
    workers: int | None,
    legacy_newlines: bool,
    from_folder: str | Path | None,
    mirror: str | None,
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
    if workers is not None and workers < 1:
        raise InputError(f"The number of workers is {workers}; it must be at least 1.")
    if documents not in (None, "file", "separator", "none"):
        raise InputError(f'Documents can be told apart by "file", by "separator" or by "none", not by {documents!r}.')
    if separator is not None and (not separator or "\n" in separator):
        raise InputError("The separator stands alone on a line between documents; give some text without a newline.")
    if separator is not None and documents not in (None, "separator"):
        raise InputError(f'A separator has no effect with documents by "{documents}"; leave one of the two out.')


def _check_settings(settings: Settings, kind: str, ready: Tokenizer | None) -> None:
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


def _share(
    given: float | str | Path | Sequence[str | Path] | None, split: str, known: Published | None
) -> float | tuple[str, ...]:
    if known is not None and known.fixed_splits:
        if given is not None:
            raise InputError(f"The splits of {known.name} are published; leave --validation and --test out.")
        return 0.0
    if given is None:
        return FRACTION
    if isinstance(given, (str, Path, Sequence)):
        return tuple(_shown(name) for name in _listed(given))
    if not 0 <= given < 1:
        raise InputError(f"The {split} fraction is {given}; it must be at least 0 and below 1.")
    return float(given)


def _listed(given: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [given] if isinstance(given, (str, Path)) else list(given)


def _shown(given: str | Path) -> str:
    """An input as the manifest names it, without folders above what was named in full."""
    path = Path(given)
    if str(given) == STDIN or not (path.is_absolute() or ".." in path.parts):
        return str(given)
    return path.name or path.resolve().name


def _name(given: list[str | Path]) -> str:
    """A name for text that has none: that of its first file or folder."""
    first = str(given[0]) if given else ""
    if first == STDIN:
        return "stdin"
    path = Path(first).absolute()
    while any(letter in path.name for letter in "*?[") or path.name == "..":
        path = path.parent if path.name != ".." else path.resolve()
    return path.name.lstrip(".").split(".")[0] or "text"
