"""Cross-entropy that never holds all logits: the vocabulary passes by in chunks, forward and again backward.

forward   logsum_n = logaddexp over chunks of log sum_v exp(z_nv)
backward  dz_nv = g_n (exp(z_nv - logsum_n) - [v = target(n)])
              dhidden = sum over chunks dz weight,  dweight = dz^T hidden
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 1 << 23
"""Logits held at once: 32 MiB in float32."""


def linear_cross_entropy(
    hidden: Float[Tensor, "N E"],
    weight: Float[Tensor, "V E"],
    bias: Float[Tensor, " V"],
    targets: Int[Tensor, " N"],
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Float[Tensor, " N"]:
    """What `naive.linear_cross_entropy` defines, in float32 or better; products in the autocast dtype where one is set.

    Peak memory beyond the arguments and their gradients is a few times `chunk_elements` numbers.
    """
    kind = hidden.device.type
    products = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    if hidden.dtype == torch.float64:
        products = hidden.dtype
    rows = max(1, chunk_elements // max(hidden.shape[0], 1))
    if weight.shape[0] <= rows and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        # One chunk and no way back: of few rows, a running sum of chunks takes longer than the logits.
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        with torch.autocast(kind, enabled=False):
            scores = _logits(hidden.to(products), weight, bias, products, exact).log_softmax(-1)
            wanted = scores.gather(1, targets.clamp(min=0)[:, None])[:, 0]
            return torch.where(targets >= 0, -wanted, 0.0)
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, products, rows)  # type: ignore[return-value]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor, products: torch.dtype, exact: torch.dtype) -> Tensor:
    logits = torch.mm(hidden, weight.to(products).T).to(exact)
    return logits.add_(bias)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, products: torch.dtype, rows: int
    ) -> Tensor:
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        low = hidden.to(products)
        logsum = torch.full(targets.shape, torch.finfo(exact).min, dtype=exact, device=hidden.device)
        wanted = torch.zeros_like(logsum)
        with torch.autocast(hidden.device.type, enabled=False):
            for first in range(0, weight.shape[0], rows):
                chunk = slice(first, first + rows)
                logits = _logits(low, weight[chunk], bias[chunk], products, exact)
                logsum = torch.logaddexp(logsum, logits.logsumexp(-1))
                inside = targets - first
                here = (inside >= 0) & (inside < logits.shape[1])
                found = logits.gather(1, inside.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
                wanted = torch.where(here, found, wanted)
        ctx.save_for_backward(hidden, weight, bias, targets, logsum)
        ctx.products, ctx.rows = products, rows
        return torch.where(targets >= 0, logsum - wanted, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, weight, bias, targets, logsum = ctx.saved_tensors
        products, rows = ctx.products, ctx.rows
        low = hidden.to(products)
        grad = torch.where(targets >= 0, grad, 0.0)[:, None].to(logsum.dtype)
        grad_hidden = torch.zeros(hidden.shape, dtype=logsum.dtype, device=hidden.device)
        grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
        each = torch.arange(hidden.shape[0], device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for first in range(0, weight.shape[0], rows):
                chunk = slice(first, first + rows)
                slopes = _logits(low, weight[chunk], bias[chunk], products, logsum.dtype)
                slopes.sub_(logsum[:, None]).exp_()
                inside = targets - first
                here = (inside >= 0) & (inside < slopes.shape[1])
                slopes[each, inside.clamp(0, slopes.shape[1] - 1)] -= here.to(slopes.dtype)
                slopes.mul_(grad)
                grad_bias[chunk] = slopes.sum(0)
                slopes = slopes.to(products)
                grad_weight[chunk] = slopes.T @ low
                grad_hidden += slopes @ weight[chunk].to(products)
        return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None, None
