"""Codes of distances, tables of them, and the limits at which they are held."""

from __future__ import annotations

import math

import pytest
import torch

from remanence.nn.positions import sinusoids
from remanence.nn.relative import DirectionBiases, LearnedPositions, falling, tightest


def test_codes_are_sines_and_then_cosines() -> None:
    codes = sinusoids(torch.tensor([0, 1, 5, -3]), 6, torch.float64)
    for row, distance in zip(codes.tolist(), (0, 1, 5, -3), strict=True):
        angles = [distance * 10000 ** (-2 * k / 6) for k in range(3)]
        wanted = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        assert row == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_angles_are_computed_exactly_whatever_the_type(dtype: torch.dtype) -> None:
    """Counted in half precision, 3,928 distances would leave 2,989 or 758 distinct ones."""
    distances = torch.arange(3928)
    codes = sinusoids(distances, 64, dtype)
    exact = sinusoids(distances, 64, torch.float64)
    assert codes.dtype == dtype
    assert (codes.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps + 4e-4
    assert len(codes.float().unique(dim=0)) > 3900


def test_mirrored_distances_share_their_cosines() -> None:
    ahead, back = sinusoids(torch.arange(1, 6), 8, torch.float64), sinusoids(-torch.arange(1, 6), 8, torch.float64)
    assert torch.equal(ahead[:, 4:], back[:, 4:]) and torch.equal(ahead[:, :4], -back[:, :4])


def test_distances_fall_to_zero_and_are_held_at_their_limit() -> None:
    assert falling(5, None, torch.device("cpu")).tolist() == [4, 3, 2, 1, 0]
    assert falling(5, 2, torch.device("cpu")).tolist() == [2, 2, 2, 1, 0]
    assert falling(1, 9, torch.device("cpu")).tolist() == [0]


def test_the_tightest_of_several_limits_is_the_smallest_given() -> None:
    assert tightest(None, 5, 3, None) == 3
    assert tightest(None, None) is None
    assert tightest() is None
    assert tightest(0, 4) == 0


def test_learned_rows_end_with_distance_zero_and_reuse_the_largest() -> None:
    learned = LearnedPositions(2, 4, 3, 5)
    learned.table.data = torch.randn_like(learned.table)
    learned.distance_bias.data = torch.randn_like(learned.distance_bias)
    table, each = learned.of(1, torch.tensor([6, 3, 2, 0]), None)
    rows = [0, 0, 1, 3]
    assert torch.equal(table, learned.table[1, rows]) and torch.equal(each, learned.distance_bias[1, rows])
    table, _ = learned.of(0, torch.tensor([6, 3, 2, 0]), 2)
    assert torch.equal(table, learned.table[0, [1, 1, 1, 3]])
    assert torch.equal(learned.of(0, torch.tensor([9]), 99)[0], learned.table[0, [0]])


def test_biases_are_shared_or_of_each_layer_or_absent() -> None:
    shared = DirectionBiases(None, 2, 3, content=True, position=False)
    assert shared.content is not None and shared.of(0) == (shared.content, None) and shared.of(5)[0] is shared.content
    untied = DirectionBiases(4, 2, 3, content=True, position=True)
    assert untied.content is not None
    content, position = untied.of(2)
    assert content is not None and position is not None
    assert content.shape == position.shape == (2, 3)
    assert content.data_ptr() == untied.content[2].data_ptr()
