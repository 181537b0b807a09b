"""Look-ahead attention of memory slots (Ji et al. 2022, section 3.1), for reading and for tests.

    t_ij = [ (q_i + u') k_j + (q_i + v') rho_d ] / sqrt(K),   d = j - i,   slots i = 0..M-1,  keys j = M-n+1..M

The n keys are the last n - 1 slots and the first token of the segment, which has joint index M.
Shapes: B lanes, H heads, M slots, n keys, K head width.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from remanence.ops.attention.naive import softmax_and_read


def look_ahead(
    queries: Float[Tensor, "B H M K"],
    keys: Float[Tensor, "B H n K"],
    values: Float[Tensor, "B H n K"],
    visible: Bool[Tensor, "#B M n"],
    *,
    content_bias: Float[Tensor, "H K"],
    position_bias: Float[Tensor, "H K"],
    positions: Float[Tensor, "P H K"],
) -> tuple[Float[Tensor, "B H M K"], Float[Tensor, "B H M"], Float[Tensor, "B H M n"]]:
    """Context, log-sum and weights. `positions` holds rho_d for d = 2 - n .. M, so P = M + n - 1."""
    exact = torch.float64 if queries.dtype == torch.float64 else torch.float32
    queries, keys, values, positions = (tensor.to(exact) for tensor in (queries, keys, values, positions))
    num_slots, num_keys = queries.shape[-2], keys.shape[-2]
    distance = (num_slots - num_keys + 1 + torch.arange(num_keys)) - torch.arange(num_slots)[:, None]
    table = positions[distance - (2 - num_keys)]
    scores = torch.einsum("bhmk,bhnk->bhmn", queries + content_bias[:, None], keys)
    scores = scores + torch.einsum("bhmk,mnhk->bhmn", queries + position_bias[:, None], table)
    return softmax_and_read(scores / math.sqrt(queries.shape[-1]), values, visible)


def merge(
    held: Float[Tensor, "B M H K"],
    held_logsum: Float[Tensor, "B M H"],
    seen: Float[Tensor, "B M H K"],
    seen_logsum: Float[Tensor, "B M H"],
    epsilon: float,
) -> tuple[Float[Tensor, "B M H K"], Float[Tensor, "B M H"], Float[Tensor, "B M H"]]:
    """Add the softmax masses of two reads: context, log-sum and the weight alpha of what was held (section 3.2)."""
    top = torch.maximum(held_logsum, seen_logsum)
    held_mass, seen_mass = (held_logsum - top).exp(), (seen_logsum - top).exp()
    alpha = held_mass / (held_mass + seen_mass + epsilon)
    context = alpha[..., None] * held + (1 - alpha[..., None]) * seen
    return context, torch.logaddexp(held_logsum, seen_logsum), alpha
