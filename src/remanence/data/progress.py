"""A progress bar for long work, or nothing at all."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self


class Progress:
    """Stages with a bar each, drawn by rich on standard error when that is a terminal and `show` is set."""

    def __init__(self, show: bool = True) -> None:
        self._bars: Any = None
        self._task: Any = None
        if show and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bars = progress.Progress(
                progress.TextColumn("{task.description:<11}"),
                progress.BarColumn(),
                progress.DownloadColumn(),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            if error is None:
                self._finish()
            self._bars.stop()

    def stage(self, what: str, total: int | None) -> None:
        """Begin a stage of `total` bytes; None where that is not known. The one before is done."""
        if self._bars is not None:
            self._finish()
            self._task = self._bars.add_task(what, total=total or None)

    def advance(self, size: int) -> None:
        if self._bars is not None:
            self._bars.advance(self._task, size)

    def _finish(self) -> None:
        if self._task is not None:
            completed = next(task.completed for task in self._bars.tasks if task.id == self._task)
            self._bars.update(self._task, total=completed or 1, completed=completed or 1)
