"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    steps: int
    """Updates made, those before a resumption included."""
    seconds: float
    """Spent on training steps, without validation and saving."""
    stalled: float
    """Seconds that saving held training, on top of these."""
    losses: list[tuple[int, float]]
    """(step, mean training loss in nats per token since the entry before)."""
    best: dict[str, Any] | None
    """What the validation with the lowest loss gave, and its "step"; None without validation."""
    folder: Path
    signal: int | None = None
    """The signal that ended the run before its last step."""

    @property
    def interrupted(self) -> bool:
        return self.signal is not None
