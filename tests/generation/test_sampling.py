"""Which token comes next: exact distributions, and every edge of the filters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remanence.errors import InputError
from remanence.generation.sampling import Sampling, draw, pick, probabilities

LOGITS = torch.tensor([[1.5, -0.3, 2.0, 2.0, -4.0, 0.1, 1.4]])


def naive(logits: list[float], sampling: Sampling) -> list[float]:
    """The distribution, one token at a time in plain Python."""
    scaled = [value / sampling.temperature for value in logits]
    highest = max(scaled)
    mass = [math.exp(value - highest) for value in scaled]
    kept = sorted(range(len(mass)), key=lambda token: (-mass[token], token))
    if sampling.top_k:
        kept = kept[: sampling.top_k]
    total, nucleus, reached = sum(mass[token] for token in kept), [], 0.0
    for token in kept:
        if sampling.top_p < 1 and reached / total >= sampling.top_p:
            break
        nucleus.append(token)
        reached += mass[token]
    kept = [token for token in nucleus if mass[token] >= sampling.min_p * mass[nucleus[0]]]
    total = sum(mass[token] for token in kept)
    return [mass[token] / total if token in kept else 0.0 for token in range(len(mass))]


@settings(deadline=None)
@given(
    logits=st.lists(st.integers(-40, 40).map(lambda value: value / 8), min_size=1, max_size=9),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.integers(0, 10),
    top_p=st.sampled_from([0.05, 0.33, 0.71, 0.97, 1.0]),
    min_p=st.sampled_from([0.0, 0.013, 0.29, 0.83]),
)
def test_the_distribution_is_that_of_a_naive_oracle(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature, top_k, top_p, min_p)
    found = probabilities(torch.tensor([logits]), sampling)[0]
    torch.testing.assert_close(found, torch.tensor(naive(logits, sampling), dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_the_defaults_are_the_models_own_distribution() -> None:
    torch.testing.assert_close(probabilities(LOGITS, Sampling()), LOGITS.double().softmax(-1))


def test_temperature_zero_takes_the_first_of_the_most_probable() -> None:
    assert probabilities(LOGITS, Sampling(temperature=0)).tolist() == [[0, 0, 1, 0, 0, 0, 0]]


def test_a_tiny_temperature_does_not_overflow() -> None:
    assert probabilities(LOGITS * 1000, Sampling(temperature=1e-6)).tolist() == [[0, 0, 0.5, 0.5, 0, 0, 0]]


def test_top_k_keeps_exactly_k_and_of_equals_the_lower_id() -> None:
    assert probabilities(LOGITS, Sampling(top_k=1)).tolist() == [[0, 0, 1, 0, 0, 0, 0]]


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    torch.testing.assert_close(probabilities(LOGITS, Sampling(top_k=99)), probabilities(LOGITS, Sampling()))


def test_a_tiny_top_p_keeps_one_token() -> None:
    assert probabilities(LOGITS, Sampling(top_p=1e-9)).tolist() == [[0, 0, 1, 0, 0, 0, 0]]


def test_top_p_stops_at_the_token_that_reaches_it() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    assert (probabilities(logits, Sampling(top_p=0.75)) > 0).tolist() == [[True, True, False, False]]
    assert (probabilities(logits, Sampling(top_p=0.76)) > 0).tolist() == [[True, True, True, False]]


def test_min_p_of_one_keeps_all_that_are_most_probable() -> None:
    assert probabilities(LOGITS, Sampling(min_p=1)).tolist() == [[0, 0, 0.5, 0.5, 0, 0, 0]]


def test_tokens_that_cannot_occur_stay_impossible() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    assert probabilities(logits, Sampling(top_p=0.99)).tolist() == [[0.5, 0, 0.5]]


def test_a_draw_inverts_the_cumulative_sum() -> None:
    mass = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]], dtype=torch.float64)
    for uniform, token in [(0.0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (0.999999999999, 4)]:
        assert pick(mass, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


def test_the_largest_uniform_number_never_picks_an_impossible_token() -> None:
    mass = torch.full((1, 10), 0.1, dtype=torch.float64)
    mass[0, 9] = 0.0
    assert pick(mass, torch.tensor([1 - 2**-53], dtype=torch.float64)).tolist() == [8]


def test_frequencies_of_draws_follow_the_distribution() -> None:
    generator = torch.Generator().manual_seed(7)
    sampling = Sampling(temperature=0.8, top_k=4, top_p=0.9)
    expected = probabilities(LOGITS, sampling)[0]
    count = 4000
    drawn = torch.cat([draw(LOGITS, sampling, [generator]) for _ in range(count)])
    found = torch.bincount(drawn, minlength=7) / count
    spread = (expected * (1 - expected) / count).sqrt()
    assert ((found - expected).abs() <= 4 * spread + 1e-12).all()


def test_a_lane_draws_the_same_whatever_the_other_lanes() -> None:
    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    logits = torch.randn(3, 50)
    together = draw(logits, Sampling(), generators(1, 2, 3))
    assert draw(logits[1:2], Sampling(), generators(2)).tolist() == together[1:2].tolist()


def test_greedy_choice_leaves_the_generator_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    draw(LOGITS, Sampling(temperature=0), [generator])
    assert torch.equal(before, generator.get_state())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting: str, value: float) -> None:
    with pytest.raises(InputError, match=setting.replace("_", "-")):
        Sampling(**{setting: value})


def test_settings_without_effect_are_named() -> None:
    assert Sampling(temperature=0, top_k=5, min_p=0.1).idle == ["top_k", "min_p"]
    assert Sampling(temperature=0.5, top_k=5).idle == []


def test_logits_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="diverged or are damaged"):
        probabilities(torch.tensor([[0.0, math.nan]]), Sampling())
