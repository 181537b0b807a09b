"""Some steps of a run under PyTorch's profiler: a trace to look at, and a table of what took longest.

The first steps of a process load kernels and fill memories, so a few pass before anything is recorded. Recording
changes no number of the run; the recorded steps take longer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from remanence.errors import InputError
from remanence.files import make_folder, write_text

WARMING = 5
"""Steps of this process that are not recorded."""
ROWS = 40
"""Lines of the table."""


class StepProfiler:
    """Records `steps` steps in a row after the first ones; `before` and `after` stand around every step.

    folder      where the trace and the table go, made when it is needed
    device      where the run computes

    Saving and validating are not recorded: `drop` is called before them, and recording begins anew after them. Raises
    InputError for a number of steps below 1.
    """

    def __init__(self, steps: int, folder: Path, device: torch.device) -> None:
        if steps < 1:
            raise InputError(f"--profile is {steps}, but it is a number of steps to record, 1 or more.")
        self.steps, self.folder, self.device = steps, folder, device
        self._made = 0
        self._recorded = 0
        self._first = 0
        self._began = 0.0
        self._profiler: Any = None

    def check(self, done: int, steps: int, aside: Callable[[int], bool]) -> None:
        """Raise InputError where a run that made `done` of its steps will not make as many in a row as are asked for.

        `aside` tells whether the run saves or validates after a step.
        """
        row = longest = 0
        for step in range(done + 1 + WARMING, steps + 1):
            row += 1
            longest = max(longest, row)
            if longest == self.steps:
                return
            row = 0 if aside(step) else row
        remedy = f"give at most {longest}" if longest else "raise training.steps"
        raise InputError(
            f"--profile is {self.steps}, but after the {WARMING} steps that pass before anything is recorded this run "
            f"makes at most {longest} in a row, without saving or validating; {remedy}."
        )

    def before(self, step: int) -> None:
        """A step is about to be made; `step` of the run were made before."""
        if self._profiler is None and self._made >= WARMING and self._recorded < self.steps:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
            self._profiler = profile(activities=activities, acc_events=True)
            self._profiler.start()
            self._first, self._recorded, self._began = step + 1, 0, time.perf_counter()

    def after(self, step: int) -> str | None:
        """A step was made, the run's number `step`; once all are recorded, a sentence that says where they are."""
        self._made += 1
        self._recorded += self._profiler is not None
        return self._finish(step) if self._profiler is not None and self._recorded == self.steps else None

    def drop(self) -> None:
        """The run does something else than steps: what was recorded is no row of steps any more."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler, self._recorded = None, 0

    def close(self, step: int) -> str | None:
        """The run ends here; what was recorded until now is written, too."""
        return self._finish(step) if self._profiler is not None and self._recorded else None

    def _finish(self, step: int) -> str:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self._began
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        make_folder(self.folder, self.folder, "--folder")
        stem = self.folder / f"steps-{self._first}-{step}"
        trace, table = stem.with_suffix(".trace.json"), stem.with_suffix(".txt")
        # Written beside and moved: a trace that was cut short would look like one.
        draft = trace.with_name(f".{trace.name}.part")
        try:
            profiler.export_chrome_trace(str(draft))
            os.replace(draft, trace)
        finally:
            draft.unlink(missing_ok=True)
        order = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        count = step - self._first + 1
        told = profiler.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        head = f"Steps {self._first} to {step}: {1e3 * seconds / count:.1f} ms each, being recorded. Times are sums."
        write_text(table, f"{head}\n\n{told}\n")
        return f"Steps {self._first} to {step} were recorded: {trace} (chrome://tracing, ui.perfetto.dev) and {table}"
