"""The operator that turns observations into coefficients: ridge regression, padded with zeros outside [0, 1].

R = (Psi^T Psi + Psi_p^T Psi_p + ridge I)^-1 Psi^T,  Psi = [psi_k(t_i)]                     (N x number of observations)

Made in float64 whatever the model computes in: the Gram matrix has a condition number of a million, and in float32 R is
wrong by several per cent (README.md). Shapes: N basis functions, n vectors of a block, M samples of the old function.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from remanence.ops.continuous.basis import Basis, gaussians

KEPT = 32
"""Operators in the cache: 1 to 4 MB each at the published sizes, and a stream of full segments needs two."""


@dataclass(frozen=True)
class Fit:
    """How observations become a function: everything an operator depends on, beside the length of the block."""

    basis: Basis
    ridge: float
    contraction: float
    """tau: the old function moves to [0, tau], the new block to (tau, 1]."""
    samples: int
    """M, places at which the old function is sampled."""


def first_places(length: int) -> tuple[Float[Tensor, " n"], Float[Tensor, " P"]]:
    """Where the vectors of a first block lie, and the padding: the same grid, half a block further on either side."""
    grid = (torch.arange(-(length // 2), length + length // 2, dtype=torch.float64, device="cpu") + 0.5) / length
    begin = length // 2
    return grid[begin : begin + length], torch.cat([grid[:begin], grid[begin + length :]])


def later_places(length: int, samples: int, contraction: float) -> tuple[Float[Tensor, " O"], Float[Tensor, " P"]]:
    """Where M old samples and n new vectors lie (O = M + n), and the padding.

    The padding's first place, at 1 / (2 n + M) above -1/2, is as in the published code.
    """
    old = torch.arange(1, samples + 1, dtype=torch.float64, device="cpu") / samples * contraction
    new = torch.arange(1, length + 1, dtype=torch.float64, device="cpu") / length * (1 - contraction) + contraction
    margin = 1 / (2 * length + samples)
    padding = torch.linspace(-0.5 + margin, 1.5 - margin, 2 * (length + samples), dtype=torch.float64, device="cpu")
    return torch.cat([old, new]), padding[(padding < 0) | (padding > 1)]


@lru_cache(maxsize=KEPT)
def operator(
    fit: Fit, length: int, later: bool, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Float[Tensor, "N O"]:
    """R for a block of `length` vectors: alone (O = n), or with `later` after M old samples (O = M + n)."""
    places, padding = later_places(length, fit.samples, fit.contraction) if later else first_places(length)
    parameters = fit.basis.parameters()
    design, padded = gaussians(places, *parameters), gaussians(padding, *parameters)
    gram = design.T @ design + padded.T @ padded
    gram.diagonal().add_(fit.ridge)
    return torch.cholesky_solve(design.T, torch.linalg.cholesky(gram)).to(device, dtype)


@lru_cache(maxsize=KEPT)
def sampler(fit: Fit, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Float[Tensor, "M N"]:
    """Psi(u) at the uniform places m / M."""
    places = torch.arange(1, fit.samples + 1, dtype=torch.float64, device="cpu") / fit.samples
    return gaussians(places, *fit.basis.parameters()).to(device, dtype)


def safe(fit: Fit, length: int) -> bool:
    """Whether no basis function is narrower than the spacing of observations, nor all than that of the centres.

    Inside this region the spectral radius stayed below 1 in every configuration that was tried (README.md).
    """
    spacing = max(fit.contraction / fit.samples, (1 - fit.contraction) / length)
    slack = 1 + 1e-9
    return min(fit.basis.widths) * slack >= spacing and max(fit.basis.widths) * slack >= 1 / (fit.basis.centres - 1)


@lru_cache(maxsize=KEPT)
def radius(fit: Fit, length: int) -> float:
    """Spectral radius of the map from old coefficients to new ones; above 1 the memory explodes."""
    kept = operator(fit, length, True)[:, : fit.samples] @ sampler(fit)
    return torch.linalg.eigvals(kept).abs().max().item()
