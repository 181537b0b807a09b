"""One run from its first step, or its last checkpoint, to its end.

    horizon of segments -> gradients -> clip -> update -> log, validate, save

Everything that decides the next step is in the `State`, and all of it in the checkpoint, so that a run that was
stopped, however it was, ends with the weights of one that was not: bit for bit on a CPU with the same number of
threads.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from remanence.config import Recipe, SettingWarning
from remanence.config.recipe import table_of
from remanence.data import Corpus, Lanes
from remanence.errors import InputError
from remanence.models import LanguageModel, build
from remanence.training.allocation import keep_freed_memory
from remanence.training.device import choose_device, compiles
from remanence.training.folder import RunFolder
from remanence.training.horizon import accumulate_gradients, choose_engine, pieces_of, read_segment
from remanence.training.identity import check_same_run
from remanence.training.interrupts import SIGNALS, Interrupted, Interrupts
from remanence.training.journal import Journal
from remanence.training.keeper import Keeper
from remanence.training.log import TensorBoard
from remanence.training.optimizer import build_optimizer
from remanence.training.precision import autocast, choose
from remanence.training.profiling import StepProfiler
from remanence.training.ranks import ALONE, Ranks
from remanence.training.replication import Replicated
from remanence.training.result import Result
from remanence.training.schedule import learning_rate
from remanence.training.sharding import Shards, mesh_of, total_norm
from remanence.training.state import State
from remanence.training.units import unit_of

Validate = Callable[[LanguageModel], dict[str, Any]]


class Trainer:
    """Trains the model of a recipe on a corpus, in a folder of its own.

    recipe      its vocabulary may be open; it is then the corpus's
    folder      does not exist yet, or with `resume` holds this run
    validate    called with the model in evaluation mode; gives a dictionary with "nats_per_token" and whatever else the
                log shall hold. Without it there is no `best`.
    console     where progress is shown; standard error by default
    ranks       the processes that train together, each with a `Trainer` of its own; what is said and written is the
                first one's business
    profile     steps to record with PyTorch's profiler, after a few (`profiling.py`)

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
        profile: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.recipe = recipe = recipe.sized(corpus.vocab_size)
        self.settings = settings = recipe.training
        self.corpus, self.validate, self.resume, self.ranks = corpus, validate, resume, ranks
        self.console = (console or Console(stderr=True)) if ranks.first else Console(quiet=True)
        self.folder = RunFolder(Path(folder))
        for name in corpus.splits:
            # A damaged one is found now rather than by the first save, after training.
            corpus.split(name)
        if resume:
            check_same_run(table_of(self.folder.read_recipe()), recipe, str(self.folder.path))
        else:
            self.folder.check_free()
        if settings.tensorboard:
            TensorBoard.check_installed()
        part = ranks.share(settings.lanes)
        pieces_of(part.stop - part.start, settings.accumulation, ranks)
        device = choose_device(settings.device, ranks.local)
        model = build(recipe.model, seed=settings.seed).to(device).train()
        self.engine = choose_engine(model, settings.engine)
        if settings.horizon > 1 and self.engine == "truncated" and not settings.engine:
            warnings.warn(
                f"training.horizon is {settings.horizon}, but the memory of {recipe.architecture} carries no gradient: "
                'an update only reads that many segments more; say so by training.engine = "truncated".',
                SettingWarning,
                stacklevel=2,
            )
        if model.memory_carries_gradient and (settings.horizon == 1 or self.engine == "truncated"):
            cause = f"training.horizon is {settings.horizon} and training.engine {self.engine}"
            effect = (
                "model.memory_gradient has no effect"
                if recipe.model.memory_gradient
                else f"nothing teaches this {recipe.architecture} what to write into its memory"
            )
            warnings.warn(
                f"{cause}, so no gradient crosses segments and {effect}; set training.horizon to 2 or more, and "
                "training.engine to full, recompute or replay.",
                SettingWarning,
                stacklevel=2,
            )
        _check_horizon(recipe, corpus, model.shift)
        self.state = State(
            model=model,
            optimizer=build_optimizer(model, settings),
            lanes=Lanes(
                corpus.split("train"),
                settings.lanes,
                recipe.model.segment_length,
                protocol=recipe.data.protocol,
                seed=settings.seed,
                shift=model.shift,
                part=part,
            ),
            memory=model.init_memory(lanes=part.stop - part.start),
            precision=choose(settings.precision, device),
            device=device,
            compiled=self._is_compiled(device),
            ranks=ranks,
        )
        self.profiler = None if profile is None else StepProfiler(profile, self.folder.profile, device)
        if self.profiler and not resume:
            self.profiler.check(0, settings.steps, self._goes_aside)
        self.keeper = Keeper(self.folder, recipe, corpus, self.state)
        self._read_segment = torch.compile(read_segment, dynamic=False) if self.state.compiled else read_segment
        self._interrupts = Interrupts()
        self._signal: int | None = None
        self._time_to_save = False
        self._last: Callable[[Tensor], Tensor] = _unchanged
        self._summing: Callable[[], AbstractContextManager[None]] = nullcontext
        self._whole: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def model(self) -> LanguageModel:
        return self.state.model

    def run(self) -> Result:
        """Train to the last step, or until Ctrl-C or SIGTERM, and save. Seeds torch's global generators.

        Raises InputError when the run cannot be resumed and Diverged when the loss stops being finite, with what led to
        it in the run's diverged.json; OSError when the disk is full. The checkpoint before is kept in every case.
        """
        keep_freed_memory()
        torch.manual_seed(self.settings.seed)
        unit = unit_of(self.corpus.unit, self.state.lanes.split.counts)
        with ExitStack() as held:
            with self.ranks.together():
                if self.ranks.first:
                    if not self.resume:
                        self.folder.create(self.recipe, self.corpus.tokenizer, self.ranks.launch)
                    held.enter_context(self.folder.locked())
            self._interrupts = held.enter_context(Interrupts(self.ranks.first))
            if self._is_shared:
                shards = Shards(self.model, mesh_of(self.state.device, self.ranks.size))
                self.state.optimizer = build_optimizer(self.model, self.settings)
                self._summing, self._whole = shards.summing, shards.whole
            elsewhere = self.keeper.restore() if self.resume else []
            with self.ranks.together():
                if self.profiler and self.resume:
                    self.profiler.check(self.state.progress.step, self.settings.steps, self._goes_aside)
            if self.ranks.size > 1 and not self._is_shared:
                replicated = Replicated(self.model, self.ranks)
                self._last, self._summing = replicated.last, replicated.summing
                held.callback(replicated.release)
                held.callback(setattr, self, "_last", _unchanged)
                held.callback(setattr, self, "_summing", nullcontext)
            with (
                Journal(self.folder, self.settings, self.state, unit, self.console, self.keeper) as journal,
                self.keeper,
            ):
                journal.began(self.recipe, self.corpus.name, self.resume, elsewhere)
                finished = self._loop(journal)
                if self.profiler and (told := self.profiler.close(self.state.progress.step)):
                    journal.say(told)
                if not finished and self.state.progress.step > self.keeper.asked_at:
                    self._save(journal)
                self._settle(journal)
                journal.ended(self._signal)
        progress = self.state.progress
        return Result(
            steps=progress.step,
            seconds=progress.seconds,
            losses=progress.losses,
            stalled=progress.stalled,
            best=progress.best,
            folder=self.folder.path,
            signal=self._signal,
        )

    @property
    def _is_shared(self) -> bool:
        """Whether each rank keeps a part of the weights alone."""
        return self.settings.distribution == "fsdp" and self.ranks.size > 1

    def stop_if_interrupted(self, *_: object) -> None:
        """Raise `Interrupted` where a signal has arrived; for what `validate` calls now and then."""
        if self._interrupts.signal is not None:
            raise Interrupted

    def _is_compiled(self, device: torch.device) -> bool:
        """Raises InputError where the sweep ahead of replay, which is not compiled, would draw other dropout."""
        model, settings = self.recipe.model, self.settings
        rates = [getattr(model, field.name) for field in dataclasses.fields(model) if field.name.endswith("dropout")]
        drawn = self.engine == "replay" and any(rates)
        if drawn and settings.compile:
            raise InputError(
                'training.compile is true, but with training.engine "replay" and dropout the memories of the sweep '
                "ahead would not be those that are replayed; set training.compile to false, training.engine to "
                '"recompute", or every dropout of the model to 0.'
            )
        if self._is_shared and settings.compile:
            raise InputError(
                'training.compile is true, but with training.distribution "fsdp" weights come and go as they are used, '
                "which a compiled graph cannot follow; set training.compile to false, or training.distribution to "
                '"ddp".'
            )
        return not drawn and not self._is_shared and compiles(settings.compile, settings.steps, device)

    def _loop(self, journal: Journal) -> bool:
        """Train, validate and save until the last step is done (True) or a signal arrives, on any rank (False)."""
        settings, progress = self.settings, self.state.progress
        while self._stopping() is None:
            last = progress.step >= settings.steps
            validate = self.validate if self._is_due(settings.validate_every, last) else None
            if progress.step == progress.validated_at:
                validate = None
            due = validate or last or self._is_due(settings.save_every, last) or self._time_to_save
            if progress.step > self.keeper.asked_at and due:
                # Before validating, which may fail, or take long: no step is lost by it.
                self._save(journal)
            if validate:
                try:
                    # Several ranks must go the same way: `stop_if_interrupted` is asked where they meet.
                    with self._interrupts.at_once() if self.ranks.size == 1 else nullcontext():
                        measured = self._validate(journal, validate)
                except Interrupted:
                    self._agree()
                    return False
                self._judge(journal, measured)
                if last:
                    self._save(journal)
            if last:
                return True
            if self.profiler:
                self.profiler.before(progress.step)
            self._step(journal)
            if self.profiler and (told := self.profiler.after(progress.step)):
                journal.say(told)
        return False

    def _stopping(self) -> int | None:
        """The signal that stops the run. Of several ranks, what they agreed on when they last spoke of it."""
        if self.ranks.size == 1:
            self._signal = self._interrupts.signal
        return self._signal

    def _step(self, journal: Journal) -> None:
        """One update of the weights, and in the same breath what all ranks know of signals before the next one."""
        state, settings = self.state, self.settings
        rate = learning_rate(settings, state.progress.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        batches = [state.next_batch() for _ in range(settings.horizon)]
        counts = self._agree([batch.scored for batch in batches])
        told: Any = 0.0
        scored = 0
        parts = [[batch] for batch in batches] if settings.coasting_steps else [batches]
        for part in parts:
            state.optimizer.zero_grad(set_to_none=True)
            with self._summing():
                horizon = accumulate_gradients(
                    state.model,
                    part,
                    state.memory,
                    settings.accumulation,
                    engine=self.engine,
                    read=self._read_segment,
                    around=partial(autocast, state.precision, state.device),
                    ranks=self.ranks,
                    counts=[counts.pop(0) for _ in part],
                    last=self._last,
                )
            state.memory = horizon.memory
            scored += horizon.scored
            told += torch.stack([horizon.loss * horizon.scored, horizon.auxiliary / len(parts)])
            if settings.coasting_steps and not horizon.scored:
                for parameter in state.model.parameters():
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [each.grad for each in state.model.parameters() if each.grad is not None]
            norm = total_norm(gradients)
            if settings.clip_norm:
                nn.utils.clip_grads_with_norm_(state.model.parameters(), settings.clip_norm, norm)
            state.optimizer.step()
        state.progress.step += 1
        nats, auxiliary = self.ranks.sum(told)
        horizon = dataclasses.replace(horizon, loss=nats / max(scored, 1), auxiliary=auxiliary, scored=scored)
        journal.trained(rate, horizon, norm)

    def _agree(self, counts: Sequence[int] = ()) -> list[int]:
        """Learn whether a signal has reached any rank, or the time of a checkpoint has come; sums of counts over all.

        Raises what the save of any rank has failed with.
        """
        if self.ranks.size == 1:
            self._signal, self._time_to_save = self._interrupts.signal, self.keeper.is_time
            self.keeper.check()
            return list(counts)
        flags = [*(self._interrupts.signal == each for each in SIGNALS), self.keeper.is_time, self.keeper.failed]
        sums = self.ranks.sum(torch.tensor([*map(int, flags), *counts])).tolist()
        *signals, self._time_to_save, failed = map(bool, sums[: len(flags)])
        self._signal = next((each for each, arrived in zip(SIGNALS, signals, strict=True) if arrived), None)
        if failed:
            self.keeper.settle()
        return sums[len(flags) :]

    def _goes_aside(self, step: int) -> bool:
        """Whether something else than a step is done after this one."""
        validates = self.validate is not None and self.settings.validate_every
        return any(every and step % every == 0 for every in (self.settings.save_every, validates))

    def _is_due(self, every: int, last: bool) -> bool:
        return every > 0 and (last or self.state.progress.step % every == 0)

    def _validate(self, journal: Journal, validate: Validate) -> dict[str, Any]:
        """What the validation says. It has its own memory, and draws nothing from the generators that training uses."""
        device = self.state.device
        if self.profiler:
            self.profiler.drop()
        with (
            self._whole(),
            journal.aside("validating"),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            self.model.eval()
            try:
                return validate(self.model)
            finally:
                self.model.train()

    def _judge(self, journal: Journal, measured: dict[str, Any]) -> None:
        """Keep the weights when the validation is the best so far."""
        progress = self.state.progress
        progress.validated_at = progress.step
        better = progress.best is None or measured["nats_per_token"] < progress.best["nats_per_token"]
        # The log knows of no validation whose step is not on the disk.
        self._settle(journal)
        journal.validated(measured, better)
        if better:
            progress.best = {"step": progress.step, **measured}
            with journal.held():
                self.keeper.save_best()

    def _save(self, journal: Journal) -> None:
        if self.profiler:
            self.profiler.drop()
        with journal.held():
            with self.ranks.together():
                journal.check_weights()
            self.keeper.save_last(before=journal.sync)

    def _settle(self, journal: Journal) -> None:
        with journal.held():
            self.keeper.settle()


def _unchanged(objective: Tensor) -> Tensor:
    return objective


def _check_horizon(recipe: Recipe, corpus: Corpus, shift: int) -> None:
    """Raise InputError where most updates would see nothing that is scored: only the ends of documents are."""
    split, length, horizon = corpus.split("train"), recipe.model.segment_length, recipe.training.horizon
    if split.scored_last is None or recipe.data.protocol != "document":
        return
    sizes = np.diff(np.append(split.documents, len(split)))
    segments = {-(-(int(size) - shift) // length) for size in np.unique(sizes)}
    if len(segments) == 1 and horizon % (count := segments.pop()):
        raise InputError(
            f"training.horizon is {horizon}, but a document of {corpus.name} has {count} segments of {length} tokens "
            f"and only its last {split.scored_last} tokens are scored, so that updates would learn from nothing; set "
            f"training.horizon to {count} or a multiple of it."
        )
