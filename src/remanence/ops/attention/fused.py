"""Relative attention as one operator: kernels that never hold a T x S tensor (README.md, "On the GPU").

`relative_attention` and `look_ahead` use it on a GPU that Triton knows, wherever `applies` says so. Shapes: B lanes,
H heads, T queries, S keys, P distances, K head width.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

MODE = os.environ.get("REMANENCE_FUSED_ATTENTION", "auto")
"""auto: on a CUDA GPU, where `applies` finds that it pays; off: never; on: for every shape, and on the CPU where
TRITON_INTERPRET=1."""

FEWEST_QUERIES = 16
"""With fewer a tile of queries is mostly empty, and the scores are few."""

INSTALLED = importlib.util.find_spec("triton") is not None
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 128
"""The widest head whose tiles fit beside each other into the shared memory of a multiprocessor."""


def applies(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the fused kernels are to compute this attention."""
    if MODE == "off" or not INSTALLED or queries.dtype not in DTYPES or queries.shape[-1] > WIDEST:
        return False
    if keys.dtype != queries.dtype or values.dtype != queries.dtype or 0 in queries.shape or 0 in keys.shape:
        return False
    if MODE == "on":
        return True
    if not queries.is_cuda or torch.version.hip is not None or queries.shape[-2] < FEWEST_QUERIES:
        return False
    # Exact products of float32 know no tensor cores, and cuBLAS is better at them.
    return _has_tensor_cores(queries.device.index or 0) and (queries.dtype != torch.float32 or _shortens())


@torch.compiler.assume_constant_result
def _has_tensor_cores(device: int) -> bool:
    """Whether a GPU multiplies bfloat16 and shortened float32 (Ampere, or newer)."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


@torch.compiler.assume_constant_result
def _shortens() -> bool:
    """Whether products of float32 may be computed with fewer bits; a compiled graph takes it as it finds it."""
    return torch.get_float32_matmul_precision() != "highest"


def fused_attention(
    queries: Float[Tensor, "B H T K"],
    keys: Float[Tensor, "B H S K"],
    values: Float[Tensor, "B H S K"],
    visible: Bool[Tensor, "#B T S"] | None,
    *,
    content_bias: Float[Tensor, "H K"] | None = None,
    position_bias: Float[Tensor, "H K"] | None = None,
    positions: Float[Tensor, "P H K"] | None = None,
    distance_bias: Float[Tensor, "P H"] | None = None,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T"]]:
    """Context and log-sum (float32). Key j of query i takes row j - i + T - 1 of the positions, whatever P is."""
    seed = None
    if dropout:
        # Drawn where the queries are, so that nothing waits for the device; the generator's state is what resumes.
        seed = torch.randint(1 << 62, (1,), dtype=torch.int64, device=queries.device)
    biases = (content_bias, position_bias, positions, distance_bias)
    return _attention(queries, keys, values, visible, *biases, seed, dropout)


# Schemas are written out: with shapes checked, torch cannot infer them.
_GIVEN = (
    "Tensor queries, Tensor keys, Tensor values, Tensor? visible, Tensor? content_bias, Tensor? position_bias, "
    "Tensor? positions, Tensor? distance_bias, Tensor? seed"
)
_FORWARD = f"({_GIVEN}, float dropout) -> (Tensor, Tensor)"
_BACKWARD = (
    f"({_GIVEN}, Tensor context, Tensor logsum, Tensor gradient, Tensor logsum_gradient, float dropout) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("remanence::attention", mutates_args=(), schema=_FORWARD)
def _attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor | None,
    content_bias: Tensor | None,
    position_bias: Tensor | None,
    positions: Tensor | None,
    distance_bias: Tensor | None,
    seed: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    from remanence.ops.attention.launch import forward

    with torch.cuda.device_of(queries):
        return forward(
            queries, keys, values, visible, content_bias, position_bias, positions, distance_bias, seed, dropout
        )


@torch.library.custom_op("remanence::attention_backward", mutates_args=(), schema=_BACKWARD)
def _attention_backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor | None,
    content_bias: Tensor | None,
    position_bias: Tensor | None,
    positions: Tensor | None,
    distance_bias: Tensor | None,
    seed: Tensor | None,
    context: Tensor,
    logsum: Tensor,
    gradient: Tensor,
    logsum_gradient: Tensor,
    dropout: float,
) -> tuple[Tensor, ...]:
    """Gradients of all float arguments; empty ones where an argument was not given."""
    from remanence.ops.attention.launch import backward

    with torch.cuda.device_of(queries), torch.autocast(queries.device.type, enabled=False):
        return backward(
            queries, keys, values, visible, content_bias, position_bias, positions, distance_bias, seed,
            context, logsum, gradient, logsum_gradient, dropout,
        )  # fmt: skip


def rows_first(like: Tensor) -> Tensor:
    """Empty (B, H, T, K), laid out as (B, T, H, K): joining the heads afterwards copies nothing."""
    lanes, heads, rows, width = like.shape
    return like.new_empty(lanes, rows, heads, width).transpose(1, 2)


@_attention.register_fake
def _(queries: Any, *others: Any) -> Any:
    return rows_first(queries), queries.new_empty(queries.shape[:3], dtype=torch.float32)


@_attention_backward.register_fake
def _(
    queries: Any, keys: Any, values: Any, visible: Any, content_bias: Any, position_bias: Any, positions: Any,
    distance_bias: Any, *others: Any,
) -> Any:  # fmt: skip
    others = (content_bias, position_bias, positions, distance_bias)
    made = (keys.new_empty(keys.shape), values.new_empty(values.shape))
    return rows_first(queries), *made, *(queries.new_empty(0) if x is None else x.new_empty(x.shape) for x in others)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.dropout = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor | None, logsum_gradient: Tensor | None) -> tuple[Any, ...]:
    *tensors, context, logsum = ctx.saved_tensors
    gradient = torch.zeros_like(context) if gradient is None else gradient
    logsum_gradient = torch.zeros_like(logsum) if logsum_gradient is None else logsum_gradient
    queries, keys, values, *rest = _attention_backward(
        *tensors, context, logsum, gradient, logsum_gradient, ctx.dropout
    )
    biases = [None if given is None else found for given, found in zip(tensors[4:8], rest, strict=True)]
    return queries, keys, values, None, *biases, None, None


_attention.register_autograd(_backward, setup_context=_remember)


def _products(queries: Any, keys: Any, positions: Any) -> int:
    """Floating-point operations of one product of every query with every key, times the kinds of products."""
    *_, num_queries, width = queries
    return 2 * queries[0] * queries[1] * num_queries * keys[2] * width * (2 if positions is None else 3)


@register_flop_formula(torch.ops.remanence.attention)
def _forward_flops(queries: Any, keys: Any, values: Any, visible: Any, *others: Any, **options: Any) -> int:
    """As the model defines it: what is skewed away or computed again does not count."""
    return _products(queries, keys, others[2])


@register_flop_formula(torch.ops.remanence.attention_backward)
def _backward_flops(queries: Any, keys: Any, values: Any, visible: Any, *others: Any, **options: Any) -> int:
    return 2 * _products(queries, keys, others[2])
