"""Memory slots: how tokens are written into them, and how what is not written again fades."""

from remanence.ops.slots.normalization import biased_normalization, initial_slots
from remanence.ops.slots.writer import Written, write_slots

__all__ = ["Written", "biased_normalization", "initial_slots", "write_slots"]
