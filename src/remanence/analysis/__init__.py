"""What the memory does: findings of several models, plots of them, and the page that shows them.

`comparison` and `measurements` need nothing but the base install; `plots`, `svg` and `report` draw with matplotlib
(the extra `plots`) and are imported by name.
"""

from remanence.analysis.comparison import (
    Comparison,
    CurvePoint,
    Difference,
    MemoryScore,
    ModelFindings,
    PositionScore,
    Sample,
    TextFacts,
)

__all__ = [
    "Comparison",
    "CurvePoint",
    "Difference",
    "MemoryScore",
    "ModelFindings",
    "PositionScore",
    "Sample",
    "TextFacts",
]
