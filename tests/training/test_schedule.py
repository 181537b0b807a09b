"""Learning rates as the published scripts have them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remanence.config import TrainingSettings
from remanence.training.schedule import learning_rate

PEAK = 2e-3


def rates(**settings: object) -> list[float]:
    made = TrainingSettings(learning_rate=PEAK, **settings)
    return [learning_rate(made, step) for step in range(made.steps + 1)]


def test_the_cosine_begins_at_the_peak_and_ends_at_zero() -> None:
    told = rates(steps=8)
    assert told[0] == PEAK and told[4] == pytest.approx(PEAK / 2) and told[8] == pytest.approx(0, abs=1e-18)
    assert told[2] == pytest.approx(PEAK * (1 + math.cos(math.pi / 4)) / 2)


def test_the_cosine_goes_on_at_the_absolute_step_after_a_linear_warm_up() -> None:
    told, without = rates(steps=20, warmup_steps=5), rates(steps=20)
    assert told[:5] == pytest.approx([PEAK * share for share in (0.2, 0.4, 0.6, 0.8, 1.0)])
    assert told[5:] == without[5:]


def test_the_linear_schedule_falls_evenly_to_its_floor() -> None:
    assert rates(steps=4, schedule="linear", floor=0.2) == pytest.approx([PEAK * s for s in (1, 0.8, 0.6, 0.4, 0.2)])


def test_the_inverse_root_is_at_its_peak_after_the_warm_up() -> None:
    told = rates(steps=36, schedule="inverse-sqrt", warmup_steps=4)
    assert told[3] == told[4] == PEAK and told[16] == pytest.approx(PEAK / 2) and told[36] == pytest.approx(PEAK / 3)


def test_the_constant_schedule_stays() -> None:
    assert set(rates(steps=5, schedule="constant")) == {PEAK}


def test_the_floor_is_a_share_of_the_peak() -> None:
    assert rates(steps=10, floor=0.004)[-1] == pytest.approx(0.004 * PEAK)
    assert rates(steps=900, schedule="inverse-sqrt", floor=0.1)[-1] == pytest.approx(0.1 * PEAK)


@given(
    step=st.integers(0, 3000),
    steps=st.integers(1, 1000),
    warmup=st.integers(0, 2000),
    floor=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "linear", "inverse-sqrt", "constant"]),
)
def test_no_rate_is_negative_or_above_the_peak(step: int, steps: int, warmup: int, floor: float, schedule: str) -> None:
    settings = TrainingSettings(
        steps=steps,
        learning_rate=PEAK,
        warmup_steps=warmup,
        floor=floor,
        schedule=schedule,
    )
    assert 0 <= learning_rate(settings, step) <= PEAK * (1 + 1e-12)
