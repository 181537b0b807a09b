"""Writing: the old function is squeezed into [0, tau], the new block stands on (tau, 1], and both are fitted again.

    first    B = R_first(n) x                                         later    B = R_later(n) [Psi(u) B_past ; x]

An operator of its own in torch's sense: which R a lane needs depends on how long its block is, so nothing in here can
be part of a graph, and a compiled model calls it whole. Always computed in float32 or float64, never in less.
Shapes: B lanes, N basis functions, D width, C capacity of a block, M samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from remanence.ops.continuous.basis import Basis, gaussians
from remanence.ops.continuous.operator import Fit, operator, sampler


def rewrite(
    past: Float[Tensor, "B N D"],
    places: Float[Tensor, "B M"] | None,
    block: Float[Tensor, "B C D"],
    counts: Int[Tensor, " B"],
    known: Bool[Tensor, " B"],
    fit: Fit,
) -> Float[Tensor, "B N D"]:
    """The coefficients after the first `counts` vectors of each lane's block are written; without any, those it had.

    Args:
        past: coefficients so far, float32 or float64; what lanes without memory hold is not looked at.
        places: u, where each lane's old function is sampled, rising; None for m / M.
        block: new vectors, oldest first, of the dtype of `past`.
        counts: how many of them are real. On the CPU, or the device is waited for.
        known: lanes that have a memory, whose old function stays.
        fit: how observations become a function.
    """
    constants = (fit.basis.number, fit.basis.widths, fit.ridge, fit.contraction, fit.samples)
    return _rewrite(past, places, block, counts, known, *constants)


def _fit_of(number: int, widths: Sequence[float], ridge: float, contraction: float, samples: int) -> Fit:
    return Fit(Basis(number, tuple(widths)), ridge, contraction, samples)


def _groups(counts: Tensor, known: Tensor) -> Iterator[tuple[int, bool, Any]]:
    """Block length, whether there is a memory, and an index of the lanes that are alike in both."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for lane, kind in enumerate(zip(counts.tolist(), known.tolist(), strict=True)):
        if kind[0]:
            groups.setdefault(kind, []).append(lane)
    for (count, later), lanes in groups.items():
        yield count, later, slice(None) if len(lanes) == len(counts) else lanes


@contextmanager
def _exact(tensor: Tensor) -> Iterator[None]:
    """Products in the dtype of their factors: no autocast, no shortened mantissa (TF32, or bfloat16 on some CPUs)."""
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(tensor.device.type, enabled=False):
            yield
    finally:
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)


def _samples(fit: Fit, places: Tensor | None, lanes: Any, like: Tensor) -> Tensor:
    """Psi(u) of some lanes, (B, M, N) or (M, N)."""
    if places is None:
        return sampler(fit, like.dtype, like.device)
    return gaussians(places[lanes].to(like.dtype), *fit.basis.parameters(like.dtype, like.device))


# Schemas are written out: with shapes checked, torch cannot infer them.
_FIT = "int number, float[] widths, float ridge, float contraction, int samples"
_SCHEMA = f"(Tensor past, Tensor? places, Tensor block, Tensor counts, Tensor known, {_FIT}) -> Tensor"
_GIVEN = "Tensor gradient, Tensor? places, Tensor counts, Tensor known, int capacity, bool with_past"
_BACKWARD = f"({_GIVEN}, {_FIT}) -> (Tensor, Tensor)"


@torch.library.custom_op("remanence::rewrite", mutates_args=(), schema=_SCHEMA)
def _rewrite(
    past: Tensor,
    places: Tensor | None,
    block: Tensor,
    counts: Tensor,
    known: Tensor,
    number: int,
    widths: Sequence[float],
    ridge: float,
    contraction: float,
    samples: int,
) -> Tensor:
    fit = _fit_of(number, widths, ridge, contraction, samples)
    written = past.clone()
    with _exact(past):
        for count, later, lanes in _groups(counts, known):
            observed = block[lanes, :count]
            if later:
                observed = torch.cat([_samples(fit, places, lanes, past) @ past[lanes], observed], dim=1)
            written[lanes] = operator(fit, count, later, past.dtype, past.device) @ observed
    return written


@torch.library.custom_op("remanence::rewrite_backward", mutates_args=(), schema=_BACKWARD)
def _rewrite_backward(
    gradient: Tensor,
    places: Tensor | None,
    counts: Tensor,
    known: Tensor,
    capacity: int,
    with_past: bool,
    number: int,
    widths: Sequence[float],
    ridge: float,
    contraction: float,
    samples: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of the past (empty unless wanted) and of the block."""
    fit = _fit_of(number, widths, ridge, contraction, samples)
    past = gradient.clone() if with_past else gradient.new_zeros(0)
    block = gradient.new_zeros(gradient.shape[0], capacity, gradient.shape[2])
    with _exact(gradient):
        for count, later, lanes in _groups(counts, known):
            matrix = operator(fit, count, later, gradient.dtype, gradient.device)
            given = gradient[lanes]
            block[lanes, :count] = matrix[:, -count:].T @ given
            if with_past and later:
                sampled = _samples(fit, places, lanes, gradient)
                past[lanes] = sampled.transpose(-2, -1) @ (matrix[:, :-count].T @ given)
            elif with_past:
                past[lanes] = 0
    return past, block


@_rewrite.register_fake
def _(past: Any, places: Any, block: Any, *others: Any) -> Any:
    return torch.empty_like(past)


@_rewrite_backward.register_fake
def _(gradient: Any, places: Any, counts: Any, known: Any, capacity: Any, with_past: Any, *others: Any) -> Any:
    past = torch.empty_like(gradient) if with_past else gradient.new_empty(0)
    return past, gradient.new_empty(gradient.shape[0], capacity, gradient.shape[2])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, places, block, counts, known, *constants = inputs
    ctx.save_for_backward(places, counts, known)
    ctx.capacity, ctx.constants = block.shape[1], constants


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    places, counts, known = ctx.saved_tensors
    with_past = ctx.needs_input_grad[0]
    past, block = _rewrite_backward(
        gradient.contiguous(), places, counts, known, ctx.capacity, with_past, *ctx.constants
    )
    return past if with_past else None, None, block, None, None, None, None, None, None, None


_rewrite.register_autograd(_backward, setup_context=_remember)


def _products(block: Tensor, counts: Tensor, known: Tensor, constants: tuple[Any, ...]) -> int:
    """Floating-point operations of writing, of which torch's counter sees nothing inside an operator."""
    number, samples, width = constants[0], constants[4], block.shape[2]
    total = 0
    for count, later in zip(counts.tolist(), known.tolist(), strict=True):
        total += 2 * number * width * (count + 2 * samples * later) if count else 0
    return total


@register_flop_formula(torch.ops.remanence.rewrite, get_raw=True)
def _forward_flops(
    past: Any, places: Any, block: Any, counts: Any, known: Any, *constants: Any, out_val: Any = None
) -> int:
    return _products(block, counts, known, constants)


@register_flop_formula(torch.ops.remanence.rewrite_backward, get_raw=True)
def _backward_flops(
    gradient: Any,
    places: Any,
    counts: Any,
    known: Any,
    capacity: Any,
    with_past: Any,
    *constants: Any,
    out_val: Any = None,
) -> int:
    both = known if with_past else torch.zeros_like(known)
    return _products(gradient, counts, both, constants)
