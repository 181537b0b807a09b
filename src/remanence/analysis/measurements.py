"""From what training and evaluation wrote down to what is shown: curves, scores by memory and position, differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from remanence.analysis.comparison import CurvePoint, Difference, MemoryScore, PositionScore
from remanence.errors import InputError
from remanence.evaluation import Score
from remanence.training.units import Unit

BITS = Unit("bits per token")
"""Of a text whose tokens are bytes or characters, the unit of its score."""


def by_memory(scores: Sequence[Score]) -> tuple[MemoryScore, ...]:
    """One point for each score, ascending by memory length."""
    found = [
        MemoryScore(
            memory_length=score.protocol.memory_length or 0,
            value=score.value,
            tokens=score.tokens,
            seconds=score.seconds,
            held=score.protocol.held is not None,
        )
        for score in scores
    ]
    return tuple(sorted(found, key=lambda score: score.memory_length))


def by_document_position(score: Score, fewest: int = 200) -> tuple[PositionScore, ...]:
    """Bits by position in the document; bins with fewer than `fewest` tokens say too little and are left out."""
    found = score.measurements["loss_by_position"]
    return tuple(
        PositionScore(entry["begin"], entry["end"], entry["nats"] / math.log(2), entry["tokens"])
        for entry in found
        if entry["end"] is not None and entry["tokens"] >= fewest
    )


def by_segment_position(score: Score, width: int = 4) -> tuple[PositionScore, ...]:
    """Bits by position in the segment, `width` neighbouring positions taken together."""
    found = score.measurements["loss_by_segment_position"]
    bins = []
    for begin in range(0, len(found["nats"]), width):
        end = min(begin + width, len(found["nats"]))
        tokens = sum(found["tokens"][begin:end])
        nats = sum(
            mean * count
            for mean, count in zip(found["nats"][begin:end], found["tokens"][begin:end], strict=True)
            if count
        )
        if tokens:
            bins.append(PositionScore(begin, end, nats / tokens / math.log(2), tokens))
    return tuple(bins)


def difference(first: tuple[str, Score], second: tuple[str, Score]) -> Difference:
    """How much worse the first model is than the second on the same tokens, with its standard error.

    Both scores must hold `LossByStretch` of the same text under the same lanes, segment length and starts. The error
    is that of a ratio of means, d = Σ dᵢ / Σ nᵢ with dᵢ the nats that differ and nᵢ the tokens of stretch i of k:

        error² = k / (k - 1) · Σ (dᵢ - d nᵢ)² / (Σ nᵢ)²
    """
    mine, theirs = (score.measurements["loss_by_stretch"] for _, score in (first, second))
    if mine["tokens"] != theirs["tokens"]:
        raise InputError(
            f"{first[0]} and {second[0]} were not scored on the same stretches of text; score both under the same "
            "protocol."
        )
    gap, error = paired(mine["nats"], theirs["nats"], mine["tokens"])
    return Difference(first[0], second[0], gap, error, len(mine["tokens"]))


def paired(mine: Sequence[float], theirs: Sequence[float], tokens: Sequence[int]) -> tuple[float, float]:
    """The mean difference of two models over the same stretches and its standard error, in bits a token.

    mine, theirs    nats of each stretch
    tokens          of each stretch
    """
    total, count = sum(tokens), len(tokens)
    gaps = [a - b for a, b in zip(mine, theirs, strict=True)]
    mean = sum(gaps) / total
    squares = sum((gap - mean * size) ** 2 for gap, size in zip(gaps, tokens, strict=True))
    error = math.sqrt(squares * count / (count - 1)) / total if count > 1 else math.inf
    return mean / math.log(2), error / math.log(2)


def training_curve(log: Sequence[dict[str, Any]], unit: Unit = BITS) -> tuple[CurvePoint, ...]:
    """Training loss by tokens and seconds, from the log of a run."""
    return tuple(
        CurvePoint(record["tokens"], record["seconds"], unit.value(record["loss"]))
        for record in log
        if record["kind"] == "train"
    )


def validation_curve(log: Sequence[dict[str, Any]], unit: Unit = BITS) -> tuple[CurvePoint, ...]:
    """Validation loss by the tokens and seconds of training before it.

    Where the log has the headline value of a validation, that is taken. A validation stands where the last line about
    training stood; one before the first such line is left out.
    """
    points, here = [], None
    for record in log:
        if record["kind"] == "train":
            here = record
        elif record["kind"] == "validation" and here is not None:
            points.append(
                CurvePoint(here["tokens"], here["seconds"], record.get("value", unit.value(record["nats_per_token"])))
            )
    return tuple(points)
