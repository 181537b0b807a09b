"""What a model costs, counted rather than timed: parameters, bytes of memory, floating-point operations.

An operation is a multiplication or an addition inside a matrix product, convolution or attention kernel; all else
(norms, softmax, sums, the optimizer) is left out, as is usual. What is counted is what really runs: real steps of real
training, forward and backward, whatever is computed a second time included (the logits of the loss, segments that an
engine recomputes or replays), and nothing that a formula assumes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from remanence.analysis.compare import stop_if_interrupted
from remanence.config import Recipe
from remanence.data import Corpus
from remanence.models import LanguageModel
from remanence.training import Trainer
from remanence.training.weights import count_parameters

OVERFLOWING = 2
"""Segments read beyond those that fill the slots, before counting: one leaves them, and the next one writes it into
whatever lies behind them. Only then does a memory do all of its work."""
MOST_COUNTED = 8
"""Training steps that are counted, at most."""
SEGMENTS_READ = 4
"""Segments of every lane over which evaluation is counted, after the memory is full."""


@dataclass(frozen=True)
class Size:
    """How large a model and its memory are."""

    parameters: int
    memory_kind: str
    memory_bytes: int
    """A lane, with the memory length of training."""


@dataclass(frozen=True)
class Price:
    """What computing costs with one recipe, wherever it runs."""

    step_flops: float
    """Of one training step."""
    reading_flops: float
    """Of one token in evaluation, with the memory of training."""


def size_of(model: LanguageModel) -> Size:
    memory = model.init_memory(lanes=1)
    return Size(count_parameters(model), memory.kind, memory.nbytes)


def step_tokens(recipe: Recipe) -> int:
    """Tokens that one training step reads; where lanes read documents, padding is among them."""
    return recipe.training.lanes * recipe.model.segment_length * recipe.training.horizon


def measure_price(recipe: Recipe, corpus: Corpus, folder: Path) -> Price:
    """Count what the recipe costs, by a few steps of training and a little evaluation that are thrown away.

    folder      where the run may lie meanwhile

    Raises Stopped, and whatever training raises.
    """
    filling = _steps_to_fill(recipe)
    counted = min(filling, MOST_COUNTED)
    settings = dataclasses.replace(
        recipe.training,
        steps=filling + counted,
        warmup_steps=0,
        log_every=1,
        validate_every=filling,
        save_every=0,
        compile=False,
        tensorboard=False,
    )
    counter = FlopCounterMode(display=False)
    totals: list[int] = []
    with tempfile.TemporaryDirectory(prefix=".counting-", dir=folder) as scratch:
        trainer = Trainer(
            dataclasses.replace(recipe, training=settings),
            corpus,
            Path(scratch) / "run",
            # Called when the memory is full and after all steps.
            validate=lambda model: _noted(totals, counter),
            console=Console(quiet=True),
        )
        with counter:
            stop_if_interrupted(trainer.run())
    return Price(
        step_flops=(totals[1] - totals[0]) / counted,
        reading_flops=_reading_flops(trainer.model, recipe, corpus),
    )


def _noted(totals: list[int], counter: FlopCounterMode) -> dict[str, Any]:
    totals.append(counter.get_total_flops())
    return {"nats_per_token": 0.0}


def _steps_to_fill(recipe: Recipe) -> int:
    segments = _segments_to_fill(recipe.model.memory_length, recipe.model.segment_length)
    return max(2, -(-segments // recipe.training.horizon))


def _segments_to_fill(memory_length: int, segment_length: int) -> int:
    return -(-memory_length // segment_length) + OVERFLOWING


def _reading_flops(model: LanguageModel, recipe: Recipe, corpus: Corpus) -> float:
    """Of one token, when segments of the length of evaluation are read and scored one after the other."""
    lanes, length = recipe.training.lanes, recipe.evaluation.segment_length or recipe.model.segment_length
    ids = np.resize(np.asarray(corpus.split("train").tokens[: lanes * length], np.int64), (lanes, length))
    tokens = torch.from_numpy(ids).to(next(model.parameters()).device)
    memory = model.init_memory(lanes=lanes)
    counter = FlopCounterMode(display=False)
    model.eval()
    with torch.no_grad():
        for _ in range(_segments_to_fill(recipe.model.memory_length, length)):
            memory = model(tokens, memory).memory
        with counter:
            for _ in range(SEGMENTS_READ):
                hidden, memory, _ = model(tokens, memory)
                model.head.loss(hidden, tokens)
    return counter.get_total_flops() / (SEGMENTS_READ * lanes * length)
