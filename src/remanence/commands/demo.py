"""`remanence demo`: small models, one text, a few minutes; a table, a sample and a report."""

from __future__ import annotations

import importlib.util
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from remanence.commands.options import option
from remanence.config.flags import parse_flags
from remanence.errors import InputError

if TYPE_CHECKING:
    from remanence.analysis import Comparison

HELP = """\
Train small models with and without memory on real text, and show what memory buys.

The text is the source of the Python standard library on this machine, or a file of yours. Every model gets
the same text, settings and number of training tokens; how many fit into the time is measured first. At the
end there is a table, a sample of text, and a report: OUT/report.html.

Example: remanence demo --minutes 10 --text book.txt --out runs/book
"""

STARTED = 3.0
"""Seconds that were gone before the clock here begins: Python and PyTorch had to start."""


@dataclass(frozen=True)
class Arguments:
    """What the command is given."""

    text: Path | None = None
    """A text file to read instead of the Python standard library; 1 MB or more is best."""
    out: Path = Path("runs/demo")
    """Folder for everything. Each demo gets a numbered folder of its own in it, so none is ever lost."""
    minutes: float = 5.0
    """How long all of it may take; the models get as many training steps as fit."""
    models: Annotated[tuple[str, ...], option("NAME [NAME ...]")] = ("transformer", "transformer-xl", "lamemo")
    """Which architectures to train, in this order; transformer transformer-xl lamemo unless given, and all others that
    a recipe can name: compressive, infinite-former, memformer, rmt and those of installed packages."""
    seed: int = 1111
    """Of the weights, of the order of the text, and of the sample."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes < float("inf"):
            raise InputError(f"--minutes is {self.minutes:g}, but it must be above 0; the demo is made for 5.")
        if not self.models or len(set(self.models)) < len(self.models):
            raise InputError(f'--models is "{" ".join(self.models)}", but it must name each model at most once.')
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}, but it must be 0 or more.")


def main(argv: Sequence[str], prog: str) -> int:
    began = time.perf_counter() - STARTED
    arguments = parse_flags(Arguments, argv, prog, HELP)
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "the report is drawn with matplotlib, which is not installed; run `pip install 'remanence[plots]'` and "
            "start the demo again."
        )
    # Not before the flags are read: help is instant, and PyTorch is not.
    from rich.console import Console

    from remanence.analysis.compare import Stopped
    from remanence.analysis.demo import Demo
    from remanence.models import config_class

    for name in arguments.models:
        config_class(name)

    console = Console(stderr=True)
    demo = Demo(
        text=arguments.text,
        out=arguments.out,
        seconds=60 * arguments.minutes,
        architectures=arguments.models,
        seed=arguments.seed,
        command=" ".join([prog, *map(shlex.quote, argv)]),
        began=began,
        console=console,
    )
    try:
        comparison, folder = demo.run()
    except Stopped as stopped:
        kept = f"; what was trained until then is in {demo.folder}" if demo.folder else ""
        print(f"remanence: the demo was stopped before its report{kept}", file=sys.stderr)
        return 128 + stopped.signal
    show(comparison, folder, arguments.out)
    return 0


def show(comparison: Comparison, folder: Path, out: Path) -> None:
    """The table, the findings, the sample and where the report is, on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from remanence.analysis.palette import model_label
    from remanence.analysis.report import score_rows
    from remanence.analysis.wording import duration, verdict

    console = Console(highlight=False)
    headers, rows, best = score_rows(comparison)
    table = Table(
        title=f"{comparison.unit.capitalize()} on unseen text by memory length at test time",
        caption=f"After {comparison.models[0].tokens:,} training tokens each, with a memory of "
        f"{comparison.memory_length}: {comparison.text.source}.",
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    for number, header in enumerate(headers):
        table.add_column(header.replace("memory ", "M "), justify="right" if number else "left", no_wrap=True)
    for i, row in enumerate(rows):
        table.add_row(*(f"[bold]{escape(cell)}[/]" if (i, j) in best else escape(cell) for j, cell in enumerate(row)))
    console.print()
    console.print(table)
    console.print()
    for finding in verdict(comparison):
        style = {True: "green", False: "bold red", None: ""}[finding.good]
        mark = {True: "+", False: "!", None: "-"}[finding.good]
        console.print(f"{mark} {finding.text}", style=style or None, markup=False)
    if comparison.sample is not None:
        console.print(f"\n{model_label(comparison.sample.architecture)} goes on from the dim text:\n", markup=False)
        console.print(comparison.sample.prompt, style="dim", end="", markup=False)
        console.print(comparison.sample.text, markup=False)
    console.print(f"\nThe report: {out / 'report.html'}", markup=False, soft_wrap=True)
    console.print(
        f"The runs, their scores and the same report: {folder} (everything took {duration(comparison.seconds)})",
        markup=False,
        soft_wrap=True,
    )
