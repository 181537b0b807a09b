"""Every token once, under the protocol that was asked for, and no trace of it in the model."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from remanence.data import Split
from remanence.errors import InputError, SettingWarning
from remanence.evaluation import LossByPosition, LossBySegmentPosition, LossByStretch, Protocol, evaluate, sweep
from remanence.evaluation.measurements import Measurement, Seen
from remanence.memory import Distances
from remanence.models import LanguageModel

EXACT = {"rel": 1e-12}


def read_alone(model: LanguageModel, tokens: np.ndarray, memory_length: int, segment_length: int) -> list[float]:
    """Nats of every token but the first, one lane, one segment after the other."""
    memory, nats = model.init_memory(lanes=1, length=memory_length), []
    stream = torch.as_tensor(tokens.astype(np.int64))
    with torch.no_grad():
        for begin in range(0, len(stream) - 1, segment_length):
            end = min(begin + segment_length, len(stream) - 1)
            hidden, memory, _ = model(stream[None, begin:end], memory)
            nats += model.head.loss(hidden, stream[None, begin + 1 : end + 1])[0].tolist()
    return nats


@pytest.mark.filterwarnings("ignore:Segments of:remanence.errors.SettingWarning")
@pytest.mark.parametrize("memory_length", [0, 1, 5, 11])
@pytest.mark.parametrize("segment_length", [3, 6, 9])
def test_one_lane_reads_the_stream_from_end_to_end(
    model: LanguageModel, text: Split, memory_length: int, segment_length: int
) -> None:
    longest = {"transformer": 0, "memformer": 5, "rmt": 5}.get(model.config.architecture, memory_length)
    if memory_length > longest or (model.config.architecture == "memformer" and segment_length > 6):
        pytest.skip("its weights set the longest memory, or the longest segment")
    protocol = Protocol(segment_length=segment_length, memory_length=memory_length, lanes=1)
    score = evaluate(model, text, protocol)
    assert score.tokens == len(text) - 1
    assert score.nats == pytest.approx(sum(read_alone(model, text.tokens, memory_length, segment_length)), **EXACT)


def test_lanes_are_equal_parts_of_the_stream_that_begin_without_memory(model: LanguageModel, text: Split) -> None:
    score = evaluate(model, text, Protocol(lanes=4))
    parts = [text.tokens[25 * lane : 25 * lane + 26] for lane in range(4)]
    length = model.config.memory_length
    assert score.tokens == len(text) - 1
    assert score.nats == pytest.approx(sum(sum(read_alone(model, part, length, 6)) for part in parts), **EXACT)


def test_the_document_protocol_forgets_where_documents_begin(model: LanguageModel, text: Split) -> None:
    documents = np.split(text.tokens, text.documents[1:])
    length = model.config.memory_length
    expected = sum(sum(read_alone(model, document, length, 6)) for document in documents)
    for lanes in (1, 3, 9):
        score = evaluate(model, text, Protocol(starts="document", lanes=lanes))
        assert score.tokens == len(text) - len(documents)
        assert score.nats == pytest.approx(expected, **EXACT)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(make_model: Callable, text: Split) -> None:
    model = make_model("lamemo")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for table in (*model.embedding.parameters(), model.head.bias):
            table.zero_()
    score = evaluate(model, text)
    model.load_state_dict(weights)
    assert score.perplexity == pytest.approx(13, **EXACT)
    assert score.word_perplexity == pytest.approx(13 ** (101 / 50), **EXACT)


def test_a_sweep_is_one_score_for_each_memory_length(make_model: Callable, text: Split) -> None:
    model = make_model("transformer-xl")
    scores = sweep(model, text, [0, 3, 20], Protocol(lanes=2))
    assert [score.protocol.memory_length for score in scores] == [0, 3, 20]
    assert len({score.nats for score in scores}) == 3
    assert scores[1].nats == evaluate(model, text, Protocol(lanes=2, memory_length=3)).nats


def test_a_length_that_is_refused_on_reading_is_refused_before_anything_is_scored(
    make_model: Callable, text: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("transformer-xl")

    def check(memory: Any) -> None:
        if memory.length > 3:
            raise InputError("too long")

    monkeypatch.setattr(model, "_check_memory", check)
    scored: list[Any] = []
    with pytest.raises(InputError, match="too long"):
        sweep(model, text, [0, 3, 20], Protocol(lanes=2), finished=scored.append)
    assert not scored


def test_without_memory_an_extra_lane_costs_only_where_segments_are_cut(make_model: Callable, text: Split) -> None:
    model = make_model("transformer-xl")
    alone = evaluate(model, text, Protocol(memory_length=0, segment_length=5, lanes=1))
    four = evaluate(model, text, Protocol(memory_length=0, segment_length=5, lanes=4))
    assert alone.nats == pytest.approx(four.nats, **EXACT)


@pytest.mark.parametrize(("segment_length", "told"), [(3, True), (6, False), (9, True), (12, False)])
def test_segments_that_change_how_fast_a_memory_forgets_are_told(
    make_model: Callable, segment_length: int, told: bool
) -> None:
    asked = Protocol(segment_length=segment_length)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SettingWarning)
        asked.completed(make_model("infinite-former"))
        asked.completed(make_model("transformer-xl"))
    assert [f"Segments of {segment_length} contract" in str(each.message) for each in caught] == [True] * told


# Distances


def test_distances_beyond_training_are_held_by_default(make_model: Callable, text: Split) -> None:
    model = make_model("lamemo")
    trained = model.distances()
    score = evaluate(model, text, Protocol(memory_length=20, lanes=2), trained=trained)
    free = evaluate(model, text, Protocol(memory_length=20, lanes=2, hold_distances=False), trained=trained)
    assert (score.protocol.held, score.protocol.reached) == ((10, 5), (25, 20))
    assert (free.protocol.held, free.protocol.trained) == (None, (10, 5))
    assert score.nats != free.nats


def test_distances_within_training_are_not_held(make_model: Callable, text: Split) -> None:
    model = make_model("lamemo")
    score = evaluate(model, text, Protocol(memory_length=4), trained=model.distances())
    assert score.protocol.held is None
    assert "all seen in training" in " ".join(score.protocol.words())


def test_an_explicit_clamp_takes_the_place_of_holding(make_model: Callable, text: Split) -> None:
    model = make_model("lamemo")
    clamped = evaluate(model, text, Protocol(memory_length=20, clamp_length=7), trained=model.distances())
    by_config = dataclasses.replace(model.config, clamp_length=7)
    assert (clamped.protocol.held, clamped.protocol.clamp_length) == (None, 7)
    before, model.config = model.config, by_config
    expected = evaluate(model, text, Protocol(memory_length=20))
    model.config = before
    assert clamped.nats == expected.nats


def test_holding_at_distances_that_are_never_reached_changes_nothing(make_model: Callable, text: Split) -> None:
    model = make_model("lamemo")
    held = evaluate(model, text, Protocol(lanes=3), trained=Distances(back=99, ahead=99))
    assert held.nats == evaluate(model, text, Protocol(lanes=3)).nats


def test_same_length_is_a_setting_of_the_test(make_model: Callable, text: Split) -> None:
    model = make_model("transformer-xl")
    same = evaluate(model, text, Protocol(same_length=True))
    assert same.protocol.same_length
    assert same.nats != evaluate(model, text).nats


def test_same_length_without_memory_is_refused(make_model: Callable, text: Split) -> None:
    with pytest.raises(InputError, match="same length"):
        evaluate(make_model("transformer-xl"), text, Protocol(same_length=True, memory_length=0))


# What is left behind


def test_the_model_is_left_as_it_was_found(make_model: Callable, text: Split) -> None:
    model = make_model("lamemo")
    config = model.config
    model.train()
    evaluate(model, text, Protocol(clamp_length=3, same_length=True))
    assert model.training
    assert model.config is config
    model.eval()


def test_the_model_is_left_as_it_was_found_when_scoring_fails(make_model: Callable, text: Split) -> None:
    model = make_model("lamemo")
    config, weight = model.config, model.head.bias
    model.train()
    with torch.no_grad():
        weight[3] = math.nan
        with pytest.raises(InputError, match="not a number"):
            evaluate(model, text, Protocol(clamp_length=3))
        weight[3] = 0.0
    assert model.training
    assert model.config is config
    model.eval()


def test_scoring_moves_no_generator(make_model: Callable, text: Split) -> None:
    before = torch.get_rng_state()
    evaluate(make_model("lamemo"), text)
    assert torch.equal(before, torch.get_rng_state())


# Measurements


class Every(Measurement):
    """All nats, by what was said about them."""

    name = "every"

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def add(self, seen: Seen) -> None:
        self.seen.append(seen)

    def join(self, parts: Sequence[Every]) -> None:
        self.seen = [each for part in parts for each in part.seen]

    def result(self) -> None:
        return None


def test_positions_count_from_the_beginning_of_the_document(make_model: Callable, text: Split) -> None:
    every = Every()
    evaluate(make_model("lamemo"), text, Protocol(starts="document", lanes=3), measurements=[every])
    positions = torch.cat([seen.positions[seen.scored] for seen in every.seen])
    expected = [position for size in (17, 1, 30, 2, 7, 40, 4) for position in range(size - 1)]
    assert sorted(positions.tolist()) == sorted(expected)


def test_loss_by_position_divides_the_total_into_bins(make_model: Callable, text: Split) -> None:
    measurements = [LossByPosition([2, 10]), LossBySegmentPosition(), LossByStretch(2)]
    score = evaluate(make_model("lamemo"), text, Protocol(lanes=1), measurements=measurements)
    nats = read_alone(make_model("lamemo"), text.tokens, 5, 6)
    found = score.measurements["loss_by_position"]
    bins = [(0, 2), (2, 10), (10, None)]
    assert [(entry["begin"], entry["end"]) for entry in found] == bins
    for entry, (begin, end) in zip(found, bins, strict=True):
        assert entry["nats"] == pytest.approx(np.mean(nats[begin:end]), **EXACT)
        assert entry["tokens"] == len(nats[begin:end])
    by_segment = score.measurements["loss_by_segment_position"]
    assert by_segment["nats"] == pytest.approx([np.mean(nats[place::6]) for place in range(6)], **EXACT)
    stretches = score.measurements["loss_by_stretch"]
    assert stretches["nats"] == pytest.approx([sum(nats[begin : begin + 12]) for begin in range(0, 100, 12)], **EXACT)
    assert sum(stretches["tokens"]) == 100


def test_stretches_of_two_models_hold_the_same_tokens(make_model: Callable, text: Split) -> None:
    protocol = Protocol(starts="document", lanes=3, memory_length=0)
    scores = [
        evaluate(make_model(name), text, protocol, measurements=[LossByStretch(3)])
        for name in ("lamemo", "transformer")
    ]
    first, second = (score.measurements["loss_by_stretch"]["tokens"] for score in scores)
    assert first == second
    assert sum(first) == scores[0].tokens


# Bad input


def test_a_text_of_another_vocabulary_is_refused(make_model: Callable, text: Split) -> None:
    with pytest.raises(InputError, match="vocabulary of 99"):
        evaluate(make_model("lamemo"), dataclasses.replace(text, vocab_size=99))


def test_a_text_of_one_token_is_refused(make_model: Callable, text: Split) -> None:
    with pytest.raises(InputError):
        evaluate(make_model("lamemo"), dataclasses.replace(text, tokens=text.tokens[:1], documents=np.zeros(1, int)))


@pytest.mark.parametrize(
    "settings",
    [
        {"segment_length": 0},
        {"memory_length": -1},
        {"lanes": 0},
        {"clamp_length": 0},
        {"starts": "never"},
        {"precision": "float8"},
    ],
)
def test_protocols_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Protocol(**settings)


# Precision


def test_bfloat16_is_said_in_the_protocol_and_close(make_model: Callable, text: Split) -> None:
    model = make_model("transformer-xl").float()
    exact = evaluate(model, text, Protocol(lanes=2))
    rounded = evaluate(model, text, Protocol(lanes=2, precision="bfloat16"))
    model.double()
    assert "bfloat16 (autocast)" in " ".join(rounded.protocol.words())
    assert exact.nats != rounded.nats
    assert exact.nats_per_token == pytest.approx(rounded.nats_per_token, abs=0.2)
