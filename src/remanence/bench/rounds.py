"""Candidates that take turns, and what their times say.

In every round each candidate runs once, the first one another each time; ratios are taken within a round and their
median counts, so that what disturbs the machine for seconds disturbs all candidates alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from remanence.bench.peak import MatrixPeak
from remanence.bench.usage import seconds


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int,
    device: torch.device,
    peak: MatrixPeak | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[float]]:
    """Seconds of every call in every timed round, by name. The peak is measured again after each round.

    `told` hears how many rounds of all are done.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warmup + rounds):
        first = number % max(len(names), 1)
        for name in (*names[first:], *names[:first]):
            taken = seconds(calls[name], device)
            if number >= warmup:
                times[name].append(taken)
        if peak is not None:
            peak.measure(repeats=2)
        told(number + 1, warmup + rounds)
    return times


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median, fastest and slowest, and the quartiles, in seconds."""
    quartiles = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    return {
        "median": statistics.median(times),
        "fastest": min(times),
        "slowest": max(times),
        "lower_quartile": quartiles[0],
        "upper_quartile": quartiles[2],
    }


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """The median of what one takes as a multiple of the other, round by round."""
    return statistics.median(one / other for one, other in zip(times, others, strict=True))


def line(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The straight line through (x, y) by least squares: offset, slope, and how much of the variance it explains."""
    xs, ys = zip(*points, strict=True)
    slope, offset = statistics.linear_regression(xs, ys)
    mean = statistics.fmean(ys)
    around = sum((y - mean) ** 2 for y in ys)
    beside = [y - offset - slope * x for x, y in points]
    return {
        "offset": offset,
        "slope": slope,
        "explained": 1 - sum(each**2 for each in beside) / around if around else 1.0,
        "largest_deviation": max(abs(rest) / abs(y) if y else 0.0 for rest, y in zip(beside, ys, strict=True)),
    }
