"""What every figure is made of: one panel, marked lines with a band, labels at their ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from remanence.analysis.comparison import CurvePoint
from remanence.analysis.palette import GRID, INK, MUTED

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK.light,
    "axes.labelcolor": MUTED.light,
    "axes.edgecolor": MUTED.light,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID.light,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED.light,
    "ytick.color": MUTED.light,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 2.0,
    "lines.markersize": 6,
    "figure.facecolor": "white",
}
SIZE = (5.0, 3.6)
"""Inches. Small, so that the letters stay readable when a phone shows the figure at 340 pixels."""


class Label(NamedTuple):
    """A text beside the end of a line, in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


@dataclass(frozen=True)
class Line:
    """A marked line. With `low` and `high` it has a band: where several runs lie."""

    label: str
    colour: str
    marker: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    size: float = 6.0
    """Of the markers, in points."""


def draw(axes: Axes, line: Line) -> Label:
    """Draw a line and its band; gives the label that belongs at its end."""
    if line.low:
        axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.18, linewidth=0)
    axes.plot(line.x, line.y, color=line.colour, marker=line.marker, markersize=line.size)
    return Label(line.x[-1], line.y[-1], line.label, line.colour)


def one_panel(draw: Callable[[Axes], None]) -> Figure:
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.subplots())
        return figure


def smoothed(points: Sequence[CurvePoint], windows: int = 60) -> list[CurvePoint]:
    """At most `windows` points, each the mean of a stretch of neighbours: noise goes, the shape stays."""
    size = max(1, -(-len(points) // windows))
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        CurvePoint(
            tokens=round(mean([point.tokens for point in stretch])),
            seconds=mean([point.seconds for point in stretch]),
            value=mean([point.value for point in stretch]),
        )
        for stretch in stretches
    ]


def frame_the_end(axes: Axes, curves: Sequence[tuple[Sequence[CurvePoint], int]]) -> None:
    """Cut the first steep fall off, so that the end, where models differ, has room.

    curves      each with the tokens that its model read in all
    """
    everything = [point.value for points, _ in curves for point in points]
    late = [point.value for points, tokens in curves for point in points if point.tokens >= 0.12 * tokens]
    if late and max(late) < max(everything):
        space = (max(late) - min(late)) * 0.06
        axes.set_ylim(min(everything) - space, max(late) + space)


def mark(axes: Axes, x: float, text: str) -> None:
    """A quiet upright line with a note beside its top."""
    axes.axvline(x, color=MUTED.light, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    axes.annotate(
        text,
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(5, -1),
        textcoords="offset points",
        color=MUTED.light,
        fontsize=9,
        va="top",
        ha="left",
        annotation_clip=False,
    )


def label_lines(axes: Axes, labels: Sequence[Label], gap: float = 0.08) -> None:
    """Write each label right of the axes at the height of its point, at least `gap` (a share of the height) apart.

    A point that lies further left is led to its label by a dotted line. Call this last: it keeps the limits there are.
    """
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    axes.set_ylim(low, high)
    axes.set_xlim(left, right)
    heights = spread([(label.y - low) / (high - low) for label in labels], gap)
    for label, height in zip(labels, heights, strict=True):
        if label.x < left + 0.9 * (right - left) and axes.get_xscale() == "linear":
            axes.plot([label.x, right], [label.y, label.y], color=label.colour, linewidth=1, linestyle=(0, (1, 3)))
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(1.02, height),
            textcoords="axes fraction",
            color=label.colour,
            fontweight="bold",
            va="center",
            ha="left",
            annotation_clip=False,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights (0 to 1) apart until neighbours are `gap` apart, in their order, as little as a simple rule needs.

    Neighbours that are too close form a block, which stands centred on the mean of where its members wanted to be, or
    as near to that as fits between 0 and 1.
    """
    blocks: list[list[int]] = []
    for index in sorted(range(len(heights)), key=lambda index: heights[index]):
        blocks.append([index])
        while len(blocks) > 1 and _foot(blocks[-1], heights, gap) < _head(blocks[-2], heights, gap) + gap:
            last = blocks.pop()
            blocks[-1] += last
    placed = [0.0] * len(heights)
    for block in blocks:
        for step, index in enumerate(block):
            placed[index] = _foot(block, heights, gap) + step * gap
    return placed


def _foot(block: Sequence[int], heights: Sequence[float], gap: float) -> float:
    """Where the lowest member of a block stands."""
    length = (len(block) - 1) * gap
    wanted = mean([heights[index] for index in block]) - length / 2
    return max(0.0, min(wanted, 1.0 - length))


def _head(block: Sequence[int], heights: Sequence[float], gap: float) -> float:
    return _foot(block, heights, gap) + (len(block) - 1) * gap


def mean(values: Sequence[float] | Sequence[int]) -> float:
    return sum(values) / len(values)
