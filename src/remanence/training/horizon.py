"""Gradients over a horizon: k segments in a row, the memory handed from one to the next, then cut.

    objective = sum of nats / scored tokens + mean over scored segments and lanes of the auxiliary loss

Where several ranks share the lanes, both means are over the lanes of all of them: a rank has its share of the
objective, and the sum over the ranks is what one process has.

A segment in which nothing is scored is only remembered; it has no share in either mean.

Only here and in `engines.py` are gradients between segments cut; what a model detaches inside a segment is part of its
own maths.

Shapes: B lanes, T tokens of a segment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from remanence.data import Batch
from remanence.errors import InputError
from remanence.memory import Memory
from remanence.models import LanguageModel
from remanence.ops.dropout import drawn_among
from remanence.training.engines import ENGINES, Segment
from remanence.training.ranks import ALONE, Ranks

Read = Callable[..., tuple[Tensor, Tensor, Any]]

SEED_APART = 0x9E3779B97F4A7C15
"""Between the seeds of two lanes; odd, so that those of neighbouring segments do not meet."""

DIFFERENTIATING = tuple(name for name in ENGINES if name != "truncated")
"""The engines that need a memory with gradients."""


@dataclass(frozen=True)
class Horizon:
    """What reading one horizon gave, beside the gradients in the parameters."""

    loss: Tensor
    """Mean nats of the scored tokens, a scalar on the device; of several ranks, this one's share of it."""
    auxiliary: Tensor
    """Mean auxiliary loss over scored segments and lanes, likewise; 0 for models without one."""
    scored: int
    """Tokens that the mean is over, of all ranks."""
    memory: Memory
    """After the last segment, cut from the graph."""


def read_segment(model: LanguageModel, batch: Batch, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
    """Sum of nats over the scored tokens of a segment, sum of the lanes' auxiliary losses, the memory after it."""
    hidden, memory, extras = model(batch.tokens, memory, batch.starts, lengths=batch.lengths)
    nats = model.head.loss(hidden, batch.targets).sum()
    auxiliary = getattr(extras, "auxiliary_loss", None)
    return nats, torch.zeros_like(nats) if auxiliary is None else auxiliary.sum(), memory


def _unchanged(objective: Tensor) -> Tensor:
    return objective


def choose_engine(model: LanguageModel, engine: str | None) -> str:
    """The engine for a model; left out, it is "full" where the memory carries gradients and "truncated" elsewhere.

    Raises InputError for one that cannot apply.
    """
    if engine is None:
        return "full" if model.memory_carries_gradient else "truncated"
    if engine in DIFFERENTIATING and not model.memory_carries_gradient:
        raise InputError(
            f'training.engine is "{engine}", but the memory of this {model.config.architecture} carries no gradient '
            'from segment to segment; set model.memory_gradient to true, or training.engine to "truncated".'
        )
    return engine


def accumulate_gradients(
    model: LanguageModel,
    batches: Sequence[Batch],
    memory: Memory,
    groups: int = 1,
    *,
    engine: str = "full",
    read: Read = read_segment,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ranks: Ranks = ALONE,
    counts: Sequence[int] | None = None,
    last: Callable[[Tensor], Tensor] = _unchanged,
) -> Horizon:
    """Add the gradient of the objective over `batches`, consecutive segments of all lanes, to the parameters.

    With `groups`, the lanes are read in so many parts one after the other, each through the whole horizon, so that only
    one part's activations are kept at a time. The means are over all parts, and a lane never sees another: gradient and
    memory are those of reading all lanes at once, to rounding and to the draws of dropout.

    Every segment draws from a seed of its own, taken once from torch's global generator: all engines give the same
    gradients. The global generator of the CPU is left as if nothing else had been drawn. On a CPU any number of ranks
    draws what one process would; elsewhere, and in a compiled graph, a rank's draws are its own.

    engine      a name of `engines.ENGINES`
    groups      of the lanes of all ranks
    read        `read_segment`, or a compiled one
    around      gives the context in which segments are read, such as autocast
    ranks       those that share the lanes
    counts      scored tokens of every batch, over the lanes of all ranks; those of `batches` unless given
    last        is given the objective of the last backward, and gives what that begins from

    Raises InputError where neither of groups and ranks divides the other.
    """
    counts = [batch.scored for batch in batches] if counts is None else list(counts)
    scored, lanes = sum(counts), memory.lanes * ranks.size
    pieces = pieces_of(memory.lanes, groups, ranks)
    parts: list[Memory] = []
    totals: Any = 0.0
    shares = max(sum(map(bool, counts)), 1) * lanes
    seed = int(torch.randint(2**62, ()))
    by_lane = read is read_segment and batches[0].tokens.device.type == "cpu"
    state = torch.get_rng_state()
    try:
        for piece in pieces:
            cell = Reading(
                model,
                list(batches) if len(pieces) == 1 else [lanes_of(batch, piece.lanes) for batch in batches],
                counts=counts,
                shares=shares,
                seed=(seed + piece.group * len(batches) + (0 if by_lane else SEED_APART * piece.offset)) % (1 << 63),
                among=(piece.offset, piece.size, piece.total) if by_lane else None,
                read_segment=read,
                around=around,
                last=last if piece is pieces[-1] else _unchanged,
            )
            swept = ENGINES[engine](cell, memory if len(pieces) == 1 else memory[piece.lanes])
            totals = totals + torch.stack(swept.told)
            parts.append(swept.memory)
    finally:
        torch.set_rng_state(state)
    return Horizon(
        loss=totals[0] / max(scored, 1),
        auxiliary=totals[1] / shares,
        scored=scored,
        memory=parts[0] if len(parts) == 1 else Memory.concatenate(parts),
    )


class Piece(NamedTuple):
    """Lanes of a rank that are read at once: a group of the whole batch, or a part of one."""

    lanes: slice
    """Among those of the rank."""
    group: int
    """The number of the group, of all ranks."""
    offset: int
    """The first lane, within the group."""
    total: int
    """Lanes of the whole group."""

    @property
    def size(self) -> int:
        return self.lanes.stop - self.lanes.start


def pieces_of(lanes: int, groups: int, ranks: Ranks) -> list[Piece]:
    """What a rank with so many lanes reads one after the other.

    Raises InputError where neither of groups and ranks divides the other.
    """
    total = lanes * ranks.size // groups
    if groups % ranks.size == 0:
        count = groups // ranks.size
        first = ranks.rank * count
        return [Piece(slice(each * total, (each + 1) * total), first + each, 0, total) for each in range(count)]
    if ranks.size % groups:
        raise InputError(
            f"training.accumulation is {groups} and there are {ranks.size} processes, but one of the two numbers must "
            f"be a multiple of the other; set training.accumulation to 1 or {ranks.size}."
        )
    group, offset = divmod(ranks.rank * lanes, total)
    return [Piece(slice(0, lanes), group, offset, total)]


@dataclass(frozen=True)
class Reading:
    """The `engines.Cell` of a language model that reads batches."""

    model: LanguageModel
    batches: Sequence[Batch]
    counts: Sequence[int]
    """Scored tokens of each segment, over all lanes that the mean is over."""
    shares: int
    """Auxiliary losses that the mean is over."""
    seed: int
    read_segment: Read
    around: Callable[[], AbstractContextManager[Any]]
    last: Callable[[Tensor], Tensor] = _unchanged
    among: tuple[int, int, int] | None = None
    """How these lanes lie in the group that is drawn for (`drawn_among`); None where that cannot be asked for."""

    def __len__(self) -> int:
        return len(self.batches)

    def idle(self, number: int) -> bool:
        """Nothing is scored: the segment is only remembered, and its auxiliary loss left out."""
        return not self.counts[number]

    def read(self, number: int, memory: Any) -> Segment:
        with self._drawing(number), self.around():
            nats, auxiliary, memory = self.read_segment(self.model, self.batches[number], memory)
            if self.idle(number):
                auxiliary = torch.zeros_like(auxiliary)
            return Segment(nats / max(sum(self.counts), 1) + auxiliary / self.shares, memory, (nats, auxiliary))

    def advance(self, number: int, memory: Any) -> Any:
        batch = self.batches[number]
        with self._drawing(number), self.around():
            return self.model.advance(batch.tokens, memory, batch.starts, batch.lengths)

    def _drawing(self, number: int) -> AbstractContextManager[Any]:
        torch.manual_seed(self.seed + number)
        return nullcontext() if self.among is None else drawn_among(*self.among)


def lanes_of(batch: Batch, lanes: slice) -> Batch:
    """Some lanes of a batch."""
    lengths = None if batch.lengths is None else batch.lengths[lanes]
    return Batch(batch.tokens[lanes], batch.targets[lanes], batch.starts[lanes], lengths)
