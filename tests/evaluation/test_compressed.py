"""Scores of a Compressive Transformer: raw slots are swept, compressed ones are a setting of the protocol."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.evaluation.conftest import MEMORY

from remanence.data import Split
from remanence.errors import InputError
from remanence.evaluation import Protocol, evaluate, sweep
from remanence.models import LanguageModel

Make = Callable[..., LanguageModel]


def test_compressed_slots_are_those_of_the_model_unless_given(make_model: Make, text: Split) -> None:
    model = make_model("compressive")
    config = model.config
    plain = evaluate(model, text, Protocol(lanes=2))
    assert plain.protocol.compressed_length == MEMORY
    assert f"Memory of {MEMORY} and {MEMORY} compressed" in plain.protocol.words()[2]
    same = evaluate(model, text, Protocol(lanes=2, compressed_length=MEMORY))
    more = evaluate(model, text, Protocol(lanes=2, compressed_length=2 * MEMORY))
    assert same.nats == plain.nats != more.nats
    assert more.protocol.reached[0] == plain.protocol.reached[0] + MEMORY  # type: ignore[index,operator]
    assert model.config is config
    assert Protocol.from_json(more.protocol.to_json()) == more.protocol


def test_a_sweep_changes_the_raw_slots_alone(make_model: Make, text: Split) -> None:
    scores = sweep(make_model("compressive"), text, [0, 3, 9], Protocol(lanes=2))
    assert [score.protocol.compressed_length for score in scores] == [MEMORY] * 3
    assert len({score.nats for score in scores}) == 3


def test_a_compressed_length_for_a_model_without_one_is_refused(make_model: Make, text: Split) -> None:
    with pytest.raises(InputError, match="compresses nothing"):
        evaluate(make_model("transformer-xl"), text, Protocol(compressed_length=3))
    assert evaluate(make_model("transformer-xl"), text, Protocol(lanes=2)).protocol.compressed_length is None
    with pytest.raises(InputError, match="compressed length"):
        Protocol(compressed_length=-1)
