"""How memory slots look ahead, and how they blend what they see with what they held."""

from remanence.ops.look_ahead.blocked import look_ahead
from remanence.ops.look_ahead.merge import merge

__all__ = ["look_ahead", "merge"]
