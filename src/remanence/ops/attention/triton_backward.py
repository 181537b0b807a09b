"""The gradients of relative attention: three kernels, each of which recomputes the weights it needs.

    ds_ij = p_ij (dp_ij - correction_i),   correction_i = sum_k context_ik dcontext_ik - dlogsum_i

`attention_queries` goes along the keys, `attention_keys` along the queries. The gradient of the table falls off in the
first, as atomic additions; where runs must be equal bit for bit, `attention_positions` goes along a diagonal through
all lanes for it instead. The last two work transposed, so that their sums come out of a product the right way round.
"""

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]

from remanence.ops.attention.triton_tiles import (
    add_sums,
    add_tile,
    keep,
    load_bias,
    load_sums,
    load_tile,
    row_seeds,
    see,
    skewed,
    store_tile,
)

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def attention_queries(
    content, asked, keys, values, positions, distance_bias, words, extent, seed,
    context, logsum, gradient, logsum_gradient, correction, result, sums_result, table_result, distance_sums,
    k_lane, k_head, k_row, v_lane, v_head, v_row, r_row, r_head, word_lane, padded_rows, extent_lane,
    o_lane, o_head, o_row,
    heads, num_queries, num_keys, num_distances, width, value_width, scale, threshold, gain,
    MASKED: tl.constexpr, TABLE: tl.constexpr, BIASED: tl.constexpr, DROPPED: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """The gradient of one block of queries, their sum, and the corrections of its rows for the other kernels.

    With ADD, each finished block of distances is added to the gradient of the table, in whatever order programs come.
    """
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
        words += lane * word_lane
        extent += (lane * extent_lane + block) * 2
        first, end = tl.load(extent), tl.load(extent + 1)
    if DROPPED:
        seeds = row_seeds(tl.load(seed), group, rows, num_queries)[:, None]
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    if TABLE:
        positions += head * r_head
        distance_bias += head
        table_result += head * num_distances * value_width
        distance_sums += head * num_distances
        asking = load_tile(asked + start, rows, width, num_queries, width, WIDTH)
        unwrapped = inside[:, None] + inside[None, :] < BLOCK
        waiting = tl.zeros((BLOCK, BLOCK), query.dtype)
    for number in range(first, end):
        columns = number * BLOCK + inside
        key = load_tile(keys, columns, k_row, num_keys, width, WIDTH)
        value = load_tile(values, columns, v_row, num_keys, width, WIDTH)
        scores = tl.zeros((BLOCK, BLOCK), tl.float32)
        if TABLE:
            places = (number - block) * BLOCK + inside + num_queries - 1
            table = load_tile(positions, places, r_row, num_distances, width, WIDTH).to(query.dtype)
            after = tl.dot(asking, tl.trans(table), input_precision=PRECISION)
            if BIASED:
                after += load_bias(distance_bias, places, heads, num_distances)[None, :]
            earlier = load_tile(positions, places - BLOCK, r_row, num_distances, width, WIDTH).to(query.dtype)
            before = tl.dot(asking, tl.trans(earlier), input_precision=PRECISION)
            if BIASED:
                before += load_bias(distance_bias, places - BLOCK, heads, num_distances)[None, :]
            scores = skewed(tl.where(unwrapped, after, before), inside, number, 0, -1)
        scores = tl.dot(query, tl.trans(key), scores, input_precision=PRECISION)
        if MASKED:
            seen = see(words, number, rows, inside, padded_rows, 0)
        else:
            seen = (columns < num_keys)[None, :]
        weights = tl.exp2(tl.where(seen, scores * (scale * LOG2E), float("-inf")) - sums[:, None])
        pulled = tl.dot(pull, tl.trans(value), input_precision=PRECISION) * gain
        if DROPPED:
            pulled = tl.where(keep(seeds, columns[None, :], threshold), pulled, 0.0)
        change = weights * (pulled - corrections[:, None])
        rounded = change.to(key.dtype)
        total = tl.dot(rounded, key, total, input_precision=PRECISION)
        if TABLE:
            # A block of distances is whole once the second tile that meets it is done; the two fill different places.
            straight = skewed(change, inside, number, 0, 1).to(query.dtype)
            whole = tl.where(unwrapped, waiting, straight)
            total = tl.dot(whole, earlier, total, input_precision=PRECISION)
            if ADD:
                part = tl.dot(tl.trans(whole), asking, input_precision=PRECISION) * scale
                add_tile(table_result, part, places - BLOCK, value_width, num_distances, value_width, WIDTH)
                if BIASED:
                    add_sums(distance_sums, whole, places - BLOCK, num_distances, scale)
            waiting = tl.where(unwrapped, straight, 0.0).to(query.dtype)
    if TABLE:
        places = (end - block - 1) * BLOCK + inside + num_queries - 1
        earlier = load_tile(positions, places, r_row, num_distances, width, WIDTH).to(query.dtype)
        total = tl.dot(waiting, earlier, total, input_precision=PRECISION)
        if ADD:
            part = tl.dot(tl.trans(waiting), asking, input_precision=PRECISION) * scale
            add_tile(table_result, part, places, value_width, num_distances, value_width, WIDTH)
            if BIASED:
                add_sums(distance_sums, waiting, places, num_distances, scale)
    columns = tl.arange(0, WIDTH)
    tl.store(
        sums_result + tl.program_id(0) * value_width + columns, tl.sum(total, 0) * scale, mask=columns < value_width
    )
    store_tile(result + lane * o_lane + head * o_head, total * scale, rows, o_row, num_queries, value_width, WIDTH)


@triton.jit
def attention_keys(
    content, asked, keys, values, positions, distance_bias, words, extent, seed,
    logsum, gradient, correction, key_result, value_result, column_sums,
    k_lane, k_head, k_row, v_lane, v_head, v_row, r_row, r_head, word_lane, padded_rows, extent_lane,
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
        words += lane * word_lane
        extent += (lane * extent_lane + block) * 2
        first, end = tl.load(extent), tl.load(extent + 1)
    if TABLE:
        positions += head * r_head
        distance_bias += head
        unwrapped = inside[:, None] + inside[None, :] < BLOCK
    key_total = tl.zeros((BLOCK, WIDTH), tl.float32)
    value_total = tl.zeros((BLOCK, WIDTH), tl.float32)
    sums_total = tl.zeros((BLOCK,), tl.float32)
    for number in range(first, end):
        rows = number * BLOCK + inside
        exists = rows < num_queries
        query = load_tile(content + start, rows, width, num_queries, width, WIDTH)
        scores = tl.zeros((BLOCK, BLOCK), tl.float32)
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
            scores = skewed(tl.where(unwrapped, after, before), inside, number, 1, -1)
        scores = tl.dot(key, tl.trans(query), scores, input_precision=PRECISION)
        if MASKED:
            seen = see(words, block, rows, inside, padded_rows, 1)
        else:
            seen = exists[None, :]
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
    content, asked, keys, values, positions, distance_bias, words, extent, seed,
    logsum, gradient, correction, result, distance_sums,
    k_lane, k_head, k_row, v_lane, v_head, v_row, r_row, r_head, word_lane, padded_rows, extent_lane,
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
        lane_words = words
        if MASKED:
            here = extent + (lane * extent_lane + tl.program_id(0)) * 2
            begin, end = tl.load(here), tl.load(here + 1)
            lane_words = words + far * word_lane
        for block in range(begin, end):
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
            scores = tl.where(near, one, other) + skewed(position, inside, block, 1, -1)
            value = load_tile(lane_values, columns, v_row, num_keys, width, WIDTH)
            one = tl.dot(value, tl.trans(pull), input_precision=PRECISION)
            value = load_tile(lane_values, columns + BLOCK, v_row, num_keys, width, WIDTH)
            other = tl.dot(value, tl.trans(pull), input_precision=PRECISION)
            pulled = tl.where(near, one, other) * gain
            column = tl.where(near, columns[:, None], columns[:, None] + BLOCK)
            if MASKED:
                near_seen = see(lane_words, block + diagonal, rows, inside, padded_rows, 1)
                far_seen = see(lane_words, block + diagonal + 1, rows, inside, padded_rows, 1)
                seen = tl.where(near, near_seen, far_seen)
            else:
                seen = exists[None, :] & (column >= 0) & (column < num_keys)
            if DROPPED:
                seeds = row_seeds(tl.load(seed), group, rows, num_queries)[None, :]
                pulled = tl.where(keep(seeds, column, threshold), pulled, 0.0)
            sums = load_sums(logsum + base + rows, exists)
            weights = tl.exp2(tl.where(seen, scores * (scale * LOG2E), float("-inf")) - sums[None, :])
            corrections = tl.load(correction + base + rows, mask=exists, other=0.0)
            change = (weights * (pulled - corrections[None, :])).to(asking.dtype)
            straight = skewed(change, inside, block, 1, 1)
            if BIASED:
                sums_total += tl.sum(straight.to(tl.float32), 1)
            total = tl.dot(straight, asking, total, input_precision=PRECISION)
    place = (part * heads + head).to(tl.int64) * num_distances
    exists = (places >= 0) & (places < num_distances)
    columns = tl.arange(0, WIDTH)
    spots = places[:, None] * value_width + columns[None, :]
    inner = exists[:, None] & (columns < value_width)[None, :]
    tl.store(result + place * value_width + spots, total * scale, mask=inner)
    if BIASED:
        tl.store(distance_sums + place + places, sums_total * scale, mask=exists)
