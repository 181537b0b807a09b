"""What models with relative positions share: layers of attention over [slots ; tokens] and tables of distances.

Shapes: B lanes, T tokens of this call, M slots, S = M + tokens of the segment so far, H heads, K head width, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from remanence.errors import InputError
from remanence.memory import Distances
from remanence.models.base import Extras, LanguageModel, ModelConfig
from remanence.models.flops import Flops
from remanence.nn.layer import Layer
from remanence.nn.positions import sinusoids
from remanence.recording import may_look
from remanence.rows import append


@dataclass(frozen=True, kw_only=True)
class RelativeConfig(ModelConfig):
    """The settings of models whose attention knows distances."""

    norm: Literal["post", "pre"] = "post"
    clamp_length: int | None = None
    """Distances beyond this are treated as this one."""
    same_length: bool = False
    """Every query sees the same number of keys: distances below the memory length only."""
    share_position_biases: bool = True
    """One pair of biases u, v for all layers, instead of a pair for each."""
    attention_output_dropout: float | None = None
    """Dropout of what attention adds to the stream; that of everything else unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        memory_length: int = self.memory_length  # type: ignore[attr-defined]
        rate = self.attention_output_dropout
        self._require(rate is None or 0 <= rate < 1, "attention_output_dropout", "at least 0 and below 1, or left out")
        self._require(self.clamp_length is None or self.clamp_length >= 1, "clamp_length", "1 or more, or left out")
        self._require(not (self.same_length and memory_length == 0), "same_length", "false without a memory")


class RelativeModel(LanguageModel):
    """The layers, and what their attention needs to know of distances."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layers: Any = nn.ModuleList(
            Layer(
                config.model_width,
                config.num_heads,
                config.head_width,
                config.feed_forward_width,
                norm=config.norm,
                dropout=config.dropout,
                attention_output_dropout=config.attention_output_dropout,
                epsilon=config.layer_norm_epsilon,
                relative=config.position not in ("absolute", "learned"),
            )
            for _ in range(config.num_layers)
        )

    def advance(self, tokens: Tensor, memory: Any, starts: Tensor | None = None, lengths: Tensor | None = None) -> Any:
        memory, lengths = self._prepare(tokens, memory, starts, lengths, close=True)
        _, memory, _ = self._read(tokens, memory, lengths, keep=False, extras=False, predict=False)
        return self._close(memory, lengths)

    @abstractmethod
    def _read(
        self, tokens: Tensor, memory: Any, lengths: Tensor | None, *, keep: bool, extras: bool, predict: bool = True
    ) -> tuple[Tensor, Any, Extras]:
        """As in LanguageModel. Without `predict` the first result is not used, so the last layer may be left out."""

    def distances(self, segment_length: int | None = None, memory_length: int | None = None) -> Distances:
        """The largest distances that occur with such lengths (default: the configuration's)."""
        segment = self.config.segment_length if segment_length is None else segment_length
        memory = self.config.memory_length if memory_length is None else memory_length
        back = memory - 1 if self.config.same_length else memory + segment - 1
        return Distances(back=self._clamp(back), ahead=None)

    def _count_layers(self, flops: Flops, lanes: int, tokens: int, slots: int) -> None:
        """Layers whose tokens ask the slots and one another, and tables of all distances between them."""
        config, inner = self.config, self.config.num_heads * self.config.head_width
        relative = config.position not in ("absolute", "learned")
        for _ in self.layers:
            flops.add_rows(lanes * tokens, config)
            # Slots are constants to a horizon of one segment, but not what a norm makes of them.
            flops.add(
                "memory", lanes * slots, config.model_width, 2 * inner, gradients=1 if config.norm == "post" else 2
            )
            flops.add_attention(lanes, tokens, slots + tokens, inner, positions=config.position != "absolute")
            if relative:
                flops.add("distances", slots + tokens, config.model_width, inner, gradients=1)

    def _slots(self, lanes: int, length: int | None) -> int:
        slots = super()._slots(lanes, length)
        if self.config.same_length and slots == 0:
            raise InputError("A memory of length 0 was asked for, but with same_length every query would see nothing.")
        return slots

    def _codes(self, distances: Tensor, dtype: torch.dtype) -> Tensor:
        """Sinusoids of distances, (P, D), dropped out once for all layers and directions."""
        return self._drop(sinusoids(distances, self.config.model_width, dtype), lanes=False)

    def _table_rows(self, memory: Any, num_keys: int) -> int:
        """How many distances an open segment keeps projected: enough for a whole segment, doubled when it is longer."""
        tokens = self.config.segment_length
        while memory.slots + tokens < num_keys:
            tokens *= 2
        return memory.slots + tokens

    def _room(self, memory: Any, num_keys: int, keep: bool) -> int | None:
        """For how many further tokens a new buffer of keys and values has room: to the end of an open segment.

        None where they slide on from segment to segment, which leaves it to `append`; 0 where nothing is kept.
        """
        if keep or memory.opened:
            return self._table_rows(memory, num_keys) - num_keys
        return None if getattr(memory, "keys", ()) else 0

    def _clamp(self, distance: int) -> int:
        return distance if self.config.clamp_length is None else min(distance, self.config.clamp_length)

    def _check_memory(self, memory: Any) -> None:
        if self.config.same_length and memory.length == 0:
            raise InputError("The memory has length 0, but with same_length every query would see nothing; resize it.")


def joined(earlier: Tensor, rows: Tensor, room: int | None) -> Tensor:
    """Keys or values of [slots ; tokens so far], (B, H, S, K); those that are there are not copied (`rows.append`).

    What single tokens extend is kept in float32 or better on a CPU (`ops/attention/single.py`).
    """
    if rows.shape[2] == 1 and rows.device.type == "cpu" and not torch.is_grad_enabled():
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return append(earlier, rows, 2, room)


class Projected:
    """A table of codes as each layer projects it, (P, H, K), made when the layer asks for it.

    So a layer's weights are used in one place, which is where they are gathered when they lie in shares.
    No `Sequence` by its type: whoever checks the types of elements would project for that.
    """

    def __init__(self, layers: Any, codes: Float[Tensor, "P D"]) -> None:
        self.layers, self.codes = layers, codes

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, number: int) -> Any:
        return self.layers[number].project_positions(self.codes)

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))


def laid_out(table: Float[Tensor, "P H K"]) -> Float[Tensor, "P H K"]:
    """The same table as single tokens read it fastest: one head after the other, on a CPU in float32 or better."""
    if torch.is_grad_enabled():
        return table
    dtype = torch.promote_types(table.dtype, torch.float32) if table.device.type == "cpu" else table.dtype
    return table.to(dtype).transpose(0, 1).contiguous().transpose(0, 1)


def visible_keys(
    valid: Bool[Tensor, "B M"], opened: int, new: int, same_length: bool, window: int | None = None
) -> Bool[Tensor, "#B T S"] | None:
    """Which of the keys [M slots; tokens of the segment so far] each of the `new` last tokens may see.

    With same_length those less than `window` away (default: M). None where a single token sees all that there is.
    """
    slots = valid.shape[1]
    if new == 1 and not same_length:
        if slots and may_look(valid.device) and bool(valid.all()):
            # As soon as every slot was written there is nothing to hide, which costs less to find out than to mask.
            return None
        return None if not slots else torch.cat([valid, valid.new_ones(len(valid), opened + 1)], dim=1)[:, None]
    keys = slots + opened + new
    query = torch.arange(keys - new, keys, device=valid.device)[:, None]
    distance = query - torch.arange(keys, device=valid.device)
    seen = distance >= 0
    if same_length:
        seen &= distance < (slots if window is None else window)
    if slots == 0:
        return seen[None]
    return torch.cat([seen[:, :slots] & valid[:, None], seen[:, slots:].expand(len(valid), -1, -1)], dim=2)


def mass_by_distance(weights: Float[Tensor, "B H T S"] | None) -> Float[Tensor, "H S"]:
    """Mean attention weight at each distance, 0 first, over lanes and queries."""
    assert weights is not None
    weights = weights.detach().double().mean(0)
    num_queries, num_keys = weights.shape[1:]
    distance = num_keys - num_queries + torch.arange(num_queries)[:, None] - torch.arange(num_keys)
    # What lies in the future has no weight; it is counted at distance 0, where it changes nothing.
    index = distance.clamp(min=0).flatten().to(weights.device)
    mass = weights.new_zeros(weights.shape[0], num_keys)
    return (mass.index_add_(1, index, weights.flatten(1)) / num_queries).float()


def attention_received(
    weights: Float[Tensor, "B H T S"] | None, lengths: Int[Tensor, " B"] | None = None
) -> Float[Tensor, "B S"]:
    """The attention that each key received, added up over heads and the real queries of each lane."""
    assert weights is not None
    weights = weights.detach()
    weights = weights.to(torch.float64 if weights.dtype == torch.float64 else torch.float32).sum(1)
    if lengths is not None:
        weights = weights * (torch.arange(weights.shape[1], device=weights.device) < lengths[:, None])[..., None]
    return weights.sum(1)
