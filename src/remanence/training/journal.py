"""What a run tells while it trains: the log, the display, and what led to a loss that is not finite."""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from rich.console import Console
from torch import Tensor

from remanence.config import Recipe, TrainingSettings
from remanence.errors import Elsewhere, InputError
from remanence.files import write_json
from remanence.training.folder import RunFolder
from remanence.training.horizon import Horizon
from remanence.training.keeper import Keeper
from remanence.training.log import JsonLines, Sink, TensorBoard
from remanence.training.progress import Display, duration
from remanence.training.ranks import Ranks
from remanence.training.shares import own
from remanence.training.state import State
from remanence.training.units import Unit
from remanence.training.weights import count_parameters, weights

STEPS_UNREAD = 10
"""A GPU computes on its own; its losses are read so many at a time, so that it seldom waits for us."""
STEPS_TOLD = 100
"""How many steps before a divergence are written down."""


class Diverged(InputError):
    """The loss, the gradient or a weight is not a finite number any more."""


class Journal:
    """Writes the log of a run and shows it; used as a context."""

    def __init__(
        self,
        folder: RunFolder,
        settings: TrainingSettings,
        state: State,
        unit: Unit,
        console: Console,
        keeper: Keeper,
    ) -> None:
        self.folder, self.settings, self.state, self.unit, self.keeper = folder, settings, state, unit, keeper
        self._sinks: list[Sink] = []
        if state.ranks.first:
            self._sinks.append(JsonLines(folder.log, state.progress.step, state.progress.validated_at))
            if settings.tensorboard:
                self._sinks.append(TensorBoard(folder.tensorboard, state.progress.step))
        self._display = Display(console, settings.steps, state.progress.step)
        self._unread: list[tuple[int, float, Tensor]] = []
        self._recent: deque[dict[str, Any]] = deque(maxlen=STEPS_TOLD)
        self._window_tokens, self._window_seconds, self._mark = 0, 0.0, time.perf_counter()

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.stop()
        for sink in self._sinks:
            sink.close()

    def began(self, recipe: Recipe, corpus: str, resumed: bool, elsewhere: Sequence[str] = ()) -> None:
        """Training begins, or goes on; `elsewhere` is what is different from where it was begun."""
        state, parameters = self.state, count_parameters(self.state.model)
        self.write(
            "resume" if resumed else "start",
            recipe=recipe.name,
            architecture=recipe.architecture,
            parameters=parameters,
            corpus=corpus,
            unit=self.unit.name,
            precision=state.precision,
            **state.machine,
        )
        self.say(
            f"{recipe.name}: {recipe.architecture}, {parameters:,} parameters, on {corpus}; {state.precision} on "
            f"{state.device}{_shared(state.ranks)}; {self.folder.path}"
            + (f"; resumed at step {state.progress.step:,}" if resumed else "")
        )
        if elsewhere:
            self.say(f"{'; '.join(elsewhere)}: the run goes on, but to rounding, not bit for bit")

    def ended(self, number: int | None) -> None:
        """Training is done, or the signal of that number stopped it; everything has been saved."""
        progress, path, ranks = self.state.progress, self.folder.path, self.state.ranks
        if number is None:
            told = {"seconds": round(progress.seconds, 3), "stalled": round(progress.stalled, 3)}
            self.write("end", **told, tokens=progress.tokens)
            share = progress.stalled / max(progress.seconds + progress.stalled, 1e-9)
            self.say(
                f"{progress.step:,} steps in {duration(progress.seconds)}, and {progress.stalled:.1f} s ({share:.1%}) "
                f"held by saving; the run is in {path}"
            )
        else:
            self.write("stop", signal=signal.Signals(number).name, stalled=round(progress.stalled, 3))
            self.say(
                f"Stopped at step {progress.step:,} of {self.settings.steps:,} and saved; go on with: "
                f"remanence train {path} --resume" + (", by any number of processes" if ranks.size > 1 else "")
            )
        self.sync()

    def write(self, kind: str, **values: Any) -> None:
        """A record for the log."""
        for sink in self._sinks:
            sink.write({"kind": kind, "step": self.state.progress.step, **values})

    def say(self, text: str) -> None:
        """A line for the person."""
        self._display.say(text)

    def trained(self, rate: float, horizon: Horizon, norm: Tensor) -> None:
        """A step was made on a horizon; what is in it and `norm` are scalars that the device may still be computing."""
        progress = self.state.progress
        progress.tokens += horizon.scored
        self._window_tokens += horizon.scored
        loss = horizon.loss
        self._unread.append((progress.step, rate, torch.stack([loss, norm.to(loss.dtype), horizon.auxiliary])))
        if loss.device.type == "cpu" or len(self._unread) >= STEPS_UNREAD:
            self.read_losses()
        if progress.step % self.settings.log_every == 0:
            self._line()
        self._display.step(progress.step)

    def validated(self, measured: dict[str, Any], better: bool) -> None:
        """A validation was made; `better` than all before."""
        self.write("validation", **measured)
        told = measured.get("headline") or self.unit.text(measured["nats_per_token"])
        step = self.state.progress.step
        self.say(f"step {step:,}: validation {told}{', the best so far' if better else ''}")

    def read_losses(self) -> None:
        """Bring losses and gradient norms from the device. Raises Diverged where one is not finite."""
        if not self._unread:
            return
        values = torch.stack([measured for _, _, measured in self._unread]).tolist()
        for (step, rate, _), (loss, norm, auxiliary) in zip(self._unread, values, strict=True):
            self._recent.append(
                {"step": step, "learning_rate": rate, "loss": loss, "gradient_norm": norm, "auxiliary": auxiliary}
            )
            if not (math.isfinite(loss) and math.isfinite(norm)):
                found = self.diverged(f"The loss became {loss:g} and the norm of the gradient {norm:g}")
                # All ranks see the same numbers.
                raise found if self.state.ranks.first else Elsewhere(str(found))
            self.state.progress.loss_sum += loss
            self.state.progress.loss_steps += 1
        self._unread.clear()

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Work that is not training, named on the display and left out of its time. Losses are read first."""
        self.read_losses()
        self._tick()
        self._display.doing(what)
        try:
            yield
        finally:
            self._display.doing("training")
            self._mark = time.perf_counter()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Training waits for saving; how long is added up."""
        with self.aside("saving"):
            began = time.perf_counter()
            try:
                yield
            finally:
                self.state.progress.stalled += time.perf_counter() - began

    def check_weights(self) -> None:
        """Raise Diverged when a weight is not finite: such a one must not replace a good checkpoint."""
        for name, tensor in weights(self.state.model).items():
            if not _finite(tensor):
                raise self.diverged(f"The weight {name} is no finite number any more")

    def sync(self) -> None:
        """Bring the log to the disk, before a checkpoint that relies on it."""
        for sink in self._sinks:
            sink.sync()

    def diverged(self, what: str) -> Diverged:
        """The error to raise; what led to it is written down in the run's diverged.json."""
        model = self.state.model
        last = self._recent[-1] if self._recent else {"step": self.state.progress.step, "learning_rate": math.nan}
        record = {
            "what": what,
            "recent": [{name: _json(value) for name, value in each.items()} for each in self._recent],
            "not_finite": {
                "weights": [name for name, each in model.named_parameters() if not _finite(each)],
                "gradients": [name for name, each in model.named_parameters() if not _finite(each.grad)],
            },
            "lanes": self.state.lanes.state(),
            "precision": self.state.precision,
        }
        write_json(self.folder.diverged, record)
        self.write("diverged", what=what, at=last["step"])
        saved = self.keeper.written_at
        kept = f"the checkpoint of step {saved:,} is kept" if saved else "no checkpoint was due before"
        return Diverged(
            f"{what} at step {last['step']:,}, with the learning rate {last['learning_rate']:g}; {kept}, and "
            f"{self.folder.diverged} tells what led to it: lower training.learning_rate, raise training.warmup_steps "
            "or set training.precision to float32 in a new run."
        )

    def _line(self) -> None:
        self.read_losses()
        self._tick()
        progress, last = self.state.progress, self._recent[-1]
        loss = progress.loss_sum / progress.loss_steps
        speed = self._window_tokens / max(self._window_seconds, 1e-9)
        self.write(
            "train",
            loss=loss,
            learning_rate=last["learning_rate"],
            gradient_norm=last["gradient_norm"],
            auxiliary=last["auxiliary"],
            tokens=progress.tokens,
            epoch=self.state.lanes.epoch,
            tokens_per_second=round(speed, 1),
            seconds=round(progress.seconds, 3),
            stalled=round(progress.stalled, 3),
        )
        progress.losses.append((progress.step, loss))
        progress.loss_sum, progress.loss_steps = 0.0, 0
        self._window_tokens, self._window_seconds = 0, 0.0
        self._display.trained(progress.step, self.unit.text(loss), speed)

    def _tick(self) -> None:
        """Count the time since the last mark as training."""
        now = time.perf_counter()
        self.state.progress.seconds += now - self._mark
        self._window_seconds += now - self._mark
        self._mark = now


def _shared(ranks: Ranks) -> str:
    return "" if ranks.size == 1 else f", lanes shared by {ranks.size} processes"


def _finite(tensor: Tensor | None) -> bool:
    # Each rank looks at what it has: an error on one is one on all.
    return tensor is None or bool(torch.isfinite(own(tensor)).all())


def _json(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else str(value)
