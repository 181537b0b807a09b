"""Gradients over a horizon: k segments in a row, the memory handed from one to the next, then cut.

    objective = sum of nats / scored tokens + mean over scored segments and lanes of the auxiliary loss

A segment in which nothing is scored is only remembered; it has no share in either mean.

Only here and in `engines.py` are gradients between segments cut; what a model detaches inside a segment is part of its
own maths.

Shapes: B lanes, T tokens of a segment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remanence.data import Batch
from remanence.errors import InputError
from remanence.memory import Memory
from remanence.models import LanguageModel
from remanence.training.engines import ENGINES, Segment

Read = Callable[..., tuple[Tensor, Tensor, Any]]

DIFFERENTIATING = tuple(name for name in ENGINES if name != "truncated")
"""The engines that need a memory with gradients."""


@dataclass(frozen=True)
class Horizon:
    """What reading one horizon gave, beside the gradients in the parameters."""

    loss: Tensor
    """Mean nats of the scored tokens, a scalar on the device."""
    auxiliary: Tensor
    """Mean auxiliary loss over scored segments and lanes, a scalar on the device; 0 for models without one."""
    scored: int
    memory: Memory
    """After the last segment, cut from the graph."""


def read_segment(model: LanguageModel, batch: Batch, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
    """Sum of nats over the scored tokens of a segment, sum of the lanes' auxiliary losses, the memory after it."""
    hidden, memory, extras = model(batch.tokens, memory, batch.starts, lengths=batch.lengths)
    nats = model.head.loss(hidden, batch.targets).sum()
    auxiliary = getattr(extras, "auxiliary_loss", None)
    return nats, torch.zeros_like(nats) if auxiliary is None else auxiliary.sum(), memory


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
) -> Horizon:
    """Add the gradient of the objective over `batches`, consecutive segments of all lanes, to the parameters.

    With `groups`, the lanes are read in so many parts one after the other, each through the whole horizon, so that only
    one part's activations are kept at a time. The means are over all parts, and a lane never sees another: gradient and
    memory are those of reading all lanes at once, to rounding and to the draws of dropout.

    Every segment draws from a seed of its own, taken once from torch's global generator: all engines give the same
    gradients. The global generator of the CPU is left as if nothing else had been drawn.

    engine      a name of `engines.ENGINES`
    read        `read_segment`, or a compiled one
    around      gives the context in which segments are read, such as autocast
    """
    counts = [batch.scored for batch in batches]
    scored = sum(counts)
    size = memory.lanes // groups
    parts: list[Memory] = []
    totals: Any = 0.0
    shares = max(sum(map(bool, counts)), 1) * memory.lanes
    seed = int(torch.randint(2**62, ()))
    state = torch.get_rng_state()
    try:
        for group in range(groups):
            part = slice(group * size, (group + 1) * size)
            cell = Reading(
                model,
                list(batches) if groups == 1 else [lanes_of(batch, part) for batch in batches],
                counts=counts,
                shares=shares,
                seed=seed + group * len(batches),
                read_segment=read,
                around=around,
            )
            swept = ENGINES[engine](cell, memory if groups == 1 else memory[part])
            totals = totals + torch.stack(swept.told)
            parts.append(swept.memory)
    finally:
        torch.set_rng_state(state)
    return Horizon(
        loss=totals[0] / max(scored, 1),
        auxiliary=totals[1] / shares,
        scored=scored,
        memory=parts[0] if groups == 1 else Memory.concatenate(parts),
    )


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

    def __len__(self) -> int:
        return len(self.batches)

    def idle(self, number: int) -> bool:
        """Nothing is scored: the segment is only remembered, and its auxiliary loss left out."""
        return not self.counts[number]

    def read(self, number: int, memory: Any) -> Segment:
        torch.manual_seed(self.seed + number)
        with self.around():
            nats, auxiliary, memory = self.read_segment(self.model, self.batches[number], memory)
            if self.idle(number):
                auxiliary = torch.zeros_like(auxiliary)
            return Segment(nats / max(sum(self.counts), 1) + auxiliary / self.shares, memory, (nats, auxiliary))

    def advance(self, number: int, memory: Any) -> Any:
        torch.manual_seed(self.seed + number)
        batch = self.batches[number]
        with self.around():
            return self.model.advance(batch.tokens, memory, batch.starts, batch.lengths)


def lanes_of(batch: Batch, lanes: slice) -> Batch:
    """Some lanes of a batch."""
    lengths = None if batch.lengths is None else batch.lengths[lanes]
    return Batch(batch.tokens[lanes], batch.targets[lanes], batch.starts[lanes], lengths)
