"""The command `remanence`: a table of sub-commands, each imported when it is used, so that help is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

COMMANDS = {
    "prepare": "turn text into a corpus of tokens, from files or a published corpus",
    "train": "train a model from a recipe; stop and resume it at any time",
    "evaluate": "score a trained model, with the memory length and the protocol of your choice",
    "generate": "continue a text with a trained model",
    "compare": "train several recipes with several seeds on the same budget, and compare them",
    "bench": "measure the speed of training, evaluation and generation on this machine",
    "demo": "train three small models on real text and write a report, in a few minutes",
}
"""Every command is `main(argv, prog) -> exit code` in the module of its name in `remanence.commands`."""

HELP = f"""\
usage: remanence COMMAND [ARGUMENTS]

Language models that carry a memory from one segment of text to the next.

commands:
{chr(10).join(f"  {name:<10}{summary}" for name, summary in COMMANDS.items())}

options:
  -h, --help  this text; remanence COMMAND --help tells about a command
  --version   the version of the library

example:
  remanence prepare wikitext-2
  remanence train recipes/lamemo-wikitext-2.toml --training.steps 2000
"""

SHARED = ("train", "evaluate")
"""Commands whose work several processes share."""
FAILED, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
NO_MEMORY = (
    "This machine has not enough memory for what was asked; take shorter segments, a shorter memory, fewer lanes or a "
    "smaller model."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code: 0, 2 for input that cannot be used (one sentence on standard error),
    130 after Ctrl-C, 141 when the reader of our output has gone.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(argv)
        sys.stdout.flush()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else FAILED if stop.code else 0
    except KeyboardInterrupt:
        print("remanence: interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = BROKEN_PIPE
    except OSError as error:
        code = _fail(_told(error))
    except MemoryError:
        code = _fail(NO_MEMORY)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        code = _fail(NO_MEMORY)
    except ValueError as error:
        # Only our own kind; any other ValueError is a fault of ours, and its traceback is wanted.
        from remanence.errors import Elsewhere, InputError

        if not isinstance(error, InputError):
            raise
        code = FAILED if isinstance(error, Elsewhere) else _fail(str(error))
    return code


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if argv[0] == "--version":
        from remanence import __version__

        print(f"remanence {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        import difflib

        kind = "option" if name.startswith("-") else "command"
        known = ("--help", "--version") if kind == "option" else tuple(COMMANDS)
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        return _fail(f"There is no {kind} {name}; did you mean {close}? See remanence --help.")
    if name not in SHARED and os.environ.get("WORLD_SIZE", "1") != "1":
        # Each of several processes would do all of it, in one another's way.
        first = os.environ.get("RANK", "0") == "0"
        words = (
            f"remanence {name} is done by one process; start it without torchrun, which is for {' and '.join(SHARED)}."
        )
        return _fail(words) if first else FAILED
    with _warnings_in_sentences():
        return import_module(f"remanence.commands.{name}").main(rest, f"remanence {name}")


def _fail(sentence: str) -> int:
    print(f"remanence: error: {sentence}", file=sys.stderr)
    return FAILED


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether this is PyTorch's way of saying so; its CPU allocators raise a RuntimeError like any other."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return type(error).__name__ == "OutOfMemoryError" or any(each in str(error) for each in words)


def _told(error: OSError) -> str:
    """An error of the operating system as a sentence, with the file it is about."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{reason}: {error.filename}." if error.filename else f"{reason.rstrip('.')}."


@contextmanager
def _warnings_in_sentences() -> Iterator[None]:
    """Show our warnings without the line of code that gave them, which says nothing to the user of a command."""
    import warnings

    usual = warnings.showwarning
    told: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if category.__module__.startswith("remanence."):
            # Settings are looked at more than once: before and after the corpus is known, for instance, and by each of
            # several processes.
            if str(message) not in told and os.environ.get("RANK", "0") == "0":
                told.add(str(message))
                print(f"remanence: warning: {message}", file=sys.stderr)
        else:
            usual(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
