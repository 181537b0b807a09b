"""Dropout from random bits: its mask, its rate, its gradient, its seed."""

from __future__ import annotations

import pytest
import torch

from remanence.ops.dropout import add_dropped, bits, drawn_among, dropout
from remanence.ops.dropout.bits import random_mask
from remanence.ops.dropout.naive import apply_mask


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (1,), (7, 1, 3), (0, 4), (2, 2)])
def test_it_is_the_naive_one_with_the_same_mask(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape).to(dtype).requires_grad_()
    torch.manual_seed(4)
    kept = random_mask(values.shape, 0.3) == 1
    torch.manual_seed(4)
    dropped = dropout(values, 0.3)
    other = values.detach().clone().requires_grad_()
    wanted = apply_mask(other, kept, 0.3)
    assert dropped.dtype == dtype
    torch.testing.assert_close(dropped, wanted)
    pull = torch.randn(shape).to(dtype)
    (dropped * pull).sum().backward()
    (wanted * pull).sum().backward()
    torch.testing.assert_close(values.grad, other.grad)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_the_share_of_dropped_values_is_the_rate(rate: float) -> None:
    count = 200_000
    share = 1 - random_mask(torch.Size([count]), rate).double().mean().item()
    assert abs(share - rate) < 5 * (rate * (1 - rate) / count) ** 0.5 + 2**-16


def test_decisions_cut_from_one_number_are_independent() -> None:
    kept = random_mask(torch.Size([50_000, 4]), 0.5).double() - 0.5
    correlation = (kept.T @ kept) / len(kept) * 4
    assert (correlation - torch.eye(4, dtype=torch.float64)).abs().max() < 0.03


@pytest.mark.parametrize("rate", [1e-9, 1 - 1e-9, 0.999999])
def test_extreme_rates_are_met_to_the_nearest_step(rate: float) -> None:
    kept = random_mask(torch.Size([1000]), rate)
    assert kept.all() if rate < 0.5 else kept.sum() < 5


def test_nothing_is_dropped_or_drawn_outside_training_or_at_rate_zero() -> None:
    values, state = torch.randn(3, 5), torch.get_rng_state()
    assert dropout(values, 0.5, training=False) is values
    assert dropout(values, 0.0) is values
    assert torch.equal(torch.get_rng_state(), state)


def test_the_global_generator_decides() -> None:
    values = torch.ones(5, 7)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(dropout(values, 0.5))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_the_given_values_stay_as_they_are() -> None:
    values = torch.ones(5, 7)
    dropout(values, 0.5)
    assert torch.equal(values, torch.ones(5, 7))


@pytest.mark.parametrize("kinds", [(torch.float32, torch.bfloat16), (torch.bfloat16,) * 2, (torch.float64,) * 2])
def test_adding_what_was_dropped_is_adding_its_dropout(kinds: tuple[torch.dtype, torch.dtype]) -> None:
    given = [torch.randn(3, 7).to(kind).requires_grad_() for kind in kinds]
    others = [each.detach().clone().requires_grad_() for each in given]
    torch.manual_seed(3)
    ours = add_dropped(given[0], given[1], 0.4)
    torch.manual_seed(3)
    theirs = others[0] + dropout(others[1], 0.4)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)
    pull = torch.randn_like(ours)
    ours.backward(pull)
    theirs.backward(pull)
    for one, other in zip(given, others, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert torch.equal(add_dropped(given[0], given[1], 0.4, training=False), given[0] + given[1])


def test_many_words_are_those_of_the_published_generator() -> None:
    count = bits.FEW_WORDS + 7
    torch.manual_seed(5)
    words = bits.random_words(count)
    torch.manual_seed(5)
    state, whole = int(bits.random_words(1)), (1 << 64) - 1
    for number in (0, 1, bits.FEW_WORDS - 1, bits.FEW_WORDS, count - 1):
        word = (state + number * 0x9E3779B97F4A7C15) & whole
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & whole
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB & whole
        assert int(words[number]) & whole == word ^ (word >> 31)


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 700, 33)], ids=["few", "many"])
@pytest.mark.parametrize("axis", [0, 1])
def test_some_lanes_have_the_mask_that_they_have_among_all(shape: tuple[int, ...], axis: int) -> None:
    shape = shape if axis == 0 else (2, *shape)
    torch.manual_seed(3)
    whole = random_mask(torch.Size(shape), 0.3, axis)
    after = torch.get_rng_state()
    for first, end in ((0, 2), (2, 5), (5, 6), (0, 6)):
        torch.manual_seed(3)
        part = torch.Size([*shape[:axis], end - first, *shape[axis + 1 :]])
        with drawn_among(first, end - first, 6):
            assert torch.equal(random_mask(part, 0.3, axis), whole.narrow(axis, first, end - first))
        assert torch.equal(torch.get_rng_state(), after)


def test_what_all_lanes_share_has_one_mask() -> None:
    torch.manual_seed(3)
    whole = random_mask(torch.Size([9, 4]), 0.3)
    torch.manual_seed(3)
    with drawn_among(2, 1, 6):
        assert torch.equal(random_mask(torch.Size([9, 4]), 0.3, None), whole)
