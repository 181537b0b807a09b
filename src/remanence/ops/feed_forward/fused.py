"""The feed-forward part of a layer, which keeps one tensor of its inner width and passes over it as rarely as it can.

forward     r = mask relu(W_1 x + b_1);  y = W_2 r / (1 - rate) + b_2
backward    dr = W_2^T dy / (1 - rate) where r > 0, else 0

What survives both the rectifier and the dropout is what is above zero, so neither leaves a mask behind; the factor of
the dropout goes into the sum with b_2. Biases are added to products: one that is given a bias
copies it to its size first.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from remanence.ops.dropout.bits import dropout as drop
from remanence.ops.dropout.bits import mask_, random_mask


def feed_forward(
    rows: Float[Tensor, "*N D"],
    widen: Float[Tensor, "F D"],
    widen_bias: Float[Tensor, " F"],
    narrow: Float[Tensor, "D F"],
    narrow_bias: Float[Tensor, " D"],
    dropout: float = 0.0,
) -> Float[Tensor, "*N D"]:
    """What `naive.feed_forward` defines, in the autocast dtype where one is set."""
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return F.linear(drop(F.relu(F.linear(rows, widen, widen_bias)), dropout), narrow, narrow_bias)
    autocast = torch.is_autocast_enabled("cpu") and rows.dtype != torch.float64
    products = torch.get_autocast_dtype("cpu") if autocast else rows.dtype
    return _FeedForward.apply(rows, widen, widen_bias, narrow, narrow_bias, dropout, products)  # type: ignore[return-value]


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        widen: Tensor,
        widen_bias: Tensor,
        narrow: Tensor,
        narrow_bias: Tensor,
        rate: float,
        products: torch.dtype,
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            read, weight = rows.flatten(0, -2).to(products), widen.to(products)
            inner = torch.mm(read, weight.T).add_(widen_bias.to(products)).relu_()
            if rate:
                mask_(inner, random_mask(inner.shape, rate))
            scale = 1 / (1 - rate)
            outer = narrow.to(products)
            given = torch.add(narrow_bias.to(products), torch.mm(inner, outer.T), alpha=scale)
        ctx.save_for_backward(read, weight, outer, inner)
        ctx.scale = scale
        ctx.kinds = [each.dtype for each in (rows, widen, widen_bias, narrow, narrow_bias)]
        return given.view(*rows.shape[:-1], len(narrow))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        read, weight, narrow, inner = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            pull = grad.flatten(0, -2)
            scaled = pull * ctx.scale if ctx.scale != 1 else pull
            slopes = scaled @ narrow
            torch.ops.aten.threshold_backward.grad_input(slopes, inner, 0, grad_input=slopes)
            grads = (
                (slopes @ weight).view(*grad.shape[:-1], weight.shape[1]),
                slopes.T @ read,
                slopes.sum(0),
                scaled.T @ inner,
                pull.sum(0),
            )
            return *(each.to(kind) for each, kind in zip(grads, ctx.kinds, strict=True)), None, None
