"""Blend what a slot held with what it has just seen."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def merge(
    held: Float[Tensor, "B M H K"],
    held_logsum: Float[Tensor, "B M H"],
    seen: Float[Tensor, "B M H K"],
    seen_logsum: Float[Tensor, "B M H"],
    active: Bool[Tensor, "B M"],
    epsilon: float,
) -> tuple[Float[Tensor, "B M H K"], Float[Tensor, "B M H"], Float[Tensor, "B M H"]]:
    """`naive.merge` where `active`, and what was held elsewhere (there alpha is 1).

    Log-sums are float32 or better; the context has the dtype of `held`.

    Source: Ji et al. 2022 (arXiv 2204.07341), section 3.2.
    """
    top = torch.maximum(held_logsum, seen_logsum)
    held_mass, seen_mass = (held_logsum - top).exp(), (seen_logsum - top).exp()
    alpha = (held_mass / (held_mass + seen_mass + epsilon)).masked_fill(~active[..., None], 1.0)
    context = torch.lerp(seen.to(alpha.dtype), held.to(alpha.dtype), alpha[..., None]).to(held.dtype)
    logsum = torch.where(active[..., None], torch.logaddexp(held_logsum, seen_logsum), held_logsum)
    return context, logsum, alpha
