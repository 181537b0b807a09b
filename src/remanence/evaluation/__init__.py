"""Scores that say how they were computed: every token once, the protocol beside the number."""

from remanence.evaluation.measurements import InterpolationByAge, LossByPosition, LossBySegmentPosition, LossByStretch
from remanence.evaluation.perplexity import evaluate, sweep
from remanence.evaluation.protocol import Protocol
from remanence.evaluation.score import Score

__all__ = [
    "InterpolationByAge",
    "LossByPosition",
    "LossBySegmentPosition",
    "LossByStretch",
    "Protocol",
    "Score",
    "evaluate",
    "sweep",
]
