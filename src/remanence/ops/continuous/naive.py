"""The continuous memory as it is defined (Martins et al. 2022, section 3), one lane, one head and one place at a time.

For reading and for tests. Shapes: N basis functions, n vectors of a block, M samples, D width, K head width, J bins.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from remanence.ops.continuous.basis import Basis
from remanence.ops.continuous.operator import Fit


def function(basis: Basis, index: int, place: float) -> float:
    """psi_k(t)."""
    width = basis.widths[index % len(basis.widths)]
    centre = (index // len(basis.widths)) / (basis.centres - 1)
    return math.exp(-((place - centre) ** 2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi))


def design(basis: Basis, places: list[float]) -> Float[Tensor, "n N"]:
    """Psi."""
    return torch.tensor(
        [[function(basis, index, place) for index in range(basis.number)] for place in places], dtype=torch.float64
    ).reshape(len(places), basis.number)


def places_of(fit: Fit, length: int, later: bool) -> tuple[list[float], list[float]]:
    """Observations and padding of a block of `length` vectors."""
    if not later:
        observed = [(i - 0.5) / length for i in range(1, length + 1)]
        half = length // 2
        before = [observed[0] - k / length for k in range(half, 0, -1)]
        return observed, before + [observed[-1] + k / length for k in range(1, half + 1)]
    tau, number = fit.contraction, 2 * (length + fit.samples)
    observed = [tau * m / fit.samples for m in range(1, fit.samples + 1)]
    observed += [tau + (1 - tau) * i / length for i in range(1, length + 1)]
    margin = 1 / (2 * length + fit.samples)
    step = (2 - 2 * margin) / (number - 1)
    padding = [-0.5 + margin + step * i for i in range(number)]
    return observed, [place for place in padding if place < 0 or place > 1]


def operator(fit: Fit, length: int, later: bool) -> Float[Tensor, "N O"]:
    """R, by an explicit inverse."""
    observed, padding = places_of(fit, length, later)
    psi, padded = design(fit.basis, observed), design(fit.basis, padding)
    gram = psi.T @ psi + padded.T @ padded + fit.ridge * torch.eye(fit.basis.number, dtype=torch.float64)
    return torch.linalg.inv(gram) @ psi.T


def write(
    fit: Fit, past: Float[Tensor, "N D"] | None, block: Float[Tensor, "n D"], places: list[float] | None = None
) -> Float[Tensor, "N D"]:
    """The coefficients of one lane after a block; `places` are where the old function is sampled, m / M by default."""
    if past is None:
        return operator(fit, len(block), False) @ block
    places = [m / fit.samples for m in range(1, fit.samples + 1)] if places is None else places
    return operator(fit, len(block), True) @ torch.cat([design(fit.basis, places) @ past, block])


def location(
    query: Float[Tensor, " K"],
    keys: Float[Tensor, "N K"],
    mean: Float[Tensor, " N"],
    spread: Float[Tensor, " N"],
    floor: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and variance of one query's Gaussian, through its scores for all N functions."""
    scores = keys @ query / math.sqrt(len(query))
    return torch.sigmoid(mean @ scores), torch.nn.functional.softplus(spread @ scores).clamp(min=floor)


def expected(basis: Basis, mean: float, variance: float, steps: int = 20001) -> Float[Tensor, " N"]:
    """R of one query by the trapezoidal rule over everywhere that has mass."""
    reach = 12 * (math.sqrt(variance) + max(basis.widths)) + 1
    grid = torch.linspace(-reach, 1 + reach, steps, dtype=torch.float64)
    density = torch.exp(-((grid - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    centres, widths = basis.parameters()
    values = torch.exp(-((grid[:, None] - centres) ** 2) / (2 * widths**2)) / (widths * math.sqrt(2 * math.pi))
    return torch.trapezoid(density[:, None] * values, grid, dim=0)


def bin_mass(mean: float, variance: float, low: float, high: float) -> float:
    """Mass of one query's Gaussian between two edges."""
    scale = math.sqrt(2 * variance)
    return 0.5 * (math.erf((high - mean) / scale) - math.erf((low - mean) / scale))


def place_of(masses: list[float], share: float) -> float:
    """F^-1(share): the bins are walked from the left until the share is used up."""
    left = share * sum(masses)
    for number, mass in enumerate(masses):
        if left < mass:
            return (number + left / mass) / len(masses)
        left -= mass
    return 1.0


def key_of(tokens: list[int]) -> int:
    """The key of a lane that has read these tokens, as a signed 64-bit number."""
    key = 0
    for token in tokens:
        key = (key * 6364136223846793005 + token + 1) % 2**64
    return key - 2**64 if key >= 2**63 else key
