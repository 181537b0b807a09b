"""Weights in shares: training on several ranks ends with the weights of one, whatever the model and the engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.training import sharded
from tests.training.sharded import JOBS, Job, apart, on_ranks, train
from torch import Tensor

from remanence.config import Recipe, dump_recipe
from remanence.data import Corpus
from remanence.errors import InputError
from remanence.training import Trainer, load_run
from remanence.training.ranks import Ranks
from remanence.training.sharding import LAYERS_WHOLE

Make = Callable[..., Recipe]


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


def test_a_run_in_shares_goes_on_as_any_other_and_ends_with_the_weights_of_one_process(
    make_recipe: Make, train: Callable[..., Trainer], tmp_path: Path
) -> None:
    settings = {"horizon": 2, "engine": "replay", "accumulation": 2, "schedule": "constant", "validate_every": 2}
    recipe = make_recipe("rmt", memory_length=3, steps=4, save_every=2, distribution="fsdp", **settings)
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    on_ranks(2, tmp_path, partial(sharded.run, str(tmp_path / "recipe.toml"), str(tmp_path / "shared")))
    train(recipe, tmp_path / "alone", validate=sharded.sum_of_squares).run()
    last = tmp_path / "shared" / "checkpoints" / "last"
    assert {"model-1-of-2.safetensors", "optimizer-2-of-2.safetensors"} <= {path.name for path in last.iterdir()}
    for which in ("best", "last"):
        assert apart(*(_weights(tmp_path / name, which) for name in ("shared", "alone"))) < 1e-5
    longer = make_recipe("rmt", memory_length=3, steps=6, save_every=2, distribution="fsdp", **settings)
    for name in ("shared", "alone"):
        train(longer, tmp_path / name, resume=True).run()
    assert apart(*(_weights(tmp_path / name, "last") for name in ("shared", "alone"))) < 1e-5


def _weights(folder: Path, which: Any) -> dict[str, Tensor]:
    return {name: each.detach() for name, each in load_run(folder, which).model.named_parameters()}


def test_weights_in_shares_are_not_compiled(make_recipe: Make, corpus: Corpus, tmp_path: Path) -> None:
    recipe = make_recipe(distribution="fsdp", compile=True)
    with pytest.raises(InputError, match=r"compile to false, or training.distribution to .ddp.\."):
        Trainer(recipe, corpus, tmp_path / "run", ranks=Ranks(0, 2, 0))
