"""What a run spends beside computing: loading its lanes, and its log. Measured in a real `Trainer`."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from remanence.bench import own
from remanence.bench.settings import Settings
from remanence.config import DataSettings, Recipe, TrainingSettings
from remanence.data.prepare import prepare
from remanence.training import Trainer
from remanence.training.journal import Journal
from remanence.training.state import State

ARCHITECTURE = "lamemo"
LOG_EVERY = 5
BEFORE = 3
"""Steps that are not counted."""
CHARACTERS = 1 << 18


def measure_overhead(settings: Settings) -> dict[str, Any]:
    """Seconds of a step, of loading and of logging in it, and their shares."""
    steps = BEFORE + max(2 * LOG_EVERY, settings.rounds)
    loading: list[float] = []
    logging: list[float] = []
    stepping: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        lines = (f"line {number} of a text that nobody reads {number * number % 9973}\n" for number in range(1 << 14))
        text.write_text("".join(lines)[:CHARACTERS], encoding="utf-8")
        corpus = prepare(text, Path(folder) / "corpus", name="bench", validation=0.1, test=0.1)
        recipe = Recipe(
            "bench",
            data=DataSettings(str(corpus.folder)),
            model=own.configuration(
                ARCHITECTURE, settings, max(settings.memory_length), vocab_size=corpus.vocab_size, cutoffs=()
            ),
            training=TrainingSettings(
                steps=steps,
                lanes=settings.lanes,
                precision=settings.dtype,
                device=settings.device,
                log_every=LOG_EVERY,
                validate_every=0,
                save_every=0,
                seed=settings.seed,
            ),
        )
        with (
            timed(State, "next_batch", loading),
            timed(Journal, "trained", logging),
            timed(Trainer, "_step", stepping),
        ):
            Trainer(recipe, corpus, Path(folder) / "run", console=Console(quiet=True)).run()
    counted = slice(BEFORE, None)
    step, load = statistics.median(stepping[counted]), statistics.median(loading[counted])
    # A mean: a line comes seldom, and its cost is every step's to share.
    log = statistics.fmean(logging[counted])
    return {
        "architecture": ARCHITECTURE,
        "steps": len(stepping[counted]),
        "log_every": LOG_EVERY,
        "seconds_step": step,
        "seconds_loading": load,
        "seconds_logging": log,
        "share_loading": load / step,
        "share_logging": log / step,
    }


@contextmanager
def timed(kind: type, name: str, seconds: list[float]) -> Iterator[None]:
    """Within the context, every call of a method adds what it took."""
    plain: Callable[..., Any] = getattr(kind, name)

    def call(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(*arguments, **options)
        finally:
            seconds.append(time.perf_counter() - began)

    with patch.object(kind, name, call):
        yield
