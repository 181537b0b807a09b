"""Reading, writing and forgetting of memory slots one vector at a time, for reading and for tests.

    reader   o_n = concat over heads of  sum_i softmax_i(q_n k_i / sqrt(K)) v_i,                      then W_O o_n
    writer   a_i = softmax over [own, 1 .. T] of [q_i kappa_i, q_i k_1, .., q_i k_T] / (tau sqrt(K))
             m'_i = a_i[own] m_i + sum_n a_i[n] u_n          (m_i itself, not projected; nothing follows)
    BMN      m''_i = m'_i + v_i;   m_i <- rho m''_i / |m''_i|;   at the start of a document  m_i = rho v_i / |v_i|

Weights are (out, in), as in `nn.Linear`; head h is the h-th block of the D numbers of a slot. One lane at a time.

Source: Wu et al., "Memformer: A Memory-Augmented Transformer for Sequence Modeling", 2022 (arXiv 2010.06891), sections
3.1 to 3.3. Shapes: T tokens, P slots, D width of both, H heads, E = H K width of queries and keys (in the paper, D).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SMALLEST = 1e-6
"""A norm is divided by as if it were at least this share of the radius."""


def read_slots(
    tokens: Float[Tensor, "T D"],
    slots: Float[Tensor, "P D"],
    query: Float[Tensor, "E D"],
    key: Float[Tensor, "E D"],
    value: Float[Tensor, "E D"],
    output: Float[Tensor, "D E"],
    num_heads: int,
) -> tuple[Float[Tensor, "T D"], Float[Tensor, "H T P"]]:
    """What every token reads from all slots, and the weights."""
    rows, attention = [], []
    for token in tokens:
        heads, seen = [], []
        for q, k, v in zip(_heads(query @ token, num_heads), *_rows(slots, key, value, num_heads), strict=True):
            scores = torch.stack([q @ one for one in k]) / math.sqrt(len(q))
            weights = scores.softmax(0)
            heads.append(sum(weight * one for weight, one in zip(weights, v, strict=True)))
            seen.append(weights)
        rows.append(output @ torch.cat(heads))
        attention.append(torch.stack(seen))
    return torch.stack(rows), torch.stack(attention, dim=1)


def write_slots(
    slots: Float[Tensor, "P D"],
    tokens: Float[Tensor, "T D"],
    valid: Bool[Tensor, " T"],
    query: Float[Tensor, "E D"],
    key: Float[Tensor, "E D"],
    value: Float[Tensor, "D D"],
    num_heads: int,
    temperature: float,
) -> tuple[Float[Tensor, "P D"], Float[Tensor, "H P 1+T"]]:
    """Every slot after a segment was written into it (m'), and the weights, own slot first.

    Tokens that are not valid have no weight; a slot that sees none stays what it is.
    """
    rows, attention = [], []
    for slot in slots:
        heads, seen = [], []
        own_heads = zip(_heads(slot, num_heads), _heads(query @ slot, num_heads), strict=True)
        own_keys = _heads(key @ slot, num_heads)
        for number, (own, q) in enumerate(own_heads):
            scale = temperature * math.sqrt(len(q))
            scores = [q @ own_keys[number] / scale]
            values = [own]
            places = [0]
            for place, token in enumerate(tokens):
                if valid[place]:
                    scores.append(q @ _heads(key @ token, num_heads)[number] / scale)
                    values.append(_heads(value @ token, num_heads)[number])
                    places.append(1 + place)
            weights = torch.stack(scores).softmax(0)
            heads.append(sum(weight * one for weight, one in zip(weights, values, strict=True)))
            seen.append(weights.new_zeros(1 + len(tokens)).index_add(0, torch.tensor(places), weights))
        rows.append(torch.cat(heads))
        attention.append(torch.stack(seen))
    return torch.stack(rows), torch.stack(attention, dim=1)


def biased_normalization(
    written: Float[Tensor, "P D"], bias: Float[Tensor, "P D"], radius: float, parts: int
) -> Float[Tensor, "P D"]:
    """Each of the `parts` equal pieces of every slot (1: the whole slot) drawn towards its bias, at length `radius`."""
    rows = []
    for slot, direction in zip(written, bias, strict=True):
        pieces = []
        for piece in _heads(slot + direction, parts):
            length = torch.sqrt((piece * piece).sum())
            pieces.append(radius * piece / max(length, length.new_tensor(SMALLEST * radius)))
        rows.append(torch.cat(pieces))
    return torch.stack(rows)


def _heads(vector: Tensor, count: int) -> list[Tensor]:
    return list(vector.unflatten(0, (count, -1)))


def _rows(slots: Tensor, key: Tensor, value: Tensor, num_heads: int) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of all slots, for each head (P, K)."""
    keys = [torch.stack([_heads(key @ slot, num_heads)[head] for slot in slots]) for head in range(num_heads)]
    values = [torch.stack([_heads(value @ slot, num_heads)[head] for slot in slots]) for head in range(num_heads)]
    return keys, values
