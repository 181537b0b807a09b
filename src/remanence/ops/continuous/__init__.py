"""A far past of any length as one continuous function: written by ridge regression, read in closed form."""

from remanence.ops.continuous.basis import Basis, default_widths, gaussians
from remanence.ops.continuous.draws import densest, fold, uniforms
from remanence.ops.continuous.operator import Fit, operator, radius, safe
from remanence.ops.continuous.read import bin_masses, divergence, expected_basis
from remanence.ops.continuous.rewrite import rewrite

__all__ = [
    "Basis",
    "Fit",
    "bin_masses",
    "default_widths",
    "densest",
    "divergence",
    "expected_basis",
    "fold",
    "gaussians",
    "operator",
    "radius",
    "rewrite",
    "safe",
    "uniforms",
]
