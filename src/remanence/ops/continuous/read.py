"""Reading: the expected value of a function under a Gaussian over [0, 1], in closed form; and where that looks.

r_k = int N(t; mu, sigma^2) psi_k(t) dt = N(mu; c_k, s_k^2 + sigma^2)           over the whole line

Shapes: B lanes, H heads, T queries, N basis functions, J bins.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

EDGE = 1e-6
"""The outermost edges of the bins lie this far outside [0, 1], as in the published code."""


def expected_basis(
    mean: Float[Tensor, "B H T"],
    variance: Float[Tensor, "B H T"],
    centres: Float[Tensor, " N"],
    widths: Float[Tensor, " N"],
) -> Float[Tensor, "B H T N"]:
    """r, keeping for the way back nothing of its size but itself."""
    return _ExpectedBasis.apply(mean, variance, centres, widths)  # type: ignore[return-value]


class _ExpectedBasis(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor, centres: Tensor, widths: Tensor) -> Any:
        spread = variance[..., None] + widths.square()
        expected = (mean[..., None] - centres).square_().div_(spread).mul_(-0.5).exp_()
        expected.div_(spread.mul_(2 * math.pi).sqrt_())
        ctx.save_for_backward(mean, variance, centres, widths, expected)
        return expected

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        mean, variance, centres, widths, expected = ctx.saved_tensors
        spread = variance[..., None] + widths.square()
        offset = (mean[..., None] - centres).div_(spread)
        weighed = gradient * expected
        to_mean = -(weighed * offset).sum(-1)
        to_variance = (weighed * (offset.square() - 1 / spread)).sum(-1) / 2
        return to_mean, to_variance, None, None


def divergence(
    mean: Float[Tensor, "B H T"],
    variance: Float[Tensor, "B H T"],
    prior_width: float,
    prior_mean: float | None = None,
) -> Float[Tensor, "B H T"]:
    """(v - log v - 1) / 2,  v = sigma^2 / sigma_0^2: KL from a prior of that width, in nats, with mu free.

    With a prior mean, (mu - mu_0)^2 / (2 sigma_0^2) is added.
    """
    ratio = variance / prior_width**2
    nats = (ratio - ratio.log() - 1) / 2
    return nats if prior_mean is None else nats + ((mean - prior_mean) / prior_width).square() / 2


def bin_masses(
    mean: Float[Tensor, "B H T"],
    variance: Float[Tensor, "B H T"],
    bins: int,
    real: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B J"]:
    """P: how much attention each of J equal bins of [0, 1] got from all heads and real queries. Never negative."""
    edges = torch.arange(bins + 1, device=mean.device).to(mean.dtype) / bins
    edges[0], edges[-1] = -EDGE, 1 + EDGE
    masses = torch.special.ndtr((edges - mean[..., None]) / variance.sqrt()[..., None]).diff(dim=-1).clamp(min=0)
    if real is not None:
        masses = masses * real[:, None, :, None]
    return masses.sum((1, 2))
