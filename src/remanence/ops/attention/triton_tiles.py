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
def add_tile(pointer, tile, rows, row_stride, num_rows, width, WIDTH: tl.constexpr):
    """Add a tile to what is stored, while other programs may."""
    columns = tl.arange(0, WIDTH)
    places = rows[:, None] * row_stride + columns[None, :]
    inside = ((rows >= 0) & (rows < num_rows))[:, None] & (columns < width)[None, :]
    tl.atomic_add(pointer + places, tile, mask=inside, sem="relaxed")


@triton.jit
def add_sums(pointer, tile, columns, num_columns, scale):
    """Add the sums of the columns of a tile to what is stored, while other programs may."""
    inside = (columns >= 0) & (columns < num_columns)
    tl.atomic_add(pointer + columns, tl.sum(tile.to(tl.float32), 0) * scale, mask=inside, sem="relaxed")


@triton.jit
def skewed(tile, inside, number, ROWS: tl.constexpr, SIGN: tl.constexpr):
    """Rotate every query's places by its own number: y = z + x forward (SIGN -1: z = y - x), backward (1) z = x + y.

    ROWS is the axis of the queries. `number` is never negative, which the compiler cannot know: its sign, a zero, keeps
    the index of every element from being held in registers through a loop.
    """
    zero = number >> 31
    SIZE: tl.constexpr = tile.shape[0]
    rows, places = tl.expand_dims(inside, 1 - ROWS), tl.expand_dims(inside, ROWS)
    return tl.gather(tile, (places + SIGN * rows + zero) & (SIZE - 1), 1 - ROWS)


@triton.jit
def load_bias(pointer, rows, heads, num_rows):
    """What a head adds to the scores of some distances."""
    return tl.load(pointer + rows * heads, mask=(rows >= 0) & (rows < num_rows), other=0.0).to(tl.float32)


@triton.jit
def load_sums(pointer, exists):
    """Log-sums of rows, to the base of 2; that of a row that sees nothing stays finite."""
    return tl.maximum(tl.load(pointer, mask=exists, other=0.0), -1e30) * 1.4426950408889634


@triton.jit
def see(words, tile, rows, inside, padded_rows, QUERIES: tl.constexpr):
    """Which pairs of a tile may be seen, (queries, keys) or, with QUERIES the second axis, (keys, queries).

    A word holds the bits of 32 keys of one query; blocks of 64 keys have two. See `pack`.
    """
    SIZE: tl.constexpr = inside.shape[0]
    PIECES: tl.constexpr = (SIZE + 31) // 32
    words += tile * PIECES * padded_rows + rows
    keys = tl.expand_dims(inside, QUERIES)
    word = tl.expand_dims(tl.load(words), 1 - QUERIES)
    if PIECES == 2:
        word = tl.where(keys < 32, word, tl.expand_dims(tl.load(words + padded_rows), 1 - QUERIES))
    return ((word >> (keys & 31)) & 1) != 0


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
def pack(
    visible, words, extent, lane_stride, row_stride, column_stride, word_lane, num_rows, num_columns,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The mask as bits, (lanes, words of 32 keys, padded queries), and where each block of queries sees anything.

    Bits outside of the mask are zero. An extent is the first block of keys, and one past the last.
    """
    PIECES: tl.constexpr = (BLOCK + 31) // 32
    BITS: tl.constexpr = BLOCK // PIECES
    blocks, tiles = tl.cdiv(num_rows, BLOCK), tl.cdiv(num_columns, BLOCK)
    lane, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    rows = block * BLOCK + tl.arange(0, BLOCK)
    inside = tl.arange(0, BITS)
    visible += lane * lane_stride + rows.to(tl.int64)[:, None] * row_stride
    words += lane * word_lane + rows
    first, end = tiles, 0
    for number in range(tiles * PIECES):
        columns = (number * BITS + inside)[None, :]
        exists = (rows < num_rows)[:, None] & (columns < num_columns)
        seen = tl.load(visible + columns * column_stride, mask=exists, other=0) != 0
        word = tl.sum(seen.to(tl.int32) << inside[None, :], 1)
        tl.store(words + number * (blocks * BLOCK), word)
        some = tl.max((word != 0).to(tl.int32), 0) != 0
        first = tl.where(some, tl.minimum(first, number // PIECES), first)
        end = tl.where(some, number // PIECES + 1, end)
    tl.store(extent + tl.program_id(0) * 2, first)
    tl.store(extent + tl.program_id(0) * 2 + 1, tl.maximum(first, end))


@triton.jit
def meet(extent, result, blocks, count, lowest, COUNT: tl.constexpr, DIAGONAL: tl.constexpr):
    """For a block of keys, or of distances on a DIAGONAL, the first block of queries that meets it, and the end.

    Those in between that do not meet it cost time alone. `count` blocks begin with number `lowest`.
    """
    lane, number = tl.program_id(0) // count, tl.program_id(0) % count
    block = tl.arange(0, COUNT)
    exists = block < blocks
    here = extent + (lane * blocks + block) * 2
    first = tl.load(here, mask=exists, other=0)
    end = tl.load(here + 1, mask=exists, other=0)
    key = number + lowest
    if DIAGONAL:
        meets = (block + key + 1 >= first) & (block + key < end) & (first < end)
    else:
        meets = (key >= first) & (key < end)
    begin = tl.min(tl.where(meets, block, COUNT), 0)
    tl.store(result + tl.program_id(0) * 2, begin)
    tl.store(result + tl.program_id(0) * 2 + 1, tl.maximum(begin, tl.max(tl.where(meets, block + 1, 0), 0)))
