"""The loss of a softmax over a large vocabulary."""

from remanence.ops.cross_entropy.chunked import linear_cross_entropy

__all__ = ["linear_cross_entropy"]
