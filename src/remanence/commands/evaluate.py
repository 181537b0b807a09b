"""`remanence evaluate`: a run and a protocol in, a table and its protocol out."""

from __future__ import annotations

import contextlib
import json
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
    from rich.console import Console

    from remanence.data import Corpus
    from remanence.evaluation import Protocol, Score
    from remanence.training import Run
    from remanence.training.ranks import Ranks

HELP = """\
Score a trained model: every token of a split once, the protocol printed with the number.

What is not given is taken from the [evaluation] table of the run's recipe, else as in training. Scores are
also written to the run's folder, as evaluation-*.json.

Example: remanence evaluate runs/lamemo-books --memory-length 0 64 128 256
"""

UNWRAPPED = 1 << 16
"""Columns where there is no terminal."""


@dataclass(frozen=True)
class Arguments:
    """What the command is given."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run."""
    split: Literal["train", "validation", "test"] = "test"
    """Part of the corpus to score."""
    memory_length: Annotated[tuple[int, ...], option("N [N ...]")] = ()
    """Positions remembered; several lengths give a line each."""
    compressed_length: Annotated[int | None, option("N")] = None
    """Compressed slots, for a model that has them."""
    segment_length: Annotated[int | None, option("N")] = None
    """Tokens read at once."""
    protocol: Annotated[Literal["published", "document"] | None, option("{published,document}")] = None
    """published: one stream, nothing is forgotten; document: the memory is forgotten where a document begins."""
    lanes: Annotated[int | None, option("N")] = None
    """Parts of the text that are read side by side, each beginning without memory; 1 is cleanest and slowest."""
    corpus: Annotated[str | None, option("DIR|URL")] = None
    """Another prepared corpus than the one of the recipe, made with the same tokenizer."""
    checkpoint: Literal["best", "last"] = "best"
    """The weights with the best validation, or the last ones."""
    clamp_length: Annotated[int | None, option("N")] = None
    """Treat distances above this as this; takes the place of holding them."""
    same_length: Annotated[bool | None, option("True|False")] = None
    """Let every token see the same number of tokens."""
    hold_distances: bool = True
    """Hold distances at the largest of training where the memory or the segment is longer."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Numbers of the matrix products; auto takes bfloat16 where this machine is faster in it."""
    by_position: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also tell the loss by position in the document (in the stream, under the published protocol)."""
    accuracy: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also tell how often the right token was the most probable; done anyway where a task is scored."""
    interpolation: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also tell how much of its old content a slot of LaMemo keeps, by layer and age."""
    device: str = "auto"
    """Where to compute: auto (a GPU when there is one), cpu, cuda, cuda:1."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON and nothing else."""


def main(argv: Sequence[str], prog: str) -> int:
    arguments = parse_flags(Arguments, argv, prog, HELP)
    # Not at the top: torch takes seconds, and help and mistyped flags need none of it.
    from remanence.training import load_run
    from remanence.training.allocation import keep_freed_memory
    from remanence.training.device import choose_device
    from remanence.training.ranks import joined

    keep_freed_memory()
    with joined() as ranks:
        with ranks.together():
            device = choose_device(arguments.device, ranks.local)
            run = load_run(arguments.run, arguments.checkpoint, device=device)
            corpus = _corpus(arguments, run)
        lengths = list(dict.fromkeys(arguments.memory_length)) or [run.recipe.evaluation.memory_length]
        scores = _scores(arguments, run, corpus, lengths, ranks)
    if not ranks.first:
        return 0
    facts = {"run": str(arguments.run), "checkpoint": run.which, "step": run.step, "fingerprint": run.fingerprint}
    if arguments.json:
        print(json.dumps({**facts, "scores": [score.to_json() for score in scores]}, indent=2, ensure_ascii=False))
    else:
        _show(scores, run)
    for score in scores:
        score.save(run.folder, **facts)
    return 0


def _corpus(arguments: Arguments, run: Run) -> Corpus:
    from remanence.data import Corpus
    from remanence.data.places import is_url

    there = run.recipe.data.corpus
    if arguments.corpus is None and not is_url(there) and not Path(there).is_dir():
        raise InputError(
            f"There is no prepared corpus at {run.recipe.data.corpus}, where the run had it; name it with --corpus, or "
            "start from the folder that training was started from."
        )
    corpus = Corpus.open(arguments.corpus or run.recipe.data.corpus)
    if arguments.split not in corpus.splits:
        raise InputError(
            f"The corpus {corpus.name} has no {arguments.split} split; give --split {' or '.join(corpus.splits)}, or "
            "name another corpus with --corpus."
        )
    _check_tokenizer(corpus, run)
    return corpus


def protocol_of(arguments: Arguments, run: Run) -> Protocol:
    """The protocol that was asked for: flags first, then the recipe's [evaluation], then as in training."""
    from remanence.evaluation import Protocol

    recipe = run.recipe

    def chosen(name: str) -> Any:
        given = getattr(arguments, name)
        return getattr(recipe.evaluation, name) if given is None else given

    return Protocol(
        starts=arguments.protocol or recipe.data.protocol,
        segment_length=chosen("segment_length"),
        clamp_length=chosen("clamp_length"),
        compressed_length=chosen("compressed_length")
        if hasattr(run.model.config, "compressed_slots")
        else arguments.compressed_length,
        same_length=chosen("same_length"),
        lanes=recipe.training.lanes if chosen("lanes") is None else chosen("lanes"),
        hold_distances=arguments.hold_distances,
        precision=arguments.precision,
    )


def _scores(arguments: Arguments, run: Run, corpus: Corpus, lengths: Sequence[int | None], ranks: Ranks) -> list[Score]:
    from remanence.evaluation import InterpolationByAge, LossByPosition, sweep

    kinds: list[Any] = [LossByPosition] if arguments.by_position else []
    kinds += [InterpolationByAge] if arguments.interpolation else []
    shown = ranks.first and sys.stderr.isatty()
    told = ranks.first and len(lengths) > 1 and not arguments.json and not shown
    with _progress(len(lengths), shown) as progress, _by_their_flags():
        return sweep(
            run.model,
            corpus.split(arguments.split),
            lengths,
            protocol_of(arguments, run),
            trained=run.distances,
            corpus=_text_name(corpus),
            measurements=kinds,
            accuracy=arguments.accuracy or None,
            finished=_told if told else lambda score: None,
            progress=progress,
            ranks=ranks,
        )


def _told(score: Score) -> None:
    """A line on standard error: a sweep takes long, and its table comes at the end."""
    where = f"memory {score.protocol.memory_length:,}"
    print(f"{where}: {score.headline} ({score.seconds:.1f} seconds)", file=sys.stderr, flush=True)


def _text_name(corpus: Corpus) -> str:
    """What the protocol calls the text. enwik8 without its newlines is another text, with other numbers."""
    without = corpus.manifest.get("settings", {}).get("legacy_newlines")
    return f"{corpus.name} (without its newlines: legacy_newlines)" if without else corpus.name


def _check_tokenizer(corpus: Corpus, run: Run) -> None:
    if corpus.tokenizer.fingerprint != run.tokenizer.fingerprint:
        one, other = corpus.tokenizer.name, run.tokenizer.name
        difference = (
            f"another {one} vocabulary than the run was trained with"
            if one == other
            else f"another tokenizer ({one}) than the one the run was trained with ({other})"
        )
        raise InputError(
            f"The corpus {corpus.name} was prepared with {difference}; prepare it with the one in "
            f"{run.folder / 'tokenizer'}."
        )


def _show(scores: Sequence[Score], run: Run) -> None:
    """The table, and beneath it the protocol in words."""
    from rich.console import Console

    # In a file or a pipe nothing is wrapped.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else UNWRAPPED)
    with console.capture() as captured:
        _print(scores, run, console)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _print(scores: Sequence[Score], run: Run, console: Console) -> None:
    from remanence.commands import tables
    from remanence.evaluation.protocol import in_words

    console.print(f"{run.recipe.name}, {run.model.config.architecture}, {run.which} checkpoint, step {run.step:,}")
    console.print(tables.scores(scores))
    for sentence in in_words([score.protocol for score in scores]):
        console.print(sentence, style="dim")
    if "loss_by_position" in scores[0].measurements:
        unit = scores[0].protocol.unit
        console.print(f"\nBits per {unit} by position:", tables.by_position(scores), sep="\n")
    if "interpolation" in scores[0].measurements:
        kept = tables.interpolation(scores)
        console.print("")
        architecture = run.model.config.architecture
        blends = architecture == "lamemo"
        console.print(
            kept or ("No slot was filled." if blends else f"A {architecture} does not blend old content with new.")
        )


@contextlib.contextmanager
def _by_their_flags() -> Iterator[None]:
    """Let errors name what the user can change here: the flags, not the settings of the trained model."""
    try:
        yield
    except InputError as error:
        words = str(error)
        for name in ("clamp_length", "same_length", "compressed_length"):
            words = words.replace(f"model.{name} ", f"--{name.replace('_', '-')} ")
        raise InputError(words) from None


@contextlib.contextmanager
def _progress(evaluations: int, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error."""
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scoring", total=None)
        finished = 0

        def advance(scored: int, total: int) -> None:
            nonlocal finished
            bar.update(task, total=evaluations * total, completed=finished * total + scored)
            finished += scored == total

        yield advance
