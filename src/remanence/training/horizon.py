"""Gradients over a horizon: k segments in a row, the memory handed from one to the next, then cut.

Only here are gradients between segments cut; what a model detaches inside a segment is part of its own maths.

Shapes: B lanes, T tokens of a segment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remanence.data import Batch
from remanence.memory import Memory
from remanence.models import LanguageModel

Read = Callable[..., tuple[Tensor, Any]]


@dataclass(frozen=True)
class Horizon:
    """What reading one horizon gave, beside the gradients in the parameters."""

    loss: Tensor
    """Mean nats of the scored tokens, a scalar on the device."""
    scored: int
    memory: Memory
    """After the last segment, cut from the graph."""


def read_segment(model: LanguageModel, batch: Batch, memory: Memory) -> tuple[Tensor, Memory]:
    """Sum of nats over the scored tokens of one segment, and the memory after it."""
    hidden, memory, _ = model(batch.tokens, memory, batch.starts, lengths=batch.lengths)
    return model.head.loss(hidden, batch.targets).sum(), memory


def accumulate_gradients(
    model: LanguageModel, batches: Sequence[Batch], memory: Memory, groups: int = 1, read: Read = read_segment
) -> Horizon:
    """Add the gradient of the mean loss over `batches`, consecutive segments of all lanes, to the parameters.

    With `groups`, the lanes are read in so many parts one after the other, each through the whole horizon, so that only
    one part's activations are kept at a time. The mean is over all scored tokens of all parts, and a lane never sees
    another: gradient and memory are those of reading all lanes at once, to rounding and to the draws of dropout.
    """
    scored = sum(batch.scored for batch in batches)
    size = memory.lanes // groups
    total, memories = torch.zeros((), device=batches[0].tokens.device), []
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        remembered = memory if groups == 1 else memory[part]
        nats = torch.zeros_like(total)
        for batch in batches:
            segment, remembered = read(model, batch if groups == 1 else lanes_of(batch, part), remembered)
            nats = nats + segment
        loss = nats / max(scored, 1)
        loss.backward()
        total += loss.detach()
        memories.append(remembered.detach())
    return Horizon(total, scored, memories[0] if groups == 1 else Memory.concatenate(memories))


def lanes_of(batch: Batch, lanes: slice) -> Batch:
    """Some lanes of a batch."""
    lengths = None if batch.lengths is None else batch.lengths[lanes]
    return Batch(batch.tokens[lanes], batch.targets[lanes], batch.starts[lanes], lengths)
