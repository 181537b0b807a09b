"""Two linear maps with a rectifier between them."""

from remanence.ops.feed_forward.fused import feed_forward

__all__ = ["feed_forward"]
