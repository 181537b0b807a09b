"""Equal steps within a given time, from what a step costs."""

import pytest

from remanence.analysis.plan import BLOCKS, LINES, Cost, plan_steps, plan_tokens, typical_step
from remanence.errors import InputError

COSTS = {
    "transformer": Cost(step=0.03, reading={0: 1e-5}),
    "lamemo": Cost(step=0.07, reading={0: 1e-5, 64: 2e-5, 128: 4e-5}),
}


def test_steps_fill_the_share_of_the_time_and_no_more():
    plan = plan_steps(COSTS, seconds=300.0, validation_tokens=10_000, trained_memory=64)
    assert 0.65 * 300 < plan.seconds <= 0.75 * 300
    assert plan.steps % (BLOCKS * LINES) == 0


def test_validations_and_lines_of_the_log_fall_on_the_same_steps():
    plan = plan_steps(COSTS, seconds=100.0, validation_tokens=0, trained_memory=64)
    assert plan.validate_every % plan.log_every == 0
    assert plan.steps == BLOCKS * plan.validate_every


def test_twice_the_cost_gives_half_the_steps():
    slow = {name: Cost(2 * cost.step, cost.reading) for name, cost in COSTS.items()}
    fast = plan_steps(COSTS, 1000.0, validation_tokens=0, trained_memory=64)
    assert plan_steps(slow, 1000.0, validation_tokens=0, trained_memory=64).steps == pytest.approx(
        fast.steps / 2, abs=BLOCKS * LINES
    )


@pytest.mark.parametrize("seconds", [0.5, -10.0])
def test_without_time_there_is_still_one_step_for_every_line(seconds):
    plan = plan_steps(COSTS, seconds, validation_tokens=0, trained_memory=64)
    assert plan.steps == BLOCKS * LINES and plan.log_every == 1
    assert plan.seconds > seconds


def test_tokens_to_score_stay_between_their_limits():
    assert plan_tokens(COSTS, -5.0, least=100, most=1000) == 100
    assert plan_tokens(COSTS, 1e6, least=100, most=1000) == 1000
    between = plan_tokens(COSTS, 1.0, least=100, most=100_000)
    assert between * sum(cost.sweep for cost in COSTS.values()) < 1.0


def test_the_first_steps_and_one_hiccup_do_not_count():
    assert typical_step([9.0, 5.0, 2.0, 1.0, 1.0, 50.0, 1.0, 1.0]) == 1.0
    with pytest.raises(InputError, match="too few"):
        typical_step([1.0, 1.0, 1.0])
