"""Weights and models from elsewhere."""

from remanence.interop.published import from_published, published_layout

__all__ = ["from_published", "published_layout"]
