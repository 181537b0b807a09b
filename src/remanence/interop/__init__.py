"""Weights and models from elsewhere."""

from remanence.interop.published import from_published, published_layout
from remanence.interop.weights import read_weights

__all__ = ["from_published", "published_layout", "read_weights"]
