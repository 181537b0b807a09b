"""Scores and what was measured beside them, as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from remanence.evaluation import Score

BESIDE = {
    "byte": ("bits_per_character",),
    "character": ("bits_per_byte",),
    "word": ("nats_per_token", "bits_per_byte"),
    "token": ("perplexity", "bits_per_byte"),
    "symbol": ("nats_per_token", "perplexity"),
    "pixel": ("perplexity", "nats_per_token"),
}
"""By unit, what is told beside the number that people quote."""


def scores(found: Sequence[Score]) -> Table:
    """A line for each score."""
    unit = found[0].protocol.unit
    beside = [name for name in BESIDE[unit] if _tells_more(found, name)]
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    # Asked for beside another number; a share is told in %, as where it is the number itself.
    counted = found[0].measure != "% accuracy" and all(score.accuracy is not None for score in found)
    names = [name.replace("_", " ").replace("per token", f"per {unit}") for name in beside]
    for name in ("memory", found[0].measure, *names, *["% accuracy"] * counted, "distances", "seconds"):
        table.add_column(
            f"perplexity per {unit}" if name == "perplexity" and unit in ("token", "pixel") else name, justify="right"
        )
    for score in found:
        table.add_row(
            f"{score.protocol.memory_length:,}",
            _number(score.value),
            *(_number(getattr(score, name)) for name in beside),
            *([f"{100 * (score.accuracy or 0.0):.1f}"] if counted else []),
            _distances(score),
            f"{score.seconds:.1f}",
        )
    return table


def by_position(found: Sequence[Score]) -> Table:
    """Bits by position in the document or stream: a line for each range, a column for each memory length."""
    starts, unit = found[0].protocol.starts, found[0].protocol.unit
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in (
        f"position in the {'document' if starts == 'document' else 'stream'}",
        f"{unit}s",
        *(f"memory {score.protocol.memory_length:,}" for score in found),
    ):
        table.add_column(name, justify="right")
    columns = [score.measurements["loss_by_position"] for score in found]
    for entries in zip(*columns, strict=True):
        first, last = entries[0]["begin"], None if entries[0]["end"] is None else entries[0]["end"] - 1
        position = f"{first:,}" if first == last else f"{first:,} on" if last is None else f"{first:,} to {last:,}"
        bits = (f"{entry['nats'] / math.log(2):.3f}" for entry in entries)
        table.add_row(position, f"{entries[0]['tokens']:,}", *bits)
    return table


def interpolation(found: Sequence[Score]) -> Table | None:
    """What share of its old content a slot keeps at a segment: a line for each layer; None where no model merges."""
    rows = [
        (
            f"{score.protocol.memory_length:,}",
            str(layer),
            *(f"{value:.3f}" for value in (sum(row) / len(row), row[0], row[-1])),
        )
        for score in found
        for layer, row in enumerate(score.measurements["interpolation"])
    ]
    if not rows:
        return None
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("memory", "layer", "old content kept", "newest slot", "oldest slot"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _tells_more(found: Sequence[Score], name: str) -> bool:
    """Whether a unit is known for all scores and is not the headline again, which was rounded on another way."""
    values = [getattr(score, name) for score in found]
    return all(value is not None for value in values) and not all(
        math.isclose(value, score.value, rel_tol=1e-9) for value, score in zip(values, found, strict=True)
    )


def _number(value: float) -> str:
    return f"{value:,.3f}" if value < 1000 else f"{value:,.1f}" if value < 1e9 else f"{value:.3g}"


def _distances(score: Score) -> str:
    protocol = score.protocol
    if protocol.held is not None:
        return "held"
    if protocol.clamp_length is not None:
        return f"clamped at {protocol.clamp_length:,}"
    return "beyond training" if protocol.exceeded else "as trained" if protocol.trained is not None else "free"
