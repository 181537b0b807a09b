"""A CUDA graph without a GPU: the operations of a step on a tape, which repeats them on the same tensors.

As in a graph, nothing of Python runs again, every operation reads where it read and writes where it wrote, and what
waits for the device is refused. So what a cycle of graphs must keep to can be tested on any machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from remanence.generation.graphs import Recording
from remanence.rows import rehearsing

WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.item.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.repeat_interleave.Tensor,
    torch.ops.remanence.rewrite.default,
}
"""Operations that bring a number, or a shape that depends on one, to the host; the last one is given its on the CPU."""


class Waiting(RuntimeError):
    """An operation that a graph cannot hold."""


class Tape(TorchDispatchMode):
    """Keeps every operation with the tensors it was given and those it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        indices = args[1] if func is torch.ops.aten.index.Tensor else ()
        if func in WAITING or any(index is not None and index.dtype == torch.bool for index in indices):
            raise Waiting(f"{func} waits for the device")
        results = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, results))
        return results

    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            again = func(*args, **kwargs)
            for new, old in zip(_tensors(again), _tensors(results), strict=True):
                if new.data_ptr() != old.data_ptr():
                    old.copy_(new)


class TapeRecorder:
    """As `GraphRecorder`: a step runs once by itself, then on the tape; and what it left there counts for nothing."""

    def __init__(self, room: float = float("inf")) -> None:
        self.space = room
        self.recorded = 0

    def record(self, compute: Callable[[], Any]) -> Recording:
        with rehearsing():
            compute()
        with Tape() as tape:
            results = compute()
        # Capturing computes nothing: what is read before the first replay is caught.
        owned = {id(tensor) for _, args, kwargs, _ in tape.calls for tensor in _tensors((args, kwargs))}
        for func, _, _, outcome in tape.calls:
            for tensor in _tensors(outcome):
                if tensor.is_floating_point() and id(tensor) not in owned and func is torch.ops.aten.cat.default:
                    tensor.fill_(float("nan"))
        self.recorded += 1
        return Recording(results, tape.replay)

    def room(self) -> float:
        return self.space


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
