"""What a person sees of a run: a live line on a terminal, and now and then a plain line anywhere else."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0
"""Where there is no terminal, at most one line of progress in so many seconds."""


class Display:
    """Shows the steps of a run on `console`."""

    def __init__(self, console: Console, steps: int, done: int) -> None:
        self.console = console
        self.steps = steps
        self._begun_at = done
        self._began = time.monotonic()
        self._printed = -PLAIN_SECONDS
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, completed=done, told="")

    def start(self) -> None:
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def step(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def trained(self, step: int, loss: str, tokens_per_second: float) -> None:
        """A line of the log was written."""
        told = f"{loss}, {tokens_per_second:,.0f} tokens/s"
        self._bar.update(self._task, completed=step, told=told)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            left = (now - self._began) / max(step - self._begun_at, 1) * (self.steps - step)
            self.say(f"step {step:,} of {self.steps:,}: {told}, {duration(left)} left")

    def doing(self, what: str) -> None:
        """Name what is going on: training, validating, saving."""
        self._bar.update(self._task, description=what)

    def say(self, text: str, **style: Any) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True, **style)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 5 min 03 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
