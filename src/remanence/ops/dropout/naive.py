"""Dropout as it is defined (Srivastava et al. 2014), for reading and for tests."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def apply_mask(values: Float[Tensor, "*shape"], kept: Bool[Tensor, "*shape"], rate: float) -> Float[Tensor, "*shape"]:
    """Zeros where not kept; what is kept is scaled so that the expectation stays."""
    return torch.where(kept, values / (1 - rate), 0.0)
