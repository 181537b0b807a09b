"""Every recipe with every seed under one budget, in one folder, stopped and resumed at any point.

    plan.json                    what was asked for, what it costs and how many steps follow from that
    runs/RECIPE/seed-N/          the run, as `remanence train` makes it; its scores in scores/
    failures/RECIPE-seed-N.json  why a run did not end; it is tried again when the comparison is resumed

What is there is never made again: a run goes on from its last checkpoint, and a score is kept for the weights and the
text it was taken from. Nothing is decided after the plan: it holds the numbers of steps, so that a comparison that is
resumed on a slower day is the same comparison.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import shutil
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from remanence.analysis import compare, measurements
from remanence.analysis.budget import Budget, default_amount, planned
from remanence.analysis.compare import Stopped, stop_if_interrupted
from remanence.analysis.comparison import restore
from remanence.analysis.cost import Price, Size, measure_price, size_of, step_tokens
from remanence.analysis.request import LANES_SCORED, Asked, Plan, check_alike, test_text
from remanence.analysis.trials import Trial
from remanence.config import Recipe, SettingWarning
from remanence.config.recipe import table_of
from remanence.data import Corpus, Lanes
from remanence.errors import InputError
from remanence.evaluation import LossByStretch, Protocol, Score, evaluate
from remanence.evaluation.validation import validation, validation_split
from remanence.files import read_json, write_json
from remanence.generation.pictures import leave_pictures
from remanence.models import LanguageModel
from remanence.training import Run, Trainer, load_run
from remanence.training.device import choose_device
from remanence.training.folder import RunFolder, locked
from remanence.training.log import read_log
from remanence.training.precision import Precision, choose
from remanence.training.progress import duration
from remanence.training.units import unit_of

STRETCH = 1024
"""Tokens of a lane that make one stretch of text, for paired differences."""
CUT_OFF = 2
"""A run in which the process died so often comes last, so that it keeps no other from being trained."""


@dataclass(frozen=True)
class Job:
    """One recipe with one seed."""

    name: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def label(self) -> str:
        return f"{self.name}-seed-{self.seed}"


class Study:
    """Trains and scores everything that is asked for.

    recipes     their vocabulary may be open; names differ
    folder      does not exist, is empty, or holds this comparison
    console     where progress is told

    Raises InputError, before anything is trained, when recipes, corpus and folder do not fit each other.
    """

    def __init__(self, recipes: Sequence[Recipe], corpus: Corpus, folder: Path, asked: Asked, console: Console) -> None:
        check_alike(recipes)
        self.corpus, self.folder, self.asked, self.console = corpus, folder, asked, console
        self.recipes: dict[str, Recipe] = {}
        for recipe in recipes:
            with named(recipe.name, len(recipes)):
                self.recipes[recipe.name] = recipe.sized(corpus.vocab_size)
        first = self.first
        self.text = test_text(corpus, first, asked.test_tokens)
        self.lanes = first.evaluation.lanes or compare.reading(self.text, first, LANES_SCORED).lanes or 1
        self.precision: Precision = choose(first.training.precision, choose_device(first.training.device))
        self._validated = "validation" in corpus.splits and asked.validations > 0
        self._plan: Plan | None = None
        self.sizes: dict[str, Size] = {}
        self.lengths: dict[str, tuple[int, ...]] = {}
        for name, recipe in self.recipes.items():
            with named(name, len(recipes)):
                self.lengths[name] = self._check(recipe)
                if asked.budget == "tokens" and asked.amount is not None:
                    Budget("tokens", asked.amount).steps(step_tokens(recipe))

    @property
    def first(self) -> Recipe:
        return next(iter(self.recipes.values()))

    @property
    def plan(self) -> Plan:
        assert self._plan is not None, "the study has not begun"
        return self._plan

    @property
    def begun(self) -> bool:
        """Whether there is a plan, from which a comparison can go on."""
        return self._plan_file.exists()

    @property
    def jobs(self) -> list[Job]:
        """All runs, the first seed of every recipe first: what is there at any time is as even as it can be."""
        return [self._job(name, seed) for seed in self.asked.seeds for name in self.recipes]

    def run(self) -> None:
        """Plan, train and score all that is not there yet. Raises Stopped after Ctrl-C or SIGTERM, and InputError."""
        with self._claimed(), self._locked(), warnings.catch_warnings():
            # Each was told when the recipes were built.
            warnings.simplefilter("ignore", SettingWarning)
            self._plan = self._planned()
            jobs = self.jobs
            pending = [job for job in jobs if not self._is_done(job)]
            if len(pending) < len(jobs):
                self.say(f"{len(jobs) - len(pending)} of {len(jobs)} runs are trained and scored already.")
            # Sorting keeps the order of those that are alike.
            pending.sort(key=lambda job: self._cut_off(job) >= CUT_OFF)
            for number, job in enumerate(pending):
                self._tell(job, len(jobs) - len(pending) + number + 1, len(jobs), pending[number:])
                self._attempt(job)

    def trials(self, name: str) -> tuple[Trial, ...]:
        """What is there of a recipe; runs that were not begun are left out."""
        found = (self._trial(self._job(name, seed)) for seed in self.asked.seeds)
        return tuple(trial for trial in found if trial is not None)

    def headline_length(self, name: str) -> int:
        """The memory length at which a recipe is judged: the one its [evaluation] names, else that of training."""
        recipe = self.recipes[name]
        asked = recipe.evaluation.memory_length
        return recipe.model.memory_length if asked is None else asked

    def scores(self, name: str, seed: int) -> list[Score]:
        """The scores that are there, by ascending memory length."""
        files = [self._score_file(self._job(name, seed), length) for length in self.lengths[name]]
        return [_score(file) for file in files if file.exists()]

    def say(self, sentence: str) -> None:
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    # Before anything is trained

    def _check(self, recipe: Recipe) -> tuple[int, ...]:
        """Build everything once, so that what cannot be is refused now; gives the memory lengths to score."""
        scratch = self.folder / "runs" / recipe.name / "unused"
        training = dataclasses.replace(recipe.training, steps=1, warmup_steps=0)
        model = Trainer(dataclasses.replace(recipe, training=training), self.corpus, scratch).model
        self.sizes[recipe.name] = size_of(model)
        segment_length = recipe.evaluation.segment_length or recipe.model.segment_length
        Lanes.once(self.text, self.lanes, segment_length, recipe.data.protocol, model.shift)
        if self._validated:
            validation_split(self.corpus, recipe)
        asked = self.asked.memory_lengths
        if asked is None:
            longest = max(each.model.memory_length for each in self.recipes.values())
            asked = (0, longest // 2, longest, 2 * longest)
        own = self.headline_length(recipe.name)
        lengths = compare.lengths_for(model, [*asked, own])
        if own not in lengths:
            model.init_memory(lanes=1, length=own)
        return lengths

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        """Raise InputError where something else is in the folder; make it otherwise, and keep it if there is a plan."""
        folder = self.folder
        # Hidden files are what measuring left behind.
        free = not folder.exists() or (folder.is_dir() and all(each.name.startswith(".") for each in folder.iterdir()))
        if not free and not self.begun:
            raise InputError(f"{folder} exists and holds no comparison; choose another folder by --folder.")
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield
        finally:
            if made and not self.begun:
                shutil.rmtree(folder, ignore_errors=True)
                # Others may have put something beside it meanwhile.
                with contextlib.suppress(OSError):
                    for each in made[1:]:
                        each.rmdir()

    def _planned(self) -> Plan:
        """The plan of the folder, or a new one, which takes some measuring."""
        for left in (*self.folder.glob(".counting-*"), *self.folder.glob(".measuring-*")):
            shutil.rmtree(left, ignore_errors=True)
        asked = json.loads(json.dumps(dataclasses.asdict(self.asked)))
        recipes = {name: table_of(recipe) for name, recipe in self.recipes.items()}
        if self.begun:
            plan = Plan.load(self._plan_file)
            plan.check_same(self.folder, asked, self.corpus.fingerprint, recipes)
            self.say(f"Going on with the comparison in {self.folder}.")
            return plan
        self.say("Counting what a training step of each recipe costs.")
        prices = {name: self._price(recipe) for name, recipe in self.recipes.items()}
        seconds = self._step_seconds() if self.asked.budget == "time" else {}
        costs = {name: self._costs(name, prices[name], seconds) for name in self.recipes}
        kind = self.asked.budget
        amount = self.asked.amount
        if amount is None:
            amount = default_amount(kind, self.first, costs[self.first.name])
        budget = Budget(kind, amount)
        steps = {name: budget.steps(costs[name][kind]) for name in self.recipes}
        plan = Plan(asked, self.corpus.fingerprint, recipes, prices, seconds, amount, steps)
        plan.save(self._plan_file)
        told = ", ".join(f"{name} {number:,}" for name, number in steps.items())
        self.say(f"Every run gets {budget.words()}; that is, in steps: {told}.")
        return plan

    def _price(self, recipe: Recipe) -> Price | None:
        """None where the recipe cannot be trained: that will be told where it is tried in earnest."""
        try:
            return measure_price(recipe, self.corpus, self.folder)
        except (Stopped, OSError):
            raise
        except Exception as error:
            if self.asked.budget == "flops":
                raise InputError(
                    f"The FLOPs of {recipe.name} cannot be counted: {_cause(error)}; change the recipe, leave it out, "
                    "or take --budget tokens."
                ) from None
            return None
        finally:
            _clear_up()

    def _step_seconds(self) -> dict[str, float]:
        """Of every recipe, measured now."""
        self.say("Measuring how long a training step of each recipe takes on this machine.")
        found = {}
        for name, recipe in self.recipes.items():
            try:
                found[name] = compare.measure_cost(recipe, self.corpus, (), 1, self.folder).step
            except (Stopped, OSError):
                raise
            except Exception as error:
                raise InputError(
                    f"The steps of {name} cannot be timed: {_cause(error)}; change the recipe, leave it out, or take "
                    "--budget tokens."
                ) from None
        return found

    def _costs(self, name: str, price: Price | None, seconds: Mapping[str, float]) -> dict[str, float]:
        """Of one step, by kind of budget."""
        return {
            "tokens": float(step_tokens(self.recipes[name])),
            "flops": price.step_flops if price else 0.0,
            "time": seconds.get(name, 0.0),
        }

    # One run

    def _job(self, name: str, seed: int) -> Job:
        recipe = planned(
            self.recipes[name], self.plan.steps[name], seed, self.asked.validations if self._validated else 0
        )
        return Job(name, seed, recipe, self.folder / "runs" / name / f"seed-{seed}")

    def _attempt(self, job: Job) -> None:
        """Train and score; what goes wrong is written down, and the next run has its turn."""
        self._note_cut_off(job, self._cut_off(job) + 1)
        try:
            self._train(job)
            self._score(job)
        except (Stopped, OSError, KeyboardInterrupt):
            self._note_cut_off(job, 0)
            raise
        except Exception as error:
            self._note_failure(job, error)
        else:
            self._failure_file(job).unlink(missing_ok=True)
        self._note_cut_off(job, 0)
        _clear_up()

    def _train(self, job: Job) -> None:
        if self._is_trained(job):
            return
        split = validation_split(self.corpus, job.recipe) if self._validated else None
        job.folder.parent.mkdir(parents=True, exist_ok=True)

        def validate(model: LanguageModel) -> dict[str, Any]:
            assert split is not None
            return validation(model, split, job.recipe, self.corpus, trainer.state.precision)

        trainer = Trainer(
            job.recipe,
            self.corpus,
            job.folder,
            validate=validate if self._validated else None,
            console=self.console,
            resume=RunFolder(job.folder).holds_run,
        )
        stop_if_interrupted(trainer.run())

    def _score(self, job: Job) -> None:
        """Score with every memory length for which there is none yet."""
        lengths = [length for length in self.lengths[job.name] if not self._score_file(job, length).exists()]
        if not lengths:
            return
        device = choose_device(job.recipe.training.device)
        run = load_run(job.folder, self.asked.checkpoint, device=device)
        if self.corpus.unit == "pixel":
            leave_pictures(run, self.corpus, job.folder / "pictures")
        for length in lengths:
            score = self._scored(job, run, length)
            self._score_file(job, length).parent.mkdir(exist_ok=True)
            facts = {"fingerprint": run.fingerprint, "step": run.step, "checkpoint": run.which}
            write_json(self._score_file(job, length), {**facts, "score": score.to_json()})
            self.say(f"memory {length:,}: {score.headline} ({score.seconds:.1f} s)")

    def _scored(self, job: Job, run: Run, length: int) -> Score:
        evaluation = job.recipe.evaluation
        segment_length = evaluation.segment_length or job.recipe.model.segment_length
        protocol = Protocol(
            starts=job.recipe.data.protocol,
            segment_length=segment_length,
            memory_length=length,
            clamp_length=evaluation.clamp_length,
            compressed_length=evaluation.compressed_length if hasattr(run.model.config, "compressed_slots") else None,
            same_length=evaluation.same_length,
            lanes=self.lanes,
            precision=self.precision,
        )
        stretches = LossByStretch(segments=max(1, STRETCH // segment_length))
        return evaluate(
            run.model,
            self.text,
            protocol,
            trained=run.distances,
            corpus=self.corpus.name,
            measurements=[stretches] if length == self.headline_length(job.name) else [],
        )

    def _trial(self, job: Job) -> Trial | None:
        """What is known of a run; None where it was not begun, or stopped on its way."""
        try:
            found = self._found(job)
            # Its numbers come from files: each is of its type, or this raises.
            return found and restore(Trial, json.loads(json.dumps(dataclasses.asdict(found))))
        except InputError:
            raise
        except (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError) as error:
            raise InputError(
                f"What {job.folder} holds is damaged ({type(error).__name__}: {error}); remove that folder and compare "
                "again."
            ) from None

    def _found(self, job: Job) -> Trial | None:
        folder = str(job.folder.relative_to(self.folder))
        scores = self.scores(job.name, job.seed)
        own = [score for score in scores if score.protocol.memory_length == self.headline_length(job.name)]
        if not own or not self._is_trained(job):
            if not self._failure_file(job).exists():
                return None
            failure = read_json(self._failure_file(job), "the reason of a failure")
            return Trial(job.seed, folder, failed=failure["reason"])
        step = step_tokens(job.recipe)
        # The log counts the tokens that were scored; what a budget buys are those that were read.
        log = [{**record, "tokens": step * record["step"]} for record in read_log(job.folder / "log.jsonl")]
        unit = unit_of(self.corpus.unit, self.corpus.split("train").counts)
        end = next(record for record in reversed(log) if record["kind"] == "end")
        judged = [record for record in log if record["kind"] == "validation"]
        stretches = own[0].measurements["loss_by_stretch"]
        return Trial(
            seed=job.seed,
            folder=folder,
            steps=end["step"],
            tokens=end["tokens"],
            seconds=end["seconds"],
            training=measurements.training_curve(log, unit) if unit.name == own[0].measure else (),
            validation=measurements.validation_curve(log, unit),
            validation_value=judged[-1].get("value") if judged else None,
            by_memory=measurements.by_memory(scores),
            value=own[0].value,
            bits=own[0].bits_per_token,
            stretch_nats=tuple(stretches["nats"]),
            stretch_tokens=tuple(stretches["tokens"]),
            evaluation_speed=(own[0].protocol.text_tokens or 0) / own[0].seconds,
        )

    # What is there

    @property
    def _plan_file(self) -> Path:
        return self.folder / "plan.json"

    def _score_file(self, job: Job, length: int) -> Path:
        return job.folder / "scores" / f"test-memory{length}.json"

    def _failure_file(self, job: Job) -> Path:
        return self.folder / "failures" / f"{job.label}.json"

    def _is_trained(self, job: Job) -> bool:
        folder = RunFolder(job.folder)
        if not (folder.holds_run and folder.shelf.newest and folder.log.exists()):
            return False
        ends = [record for record in read_log(folder.log) if record.get("kind") == "end"]
        return any(record["step"] == job.recipe.training.steps for record in ends)

    def _is_done(self, job: Job) -> bool:
        scored = all(self._score_file(job, length).exists() for length in self.lengths[job.name])
        return scored and self._is_trained(job)

    def _note_failure(self, job: Job, error: Exception) -> None:
        reason = _reason(error)
        self._failure_file(job).parent.mkdir(exist_ok=True)
        trace = "".join(traceback.format_exception(error))
        write_json(self._failure_file(job), {"reason": reason, "when": time.strftime("%Y-%m-%d %H:%M"), "trace": trace})
        self.say(f"{job.label} failed, and the others go on: {reason}")

    def _cut_off(self, job: Job) -> int:
        """How often the process died in the middle of this run, without a word."""
        return self._noted_cut_off().get(job.label, 0)

    def _note_cut_off(self, job: Job, count: int) -> None:
        write_json(self.folder / ".begun.json", {**self._noted_cut_off(), job.label: count})

    def _noted_cut_off(self) -> dict[str, int]:
        path = self.folder / ".begun.json"
        noted = read_json(path, "the list of runs that were begun") if path.exists() else {}
        if not isinstance(noted, dict) or not all(type(count) is int for count in noted.values()):
            raise InputError(f"{path} is damaged; remove it and compare again.")
        return noted

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Held while the comparison runs; it goes with the process, however that ends."""
        with locked(self.folder, "is being worked on"):
            yield

    # What is told

    def _tell(self, job: Job, number: int, of: int, pending: Sequence[Job]) -> None:
        left = self._left(pending)
        told = f", {duration(left)} left for all" if left else ""
        self.console.rule(f"Run {number} of {of}: {job.name}, seed {job.seed}{told}", align="left", style="dim")

    def _left(self, pending: Sequence[Job]) -> float | None:
        """Seconds that the pending runs should take, by those that are done: of the same recipe, or by FLOPs."""
        spent: dict[str, list[float]] = {}
        for job in self.jobs:
            if self._is_done(job):
                trial = self._trial(job)
                if trial is not None and not trial.failed:
                    spent.setdefault(job.name, []).append(trial.seconds + sum(each.seconds for each in trial.by_memory))
        if not spent:
            return None
        flops = {
            name: (price.step_flops if price else 0.0) * self.plan.steps[name]
            for name, price in self.plan.prices.items()
        }
        known = sum(flops[name] for name in spent)
        rate = sum(sum(times) / len(times) for times in spent.values()) / known if known else 0.0
        return sum(
            sum(spent[job.name]) / len(spent[job.name]) if job.name in spent else rate * flops[job.name]
            for job in pending
        )


def _score(file: Path) -> Score:
    kept = read_json(file, "a score of the comparison")
    return Score.from_json(kept.get("score") if isinstance(kept, dict) else kept)


def _reason(error: Exception) -> str:
    """An error in a sentence: our own are one already."""
    if isinstance(error, InputError):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _cause(error: Exception) -> str:
    """What went wrong in a run that is thrown away, as a part of a sentence: no remedy, and no file of that run."""
    cause = _reason(error).partition(";")[0].rstrip(".")
    return cause[:1].lower() + cause[1:] if cause.startswith(("The ", "There ", "A ", "No ")) else cause


@contextlib.contextmanager
def named(name: str, among: int) -> Iterator[None]:
    """Say in an InputError which recipe is meant, where there are several."""
    try:
        yield
    except InputError as error:
        if among == 1 or name in str(error):
            raise
        raise InputError(f"{name}: {error}") from None


def _clear_up() -> None:
    """Let go of what a model held, before the next one is built."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
