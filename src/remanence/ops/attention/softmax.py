"""Softmax over the keys a query may see, in float32, keeping only the weights for the way back.

p_j = exp(s_j) / sum_j exp(s_j),  logsum = log sum_j exp(s_j);   ds_j = p_j (dp_j - sum_j p_j dp_j + dlogsum)
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def masked_softmax(
    content: Float[Tensor, "B H T S"],
    position: Float[Tensor, "B H T S"] | None,
    visible: Bool[Tensor, "#B T S"] | None,
    with_logsum: bool = False,
) -> tuple[Float[Tensor, "B H T S"], Float[Tensor, "B H T"] | None]:
    """Weights (in the dtype of the scores) and log-sum (float32 or better) of `content + position`.

    `visible` None means that every key is seen. Rows that see no key get equal weights, which the caller turns into
    zeros, and the lowest finite number as log-sum.
    """
    return _MaskedSoftmax.apply(content, position, visible, with_logsum)  # type: ignore[return-value]


class _MaskedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, content: Tensor, position: Tensor | None, visible: Tensor | None, with_logsum: bool) -> Any:
        exact = torch.float64 if content.dtype == torch.float64 else torch.float32
        scores = content.to(exact, copy=position is not None or visible is not None)
        if position is not None:
            scores += position
        if visible is not None:
            scores.masked_fill_(~visible[:, None], torch.finfo(exact).min)
        weights = torch.softmax(scores, -1)
        logsum = None
        if with_logsum:
            # Any key gives log-sum = s_j - log p_j; the largest is the most exact, and cheaper than exponentials.
            logsum = scores.amax(-1) - weights.amax(-1).log()
        weights = weights.to(content.dtype)
        seen = None if visible is None or not with_logsum else visible.any(-1)[:, None]
        ctx.save_for_backward(weights, seen)
        ctx.has_position = position is not None
        ctx.set_materialize_grads(False)
        return weights, logsum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_weights: Tensor | None, grad_logsum: Tensor | None) -> Any:
        weights, seen = ctx.saved_tensors
        exact = torch.float64 if weights.dtype == torch.float64 else torch.float32
        if grad_weights is None:
            grad = torch.zeros_like(weights, dtype=exact)
        else:
            grad = grad_weights.to(exact, copy=True)
            grad -= (grad * weights).sum(-1, keepdim=True)
        if grad_logsum is not None:
            # Of a row that sees nothing the log-sum is a constant.
            grad += (grad_logsum if seen is None else grad_logsum * seen)[..., None]
        grad *= weights
        grad = grad.to(weights.dtype)
        return grad, grad if ctx.has_position else None, None, None
