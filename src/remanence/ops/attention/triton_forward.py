"""Relative attention in one pass over the keys, with a running maximum (Dao et al. 2022): the forward kernel."""

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]

from remanence.ops.attention.triton_tiles import keep, load_bias, load_tile, row_seeds, see, skewed, store_tile

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def attention_forward(
    content, asked, keys, values, positions, distance_bias, words, extent, seed, context, logsum,
    k_lane, k_head, k_row, v_lane, v_head, v_row, r_row, r_head, word_lane, padded_rows, extent_lane,
    o_lane, o_head, o_row,
    heads, num_queries, num_keys, num_distances, width, value_width, scale, threshold, gain,
    MASKED: tl.constexpr, TABLE: tl.constexpr, BIASED: tl.constexpr, DROPPED: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Context and log-sum of one block of queries of one head and lane.

    `content` and `asked` are q + u and q + v, contiguous (B, H, T, width).
    """
    blocks = tl.cdiv(num_queries, BLOCK)
    # The last queries of a segment see most keys: they begin first.
    block = blocks - 1 - tl.program_id(0) % blocks
    group = tl.program_id(0) // blocks
    lane, head = (group // heads).to(tl.int64), group % heads
    inside = tl.arange(0, BLOCK)
    rows = block * BLOCK + inside
    start = group.to(tl.int64) * num_queries * width
    keys += lane * k_lane + head * k_head
    values += lane * v_lane + head * v_head
    query = load_tile(content + start, rows, width, num_queries, width, WIDTH)
    first, end = 0, tl.cdiv(num_keys, BLOCK)
    if MASKED:
        words += lane * word_lane
        extent += (lane * extent_lane + block) * 2
        first, end = tl.load(extent), tl.load(extent + 1)
    if DROPPED:
        seeds = row_seeds(tl.load(seed), group, rows, num_queries)[:, None]
    if TABLE:
        positions += head * r_head
        distance_bias += head
        asking = load_tile(asked + start, rows, width, num_queries, width, WIDTH)
        places = (first - block - 1) * BLOCK + inside + num_queries - 1
        table = load_tile(positions, places, r_row, num_distances, width, WIDTH).to(query.dtype)
        before = tl.dot(asking, tl.trans(table), input_precision=PRECISION)
        if BIASED:
            before += load_bias(distance_bias, places, heads, num_distances)[None, :]
        unwrapped = inside[:, None] + inside[None, :] < BLOCK
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    result = tl.zeros((BLOCK, WIDTH), tl.float32)
    for number in range(first, end):
        columns = number * BLOCK + inside
        key = load_tile(keys, columns, k_row, num_keys, width, WIDTH)
        scores = tl.zeros((BLOCK, BLOCK), tl.float32)
        if TABLE:
            places = (number - block) * BLOCK + inside + num_queries - 1
            table = load_tile(positions, places, r_row, num_distances, width, WIDTH).to(query.dtype)
            after = tl.dot(asking, tl.trans(table), input_precision=PRECISION)
            if BIASED:
                after += load_bias(distance_bias, places, heads, num_distances)[None, :]
            scores = skewed(tl.where(unwrapped, after, before), inside, number, 0, -1)
            before = after
        scores = tl.dot(query, tl.trans(key), scores, input_precision=PRECISION)
        if MASKED:
            seen = see(words, number, rows, inside, padded_rows, 0)
        else:
            seen = (columns < num_keys)[None, :]
        scores = tl.where(seen, scores * (scale * LOG2E), float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        # Of a row that has seen nothing yet, infinities must not meet.
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - finite[:, None])
        shrink = tl.exp2(top - finite)
        total = total * shrink + tl.sum(weights, 1)
        if DROPPED:
            weights = tl.where(keep(seeds, columns[None, :], threshold), weights, 0.0)
        value = load_tile(values, columns, v_row, num_keys, width, WIDTH)
        result = tl.dot(weights.to(value.dtype), value, result * shrink[:, None], input_precision=PRECISION)
        top = higher
    some = total > 0
    total = tl.where(some, total, 1.0)
    result *= tl.where(some, gain / total, 0.0)[:, None]
    store_tile(context + lane * o_lane + head * o_head, result, rows, o_row, num_queries, value_width, WIDTH)
    sums = tl.where(some, (top + tl.log2(total)) * LN2, LOWEST)
    tl.store(logsum + group.to(tl.int64) * num_queries + rows, sums, mask=rows < num_queries)
