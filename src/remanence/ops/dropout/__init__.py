"""Dropout at the price of its random bits."""

from remanence.ops.dropout.bits import add_dropped, drawn_among, dropout

__all__ = ["add_dropped", "drawn_among", "dropout"]
