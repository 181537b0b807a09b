"""LaMemo's α, by layer and by age of the slot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch

from remanence.data import Split
from remanence.evaluation import InterpolationByAge, Protocol, evaluate
from remanence.evaluation.measurements import Seen


@dataclass
class Slots:
    """The part of a memory that matters here."""

    valid: torch.Tensor


@dataclass
class Told:
    """The part of the extras that matters here."""

    interpolation: Any


def seen(alpha: torch.Tensor, valid: torch.Tensor, starts: list[bool], scored: list[bool]) -> Seen:
    lanes = len(starts)
    return Seen(
        nats=torch.zeros(lanes, 2, dtype=torch.float64),
        scored=torch.tensor(scored)[:, None].expand(lanes, 2),
        positions=torch.zeros(lanes, 2, dtype=torch.int64),
        starts=torch.tensor(starts),
        memory=cast(Any, Slots(valid)),
        extras=Told((alpha, alpha + 100)),
    )


def test_only_written_slots_of_lanes_that_read_count() -> None:
    alpha = torch.arange(24.0).reshape(4, 3, 2)
    valid = torch.tensor([[True] * 3, [False, True, True], [True] * 3, [True] * 3])
    measurement = InterpolationByAge()
    measurement.add(seen(alpha, valid, starts=[False, False, True, False], scored=[True, True, True, False]))
    newest, middle, oldest = (4.5 + 10.5) / 2, (2.5 + 8.5) / 2, 0.5
    assert measurement.result() == [[newest, middle, oldest], [100 + newest, 100 + middle, 100 + oldest]]


def test_lamemo_has_a_row_for_each_layer_but_the_last(make_model: Callable, text: Split) -> None:
    score = evaluate(make_model("lamemo"), text, Protocol(lanes=2), measurements=[InterpolationByAge()])
    found = score.measurements["interpolation"]
    assert [len(row) for row in found] == [5, 5]
    assert all(0 < value < 1 for row in found for value in row)


@pytest.mark.parametrize("architecture", ["transformer", "transformer-xl"])
def test_models_that_do_not_merge_have_none(make_model: Callable, text: Split, architecture: str) -> None:
    score = evaluate(make_model(architecture), text, measurements=[InterpolationByAge()])
    assert score.measurements["interpolation"] == []


def test_an_empty_memory_has_none(make_model: Callable, text: Split) -> None:
    score = evaluate(make_model("lamemo"), text, Protocol(memory_length=0), measurements=[InterpolationByAge()])
    assert score.measurements["interpolation"] == []
