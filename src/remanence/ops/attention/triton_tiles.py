"""Tiles that all kernels of fused attention share: loading, the skew, masks and dropout (README.md, "On the GPU").

Blocks are square: queries i = a N + x, keys j = b N + y, with N = BLOCK. Distances are cut at e = j - i = c N + z, and
row e + T - 1 of the table belongs to e, in looking back as in looking ahead.
"""

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]


@triton.jit
def load_tile(pointer, rows, row_stride, num_rows, width, WIDTH: tl.constexpr):
    """Rows of a matrix, zeros outside of it, (rows, WIDTH)."""
    columns = tl.arange(0, WIDTH)
    inside = (rows >= 0) & (rows < num_rows)
    places = rows[:, None] * row_stride + columns[None, :]
    return tl.load(pointer + places, mask=inside[:, None] & (columns < width)[None, :], other=0.0)


@triton.jit
def store_tile(pointer, tile, rows, row_stride, num_rows, width, WIDTH: tl.constexpr):
    """The inverse of `load_tile`, in the dtype of the pointer."""
    columns = tl.arange(0, WIDTH)
    places = rows[:, None] * row_stride + columns[None, :]
    inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
    tl.store(pointer + places, tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def load_bias(pointer, rows, heads, num_rows):
    """What a head adds to the scores of some distances."""
    return tl.load(pointer + rows * heads, mask=(rows >= 0) & (rows < num_rows), other=0.0).to(tl.float32)


@triton.jit
def load_sums(pointer, exists):
    """Log-sums of rows, to the base of 2; that of a row that sees nothing stays finite."""
    return tl.maximum(tl.load(pointer, mask=exists, other=0.0), -1e30) * 1.4426950408889634


@triton.jit
def see(visible, rows, columns, row_stride, column_stride, num_rows, num_columns, MASKED: tl.constexpr):
    """Which pairs exist and may be seen; rows and columns broadcast against each other."""
    seen = (rows < num_rows) & (columns >= 0) & (columns < num_columns)
    if MASKED:
        seen = tl.load(visible + rows * row_stride + columns * column_stride, mask=seen, other=0) != 0
    return seen


@triton.jit
def row_seeds(seed, group, rows, num_rows):
    """Where the random numbers of each row begin: Philox, keyed by the seed and counted by lane, head and query."""
    return tl.randint(seed, group * num_rows + rows).to(tl.uint32)


@triton.jit
def keep(seeds, columns, threshold):
    """Decisions of dropout: a SplitMix generator per row (Steele et al. 2014), which can be entered at any key.

    Philox for every element would cost more than all the products of a tile.
    """
    bits = seeds + columns.to(tl.uint32) * 0x9E3779B9
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    bits = bits ^ (bits >> 16)
    return bits.to(tl.int32, bitcast=True) >= threshold


@triton.jit
def extents(
    visible, result, lane_stride, row_stride, column_stride, num_rows, num_columns, BLOCK: tl.constexpr
):  # fmt: skip
    """For a block of rows, the first block of columns in which something is seen, and one past the last."""
    blocks = tl.cdiv(num_rows, BLOCK)
    lane, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    rows = (block * BLOCK + tl.arange(0, BLOCK))[:, None]
    visible += lane.to(tl.int64) * lane_stride
    count = tl.cdiv(num_columns, BLOCK)
    first, end = count, 0
    for number in range(count):
        columns = (number * BLOCK + tl.arange(0, BLOCK))[None, :]
        seen = see(visible, rows, columns, row_stride, column_stride, num_rows, num_columns, True)
        some = tl.max(tl.max(seen.to(tl.int32), 1), 0)
        first = tl.where(some != 0, tl.minimum(first, number), first)
        end = tl.where(some != 0, number + 1, end)
    tl.store(result + tl.program_id(0) * 2, first)
    tl.store(result + tl.program_id(0) * 2 + 1, tl.maximum(first, end))
