"""Dropout whose mask is cut out of 64-bit random numbers, four decisions from each.

torch's CPU dropout draws a Bernoulli number for every element, which takes a third of a training step here. The rate is
met to within 1/65536.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEVELS = 1 << 16


def dropout(values: Float[Tensor, "*shape"], rate: float, training: bool = True) -> Float[Tensor, "*shape"]:
    """Drop each value with probability `rate` and scale the rest by 1 / (1 - rate).

    Randomness comes from torch's global generator of the device. On a GPU, and inside a compiled graph, torch's own
    fused dropout is the faster one and is used.
    """
    if not training or rate == 0:
        return values
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(values, rate)
    return _BitDropout.apply(values, rate)  # type: ignore[return-value]


def random_mask(shape: torch.Size, rate: float) -> Tensor:
    """Booleans, each False with probability `rate` (to within 1/65536), from the global CPU generator."""
    count = shape.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)
    threshold = min(round(rate * LEVELS), LEVELS - 1) - LEVELS // 2
    return (words.view(torch.int16)[:count] >= threshold).view(shape)


class _BitDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rate: float) -> Tensor:
        kept = random_mask(values.shape, rate)
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - rate)
        return (values * kept).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(ctx.scale), None
