"""The loss in the unit that fits a corpus: bits per byte, character or pixel, perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """How nats per token are told to a person."""

    name: str
    """"bits per byte", "bits per character", "bits per pixel", "perplexity" or "word perplexity"."""
    tokens_per_unit: float = 1.0

    def value(self, nats_per_token: float) -> float:
        nats = nats_per_token * self.tokens_per_unit
        return math.exp(min(nats, 700.0)) if self.name.endswith("perplexity") else nats / math.log(2)

    def text(self, nats_per_token: float) -> str:
        value = self.value(nats_per_token)
        shown = f"{value:.3f}" if self.name.startswith("bits") else f"{value:,.2f}" if value < 1e9 else f"{value:.4g}"
        return f"{shown} {self.name}"


def unit_of(unit: str, counts: Mapping[str, int]) -> Unit:
    """The unit of a corpus whose tokens are `unit`s; sub-words ("token") are told as words by their counts."""
    if unit in ("byte", "character", "pixel"):
        return Unit(f"bits per {unit}")
    if unit == "token" and counts.get("words"):
        # A line end counts as a word, as in scores.
        return Unit("word perplexity", counts["tokens"] / (counts["words"] + counts.get("lines", 0)))
    return Unit("perplexity")
