"""Weights in shares: training on several ranks ends with the weights of one, whatever the model and the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.training import sharded
from tests.training.sharded import JOBS, Job, apart, on_ranks, train
from torch import Tensor

from remanence.training.sharding import LAYERS_WHOLE


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return on_ranks(2, tmp_path_factory.mktemp("two"), sharded.everything)


@pytest.mark.parametrize("job", JOBS, ids=[job.name for job in JOBS])
def test_two_ranks_end_with_the_weights_of_one(job: Job, two: list[dict[str, Tensor]]) -> None:
    alone = train(job)
    for rank in two:
        ours = {name.partition("/")[2]: each for name, each in rank.items() if name.startswith(f"{job.name}/")}
        assert apart(ours, alone) < 1e-12


def test_four_ranks_end_with_the_weights_of_one(tmp_path: Path) -> None:
    found = on_ranks(4, tmp_path, sharded.some_jobs)[3]
    alone = sharded.some_jobs(0, 1)
    assert apart(found, alone) < 1e-12


def test_only_the_layers_in_use_are_whole_and_the_rest_of_the_time_a_rank_has_its_share(
    two: list[dict[str, Tensor]],
) -> None:
    for facts in two:
        assert 1 <= int(facts["whole"]) <= LAYERS_WHOLE
        assert float(facts["share"]) == pytest.approx(0.5, abs=0.02)


def test_what_took_part_on_one_rank_has_a_gradient_on_all_and_what_took_part_on_none_has_none(
    two: list[dict[str, Tensor]],
) -> None:
    for facts in two:
        assert bool(facts["gradients"].all())
        assert bool(facts["idle"])


def test_a_step_that_fails_gives_the_weights_back(two: list[dict[str, Tensor]]) -> None:
    assert all(bool(facts["failed"]) for facts in two)
