"""Dropout at the price of its random bits."""

from remanence.ops.dropout.bits import dropout

__all__ = ["dropout"]
