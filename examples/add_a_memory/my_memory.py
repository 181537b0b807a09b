"""A memory of one's own: the Recurrent Memory Transformer (Bulatov et al. 2022), from outside the package.

    [ _ ; h ; m' ] = Transformer([ m ; x_1 .. x_T ; w ]),   causal

P vectors m of width D are read before a segment; the layers turn P learned ones, w, placed after it, into the next m'.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from remanence.memory import Distances, Memory, per_lane, per_slot, static
from remanence.models import TransformerConfig, TransformerXL, TransformerXLMemory


@dataclass(frozen=True, kw_only=True)
class MyConfig(TransformerConfig):
    """The settings under [model] in a recipe: those of a Transformer, and one more."""

    architecture: ClassVar[str] = "my-rmt"
    memory_tokens: int = 8

    @property
    def memory_length(self) -> int:
        return self.memory_tokens


@dataclass(frozen=True)
class MyMemory(Memory, kind="my-rmt"):
    """All that is carried from one segment to the next. Moving, saving and choosing lanes come with the base class."""

    vectors: Float[Tensor, "B P D"] = per_slot()
    written: Bool[Tensor, " B"] = per_lane()
    """False on a lane that has read nothing since its document began."""
    hold: Distances | None = static(default=None)
    segment: TransformerXLMemory | None = per_lane(default=None)
    """While a segment is open: the layers' keys and values of m and of the tokens so far."""

    @property
    def opened(self) -> int:
        return 0 if self.segment is None else self.segment.opened - self.length


class MyModel(TransformerXL):
    """Its layers are those of a Transformer-XL, which itself remembers nothing here."""

    config_class, memory_class = MyConfig, MyMemory
    memory_carries_gradient = True

    def __init__(self, config: MyConfig) -> None:
        super().__init__(config)
        self.first = nn.Parameter(torch.empty(config.memory_tokens, config.model_width))
        self.write = nn.Parameter(torch.empty(config.memory_tokens, config.model_width))

    def init_memory(self, lanes: int, length: int | None = None, hold: Any = None) -> MyMemory:
        vectors = self.first.new_zeros(lanes, self._slots(lanes, length), self.config.model_width)
        return MyMemory(vectors, vectors.new_zeros(lanes, dtype=torch.bool), hold)

    def _read(
        self, tokens: Tensor, memory: Any, lengths: Tensor | None, *, keep: bool, extras: bool, predict: bool = True
    ) -> Any:
        """Pass tokens through the layers. With `keep` the segment stays open; without, it ends here."""
        rows, P, T = self._embed(tokens), memory.length, tokens.shape[1]
        if memory.opened:
            hidden, segment, extra = self._through(rows, memory.segment, None, keep=True, extras=extras)
            return hidden, replace(memory, segment=segment), extra
        read = torch.where(memory.written[:, None, None], memory.vectors, self.first[:P].to(memory.vectors.dtype))
        rows = torch.cat([read.to(rows.dtype), rows], dim=1)
        nothing = tuple(read[:, :0] for _ in self.layers)
        segment = TransformerXLMemory(hidden=nothing, valid=memory.written[:, None][:, :0], hold=memory.hold)
        if keep:
            hidden, segment, extra = self._through(rows, segment, None, keep=True, extras=extras)
            return hidden[:, P:], replace(memory, segment=segment), extra
        # Reading w in the same pass is cheaper. It stands behind the last real token of each lane.
        ends = torch.full_like(tokens[:, 0], T) if lengths is None else lengths
        index = (P + ends[:, None] + torch.arange(P, device=ends.device))[..., None].expand(-1, -1, rows.shape[2])
        rows = torch.cat([rows, torch.zeros_like(rows[:, :P])], dim=1)
        rows = rows.scatter(1, index, self.write[:P].to(rows.dtype).repeat(len(rows), 1, 1))
        hidden, _, extra = self._through(rows, segment, None, keep=False, extras=extras)
        return hidden[:, P : P + T], self._store(memory, hidden.gather(1, index), ends > 0), extra

    def _close(self, memory: Any, lengths: Tensor | None) -> MyMemory:
        """End an open segment: now w is read."""
        if memory.segment is None or not memory.length:
            return replace(memory, segment=None)
        w = self.write[: memory.length].to(memory.segment.segment.keys[0].dtype).repeat(memory.lanes, 1, 1)
        hidden, _, _ = self._through(w, memory.segment, None, keep=False, extras=False)
        return self._store(memory, hidden, torch.ones_like(memory.written))

    def _store(self, memory: MyMemory, vectors: Tensor, active: Tensor) -> MyMemory:
        kept = torch.where(active[:, None, None], vectors.to(memory.vectors.dtype), memory.vectors)
        return replace(memory, vectors=kept, written=memory.written | active, segment=None)

    def _check_memory(self, memory: Any) -> None:
        if memory.length > self.config.memory_tokens:
            raise self._misfit("number of vectors", memory.length, self.config.memory_tokens)
