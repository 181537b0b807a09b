"""Data parallelism: every rank has the whole model, and gradients are summed.

    loss, backward (this rank's lanes) ... the last backward of a step -> sums in buckets, while it still runs -> update

The horizon engines read the model itself, as often and in whatever order they need, and their gradients add up on the
rank. Only the last backward of a step passes through PyTorch's `DistributedDataParallel`: the objective goes through a
module that gives it back and names all parameters as its inputs, so that each of them is reported when the gradient of
everything that uses it is complete, whether that backward uses it or not.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel


class Replicated:
    """Sums the gradients of a model over all ranks. Raises RuntimeError where the ranks' models differ in shape."""

    def __init__(self, model: nn.Module) -> None:
        self._parallel = DistributedDataParallel(_Passing(model), gradient_as_bucket_view=True)
        self._parallel.register_comm_hook(None, _sum)

    def last(self, objective: Tensor) -> Tensor:
        """The objective of the last backward of a step; after that backward, gradients are sums over all ranks."""
        return self._parallel(objective)


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
