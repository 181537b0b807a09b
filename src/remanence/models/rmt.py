"""The Recurrent Memory Transformer: memory tokens are read before a segment and written after it.

    [ _ ; h ; m' ] = Transformer([ m ; x_1 .. x_T ; w ]),   causal: x sees m, w sees m and x

The vectors m that a segment reads are what the last layer made of the write tokens w of the segment before. They are
the whole memory, of constant size, and what is worth writing is learned from later losses alone: gradients cross
segments, as far as the training horizon reaches. At the first segment of a document m is a parameter.

The write tokens come after all tokens of a segment, so a segment is opened, extended and closed like one of a
Transformer-XL without slots, whose layers these are.

Source: Bulatov, Kuratov, Burtsev, "Recurrent Memory Transformer", NeurIPS 2022 (arXiv 2207.06881). Shapes: B lanes, T
tokens, P memory tokens, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from remanence.errors import InputError
from remanence.memory import Distances, Memory, per_lane, per_slot, static
from remanence.models.base import Extras
from remanence.models.flops import Flops
from remanence.models.relative import RelativeConfig
from remanence.models.transformer_xl import TransformerXL, TransformerXLMemory


@dataclass(frozen=True, kw_only=True)
class RMTConfig(RelativeConfig):
    """The Recurrent Memory Transformer with P memory tokens."""

    architecture: ClassVar[str] = "rmt"
    synonyms: ClassVar[Mapping[str, str]] = {"memory_length": "memory_tokens", "num_slots": "memory_tokens"}
    memory_tokens: int
    """P, read before each segment and written after it."""
    write_tokens: Literal["learned", "memory"] = "learned"
    """What stands in the places that are written: vectors of their own, or the memory that was read (as printed in the
    paper)."""
    position: ClassVar[str] = "relative"

    def __post_init__(self) -> None:
        # First, for it is the memory_length that the others check.
        self._require(self.memory_tokens >= 1, "memory_tokens", "1 or more; without memory it is a transformer")
        super().__post_init__()
        self._require(not self.same_length, "same_length", "false, for memory tokens have no distance to fall out of")

    @property
    def memory_length(self) -> int:
        """P."""
        return self.memory_tokens


@dataclass(frozen=True)
class RMTMemory(Memory, kind="rmt"):
    """What the last segment wrote."""

    vectors: Float[Tensor, "B P D"] = per_slot()
    written: Bool[Tensor, " B"] = per_lane()
    """False where no segment was read since the lane last started a document: the first memory is a parameter."""
    hold: Distances | None = static(default=None)
    segment: TransformerXLMemory | None = per_lane(default=None)
    """While one is open: the layers' keys and values, of the memory tokens and of the tokens so far."""

    @property
    def opened(self) -> int:
        return 0 if self.segment is None else self.segment.opened - self.length


class RecurrentMemoryTransformer(TransformerXL):
    """Reads a segment between memory tokens. Its memory always carries gradients."""

    config_class = RMTConfig
    memory_class = RMTMemory

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.first = nn.Parameter(torch.empty(config.memory_tokens, config.model_width))
        if config.write_tokens == "learned":
            self.write = nn.Parameter(torch.empty(config.memory_tokens, config.model_width))

    @property
    def memory_carries_gradient(self) -> bool:
        return True

    def init_memory(self, lanes: int, length: int | None = None, hold: Distances | None = None) -> RMTMemory:
        vectors = self.first.new_zeros(lanes, self._slots(lanes, length), self.config.model_width)
        return RMTMemory(vectors, self.first.new_zeros(lanes, dtype=torch.bool), hold)

    def distances(self, segment_length: int | None = None, memory_length: int | None = None) -> Distances:
        """The last write token looks back at the first memory token."""
        tokens = self.config.memory_tokens if memory_length is None else memory_length
        segment = self.config.segment_length if segment_length is None else segment_length
        return Distances(back=self._clamp(2 * tokens + segment - 1))

    def _read(
        self, tokens: Tensor, memory: Any, lengths: Tensor | None, *, keep: bool, extras: bool, predict: bool = True
    ) -> tuple[Tensor, Any, Extras]:
        rows, size, length = self._embed(tokens), memory.length, tokens.shape[1]
        if memory.opened:
            hidden, segment, told = self._through(rows, memory.segment, None, keep=True, extras=extras)
            return hidden, dataclasses.replace(memory, segment=segment), told
        remembered = self._remembered(memory)
        layers = self._layers_memory(memory)
        rows = torch.cat([remembered.to(rows.dtype), rows], dim=1)
        if keep:
            hidden, segment, told = self._through(rows, layers, None, keep=True, extras=extras)
            return hidden[:, size:], dataclasses.replace(memory, segment=segment), told
        # The segment ends here: its write tokens are read in the same pass, right behind the last token of each lane.
        ends = rows.new_full((len(rows),), length, dtype=torch.long) if lengths is None else lengths
        places = (size + ends)[:, None] + torch.arange(size, device=rows.device)
        index = places[..., None].expand(-1, -1, rows.shape[2])
        rows = torch.cat([rows, torch.zeros_like(remembered, dtype=rows.dtype)], dim=1)
        rows = rows.scatter(1, index, self._asking(remembered).to(rows.dtype))
        hidden, _, told = self._through(rows, layers, None, keep=False, extras=extras)
        return hidden[:, size : size + length], self._wrote(memory, hidden.gather(1, index), ends > 0), told

    def _close(self, memory: Any, lengths: Tensor | None) -> RMTMemory:
        if memory.segment is None:
            return memory
        if not memory.length:
            return dataclasses.replace(memory, segment=None)
        asking = self._asking(self._remembered(memory)).to(memory.segment.segment.keys[0].dtype)
        hidden, _, _ = self._through(asking, memory.segment, None, keep=False, extras=False)
        return self._wrote(memory, hidden, torch.ones_like(memory.written))

    def _wrote(self, memory: RMTMemory, vectors: Tensor, active: Tensor) -> RMTMemory:
        """The memory after a segment, on the lanes that read one."""
        kept = torch.where(active[:, None, None], vectors.to(memory.vectors.dtype), memory.vectors)
        return dataclasses.replace(memory, vectors=kept, written=memory.written | active, segment=None)

    def _remembered(self, memory: RMTMemory) -> Tensor:
        """What the memory tokens are: what was written, or the parameter where nothing was."""
        first = self.first[self.config.memory_tokens - memory.length :].to(memory.vectors.dtype)
        return torch.where(memory.written[:, None, None], memory.vectors, first)

    def _asking(self, remembered: Tensor) -> Tensor:
        """What stands in the places that are written."""
        if self.config.write_tokens == "memory":
            return remembered
        return self.write[self.config.memory_tokens - remembered.shape[1] :].repeat(len(remembered), 1, 1)

    def _layers_memory(self, memory: RMTMemory) -> TransformerXLMemory:
        """The layers remember nothing beyond the segment."""
        none = memory.vectors.new_zeros(memory.lanes, 0, self.config.model_width)
        valid = memory.written.new_zeros(memory.lanes, 0)
        return TransformerXLMemory(hidden=tuple(none for _ in self.layers), valid=valid, hold=memory.hold)

    def _count(self, flops: Flops, lanes: int, segment: int, memory: int) -> None:
        """Memory tokens are read and written in the places of tokens."""
        self._count_layers(flops, lanes, 2 * memory + segment, 0)

    def _table_rows(self, memory: Any, num_keys: int) -> int:
        return max(super()._table_rows(memory, num_keys), self.config.segment_length + 2 * self.config.memory_tokens)

    def _check_memory(self, memory: Any) -> None:
        if memory.length > self.config.memory_tokens:
            raise InputError(
                f"The memory has {memory.length} tokens, but this model has {self.config.memory_tokens}; give a memory "
                "length of at most that."
            )
        if memory.vectors.shape[-1] != self.config.model_width:
            raise self._misfit("width", memory.vectors.shape[-1], self.config.model_width)
