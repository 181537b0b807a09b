"""The gradients of relative attention, without atomic additions: three kernels, each of which owns what it writes.

    ds_ij = p_ij (dp_ij - correction_i),   correction_i = sum_k context_ik dcontext_ik - dlogsum_i

`attention_queries` goes along the keys, `attention_keys` along the queries, and `attention_positions` along a diagonal
through all lanes. The last two work transposed, so that what they add up comes out of a product the right way round.
"""

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]

from remanence.ops.attention.triton_tiles import keep, load_bias, load_sums, load_tile, row_seeds, see, store_tile

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def attention_queries(
    content, asked, keys, values, positions, distance_bias, visible, extent, seed,
    context, logsum, gradient, logsum_gradient, correction, result,
    k_lane, k_head, k_row, v_lane, v_head, v_row, r_row, r_head, m_lane, m_row, m_column, extent_lane,
    o_lane, o_head, o_row,
    heads, num_queries, num_keys, num_distances, width, value_width, scale, threshold, gain,
    MASKED: tl.constexpr, TABLE: tl.constexpr, BIASED: tl.constexpr, DROPPED: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of one block of queries, and the corrections of its rows for the other kernels."""
    blocks = tl.cdiv(num_queries, BLOCK)
    block = blocks - 1 - tl.program_id(0) % blocks
    group = tl.program_id(0) // blocks
    lane, head = (group // heads).to(tl.int64), group % heads
    inside = tl.arange(0, BLOCK)
    rows = block * BLOCK + inside
    start = group.to(tl.int64) * num_queries * width
    along = group.to(tl.int64) * num_queries + rows
    exists = rows < num_queries
    keys += lane * k_lane + head * k_head
    values += lane * v_lane + head * v_head
    query = load_tile(content + start, rows, width, num_queries, width, WIDTH)
    pull = load_tile(gradient + start, rows, width, num_queries, width, WIDTH)
    given = load_tile(context + lane * o_lane + head * o_head, rows, o_row, num_queries, value_width, WIDTH)
    corrections = tl.sum(given.to(tl.float32) * pull.to(tl.float32), 1)
    corrections -= tl.load(logsum_gradient + along, mask=exists, other=0.0)
    tl.store(correction + along, corrections, mask=exists)
    sums = load_sums(logsum + along, exists)
    first, end = 0, tl.cdiv(num_keys, BLOCK)
    if MASKED:
        visible += lane * m_lane
        extent += (lane * extent_lane + block) * 2
        first, end = tl.load(extent), tl.load(extent + 1)
    if DROPPED:
        seeds = row_seeds(tl.load(seed), group, rows, num_queries)[:, None]
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    if TABLE:
        positions += head * r_head
        distance_bias += head
        asking = load_tile(asked + start, rows, width, num_queries, width, WIDTH)
        places = (first - block - 1) * BLOCK + inside + num_queries - 1
        earlier = load_tile(positions, places, r_row, num_distances, width, WIDTH).to(query.dtype)
        before = tl.dot(asking, tl.trans(earlier), input_precision=PRECISION)
        if BIASED:
            before += load_bias(distance_bias, places, heads, num_distances)[None, :]
        unwrapped = inside[:, None] + inside[None, :] < BLOCK
        skew = (inside[None, :] - inside[:, None]) & (BLOCK - 1)
        unskew = (inside[None, :] + inside[:, None]) & (BLOCK - 1)
        waiting = tl.zeros((BLOCK, BLOCK), query.dtype)
    for number in range(first, end):
        columns = number * BLOCK + inside
        key = load_tile(keys, columns, k_row, num_keys, width, WIDTH)
        value = load_tile(values, columns, v_row, num_keys, width, WIDTH)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        if TABLE:
            places = (number - block) * BLOCK + inside + num_queries - 1
            table = load_tile(positions, places, r_row, num_distances, width, WIDTH).to(query.dtype)
            after = tl.dot(asking, tl.trans(table), input_precision=PRECISION)
            if BIASED:
                after += load_bias(distance_bias, places, heads, num_distances)[None, :]
            scores += tl.gather(tl.where(unwrapped, after, before), skew, 1)
            before = after
        seen = see(visible, rows[:, None], columns[None, :], m_row, m_column, num_queries, num_keys, MASKED)
        weights = tl.exp2(tl.where(seen, scores * (scale * LOG2E), float("-inf")) - sums[:, None])
        pulled = tl.dot(pull, tl.trans(value), input_precision=PRECISION) * gain
        if DROPPED:
            pulled = tl.where(keep(seeds, columns[None, :], threshold), pulled, 0.0)
        change = weights * (pulled - corrections[:, None])
        rounded = change.to(key.dtype)
        total = tl.dot(rounded, key, total, input_precision=PRECISION)
        if TABLE:
            # A block of distances is whole once the second tile that meets it is done; the two fill different places.
            straight = tl.gather(change, unskew, 1).to(query.dtype)
            whole = tl.where(unwrapped, waiting, straight)
            places = (number - block - 1) * BLOCK + inside + num_queries - 1
            earlier = load_tile(positions, places, r_row, num_distances, width, WIDTH).to(query.dtype)
            total = tl.dot(whole, earlier, total, input_precision=PRECISION)
            waiting = tl.where(unwrapped, straight, 0.0).to(query.dtype)
    if TABLE:
        places = (end - block - 1) * BLOCK + inside + num_queries - 1
        earlier = load_tile(positions, places, r_row, num_distances, width, WIDTH).to(query.dtype)
        total = tl.dot(waiting, earlier, total, input_precision=PRECISION)
    store_tile(result + lane * o_lane + head * o_head, total * scale, rows, o_row, num_queries, value_width, WIDTH)


@triton.jit
def attention_keys(
    content, asked, keys, values, positions, distance_bias, visible, extent, seed,
    logsum, gradient, correction, key_result, value_result, column_sums,
    k_lane, k_head, k_row, v_lane, v_head, v_row, r_row, r_head, m_lane, m_row, m_column, extent_lane,
    heads, num_queries, num_keys, num_distances, width, value_width, scale, threshold, gain,
    MASKED: tl.constexpr, TABLE: tl.constexpr, BIASED: tl.constexpr, DROPPED: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of one block of keys and values; the sums of ds over the queries make that of the content bias."""
    blocks = tl.cdiv(num_keys, BLOCK)
    block = tl.program_id(0) % blocks
    group = tl.program_id(0) // blocks
    lane, head = (group // heads).to(tl.int64), group % heads
    inside = tl.arange(0, BLOCK)
    columns = block * BLOCK + inside
    start = group.to(tl.int64) * num_queries * width
    base = group.to(tl.int64) * num_queries
    key = load_tile(keys + lane * k_lane + head * k_head, columns, k_row, num_keys, width, WIDTH)
    value = load_tile(values + lane * v_lane + head * v_head, columns, v_row, num_keys, width, WIDTH)
    first, end = 0, tl.cdiv(num_queries, BLOCK)
    if MASKED:
        visible += lane * m_lane
        extent += (lane * extent_lane + block) * 2
        first, end = tl.load(extent), tl.load(extent + 1)
    if TABLE:
        positions += head * r_head
        distance_bias += head
        unwrapped = inside[:, None] + inside[None, :] < BLOCK
        skew = (inside[:, None] - inside[None, :]) & (BLOCK - 1)
    key_total = tl.zeros((BLOCK, WIDTH), tl.float32)
    value_total = tl.zeros((BLOCK, WIDTH), tl.float32)
    sums_total = tl.zeros((BLOCK,), tl.float32)
    for number in range(first, end):
        rows = number * BLOCK + inside
        exists = rows < num_queries
        query = load_tile(content + start, rows, width, num_queries, width, WIDTH)
        scores = tl.dot(key, tl.trans(query), input_precision=PRECISION)
        if TABLE:
            asking = load_tile(asked + start, rows, width, num_queries, width, WIDTH)
            places = (block - number) * BLOCK + inside + num_queries - 1
            table = load_tile(positions, places, r_row, num_distances, width, WIDTH).to(query.dtype)
            after = tl.dot(table, tl.trans(asking), input_precision=PRECISION)
            earlier = load_tile(positions, places - BLOCK, r_row, num_distances, width, WIDTH).to(query.dtype)
            before = tl.dot(earlier, tl.trans(asking), input_precision=PRECISION)
            if BIASED:
                after += load_bias(distance_bias, places, heads, num_distances)[:, None]
                before += load_bias(distance_bias, places - BLOCK, heads, num_distances)[:, None]
            scores += tl.gather(tl.where(unwrapped, after, before), skew, 0)
        seen = see(visible, rows[None, :], columns[:, None], m_row, m_column, num_queries, num_keys, MASKED)
        sums = load_sums(logsum + base + rows, exists)
        weights = tl.exp2(tl.where(seen, scores * (scale * LOG2E), float("-inf")) - sums[None, :])
        pull = load_tile(gradient + start, rows, width, num_queries, width, WIDTH)
        pulled = tl.dot(value, tl.trans(pull), input_precision=PRECISION) * gain
        used = weights
        if DROPPED:
            kept = keep(row_seeds(tl.load(seed), group, rows, num_queries)[None, :], columns[:, None], threshold)
            pulled = tl.where(kept, pulled, 0.0)
            used = tl.where(kept, weights, 0.0)
        value_total = tl.dot(used.to(pull.dtype), pull, value_total, input_precision=PRECISION)
        corrections = tl.load(correction + base + rows, mask=exists, other=0.0)
        change = weights * (pulled - corrections[None, :])
        sums_total += tl.sum(change, 1)
        key_total = tl.dot(change.to(query.dtype), query, key_total, input_precision=PRECISION)
    place = group.to(tl.int64) * num_keys
    store_tile(key_result + place * value_width, key_total * scale, columns, value_width, num_keys, value_width, WIDTH)
    value_result += place * value_width
    store_tile(value_result, value_total * gain, columns, value_width, num_keys, value_width, WIDTH)
    tl.store(column_sums + place + columns, sums_total * scale, mask=columns < num_keys)


@triton.jit
def attention_positions(
    content, asked, keys, values, positions, distance_bias, visible, extent, seed,
    logsum, gradient, correction, result, distance_sums,
    k_lane, k_head, k_row, v_lane, v_head, v_row, r_row, r_head, m_lane, m_row, m_column, extent_lane,
    lanes, share, lowest,
    heads, num_queries, num_keys, num_distances, width, value_width, scale, threshold, gain,
    MASKED: tl.constexpr, TABLE: tl.constexpr, BIASED: tl.constexpr, DROPPED: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of one block of distances in one head, over `share` of the lanes, and the sums of ds over them.

    Block c meets, for the queries of block b, the keys of block b + c where y >= x and those of the next where y < x:
    together one column for every key of a block.
    """
    diagonal = lowest + tl.program_id(0)
    head, part = tl.program_id(1), tl.program_id(2)
    inside = tl.arange(0, BLOCK)
    places = diagonal * BLOCK + inside + num_queries - 1
    table = load_tile(positions + head * r_head, places, r_row, num_distances, width, WIDTH).to(
        content.dtype.element_ty
    )
    near = inside[:, None] >= inside[None, :]
    skew = (inside[:, None] - inside[None, :]) & (BLOCK - 1)
    unskew = (inside[:, None] + inside[None, :]) & (BLOCK - 1)
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    sums_total = tl.zeros((BLOCK,), tl.float32)
    begin = tl.maximum(0, -diagonal - 1)
    end = tl.minimum(tl.cdiv(num_queries, BLOCK), tl.cdiv(num_keys, BLOCK) - diagonal)
    for lane in range(part * share, tl.minimum(part * share + share, lanes)):
        group = lane * heads + head
        far = tl.cast(lane, tl.int64)
        start = group.to(tl.int64) * num_queries * width
        base = group.to(tl.int64) * num_queries
        lane_keys = keys + far * k_lane + head * k_head
        lane_values = values + far * v_lane + head * v_head
        for block in range(begin, end):
            meets = True
            if MASKED:
                here = extent + (lane * extent_lane + block) * 2
                meets = (block + diagonal + 1 >= tl.load(here)) & (block + diagonal < tl.load(here + 1))
            if meets:
                rows = block * BLOCK + inside
                exists = rows < num_queries
                columns = (block + diagonal) * BLOCK + inside
                query = load_tile(content + start, rows, width, num_queries, width, WIDTH)
                asking = load_tile(asked + start, rows, width, num_queries, width, WIDTH)
                pull = load_tile(gradient + start, rows, width, num_queries, width, WIDTH)
                position = tl.dot(table, tl.trans(asking), input_precision=PRECISION)
                if BIASED:
                    position += load_bias(distance_bias + head, places, heads, num_distances)[:, None]
                key = load_tile(lane_keys, columns, k_row, num_keys, width, WIDTH)
                one = tl.dot(key, tl.trans(query), input_precision=PRECISION)
                key = load_tile(lane_keys, columns + BLOCK, k_row, num_keys, width, WIDTH)
                other = tl.dot(key, tl.trans(query), input_precision=PRECISION)
                scores = tl.where(near, one, other) + tl.gather(position, skew, 0)
                value = load_tile(lane_values, columns, v_row, num_keys, width, WIDTH)
                one = tl.dot(value, tl.trans(pull), input_precision=PRECISION)
                value = load_tile(lane_values, columns + BLOCK, v_row, num_keys, width, WIDTH)
                other = tl.dot(value, tl.trans(pull), input_precision=PRECISION)
                pulled = tl.where(near, one, other) * gain
                column = tl.where(near, columns[:, None], columns[:, None] + BLOCK)
                seen = see(
                    visible + far * m_lane, rows[None, :], column, m_row, m_column, num_queries, num_keys, MASKED
                )
                if DROPPED:
                    seeds = row_seeds(tl.load(seed), group, rows, num_queries)[None, :]
                    pulled = tl.where(keep(seeds, column, threshold), pulled, 0.0)
                sums = load_sums(logsum + base + rows, exists)
                weights = tl.exp2(tl.where(seen, scores * (scale * LOG2E), float("-inf")) - sums[None, :])
                corrections = tl.load(correction + base + rows, mask=exists, other=0.0)
                change = tl.gather(weights * (pulled - corrections[None, :]), unskew, 0)
                sums_total += tl.sum(change, 1)
                total = tl.dot(change.to(asking.dtype), asking, total, input_precision=PRECISION)
    place = (part * heads + head).to(tl.int64) * num_distances
    exists = (places >= 0) & (places < num_distances)
    columns = tl.arange(0, WIDTH)
    spots = places[:, None] * value_width + columns[None, :]
    inner = exists[:, None] & (columns < value_width)[None, :]
    tl.store(result + place * value_width + spots, total * scale, mask=inner)
    tl.store(distance_sums + place + places, sums_total * scale, mask=exists)
