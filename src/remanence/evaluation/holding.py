"""Distances no weight has seen, and when to hold them.

A memory longer at test time than in training brings tokens and slots further apart than any the model was trained
on. For LaMemo that is ruinous: trained at 64 + 64 it fell from 2.39 bits per byte to 4.73 with a memory of 256, and
stayed at 2.39 with each direction held at its own largest trained distance (LaMemo specification, section 3.7).
"""

from __future__ import annotations

from remanence.memory import Distances
from remanence.models import LanguageModel


def exceeds(reached: Distances, trained: Distances) -> bool:
    """Whether a distance beyond those of training is reached, in either direction. None is no limit."""
    pairs = ((reached.back, trained.back), (reached.ahead, trained.ahead))
    return any(limit is not None and (far is None or far > limit) for far, limit in pairs)


def distances_to_hold(
    model: LanguageModel, trained: Distances | None, segment_length: int, memory_length: int
) -> Distances | None:
    """What to give to `init_memory(hold=...)`: the trained distances, or None where these lengths exceed none."""
    reached = model.distances(segment_length=segment_length, memory_length=memory_length)
    return trained if trained is not None and exceeds(reached, trained) else None
