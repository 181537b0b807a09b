"""Cross-entropy of a linear classifier, for reading and for tests.

nll_n = log sum_v exp(z_nv) - z_n,target(n),   z = hidden weight^T + bias
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def linear_cross_entropy(
    hidden: Float[Tensor, "N E"],
    weight: Float[Tensor, "V E"],
    bias: Float[Tensor, " V"],
    targets: Int[Tensor, " N"],
) -> Float[Tensor, " N"]:
    """Nats per row; 0 where the target is negative (not scored)."""
    logits = hidden @ weight.T + bias
    logits = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    wanted = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return torch.where(targets >= 0, logits.logsumexp(-1) - wanted, 0.0)
