"""Where the old function is sampled: more densely where attention went. Random numbers that depend on a key alone.

u = F^-1(v),  F the piecewise linear distribution function of the masses of J bins,  v uniform on (0, 1)

The random v come from a hash of a lane's key, which is itself a hash of what the lane has read. So they travel with the
lane, are the same on every device and in every recomputation, and no generator is touched. Shapes: B lanes, T tokens,
J bins, M places.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

MULTIPLIER = 6364136223846793005
"""Of the rolling hash (Knuth's linear congruential generator); odd, so that no bit is ever lost."""
GOLDEN, MIX_ONE, MIX_TWO = -7046029254386353131, -4658895280553007687, -7723592293110705685
"""Increment and multipliers of splitmix64 (Steele, Lea & Flood 2014), as signed numbers."""


def fold(
    key: Int[Tensor, " B"], tokens: Int[Tensor, "B T"], lengths: Int[Tensor, " B"] | None = None
) -> Int[Tensor, " B"]:
    """The key after more tokens were read: key <- a key + token + 1 for each real one, modulo 2^64.

    Any cut into calls gives the same key.
    """
    number = tokens.shape[1]
    powers = torch.full((number + 1,), MULTIPLIER, dtype=torch.int64, device=tokens.device)
    powers[0] = 1
    powers = powers.cumprod(0)
    added = tokens.long() + 1
    if lengths is None:
        return key * powers[number] + (added * powers[:number].flip(0)).sum(1)
    left = lengths[:, None] - 1 - torch.arange(number, device=tokens.device)
    return key * powers[lengths] + torch.where(left >= 0, added * powers[left.clamp(min=0)], 0).sum(1)


def uniforms(key: Int[Tensor, " B"], stream: int, number: int) -> Float[Tensor, "B M"]:
    """Numbers strictly between 0 and 1, float32, independent for different keys, streams and places."""
    seeds = _mixed(_mixed(key) + torch.full_like(key, stream) * GOLDEN)
    counters = torch.arange(1, number + 1, device=key.device) * GOLDEN
    bits = (_mixed(seeds[:, None] + counters) >> 41) & 0x7FFFFF
    return (bits.float() + 0.5) / 2**23


def densest(masses: Float[Tensor, "B J"], shares: Float[Tensor, "#B M"], *, left: bool = False) -> Float[Tensor, "B M"]:
    """F^-1 at rising shares: places that fall into a bin in proportion to its mass; with `left`, its left edge.

    A lane without any mass is sampled uniformly, at m / M.
    """
    bins, number = masses.shape[1], shares.shape[1]
    total = masses.sum(1, keepdim=True)
    smallest = torch.finfo(masses.dtype).tiny
    upper = masses.cumsum(1) / total.clamp(min=smallest)
    shares = shares.to(masses.dtype).expand(masses.shape[0], -1).contiguous()
    chosen = torch.searchsorted(upper[:, :-1].contiguous(), shares, right=True)
    within = torch.zeros_like(shares)
    if not left:
        lower = torch.cat([torch.zeros_like(total), upper[:, :-1]], dim=1).gather(1, chosen)
        within = ((shares - lower) / (upper.gather(1, chosen) - lower).clamp(min=smallest)).clamp(0, 1)
    even = torch.arange(1, number + 1, device=masses.device).to(masses.dtype) / number
    return torch.where(total > 0, (chosen + within) / bins, even)


def _mixed(state: Tensor) -> Tensor:
    """The output function of splitmix64: every bit of the result depends on every bit of the state."""
    state = (state ^ _shifted(state, 30)) * MIX_ONE
    state = (state ^ _shifted(state, 27)) * MIX_TWO
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Shift to the right as of an unsigned number."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
