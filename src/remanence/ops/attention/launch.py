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
from remanence.ops.attention.triton_tiles import meet, pack

PROGRAMS = 512
"""Programs of the kernel of positions that are wanted at least: a few for each multiprocessor."""


class Blocks(NamedTuple):
    """How a kernel is cut, fixed for a dtype and a width: results do not depend on what was measured at start."""

    rows: int
    """Queries, keys and distances of a tile."""
    warps: tuple[int, int, int, int]
    """Of the kernels forward, queries, keys, positions."""
    stages: tuple[int, int, int, int]


def blocks(dtype: torch.dtype, width: int, exact: bool) -> Blocks:
    """The block sizes for heads that are padded to `width`; `exact` products do without tensor cores.

    Chosen by what the compiler makes of them for compute capability 9.0 (`benchmarks/attention_kernels.py`): 64 rows
    are the fewest that its products of a warp group take, and with more of anything the registers run out.
    """
    if exact:
        return Blocks(16, (4, 4, 4, 4), (2, 2, 2, 1))
    if dtype == torch.float32 or width > 64:
        return Blocks(32, (4, 4, 4, 4), (2, 2, 2, 1))
    return Blocks(64, (4, 4, 4, 4), (2, 2, 2, 1))


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
        self.seed, self.dropout = seed, dropout
        padded = 1 << (self.width - 1).bit_length()
        exact = self.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
        self.blocks = blocks(self.dtype, padded, exact)
        self.words, self.extent = self.pack(visible)
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
        optional = (self.positions, self.distance_bias, self.words, extent, self.seed)
        given = (self.content, self.asked, self.keys, self.values, *optional)
        return tuple(self.content if tensor is None else tensor for tensor in given)

    def strides(self, extent: Tensor | None) -> tuple[int, ...]:
        """Those of keys, values, table, mask and extents; a mask of one lane is every lane's."""
        table = (0, 0) if self.positions is None else self.positions.stride()[:2]
        mask = (0, 0, 0)
        if self.words is not None and extent is not None:
            several = self.words.shape[0] > 1
            mask = (self.words.stride(0) * several, self.words.stride(1), extent.shape[1] * several)
        return (*self.keys.stride()[:3], *self.values.stride()[:3], *table, *mask)

    def pack(self, visible: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The mask in bits, and the blocks of keys that each block of queries sees anything of."""
        if visible is None:
            return None, None
        lanes, size = visible.shape[0], self.blocks.rows
        count, tiles = -(-self.num_queries // size), -(-self.num_keys // size)
        made = {"dtype": torch.int32, "device": visible.device}
        pieces = size // min(size, 32)
        # A diagonal meets one tile more than there are where it enters the scores, and one where it leaves them.
        words = torch.zeros(lanes, (tiles + 2) * pieces, count * size, **made)[:, pieces:]
        extent = torch.empty(lanes, count, 2, **made)
        _start(pack, (lanes * count,))(
            visible.view(torch.uint8), words, extent, *visible.stride(), words.stride(0), self.num_queries,
            self.num_keys, BLOCK=size,
        )  # fmt: skip
        return words, extent

    def meeting(self, count: int, lowest: int, diagonal: bool) -> Tensor | None:
        """For `count` blocks of keys (or of distances, on a diagonal) the blocks of queries that they meet."""
        if self.extent is None:
            return None
        lanes, blocks, _ = self.extent.shape
        result = self.extent.new_empty(lanes, count, 2)
        sizes = {"COUNT": 1 << (blocks - 1).bit_length(), "DIAGONAL": diagonal}
        _start(meet, (lanes * count,))(self.extent, result, blocks, count, lowest, **sizes)
        return result

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
    grid = (-(-call.num_queries // call.blocks.rows) * call.lanes * call.heads,)
    _start(attention_forward, grid)(
        *call.tensors(call.extent), context, logsum, *call.strides(call.extent), *context.stride()[:3], *call.numbers,
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
    rows = -(-call.num_queries // size)
    sums = logsum.new_empty(lanes, heads, rows, call.value_width)
    ordered = torch.are_deterministic_algorithms_enabled()
    distances = 0 if positions is None else positions.shape[0]
    table, distance_sums = logsum.new_zeros(heads, distances, call.value_width), logsum.new_zeros(heads, distances)
    _start(attention_queries, (rows * lanes * heads,))(
        *call.tensors(call.extent), context, logsum, pull, logsum_gradient.contiguous(), correction, query_result,
        sums, table, distance_sums,
        *call.strides(call.extent), *query_result.stride()[:3], *call.numbers, ADD=not ordered, **call.tuned(1),
    )  # fmt: skip

    key_result, value_result = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (keys, values))
    column_sums = logsum.new_empty(lanes, heads, call.num_keys)
    tiles = -(-call.num_keys // size)
    by_keys = call.meeting(tiles, 0, False)
    _start(attention_keys, (tiles * lanes * heads,))(
        *call.tensors(by_keys), logsum, pull, correction, key_result, value_result, column_sums,
        *call.strides(by_keys), *call.numbers, **call.tuned(2),
    )  # fmt: skip

    results = [queries.new_empty(0) for _ in range(4)]
    content_sum = torch.einsum("bhs,bhsk->hk", column_sums, keys.float())
    if content_bias is not None:
        results[0] = content_sum.to(content_bias.dtype)
    if position_bias is not None:
        # A query meets keys with u and distances with v, and its gradient is what both get.
        results[1] = (sums.sum((0, 2)) - content_sum).to(position_bias.dtype)
    if positions is not None:
        if ordered:
            table, distance_sums = _positions(call, logsum, pull, correction)
        results[2] = table.transpose(0, 1).to(positions.dtype, memory_format=torch.contiguous_format, copy=True)
        if distance_bias is not None:
            results[3] = distance_sums.T.to(distance_bias.dtype, memory_format=torch.contiguous_format, copy=True)
    return query_result, key_result, value_result, *results


def _positions(call: _Call, logsum: Tensor, pull: Tensor, correction: Tensor) -> tuple[Tensor, Tensor]:
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
    extent = call.meeting(count, lowest, True)
    _start(attention_positions, (count, heads, parts))(
        *call.tensors(extent), logsum, pull, correction, result, sums,
        *call.strides(extent), call.lanes, share, lowest, *call.numbers, **call.tuned(3),
    )  # fmt: skip
    return result.sum(0), sums.sum(0)
