"""Turns, statistics and peaks: what the figures of every bench rest on."""

from __future__ import annotations

import time

import pytest
import torch

from remanence.bench.peak import MatrixPeak
from remanence.bench.rounds import interleave, line, ratio, summary
from remanence.bench.usage import peak_bytes, resident_bytes, seconds

CPU = torch.device("cpu")


def test_candidates_take_turns_and_another_begins_each_round() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    told: list[tuple[int, int]] = []
    times = interleave(calls, 2, 1, CPU, told=lambda *step: told.append(step))
    assert "".join(order) == "abcbcacab"
    assert {name: len(taken) for name, taken in times.items()} == {"a": 2, "b": 2, "c": 2}
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_peak_is_measured_again_after_every_round_and_the_best_counts() -> None:
    peak = MatrixPeak(CPU, torch.float32, quick=True)
    interleave({"nothing": lambda: None}, 2, 1, CPU, peak)
    assert len(peak.history) == 3 and peak.flops == max(peak.history) > 1e8
    assert peak.to_json()["measured"] == 3 and peak.to_json()["dtype"] == "float32"
    assert peak.to_json()["slowest_moment"] == min(peak.history)


def test_what_the_times_say() -> None:
    assert summary([3.0, 1.0, 2.0])["median"] == 2.0
    assert summary([5.0]) == dict.fromkeys(summary([5.0]), 5.0)
    # A slow moment of the machine slows both, and says nothing about their ratio.
    assert ratio([2.0, 20.0, 2.2], [1.0, 10.0, 1.1]) == pytest.approx(2.0)


def test_a_line_through_the_costs_tells_how_well_it_fits() -> None:
    exact = line([(150, 3.0), (600, 12.0), (2400, 48.0)])
    assert exact["slope"] == pytest.approx(0.02) and exact["offset"] == pytest.approx(0)
    assert exact["explained"] == pytest.approx(1) and exact["largest_deviation"] < 1e-9
    bent = line([(1, 1.0), (2, 4.0), (3, 9.0), (4, 16.0)])
    assert bent["explained"] < 0.99 and bent["largest_deviation"] > 0.1


def test_time_and_bytes_of_a_call() -> None:
    assert seconds(lambda: time.sleep(0.01), CPU) >= 0.01
    assert peak_bytes(lambda: torch.ones(1000).exp(), CPU) == 8000
    assert (resident_bytes() or 1 << 20) >= 1 << 20
