"""Compressive Transformer: rows that leave a layer's memory are squeezed into a second, coarser one.

    context  [cm^l ; m^l ; h^l],  attention and everything else as in Transformer-XL
    old   <- the oldest whole groups of c rows by which [m^l ; stopgrad(h^l)] is longer than M;  m^l <- the others
    cm^l  <- newest C rows of [cm^l ; stopgrad(f_c(stopgrad(old)))]

    loss  || attn(h, old) - attn(h, f_c(old)) ||^2  or  || old - g(f_c(old)) ||^2,  reaching f_c and g alone

Source: Rae, Potapenko, Jayakumar, Hillier, Lillicrap, "Compressive Transformers for Long-Range Sequence Modelling",
ICLR 2020 (arXiv 1911.05507). Shapes: B lanes, T tokens, M raw and C compressed slots, c rate, R = C + M + c - 1 rows
that hold both, E evicted rows, G = E / c groups, H heads, K head width, D width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import ModuleList
from torch.nn import functional as F

from remanence.errors import InputError
from remanence.memory import Distances, per_lane, static
from remanence.models.base import Extras
from remanence.models.flops import Flops
from remanence.models.relative import visible_keys
from remanence.models.transformer_xl import PROJECTIONS, QueueMemory, TransformerXL, TransformerXLConfig
from remanence.nn.compression import Convolution, DilatedConvolutions, TransposedConvolution
from remanence.ops.attention import Read
from remanence.ops.attention.relative import read
from remanence.ops.compression import (
    Eviction,
    attention_loss,
    autoencoding_loss,
    evict,
    gather,
    max_pooling,
    mean_pooling,
    most_used,
)

Auxiliary = Literal["attention", "autoencoding", "none"]

LEARNED = ("conv", "dilated")
"""Compressions that have weights."""


@dataclass(frozen=True, kw_only=True)
class CompressiveConfig(TransformerXLConfig):
    """A Transformer-XL with M raw and C compressed slots in every layer."""

    architecture: ClassVar[str] = "compressive"
    compressed_length: int | None = None
    """C, the compressed rows each layer keeps; as many as memory_length unless given."""
    compression_rate: int = 2
    """c, the rows that one compressed row stands for; divides the segment length."""
    compression: Literal["conv", "mean", "max", "dilated", "most-used"] = "conv"
    """How c rows become one: learned convolutions, pooling, or dropping those that were read least."""
    auxiliary: Auxiliary | None = None
    """What a learned compression is trained by: keeping what attention reads, or what the rows were. Attention unless
    given; none where there is nothing to learn, or where the memory carries gradients instead."""
    auxiliary_weight: float = 1.0
    """The auxiliary loss counts this many times."""
    compressed_position: Literal["slot", "centre"] = "slot"
    """A compressed row counts as one step, or stands where the middle of its c tokens stood."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require = self._require
        require(self.compressed_length is None or self.compressed_length >= 0, "compressed_length", "0 or more")
        require(self.compression_rate >= 1, "compression_rate", "1 or more")
        require(
            self.segment_length % self.compression_rate == 0,
            "compression_rate",
            f"a divisor of the segment length {self.segment_length}, so that every segment of training evicts whole "
            "groups (other segments may be read at any time)",
        )
        reach = DilatedConvolutions.REACH
        require(
            self.compression != "dilated" or self.compression_rate <= reach,
            "compression_rate",
            f"at most {reach} with dilated convolutions, which see {reach} rows and would lose those between",
        )
        require(
            self.auxiliary is None or self.auxiliary in get_args(Auxiliary),
            "auxiliary",
            f"one of {', '.join(map(repr, get_args(Auxiliary)))}, or left out",
        )
        if self.compression not in LEARNED:
            nothing = f"none, or left out, for {self.compression!r} has nothing to learn"
            require(self.auxiliary in (None, "none"), "auxiliary", nothing)
        elif not self.memory_gradient:
            taught = f"attention or autoencoding, or memory_gradient true: else nothing teaches {self.compression!r}"
            require(self.auxiliary != "none", "auxiliary", taught)
        require(self.auxiliary_weight > 0, "auxiliary_weight", "above 0; give auxiliary = 'none' to go without")
        require(self.position == "relative", "position", "'relative' in a compressive")
        require(self.memory_init == "empty", "memory_init", "'empty' in a compressive, or zeros would be compressed")

    @property
    def compressed_slots(self) -> int:
        """C, resolved."""
        return self.memory_length if self.compressed_length is None else self.compressed_length

    @property
    def auxiliary_kind(self) -> Auxiliary:
        """The auxiliary loss, resolved."""
        if self.auxiliary is None:
            return "attention" if self.compression in LEARNED else "none"
        return self.auxiliary

    def without_effect(self) -> tuple[str, ...]:
        if self.compressed_slots or self.compression not in LEARNED:
            return ()
        return (
            f"model.compressed_length is 0, so the {self.compression!r} compression is never used nor trained; give 1 "
            "or more, or take the architecture transformer-xl.",
        )


@dataclass(frozen=True, kw_only=True)
class CompressiveMemory(QueueMemory, kind="compressive"):
    """What every layer kept: compressed rows, then raw ones, in one right-aligned queue of R rows."""

    raw: Int[Tensor, " B"] = per_lane()
    """How many of the newest rows are raw: up to M + c - 1, since only whole groups leave."""
    compressed_length: int = static()
    """C."""
    rate: int = static()
    """c."""

    @property
    def group(self) -> int:
        """Rows that leave together: c, or 1 where nothing is compressed."""
        return self.rate if self.compressed_length else 1

    @property
    def length(self) -> int:
        """M, the raw slots, without those that wait for their group to be whole."""
        return self.slots - self.compressed_length - self.group + 1

    def resize(self, length: int, compressed_length: int | None = None) -> CompressiveMemory:
        """M raw slots, and C compressed ones where given: the newest rows are kept, raw ones first.

        Of a raw memory made shorter the oldest rows stay as they are, in place of the oldest compressed ones.
        """
        if compressed_length is not None and compressed_length < 0:
            raise InputError(f"A compressed length of {compressed_length} was given; it must be 0 or more.")
        sized = self if compressed_length is None else dataclasses.replace(self, compressed_length=compressed_length)
        compressed, group = sized.compressed_length, sized.group
        fitted = super().resize(length if length < 0 else rows(length, compressed, group))
        raw = fitted.raw.clamp(max=length + group - 1)
        age = torch.arange(fitted.slots - 1, -1, -1, device=raw.device)
        kept = age < (raw + compressed)[:, None]
        return dataclasses.replace(
            fitted,
            hidden=tuple(held * kept[..., None] for held in fitted.hidden),
            valid=fitted.valid & kept,
            raw=raw,
            compressed_length=compressed,
        )

    def check(self) -> None:
        super().check()
        for name in ("compressed_length", "rate"):
            if type(getattr(self, name)) is not int:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but it must be a whole number")
        if self.compressed_length < 0 or self.rate < 1 or self.length < 0:
            raise ValueError(f"{self.slots} rows are no memory of {self.compressed_length} compressed slots")
        most = self.valid.sum(1).clamp(max=self.length + self.group - 1)
        if ((self.raw < 0) | (self.raw > most)).any():
            raise ValueError(f"{self.raw.tolist()} rows of its lanes are said to be raw, of {most.tolist()} at most")


def rows(memory_length: int, compressed_length: int, rate: int) -> int:
    """R, the rows that hold both memories; without compressed slots nothing waits for its group."""
    return compressed_length + memory_length + (rate - 1 if compressed_length else 0)


class CompressiveTransformer(TransformerXL):
    """Reads a segment after recent hidden states and a summary of older ones. As published no gradient passes."""

    config_class = CompressiveConfig
    memory_class = CompressiveMemory

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        kinds: dict[str, Any] = {"conv": Convolution, "dilated": DilatedConvolutions}
        shape = (config.model_width, config.compression_rate)
        if config.compression in LEARNED:
            self.compressors: Any = ModuleList(kinds[config.compression](*shape) for _ in self.layers)
        if config.auxiliary_kind == "autoencoding":
            self.rebuilders: Any = ModuleList(TransposedConvolution(*shape) for _ in self.layers)

    @classmethod
    def from_transformer_xl(cls, model: TransformerXL, **settings: Any) -> CompressiveTransformer:
        """A compressive Transformer that begins with the weights of a Transformer-XL, and with mean pooling.

        `settings` are those of `CompressiveConfig`; what is left out is as in the model. With a rate of 1, or without
        compressed slots, it reads as the model does.
        """
        known = {field.name: getattr(model.config, field.name) for field in dataclasses.fields(TransformerXLConfig)}
        weight = model.embedding.tables[0]
        made = cls(CompressiveConfig(**known | settings)).to(weight.dtype)
        made.initialize(torch.Generator().manual_seed(0))
        made.load_state_dict(made.state_dict() | model.state_dict())
        return made.to(weight.device).train(model.training)

    def initialize(self, generator: torch.Generator) -> None:
        super().initialize(generator)
        for module in self.modules():
            if isinstance(module, Convolution | DilatedConvolutions | TransposedConvolution):
                module.initialize(generator)

    def init_memory(
        self,
        lanes: int,
        length: int | None = None,
        hold: Distances | None = None,
        compressed_length: int | None = None,
    ) -> CompressiveMemory:
        """An empty memory of `length` raw slots and `compressed_length` compressed ones (default: as configured)."""
        compressed = self.config.compressed_slots if compressed_length is None else compressed_length
        if compressed < 0:
            raise InputError(f"A memory of {compressed} compressed slots was asked for; give 0 or more.")
        slots = rows(self._slots(lanes, length), compressed, self.config.compression_rate)
        table = self.embedding.tables[0]
        return CompressiveMemory(
            hidden=tuple(table.new_zeros(lanes, slots, self.config.model_width) for _ in self.layers),
            valid=table.new_zeros(lanes, slots, dtype=torch.bool),
            raw=table.new_zeros(lanes, dtype=torch.long),
            compressed_length=compressed,
            rate=self.config.compression_rate,
            hold=hold,
        )

    def distances(self, segment_length: int | None = None, memory_length: int | None = None) -> Distances:
        config = self.config
        raw = config.memory_length if memory_length is None else memory_length
        compressed, rate = config.compressed_slots, config.compression_rate
        slots = raw + compressed if config.same_length else rows(raw, compressed, rate)
        if config.compressed_position == "centre" and compressed:
            slots += (rate - 1) * (compressed - 1) + (rate + 1) // 2 - 1
        return super().distances(segment_length, slots)

    def _read(
        self, tokens: Tensor, memory: Any, lengths: Tensor | None, *, keep: bool, extras: bool, predict: bool = True
    ) -> tuple[Tensor, Any, Extras]:
        hidden, memory, told = super()._read(tokens, memory, lengths, keep=keep, extras=extras, predict=predict)
        if self.training and predict and not keep and self.config.auxiliary_kind != "none":
            told = dataclasses.replace(told, auxiliary_loss=self._auxiliary_loss(memory, lengths))
        return hidden, memory, told

    def _close(self, memory: Any, lengths: Tensor | None) -> CompressiveMemory:
        if not memory.slots:
            return dataclasses.replace(memory, segment=None)
        eviction = self._evict(memory, lengths)
        kept: dict[str, list[Tensor]] = {name: [] for name in ("hidden", *(PROJECTIONS if memory.keys else ()))}
        for number, layer in enumerate(self.layers):
            joint = self._joint(memory, number)
            compressed = joint[:, :0]
            if eviction.old.shape[1]:
                squeezed = self._compress(number, gather(joint, eviction.old), memory, eviction)
                compressed = self._cut(squeezed).to(joint.dtype)
            kept["hidden"].append(_laid(joint, compressed, eviction))
            if memory.keys:
                segment = memory.segment
                joints = segment.keys[number], segment.values[number]
                for name, rows, added in zip(PROJECTIONS, joints, layer.project_keys_values(compressed), strict=True):
                    kept[name].append(_laid(rows.transpose(1, 2), added.transpose(1, 2), eviction))
        columns: dict[str, Any] = {name: tuple(rows) for name, rows in kept.items()}
        return dataclasses.replace(memory, valid=eviction.valid, raw=eviction.raw, segment=None, **columns)

    def _count(self, flops: Flops, lanes: int, segment: int, memory: int) -> None:
        config, inner = self.config, self.config.num_heads * self.config.head_width
        width, rate = config.model_width, config.compression_rate
        self._count_layers(flops, lanes, segment, rows(memory, config.compressed_slots, rate))
        groups = lanes * ((rate - 1 + segment) // rate) if config.compressed_slots else 0
        taught = int(config.auxiliary_kind != "none")
        for _ in self.layers if groups else ():
            if config.compression == "conv":
                flops.add("compression", groups, rate * width, width, gradients=taught)
            elif config.compression == "dilated":
                flops.add("compression", groups * rate, 3 * width, width, gradients=taught)
                flops.add("compression", groups, 3 * width, width, gradients=2 * taught)
            if config.auxiliary_kind == "autoencoding":
                flops.add("auxiliary loss", groups, width, rate * width, evaluated=False)
            elif config.auxiliary_kind == "attention":
                pairs = segment * groups
                flops.add("auxiliary loss", groups, width, 2 * inner, gradients=1, evaluated=False)
                flops.add("auxiliary loss", pairs * rate, inner, 2, gradients=0, evaluated=False)
                flops.add("auxiliary loss", pairs, inner, 1, gradients=1, evaluated=False)
                flops.add("auxiliary loss", pairs, inner, 1, evaluated=False)

    def _check_memory(self, memory: Any) -> None:
        super()._check_memory(memory)
        if memory.rate != self.config.compression_rate:
            raise self._misfit("compression rate", memory.rate, self.config.compression_rate)

    # Compression

    @property
    def counts_attention(self) -> bool:
        return self.config.compression == "most-used"

    def _evict(self, memory: Any, lengths: Tensor | None) -> Eviction:
        tokens = memory.opened
        count = torch.full_like(memory.raw, tokens) if lengths is None else lengths.to(memory.raw.dtype)
        return evict(memory.valid, memory.raw, count, tokens, memory.length, memory.compressed_length, memory.group)

    def _joint(self, memory: Any, number: int) -> Float[Tensor, "B N D"]:
        """[memory ; segment] of one layer; no gradient passes unless the memory carries it."""
        held = memory.hidden[number]
        return torch.cat([held, self._cut(memory.segment.hidden[number]).to(held.dtype)], dim=1)

    def _compress(
        self, number: int, old: Float[Tensor, "B E D"], memory: Any, eviction: Eviction
    ) -> Float[Tensor, "B G D"]:
        match self.config.compression:
            case "mean":
                return mean_pooling(old, memory.rate)
            case "max":
                return max_pooling(old, memory.rate)
            case "most-used":
                usage = gather(memory.segment.received[number], eviction.old)
                return most_used(old, usage, eviction.real, eviction.groups, memory.rate)
            case _:
                return self.compressors[number](old, eviction.real)

    def _auxiliary_loss(self, memory: Any, lengths: Tensor | None) -> Float[Tensor, " B"]:
        """Summed over the layers, and weighted. It reaches f_c and g alone (section 4 of the specification)."""
        exact = torch.float64 if memory.hidden[0].dtype == torch.float64 else torch.float32
        losses = torch.zeros(memory.lanes, dtype=exact, device=memory.raw.device)
        eviction = self._evict(memory, lengths)
        if not eviction.old.shape[1]:
            return losses
        asking = None
        if lengths is not None:
            asking = torch.arange(memory.opened, device=lengths.device) < lengths[:, None]
        for number, layer in enumerate(self.layers):
            old = gather(self._joint(memory, number).detach(), eviction.old)
            compressed = self._compress(number, old, memory, eviction)
            if self.config.auxiliary_kind == "autoencoding":
                losses = losses + autoencoding_loss(old, self.rebuilders[number](compressed), eviction.real)
                continue
            with torch.no_grad():
                (queries,) = layer.project_fixed(memory.segment.hidden[number], 0, 1)
                old_keys, old_values = layer.project_fixed(old, 1, 3)
            keys, values = layer.project_fixed(compressed, 1, 3)
            losses = losses + attention_loss(queries, old_keys, old_values, keys, values, eviction.groups, asking)
        return losses * self.config.auxiliary_weight

    # Positions

    def _visible(self, memory: Any, new: int) -> Tensor | None:
        window = memory.compressed_length + memory.length
        return visible_keys(memory.valid, memory.opened, new, self.config.same_length, window)

    def _tables(self, memory: Any, num_keys: int, keep: bool, like: Tensor) -> Any:
        return super()._tables(memory, num_keys + self._beyond(memory), keep, like)

    def _table_rows(self, memory: Any, num_keys: int) -> int:
        beyond = self._beyond(memory)
        return super()._table_rows(memory, num_keys - beyond) + beyond

    def _beyond(self, memory: Any) -> int:
        """How many more distances there are than keys."""
        return (memory.group - 1) * memory.compressed_length if self.config.compressed_position == "centre" else 0

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
        if not self._beyond(memory):
            return super()._attend(number, queries, keys, values, visible, tables, memory, with_weights)
        content_bias, position_bias = self.biases.of(number)
        scale = queries.shape[-1] ** -0.5
        distance = centre_distances(memory, queries.shape[2], keys.shape[2])
        table = tables[number][-(keys.shape[2] + self._beyond(memory)) :].permute(1, 2, 0)
        content = (queries + content_bias[:, None].to(queries.dtype)) * scale @ keys.transpose(-2, -1)
        position = (queries + position_bias[:, None].to(queries.dtype)) * scale @ table.to(queries.dtype)
        index = (table.shape[-1] - 1 - distance)[:, None].expand(-1, queries.shape[1], -1, -1)
        position = position.gather(3, index)
        return read(content, position, values, visible, self._attention_dropout, with_weights=with_weights)


def _laid(joint: Tensor, compressed: Tensor, eviction: Eviction) -> Tensor:
    """Rows of the next memory, from those of [memory ; segment] and the compressed ones; a row of zeros fills up."""
    return gather(torch.cat([joint, compressed, torch.zeros_like(joint[:, :1])], dim=1), eviction.rows)


def centre_distances(memory: CompressiveMemory, new: int, num_keys: int) -> Int[Tensor, "B T S"]:
    """How far back each key lies when a compressed row stands in the middle of its c tokens (rounded to the nearer).

    For the `new` last of the keys [slots ; tokens of the segment so far]; in the future 0.
    """
    slots, rate, device = memory.slots, memory.rate, memory.raw.device
    query = torch.arange(num_keys - new, num_keys, device=device)[:, None]
    distance = query - torch.arange(num_keys, device=device)
    older = torch.arange(slots - 1, -1, -1, device=device) - memory.raw[:, None]
    more = F.pad(older * (rate - 1) + (rate + 1) // 2 - 1, (0, num_keys - slots))
    more = torch.where(F.pad(older, (0, num_keys - slots), value=-1) >= 0, more, 0)
    limit = num_keys + (rate - 1) * memory.compressed_length - 1
    return (distance + more[:, None]).clamp(0, limit)
