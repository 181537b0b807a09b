"""How the kernels of fused attention are called: block sizes, padding, strides, and what is summed up afterwards."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from remanence.ops.attention.fused import rows_first
from remanence.ops.attention.triton_backward import attention_keys, attention_positions, attention_queries
from remanence.ops.attention.triton_forward import attention_forward
from remanence.ops.attention.triton_tiles import extents

PROGRAMS = 512
"""Programs of the kernel of positions that are wanted at least: a few for each multiprocessor."""


class Blocks(NamedTuple):
    """How a kernel is cut, fixed for a dtype and a width: results do not depend on what was measured at start."""

    rows: int
    """Queries, keys and distances of a tile."""
    warps: tuple[int, int, int, int]
    """Of the kernels forward, queries, keys, positions."""
    stages: tuple[int, int, int, int]


def blocks(dtype: torch.dtype, width: int) -> Blocks:
    """The block sizes for heads that are padded to `width`."""
    if dtype == torch.float32 or width > 64:
        return Blocks(32, (4, 4, 4, 4), (2, 2, 2, 1))
    return Blocks(64, (4, 8, 8, 8), (2, 2, 2, 1))


class _Call:
    """What all kernels of one attention are given."""

    def __init__(
        self, queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, content_bias: Tensor | None,
        position_bias: Tensor | None, positions: Tensor | None, distance_bias: Tensor | None, seed: Tensor | None,
        dropout: float,
    ) -> None:  # fmt: skip
        self.lanes, self.heads, self.num_queries, self.value_width = queries.shape
        self.num_keys = keys.shape[2]
        self.dtype = queries.dtype
        # Rows that do not begin at a multiple of 16 bytes would be read element by element.
        self.width = -(-self.value_width // 16) * 16
        self.content = self.padded(_plus(queries, content_bias))
        self.keys, self.values = self.padded(keys, False), self.padded(values, False)
        self.positions = None if positions is None else self.padded(positions, False)
        self.asked = self.content if positions is None else self.padded(_plus(queries, position_bias))
        self.distance_bias = None if distance_bias is None else distance_bias.contiguous()
        self.visible = None if visible is None else visible.view(torch.uint8)
        self.seed, self.dropout = seed, dropout
        padded = 1 << (self.width - 1).bit_length()
        self.blocks = blocks(self.dtype, padded)
        exact = self.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
        self.constants = {
            "MASKED": visible is not None,
            "TABLE": positions is not None,
            "BIASED": distance_bias is not None,
            "DROPPED": seed is not None,
            "BLOCK": self.blocks.rows,
            "WIDTH": padded,
            "PRECISION": "ieee" if exact else "tf32",
        }
        rate = round(dropout * (1 << 32)) - (1 << 31)
        self.numbers = (
            self.heads, self.num_queries, self.num_keys, 0 if positions is None else positions.shape[0],
            self.width, self.value_width, 1 / math.sqrt(self.value_width), min(rate, (1 << 31) - 1), 1 / (1 - dropout),
        )  # fmt: skip

    def padded(self, tensor: Tensor, whole: bool = True) -> Tensor:
        """Rows of the padded width; `whole` makes the tensor contiguous as well."""
        if tensor.shape[-1] < self.width:
            return F.pad(tensor, (0, self.width - tensor.shape[-1])).contiguous()
        if whole or tensor.stride(-1) != 1:
            return tensor.contiguous()
        return tensor

    def tensors(self, extent: Tensor | None) -> tuple[Tensor, ...]:
        """The arguments with which every kernel begins; one that is not given is never looked at."""
        stand_in = self.content
        optional = (self.positions, self.distance_bias, self.visible, extent, self.seed)
        given = (self.content, self.asked, self.keys, self.values, *optional)
        return tuple(stand_in if tensor is None else tensor for tensor in given)

    def strides(self) -> tuple[int, ...]:
        """Those of keys, values, table and mask."""
        table = (0, 0) if self.positions is None else self.positions.stride()[:2]
        return (*self.keys.stride()[:3], *self.values.stride()[:3], *table, *self.mask_strides())

    def mask_strides(self) -> tuple[int, int, int]:
        if self.visible is None:
            return 0, 0, 0
        lane, row, column = self.visible.stride()
        return (lane if self.visible.shape[0] > 1 else 0), row, column

    def extent(self, of_keys: bool) -> tuple[Tensor | None, int]:
        """For each block of queries (or keys) the blocks it meets, and the step from lane to lane."""
        if self.visible is None:
            return None, 0
        size = self.blocks.rows
        lanes = self.visible.shape[0]
        sides = [(self.num_queries, self.mask_strides()[1]), (self.num_keys, self.mask_strides()[2])]
        (rows, row_step), (columns, column_step) = sides[::-1] if of_keys else sides
        count = -(-rows // size)
        found = torch.empty(lanes, count, 2, dtype=torch.int32, device=self.visible.device)
        steps = (self.visible.stride(0), row_step, column_step)
        _start(extents, (lanes * count,))(self.visible, found, *steps, rows, columns, BLOCK=size)
        return found, count if lanes > 1 else 0

    def tuned(self, number: int) -> dict[str, Any]:
        return self.constants | {"num_warps": self.blocks.warps[number], "num_stages": self.blocks.stages[number]}


def _start(kernel: Any, grid: tuple[int, ...]) -> Any:
    return kernel[grid]


def _plus(queries: Tensor, bias: Tensor | None) -> Tensor:
    return queries if bias is None else (queries + bias[:, None]).to(queries.dtype)


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Context and log-sum; the arguments are those of the operator."""
    queries = arguments[0]
    call = _Call(*arguments)
    context = rows_first(queries)
    logsum = queries.new_empty(queries.shape[:3], dtype=torch.float32)
    extent, step = call.extent(False)
    grid = (-(-call.num_queries // call.blocks.rows) * call.lanes * call.heads,)
    _start(attention_forward, grid)(
        *call.tensors(extent), context, logsum, *call.strides(), step, *context.stride()[:3], *call.numbers,
        **call.tuned(0),
    )  # fmt: skip
    return context, logsum


def backward(
    queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, content_bias: Tensor | None,
    position_bias: Tensor | None, positions: Tensor | None, distance_bias: Tensor | None, seed: Tensor | None,
    context: Tensor, logsum: Tensor, gradient: Tensor, logsum_gradient: Tensor, dropout: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of queries, keys, values and of the four biases, empty where they were not given."""
    call = _Call(queries, keys, values, visible, content_bias, position_bias, positions, distance_bias, seed, dropout)
    size, lanes, heads = call.blocks.rows, call.lanes, call.heads
    pull = call.padded(gradient.to(call.dtype))
    correction = torch.empty_like(logsum)
    query_result = rows_first(queries)
    by_queries, step = call.extent(False)
    _start(attention_queries, (-(-call.num_queries // size) * lanes * heads,))(
        *call.tensors(by_queries), context, logsum, pull, logsum_gradient.contiguous(), correction, query_result,
        *call.strides(), step, *query_result.stride()[:3], *call.numbers, **call.tuned(1),
    )  # fmt: skip

    key_result, value_result = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (keys, values))
    column_sums = logsum.new_empty(lanes, heads, call.num_keys)
    by_keys, key_step = call.extent(True)
    _start(attention_keys, (-(-call.num_keys // size) * lanes * heads,))(
        *call.tensors(by_keys), logsum, pull, correction, key_result, value_result, column_sums,
        *call.strides(), key_step, *call.numbers, **call.tuned(2),
    )  # fmt: skip

    results = [queries.new_empty(0) for _ in range(4)]
    if content_bias is not None:
        results[0] = torch.einsum("bhs,bhsk->hk", column_sums, keys.float()).to(content_bias.dtype)
    if positions is not None:
        table, sums = _positions(call, by_queries, step, logsum, pull, correction)
        results[2] = table.transpose(0, 1).to(positions.dtype, memory_format=torch.contiguous_format)
        if position_bias is not None:
            results[1] = torch.einsum("hp,phk->hk", sums, positions.float()).to(position_bias.dtype)
        if distance_bias is not None:
            results[3] = sums.T.to(distance_bias.dtype, memory_format=torch.contiguous_format)
    elif position_bias is not None:
        results[1] = torch.zeros_like(position_bias)
    return query_result, key_result, value_result, *results


def _positions(
    call: _Call, extent: Tensor | None, step: int, logsum: Tensor, pull: Tensor, correction: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of the table, (H, P, K), and the sums of ds over each distance, (H, P)."""
    size, heads, last = call.blocks.rows, call.heads, call.num_queries - 1
    assert call.positions is not None
    num_distances = call.positions.shape[0]
    # Row 0 of the table belongs to e = j - i = -last.
    lowest = -last // size
    count = (num_distances - 1 - last) // size - lowest + 1
    parts = min(call.lanes, max(1, PROGRAMS // (count * heads)))
    share = -(-call.lanes // parts)
    parts = -(-call.lanes // share)
    result = logsum.new_zeros(parts, heads, num_distances, call.value_width)
    sums = logsum.new_zeros(parts, heads, num_distances)
    _start(attention_positions, (count, heads, parts))(
        *call.tensors(extent), logsum, pull, correction, result, sums,
        *call.strides(), step, call.lanes, share, lowest, *call.numbers, **call.tuned(3),
    )  # fmt: skip
    return result.sum(0), sums.sum(0)
