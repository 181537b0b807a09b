"""Four ways to compute the gradient of a horizon: segments in a row, the memory handed from one to the next.

    truncated   each segment on its own graph; no gradient passes from one to another
    full        one graph over all segments: plain backpropagation through time
    recompute   as full, but a segment's activations are dropped and computed again when the gradient comes back
    replay      memory replay back-propagation: all memories first, without any graph; then, from the last segment to
                the first, one segment's graph at a time, whose gradient for the memory it was given is handed on

The last three give the same gradients. With S bytes of memory, A of a segment's activations, F of forward work and T
segments, of which phi F lies on the way to the next memory:

    full        T A          3 F
    recompute   T S + A      4 F
    replay      T S + A      (3 + phi (T - 1) / T) F

Source: Wu et al., "Memformer: A Memory-Augmented Transformer for Sequence Modeling", Findings of AACL-IJCNLP 2022
(arXiv 2010.06891) for replay; Chen et al. 2016 (arXiv 1604.06174) for recomputation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from remanence.memory import Memory


class Segment(NamedTuple):
    """What reading one segment gave."""

    objective: Tensor
    """The segment's share of what is minimised, a scalar."""
    memory: Any
    told: tuple[Tensor, ...]
    """Numbers to be added up over the horizon; they take part in no gradient."""


class Cell(Protocol):
    """Segments 0 .. T - 1 and a model that reads them.

    Reading the same segment twice must give the same numbers: what is drawn depends on the number of the segment alone.
    """

    def __len__(self) -> int:
        """T, how many segments there are."""
        ...

    def idle(self, number: int) -> bool:
        """Whether the segment has no share in the objective."""
        ...

    def read(self, number: int, memory: Any) -> Segment:
        """Read a segment after what the memory holds."""
        ...

    def advance(self, number: int, memory: Any) -> Any:
        """The memory that `read` gives, and nothing else: the critical path."""
        ...

    @property
    def last(self) -> Callable[[Tensor], Tensor]:
        """Gives what the last backward of the horizon begins from; ranks sum their gradients while it runs."""
        ...


class Swept(NamedTuple):
    """What a horizon gave, beside the gradients that were added to the parameters."""

    told: tuple[Tensor, ...]
    """The sums over all segments."""
    memory: Any
    """After the last segment, cut from the graph."""
    gradients: tuple[Tensor | None, ...] | None
    """For the carriers of the first memory (`Memory.carriers`); replay alone knows them."""


def truncated(cell: Cell, memory: Memory) -> Swept:
    """The gradient of every segment alone. A segment that has no share in the objective is read without a graph."""
    told: list[tuple[Tensor, ...]] = []
    last = max((number for number in range(len(cell)) if not cell.idle(number)), default=None)
    for number in range(len(cell)):
        with torch.set_grad_enabled(not cell.idle(number)):
            segment = cell.read(number, memory.detach())
        objective = cell.last(segment.objective) if number == last else segment.objective
        if objective.requires_grad:
            objective.backward()
        memory = segment.memory.detach()
        told.append(_detached(segment.told))
    return Swept(_sums(told), memory, None)


def full(cell: Cell, memory: Memory) -> Swept:
    """Plain backpropagation through time."""
    return _unrolled(cell, memory, cell.read)


def recompute(cell: Cell, memory: Memory) -> Swept:
    """Backpropagation through time that keeps only what passes from segment to segment."""
    return _unrolled(cell, memory, _Recomputed(cell.read))


def replay(cell: Cell, memory: Memory, check: bool = False) -> Swept:
    """Memory replay back-propagation.

    With `check`, every replayed memory must be the one of the first sweep, bit for bit; AssertionError otherwise.
    """
    last = len(cell) - 1
    memories: list[Any] = [memory.detach()]
    with torch.no_grad():
        for number in range(last):
            memories.append(cell.advance(number, memories[-1]).detach())
    told: list[tuple[Tensor, ...]] = []
    handed: tuple[Tensor | None, ...] = ()
    following: Any = None
    for number in range(last, -1, -1):
        remembered, leaves = memories.pop().leaves()
        segment = cell.read(number, remembered)
        told.append(_detached(segment.told))
        if number == last:
            memory = segment.memory.detach()
        elif check:
            _assert_equal(segment.memory, following, number)
        following = remembered if check else None
        if number == 0:
            segment = segment._replace(objective=cell.last(segment.objective))
        handed = _back(segment, handed, leaves)
    return Swept(_sums(told[::-1]), memory, handed)


def _unrolled(cell: Cell, memory: Memory, read: Callable[[int, Any], Segment]) -> Swept:
    remembered: Any = memory.detach()
    told: list[tuple[Tensor, ...]] = []
    objectives: list[Tensor] = []
    for number in range(len(cell)):
        segment = read(number, remembered)
        objectives.append(segment.objective)
        remembered = segment.memory.handed_on()
        told.append(_detached(segment.told))
    objective = cell.last(sum(objectives[1:], objectives[0]))
    if objective.requires_grad:
        objective.backward()
    return Swept(_sums(told), remembered.detach(), None)


class _Recomputed:
    """Reads a segment so that its activations are computed again for the gradient."""

    def __init__(self, read: Callable[[int, Any], Segment]) -> None:
        self.read = read

    def __call__(self, number: int, memory: Any) -> Segment:
        # The cell draws from the number of the segment, so the states of the generators need not be kept.
        result: Any = checkpoint(self.read, number, memory, use_reentrant=False, preserve_rng_state=False)
        return result


def _back(segment: Segment, handed: tuple[Tensor | None, ...], leaves: tuple[Tensor, ...]) -> Any:
    """Add a segment's gradient, of its own objective and of what is handed to its memory; what the leaves receive."""
    ends, gradients = [], []
    if segment.objective.requires_grad:
        ends.append(segment.objective)
        gradients.append(torch.ones_like(segment.objective))
    if handed:
        for carrier, gradient in zip(segment.memory.carriers(), handed, strict=True):
            if gradient is not None and carrier.requires_grad:
                ends.append(carrier)
                gradients.append(gradient)
    if ends:
        torch.autograd.backward(ends, gradients)
    return tuple(leaf.grad for leaf in leaves)


def _assert_equal(one: Memory, other: Memory, number: int) -> None:
    ours, theirs = one.state()[0], other.state()[0]
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), f"segment {number} was replayed with another memory: {name} differs"


def _detached(told: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach() for tensor in told)


def _sums(told: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(column).sum(0) for column in zip(*told, strict=True))


ENGINES: dict[str, Callable[[Cell, Memory], Swept]] = {
    "truncated": truncated,
    "full": full,
    "recompute": recompute,
    "replay": replay,
}
"""By the name that recipes use."""
