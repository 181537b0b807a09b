"""Relative attention on a CPU: what is as large as the scores is passed over as rarely as possible.

forward     e_ij = exp(s_ij - max_j s_ij),  z_i = sum_j e_ij,  c_i = sum_j e_ij v_j / z_i,  logsum_i = max + log z_i
            (in powers of two: s is scaled by log2 e, because exp2 is four times as fast as exp)
backward    g_i = dc_i / z_i,  delta_i = dc_i c_i - dlogsum_i
            dv_j = sum_i e_ij g_i,  ds_ij = e_ij (g_i v_j - delta_i / z_i)

Only e is kept, in the dtype of the queries. Both halves of the scores are products into one buffer: the second is added
to a shifted view of the first. delta is taken away inside the product with the values, so what is left of the way back
through the softmax is one multiplication.

Shapes: B lanes, H heads, R rows (queries), S keys, P distances of the table, K head width. Work goes through chunks of
heads, with the heads before the lanes: then all rows of a head meet its table in one product.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from remanence.ops.attention.shift import shift
from remanence.ops.dropout.bits import lanes_drawn_for, masked, random_mask

LN2 = math.log(2)
CHUNK_ELEMENTS = 1 << 21
"""Scores worked on at once: 8 MiB in float32, which a last-level cache holds."""


def attend(
    queries: Float[Tensor, "B H R K"],
    keys: Float[Tensor, "B H S K"],
    values: Float[Tensor, "B H S K"],
    visible: Bool[Tensor, "#B R S"] | None,
    content_bias: Float[Tensor, "H K"] | None,
    position_bias: Float[Tensor, "H K"] | None,
    positions: Float[Tensor, "P H K"] | None,
    distance_bias: Float[Tensor, "P H"] | None,
    offset: int,
    dropout: float,
    with_weights: bool = False,
) -> tuple[Float[Tensor, "B H R K"], Float[Tensor, "B H R"], Float[Tensor, "B H R S"] | None]:
    """Context, log-sum and, if asked for, weights, which carry no gradient.

    Query r and key c meet at row `offset + c - r` of the table; pairs for which there is none must be hidden.
    """
    if torch.is_autocast_enabled("cpu") and queries.dtype != torch.float64:
        low = torch.get_autocast_dtype("cpu")
        queries, keys, values = queries.to(low), keys.to(low), values.to(low)
    return _Attention.apply(  # type: ignore[return-value]
        queries,
        keys,
        values,
        content_bias,
        position_bias,
        positions,
        None if positions is None else distance_bias,
        visible,
        offset,
        dropout,
        with_weights,
        torch.is_grad_enabled(),
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        content_bias: Tensor | None,
        position_bias: Tensor | None,
        positions: Tensor | None,
        distance_bias: Tensor | None,
        visible: Tensor | None,
        offset: int,
        rate: float,
        with_weights: bool,
        keep: bool,
    ) -> Any:
        lanes, heads, rows, width = queries.shape
        num_keys, dtype = keys.shape[2], queries.dtype
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        scale = math.log2(math.e) / math.sqrt(width)
        with torch.autocast("cpu", enabled=False):
            content = _asked(queries, content_bias, scale)
            keys = keys.transpose(0, 1).contiguous()
            values = values.transpose(0, 1).contiguous()
            asked = table = numbers = None
            if positions is not None:
                asked = _asked(queries, position_bias, scale)
                # The shift reads one column past a table that just covers the keys; what it finds there is hidden.
                spare = 1 if rows > 1 and positions.shape[0] <= num_keys else 0
                table = F.pad(positions.to(dtype).transpose(0, 1), (0, 0, 0, spare)).contiguous()
                if distance_bias is not None:
                    numbers = F.pad((distance_bias * scale).to(dtype).T, (0, spare))[:, None]
            lowest = torch.finfo(dtype).min / 2
            hidden = None
            if visible is not None:
                hidden = queries.new_zeros(visible.shape).masked_fill_(~visible, lowest)
            context = queries.new_empty(heads, lanes, rows, width)
            total, top = (queries.new_empty(heads, lanes, rows, 1, dtype=exact) for _ in range(2))
            kept, dropped = [], []
            for part in _chunks(heads, lanes_drawn_for(lanes) * rows * num_keys):
                scores = _scores(content[part], keys[part], asked, table, numbers, part, offset)
                if hidden is not None:
                    scores += hidden
                masses = scores.to(exact, memory_format=torch.contiguous_format)
                torch.amax(masses, -1, keepdim=True, out=top[part])
                masses.sub_(top[part]).exp2_()
                torch.sum(masses, -1, keepdim=True, out=total[part])
                weights = masses.to(dtype)
                read = weights
                if rate:
                    read = masked(weights, random_mask(weights.shape, rate, lanes=1))
                    dropped.append(read)
                kept.append(weights)
                found = torch.bmm(read.flatten(0, 1), values[part].flatten(0, 1)).unflatten(0, (-1, lanes))
                torch.div(found, total[part] * (1 - rate), out=context[part])
                if not (keep or with_weights):
                    kept.clear()
                    dropped.clear()
            logsum = total.log2().add_(top).mul_(LN2)
            seen = None
            if visible is not None:
                # Rows that see nothing: every score is far below what numbers can be.
                seen = top > lowest / 2
                context *= seen
                logsum.masked_fill_(~seen, torch.finfo(exact).min)
            given = None
            if with_weights:
                given = torch.cat([part / whole for part, whole in zip(kept, _split(total, kept), strict=True)])
                given = given.to(dtype).transpose(0, 1)
                ctx.mark_non_differentiable(given)
        if keep:
            saved = (content, keys, values, asked, table, total, context, seen)
            ctx.save_for_backward(*saved, *kept, *dropped)
            ctx.numbers = (offset, rate, scale * LN2, len(kept), 0 if positions is None else positions.shape[0])
            ctx.kinds = [
                None if each is None else each.dtype for each in (content_bias, position_bias, positions, distance_bias)
            ]
        ctx.set_materialize_grads(False)
        return context.transpose(0, 1), logsum[..., 0].transpose(0, 1), given

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_logsum: Tensor | None, _: Any) -> Any:
        content, keys, values, asked, table, total, context, seen, *saved = ctx.saved_tensors
        offset, rate, scale, count, distances = ctx.numbers
        kept, dropped = saved[:count], saved[count:]
        lanes, width, dtype = content.shape[1], keys.shape[-1], keys.dtype
        with torch.autocast("cpu", enabled=False):
            content, asked = content * LN2, None if asked is None else asked * LN2
            grad = torch.zeros_like(context) if grad is None else grad.transpose(0, 1)
            pull, delta = _pulls(grad, grad_logsum, context, total, seen, rate)
            valued, together = values, not rate and len(delta) > 1
            if together:
                # Two more numbers of g, each against a 1 beside every v: their sum is as exact as the product's own.
                pull, valued = torch.cat([pull, *delta], dim=-1), F.pad(values, (0, len(delta)), value=1.0)
            grad_content, grad_keys, grad_values = (each.new_empty(each.shape) for each in (content, keys, values))
            grad_asked, grad_table = (None if each is None else each.new_empty(each.shape) for each in (asked, table))
            grad_numbers: list[Tensor] = []
            heads = 0
            for number, weights in enumerate(kept):
                part = slice(heads, heads := heads + len(weights))
                read, each = weights.flatten(0, 1), pull[part].flatten(0, 1)
                if together:
                    slopes = torch.bmm(each, valued[part].flatten(0, 1).mT).mul_(read)
                elif rate:
                    # delta is one for all keys, but what was dropped has no share in the first term.
                    lost = weights * torch.stack(delta).sum(0)[part]
                    read = dropped[number].flatten(0, 1)
                    slopes = torch.bmm(each, valued[part].flatten(0, 1).mT).mul_(read).add_(lost.flatten(0, 1))
                else:
                    less = delta[0][part].flatten(0, 1)
                    slopes = torch.baddbmm(less, each, valued[part].flatten(0, 1).mT).mul_(read)
                torch.bmm(read.mT, each[..., :width], out=_flat(grad_values[part]))
                torch.bmm(slopes, keys[part].flatten(0, 1), out=_flat(grad_content[part]))
                torch.bmm(slopes.mT, content[part].flatten(0, 1), out=_flat(grad_keys[part]))
                if asked is None or grad_asked is None or grad_table is None:
                    continue
                slopes = _unshifted(slopes.unflatten(0, (-1, lanes)), table.shape[1], offset)
                torch.bmm(slopes, table[part], out=grad_asked[part].view(len(weights), -1, asked.shape[3]))
                torch.bmm(slopes.mT, asked[part].flatten(1, 2), out=grad_table[part])
                if ctx.kinds[3] is not None:
                    grad_numbers.append(slopes.sum(1, dtype=total.dtype))
            grad_queries = grad_content
            biases, grad_distances = [_summed(grad_content, ctx.kinds[0], scale), None], None
            if grad_asked is not None and grad_table is not None:
                biases[1] = _summed(grad_asked, ctx.kinds[1], scale)
                grad_queries = grad_content + grad_asked
                grad_table = grad_table[:, :distances].transpose(0, 1).to(ctx.kinds[2])
                if grad_numbers:
                    grad_distances = (torch.cat(grad_numbers)[:, :distances].T * scale).to(ctx.kinds[3])
            grads = ((grad_queries * scale), grad_keys, grad_values)
        return *(each.transpose(0, 1).to(dtype) for each in grads), *biases, grad_table, grad_distances, *[None] * 5


def _asked(queries: Float[Tensor, "B H R K"], bias: Float[Tensor, "H K"] | None, scale: float) -> Tensor:
    """Give (q + bias) scale, heads first."""
    lanes, heads, rows, width = queries.shape
    out = queries.new_empty(heads, lanes, rows, width)
    if bias is None:
        return torch.mul(queries.transpose(0, 1), scale, out=out)
    moved = (bias * scale).to(queries.dtype)[:, None, None]
    return torch.add(moved, queries.transpose(0, 1), alpha=scale, out=out)


def _chunks(heads: int, elements: int) -> list[slice]:
    """Parts of the heads, as even as they can be, whose scores fit a chunk."""
    step = max(1, CHUNK_ELEMENTS // max(elements, 1))
    step = -(-heads // -(-heads // step))
    return [slice(first, first + step) for first in range(0, heads, step)]


def _scores(
    content: Float[Tensor, "h B R K"],
    keys: Float[Tensor, "h B S K"],
    asked: Float[Tensor, "H B R K"] | None,
    table: Float[Tensor, "H P K"] | None,
    numbers: Float[Tensor, "H 1 P"] | None,
    part: slice,
    offset: int,
) -> Float[Tensor, "h B R S"]:
    """Both halves of the scores, in a buffer whose rows need not lie side by side."""
    shape = (*content.shape[:2],)
    if asked is None or table is None:
        return torch.bmm(content.flatten(0, 1), keys.flatten(0, 1).mT).unflatten(0, shape)
    position = asked[part].flatten(1, 2), table[part].mT
    position = torch.bmm(*position) if numbers is None else torch.baddbmm(numbers[part], *position)
    position = position.view(shape[0] * shape[1], content.shape[2], table.shape[1])
    scores = shift(position, offset, keys.shape[2])
    # Not baddbmm_, which torch's counter of operations does not know.
    return torch.baddbmm(scores, content.flatten(0, 1), keys.flatten(0, 1).mT, out=scores).unflatten(0, shape)


def _unshifted(slopes: Float[Tensor, "h B R S"], width: int, offset: int) -> Float[Tensor, "h BR P"]:
    """What the table is given back: the shift the other way round, zeros where it did not read."""
    heads, lanes, rows, num_keys = slopes.shape
    buffer = slopes.new_zeros(heads * lanes, rows, width)
    shift(buffer, offset, num_keys).copy_(slopes.flatten(0, 1))
    return buffer.view(heads, lanes * rows, width)


def _pulls(
    grad: Tensor, grad_logsum: Tensor | None, context: Tensor, total: Tensor, seen: Tensor | None, rate: float
) -> tuple[Tensor, list[Tensor]]:
    """g, and -delta / z as numbers whose sum is exact to twice the digits of g."""
    share = 1 / total if seen is None else seen / total
    grad = grad.to(total.dtype)
    delta = (grad * context).sum(-1, keepdim=True)
    if grad_logsum is not None:
        delta -= grad_logsum.transpose(0, 1)[..., None]
    delta *= -share
    first = delta.to(context.dtype)
    pull = (grad * (share if not rate else share / (1 - rate))).to(context.dtype)
    return pull, [first] if first.dtype == delta.dtype else [first, (delta - first).to(first.dtype)]


def _summed(grad: Tensor, kind: torch.dtype | None, scale: float) -> Tensor | None:
    """The gradient of a bias."""
    if kind is None:
        return None
    exact = torch.float64 if grad.dtype == torch.float64 else torch.float32
    return (grad.sum((1, 2), dtype=exact) * scale).to(kind)


def _flat(grad: Tensor) -> Tensor:
    """Heads and lanes as one, never a copy."""
    return grad.view(-1, *grad.shape[2:])


def _split(total: Tensor, kept: list[Tensor]) -> tuple[Tensor, ...]:
    return total.split([len(part) for part in kept])
