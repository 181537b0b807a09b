"""Data parallelism: every rank has the whole model, and gradients are summed.

    loss, backward (this rank's lanes) ... the last backward of a step -> sums in buckets, while it still runs -> update

The horizon engines read the model itself, as often and in whatever order they need, and their gradients add up on the
rank. Only the last backward of a step passes through PyTorch's `DistributedDataParallel`: the objective goes through a
module that gives it back and names all parameters as its inputs, so that each of them is reported when the gradient of
everything that uses it is complete, whether that backward uses it or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from remanence.training.ranks import Ranks


class Replicated:
    """Sums the gradients of a model over all ranks. Raises RuntimeError where the ranks' models differ in shape."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        passing = _Passing(model)
        self._ranks, self._trained = ranks, list(passing.trained)
        self._parallel = DistributedDataParallel(passing, gradient_as_bucket_view=True)
        self._parallel.register_comm_hook(None, _sum)
        self._reached: set[int] = set()
        """Which parameters a gradient has reached on this rank."""
        self._hooks = [
            each.register_post_accumulate_grad_hook(partial(self._note, number))
            for number, each in enumerate(self._trained)
        ]

    @contextmanager
    def summing(self) -> Iterator[None]:
        """Around all backwards of a step. A parameter that took part on no rank has no gradient afterwards, as on one
        process: which ones do may depend on the text.
        """
        self._reached.clear()
        yield
        reached = torch.zeros(len(self._trained), dtype=torch.int64)
        reached[list(self._reached)] = 1
        for parameter, count in zip(self._trained, self._ranks.sum(reached).tolist(), strict=True):
            if not count:
                parameter.grad = None

    def last(self, objective: Tensor) -> Tensor:
        """The objective of the last backward of a step; after that backward, gradients are sums over all ranks."""
        return self._parallel(objective)

    def release(self) -> None:
        """Leave the model as it was found."""
        for hook in self._hooks:
            hook.remove()

    def _note(self, number: int, parameter: Tensor) -> None:
        self._reached.add(number)


class _Passing(nn.Module):
    """Gives back what it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.trained = nn.ParameterList(each for each in model.parameters() if each.requires_grad)

    def forward(self, objective: Tensor) -> Tensor:
        return _NamingInputs.apply(objective, *self.trained)  # type: ignore[return-value]


class _NamingInputs(Function):
    @staticmethod
    def forward(ctx: Any, objective: Tensor, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return objective.view_as(objective)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, *[None] * ctx.count


def _sum(state, bucket):  # type: ignore[no-untyped-def]  # PyTorch looks for its own annotation or none
    """Sums, where the usual hook takes means: the objective of a rank is its share of the mean over all lanes."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])
