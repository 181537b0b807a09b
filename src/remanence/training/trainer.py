"""One run from its first step, or its last checkpoint, to its end.

    horizon of segments -> gradients -> clip -> update -> log, validate, save

Everything that decides the next step is in the `State`, and all of it in the checkpoint, so that a run that was
stopped, however it was, ends with the weights of one that was not: bit for bit on a CPU with the same number of
threads.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from remanence.config import Recipe, SettingWarning, dump_recipe
from remanence.config.recipe import table_of
from remanence.data import Batch, Corpus, Lanes
from remanence.errors import InputError
from remanence.files import write_text
from remanence.memory import Memory
from remanence.models import LanguageModel, build
from remanence.training.checkpoint import exists, open_checkpoint, save_checkpoint
from remanence.training.description import about_run, check_same_run
from remanence.training.device import choose_device
from remanence.training.folder import RunFolder
from remanence.training.horizon import accumulate_gradients, read_segment
from remanence.training.interrupts import Interrupted, Interrupts
from remanence.training.journal import Journal
from remanence.training.log import TensorBoard
from remanence.training.optimizer import build_optimizer
from remanence.training.precision import autocast, choose
from remanence.training.progress import duration
from remanence.training.schedule import learning_rate
from remanence.training.state import State
from remanence.training.units import unit_of
from remanence.training.weights import count_parameters, weights

Validate = Callable[[LanguageModel], dict[str, Any]]


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    steps: int
    """Updates made, those before a resumption included."""
    seconds: float
    """Spent on training steps, without validation and saving."""
    losses: list[tuple[int, float]]
    """(step, mean training loss in nats per token since the entry before)."""
    best: dict[str, Any] | None
    """What the validation with the lowest loss gave, and its "step"; None without validation."""
    folder: Path
    signal: int | None = None
    """The signal that ended the run before its last step."""

    @property
    def interrupted(self) -> bool:
        return self.signal is not None


class Trainer:
    """Trains the model of a recipe on a corpus, in a folder of its own.

    recipe      its vocabulary may be open; it is then the corpus's
    folder      does not exist yet, or with `resume` holds this run
    validate    called with the model in evaluation mode; gives a dictionary with "nats_per_token" and whatever else the
                log shall hold. Without it there is no `best`.
    console     where progress is shown; standard error by default

    Raises InputError, before anything is written, when recipe, corpus and folder do not fit each other.
    """

    def __init__(
        self,
        recipe: Recipe,
        corpus: Corpus,
        folder: str | Path,
        *,
        validate: Validate | None = None,
        console: Console | None = None,
        resume: bool = False,
    ) -> None:
        self.recipe = recipe = recipe.sized(corpus.vocab_size)
        self.settings = settings = recipe.training
        self.corpus, self.validate, self.resume = corpus, validate, resume
        self.console = console or Console(stderr=True)
        self.folder = RunFolder(Path(folder))
        if resume:
            check_same_run(table_of(self.folder.read_recipe()), recipe, str(self.folder.path))
        else:
            self.folder.check_free()
        if settings.tensorboard:
            TensorBoard.check_installed()
        device = choose_device(settings.device)
        model = build(recipe.model, seed=settings.seed).to(device).train()
        if settings.horizon > 1 and not model.memory_carries_gradient:
            warnings.warn(
                f"training.horizon is {settings.horizon}, but the memory of {recipe.architecture} carries no gradient: "
                "an update only reads that many segments more.",
                SettingWarning,
                stacklevel=2,
            )
        self.state = State(
            model=model,
            optimizer=build_optimizer(model, settings),
            lanes=Lanes(
                corpus.split("train"),
                settings.lanes,
                recipe.model.segment_length,
                protocol=recipe.data.protocol,
                seed=settings.seed,
            ),
            memory=model.init_memory(lanes=settings.lanes),
            precision=choose(settings.precision, device),
            device=device,
        )
        self._read_segment = torch.compile(read_segment, dynamic=False) if settings.compile else read_segment

    @property
    def model(self) -> LanguageModel:
        return self.state.model

    def run(self) -> Result:
        """Train to the last step, or until Ctrl-C or SIGTERM, and save. Seeds torch's global generators.

        Raises InputError when the run cannot be resumed and Diverged when the loss stops being finite, with what led to
        it in the run's diverged.json; OSError when the disk is full. The checkpoint before is kept in every case.
        """
        torch.manual_seed(self.settings.seed)
        if not self.resume:
            self.folder.create(self.recipe, self.corpus.tokenizer)
        unit = unit_of(self.corpus.unit, self.state.lanes.split.counts)
        with self.folder.locked(), Interrupts() as interrupts:
            if self.resume:
                self._restore()
            with Journal(self.folder, self.settings, self.state, unit, self.console) as journal:
                self._announce(journal)
                self._loop(journal, interrupts)
                return self._finish(journal, interrupts.signal)

    def _loop(self, journal: Journal, interrupts: Interrupts) -> None:
        settings, progress = self.settings, self.state.progress
        while interrupts.signal is None:
            last = progress.step >= settings.steps
            if self.validate and progress.step > progress.validated_at and self._is_due(settings.validate_every, last):
                try:
                    with interrupts.at_once():
                        measured = self._validate(journal, self.validate)
                except Interrupted:
                    return
                self._judge(journal, measured)
            if progress.step > journal.saved_at and (last or self._is_due(settings.save_every, last)):
                self._save(journal)
            if last:
                return
            self._step(journal)

    def _step(self, journal: Journal) -> None:
        """One update of the weights."""
        state, settings = self.state, self.settings
        rate = learning_rate(settings, state.progress.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        batches = [state.next_batch() for _ in range(settings.horizon)]
        horizon = accumulate_gradients(state.model, batches, state.memory, settings.accumulation, self._read)
        state.memory = horizon.memory
        norm = nn.utils.get_total_norm([each.grad for each in state.model.parameters() if each.grad is not None])
        if settings.clip_norm:
            nn.utils.clip_grads_with_norm_(state.model.parameters(), settings.clip_norm, norm)
        state.optimizer.step()
        state.progress.step += 1
        journal.trained(rate, horizon.loss, norm, horizon.scored)

    def _read(self, model: LanguageModel, batch: Batch, memory: Memory) -> tuple[Tensor, Memory]:
        with autocast(self.state.precision, self.state.device):
            return self._read_segment(model, batch, memory)

    def _is_due(self, every: int, last: bool) -> bool:
        return every > 0 and (last or self.state.progress.step % every == 0)

    def _validate(self, journal: Journal, validate: Validate) -> dict[str, Any]:
        """What the validation says. It has its own memory, and draws nothing from the generators that training uses."""
        device = self.state.device
        with journal.aside("validating"), torch.random.fork_rng([device] if device.type == "cuda" else []):
            self.model.eval()
            try:
                return validate(self.model)
            finally:
                self.model.train()

    def _judge(self, journal: Journal, measured: dict[str, Any]) -> None:
        """Log a validation, and keep the weights when it is the best so far."""
        progress = self.state.progress
        journal.write("validation", **measured)
        progress.validated_at = progress.step
        better = progress.best is None or measured["nats_per_token"] < progress.best["nats_per_token"]
        if better:
            progress.best = {"step": progress.step, **measured}
            with journal.aside("saving"):
                save_checkpoint(self.folder.best, {"model": weights(self.model)}, self._about())
        told = measured.get("headline") or journal.unit.text(measured["nats_per_token"])
        journal.say(f"step {progress.step:,}: validation {told}{', the best so far' if better else ''}")

    def _save(self, journal: Journal) -> None:
        with journal.aside("saving"):
            for name, tensor in weights(self.model).items():
                if not bool(torch.isfinite(tensor).all()):
                    raise journal.diverged(f"The weight {name} is no finite number any more")
            journal.sync()
            about = {**self._about(), "resumption": self.state.description()}
            save_checkpoint(self.folder.last, self.state.parts(), about)
            journal.saved_at = self.state.progress.step

    def _about(self) -> dict[str, Any]:
        progress = self.state.progress
        return about_run(self.recipe, self.corpus, self.state.distances, progress.step, progress.best)

    def _restore(self) -> None:
        """Become what the last checkpoint was; a run that was killed before the first begins anew."""
        if not exists(self.folder.last):
            return
        checkpoint = open_checkpoint(self.folder.last)
        check_same_run(checkpoint.about["recipe"], self.recipe, str(checkpoint.folder))
        if checkpoint.about["corpus"]["fingerprint"] != self.corpus.fingerprint:
            raise InputError(
                f"The corpus {self.corpus.folder} is not the one that {self.folder.path} was trained on; prepare that "
                "one again, or start a new run in another folder."
            )
        self.state.restore(checkpoint)
        # What may change between the parts of a run is from now on as it was given.
        write_text(self.folder.recipe, dump_recipe(self.recipe))

    def _announce(self, journal: Journal) -> None:
        parameters, state = count_parameters(self.model), self.state
        journal.write(
            "resume" if self.resume else "start",
            recipe=self.recipe.name,
            architecture=self.recipe.architecture,
            parameters=parameters,
            corpus=self.corpus.name,
            unit=journal.unit.name,
            device=str(state.device),
            precision=state.precision,
            threads=torch.get_num_threads(),
        )
        journal.say(
            f"{self.recipe.name}: {self.recipe.architecture}, {parameters:,} parameters, on {self.corpus.name}; "
            f"{state.precision} on {state.device}; {self.folder.path}"
            + (f"; resumed at step {state.progress.step:,}" if self.resume else "")
        )

    def _finish(self, journal: Journal, number: int | None) -> Result:
        progress = self.state.progress
        stopped = progress.step < self.settings.steps
        if progress.step > journal.saved_at:
            self._save(journal)
        if stopped and number is not None:
            journal.write("stop", signal=signal.Signals(number).name)
            journal.say(
                f"Stopped at step {progress.step:,} of {self.settings.steps:,} and saved; go on with: "
                f"remanence train {self.folder.path} --resume"
            )
        else:
            journal.write("end", seconds=round(progress.seconds, 3), tokens=progress.tokens)
            journal.say(f"{progress.step:,} steps in {duration(progress.seconds)}; the run is in {self.folder.path}")
        journal.sync()
        return Result(
            progress.step,
            progress.seconds,
            progress.losses,
            progress.best,
            self.folder.path,
            number if stopped else None,
        )
