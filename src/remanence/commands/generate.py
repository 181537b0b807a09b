"""`remanence generate`: a prompt in, text out, token by token."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, Self

import tyro

from remanence.commands.options import option
from remanence.config.flags import parse_flags
from remanence.errors import InputError

if TYPE_CHECKING:
    from remanence.generation import Session
    from remanence.training import Run

HELP = """\
Continue a text with a trained model. The text goes to standard output as it is drawn, the prompt does not.

A prompt may be of any length: it is read segment by segment at constant memory. Without one, the model begins as after
a line break. --memory-out keeps what it remembers, and --memory-in goes on from there, with the same text as if it
had never stopped.

A run on images draws images with --images, as a PNG.

Example: remanence generate runs/lamemo-books --prompt "Once upon a time" --max-tokens 500 --temperature 0.8
"""

PROMPT_BLOCK = 1 << 12
"""Bytes of a prompt that are read at a time."""


@dataclass(frozen=True)
class Arguments:
    """What the command is given."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run."""
    standard_input: Annotated[tyro.conf.Positional[Literal["-", ""]], option("[-]")] = ""
    """Read the prompt from standard input."""
    prompt: Annotated[str | None, option("TEXT")] = None
    """Text to go on from."""
    prompt_file: Annotated[Path | None, option("FILE")] = None
    """File with the text to go on from, taken as it is."""
    max_tokens: int = 200
    """How many tokens to draw at most."""
    samples: Annotated[int | None, option("N")] = None
    """How many texts to draw side by side; 1 unless given."""
    temperature: Annotated[float | None, option("X")] = None
    """Below 1 sharper, above 1 more varied; 0 always takes the most probable token; 1 unless given."""
    top_k: Annotated[int | None, option("N")] = None
    """Draw from the k most probable tokens only; 0, from all, unless given."""
    top_p: Annotated[float | None, option("X")] = None
    """Draw from the most probable tokens that together have this probability; 1, from all, unless given."""
    min_p: Annotated[float | None, option("X")] = None
    """Draw from tokens at least this many times as probable as the most probable one; 0, from all, unless
    given."""
    seed: Annotated[int | None, option("N")] = None
    """The same seed gives the same text; sample i draws with seed + i; 0 unless given."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """End where this text appears, which is not shown; may be given several times."""
    memory_length: Annotated[int | None, option("N")] = None
    """Positions remembered; as in training unless given."""
    segment_length: Annotated[int | None, option("N")] = None
    """Tokens after which a segment is closed; as in training unless given."""
    hold_distances: bool = True
    """Hold distances at the largest of training where the memory or the segment is longer."""
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    """Numbers of the matrix products; auto takes bfloat16 where this machine is faster in it; float32 unless given."""
    memory_in: Annotated[Path | None, option("FILE")] = None
    """Go on from this file. Settings that are not given are those that were saved."""
    memory_out: Annotated[Path | None, option("FILE")] = None
    """Write what is needed to go on to this file."""
    images: Annotated[int | None, option("N")] = None
    """Draw so many images and write them to --out, instead of text."""
    complete: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the first images of the test split from their upper halves, instead of drawing whole ones."""
    out: Annotated[Path, option("FILE")] = Path("samples.png")
    """The PNG that --images writes; samples.png unless given."""
    checkpoint: Literal["best", "last"] = "best"
    """The weights with the best validation, or the last ones."""
    device: str = "auto"
    """Where to compute: auto (a GPU when there is one), cpu, cuda, cuda:1."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the samples and their settings as JSON, when all are drawn."""


def main(argv: Sequence[str], prog: str) -> int:
    arguments = parse_flags(Arguments, argv, prog, HELP)
    _check(arguments)
    # Not at the top: torch takes seconds, and help and mistyped flags need none of it.
    from remanence.training import load_run
    from remanence.training.allocation import keep_freed_memory
    from remanence.training.device import choose_device

    keep_freed_memory()
    run = load_run(arguments.run, arguments.checkpoint, device=choose_device(arguments.device))
    if arguments.images is not None:
        return _draw(arguments, run)
    session = open_session(arguments, run)
    with _prompt(arguments) as prompt:
        session.read_bytes(_watched(prompt, session))
    if session.ended:
        print("remanence: warning: What was saved has ended at a stop string; give a prompt to go on.", file=sys.stderr)
    with Interrupts() as interrupts:
        try:
            _write(session, arguments, interrupts)
        except BrokenPipeError:
            _keep(session, arguments)
            raise
        _keep(session, arguments)
    return interrupts.exit_code


def open_session(arguments: Arguments, run: Run) -> Session:
    """A new session, or the saved one; flags that were given come before what was saved."""
    from remanence.generation import Sampling, Session

    given = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.memory_in is None:
        session = Session(
            run,
            samples=1 if arguments.samples is None else arguments.samples,
            sampling=Sampling(**given),
            stops=arguments.stop,
            seed=arguments.seed or 0,
            memory_length=arguments.memory_length,
            segment_length=arguments.segment_length,
            hold_distances=arguments.hold_distances,
            precision=arguments.precision or "float32",
        )
    else:
        session = Session.load(
            arguments.memory_in,
            run,
            samples=arguments.samples,
            stops=arguments.stop or None,
            seed=arguments.seed,
            precision=arguments.precision,
        )
        session.sampling = dataclasses.replace(session.sampling, **given)
    idle = [name for name in session.sampling.idle if name in given]
    if idle:
        flags = " and ".join("--" + name.replace("_", "-") for name in idle)
        print(f"remanence: warning: {flags} has no effect at temperature 0.", file=sys.stderr)
    return session


def _draw(arguments: Arguments, run: Run) -> int:
    """Images instead of text."""
    from remanence.data import Corpus
    from remanence.generation import Sampling, pictures

    assert arguments.images is not None
    given = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    settings: dict[str, Any] = {
        "sampling": Sampling(**{name: value for name, value in given.items() if value is not None}),
        "seed": arguments.seed or 0,
    }
    if arguments.complete:
        corpus = Corpus.open(run.recipe.data.corpus)
        picture = pictures.completions_picture(run, corpus, arguments.images, **settings)
    else:
        picture = pictures.samples_picture(run, arguments.images, **settings)
    pictures.write_png(arguments.out, picture)
    return 0


class Interrupts:
    """Lets Ctrl-C and SIGTERM wait for the token that is being drawn; the second one ends at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def exit_code(self) -> int:
        return 0 if self.signal is None else 128 + self.signal

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


def _check(arguments: Arguments) -> None:
    """What can be refused before anything is loaded."""
    sources = [arguments.standard_input or None, arguments.prompt, arguments.prompt_file]
    if sum(source is not None for source in sources) > 1:
        raise InputError("Several prompts were given; give one of --prompt, --prompt-file and - (standard input).")
    plain = {each.name: each.default for each in dataclasses.fields(Arguments)}
    text = ("prompt", "prompt_file", "standard_input", "max_tokens", "samples", "stop", "json")
    text += ("memory_length", "segment_length", "memory_in", "memory_out", "hold_distances")
    wrong = text if arguments.images is not None else ("complete", "out")
    for name in wrong:
        if getattr(arguments, name) != plain[name]:
            what = "means nothing for images" if arguments.images is not None else "is for images"
            flag = "--" + name.replace("_", "-") if name != "standard_input" else "-"
            raise InputError(
                f"{flag} {what}; leave it out{'' if arguments.images is not None else ' or give --images'}."
            )
    if arguments.images is not None and (arguments.out.is_dir() or not arguments.out.parent.is_dir()):
        fault = "is a folder" if arguments.out.is_dir() else f"lies in {arguments.out.parent}, which is no folder"
        raise InputError(f"--out {arguments.out} {fault}; name a file in a folder that exists.")
    if arguments.max_tokens < 0:
        raise InputError(f"--max-tokens is {arguments.max_tokens}; it must be 0 or more.")
    if arguments.memory_in is not None:
        for name in ("memory_length", "segment_length"):
            if getattr(arguments, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} is part of what --memory-in brings; leave one of the two out.")
        if not arguments.hold_distances:
            raise InputError("--no-hold-distances is part of what --memory-in brings; leave one of the two out.")
    out = arguments.memory_out
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        fault = "is a folder" if out.is_dir() else f"lies in {out.parent}, which is no folder"
        raise InputError(f"--memory-out {out} {fault}; name a file in a folder that exists.")
    if out is not None and out.exists() and not _may_be_replaced(out):
        raise InputError(f"--memory-out {out} exists and is no memory file; name another file.")
    for flag, path in (("--prompt-file", arguments.prompt_file), ("--memory-in", arguments.memory_in)):
        if path is not None and (path.is_dir() or not path.exists()):
            fault = "is a folder" if path.is_dir() else "does not exist"
            raise InputError(f"{flag} {path} {fault}; check the path and name a file.")


def _may_be_replaced(path: Path) -> bool:
    """Whether a file is empty or was written by --memory-out, whole or not: nothing else may be lost."""
    import safetensors

    if not path.is_file():
        return False
    if not path.stat().st_size:
        return True
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return str((file.metadata() or {}).get("format", "")).startswith("remanence-memory")
    except (safetensors.SafetensorError, OSError):
        return False


@contextlib.contextmanager
def _prompt(arguments: Arguments) -> Iterator[Iterator[bytes]]:
    """The blocks of the prompt, wherever it comes from."""
    if arguments.prompt_file is not None:
        with open(arguments.prompt_file, "rb") as file:
            yield _blocks(file)
    elif arguments.standard_input:
        yield _blocks(sys.stdin.buffer)
    else:
        # What the shell gave may not be UTF-8; fsencode gives back its bytes.
        yield iter([os.fsencode(arguments.prompt)] if arguments.prompt else [])


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(PROMPT_BLOCK):
        yield block


def _watched(blocks: Iterator[bytes], session: Session) -> Iterator[bytes]:
    """The same blocks; a long prompt is counted on standard error, where that is a terminal."""
    shown = 0.0
    for block in blocks:
        yield block
        if sys.stderr.isatty() and time.perf_counter() - shown > 0.2:
            shown = time.perf_counter()
            print(f"\rreading the prompt: {session.tokens_read:,} tokens", end="", file=sys.stderr, flush=True)
    if shown:
        # Back to the beginning of the line, and clear it.
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _write(session: Session, arguments: Arguments, interrupts: Interrupts) -> None:
    """Draw, and show what is drawn: one sample as it comes; of several the first as it comes, the others after it."""
    samples = session.samples
    ids: list[list[int]] = [[] for _ in range(samples)]
    later: list[list[str]] = [[] for _ in range(samples)]
    stopped = [False] * samples
    screen = Screen(silent=arguments.json)
    if samples > 1:
        screen.title(1, samples)
    began, count = time.perf_counter(), 0
    for step in session.steps(arguments.max_tokens):
        count += 1
        stopped = step.stopped
        for sample, piece in enumerate(step.pieces):
            if (token := step.ids[sample]) is not None and arguments.json:
                ids[sample].append(token)
            if sample == 0:
                screen.text(piece)
            if sample or arguments.json:
                later[sample].append(piece)
        if interrupts.signal is not None:
            break
    seconds = time.perf_counter() - began
    # With a memory file, text in which a stop string may have begun belongs to what comes next.
    rests = session.finish() if arguments.memory_out is None else [""] * samples
    screen.text(rests[0])
    for sample in range(1, samples):
        screen.title(sample + 1, samples)
        screen.text("".join(later[sample]) + rests[sample])
    screen.end()
    if arguments.json:
        texts = ["".join(pieces) + rest for pieces, rest in zip(later, rests, strict=True)]
        _print_json(session, arguments, texts, ids, stopped)
    elif sys.stderr.isatty() and count:
        print(f"{count} tokens, {count * samples / seconds:.0f} tokens/s", file=sys.stderr)


class Screen:
    """Standard output. On a terminal, control characters are made visible and the last line is ended."""

    def __init__(self, silent: bool) -> None:
        self._silent = silent
        self._terminal = sys.stdout.isatty()
        self._fresh = True
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]

    def text(self, text: str) -> None:
        if not text or self._silent:
            return
        sys.stdout.write(text.translate(_VISIBLE) if self._terminal else text)
        sys.stdout.flush()
        self._fresh = text.endswith("\n")

    def title(self, sample: int, samples: int) -> None:
        """Announce a sample on a line of its own."""
        if not self._silent:
            print(f"{'' if self._fresh else chr(10)}--- sample {sample} of {samples} ---", flush=True)
            self._fresh = True

    def end(self) -> None:
        if self._terminal and not self._fresh and not self._silent:
            print(flush=True)


# Untrained byte models write anything, and a terminal obeys escape sequences. ␀ to ␟ are the pictures of 0 to 31.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_VISIBLE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def _print_json(
    session: Session, arguments: Arguments, texts: list[str], ids: list[list[int]], stopped: list[bool]
) -> None:
    samples = [
        {"text": text, "ids": tokens, "stopped": end} for text, tokens, end in zip(texts, ids, stopped, strict=True)
    ]
    settings: dict[str, Any] = {
        **session.sampling.to_json(),
        "seed": session.seed,
        "stops": list(session.stops),
        "max_tokens": arguments.max_tokens,
        "segment_length": session.segment_length,
        "memory_length": session.memory.length,
    }
    result = {"run": str(arguments.run), "settings": settings, "samples": samples}
    print(json.dumps(result, indent=2, ensure_ascii=False))


def _keep(session: Session, arguments: Arguments) -> None:
    if arguments.memory_out is None:
        return
    try:
        session.save(arguments.memory_out)
    except OSError as error:
        raise InputError(
            f"--memory-out {arguments.memory_out} could not be written ({error.strerror or error}); make room or name "
            "another file, and generate again with the same seed."
        ) from None
