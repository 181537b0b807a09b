"""Figures of several recipes over several seeds. A line is the mean; its band reaches from the lowest to the highest
seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from remanence.analysis.comparison import CurvePoint
from remanence.analysis.lines import Label, Line, draw, frame_the_end, label_lines, one_panel
from remanence.analysis.palette import Look, looks
from remanence.analysis.trials import Contender, Trials, mean

GAP = 0.08
"""Between labels, as a share of the height."""


def curves_by_tokens(trials: Trials) -> Figure:
    """The validation score against tokens read."""
    return one_panel(lambda axes: _curves(axes, trials, lambda point: point.tokens / 1e6, "million tokens read"))


def curves_by_seconds(trials: Trials) -> Figure:
    """The same against seconds spent in training."""
    return one_panel(lambda axes: _curves(axes, trials, lambda point: point.seconds, "seconds of training"))


def by_memory(trials: Trials) -> Figure:
    """The test score against the memory length at test time."""
    return one_panel(lambda axes: _by_memory(axes, trials))


def by_flops(trials: Trials) -> Figure:
    """The test score against what the training of one run cost in FLOPs."""
    return one_panel(lambda axes: _by_cost(axes, trials, lambda each: each.total_flops, "FLOPs of training"))


def by_seconds(trials: Trials) -> Figure:
    """The test score against what the training of one run cost in time."""
    return one_panel(lambda axes: _by_cost(axes, trials, lambda each: each.seconds, "seconds of training"))


def by_memory_bytes(trials: Trials) -> Figure:
    """The test score against the size of the memory."""
    return one_panel(lambda axes: _by_cost(axes, trials, lambda each: each.memory_bytes / 1024, "KiB of memory a lane"))


def band(curves: Sequence[Sequence[CurvePoint]]) -> list[list[CurvePoint]]:
    """The points of several seeds, taken together where they were taken after the same number of tokens."""
    shared = set.intersection(*({point.tokens for point in curve} for curve in curves)) if curves else set()
    return [[point for curve in curves for point in curve if point.tokens == tokens] for tokens in sorted(shared)]


def _curves(axes: Axes, trials: Trials, place: Callable[[CurvePoint], float], unit: str) -> None:
    labels, framed = [], []
    found = _looks(trials)
    for each in trials.contenders:
        groups = band([trial.validation or trial.training for trial in each.finished])
        if not groups:
            continue
        x = [mean([place(point) for point in group]) for group in groups]
        values = [[point.value for point in group] for group in groups]
        labels.append(draw(axes, _line(found[each.name], x, values)))
        points = [point for group in groups for point in group]
        framed.append((points, max(point.tokens for point in points)))
    frame_the_end(axes, framed)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel(unit)
    axes.set_ylabel(f"{trials.measure}, validation")
    _label(axes, labels)


def _by_memory(axes: Axes, trials: Trials) -> None:
    found = _looks(trials)
    lengths = sorted({length for each in trials.contenders for length in each.lengths})
    places = {length: index for index, length in enumerate(lengths)}
    labels = []
    for each in trials.contenders:
        own, look = each.lengths, found[each.name]
        if not own:
            continue
        values = [each.with_memory(length) for length in own]
        if own == (0,):
            axes.axhline(mean(values[0]), color=look.colour.light, linestyle=(0, (5, 3)), linewidth=1.6)
            labels.append(Label(len(lengths) - 1, mean(values[0]), look.label, look.colour.light))
            continue
        labels.append(draw(axes, _line(look, [places[length] for length in own], values)))
        if each.memory_length in own:
            # A ring marks the length of training.
            x, y = places[each.memory_length], mean(each.with_memory(each.memory_length))
            axes.plot([x], [y], marker="o", markersize=12, markerfacecolor="none", color=look.colour.light, linewidth=0)
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_xlim(-0.35, max(1, len(lengths)) - 0.7)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("memory length at test time (ring: as trained)")
    axes.set_ylabel(trials.measure)
    _label(axes, labels)


def _by_cost(axes: Axes, trials: Trials, cost: Callable[[Contender], float], unit: str) -> None:
    found = _looks(trials)
    labels = []
    costs = [cost(each) for each in trials.ranked if not math.isnan(cost(each))]
    for each in trials.ranked:
        x, values, look = cost(each), each.values, found[each.name]
        if math.isnan(x):
            continue
        colour = look.colour.light
        axes.plot([x, x], [min(values), max(values)], color=colour, linewidth=1.6)
        axes.plot([x], [mean(values)], color=colour, marker=look.marker, markersize=8)
        labels.append(Label(x, mean(values), look.label, colour))
    if min(costs, default=0) > 0 and max(costs) > 4 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel(unit)
    axes.set_ylabel(trials.measure)
    _label(axes, labels)


def _line(look: Look, x: Sequence[float], values: Sequence[Sequence[float]]) -> Line:
    several = any(len(each) > 1 for each in values)
    return Line(
        look.label,
        look.colour.light,
        look.marker,
        x,
        [mean(each) for each in values],
        [min(each) for each in values] if several else (),
        [max(each) for each in values] if several else (),
    )


def _looks(trials: Trials) -> dict[str, Look]:
    return looks({each.name: each.architecture for each in trials.contenders})


def _label(axes: Axes, labels: Sequence[Label]) -> None:
    """However many there are, they stay within the height."""
    label_lines(axes, labels, min(GAP, 1 / max(1, len(labels) - 1)))
