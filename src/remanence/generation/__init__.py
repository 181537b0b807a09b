"""Text from a model, token by token, at a cost that does not grow with the length of the past."""

from remanence.generation.sampling import Sampling
from remanence.generation.session import Session, Step

__all__ = ["Sampling", "Session", "Step"]
