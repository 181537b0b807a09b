"""The loss in the unit that fits a corpus: bits per byte or character, perplexity of words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """How nats per token are told to a person."""

    name: str
    """"bits per byte", "bits per character" or "perplexity"."""
    tokens_per_unit: float = 1.0

    def value(self, nats_per_token: float) -> float:
        if self.name == "perplexity":
            return math.exp(min(nats_per_token, 700.0))
        return nats_per_token * self.tokens_per_unit / math.log(2)

    def text(self, nats_per_token: float) -> str:
        value = self.value(nats_per_token)
        shown = f"{value:.4g}" if value >= 1e6 else f"{value:.1f}" if value >= 100 else f"{value:.3f}"
        return f"{self.name} {shown}" if self.name == "perplexity" else f"{shown} {self.name}"


def unit_of(unit: str, counts: Mapping[str, int]) -> Unit:
    """The unit of a corpus whose tokens are `unit`s; sub-words ("token") are told as bits per byte by their counts."""
    if unit in ("byte", "character"):
        return Unit(f"bits per {unit}")
    if unit == "token" and counts.get("bytes"):
        return Unit("bits per byte", counts["tokens"] / counts["bytes"])
    return Unit("perplexity")
