"""`remanence bench`: how fast this machine trains, scores and generates, beside its own limit and other packages."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from remanence.commands.options import option
from remanence.config.flags import parse_flags
from remanence.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from remanence.bench.result import Result, Table
    from remanence.bench.settings import Settings

HELP = """\
Measure speed: training steps, evaluation, generation, or single operations, all candidates taking turns in
one process, after their results were found to agree.

Figures are medians over the rounds, beside the fastest matrix product that this machine made during the run.
Models of other packages take part where they are installed: pip install 'remanence[bench]'.

Example: remanence bench train --models transformer-xl lamemo --memory-length 150 600 --out runs/bench
"""

KINDS = ("train", "evaluate", "generate", "ops")
ONLY: dict[str, tuple[str, ...]] = {
    "models": ("train", "evaluate", "generate"),
    "memory_length": ("train", "evaluate", "generate", "ops"),
    "dropout": ("train", "ops"),
    "compile": ("train",),
    "padded": ("train",),
    "limit": ("train",),
    "tokens": ("generate",),
    "batch": ("generate",),
    "lanes": ("train", "evaluate", "ops"),
    "peers": ("train", "evaluate", "generate"),
}
"""Which benches a flag says something to."""


MOST = {
    "memory_length": 10**7,
    "segment_length": 10**7,
    "lanes": 10**6,
    "vocabulary": 10**7,
    "rounds": 10**6,
    "tokens": 10**9,
    "batch": 10**6,
}
"""What a machine could hold, and somebody could wait for."""
THREADS_A_CORE = 4


@dataclass(frozen=True)
class Arguments:
    """What the command is given."""

    kind: Annotated[tyro.conf.Positional[Literal["train", "evaluate", "generate", "ops"]], tyro.conf.arg(name="what")]
    """What is timed."""
    models: Annotated[tuple[str, ...], option("NAME [NAME ...]")] = ()
    """Which architectures; all of this library unless given, and any other that a recipe can name."""
    shape: Annotated[
        Literal["wikitext-103-layer", "wikitext-103-base", "enwik8-base", "small"] | None,
        option("{wikitext-103-layer,wikitext-103-base,enwik8-base,small}"),
    ] = None
    """Sizes of the models: wikitext-103-layer unless given, which is 4 layers of the published WikiText-103 model; that
    model, the published enwik8 model, or a small one."""
    memory_length: Annotated[tuple[int, ...], option("N [N ...]")] = ()
    """Positions remembered; three lengths or more also tell how the cost of training grows. One length for generate;
    for evaluate together with --segment-length."""
    segment_length: Annotated[int | None, option("N")] = None
    """Tokens read at once; for evaluate together with --memory-length."""
    lanes: Annotated[int | None, option("N")] = None
    """Streams read side by side."""
    vocabulary: Annotated[int | None, option("N")] = None
    """Tokens in the vocabulary, with a plain softmax."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers of the matrix products; auto takes bfloat16 where this machine is faster in it, and float32 to generate,
    as remanence generate does."""
    device: str = "auto"
    """Where to compute: auto (a GPU when there is one), cpu, cuda, cuda:1."""
    threads: Annotated[int | None, option("N")] = None
    """Threads on a CPU; PyTorch's own choice unless given."""
    rounds: Annotated[int | None, option("N")] = None
    """Timed turns of every candidate."""
    dropout: Annotated[float | None, option("P")] = None
    """Rate of dropout in training; 0.1 unless given."""
    compile: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also time every model of this library under torch.compile."""
    padded: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also time every model of this library with linear maps computed at multiples of eight, for odd widths on a
    GPU."""
    limit: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also time a Transformer of the same size without memory, by PyTorch's scaled_dot_product_attention."""
    tokens: Annotated[tuple[int, ...], option("N [N ...]")] = ()
    """Generation is timed after so many tokens; 1000 and 1000000 tell that it costs the same for ever."""
    batch: Annotated[tuple[int, ...], option("N [N ...]")] = ()
    """Texts generated side by side; 1 and 16 unless given."""
    peers: bool = True
    """Also measure models of other packages."""
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    """Tiny models and few rounds: seconds, to see that all works. The figures mean nothing."""
    out: Annotated[str | None, option("FOLDER")] = None
    """Folder for results.json and results.md. Those of the same command are replaced, those of another one refused."""


def main(argv: Sequence[str], prog: str) -> int:
    kind = argv[0] if argv and argv[0] in KINDS else None
    if kind is None and argv and not argv[0].startswith("-"):
        raise InputError(f'"{argv[0]}" is nothing that {prog} measures; choose train, evaluate, generate or ops.')
    if kind is not None and any(word in ("--help", "-h") for word in argv[1:]):
        parse_flags(_flags_of(kind), argv[1:], f"{prog} {kind}", HELP)
    arguments = parse_flags(Arguments, argv, prog, HELP)
    _refuse_idle(arguments, prog)
    _refuse_absurd(arguments)
    command = shlex.join([*prog.split(), *argv])
    # Not at the top: torch takes seconds, and help and mistyped flags need none of it.
    from remanence.bench.checks import Disagreement
    from remanence.bench.machine import describe

    settings = settle(arguments)
    out = None if arguments.out is None else Path(arguments.out)
    with _place(out, command), _threads(settings.threads), _progress() as told:
        try:
            result = run(settings, told)
        except Disagreement as error:
            print(f"{prog}: error: {error}", file=sys.stderr)
            return 1
        import torch

        result.about = describe(torch.device(settings.device), command)
    result.settings = settings.about()
    if out is None:
        show(result, None)
        return 0
    try:
        result.save(out)
    except (OSError, InputError) as error:
        # What took so long is not lost.
        show(result, None)
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"The results cannot be written to {out} ({reason}); the tables are on the screen, and --out must name a "
            "folder that can be written."
        ) from None
    show(result, out)
    return 0


def run(settings: Settings, told: Callable[[int, int], None]) -> Result:
    """Do what was asked for. Raises Disagreement, before anything is timed, where results are wrong."""
    import torch

    from remanence.bench.peak import MatrixPeak

    torch.manual_seed(settings.seed)
    peak = MatrixPeak(torch.device(settings.device), getattr(torch, settings.dtype), quick=settings.quick)
    from remanence.bench.evaluate import bench_evaluate
    from remanence.bench.generate import bench_generate
    from remanence.bench.ops import bench_ops
    from remanence.bench.train import bench_train

    benches = {"train": bench_train, "evaluate": bench_evaluate, "generate": bench_generate, "ops": bench_ops}
    return benches[settings.kind](settings, peak, told)


def settle(arguments: Arguments) -> Settings:
    """What was asked for, with what was left out. Raises InputError for what cannot be measured."""
    import dataclasses

    import torch

    from remanence.bench.settings import OWN, SHAPES, Settings
    from remanence.models import config_class
    from remanence.training.device import choose_device
    from remanence.training.precision import choose

    for name in arguments.models:
        config_class(name)
    device = choose_device(arguments.device)
    if device.type not in ("cpu", "cuda"):
        raise InputError(f'The device "{device}" cannot be measured; choose cpu or cuda.')
    shape_name = "quick" if arguments.quick else arguments.shape or "wikitext-103-layer"
    shape = SHAPES[shape_name]
    if arguments.vocabulary is not None:
        if arguments.vocabulary < 2:
            raise InputError(f"--vocabulary is {arguments.vocabulary}, but it must be 2 or more.")
        shape = dataclasses.replace(shape, vocabulary=arguments.vocabulary, cutoffs=())

    def chosen(name: str, usual: Any) -> Any:
        given = getattr(arguments, name)
        return usual if given is None or given == () else given

    protocols: tuple[tuple[int, int], ...] = ()
    if arguments.kind == "evaluate" and (arguments.segment_length is not None or arguments.memory_length):
        if arguments.segment_length is None or not arguments.memory_length:
            raise InputError("--segment-length and --memory-length make a protocol together; give both, or neither.")
        protocols = tuple((arguments.segment_length, length) for length in arguments.memory_length)
    for name, given in (("tokens", arguments.tokens), ("batch", arguments.batch)):
        if any(number < 1 for number in given) or len(set(given)) < len(given):
            raise InputError(f"--{name} is {list(given)}, but it must be different numbers of 1 or more.")
    usual_memory, usual_rounds = shape.memory_length, 3 if arguments.quick else 9
    dtype = arguments.dtype
    if arguments.kind == "generate":
        usual_memory = (8,) if arguments.quick else (512,)
        # As `remanence generate` does.
        dtype = "float32" if dtype == "auto" else dtype
        if len(arguments.memory_length) > 1:
            raise InputError("remanence bench generate takes one --memory-length; start it once for each.")
    return Settings(
        kind=arguments.kind,
        shape_name=shape_name,
        shape=shape,
        models=chosen("models", OWN),
        lanes=chosen("lanes", 1 if arguments.kind == "evaluate" else shape.lanes),
        segment_length=chosen("segment_length", shape.segment_length),
        memory_length=chosen("memory_length", usual_memory),
        dtype=choose(dtype, device),
        device=str(device),
        threads=chosen("threads", torch.get_num_threads()),
        rounds=chosen("rounds", usual_rounds),
        warmup=1 if arguments.quick else 2,
        dropout=chosen("dropout", 0.1),
        compile=arguments.compile,
        padded=arguments.padded,
        limit=arguments.limit,
        protocols=protocols,
        places=chosen("tokens", (10, 50) if arguments.quick else (1000,)) if arguments.kind == "generate" else (),
        batches=chosen("batch", (1, 2) if arguments.quick else (1, 16)) if arguments.kind == "generate" else (),
        peers=arguments.peers,
        quick=arguments.quick,
    )


def show(result: Result, out: Path | None) -> None:
    """The tables, and what they must be read with, on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    # In a file or a pipe nothing is wrapped.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 1 << 16)
    for each in result.setting():
        console.print(escape(each), style="dim")
    for each in result.tables:
        columns = zip(each.headers, *each.rows, strict=True)
        if sys.stdout.isatty() and sum(3 + max(map(len, column)) for column in columns) > console.width:
            _print_blocks(each, console)
            continue
        table = Table(title=each.title, caption=each.caption or None, box=SIMPLE_HEAD, title_justify="left")
        for number, header in enumerate(each.headers):
            table.add_column(escape(header), justify="left" if number < each.words else "right")
        for row in each.rows:
            table.add_row(*map(escape, row))
        console.print(table)
    for sentence in (*result.checks, *result.notes):
        console.print(escape(f"- {sentence}"), style="dim")
    if out is not None:
        console.print(f"Everything is in {out}.", style="dim")


def _print_blocks(table: Table, console: Console) -> None:
    """A block of lines for each row, where a terminal is too narrow for the columns."""
    from rich.markup import escape

    console.print(escape(table.title), style="italic")
    names = max(map(len, table.headers))
    for row in table.rows:
        console.print(f"\n{escape(', '.join(row[: table.words]))}", style="bold")
        for header, told in zip(table.headers[table.words :], row[table.words :], strict=True):
            if told:
                console.print(f"  {escape(header):{names}}  {escape(told)}")
    if table.caption:
        console.print(f"\n{escape(table.caption)}\n", style="dim")


def _flags_of(kind: str) -> type:
    """Only the flags that say something to this bench, for its help."""
    import ast
    import dataclasses
    import inspect
    import textwrap

    (told,) = ast.parse(textwrap.dedent(inspect.getsource(Arguments))).body
    assert isinstance(told, ast.ClassDef)
    helps = {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(told.body, told.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
    hints = get_type_hints(Arguments, include_extras=True)
    fields: list[Any] = []
    for field in dataclasses.fields(Arguments):
        if field.name == "kind" or kind not in ONLY.get(field.name, KINDS):
            continue
        plain, *marks = (
            get_args(hints[field.name]) if get_origin(hints[field.name]) is Annotated else [hints[field.name]]
        )
        known = [mark for mark in marks if dataclasses.is_dataclass(mark) and not isinstance(mark, type)]
        marks = [mark for mark in marks if mark not in known]
        documented = (
            dataclasses.replace(known[0], help=helps[field.name]) if known else tyro.conf.arg(help=helps[field.name])
        )
        annotation = plain
        for mark in (documented, *marks):
            annotation = Annotated[annotation, mark]
        fields.append((field.name, annotation, dataclasses.field(default=field.default)))
    return dataclasses.make_dataclass("Flags", fields)


def _refuse_absurd(arguments: Arguments) -> None:
    """Raise InputError for numbers that no machine holds, and for flags that take one another's effect."""
    for name, most in MOST.items():
        given = getattr(arguments, name)
        for number in given if isinstance(given, tuple) else () if given is None else (given,):
            if number > most:
                raise InputError(f"--{name.replace('_', '-')} is {number}, but it must be {most:,} or less.")
    cores = os.cpu_count() or 1
    if arguments.threads is not None and arguments.threads > THREADS_A_CORE * cores:
        raise InputError(
            f"--threads is {arguments.threads}, but it must be {THREADS_A_CORE * cores} or less, {THREADS_A_CORE} for "
            "each core of this machine."
        )
    if arguments.quick and arguments.shape is not None:
        raise InputError("--shape says nothing beside --quick, which has a shape of its own; leave one of them out.")
    if arguments.out is not None and not arguments.out.strip():
        raise InputError("--out is empty, but it must name a folder; write --out . for the current one.")


@contextlib.contextmanager
def _place(out: Path | None, command: str) -> Iterator[None]:
    """A folder that can be written, found before the work; what is empty goes again after it."""
    if out is None:
        yield
        return
    import tempfile

    from remanence.files import make_folder

    _refuse_others(out, command)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        make_folder(out, out, "--out")
        try:
            tempfile.TemporaryFile(dir=out).close()
        except OSError as error:
            raise InputError(
                f"The folder {out} cannot be written ({error.strerror or error}); choose another by --out."
            ) from None
        yield
    finally:
        # Saving makes it anew; only what is empty can be removed so.
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _refuse_others(out: Path, command: str) -> None:
    """Raise InputError where results of another command would be lost."""
    for path in (out / "results.json", out / "results.md"):
        if path.is_dir():
            raise InputError(f"{path} is a folder, so no results can be written there; choose another by --out.")
    if not (out / "results.json").is_file():
        if (out / "results.md").exists():
            raise InputError(f"{out / 'results.md'} would be lost; choose another folder by --out, or remove it.")
        return
    try:
        known = json.loads((out / "results.json").read_text(encoding="utf-8"))["about"]["command"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        known = "something else"
    if known != command:
        raise InputError(
            f'The folder {out} holds the results of "{known}", which would be lost; choose another by --out, or remove '
            "them."
        )


def _refuse_idle(arguments: Arguments, prog: str) -> None:
    """Raise InputError for a flag that says nothing to this bench."""
    for name, kinds in ONLY.items():
        if arguments.kind not in kinds and getattr(arguments, name) != getattr(Arguments, name):
            flag = "no-peers" if name == "peers" else name.replace("_", "-")
            raise InputError(
                f"--{flag} says nothing to {prog} {arguments.kind}; leave it out, or use {' or '.join(kinds)}."
            )


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """PyTorch with so many threads, as long as the context lasts."""
    import torch

    if number < 1:
        yield
        return
    usual = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=None)
        yield lambda done, total: bar.update(task, total=total, completed=done)
