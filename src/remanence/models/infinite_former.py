"""∞-former: what leaves the short-term memory is written into a continuous function that never ends.

Every layer keeps its M newest inputs as Transformer-XL does (the short-term memory, M may be 0). The vectors that leave
it at the end of a segment are a block, and the next segment begins by writing that block:

    B <- R [Psi(u) B ; gate(block)]        the old function squeezed into [0, tau], the block on (tau, 1], fitted again
    Z = W_O attention([slots ; tokens]) + W'_O E_{N(mu, sigma^2)}[value function],   mu, sigma from the same queries

Every token is written exactly once, in order. There is no edge where the past is cut off: the share of [0, 1] that a
block owns shrinks by tau with each later block, until N functions no longer resolve it. Where attention went in one
segment, the function is sampled more densely before the next (sticky memories).

Source: Martins, Marinho & Martins, "∞-former: Infinite Memory Transformer", ACL 2022 (arXiv 2109.00301), and its
published code. Shapes: B lanes, T tokens, M slots, C tokens of a block, N basis functions, J bins, H heads, D width.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from remanence.errors import InputError, SettingWarning
from remanence.memory import Distances, newest, per_lane
from remanence.models.base import Extras
from remanence.models.flops import Flops
from remanence.models.relative import joined, mass_by_distance
from remanence.models.transformer_xl import OpenSegment, TransformerXL, TransformerXLConfig, TransformerXLMemory
from remanence.nn.continuous import ContinuousMemory, Recall
from remanence.ops.continuous import (
    Basis,
    Fit,
    bin_masses,
    default_widths,
    densest,
    divergence,
    fold,
    radius,
    safe,
    uniforms,
)
from remanence.rows import append

LARGEST_OPERATOR = 1 << 28
"""Entries of the operator that turns a block into coefficients: 2 GiB in float64."""
LARGEST_CHECKED = 1 << 20
"""Entries up to which the spectral radius is computed where nothing else tells that a memory is stable."""


@dataclass(frozen=True, kw_only=True)
class InfiniteFormerConfig(TransformerXLConfig):
    """A Transformer-XL with a long-term memory of N vectors a layer. A block has at most segment_length tokens."""

    architecture: ClassVar[str] = "infinite-former"
    num_basis: int
    """N, the Gaussian basis functions; a multiple of the number of widths."""
    basis_widths: tuple[float, ...] | None = None
    """Widths of the basis functions; 1.275 and 2.55 times the distance of their centres unless given."""
    ridge: float = 0.5
    """Weight of the squared coefficients in the regression."""
    contraction: float = 0.5
    """The share of [0, 1] that everything older keeps when a block is written."""
    num_resamples: int | None = None
    """Places at which the old function is sampled for that; num_basis unless given."""
    variance_floor: float = 1e-4
    """No query looks at less than this variance."""
    prior_width: float = 0.05
    """The deviation that looking is drawn to in training, as a share of the whole past."""
    kl_weight: float = 1e-6
    """How strongly it is drawn: weight of the divergence in the loss."""
    gate: bool = True
    """Vectors pass a learned gate when they are written."""
    sticky: bool = True
    """What was attended to is sampled more densely, and so keeps more of the memory."""
    sticky_bins: int = 128
    """Bins in which attention is counted for that."""
    sticky_offset: Literal["uniform", "left"] = "uniform"
    """Where in its bin a sample lies: anywhere, or at the left edge as published."""
    sticky_draw_training: Literal["independent", "stratified"] = "independent"
    """How samples are drawn in training: each on its own as published, or one from each equal part of the mass."""
    sticky_draw_evaluation: Literal["independent", "stratified"] = "stratified"
    """How samples are drawn in evaluation."""
    write_input: Literal["hidden", "normed"] | None = None
    """What is written: inputs of layers as they are, or through the layer's norm (unless given: that with pre-norm)."""
    output_init: Literal["normal", "zero"] = "normal"
    """Initial values of the last projection; zeros start as the model without long-term memory."""
    kl_mean: float | None = None
    """Parity with published numbers: the divergence also draws the mean to this place (published: -1)."""
    reset_after_tokens: int | None = None
    """Parity with published numbers: forget everything at the first write after so many tokens (published: 2048)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.memory_init == "empty", "memory_init", "'empty', for rows of zeros would be written like any others"
        )
        widths = self.basis_widths
        count = 2 if widths is None else len(widths)
        self._require(count >= 1 and all(width > 0 for width in widths or ()), "basis_widths", "positive numbers")
        self._require(
            self.num_basis >= 2 * count and self.num_basis % count == 0,
            "num_basis",
            f"a multiple of the number of basis widths, {count}, and at least twice that",
        )
        self._require(0 < self.contraction < 1, "contraction", "above 0 and below 1, the share that the past keeps")
        for name in ("ridge", "variance_floor", "prior_width"):
            self._require(getattr(self, name) > 0, name, "positive")
        self._require(self.kl_weight >= 0, "kl_weight", "0 or more")
        for name in ("num_resamples", "reset_after_tokens"):
            self._require(getattr(self, name) is None or getattr(self, name) >= 1, name, "1 or more, or left out")
        self._require(self.sticky_bins >= 1, "sticky_bins", "1 or more")
        most = LARGEST_OPERATOR // ((self.num_resamples or self.num_basis) + self.segment_length)
        self._require(self.num_basis <= most, "num_basis", f"at most {most} with segments and resamples so many")
        self._require(
            self.write_input in (None, "hidden") or (self.write_input == "normed" and self.norm == "pre"),
            "write_input",
            "'hidden', or 'normed' with norm = 'pre'",
        )
        self._check_stability()

    def without_effect(self) -> tuple[str, ...]:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        idle = [name for name in defaults if name.startswith("sticky_") and getattr(self, name) != defaults[name]]
        return (
            *super().without_effect(),
            *(f"model.{name} has no effect, because model.sticky is false." for name in idle if not self.sticky),
        )

    def changed_by(self, segment_length: int) -> str | None:
        """What reading in segments of another length changes, as a sentence; None where it changes nothing.

        The function is contracted once for a block of up to T tokens, and a segment that is no multiple of T has a
        block that is shorter.
        """
        if segment_length % self.segment_length == 0:
            return None
        return (
            f"Segments of {segment_length} contract the memory of a {self.architecture} trained on segments of "
            f"{self.segment_length} more often, so that it forgets faster than in training; give a multiple of "
            f"{self.segment_length}."
        )

    @property
    def fit(self) -> Fit:
        """What decides the operators, beside the length of a block."""
        widths = self.basis_widths or default_widths(self.num_basis)
        return Fit(Basis(self.num_basis, widths), self.ridge, self.contraction, self.num_resamples or self.num_basis)

    @property
    def writes_normed(self) -> bool:
        return self.norm == "pre" if self.write_input is None else self.write_input == "normed"

    def _check_stability(self) -> None:
        fit, length = self.fit, self.segment_length
        if safe(fit, length):
            return
        checked = self.num_basis * (fit.samples + length) <= LARGEST_CHECKED
        try:
            growth = radius(fit, length) if checked else math.inf
        except RuntimeError:
            # Not even the operator can be made: its matrix is singular to rounding, or has entries that are no numbers.
            growth = math.inf
        remedy = "fewer basis functions, wider basis_widths, more num_resamples or longer segments"
        widths = ", ".join(f"{width:.3g}" for width in fit.basis.widths)
        given = f"model.num_basis is {self.num_basis} and model.basis_widths {widths}"
        sampled = f"for segments of {length} tokens and {fit.samples} resamples"
        if not checked:
            raise InputError(
                f"{given}, which {sampled} is outside the region in which memory is known to be stable, and too large "
                f"to be tried out; give {remedy}."
            )
        if not growth <= 1:
            raise InputError(
                f"{given}, but {sampled} the memory would grow up to {growth:.3g}-fold with every block; give {remedy}."
            )
        warnings.warn(
            f"{given}, which {sampled} is outside the region in which memory is known to be stable; consider {remedy}.",
            SettingWarning,
            stacklevel=4,
        )


@dataclass(frozen=True)
class InfiniteSegment(OpenSegment, kind="infinite-former-segment"):
    """A segment that is still being read, with what its queries need of the coefficients."""

    values: tuple[Float[Tensor, "B H S K"], ...] = per_lane()
    recalled: tuple[Float[Tensor, "B H N K"], ...] = per_lane(default=())
    aims: tuple[Float[Tensor, "B H 2 K"], ...] = per_lane(default=())


@dataclass(frozen=True)
class InfiniteFormerMemory(TransformerXLMemory, kind="infinite-former"):
    """The short-term slots, and the long-term memory: a function for each layer and the block it will take in next."""

    coefficients: tuple[Float[Tensor, "B N D"], ...] = per_lane(default=())
    """Of each layer, float32 or better; zero where nothing was written."""
    written: Int[Tensor, " B"] = per_lane(default=None)
    """Tokens written since the document began, or since the long-term memory was dropped where an option does that."""
    block: tuple[Float[Tensor, "B C D"], ...] = per_lane(default=())
    """For each layer, what left the slots last, oldest first; zeros beyond `pending`."""
    pending: Int[Tensor, " B"] = per_lane(default=None)
    """How many vectors wait in the block to be written when the next segment opens."""
    masses: tuple[Float[Tensor, "B J"], ...] = per_lane(differentiable=False, default=())
    """For each layer, the attention that bins of [0, 1] got in the last segment; only with sticky memories."""
    key: Int[Tensor, " B"] = per_lane(default=None)
    """A hash of the text read since the document began, from which sticky memories draw."""

    @property
    def has_memory(self) -> Tensor:
        """Lanes with a long-term memory, (B,) bools."""
        return self.written > 0

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> InfiniteFormerMemory:
        """Coefficients and counts of attention stay in float32 or better."""
        exact = None if dtype is None else torch.promote_types(dtype, torch.float32)
        moved = super().to(device, dtype)
        move = partial(torch.Tensor.to, device=device, dtype=exact)
        segment = self.segment
        if isinstance(segment, InfiniteSegment) and moved.segment is not None:
            recalled, aims = tuple(map(move, segment.recalled)), tuple(map(move, segment.aims))
            segment = dataclasses.replace(moved.segment, recalled=recalled, aims=aims)
        return dataclasses.replace(
            moved,
            coefficients=tuple(map(move, self.coefficients)),
            masses=tuple(map(move, self.masses)),
            segment=segment,
        )


class InfiniteFormer(TransformerXL):
    """Reads a segment after its short-term slots and its long-term memory. As published, neither carries gradients.

    The segment's own block is written within the pass that gradients flow through, so that the gate learns; the block
    and the older function are constants in it.
    """

    config_class = InfiniteFormerConfig
    memory_class = InfiniteFormerMemory

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        sizes = (config.model_width, config.num_heads, config.head_width)
        options: dict[str, Any] = {"gate": config.gate, "variance_floor": config.variance_floor}
        self.long_term: Any = nn.ModuleList(ContinuousMemory(*sizes, config.fit, **options) for _ in self.layers)

    def initialize(self, generator: torch.Generator) -> None:
        super().initialize(generator)
        for long_term in self.long_term:
            long_term.initialize_gate(generator)
            if self.config.output_init == "zero":
                long_term.output.weight.data.zero_()

    def init_memory(self, lanes: int, length: int | None = None, hold: Distances | None = None) -> InfiniteFormerMemory:
        short = super().init_memory(lanes, length, hold)
        table, width = self.embedding.tables[0], self.config.model_width
        exact = torch.promote_types(table.dtype, torch.float32)
        bins = (lanes, self.config.sticky_bins)
        return InfiniteFormerMemory(
            hidden=short.hidden,
            valid=short.valid,
            hold=hold,
            coefficients=tuple(table.new_zeros(lanes, self.config.num_basis, width, dtype=exact) for _ in self.layers),
            written=table.new_zeros(lanes, dtype=torch.long),
            block=tuple(table.new_zeros(lanes, self.config.segment_length, width) for _ in self.layers),
            pending=table.new_zeros(lanes, dtype=torch.long),
            masses=tuple(table.new_zeros(bins, dtype=exact) for _ in self.layers) if self.config.sticky else (),
            key=table.new_zeros(lanes, dtype=torch.long),
        )

    def waits(self, memory: Any, close: bool = False) -> bool:
        """Where a block is written: which operator a lane needs depends on how many vectors wait."""
        return not memory.opened or (close and memory.opened >= self.config.segment_length)

    def _read(
        self, tokens: Tensor, memory: Any, lengths: Tensor | None, *, keep: bool, extras: bool, predict: bool = True
    ) -> tuple[Tensor, Any, Extras]:
        opened, new = memory.opened, tokens.shape[1]
        if not opened:
            memory = self._open(memory, lengths)
        real = None if lengths is None else torch.arange(new, device=tokens.device) < lengths[:, None]
        stream = self._enter(self._embed(tokens), opened)
        num_keys = memory.slots + opened + new
        # A single layer that only writes looks at no position: then nothing of the size of (T, S) is made.
        attends = predict or len(self.layers) > 1
        visible = self._visible(memory, new) if attends else None
        tables = self._tables(memory, num_keys, keep, stream) if attends else ()
        room = self._room(memory, num_keys, keep)
        inputs, kept, recalled, masses, mass, nats = [], [], [], [], [], []
        for number, (layer, long_term) in enumerate(zip(self.layers, self.long_term, strict=True)):
            inputs.append(stream)
            ends = not predict and number == len(self.layers) - 1
            if ends and memory.keys:
                kept.append(self._kept(memory, number, stream, room))
            if ends and not self.config.sticky:
                break
            queries, keys, values = layer.project(stream)
            if opened:
                recall = Recall(memory.segment.recalled[number], memory.segment.aims[number])
            else:
                recall = long_term.recall(memory.coefficients[number])
            if ends:
                # Of the last layer, only where it looked is remembered.
                mean, variance = long_term.look(queries, recall)
                masses.append(self._masses(mean, variance, real))
                break
            earlier = self._earlier(memory, number)
            keys, values = (joined(*pair, room) for pair in zip(earlier, (keys, values), strict=True))
            short = self._attend(number, queries, keys, values, visible, tables, memory, extras)
            long = long_term.read(queries, recall)
            stream = layer.finish(stream, short.context, long.update)
            kept.append((keys, values))
            recalled.append(recall)
            if self.config.sticky:
                masses.append(self._masses(long.mean, long.variance, real))
            if self.training and predict:
                nats.append(divergence(long.mean, long.variance, self.config.prior_width, self.config.kl_mean))
            if extras:
                mass.append(mass_by_distance(short.weights))
        if opened:
            inputs = [append(*pair, room=room) for pair in zip(memory.segment.hidden, inputs, strict=True)]
        projecting = bool(memory.keys)
        segment = InfiniteSegment(
            keys=tuple(keys for keys, _ in kept) if keep or projecting else (),
            values=tuple(values for _, values in kept) if keep or projecting else (),
            hidden=tuple(inputs),
            tables=tuple(tables) if keep else (),
            tokens=opened + new,
            recalled=tuple(recall.values for recall in recalled) if keep else (),
            aims=tuple(recall.aims for recall in recalled) if keep else (),
        )
        told = Extras(
            attention_mass=torch.stack(mass) if extras else None,
            auxiliary_loss=self._auxiliary_loss(sum(nats), memory, real) if nats else None,
        )
        masses = tuple(old + added for old, added in zip(memory.masses, masses, strict=True))
        key = fold(memory.key, tokens, lengths)
        tables = tuple(tables) if projecting else ()
        return stream, dataclasses.replace(memory, segment=segment, masses=masses, key=key, tables=tables), told

    def _open(self, memory: Any, lengths: Tensor | None) -> Any:
        """Write what waits on the lanes that read; their attention is counted anew."""
        reads = torch.ones_like(memory.written, dtype=torch.bool) if lengths is None else lengths > 0
        counts = memory.pending.masked_fill(~reads, 0)
        memory = self._write(memory, memory.block, counts, 0)
        masses = tuple(mass.masked_fill(reads[:, None], 0) for mass in memory.masses)
        return dataclasses.replace(memory, masses=masses, pending=memory.pending - counts)

    def _close(self, memory: Any, lengths: Tensor | None) -> InfiniteFormerMemory:
        """What overflows the slots waits as a block; of more than a block, the older part is written at once."""
        opened, capacity = memory.opened, self.config.segment_length
        added = torch.full_like(memory.written, opened) if lengths is None else lengths
        filled = memory.valid.sum(1)
        leaving = (filled + added - memory.slots).clamp(min=0)
        new = [self._cut(rows).to(old.dtype) for old, rows in zip(memory.hidden, memory.segment.hidden, strict=True)]
        rows = [torch.cat(pair, dim=1) for pair in zip(memory.hidden, new, strict=True)]
        oldest = memory.slots - filled
        for chunk in range((opened - 1) // capacity):
            counts = torch.where(leaving > (chunk + 1) * capacity, capacity, 0)
            taken = [_rows(each, oldest + chunk * capacity, counts, capacity) for each in rows]
            memory = self._write(memory, taken, counts, chunk + 1)
        gone = (leaving - 1).clamp(min=0) // capacity * capacity
        pending, reads = leaving - gone, added > 0
        block = (_rows(each, oldest + gone, pending, capacity) for each in rows)
        return dataclasses.replace(
            memory,
            hidden=tuple(newest(old, rows, lengths) for old, rows in zip(memory.hidden, new, strict=True)),
            valid=newest(memory.valid, memory.valid.new_ones(memory.lanes, opened), lengths),
            coefficients=tuple(map(self._cut, memory.coefficients)),
            block=tuple(
                torch.where(reads[:, None, None], now, old) for now, old in zip(block, memory.block, strict=True)
            ),
            pending=torch.where(reads, pending, memory.pending),
            segment=None,
            **self._folded(memory, lengths),
        )

    def _write(self, memory: Any, blocks: Any, counts: Tensor, place: int) -> Any:
        """Write the first `counts` vectors of each lane's blocks; `place` tells the writes between two reads apart."""
        fresh = counts > 0
        written = memory.written
        if self.config.reset_after_tokens is not None:
            written = written.masked_fill(fresh & (written >= self.config.reset_after_tokens), 0)
        # Which operator a lane needs is decided on the CPU, once for all layers.
        on_cpu = counts.cpu(), (written > 0).cpu()
        real = torch.arange(self.config.segment_length, device=counts.device) < counts[:, None]
        coefficients = []
        for number, long_term in enumerate(self.long_term):
            block = blocks[number]
            if self.config.writes_normed:
                block = self.layers[number].norm_attention(block)
            block = block.masked_fill(~real[..., None], 0)
            places = self._places(memory, number, place) if self.config.sticky else None
            coefficients.append(long_term.write(memory.coefficients[number], places, block, *on_cpu))
        return dataclasses.replace(
            memory,
            coefficients=tuple(coefficients),
            written=written + counts,
            masses=tuple(mass.masked_fill(fresh[:, None], 0) for mass in memory.masses),
        )

    def _places(self, memory: Any, number: int, place: int) -> Tensor:
        """Where each lane's function of one layer is sampled, (B, M) rising."""
        samples = self.config.fit.samples
        draw = self.config.sticky_draw_training if self.training else self.config.sticky_draw_evaluation
        if draw == "stratified":
            shares = (torch.arange(samples, device=memory.key.device)[None] + 0.5) / samples
        else:
            shares = uniforms(memory.key, place * len(self.layers) + number, samples).sort(dim=1).values
        return densest(memory.masses[number], shares, left=self.config.sticky_offset == "left")

    def _masses(self, mean: Tensor, variance: Tensor, real: Tensor | None) -> Tensor:
        """The attention that the bins of one layer get from these queries; no gradient reaches where to sample."""
        return bin_masses(mean.detach(), variance.detach(), self.config.sticky_bins, real)

    def _auxiliary_loss(self, nats: Any, memory: Any, real: Tensor | None) -> Tensor:
        """The weighted divergence of each lane: mean over its heads and real queries of the sum over layers."""
        if real is not None:
            nats = nats.masked_fill(~real[:, None], 0) * (real.shape[1] / real.sum(1).clamp(min=1))[:, None, None]
        return self.config.kl_weight * nats.mean((1, 2)).masked_fill(~memory.has_memory, 0)

    def _count(self, flops: Flops, lanes: int, segment: int, memory: int) -> None:
        """As many tokens leave the slots as are read; a block takes up to C of them, and the gate works on C rows."""
        config, fit = self.config, self.config.fit
        width, inner, number = config.model_width, config.num_heads * config.head_width, config.num_basis
        blocks = -(-segment // config.segment_length)
        # A block is made of constants; a gradient reaches it through the gate, or the norm it is written through.
        normed = int(config.writes_normed)
        learned = int(config.gate or config.writes_normed)
        self._count_layers(flops, lanes, segment, memory)
        for _ in self.layers:
            if config.gate:
                # Of several blocks, the first alone is written within the segment that reads it.
                flops.add("writing", lanes * config.segment_length, 3 * width, width, gradients=1 + normed)
                flops.add("writing", lanes * (blocks - 1) * config.segment_length, 3 * width, width, gradients=0)
            first = min(segment, config.segment_length)
            flops.add("writing", lanes * number, first, width, gradients=learned)
            flops.add("writing", lanes * number, segment - first, width, gradients=0)
            flops.add("writing", lanes * number * blocks, 2 * fit.samples, width, gradients=0)
            flops.add("long-term reading", lanes * number, width, inner, gradients=1 + learned)
            flops.add("long-term reading", lanes * 2, number, width, gradients=1 + learned)
            flops.add("long-term reading", lanes * 2, width, inner)
            flops.add("long-term reading", lanes * segment, inner, 2 + number + width)

    def _check_memory(self, memory: Any) -> None:
        super()._check_memory(memory)
        for what, given, wanted in (
            ("number of basis functions", memory.coefficients[0].shape[1], self.config.num_basis),
            ("longest block", memory.block[0].shape[1], self.config.segment_length),
            ("number of sticky bins", [mass.shape[1] for mass in memory.masses[:1]], self._bins),
        ):
            if given != wanted:
                raise self._misfit(what, given, wanted)

    @property
    def _bins(self) -> list[int]:
        return [self.config.sticky_bins] if self.config.sticky else []


def _rows(
    rows: Float[Tensor, "B R D"], begin: Int[Tensor, " B"], counts: Int[Tensor, " B"], capacity: int
) -> Float[Tensor, "B C D"]:
    """From `begin`, so many rows of each lane as it counts, and zeros up to the capacity."""
    steps = torch.arange(capacity, device=rows.device)
    places = (begin[:, None] + steps).clamp(max=rows.shape[1] - 1)
    return torch.take_along_dim(rows, places[..., None], dim=1).masked_fill((steps >= counts[:, None])[..., None], 0)
