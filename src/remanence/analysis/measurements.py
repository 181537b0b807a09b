"""From what training and evaluation wrote down to what is shown: curves, scores by memory and position, differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from remanence.analysis.comparison import CurvePoint, Difference, MemoryScore, PositionScore
from remanence.errors import InputError
from remanence.evaluation import Score


def by_memory(scores: Sequence[Score]) -> tuple[MemoryScore, ...]:
    """One point for each score, ascending by memory length."""
    found = [
        MemoryScore(
            memory_length=score.protocol.memory_length or 0,
            bits=score.value,
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
    tokens = mine["tokens"]
    total, count = sum(tokens), len(tokens)
    gaps = [a - b for a, b in zip(mine["nats"], theirs["nats"], strict=True)]
    mean = sum(gaps) / total
    spread = sum((gap - mean * size) ** 2 for gap, size in zip(gaps, tokens, strict=True))
    error = math.sqrt(spread * count / (count - 1)) / total if count > 1 else math.inf
    return Difference(first[0], second[0], mean / math.log(2), error / math.log(2), count)


def training_curve(log: Sequence[dict[str, Any]]) -> tuple[CurvePoint, ...]:
    """Training loss by tokens and seconds, from the log of a run whose tokens are bytes or characters."""
    return tuple(
        CurvePoint(record["tokens"], record["seconds"], record["loss"] / math.log(2))
        for record in log
        if record["kind"] == "train"
    )


def validation_curve(log: Sequence[dict[str, Any]]) -> tuple[CurvePoint, ...]:
    """Validation loss by the tokens and seconds of training before it.

    A validation stands where the last line about training stood; one before the first such line is left out.
    """
    points, here = [], None
    for record in log:
        if record["kind"] == "train":
            here = record
        elif record["kind"] == "validation" and here is not None:
            points.append(CurvePoint(here["tokens"], here["seconds"], record["nats_per_token"] / math.log(2)))
    return tuple(points)
