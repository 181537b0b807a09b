"""Transformer-XL: every layer also reads the hidden states that it was given in earlier segments.

    mem^l <- newest M rows of [mem^l ; stopgrad(h^l)],  h^l the input of layer l
    K, V from [mem^l ; h^l],  Q from h^l,  scores by relative position

Source: Dai et al., "Transformer-XL: Attentive Language Models beyond a Fixed-Length Context", ACL 2019 (arXiv
1901.02860), and its published code. Shapes: B lanes, T tokens, M slots, S = M + T keys, H heads, K head width, D width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from remanence.errors import InputError
from remanence.memory import Distances, Memory, derived, newest, per_lane, per_slot, static
from remanence.models.base import Extras
from remanence.models.flops import Flops
from remanence.models.relative import (
    Projected,
    RelativeConfig,
    RelativeModel,
    attention_received,
    joined,
    laid_out,
    mass_by_distance,
    visible_keys,
)
from remanence.nn.relative import DirectionBiases, LearnedPositions, falling, tightest
from remanence.ops.attention import Read, relative_attention
from remanence.rows import append

PROJECTIONS = ("keys", "values")
"""The fields of a memory that hold what fixed weights make of its slots."""


@dataclass(frozen=True, kw_only=True)
class TransformerXLConfig(RelativeConfig):
    """Transformer-XL with M slots in every layer."""

    architecture: ClassVar[str] = "transformer-xl"
    memory_length: int
    """M, the hidden states each layer keeps; another length may be used at any time."""
    position: Literal["relative", "learned"] = "relative"
    memory_init: Literal["empty", "zeros"] = "empty"
    """An empty memory is nothing (published PyTorch code), or rows of zeros that are attended to (TensorFlow)."""


@dataclass(frozen=True)
class OpenSegment(Memory, kind="transformer-xl-segment"):
    """A segment that is still being read: what its next tokens attend to, and what it will leave behind."""

    keys: tuple[Float[Tensor, "B H S K"], ...] = per_lane()
    """For each layer, of the slots and of the tokens so far; empty when the segment closes with this call."""
    values: tuple[Float[Tensor, "B H S K"], ...] = per_lane()
    hidden: tuple[Float[Tensor, "B T D"], ...] = per_lane()
    """Inputs of each layer; empty for a memory without slots."""
    tables: tuple[Float[Tensor, "P H K"], ...] = derived(default=())
    """Projected distances of each layer, largest first."""
    tokens: int = static(default=0)
    """Tokens read so far."""
    received: tuple[Float[Tensor, "B S"], ...] = per_lane(differentiable=False, default=())
    """For each layer, the attention that every key has received from the tokens; only where a model counts it."""


@dataclass(frozen=True, kw_only=True)
class QueueMemory(Memory):
    """Rows that every layer of a Transformer-XL attends to, and what fixed weights make of them where asked for."""

    hidden: tuple[Float[Tensor, "B M D"], ...] = per_slot()
    valid: Bool[Tensor, "B M"] = per_slot()
    """False where nothing was written since the lane last started a document."""
    hold: Distances | None = static(default=None)
    segment: OpenSegment | None = per_lane(default=None)
    keys: tuple[Float[Tensor, "B M H K"], ...] = per_slot(differentiable=False, default=())
    """What fixed weights make of `hidden`, for each layer; only where asked for (`with_projections`)."""
    values: tuple[Float[Tensor, "B M H K"], ...] = per_slot(differentiable=False, default=())
    tables: tuple[Float[Tensor, "P H K"], ...] = derived(default=())
    """Projected distances of each layer, largest first, kept with the keys."""

    @property
    def opened(self) -> int:
        return 0 if self.segment is None else self.segment.tokens


@dataclass(frozen=True, kw_only=True)
class TransformerXLMemory(QueueMemory, kind="transformer-xl"):
    """Hidden states that every layer kept from earlier segments."""

    zeros: bool = static(default=False)
    """An empty slot is a row of zeros that is attended to."""

    def reset(self, starts: Bool[Tensor, " B"]) -> TransformerXLMemory:
        memory = super().reset(starts)
        return dataclasses.replace(memory, valid=memory.valid | starts[:, None]) if self.zeros else memory

    def resize(self, length: int) -> TransformerXLMemory:
        memory = super().resize(length)
        if self.zeros and length > self.length:
            valid = memory.valid.clone()
            valid[:, : length - self.length] = True
            memory = dataclasses.replace(memory, valid=valid)
        return memory


class TransformerXL(RelativeModel):
    """Reads a segment after the hidden states of earlier ones. As published these carry no gradient (section 3.2)."""

    config_class = TransformerXLConfig
    memory_class = TransformerXLMemory
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        shape = (config.num_heads, config.head_width)
        if config.position == "learned":
            self.biases = DirectionBiases(config.num_layers, *shape, content=True, position=False)
            reach = config.segment_length + config.memory_length
            self.learned = LearnedPositions(config.num_layers, reach, *shape)
        elif config.position == "relative":
            layers = None if config.share_position_biases else config.num_layers
            self.biases = DirectionBiases(layers, *shape, content=True, position=True)

    @property
    def counts_attention(self) -> bool:
        """Whether a segment adds up the attention that its keys receive."""
        return False

    def init_memory(self, lanes: int, length: int | None = None, hold: Distances | None = None) -> TransformerXLMemory:
        slots = self._slots(lanes, length)
        table = self.embedding.tables[0]
        zeros = self.config.memory_init == "zeros"
        return TransformerXLMemory(
            hidden=tuple(table.new_zeros(lanes, slots, self.config.model_width) for _ in self.layers),
            valid=torch.full((lanes, slots), zeros, dtype=torch.bool, device=table.device),
            zeros=zeros,
            hold=hold,
        )

    def _read(
        self, tokens: Tensor, memory: Any, lengths: Tensor | None, *, keep: bool, extras: bool, predict: bool = True
    ) -> tuple[Tensor, Any, Extras]:
        return self._through(self._embed(tokens), memory, lengths, keep=keep, extras=extras, predict=predict)

    def _through(
        self, embedded: Tensor, memory: Any, lengths: Tensor | None, *, keep: bool, extras: bool, predict: bool = True
    ) -> tuple[Tensor, Any, Extras]:
        """`_read` for rows that are no longer tokens, (B, T, D)."""
        slots, opened, new = memory.slots, memory.opened, embedded.shape[1]
        num_keys = slots + opened + new
        visible = self._visible(memory, new)
        tables = self._tables(memory, num_keys, keep, embedded)
        room = self._room(memory, num_keys, keep)
        stream = self._enter(embedded, opened)
        inputs, kept, received, mass = [], [], [], []
        for number, layer in enumerate(self.layers):
            inputs.append(stream)
            if not (predict or self.counts_attention) and number == len(self.layers) - 1:
                # The memory holds the inputs of layers: what the last one makes of its own is not remembered.
                if memory.keys:
                    kept.append(self._kept(memory, number, stream, room))
                break
            queries, keys, values = layer.project(stream)
            earlier = self._earlier(memory, number)
            keys, values = (joined(*pair, room) for pair in zip(earlier, (keys, values), strict=True))
            counted = extras or self.counts_attention
            read = self._attend(number, queries, keys, values, visible, tables, memory, counted)
            stream = layer.finish(stream, read.context)
            kept.append((keys, values))
            if self.counts_attention:
                received.append(attention_received(read.weights, lengths))
            if extras:
                mass.append(mass_by_distance(read.weights))
        if not slots:
            inputs = []
        elif opened:
            inputs = [append(*pair, room=room) for pair in zip(memory.segment.hidden, inputs, strict=True)]
        projecting = bool(memory.keys)
        segment = OpenSegment(
            keys=tuple(keys for keys, _ in kept) if keep or projecting else (),
            values=tuple(values for _, values in kept) if keep or projecting else (),
            hidden=tuple(inputs),
            tables=tuple(tables) if keep else (),
            tokens=opened + new,
            received=tuple(map(_added, memory.segment.received, received) if opened else received),
        )
        told = Extras(attention_mass=torch.stack(mass)) if extras else Extras()
        memory = dataclasses.replace(memory, segment=segment, tables=tuple(tables) if projecting else ())
        return stream, memory, told

    def _close(self, memory: Any, lengths: Tensor | None) -> TransformerXLMemory:
        if not memory.length:
            return dataclasses.replace(memory, segment=None)
        hidden = tuple(
            newest(old, self._cut(rows).to(old.dtype), lengths)
            for old, rows in zip(memory.hidden, memory.segment.hidden, strict=True)
        )
        read = memory.valid.new_ones(memory.lanes, memory.opened)
        return dataclasses.replace(
            memory,
            hidden=hidden,
            valid=newest(memory.valid, read, lengths),
            segment=None,
            **self._folded(memory, lengths),
        )

    def _folded(self, memory: Any, lengths: Tensor | None) -> dict[str, tuple[Tensor, ...]]:
        """What is kept of keys and values after a segment; nothing unless they were kept before it."""
        fold = partial(_fold, lengths=lengths)
        return {name: tuple(map(fold, getattr(memory, name), getattr(memory.segment, name))) for name in PROJECTIONS}

    def with_projections(self, memory: Any) -> Any:
        # Rows of zeros that are attended to are put in by a reset, which knows no weights; and a memory that is not
        # made of slots has nothing to keep.
        if memory.opened or not memory.slots or not isinstance(memory, QueueMemory) or getattr(memory, "zeros", False):
            return memory
        pairs = [layer.project_keys_values(rows) for layer, rows in zip(self.layers, memory.hidden, strict=True)]
        keys, values = (tuple(rows.transpose(1, 2) for rows in column) for column in zip(*pairs, strict=True))
        return dataclasses.replace(memory, keys=keys, values=values)

    def _count(self, flops: Flops, lanes: int, segment: int, memory: int) -> None:
        self._count_layers(flops, lanes, segment, memory)

    def _earlier(self, memory: Any, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, of the slots and of the tokens that an open segment has."""
        if memory.opened:
            return memory.segment.keys[number], memory.segment.values[number]
        if memory.keys:
            return memory.keys[number].transpose(1, 2), memory.values[number].transpose(1, 2)
        return self.layers[number].project_keys_values(memory.hidden[number])

    def _kept(self, memory: Any, number: int, stream: Tensor, room: int | None) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer whose rows ask nothing, for a memory that keeps them."""
        old_keys, old_values = self._earlier(memory, number)
        keys, values = self.layers[number].project_keys_values(stream)
        return joined(old_keys, keys, room), joined(old_values, values, room)

    def _visible(self, memory: Any, new: int) -> Tensor | None:
        """Which keys each of `new` further tokens may see."""
        return visible_keys(memory.valid, memory.opened, new, self.config.same_length)

    def _attend(
        self,
        number: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        visible: Tensor | None,
        tables: Any,
        memory: Any,
        with_weights: bool,
    ) -> Read:
        """What the queries of one layer read from [slots ; tokens of the segment so far]."""
        positions = self._positions(number, keys.shape[2], tables, memory.hold)
        return relative_attention(
            queries,
            keys,
            values,
            visible,
            dropout=self._attention_dropout,
            with_weights=with_weights,
            **positions,
        )

    def _enter(self, embedded: Tensor, opened: int) -> Tensor:
        """What the first layer is given; `opened` tokens of the segment came before."""
        return embedded

    def _tables(self, memory: Any, num_keys: int, keep: bool, like: Tensor) -> Any:
        """Projected distances of each layer for at least `num_keys` keys; those of the open segment where they do."""
        if self.config.position != "relative":
            return ()
        if memory.opened and memory.segment.tables and memory.segment.tables[0].shape[0] >= num_keys:
            return memory.segment.tables
        projecting = bool(getattr(memory, "keys", ()))
        rows = self._table_rows(memory, num_keys) if keep or projecting else num_keys
        if projecting and memory.tables and memory.tables[0].shape[0] == rows:
            # Of that size only, so that a memory without them, from a file, goes on with the same bits.
            return memory.tables
        distances = falling(rows, self._back_limit(memory.hold), like.device)
        codes = self._codes(distances, like.dtype)
        tables = Projected(self.layers, codes)
        if not (keep or projecting):
            return tables
        # What is kept will be read by single tokens, but in evaluation by segments.
        return tuple(map(laid_out, tables)) if keep or like.shape[1] == 1 else tuple(tables)

    def _positions(self, number: int, num_keys: int, tables: Any, hold: Distances | None) -> dict[str, Any]:
        """The positional arguments of attention in one layer."""
        content, position = self.biases.of(number)
        if self.config.position == "learned":
            distances = falling(num_keys, None, content.device)
            table, distance_bias = self.learned.of(number, distances, self._back_limit(hold))
            return {"content_bias": content, "positions": table, "distance_bias": distance_bias}
        return {"content_bias": content, "position_bias": position, "positions": tables[number][-num_keys:]}

    def _back_limit(self, hold: Distances | None) -> int | None:
        clamp = self.config.clamp_length
        if clamp is not None and self.config.position == "learned":
            # The published code keeps the last clamp_length rows of the table: distances 0 .. clamp_length - 1.
            clamp -= 1
        return tightest(clamp, hold.back if hold else None)

    def _check_memory(self, memory: Any) -> None:
        super()._check_memory(memory)
        if memory.keys and torch.is_grad_enabled():
            raise InputError(
                "This memory keeps keys and values that were made with fixed weights, so it serves without gradients "
                "only; read it in torch.no_grad(), or begin with a new one from init_memory."
            )
        if len(memory.hidden) != len(self.layers):
            raise self._misfit("number of layers", len(memory.hidden), len(self.layers))
        width = memory.hidden[0].shape[-1]
        if width != self.config.model_width:
            raise self._misfit("width", width, self.config.model_width)


def _fold(held: Tensor, rows: Tensor, lengths: Tensor | None) -> Tensor:
    """Projected slots after a segment, as (B, M, H, K); `rows` are those of slots and tokens, (B, H, S, K)."""
    slots = held.shape[1]
    if lengths is None:
        return rows[:, :, rows.shape[2] - slots :].transpose(1, 2)
    return newest(held.to(rows.dtype), rows[:, :, slots:].transpose(1, 2), lengths)


def _added(before: Tensor, now: Tensor) -> Tensor:
    """What keys received, when there are more of them now."""
    return F.pad(before, (0, now.shape[1] - before.shape[1])) + now
