"""One budget for several recipes, and how many steps of each it buys.

    tokens    amount / tokens of a step
    time      amount / seconds of a step, measured here and now
    flops     amount / FLOPs of a step, counted

A learning rate follows a schedule that ends with the last step, so the number of steps is fixed before training begins,
whatever the budget: no run is cut short by a clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from remanence.analysis.wording import duration
from remanence.config import Recipe
from remanence.errors import InputError

Kind = Literal["tokens", "time", "flops"]

LINES = 60
"""Lines in the log of a run, at least where it has so many steps: points of a learning curve."""


@dataclass(frozen=True)
class Budget:
    """How much training every run gets: tokens, seconds or FLOPs."""

    kind: Kind
    amount: float

    def steps(self, step: float) -> int:
        """How many steps it buys, to the nearest one, when each costs `step`. Raises InputError for less than half."""
        steps = round(self.amount / step)
        if not steps:
            raise InputError(
                f"A budget of {self.words()} is less than one training step, which takes {_words(self.kind, step)}; "
                "raise --amount."
            )
        return steps

    def words(self) -> str:
        return _words(self.kind, self.amount)


def planned(recipe: Recipe, steps: int, seed: int, validations: int) -> Recipe:
    """The recipe of one run: so many steps with a schedule of the same shape, validated so many times."""
    training = recipe.training
    settings = dataclasses.replace(
        training,
        seed=seed,
        steps=steps,
        warmup_steps=round(training.warmup_steps * steps / training.steps),
        log_every=max(1, min(training.log_every, steps // LINES)),
        validate_every=-(-steps // validations) if validations else 0,
        validation_tokens=training.validation_tokens if validations else 0,
    )
    return dataclasses.replace(recipe, training=settings)


def default_amount(kind: Kind, recipe: Recipe, costs: Mapping[str, float]) -> float:
    """What the first recipe's own steps take; `costs` has the cost of its step by kind of budget."""
    return recipe.training.steps * costs[kind]


def _words(kind: Kind, amount: float) -> str:
    if kind == "tokens":
        return f"{amount:,.0f} tokens"
    return duration(amount) if kind == "time" else f"{amount:.3g} FLOPs"
