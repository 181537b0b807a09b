"""The learning rate of every step, as a function of the step alone: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from remanence.config import TrainingSettings


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """The learning rate of the update after `step` updates (the first has step 0).

    It rises linearly over `warmup_steps`, and then is where the schedule is at the absolute step, as in the published
    scripts (Transformer-XL, `train.py`): with s = step, w = warmup_steps, n = steps,

        cosine        floor + (1 - floor) (1 + cos(π s / n)) / 2
        linear        floor + (1 - floor) (1 - s / n)
        inverse-sqrt  max(floor, sqrt(w / s)), with w at least 1
        constant      1

    times `learning_rate`. After step n the schedule stays where it ended.
    """
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = min(step / settings.steps, 1.0)
    match settings.schedule:
        case "cosine":
            share = settings.floor + (1 - settings.floor) * (1 + math.cos(math.pi * done)) / 2
        case "linear":
            share = settings.floor + (1 - settings.floor) * (1 - done)
        case "inverse-sqrt":
            share = max(settings.floor, math.sqrt(max(settings.warmup_steps, 1) / max(settings.warmup_steps, step, 1)))
        case "constant":
            share = 1.0
    return settings.learning_rate * share
