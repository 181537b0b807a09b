"""`remanence prepare`: text in, a prepared corpus out."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from remanence.commands.options import option
from remanence.config.flags import parse_flags
from remanence.errors import InputError

if TYPE_CHECKING:
    from remanence.data import Corpus

HELP = """\
Turn text into a corpus of tokens that models train on.

The text: files, folders, patterns such as 'books/*.txt', or - for standard input; .gz, .xz, .bz2 and
.zst are decompressed. Or a published corpus by its name, fetched and prepared as in its papers:

  wikitext-2     2 million words of Wikipedia       text8     100 million letters of Wikipedia
  wikitext-103   103 million words of Wikipedia     pg19      28,752 books, about 11 GB
  enwik8         100 million bytes of Wikipedia     python-stdlib   the source of the Python
                                                    that runs this (nothing is fetched)

Or a task that is no text:

  sorting        sequences of symbols, then the symbols by how often they occurred; made, not fetched
  mnist          images of digits as pixels: mnist FOLDER, or fetched

For more text than one machine can prepare: --part I/N prepares one of N parts, each wherever and
whenever you like, and --join makes one corpus of them.

An interrupt leaves nothing half-made; the same command can be run again, and does nothing when the
corpus is there already.

Examples:
  remanence prepare wikitext-2
  remanence prepare 'books/*.txt' --tokenizer bpe --vocab-size 16384 --out data/books
  xzcat dump.xz | remanence prepare - --name dump --separator '\\f'
  remanence prepare train.txt --validation valid.txt --test test.txt --tokenizer word
  remanence prepare sorting --length 4000 --sequences 8000 800 800
  remanence prepare dumps --tokenizer data/sample --shard-tokens 268435456 --part 3/64 --out data/web
  remanence prepare --join data/web
"""

TASKS = ("sorting", "mnist")
TASK_FLAGS = ("length", "sequences", "seed", "generator", "levels")
TEXT_FLAGS = (
    *("tokenizer", "vocab_size", "min_count", "documents", "separator", "validation", "test", "legacy_newlines"),
    *("licence", "workers", "shard_tokens", "part"),
)

COLUMNS = ("tokens", "bytes", "characters", "words", "documents")
ALWAYS = ("tokens", "documents")
"""Columns that also corpora of numbers have."""

ESCAPES = {r"\f": "\f", r"\t": "\t", r"\0": "\0", r"\x1e": "\x1e"}
"""What a shell cannot type easily."""


Switch = Annotated[bool, tyro.conf.arg(help_behavior_hint=""), tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class Arguments:
    """What the command is given."""

    inputs: Annotated[tyro.conf.Positional[tuple[str, ...]], option("TEXT [TEXT ...]")]
    """Files, folders, patterns, - or the name of a published corpus or a task."""
    out: Annotated[Path | None, option("DIR")] = None
    """Folder of the corpus; data/NAME unless given."""
    name: Annotated[str | None, option("NAME")] = None
    """What to call the corpus; the name of its first file or folder unless given."""
    tokenizer: Annotated[str | None, option("KIND|PATH")] = None
    """byte, char, word, bpe, a tokenizer.json, or the folder of a prepared corpus whose tokenizer to take; byte unless
    given, and for a published corpus the published one."""
    vocab_size: Annotated[int | None, option("N")] = None
    """How many entries the vocabulary of bpe has, and that of word at most."""
    min_count: Annotated[int, option("N")] = 1
    """Words that occur less often in the training text are unknown to word; 1 unless given."""
    documents: Annotated[Literal["file", "separator", "none"] | None, option("{file,separator,none}")] = None
    """What a document is: a file (unless given), what lies between separator lines, or nothing (one stream)."""
    separator: Annotated[str | None, option("LINE")] = None
    r"""A line that consists of this ends a document; \f, a form feed, with --documents separator unless given."""
    validation: Annotated[tuple[str, ...], option("FRACTION|FILE [FILE ...]")] = ()
    """The validation split: a fraction of the text (0.05 unless given) or files of its own."""
    test: Annotated[tuple[str, ...], option("FRACTION|FILE [FILE ...]")] = ()
    """The test split, likewise."""
    from_folder: Annotated[Path | None, option("DIR", name="from")] = None
    """Folder in which the files of a published corpus lie already."""
    mirror: Annotated[str | None, option("URL")] = None
    """Address to try before the publisher of a published corpus."""
    cache: Annotated[Path | None, option("DIR")] = None
    """Folder for fetched files; $REMANENCE_CACHE or the user's cache folder unless given."""
    legacy_newlines: Switch = False
    """Drop the newlines of enwik8, as published work did: 204 symbols, about 1.1 % fewer bytes."""
    licence: Annotated[str | None, option("TEXT")] = None
    """Licence of the text, for the manifest."""
    length: Annotated[int | None, option("N")] = None
    """Symbols of a sequence of sorting; 8000 unless given."""
    sequences: Annotated[tuple[int, ...], option("TRAIN [VALIDATION [TEST]]")] = ()
    """Sequences of sorting in each split; 8000 800 800 unless given."""
    seed: Annotated[int | None, option("N")] = None
    """Of the sequences of sorting; 0 unless given."""
    generator: Annotated[Literal["independent", "published"] | None, option("{independent,published}")] = None
    """Each sequence of sorting from a generator of its own (unless given), or all from one, as the published script."""
    levels: Annotated[int | None, option("{2,16,256}")] = None
    """Grey levels of mnist; 256 unless given."""
    shard_tokens: Annotated[int | None, option("N")] = None
    """Write shards of about so many tokens; one file a split unless given."""
    part: Annotated[str | None, option("I/N")] = None
    """Prepare the I-th of N parts of the files, in a folder of its own in --out; the tokenizer must exist."""
    join: Annotated[Path | None, option("DIR")] = None
    """Make one corpus of the parts in DIR, copying nothing."""
    check: Annotated[Literal["hashes", "sizes"], option("{hashes,sizes}")] = "hashes"
    """What --join looks at: every file's hash (unless given), which reads all of them, or its size alone."""
    workers: Annotated[int | None, option("N")] = None
    """Processes at once; all cores unless given."""
    overwrite: Switch = False
    """Replace another corpus in the folder."""
    quiet: Switch = False
    """Say nothing unless something is wrong."""


def main(argv: Sequence[str], prog: str) -> int:
    arguments = parse_flags(Arguments, argv, prog, HELP)
    # Not at the top, for quick help.
    from remanence.data.prepare import prepare

    def say(sentence: str) -> None:
        if not arguments.quiet:
            print(sentence, file=sys.stderr)

    if arguments.join is not None:
        return _join(arguments, say)
    _refuse(arguments, "a preparation without --join", ("check",))
    if arguments.part is not None and arguments.out is None:
        raise InputError("--part needs --out, the folder in which all parts are put; give it.")
    first = arguments.inputs[0] if arguments.inputs else ""
    if first in TASKS:
        with _terminated_cleanly():
            corpus = _task(arguments, say)
        if not arguments.quiet:
            print("\n".join(summary(corpus)))
        return 0
    _refuse(arguments, first, TASK_FLAGS)
    separator = arguments.separator
    with _terminated_cleanly():
        corpus = prepare(
            list(arguments.inputs),
            arguments.out,
            name=arguments.name,
            tokenizer=arguments.tokenizer,
            vocab_size=arguments.vocab_size,
            min_count=arguments.min_count,
            documents=arguments.documents,
            separator=ESCAPES.get(separator, separator) if separator is not None else None,
            validation=_share(arguments.validation),
            test=_share(arguments.test),
            legacy_newlines=arguments.legacy_newlines,
            licence=arguments.licence,
            from_folder=arguments.from_folder,
            mirror=arguments.mirror,
            cache=arguments.cache,
            workers=arguments.workers,
            shard_tokens=arguments.shard_tokens,
            part=arguments.part,
            overwrite=arguments.overwrite,
            progress=not arguments.quiet,
            say=say,
        )
    if not arguments.quiet:
        print("\n".join(summary(corpus)))
    return 0


def _join(arguments: Arguments, say: Callable[[str], None]) -> int:
    """Join parts that were prepared before."""
    from remanence.data.parts import join

    assert arguments.join is not None
    if arguments.inputs:
        raise InputError(f"--join reads parts that were prepared; leave {' '.join(arguments.inputs)} out.")
    meant = ("join", "check", "workers", "quiet", "inputs")
    _refuse(arguments, "--join", [each.name for each in dataclasses.fields(Arguments) if each.name not in meant])
    corpus = join(
        arguments.join,
        verify=arguments.check == "hashes",
        workers=arguments.workers,
        progress=not arguments.quiet,
        say=say,
    )
    if not arguments.quiet:
        print("\n".join(summary(corpus)))
    return 0


def _task(arguments: Arguments, say: Callable[[str], None]) -> Corpus:
    """Make or read a corpus that is no text."""
    task, *inputs = arguments.inputs
    _refuse(arguments, task, TEXT_FLAGS)
    shared: dict[str, Any] = {
        "name": arguments.name,
        "overwrite": arguments.overwrite,
        "progress": not arguments.quiet,
        "say": say,
    }
    if task == "sorting":
        from remanence.data import sorting

        _refuse(arguments, task, ("levels", "from_folder", "mirror", "cache"))
        if inputs:
            raise InputError(f"Sorting is made and reads nothing; leave {' '.join(inputs)} out.")
        if len(arguments.sequences) in (1, 2):
            without = "no test split" if len(arguments.sequences) == 2 else "neither a validation nor a test split"
            say(
                f"remanence: warning: --sequences {' '.join(map(str, arguments.sequences))} makes {without}; give "
                "three numbers for training, validation and test."
            )
        return sorting.prepare_sorting(
            sorting.LENGTH if arguments.length is None else arguments.length,
            arguments.out,
            sequences=arguments.sequences or sorting.SEQUENCES,
            seed=arguments.seed or 0,
            generator=arguments.generator or "independent",
            **shared,
        )
    from remanence.data.mnist import prepare_mnist

    _refuse(arguments, task, ("length", "sequences", "seed", "generator"))
    if arguments.from_folder is not None:
        if inputs:
            raise InputError("The files of mnist were named twice; leave --from or the other inputs out.")
        inputs = [str(arguments.from_folder)]
    return prepare_mnist(
        inputs,
        arguments.out,
        levels=256 if arguments.levels is None else arguments.levels,
        mirror=arguments.mirror,
        cache=arguments.cache,
        **shared,
    )


def _refuse(arguments: Arguments, given: str, names: Sequence[str]) -> None:
    """Raise InputError when one of these was given, which mean nothing here."""
    plain = {each.name: each.default for each in dataclasses.fields(Arguments)}
    for name in names:
        if getattr(arguments, name) != plain[name]:
            flag = "--" + name.removesuffix("_folder").replace("_", "-")
            raise InputError(f"{flag} means nothing for {given}; leave it out.")


def summary(corpus: Corpus) -> list[str]:
    """What a prepared corpus holds, in lines."""
    manifest = corpus.manifest
    entries = manifest["splits"].values()
    columns = [name for name in COLUMNS if name in ALWAYS or any(entry["counts"][name] for entry in entries)]
    lines = [
        f"{corpus.folder}: {manifest['title']}",
        f"tokenizer {manifest['tokenizer']['name']}, vocabulary of {corpus.vocab_size:,}",
        f"{'':<10}" + "".join(f"{column:>14}" for column in columns),
    ]
    for split in corpus.splits:
        entry = manifest["splits"][split]
        counts = {**entry["counts"], "documents": entry["documents"]}
        lines.append(f"{split:<10}" + "".join(f"{counts[column]:>14,}" for column in columns))
    return lines


def _share(given: tuple[str, ...]) -> float | list[str] | None:
    """A fraction where one number is given, otherwise files."""
    if not given:
        return None
    if len(given) == 1:
        with contextlib.suppress(ValueError):
            return float(given[0])
        number = given[0].removesuffix("%")
        if number != given[0] and number.replace(".", "", 1).isdigit() and not Path(given[0]).exists():
            raise InputError(f"{given[0]} is no fraction of the text; write {float(number) / 100:g}.")
    return list(given)


@contextlib.contextmanager
def _terminated_cleanly() -> Iterator[None]:
    """Let SIGTERM clear away what is half-made, like an interrupt."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    try:
        usual = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, where signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)
