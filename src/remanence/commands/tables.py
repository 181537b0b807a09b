"""Scores and what was measured beside them, as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from remanence.evaluation import Score

BESIDE = {
    "byte": ("bits_per_character",),
    "character": ("bits_per_byte",),
    "word": ("nats_per_token", "bits_per_byte"),
    "token": ("perplexity", "bits_per_byte"),
}
"""By unit, what is told beside the number that people quote."""


def scores(found: Sequence[Score]) -> Table:
    """A line for each score."""
    unit = found[0].protocol.unit
    beside = [name for name in BESIDE[unit] if all(getattr(score, name) is not None for score in found)]
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    names = [name.replace("_", " ").replace("per token", f"per {unit}") for name in beside]
    for name in ("memory", found[0].measure, *names, "distances", "seconds"):
        table.add_column("perplexity per token" if name == "perplexity" and unit == "token" else name, justify="right")
    for score in found:
        table.add_row(
            f"{score.protocol.memory_length:,}",
            _number(score.value),
            *(_number(getattr(score, name)) for name in beside),
            _distances(score),
            f"{score.seconds:.1f}",
        )
    return table


def measurements(score: Score) -> Iterator[Table]:
    """What was measured beside one score; nothing where nothing was asked for."""
    by_position = score.measurements.get("loss_by_position")
    if by_position:
        where = "document" if score.protocol.starts == "document" else "stream"
        table = Table(title=f"by position in the {where}, memory {score.protocol.memory_length:,}", box=None)
        per = score.protocol.unit if score.protocol.unit != "token" else "token"
        for name in ("position", f"bits per {per}", f"{per}s"):
            table.add_column(name, justify="right")
        for entry in by_position:
            last = "" if entry["end"] is None else f"{entry['end'] - 1:,}"
            position = f"{entry['begin']:,}" if last == f"{entry['begin']:,}" else f"{entry['begin']:,} to {last}"
            table.add_row(position, f"{entry['nats'] / math.log(2):.3f}", f"{entry['tokens']:,}")
        yield table
    interpolation = score.measurements.get("interpolation")
    if interpolation:
        table = Table(title=f"share of old content kept, memory {score.protocol.memory_length:,}", box=None)
        for name in ("layer", "mean", "newest slot", "oldest slot"):
            table.add_column(name, justify="right")
        for layer, row in enumerate(interpolation):
            table.add_row(str(layer), *(f"{value:.3f}" for value in (sum(row) / len(row), row[0], row[-1])))
        yield table


def _number(value: float) -> str:
    return f"{value:,.3f}" if value < 1000 else f"{value:,.1f}" if value < 1e9 else f"{value:.3g}"


def _distances(score: Score) -> str:
    protocol = score.protocol
    if protocol.held is not None:
        return "held"
    if protocol.clamp_length is not None:
        return f"clamped at {protocol.clamp_length:,}"
    return "beyond training" if protocol.exceeded else "as trained" if protocol.trained is not None else "free"
