"""Figures of what a memory does: one function per question, each returns a matplotlib `Figure`.

Lines are labelled where they end, axes carry their units, and nothing is told by colour alone. Figures are made
without pyplot, so that drawing neither needs a display nor touches anybody's settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from remanence.analysis.comparison import Comparison, CurvePoint, ModelFindings, PositionScore
from remanence.analysis.palette import GRID, INK, LAYERS, MUTED, model_colour, model_label, model_marker

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


def curves_by_tokens(comparison: Comparison) -> Figure:
    """Bits against tokens read: training as a faint line, validation as marked points."""
    return _one_panel(lambda axes: _curves(axes, comparison, lambda point: point.tokens / 1e6, "million tokens read"))


def curves_by_seconds(comparison: Comparison) -> Figure:
    """The same against seconds spent in training: what a model's price buys."""
    return _one_panel(lambda axes: _curves(axes, comparison, lambda point: point.seconds, "seconds of training"))


def bits_by_memory(comparison: Comparison) -> Figure:
    """Bits of every trained model against the memory length it is given at test time."""
    return _one_panel(lambda axes: _by_memory(axes, comparison))


def bits_by_document_position(comparison: Comparison) -> Figure:
    """Bits against how much a model has read since its memory was empty, on a logarithmic axis."""
    return _one_panel(lambda axes: _by_document_position(axes, comparison))


def bits_by_segment_position(comparison: Comparison) -> Figure:
    """Bits against the place of a token in its segment: where a model without memory starts from nothing."""
    return _one_panel(lambda axes: _by_segment_position(axes, comparison))


def interpolation_by_age(model: ModelFindings, segment_length: int) -> Figure:
    """The weight of the old content in LaMemo's merge, by age of the memory slot, one line per layer."""
    return _one_panel(lambda axes: _interpolation(axes, model, segment_length))


def summary(comparison: Comparison) -> Figure:
    """Two panels on one wide figure, for a page that has room for one picture."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10.4, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        _by_memory(left, comparison)
        _by_segment_position(right, comparison)
        for axes, title in ((left, "Memory at test time"), (right, "Place in the segment")):
            axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK.light, pad=12)
        return figure


def _one_panel(draw: Callable[[Axes], None]) -> Figure:
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.subplots())
        return figure


def _curves(axes: Axes, comparison: Comparison, place: Callable[[CurvePoint], float], unit: str) -> None:
    labels = []
    for model in comparison.models:
        colour = model_colour(model.architecture).light
        training = smoothed(model.training)
        axes.plot(
            [place(point) for point in training],
            [point.bits for point in training],
            color=colour,
            alpha=0.4,
            linewidth=1.2,
        )
        marked = model.validation or training[-1:]
        axes.plot(
            [place(point) for point in marked],
            [point.bits for point in marked],
            color=colour,
            marker=model_marker(model.architecture),
        )
        if marked:
            labels.append(Label(place(marked[-1]), marked[-1].bits, model_label(model.architecture), colour))
    _frame_the_end(axes, comparison)
    axes.set_xlim(left=0)
    axes.set_xlabel(unit)
    axes.set_ylabel(comparison.unit)
    label_lines(axes, labels)


def smoothed(points: Sequence[CurvePoint], windows: int = 60) -> list[CurvePoint]:
    """At most `windows` points, each the mean of a stretch of neighbours: noise goes, the shape stays."""
    size = max(1, -(-len(points) // windows))
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        CurvePoint(
            tokens=round(_mean([point.tokens for point in stretch])),
            seconds=_mean([point.seconds for point in stretch]),
            bits=_mean([point.bits for point in stretch]),
        )
        for stretch in stretches
    ]


def _frame_the_end(axes: Axes, comparison: Comparison) -> None:
    """Cut the first steep fall off, so that the end, where models differ, has room."""
    late, everything = [], []
    for model in comparison.models:
        for points in (smoothed(model.training), model.validation):
            everything += [point.bits for point in points]
            late += [point.bits for point in points if point.tokens >= 0.12 * model.tokens]
    if late and max(late) < max(everything):
        space = (max(late) - min(late)) * 0.06
        axes.set_ylim(min(everything) - space, max(late) + space)


def _by_memory(axes: Axes, comparison: Comparison) -> None:
    lengths = comparison.memory_lengths
    place = {length: index for index, length in enumerate(lengths)}
    labels = []
    for model in comparison.models:
        colour, label = model_colour(model.architecture).light, model_label(model.architecture)
        if model.remembers:
            places = [place[score.memory_length] for score in model.by_memory]
            bits = [score.bits for score in model.by_memory]
            axes.plot(places, bits, color=colour, marker=model_marker(model.architecture))
            labels.append(Label(places[-1], bits[-1], label, colour))
        elif model.by_memory:
            axes.axhline(model.by_memory[0].bits, color=colour, linestyle=(0, (5, 3)), linewidth=1.6)
            labels.append(Label(len(lengths) - 1, model.by_memory[0].bits, label, colour))
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axes.set_xlim(-0.35, len(lengths) - 0.7)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("memory length at test time (tokens)")
    axes.set_ylabel(comparison.unit)
    if comparison.memory_length in place:
        _mark(axes, float(place[comparison.memory_length]), "trained here")
    label_lines(axes, labels)


def _by_document_position(axes: Axes, comparison: Comparison) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.0f}" if value < 1024 else f"{value / 1024:.0f}k")
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("tokens since the memory was empty (logarithmic)")
    labels = _positions(axes, comparison, lambda model: model.by_document_position)
    _mark(axes, float(comparison.segment_length), "first segment ends")
    label_lines(axes, labels)


def _by_segment_position(axes: Axes, comparison: Comparison) -> None:
    labels = _positions(axes, comparison, lambda model: model.by_segment_position)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"position in the segment of {comparison.segment_length} tokens")
    label_lines(axes, labels)


def _positions(
    axes: Axes, comparison: Comparison, scores: Callable[[ModelFindings], Sequence[PositionScore]]
) -> list[Label]:
    labels = []
    for model in comparison.models:
        found = scores(model)
        if not found:
            continue
        colour = model_colour(model.architecture).light
        # Counted from 1, and between equals in the middle: position 1 stands at 1 on the logarithmic axis too.
        places = [(score.begin + 1 + score.end) / 2 for score in found]
        bits = [score.bits for score in found]
        axes.plot(places, bits, color=colour, marker=model_marker(model.architecture), markersize=4.5)
        labels.append(Label(places[-1], bits[-1], model_label(model.architecture), colour))
    axes.set_ylabel(comparison.unit)
    return labels


def _interpolation(axes: Axes, model: ModelFindings, segment_length: int) -> None:
    labels = []
    layers = len(model.interpolation)
    for index, weights in enumerate(model.interpolation):
        # More layers than colours share them in order: neighbours in depth look alike.
        colour = LAYERS[index if layers <= len(LAYERS) else index * len(LAYERS) // layers].light
        ages = range(1, len(weights) + 1)
        axes.plot(ages, weights, color=colour)
        if layers <= len(LAYERS) or index in (0, layers - 1):
            labels.append(Label(len(weights), weights[-1], f"layer {index + 1}", colour))
    length = max((len(weights) for weights in model.interpolation), default=1)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, length)
    axes.set_xlabel("age of the memory slot (tokens; 1 is the newest)")
    axes.set_ylabel("share of the old content kept (α)")
    if length > segment_length:
        _mark(axes, float(segment_length), "older than one segment")
    label_lines(axes, labels)


def _mark(axes: Axes, x: float, text: str) -> None:
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
    wanted = _mean([heights[index] for index in block]) - length / 2
    return max(0.0, min(wanted, 1.0 - length))


def _head(block: Sequence[int], heights: Sequence[float], gap: float) -> float:
    return _foot(block, heights, gap) + (len(block) - 1) * gap


def _mean(values: Sequence[float] | Sequence[int]) -> float:
    return sum(values) / len(values)
