"""Counting what is alive."""

from __future__ import annotations

import torch

from remanence.analysis.live_bytes import LiveBytes


def test_what_is_made_counts_until_it_is_dropped_and_views_count_nothing() -> None:
    before = torch.ones(1000)
    with LiveBytes() as live:
        one = before + 1
        view = one[10:]
        two = one * 2
        assert live.now == 8000
        before.add_(1)
        assert live.now == 8000
        del one
        # The view still holds it.
        assert live.now == 8000
        del view
        assert live.now == 4000
        three = torch.zeros(500, dtype=torch.float64)
        assert live.now == 8000
        del two, three
    assert live.now == 0 and live.peak == 8000


def test_what_a_graph_saves_counts() -> None:
    weight = torch.ones(100, 100, requires_grad=True)
    with LiveBytes() as live:
        hidden = weight
        for _ in range(5):
            hidden = hidden.exp()
        assert live.now == 5 * 40000
        hidden.sum().backward()
        del hidden
        # The gradient alone is left.
        assert live.now == 40000
