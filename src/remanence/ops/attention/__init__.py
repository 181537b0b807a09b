"""Attention with relative positions."""

from remanence.ops.attention.relative import Read, relative_attention
from remanence.ops.attention.shift import shift
from remanence.ops.attention.softmax import masked_softmax

__all__ = ["Read", "masked_softmax", "relative_attention", "shift"]
