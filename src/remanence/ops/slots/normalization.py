"""Biased memory normalisation: what a slot does not keep writing fades towards its own bias.

    m <- rho (m' + v) / |m' + v|,   and at the start of a document  m = rho v / |v|

Source: Wu et al. 2022 (arXiv 2010.06891), section 3.3. Shapes: B lanes, P slots, D width of a slot.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from remanence.ops.slots.naive import SMALLEST


def biased_normalization(
    written: Float[Tensor, "B P D"], bias: Float[Tensor, "P D"] | None, radius: float, parts: int = 1
) -> Float[Tensor, "B P D"]:
    """Every slot at length `radius`, or every one of its `parts` equal pieces; without a bias nothing fades."""
    return _to_length(written if bias is None else written + bias.to(written.dtype), radius, parts)


def initial_slots(bias: Float[Tensor, "P D"], radius: float, parts: int = 1) -> Float[Tensor, "P D"]:
    """What slots hold before anything is written: where forgetting would lead them, float32 or better."""
    return _to_length(bias if bias.dtype == torch.float64 else bias.float(), radius, parts)


def _to_length(vectors: Tensor, radius: float, parts: int) -> Tensor:
    pieces = vectors.unflatten(-1, (parts, -1))
    lengths = torch.linalg.vector_norm(pieces, dim=-1, keepdim=True)
    return (radius * pieces / lengths.clamp(min=SMALLEST * radius)).flatten(-2)
