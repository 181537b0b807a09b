"""How much training fits into a given time, so that several models get equally much of it.

What a step costs is measured on this machine, now, for each model; the number of steps is then the same for all. The
plan keeps a reserve, because a machine that others use slows down without warning.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from remanence.errors import InputError

TRAINING_SHARE = 0.68
"""Of the time that is left after measuring, for training and the validations in it."""
EVALUATION_END = 0.94
"""Evaluation may last until this share of all time is used; the rest is for the sample, the plots and surprises."""
WASTE = 1.3
"""Scoring documents costs so many times what scoring one stream does: lanes wait for each other at the end."""
BLOCKS = 6
"""Steps come in so many equal blocks, with a validation after each."""
LINES = 10
"""Lines of the log in each block."""


@dataclass(frozen=True)
class Cost:
    """What one model costs on this machine, in seconds."""

    step: float
    """One training step."""
    reading: Mapping[int, float]
    """Evaluating one token, by memory length."""

    @property
    def sweep(self) -> float:
        """Evaluating one token once with every memory length."""
        return sum(self.reading.values())


@dataclass(frozen=True)
class Plan:
    """Equal steps for all models."""

    steps: int
    seconds: float
    """What training and validation of all models should take."""

    @property
    def log_every(self) -> int:
        return self.steps // (BLOCKS * LINES)

    @property
    def validate_every(self) -> int:
        return self.steps // BLOCKS


def plan_steps(costs: Mapping[str, Cost], seconds: float, validation_tokens: int, trained_memory: int) -> Plan:
    """As many steps for every model as `seconds` allow, in whole blocks and lines of the log, at least one step a line.

    validation_tokens   read by each model after each block
    """
    step = sum(cost.step for cost in costs.values())
    token = sum(cost.reading.get(trained_memory, max(cost.reading.values())) for cost in costs.values())
    validation = BLOCKS * WASTE * validation_tokens * token
    lines = max(1, int((seconds * TRAINING_SHARE - validation) / step) // (BLOCKS * LINES))
    steps = lines * BLOCKS * LINES
    return Plan(steps=steps, seconds=steps * step + validation)


def plan_tokens(costs: Mapping[str, Cost], seconds: float, least: int, most: int) -> int:
    """How many tokens all models can be scored on with every memory length in `seconds`, between `least` and `most`."""
    return max(least, min(most, int(seconds / WASTE / sum(cost.sweep for cost in costs.values()))))


def typical_step(seconds: list[float], warm_up: int = 3) -> float:
    """The cost of a step from the times of a few, the first ones of which set things up."""
    if len(seconds) <= warm_up:
        raise InputError(f"{len(seconds)} steps are too few to tell what one costs; measure more than {warm_up}.")
    return statistics.median(seconds[warm_up:])
