"""Memformer: a bank of P slots is all that goes from one segment to the next.

    X_t = Encoder(s_t, M_t)         every layer also reads the slots
    M_{t+1} = BMN(Write(M_t, X_t))  each slot attends to itself and to the tokens, then fades towards its own bias
    p(s_{t+1}) = Decoder(s_{t+1}, X_t)

The encoder reads a segment once the next one opens: memory holds the ids of the previous segment and the slots from
before it. Opening a segment encodes them, writes the slots and projects what the decoder will ask; the tokens of the
open segment are then decoded one at a time or all at once; closing it stores their ids. Carrying X instead of ids would
leave the encoder without a gradient wherever the carry is cut.

Source: Wu et al., "Memformer: A Memory-Augmented Transformer for Sequence Modeling", Findings of AACL-IJCNLP 2022
(arXiv 2010.06891). No official code is public; where the text is silent `docs/memformer.md` says what was chosen.
Shapes: B lanes, T tokens, P slots, H heads, K head width, D width of the model and of a slot.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from remanence.errors import InputError
from remanence.memory import Distances, Memory, per_lane, per_slot
from remanence.models.base import Extras, LanguageModel, ModelConfig
from remanence.models.flops import Flops
from remanence.nn.sublayers import AttentionSublayer, FeedForwardSublayer
from remanence.ops.slots import biased_normalization, initial_slots, write_slots
from remanence.rows import append

FIRST_BIAS = 0.1
"""Length of a forgetting bias before training, as a share of the radius."""
WITHOUT_SLOTS = "1 or more; to read without slots, evaluate a trained run with a memory length of 0"


@dataclass(frozen=True, kw_only=True)
class MemformerConfig(ModelConfig):
    """Memformer with P slots. `num_layers` counts encoder and decoder layers together."""

    architecture: ClassVar[str] = "memformer"
    synonyms: ClassVar[Mapping[str, str]] = {"memory_length": "num_slots", "memory_tokens": "num_slots"}
    num_slots: int = 64
    """P, the memory slots of a lane, each model_width wide."""
    encoder_layers: int | None = None
    """How many of num_layers read the memory and the previous segment; a quarter, at least 1, unless given."""
    alignment: Literal["aligned", "bos"] = "aligned"
    """Outputs score the token after theirs, as in the other models, or their own from a start symbol (published)."""
    temperature: float = 0.25
    """Of the writer's softmax; below 1 a slot decides more sharply between itself and the tokens."""
    radius: float = 1.0
    """Length that slots are normalised to, in units of `radius_unit`; 1 as published."""
    radius_unit: Literal["one", "sqrt-width"] = "one"
    """What a radius of 1 means: 1 (published), or the root of the model's width, as long as tokens are."""
    normalization: Literal["slot", "head"] = "slot"
    """Whether the whole slot has that length, or each of its heads."""
    memory_norm: Literal["none", "own"] = "own"
    """Whether readers pass slots through a layer norm of their own before keys and values."""
    forgetting: bool = True
    """Slots fade towards their biases; without it they are normalised alone."""
    writer_heads: int | None = None
    """Heads of the writer, which must divide model_width; num_heads unless given."""

    def __post_init__(self) -> None:
        self._require(self.num_slots >= 1, "num_slots", WITHOUT_SLOTS)
        super().__post_init__()
        self._require(self.num_layers >= 2, "num_layers", "2 or more, for the encoder and the decoder need one each")
        self._require(
            self.encoder_layers is None or 1 <= self.encoder_layers < self.num_layers,
            "encoder_layers",
            f"at least 1 and below num_layers, {self.num_layers}, so that the decoder has a layer",
        )
        self._require(0 < self.temperature < math.inf, "temperature", "positive")
        self._require(0 < self.radius < math.inf, "radius", "positive")
        heads = self.num_heads if self.writer_heads is None else self.writer_heads
        self._require(
            heads >= 1 and self.model_width % heads == 0,
            "writer_heads",
            f"1 or more and divide model_width, {self.model_width} (left out, it is num_heads, {self.num_heads})",
        )

    def without_effect(self) -> tuple[str, ...]:
        told = "model.memory_gradient has no effect, because the memory of a memformer always carries gradients."
        return (*super().without_effect(), *((told,) if self.memory_gradient else ()))

    @property
    def memory_length(self) -> int:
        """P; what every architecture calls the length of its memory."""
        return self.num_slots


@dataclass(frozen=True)
class OpenSegment(Memory, kind="memformer-segment"):
    """A segment that is still being read: what its tokens ask, and what they will leave behind."""

    bank: Float[Tensor, "B P D"] = per_lane()
    """With the previous segment written into them."""
    tokens: Int[Tensor, "B N"] = per_lane()
    """Ids read so far."""
    visible: Bool[Tensor, "B T"] = per_lane()
    """Where the encoder had a token."""
    encoded_keys: tuple[Float[Tensor, "B H T K"], ...] = per_lane(default=())
    """Of the encoder's states, for each decoder layer; empty when the segment closes with this call."""
    encoded_values: tuple[Float[Tensor, "B H T K"], ...] = per_lane(default=())
    keys: tuple[Float[Tensor, "B H N K"], ...] = per_lane(default=())
    """Of the decoder's inputs so far, for each of its layers."""
    values: tuple[Float[Tensor, "B H N K"], ...] = per_lane(default=())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> OpenSegment:
        """Slots stay in float32 or better."""
        return dataclasses.replace(super().to(device, dtype), bank=_exact(self.bank, device, dtype))


@dataclass(frozen=True)
class MemformerMemory(Memory, kind="memformer"):
    """The slots from before the last segment, and that segment itself, which is encoded when the next one opens."""

    bank: Float[Tensor, "B P D"] = per_slot()
    """Float32 or better; a gradient may flow through them from segment to segment."""
    written: Bool[Tensor, "B P"] = per_slot()
    """False where a slot is to hold its learned beginning, which the model puts in."""
    previous: Int[Tensor, "B T"] = per_lane()
    """Ids of the last segment, 0 where it had none."""
    previous_valid: Bool[Tensor, "B T"] = per_lane()
    """Where it had tokens; nowhere on a lane that has read nothing of its document."""
    segment: OpenSegment | None = per_lane(default=None)

    @property
    def opened(self) -> int:
        return 0 if self.segment is None else self.segment.tokens.shape[1]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> MemformerMemory:
        """Slots stay in float32 or better."""
        moved = super().to(device, dtype)
        segment = None if self.segment is None else self.segment.to(device, dtype)
        return dataclasses.replace(moved, bank=_exact(self.bank, device, dtype), segment=segment)

    def resize(self, length: int) -> MemformerMemory:
        """The first slots are kept, for each has its own place; those that are added begin anew."""
        if length < 0 or self.opened:
            return super().resize(length)
        missing = max(length - self.length, 0)
        return dataclasses.replace(
            self,
            bank=F.pad(self.bank[:, :length], (0, 0, 0, missing)),
            written=F.pad(self.written[:, :length], (0, missing)),
        )


@dataclass(frozen=True)
class MemformerExtras(Extras):
    """What a call that opened a segment tells of its slots."""

    own_weight: Float[Tensor, "B P H"] | None = None
    """What each slot gave to what it held while the previous segment was written; 1 where there was none."""


class _Encoded(NamedTuple):
    states: Float[Tensor, "B T D"]
    visible: Bool[Tensor, "B T"]
    slots: Float[Tensor, "B P D"]
    own_weight: Float[Tensor, "B P H"]


class EncoderLayer(nn.Module):
    """Self-attention in both directions, reading the slots, feed-forward."""

    def __init__(self, config: MemformerConfig) -> None:
        super().__init__()
        self.attention = _attention(config)
        self.reader = _attention(config)
        own = config.memory_norm == "own"
        self.memory_norm = nn.LayerNorm(config.model_width, eps=config.layer_norm_epsilon) if own else None
        self.feed_forward = _feed_forward(config)

    def forward(
        self, stream: Float[Tensor, "B T D"], visible: Bool[Tensor, "B T"], slots: Float[Tensor, "B P D"]
    ) -> Float[Tensor, "B T D"]:
        normed = self.attention.norm(stream)
        everywhere = visible[:, None].expand(-1, stream.shape[1], -1)
        stream = self.attention(stream, normed, *self.attention.offer(normed), everywhere)
        if slots.shape[1]:
            slots = slots if self.memory_norm is None else self.memory_norm(slots)
            stream = self.reader(stream, self.reader.norm(stream), *self.reader.offer(slots), None)
        return self.feed_forward(stream)


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder's states, feed-forward. It never sees the slots."""

    def __init__(self, config: MemformerConfig) -> None:
        super().__init__()
        self.attention = _attention(config)
        self.encoder = _attention(config)
        self.feed_forward = _feed_forward(config)


class Memformer(LanguageModel):
    """An encoder that keeps slots, and a decoder that reads what was encoded last."""

    config_class = MemformerConfig
    memory_class = MemformerMemory
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width, length = config.model_width, config.segment_length
        quarter = max(1, config.num_layers // 4)
        num_encoders = quarter if config.encoder_layers is None else config.encoder_layers
        self.scale = math.sqrt(width)
        self.radius = config.radius * (self.scale if config.radius_unit == "sqrt-width" else 1)
        self.writer_heads = config.writer_heads or config.num_heads
        self.parts = self.writer_heads if config.normalization == "head" else 1
        self.opening = nn.Parameter(torch.empty(width))
        self.encoder_positions = nn.Parameter(torch.empty(length, width))
        self.decoder_positions = nn.Parameter(torch.empty(length, width))
        self.encoder: Any = nn.ModuleList(EncoderLayer(config) for _ in range(num_encoders))
        self.encoder_norm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.decoder: Any = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers - num_encoders))
        self.decoder_norm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.write_queries = nn.Linear(width, width, bias=False)
        self.write_keys = nn.Linear(width, width, bias=False)
        self.write_values = nn.Linear(width, width, bias=False)
        self.biases = nn.Parameter(torch.empty(config.num_slots, width))

    def initialize(self, generator: torch.Generator) -> None:
        """As in every model; then the forgetting biases get their length."""
        super().initialize(generator)
        self.biases.data = initial_slots(self.biases.data, FIRST_BIAS * self.radius, self.parts)

    # The contract

    @property
    def memory_carries_gradient(self) -> bool:
        """Always: what is worth writing shows segments later."""
        return True

    @property
    def shift(self) -> int:
        return 1 if self.config.alignment == "aligned" else 0

    def init_memory(self, lanes: int, length: int | None = None, hold: Distances | None = None) -> MemformerMemory:
        """Lanes that have read nothing, with the first `length` of the model's slots; 0 leaves the previous segment.

        `hold` changes nothing: there are no distances.
        """
        slots = self._slots(lanes, length)
        if slots > self.config.num_slots:
            raise InputError(
                f"A memory of {slots} slots was asked for, but this memformer has learned {self.config.num_slots}; "
                f"give 0 to {self.config.num_slots}."
            )
        table, width = self.embedding.tables[0], self.config.model_width
        exact = torch.float64 if table.dtype == torch.float64 else torch.float32
        previous = torch.zeros(lanes, self.config.segment_length, dtype=torch.long, device=table.device)
        return MemformerMemory(
            bank=table.new_zeros(lanes, slots, width, dtype=exact),
            written=torch.zeros(lanes, slots, dtype=torch.bool, device=table.device),
            previous=previous,
            previous_valid=previous.bool(),
        )

    def advance(
        self,
        tokens: Int[Tensor, "B T"],
        memory: Any,
        starts: Bool[Tensor, " B"] | None = None,
        lengths: Int[Tensor, " B"] | None = None,
    ) -> MemformerMemory:
        """The encoder and the writer alone: no prediction is made."""
        memory, lengths = self._prepare(tokens, memory, starts, lengths, close=True)
        encoded = self._encode(memory)
        segment = OpenSegment(bank=encoded.slots, tokens=tokens.long(), visible=encoded.visible)
        return self._close(dataclasses.replace(memory, segment=segment), lengths)

    def peek(self, memory: Any) -> Float[Tensor, "B 1 D"]:
        """What predicts the next token; with outputs that score the token after theirs, the last output does."""
        if self.shift:
            return super().peek(memory)
        if memory.opened == self.config.segment_length:
            memory = self.close(memory)
        segment = self._open(memory)[0] if memory.segment is None else memory.segment
        last = segment.tokens[:, -1:] if memory.opened else memory.previous[:, :1]
        return self._drop(self._decode(last, segment)[0])

    def flush(self, memory: MemformerMemory) -> Float[Tensor, "B P D"]:
        """The slots with the last segment written into them, for a look from outside."""
        return self._encode(memory).slots if memory.segment is None else memory.segment.bank

    def distances(self, segment_length: int | None = None, memory_length: int | None = None) -> Distances:
        """None, for positions begin anew in every segment. Raises InputError for segments longer than they reach."""
        self._check_segment(self.config.segment_length if segment_length is None else segment_length)
        return Distances()

    # Reading

    def _read(
        self, tokens: Tensor, memory: Any, lengths: Tensor | None, *, keep: bool, extras: bool
    ) -> tuple[Tensor, Any, Extras]:
        segment, told = memory.segment, MemformerExtras()
        if segment is None:
            segment, own_weight = self._open(memory)
            told = MemformerExtras(own_weight=own_weight.detach()) if extras else told
        inputs = tokens
        if not self.shift:
            # Where nothing came before, the opening stands in the place of the first id.
            before = segment.tokens[:, -1:] if memory.opened else tokens[:, :1]
            inputs = torch.cat([before, tokens[:, :-1]], dim=1)
        hidden, keys, values = self._decode(inputs, segment)
        tokens = torch.cat([segment.tokens, tokens.long()], dim=1)
        if keep:
            segment = dataclasses.replace(segment, tokens=tokens, keys=keys, values=values)
        else:
            segment = OpenSegment(bank=segment.bank, tokens=tokens, visible=segment.visible)
        return hidden, dataclasses.replace(memory, segment=segment), told

    def _close(self, memory: Any, lengths: Tensor | None) -> MemformerMemory:
        segment, count, device = memory.segment, memory.opened, memory.written.device
        places = torch.arange(self.config.segment_length, device=device)
        counts = torch.full((memory.lanes,), count, device=device) if lengths is None else lengths
        valid = places < counts[:, None]
        previous = F.pad(segment.tokens, (0, len(places) - count)).masked_fill(~valid, 0)
        slots, written = segment.bank, torch.ones_like(memory.written)
        if lengths is not None:
            read = (lengths > 0)[:, None]
            slots = torch.where(read[..., None], slots, memory.bank)
            written = torch.where(read, written, memory.written)
            previous = torch.where(read, previous, memory.previous)
            valid = torch.where(read, valid, memory.previous_valid)
        return MemformerMemory(slots, written, previous, valid)

    def _open(self, memory: MemformerMemory) -> tuple[OpenSegment, Tensor]:
        """Encode the previous segment for the tokens of the next one; and the weights that slots gave themselves."""
        encoded = self._encode(memory)
        offered = [layer.encoder.offer(encoded.states) for layer in self.decoder]
        segment = OpenSegment(
            bank=encoded.slots,
            tokens=memory.previous[:, :0],
            visible=encoded.visible,
            encoded_keys=tuple(keys for keys, _ in offered),
            encoded_values=tuple(values for _, values in offered),
        )
        return segment, encoded.own_weight

    def _encode(self, memory: MemformerMemory) -> _Encoded:
        """X and M of the next segment. A lane that has read nothing encodes one opening and writes nothing."""
        begun = memory.previous_valid.any(1)[:, None]
        first = torch.zeros_like(memory.previous_valid)
        first[:, 0] = True
        first = first & ~begun
        visible = memory.previous_valid | first
        embedded = self.embedding(memory.previous)
        embedded = torch.where(first[..., None], (self.opening * self.scale).to(embedded.dtype), embedded)
        stream = self._drop(embedded + self.encoder_positions * self.scale)
        beginning = initial_slots(self.biases[: memory.length], self.radius, self.parts).to(memory.bank.dtype)
        slots = torch.where(memory.written[..., None], memory.bank, beginning)
        for layer in self.encoder:
            stream = layer(stream, visible, slots.to(stream.dtype))
        states = self.encoder_norm(stream)
        held = slots.to(states.dtype)
        written = write_slots(
            slots,
            self._split(self.write_queries(held)),
            self._split(self.write_keys(held)),
            self._split(self.write_keys(states)),
            self._split(self.write_values(states)),
            visible,
            self.config.temperature,
        )
        bias = self.biases[: memory.length] if self.config.forgetting else None
        after = biased_normalization(written.slots, bias, self.radius, self.parts)
        own_weight = torch.where(begun[..., None], written.own, 1.0)
        return _Encoded(states, visible, torch.where(begun[..., None], after, slots), own_weight)

    def _decode(self, inputs: Tensor, segment: OpenSegment) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Hidden states of further inputs of a segment; keys and values of all its inputs for each layer."""
        opened, new = segment.tokens.shape[1], inputs.shape[1]
        embedded = self.embedding(inputs)
        if not (self.shift or opened):
            opening = (self.opening * self.scale).to(embedded.dtype).expand(len(inputs), 1, -1)
            embedded = torch.cat([opening, embedded[:, 1:]], dim=1)
        stream = self._drop(embedded + self.decoder_positions[opened : opened + new] * self.scale)
        causal = torch.ones(new, opened + new, dtype=torch.bool, device=inputs.device).tril(opened)[None]
        visible = segment.visible[:, None].expand(-1, new, -1)
        all_keys, all_values = [], []
        for number, layer in enumerate(self.decoder):
            normed = layer.attention.norm(stream)
            keys, values = layer.attention.offer(normed)
            if opened:
                keys, values = append(segment.keys[number], keys, 2), append(segment.values[number], values, 2)
            all_keys.append(keys)
            all_values.append(values)
            stream = layer.attention(stream, normed, keys, values, causal)
            encoded = segment.encoded_keys[number], segment.encoded_values[number]
            stream = layer.encoder(stream, layer.encoder.norm(stream), *encoded, visible)
            stream = layer.feed_forward(stream)
        return self.decoder_norm(stream), tuple(all_keys), tuple(all_values)

    def _split(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.writer_heads, -1)).transpose(1, 2)

    def _count(self, flops: Flops, lanes: int, segment: int, memory: int) -> None:
        """The encoder reads a previous segment of T tokens. What the writer made is read by later horizons alone."""
        config = self.config
        width, inner, previous = config.model_width, config.num_heads * config.head_width, config.segment_length
        flops.add_embedding(self.embedding, lanes * previous)
        for _ in self.encoder:
            flops.add_rows(lanes * previous, config)
            flops.add_attention(lanes, previous, previous, inner)
            if memory:
                flops.add("memory", lanes * previous, width, 2 * inner)
                flops.add("memory", lanes * memory, width, 2 * inner)
                flops.add_attention(lanes, previous, memory, inner)
        flops.add("writing", 2 * lanes * (memory + previous), width, width, gradients=0)
        flops.add("writing", lanes * memory, width, 2 * previous, gradients=0)
        for _ in self.decoder:
            flops.add_rows(lanes * segment, config)
            flops.add_attention(lanes, segment, segment, inner)
            flops.add("projections", lanes * segment, width, 2 * inner)
            flops.add("projections", lanes * previous, width, 2 * inner)
            flops.add_attention(lanes, segment, previous, inner)

    # What is refused

    def _check(self, tokens: Tensor, memory: Any, starts: Tensor | None, lengths: Tensor | None, close: bool) -> None:
        super()._check(tokens, memory, starts, lengths, close)
        self._check_segment(memory.opened + tokens.shape[1])

    def _check_segment(self, length: int) -> None:
        if length > self.config.segment_length:
            raise InputError(
                f"A segment of {length} tokens was given, but this memformer has learned positions for "
                f"{self.config.segment_length}; read segments of at most that many."
            )

    def _check_memory(self, memory: Any) -> None:
        if memory.bank.shape[-1] != self.config.model_width:
            raise self._misfit("width", memory.bank.shape[-1], self.config.model_width)
        if memory.length > self.config.num_slots:
            raise self._misfit("number of slots", memory.length, f"at most {self.config.num_slots}")
        if memory.previous.shape[1] != self.config.segment_length:
            raise self._misfit("segment length", memory.previous.shape[1], self.config.segment_length)


def _attention(config: MemformerConfig) -> AttentionSublayer:
    return AttentionSublayer(
        config.model_width,
        config.num_heads,
        config.head_width,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        epsilon=config.layer_norm_epsilon,
    )


def _feed_forward(config: MemformerConfig) -> FeedForwardSublayer:
    return FeedForwardSublayer(
        config.model_width, config.feed_forward_width, dropout=config.dropout, epsilon=config.layer_norm_epsilon
    )


def _exact(slots: Tensor, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    if dtype is not None:
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return slots.to(device=device, dtype=dtype)
