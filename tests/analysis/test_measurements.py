"""Logs and scores become curves, points and differences."""

import dataclasses
import math
import random
import statistics

import pytest

from remanence.analysis import CurvePoint, MemoryScore, PositionScore, measurements
from remanence.errors import InputError
from remanence.evaluation import Protocol, Score


def make_score(value: float = 2.0, tokens: int = 100, memory_length: int = 64, **found) -> Score:
    protocol = Protocol(memory_length=memory_length, unit="byte")
    return Score(value * tokens * math.log(2), tokens, 1.5, protocol, {"tokens": tokens}, found)


def test_curves_are_in_bits_and_validations_stand_where_training_stood():
    log = [
        {"kind": "start", "step": 0},
        {"kind": "validation", "step": 0, "nats_per_token": 5.0},
        {"kind": "train", "step": 2, "tokens": 10, "seconds": 1.0, "loss": math.log(2) * 3},
        {"kind": "validation", "step": 2, "nats_per_token": math.log(2) * 2, "tokens": 500, "seconds": 9.0},
        {"kind": "end", "step": 2},
    ]
    assert measurements.training_curve(log) == (CurvePoint(10, 1.0, pytest.approx(3.0)),)
    assert measurements.validation_curve(log) == (CurvePoint(10, 1.0, pytest.approx(2.0)),)


def test_scores_by_memory_ascend_and_say_where_distances_were_held():
    long = make_score(memory_length=128)
    long = dataclasses.replace(long, protocol=dataclasses.replace(long.protocol, held=(127, 64)))
    assert measurements.by_memory([long, make_score(memory_length=0)]) == (
        MemoryScore(0, pytest.approx(2.0), 100, 1.5),
        MemoryScore(128, pytest.approx(2.0), 100, 1.5, held=True),
    )


def test_thin_and_open_bins_of_document_positions_are_left_out():
    score = make_score(
        loss_by_position=[
            {"begin": 0, "end": 1, "nats": 1.0, "tokens": 3},
            {"begin": 1, "end": 2, "nats": math.log(2), "tokens": 300},
            {"begin": 2, "end": None, "nats": 1.0, "tokens": 300},
        ]
    )
    assert measurements.by_document_position(score) == (PositionScore(1, 2, pytest.approx(1.0), 300),)


def test_neighbouring_segment_positions_are_weighted_by_their_tokens():
    score = make_score(loss_by_segment_position={"nats": [1.0, 2.0, 3.0, None, 4.0], "tokens": [1, 3, 1, 0, 2]})
    found = measurements.by_segment_position(score, width=2)
    assert [(entry.begin, entry.end, entry.tokens) for entry in found] == [(0, 2, 4), (2, 4, 1), (4, 5, 2)]
    assert [entry.value * math.log(2) for entry in found] == pytest.approx([1.75, 3.0, 4.0])


def test_the_error_of_a_difference_is_what_repeated_draws_of_text_show():
    noise = random.Random(1)

    def draw() -> tuple[Score, Score]:
        tokens = [noise.randint(50, 150) for _ in range(40)]
        gaps = [0.1 * size + noise.gauss(0, 5) for size in tokens]
        return (
            make_score(
                loss_by_stretch={"nats": [size + gap for size, gap in zip(tokens, gaps, strict=True)], "tokens": tokens}
            ),
            make_score(loss_by_stretch={"nats": [float(size) for size in tokens], "tokens": tokens}),
        )

    found = []
    for _ in range(300):
        first, second = draw()
        found.append(measurements.difference(("a", first), ("b", second)))
    assert statistics.mean(entry.value for entry in found) == pytest.approx(0.1 / math.log(2), rel=0.05)
    spread = statistics.stdev(entry.value for entry in found)
    assert statistics.mean(entry.error for entry in found) == pytest.approx(spread, rel=0.15)


def test_scores_of_different_stretches_are_not_compared():
    first = make_score(loss_by_stretch={"nats": [1.0], "tokens": [2]})
    second = make_score(loss_by_stretch={"nats": [1.0], "tokens": [3]})
    with pytest.raises(InputError, match="same stretches"):
        measurements.difference(("a", first), ("b", second))
