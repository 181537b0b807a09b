"""Runs that one, two or four ranks train, for tests and for benchmarks/ranks.py; a program that torchrun starts.

    torchrun --nproc-per-node 2 tests/training/ranked.py CORPUS OUT CASE [CASE ...]

trains each case in a folder of its own below OUT. A case is written VARIANT:ENGINE:ACCUMULATION:DISTRIBUTION, after the
names of tests/models/variants.py.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from rich.console import Console
from tests.models.variants import VARIANTS
from torch import Tensor

from remanence.config import DataSettings, EvaluationSettings, Recipe, TrainingSettings
from remanence.data import Corpus
from remanence.evaluation.validation import validation, validation_split
from remanence.training import Trainer, load_run
from remanence.training.log import read_log
from remanence.training.ranks import Ranks, joined

ROOT = Path(__file__).parents[2]
LANES, STEPS, HORIZON = 4, 5, 3


class Case(NamedTuple):
    """What is trained, and how."""

    variant: str
    engine: str = "truncated"
    accumulation: int = 1
    distribution: str = "ddp"

    @property
    def name(self) -> str:
        return ":".join(map(str, self))

    @classmethod
    def named(cls, name: str) -> Self:
        variant, engine, accumulation, distribution = name.split(":")
        return cls(variant, engine, int(accumulation), distribution)

    @property
    def alone(self) -> Case:
        """The same on one process, where nothing is distributed."""
        return self._replace(distribution="ddp")


class Outcome(NamedTuple):
    """What a run gave."""

    weights: dict[str, Tensor]
    losses: dict[tuple[str, int], float]
    """Of the steps ("train") and of the validations, in nats per token."""

    def distance(self, other: Outcome) -> tuple[float, float]:
        """Largest difference between two runs: of a weight, against the norm of its tensor; of a loss, relative.

        A run in several parts has validations at their ends that the other has not.
        """
        weights = max(
            float((each - other.weights[name]).norm() / each.norm().clamp(min=1e-12))
            for name, each in self.weights.items()
        )
        return weights, max(abs(other.losses[at] / loss - 1) for at, loss in self.losses.items())


def recipe_of(case: Case, corpus: Corpus) -> Recipe:
    """With dropout everywhere, clipping that cuts, decay, and validations by the run's own ranks.

    Adam divides a gradient by its own size plus epsilon; a large one keeps it from making the rounding of a gradient
    that should be 0 into a step as large as any other.
    """
    config = VARIANTS[case.variant].config
    differentiated = {"memory_gradient": True} if case.engine != "truncated" else {}
    return Recipe(
        "ranked",
        data=DataSettings(str(corpus.folder), "document"),
        model=dataclasses.replace(
            config, vocab_size=256, dropout=0.1, attention_dropout=0.1, cutoffs=config.cutoffs, **differentiated
        ),
        training=TrainingSettings(
            steps=STEPS, lanes=LANES, horizon=HORIZON, engine=case.engine, accumulation=case.accumulation,
            distribution=case.distribution, optimizer="adamw", weight_decay=0.01, epsilon=1e-3, learning_rate=1e-2,
            schedule="constant", clip_norm=0.1, precision="float32", log_every=1, save_every=2, validate_every=3,
            validation_tokens=600, seed=5,
        ),
        evaluation=EvaluationSettings(),
    )  # fmt: skip


def train(case: Case, corpus: Corpus, folder: Path, ranks: Ranks, resume: bool = False, steps: int = STEPS) -> None:
    recipe = recipe_of(case, corpus)
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, steps=steps))
    split = validation_split(corpus, recipe)

    def validate(model: Any) -> dict[str, Any]:
        return validation(model, split, recipe, corpus, "float32", ranks)

    console = Console(quiet=True)
    Trainer(recipe, corpus, folder, validate=validate, console=console, resume=resume, ranks=ranks).run()


def outcome(folder: Path) -> Outcome:
    records = read_log(folder / "log.jsonl")
    told = {"train": "loss", "validation": "nats_per_token"}
    losses = {(each["kind"], each["step"]): each[told[each["kind"]]] for each in records if each["kind"] in told}
    weights = {name: each.detach() for name, each in load_run(folder, "last").model.named_parameters()}
    return Outcome(weights, losses)


def launch(ranks: int, corpus: Path, out: Path, cases: Sequence[Case], *more: str, seconds: float = 600) -> None:
    """Train all cases by so many processes."""
    arguments = [str(corpus), str(out), *more, *(case.name for case in cases)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, __file__, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)


def main(arguments: Sequence[str]) -> None:
    resume = "--resume" in arguments
    steps = next((int(each.removeprefix("--steps=")) for each in arguments if each.startswith("--steps=")), STEPS)
    corpus, out, *names = (each for each in arguments if not each.startswith("--"))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with joined() as ranks:
        for name in names:
            train(Case.named(name), Corpus.open(corpus), Path(out) / name, ranks, resume, steps)


if __name__ == "__main__":
    main(sys.argv[1:])
