"""A Transformer without memory: every segment is read on its own.

It is a Transformer-XL whose memory has no slots, so that the two differ in memory alone. Absolute sinusoids (Vaswani et
al. 2017, section 3.5) instead of relative positions are an option.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from remanence.errors import InputError
from remanence.memory import Distances
from remanence.models.flops import Flops
from remanence.models.relative import RelativeConfig
from remanence.models.transformer_xl import TransformerXL, TransformerXLMemory


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(RelativeConfig):
    """A Transformer that forgets everything at the end of each segment."""

    architecture: ClassVar[str] = "transformer"
    position: Literal["relative", "absolute"] = "relative"

    @property
    def memory_length(self) -> int:
        return 0

    @property
    def memory_init(self) -> str:
        return "empty"


class Transformer(TransformerXL):
    """Reads each segment on its own; between segments its memory is empty."""

    config_class = TransformerConfig

    def init_memory(self, lanes: int, length: int | None = None, hold: Distances | None = None) -> TransformerXLMemory:
        if length:
            raise InputError(f"A memory of length {length} was asked for, but a transformer has none; give 0.")
        return super().init_memory(lanes, 0, hold)

    def _count(self, flops: Flops, lanes: int, segment: int, memory: int) -> None:
        self._count_layers(flops, lanes, segment, 0)

    def _enter(self, embedded: Tensor, opened: int) -> Tensor:
        if self.config.position == "relative":
            return embedded
        places = torch.arange(opened, opened + embedded.shape[1], device=embedded.device)
        return embedded + self._codes(places, embedded.dtype)

    def _positions(self, number: int, num_keys: int, tables: Any, hold: Distances | None) -> dict[str, Any]:
        return super()._positions(number, num_keys, tables, hold) if self.config.position == "relative" else {}
