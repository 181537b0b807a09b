"""LaMemo: memory slots look ahead at newer tokens and blend what they see with what they held.

At every segment the M slots pass through the layers again beside the T tokens, starting from their embeddings E. In
each layer but the last a slot reads what is new to its right, up to the first token of the segment, and adds that to
the attention output C (with the log S of its softmax denominator) that it kept:

    c_i  = attention of token i over [slots ; tokens up to i],  scores (q_i + u) k_j + (q_i + v) r_{i-j}
    c'_i = attention of slot i over the window to its right,    scores (q_i + u') k_j + (q_i + v') rho_{j-i}
    alpha_i = e^{S_i} / (e^{S_i} + e^{S'_i});  C_i <- alpha_i C_i + (1 - alpha_i) c'_i;  S_i <- log(e^{S_i} + e^{S'_i})

The window begins where the last one ended: one past the first token of the PREVIOUS segment. Only the first token of a
segment is seen by the slots, so a segment can be opened, extended token by token, and closed with the same numbers.

Source: Ji et al., "LaMemo: Language Modeling with Look-Ahead Memory", NAACL 2022 (arXiv 2204.07341), and its published
code. Shapes: B lanes, T tokens, M slots, S = M + T keys, n keys of the window, H heads, K head width, D width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remanence.memory import Distances, Memory, derived, newest, per_lane, per_slot, static
from remanence.models.base import Extras
from remanence.models.flops import Flops
from remanence.models.relative import RelativeConfig, RelativeModel, joined, laid_out, mass_by_distance, visible_keys
from remanence.nn.layer import Layer
from remanence.nn.relative import DirectionBiases, falling, tightest
from remanence.ops.attention import relative_attention
from remanence.ops.look_ahead import look_ahead, merge
from remanence.rows import append


@dataclass(frozen=True, kw_only=True)
class LaMemoConfig(RelativeConfig):
    """LaMemo with M slots. The four published variants are named by `position` and `window`."""

    architecture: ClassVar[str] = "lamemo"
    memory_length: int
    """M, the slots; another number may be used at any time."""
    position: Literal["disentangled", "transformer-xl", "disentangled-content"] = "disentangled"
    """How looking ahead differs from looking back: by an own v, by the sign of the distance, or by an own u and v."""
    window: Literal["right", "full"] = "right"
    """Whether slots see only keys to their right, or every key of the window."""
    interpolation_epsilon: float = 1e-6
    look_ahead_init: Literal["normal", "xavier"] = "normal"
    """Initial values of the look-ahead biases: N(0, 0.02), or Xavier-uniform as in published training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.interpolation_epsilon >= 0, "interpolation_epsilon", "0 or more")
        self._require(
            self.window == "right" or self.position == "disentangled",
            "window",
            "'right' unless position is 'disentangled' (no other combination is published)",
        )


@dataclass(frozen=True)
class OpenSegment(Memory, kind="lamemo-segment"):
    """A segment that is still being read: what its next tokens attend to, and what it will leave behind."""

    keys: tuple[Float[Tensor, "B H S K"], ...] = per_lane()
    """For each layer, of the slots and of the tokens so far; empty when the segment closes with this call."""
    values: tuple[Float[Tensor, "B H S K"], ...] = per_lane()
    embedding: Float[Tensor, "B T D"] = per_lane()
    context: tuple[Float[Tensor, "B T H K"], ...] = per_lane()
    logsum: tuple[Float[Tensor, "B T H"], ...] = per_lane()
    tables: tuple[Float[Tensor, "P H K"], ...] = derived(default=())
    """Projected distances of each layer, largest first."""


@dataclass(frozen=True)
class LaMemoMemory(Memory, kind="lamemo"):
    """The slots: their embeddings, and what they have read so far in each layer but the last."""

    embedding: Float[Tensor, "B M D"] = per_slot()
    context: tuple[Float[Tensor, "B M H K"], ...] = per_slot()
    """C: attention output before W_O, normalised."""
    logsum: tuple[Float[Tensor, "B M H"], ...] = per_slot()
    """S: log of the softmax denominator of C, float32 or better."""
    valid: Bool[Tensor, "B M"] = per_slot()
    """False where nothing was written since the lane last started a document."""
    last_length: Int[Tensor, " B"] = per_lane()
    """Tokens of the previous segment."""
    window: int = static(default=1, join=max)
    """No lane's last_length is larger: what the shapes of the look-ahead depend on."""
    hold: Distances | None = static(default=None)
    segment: OpenSegment | None = per_lane(default=None)
    """While one is open, context and logsum are already merged with what its first token showed."""

    @property
    def opened(self) -> int:
        return 0 if self.segment is None else self.segment.embedding.shape[1]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LaMemoMemory:
        """Log-sums stay in float32 or better."""
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        moved = super().to(device, dtype)
        logsum = tuple(tensor.to(device=device, dtype=exact) for tensor in self.logsum)
        segment = moved.segment
        if segment is not None and self.segment is not None:
            rows = tuple(tensor.to(device=device, dtype=exact) for tensor in self.segment.logsum)
            segment = dataclasses.replace(segment, logsum=rows)
        return dataclasses.replace(moved, logsum=logsum, segment=segment)


class _Window(NamedTuple):
    """What the slots may read in this segment, the same in every layer."""

    keys: slice
    """Where the n keys lie among [slots ; tokens]."""
    visible: Bool[Tensor, "B M n"]
    active: Bool[Tensor, "B M"]
    """Slots that look ahead at all: written ones, on lanes that read a token."""
    rows: Int[Tensor, " P"]
    """Rows of the table of distances for d = 2 - n .. M."""


class _Tables(NamedTuple):
    """Distances that each layer projects when it is read, so that its weights are used in one place."""

    codes: Float[Tensor, "P D"]
    back_rows: Int[Tensor, " S"]
    ahead_codes: Float[Tensor, "N D"] | None
    """Where looking ahead has codes of its own."""
    ahead_rows: Int[Tensor, " n"] | None

    def of(self, layer: Layer, *, looks_ahead: bool) -> tuple[Tensor, Tensor | None]:
        """The tables of one layer for looking back and, where it does, ahead."""
        projected = layer.project_positions(self.codes)
        back = projected.index_select(0, self.back_rows)
        if self.ahead_rows is None or not looks_ahead:
            return back, None
        if self.ahead_codes is not None:
            projected = layer.project_positions(self.ahead_codes)
        return back, projected.index_select(0, self.ahead_rows)


class LaMemo(RelativeModel):
    """A Transformer-XL whose slots are refreshed at every segment. As published it carries no gradient (section 3)."""

    config_class = LaMemoConfig
    memory_class = LaMemoMemory
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        layers = None if config.share_position_biases else config.num_layers
        shape = (layers, config.num_heads, config.head_width)
        self.biases = DirectionBiases(*shape, content=True, position=True)
        self.ahead_biases = DirectionBiases(
            *shape,
            content=config.position == "disentangled-content",
            position=config.position != "transformer-xl",
        )

    def initialize(self, generator: torch.Generator) -> None:
        super().initialize(generator)
        if self.config.look_ahead_init == "xavier":
            reach = (6 / (self.config.num_heads + self.config.head_width)) ** 0.5
            for bias in self.ahead_biases.parameters():
                if not bias.is_meta:
                    drawn = torch.rand(bias.shape, generator=generator, dtype=torch.float32, device="cpu")
                    bias.data.copy_(drawn * 2 * reach - reach)

    def init_memory(self, lanes: int, length: int | None = None, hold: Distances | None = None) -> LaMemoMemory:
        slots = self._slots(lanes, length)
        table = self.embedding.tables[0]
        shape = (lanes, slots, self.config.num_heads)
        exact = torch.float64 if table.dtype == torch.float64 else torch.float32
        stored = range(self.config.num_layers - 1)
        return LaMemoMemory(
            embedding=table.new_zeros(lanes, slots, self.config.model_width),
            context=tuple(table.new_zeros(*shape, self.config.head_width) for _ in stored),
            logsum=tuple(table.new_zeros(shape, dtype=exact) for _ in stored),
            valid=table.new_zeros(lanes, slots, dtype=torch.bool),
            last_length=table.new_zeros(lanes, dtype=torch.long),
            window=self.config.segment_length,
            hold=hold,
        )

    def distances(self, segment_length: int | None = None, memory_length: int | None = None) -> Distances:
        ahead = self.config.memory_length if memory_length is None else memory_length
        if self.config.position != "transformer-xl":
            ahead = self._clamp(ahead)
        return dataclasses.replace(super().distances(segment_length, memory_length), ahead=ahead)

    def _read(
        self, tokens: Tensor, memory: Any, lengths: Tensor | None, *, keep: bool, extras: bool, predict: bool = True
    ) -> tuple[Tensor, Any, Extras]:
        embedded = self._embed(tokens)
        if memory.opened:
            return self._extend(embedded, memory, extras=extras)
        slots, new = memory.length, embedded.shape[1]
        num_keys = slots + new
        visible = visible_keys(memory.valid, 0, new, self.config.same_length)
        window = self._window(memory, lengths) if slots else None
        rows = self._table_rows(memory, num_keys) if keep else num_keys
        tables = self._tables(rows, memory, window, embedded)

        # The joint stream: slots, then tokens. The last layer's slots would be read by nobody.
        stream = torch.cat([memory.embedding.to(embedded.dtype), embedded], dim=1)
        contexts, logsums, alphas, token_contexts, token_logsums, kept, mass, backs = [], [], [], [], [], [], [], []
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            if last and not predict:
                break
            back, ahead = tables.of(layer, looks_ahead=not last)
            if last:
                slot_stream, stream = stream.split([slots, new], dim=1)
                queries, keys, values = layer.project(stream)
                earlier = layer.project_keys_values(slot_stream)
                keys, values = (torch.cat(pair, dim=2) for pair in zip(earlier, (keys, values), strict=True))
                slot_queries = None
            else:
                queries, keys, values = layer.project(stream)
                slot_queries, queries = queries.split([slots, new], dim=2)
            read = self._look_back(number, queries, keys, values, visible, back[-num_keys:], not last, extras)
            context = read.context
            if not last:
                assert read.logsum is not None and slot_queries is not None
                token_contexts.append(context.transpose(1, 2))
                token_logsums.append(read.logsum.transpose(1, 2))
                if window is None:
                    contexts.append(memory.context[number])
                    logsums.append(memory.logsum[number])
                else:
                    assert ahead is not None
                    merged, logsum, alpha = self._look_ahead(number, slot_queries, keys, values, memory, window, ahead)
                    contexts.append(merged)
                    logsums.append(logsum)
                    alphas.append(alpha)
                    context = torch.cat([merged.transpose(1, 2).to(context.dtype), context], dim=2)
            stream = layer.finish(stream, context)
            if keep:
                kept.append((keys, values))
                backs.append(laid_out(back))
            if extras:
                mass.append(mass_by_distance(read.weights))
        segment = OpenSegment(
            keys=tuple(keys for keys, _ in kept),
            values=tuple(values for _, values in kept),
            embedding=embedded,
            context=tuple(token_contexts),
            logsum=tuple(token_logsums),
            tables=tuple(backs),
        )
        memory = dataclasses.replace(memory, context=tuple(contexts), logsum=tuple(logsums), segment=segment)
        told = Extras(interpolation=tuple(alphas), attention_mass=torch.stack(mass)) if extras else Extras()
        return stream, memory, told

    def _extend(self, embedded: Tensor, memory: Any, *, extras: bool) -> tuple[Tensor, Any, Extras]:
        """Further tokens of an open segment: plain Transformer-XL decoding, the slots are not touched."""
        opened, new = memory.segment, embedded.shape[1]
        num_keys = memory.length + memory.opened + new
        visible = visible_keys(memory.valid, memory.opened, new, self.config.same_length)
        room = self._room(memory, num_keys, keep=True)
        tables = opened.tables
        if not tables or tables[0].shape[0] < num_keys:
            made = self._tables(self._table_rows(memory, num_keys), memory, None, embedded)
            tables = tuple(laid_out(made.of(layer, looks_ahead=False)[0]) for layer in self.layers)
        stream, contexts, logsums, kept, mass = embedded, [], [], [], []
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            queries, keys, values = layer.project(stream)
            keys, values = joined(opened.keys[number], keys, room), joined(opened.values[number], values, room)
            table = tables[number][-num_keys:]
            read = self._look_back(number, queries, keys, values, visible, table, not last, extras)
            if not last:
                assert read.logsum is not None
                contexts.append(append(opened.context[number], read.context.transpose(1, 2), room=room))
                logsums.append(append(opened.logsum[number], read.logsum.transpose(1, 2), room=room))
            stream = layer.finish(stream, read.context)
            kept.append((keys, values))
            if extras:
                mass.append(mass_by_distance(read.weights))
        segment = OpenSegment(
            keys=tuple(keys for keys, _ in kept),
            values=tuple(values for _, values in kept),
            embedding=append(opened.embedding, embedded, room=room),
            context=tuple(contexts),
            logsum=tuple(logsums),
            tables=tables,
        )
        told = Extras(attention_mass=torch.stack(mass)) if extras else Extras()
        return stream, dataclasses.replace(memory, segment=segment), told

    def _close(self, memory: Any, lengths: Tensor | None) -> LaMemoMemory:
        segment, read = memory.segment, memory.opened
        fold = partial(self._fold, lengths=lengths)
        last_length, window = torch.full_like(memory.last_length, read), read
        if lengths is not None:
            last_length = torch.where(lengths > 0, lengths, memory.last_length)
            window = max(read, memory.window)
        return dataclasses.replace(
            memory,
            embedding=fold(memory.embedding, segment.embedding),
            context=tuple(map(fold, memory.context, segment.context)),
            logsum=tuple(map(fold, memory.logsum, segment.logsum)),
            valid=newest(memory.valid, memory.valid.new_ones(memory.lanes, read), lengths),
            last_length=last_length,
            window=window,
            segment=None,
        )

    def _count(self, flops: Flops, lanes: int, segment: int, memory: int) -> None:
        """In all layers but the last, the slots are rows like the tokens, and each looks at n = min(T, M) keys."""
        config, inner, keys = self.config, self.config.num_heads * self.config.head_width, memory + segment
        ahead = min(segment, memory)
        for number in range(config.num_layers):
            last = number == config.num_layers - 1
            flops.add_rows(lanes * (segment if last else keys), config)
            flops.add_attention(lanes, segment, keys, inner, positions=True)
            if last:
                flops.add("memory", lanes * memory, config.model_width, 2 * inner)
            else:
                flops.add("look-ahead", lanes * memory, inner, 3 * ahead)
            if config.position == "transformer-xl" and memory and not last:
                flops.add("distances", memory + 1, config.model_width, inner, gradients=1)
        distances = keys if config.clamp_length is None else min(keys, config.clamp_length + 1)
        flops.add("distances", distances, config.model_width, config.num_layers * inner, gradients=1)

    # Looking back and looking ahead in one layer

    def _look_back(
        self,
        number: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        visible: Tensor | None,
        table: Tensor,
        logsum: bool,
        weights: bool,
    ) -> Any:
        content, position = self.biases.of(number)
        return relative_attention(
            queries,
            keys,
            values,
            visible,
            content_bias=content,
            position_bias=position,
            positions=table,
            dropout=self._attention_dropout,
            with_logsum=logsum,
            with_weights=weights,
        )

    def _look_ahead(
        self, number: int, queries: Tensor, keys: Tensor, values: Tensor, memory: Any, window: _Window, table: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Context, log-sum and alpha of the slots after reading their window."""
        content, position = self.biases.of(number)
        own_content, own_position = self.ahead_biases.of(number)
        seen = look_ahead(
            queries,
            keys[:, :, window.keys],
            values[:, :, window.keys],
            window.visible,
            content_bias=content if own_content is None else own_content,
            position_bias=position if own_position is None else own_position,
            positions=table,
            forward_only=self.config.window == "right",
            dropout=self._attention_dropout,
        )
        assert seen.logsum is not None
        return merge(
            memory.context[number],
            memory.logsum[number],
            seen.context.transpose(1, 2),
            seen.logsum.transpose(1, 2),
            window.active,
            self.config.interpolation_epsilon,
        )

    # What is the same in every layer

    def _window(self, memory: Any, lengths: Tensor | None) -> _Window:
        """Keys a .. M, a = max(M - last_length, M - written) + 1: what no slot has read yet."""
        slots, device = memory.length, memory.valid.device
        num_keys = min(memory.window, slots)
        slot = torch.arange(slots, device=device)
        key = torch.arange(slots - num_keys + 1, slots + 1, device=device)
        written = memory.valid.sum(1)
        first = torch.maximum(slots - memory.last_length, slots - written) + 1
        visible = (key >= first[:, None])[:, None].expand(-1, slots, -1)
        if self.config.window == "right":
            visible = visible & (key > slot[:, None])
        active = memory.valid if lengths is None else memory.valid & (lengths > 0)[:, None]
        distances = torch.arange(2 - num_keys, slots + 1, device=device)
        # Keys on the left occur with window="full" only, where |d| counts.
        rows = distances.abs().clamp(max=self._ahead_limit(memory))
        return _Window(slice(slots - num_keys + 1, slots + 1), visible, active, rows)

    def _tables(self, num_keys: int, memory: Any, window: _Window | None, like: Tensor) -> _Tables:
        """The distances S - 1 .. 0 (looking back) and 2 - n .. M (looking ahead).

        Each distance is projected once, and dropped out once, for both directions.
        """
        limit = tightest(self.config.clamp_length, memory.hold.back if memory.hold else None, num_keys - 1)
        back_rows = falling(num_keys, limit, like.device)
        mirrored = self.config.position == "transformer-xl"
        largest = int(limit or 0)
        if window is not None and not mirrored:
            largest = max(largest, self._ahead_limit(memory))
        codes = self._codes(torch.arange(largest + 1, device=like.device), like.dtype)
        ahead_codes = None
        if window is not None and mirrored:
            negative = -torch.arange(self._ahead_limit(memory) + 1, device=like.device)
            ahead_codes = self._codes(negative, like.dtype)
        return _Tables(codes, back_rows, ahead_codes, None if window is None else window.rows)

    def _ahead_limit(self, memory: Any) -> int:
        """The largest distance ahead: the number of slots, unless clamped (never for signed distances) or held."""
        clamp = None if self.config.position == "transformer-xl" else self.config.clamp_length
        limit = tightest(clamp, memory.hold.ahead if memory.hold else None, memory.length)
        assert limit is not None
        return limit

    def _check_memory(self, memory: Any) -> None:
        super()._check_memory(memory)
        if len(memory.context) != len(self.layers) - 1:
            raise self._misfit("number of layers", len(memory.context) + 1, len(self.layers))
        if memory.embedding.shape[-1] != self.config.model_width:
            raise self._misfit("width", memory.embedding.shape[-1], self.config.model_width)
        shape = (self.config.num_heads, self.config.head_width)
        if memory.context and tuple(memory.context[0].shape[-2:]) != shape:
            raise self._misfit("heads and head width", tuple(memory.context[0].shape[-2:]), shape)

    def _fold(self, held: Tensor, rows: Tensor, lengths: Tensor | None) -> Tensor:
        """What a slot tensor is once its segment is over."""
        # Every slot but the newest was merged anew, so that nothing is saved by leaving the others where they are.
        return newest(self._cut(held), self._cut(rows).to(held.dtype), lengths, room=0)
