"""Slot attention as training uses it: all slots of all lanes in two matrix products and one softmax."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from remanence.ops.attention import masked_softmax


class Written(NamedTuple):
    """What slots hold after a segment was written into them, before normalisation."""

    slots: Float[Tensor, "B P D"]
    own: Float[Tensor, "B P H"]
    """The weight that each slot gave to what it held."""
    weights: Float[Tensor, "B H P 1+T"]
    """Own slot first, then the tokens."""


def write_slots(
    slots: Float[Tensor, "B P D"],
    queries: Float[Tensor, "B H P K"],
    own_keys: Float[Tensor, "B H P K"],
    keys: Float[Tensor, "B H T K"],
    values: Float[Tensor, "B H T N"],
    valid: Bool[Tensor, "B T"],
    temperature: float,
) -> Written:
    """What `naive.write_slots` defines, on projected slots and tokens; D = H N. Slots are float32 or better.

    A slot's own weight comes in the slots' own precision, whatever that of the projections, so that one that keeps
    itself whole stays itself bit for bit.

    Source: Wu et al. 2022 (arXiv 2010.06891), section 3.2.
    """
    exact = slots.dtype
    asked = queries * (1 / (temperature * math.sqrt(queries.shape[-1])))
    own = (asked * own_keys).sum(-1, keepdim=True)
    scores = torch.cat([own.to(exact), (asked @ keys.transpose(-2, -1)).to(exact)], dim=-1)
    visible = F.pad(valid, (1, 0), value=True)[:, None].expand(-1, slots.shape[1], -1)
    weights, _ = masked_softmax(scores, None, visible)
    kept, taken = weights[..., :1], weights[..., 1:]
    held = slots.unflatten(-1, (queries.shape[1], -1)).transpose(1, 2)
    written = kept * held + (taken.to(values.dtype) @ values).to(exact)
    return Written(written.transpose(1, 2).flatten(2), kept[..., 0].transpose(1, 2), weights)
