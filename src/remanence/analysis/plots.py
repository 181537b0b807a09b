"""Figures of what a memory does: one function per question, each returns a matplotlib `Figure`.

Lines are labelled where they end, axes carry their units, and nothing is told by colour alone. Figures are made
without pyplot, so that drawing neither needs a display nor touches anybody's settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from remanence.analysis.comparison import Comparison, CurvePoint, ModelFindings, PositionScore
from remanence.analysis.lines import STYLE, Label, Line, draw, frame_the_end, label_lines, mark, one_panel, smoothed
from remanence.analysis.palette import INK, LAYERS, model_colour, model_label, model_marker


def curves_by_tokens(comparison: Comparison) -> Figure:
    """Bits against tokens read: training as a faint line, validation as marked points."""
    return one_panel(lambda axes: _curves(axes, comparison, lambda point: point.tokens / 1e6, "million tokens read"))


def curves_by_seconds(comparison: Comparison) -> Figure:
    """The same against seconds spent in training: what a model's price buys."""
    return one_panel(lambda axes: _curves(axes, comparison, lambda point: point.seconds, "seconds of training"))


def bits_by_memory(comparison: Comparison) -> Figure:
    """Bits of every trained model against the memory length it is given at test time."""
    return one_panel(lambda axes: _by_memory(axes, comparison))


def bits_by_document_position(comparison: Comparison) -> Figure:
    """Bits against how much a model has read since its memory was empty, on a logarithmic axis."""
    return one_panel(lambda axes: _by_document_position(axes, comparison))


def bits_by_segment_position(comparison: Comparison) -> Figure:
    """Bits against the place of a token in its segment: where a model without memory starts from nothing."""
    return one_panel(lambda axes: _by_segment_position(axes, comparison))


def interpolation_by_age(model: ModelFindings, segment_length: int) -> Figure:
    """The weight of the old content in LaMemo's merge, by age of the memory slot, one line per layer."""
    return one_panel(lambda axes: _interpolation(axes, model, segment_length))


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


def _curves(axes: Axes, comparison: Comparison, place: Callable[[CurvePoint], float], unit: str) -> None:
    labels = []
    for model in comparison.models:
        colour = model_colour(model.architecture).light
        training = smoothed(model.training)
        axes.plot(
            [place(point) for point in training],
            [point.value for point in training],
            color=colour,
            alpha=0.4,
            linewidth=1.2,
        )
        marked = model.validation or training[-1:]
        if marked:
            places = [place(point) for point in marked]
            labels.append(draw(axes, _line(model, places, [point.value for point in marked])))
    curves = [
        (points, model.tokens) for model in comparison.models for points in (smoothed(model.training), model.validation)
    ]
    frame_the_end(axes, curves)
    axes.set_xlim(left=0)
    axes.set_xlabel(unit)
    axes.set_ylabel(comparison.unit)
    label_lines(axes, labels)


def _by_memory(axes: Axes, comparison: Comparison) -> None:
    lengths = comparison.memory_lengths
    place = {length: index for index, length in enumerate(lengths)}
    labels = []
    for model in comparison.models:
        colour, label = model_colour(model.architecture).light, model_label(model.architecture)
        if model.remembers:
            places = [place[score.memory_length] for score in model.by_memory]
            labels.append(draw(axes, _line(model, places, [score.value for score in model.by_memory])))
        elif model.by_memory:
            axes.axhline(model.by_memory[0].value, color=colour, linestyle=(0, (5, 3)), linewidth=1.6)
            labels.append(Label(len(lengths) - 1, model.by_memory[0].value, label, colour))
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axes.set_xlim(-0.35, len(lengths) - 0.7)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("memory length at test time (tokens)")
    axes.set_ylabel(comparison.unit)
    if comparison.memory_length in place:
        mark(axes, float(place[comparison.memory_length]), "trained here")
    label_lines(axes, labels)


def _by_document_position(axes: Axes, comparison: Comparison) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.0f}" if value < 1024 else f"{value / 1024:.0f}k")
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("tokens since the memory was empty (logarithmic)")
    labels = _positions(axes, comparison, lambda model: model.by_document_position)
    mark(axes, float(comparison.segment_length), "first segment ends")
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
        # Counted from 1, and between equals in the middle: position 1 stands at 1 on the logarithmic axis too.
        places = [(score.begin + 1 + score.end) / 2 for score in found]
        line = _line(model, places, [score.value for score in found])
        labels.append(draw(axes, dataclasses.replace(line, size=4.5)))
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
        mark(axes, float(segment_length), "older than one segment")
    label_lines(axes, labels)


def _line(model: ModelFindings, x: Sequence[float], y: Sequence[float]) -> Line:
    name = model.architecture
    return Line(model_label(name), model_colour(name).light, model_marker(name), x, y)
