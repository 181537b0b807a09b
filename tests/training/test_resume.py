"""What may be resumed and what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from remanence.config import Recipe, load_recipe
from remanence.data.prepare import prepare
from remanence.errors import DamageWarning, InputError
from remanence.training import Trainer
from remanence.training.checkpoint import open_checkpoint
from remanence.training.folder import RunFolder
from remanence.training.identity import check_same_run
from remanence.training.log import read_log

Make = Callable[..., Recipe]
Train = Callable[..., Trainer]


@pytest.fixture
def run(make_recipe: Make, train: Train, tmp_path: Path) -> Path:
    """A run of four steps."""
    return train(make_recipe(steps=4), tmp_path / "run").run().folder


def test_a_folder_that_holds_a_run_is_refused(run: Path, make_recipe: Make, train: Train) -> None:
    before = (run / "log.jsonl").read_bytes()
    with pytest.raises(InputError, match="already holds a run; go on with it by --resume, or choose another folder"):
        train(make_recipe(steps=4), run)
    assert (run / "log.jsonl").read_bytes() == before


def test_a_folder_with_other_things_is_refused(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    for name in ("full", "file"):
        with pytest.raises(InputError, match="exists and is not empty"):
            train(make_recipe(), tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert train(make_recipe(steps=1), tmp_path / "empty").run().steps == 1


def test_there_must_be_a_run_to_resume(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        train(make_recipe(), tmp_path / "nowhere", resume=True)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"learning_rate": 0.5}, r"another recipe: training.learning_rate \(0.01 there, 0.5 now\) differs"),
        ({"memory_length": 3}, r"model.memory_length \(9 there, 3 now\)"),
        ({"steps": 9}, r"training.steps \(4 there, 9 now\)"),
        ({"seed": 1, "lanes": 2, "clip_norm": 1.0, "horizon": 2}, "and 1 more differ; resume with the recipe"),
        ({"architecture": "transformer-xl"}, r"model.architecture \(lamemo there, transformer-xl now\)"),
        ({"protocol": "document"}, "data.protocol"),
    ],
)
def test_another_recipe_is_refused_by_the_names_of_what_differs(
    settings: dict[str, Any], told: str, run: Path, make_recipe: Make, train: Train
) -> None:
    with pytest.raises(InputError, match=told):
        train(make_recipe(**{"steps": 4, **settings}), run, resume=True)


def test_what_does_not_decide_the_weights_may_change(run: Path, make_recipe: Make, train: Train) -> None:
    recipe = make_recipe(steps=4, log_every=1, save_every=2, validate_every=3, keep=5, save_minutes=0.5)
    recipe = dataclasses.replace(recipe, description="Now with more lines.")
    assert train(recipe, run, resume=True).run().steps == 4
    assert load_recipe(run / "recipe.toml") == recipe


def test_an_open_ended_schedule_may_be_made_longer(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    settings = {"schedule": "constant"}
    train(make_recipe(steps=8, **settings), tmp_path / "whole").run()
    train(make_recipe(steps=5, **settings), tmp_path / "parts").run()
    assert train(make_recipe(steps=8, **settings), tmp_path / "parts", resume=True).run().steps == 8
    one, other = (open_checkpoint(tmp_path / name / "checkpoints" / "last") for name in ("whole", "parts"))
    assert one.about["files"]["model.safetensors"] == other.about["files"]["model.safetensors"]


def test_a_checkpoint_of_another_recipe_is_refused(run: Path, make_recipe: Make, train: Train, tmp_path: Path) -> None:
    other = train(make_recipe(steps=4, seed=3), tmp_path / "other").run().folder
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    with pytest.raises(InputError, match=r"checkpoints.last was made with another recipe: training.seed \(3 there"):
        train(make_recipe(steps=4), run, resume=True).run()


def test_another_text_is_refused(run: Path, make_recipe: Make, train: Train, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("another text altogether " * 300)
    with pytest.raises(InputError, match=r"is not the one that .* was trained on"):
        train(make_recipe(steps=4), run, resume=True, corpus=prepare(tmp_path / "text.txt", tmp_path / "text")).run()


@pytest.mark.parametrize("name", ["model", "optimizer", "state", "lanes-0-4"])
def test_a_damaged_checkpoint_without_another_is_refused_and_kept(
    name: str, run: Path, make_recipe: Make, train: Train
) -> None:
    path = run / "checkpoints" / "last" / f"{name}.safetensors"
    os.truncate(path, path.stat().st_size - 7)
    log = (run / "log.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"None of the checkpoints .* is whole: .*was cut short or altered"):
        train(make_recipe(steps=4), run, resume=True).run()
    assert path.exists() and (run / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize("name", ["model", "optimizer", "state", "lanes-0-4"])
def test_a_damaged_checkpoint_is_made_good_from_the_one_before(
    name: str, make_recipe: Make, train: Train, tmp_path: Path
) -> None:
    recipe = make_recipe(steps=8, log_every=1)
    train(recipe, tmp_path / "whole").run()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    path = tmp_path / "cut" / "checkpoints" / "last" / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    trainer = train(recipe, tmp_path / "cut", resume=True)
    with pytest.warns(DamageWarning, match=rf"{name}.safetensors was altered .*/step-4 of step 4, is used instead"):
        trainer.run()
    one, other = (open_checkpoint(tmp_path / each / "checkpoints" / "last") for each in ("whole", "cut"))
    assert one.about["files"] == other.about["files"]
    steps = [[each["step"] for each in read_log(tmp_path / which / "log.jsonl")] for which in ("whole", "cut")]
    assert sorted(steps[1]) == sorted([*steps[0], 4])
    assert sorted(each.name for each in (tmp_path / "cut" / "checkpoints").iterdir()) == ["last", "step-4"]


def test_two_processes_do_not_train_one_run(run: Path, make_recipe: Make, train: Train) -> None:
    with RunFolder(run).locked(), pytest.raises(InputError, match="is being trained by another process"):
        train(make_recipe(steps=4), run, resume=True).run()


def test_a_run_killed_before_its_first_checkpoint_begins_anew(run: Path, make_recipe: Make, train: Train) -> None:
    before = open_checkpoint(run / "checkpoints" / "last").about["files"]["model.safetensors"]
    shutil.rmtree(run / "checkpoints")
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text(lines[0])
    assert train(make_recipe(steps=4), run, resume=True).run().steps == 4
    assert open_checkpoint(run / "checkpoints" / "last").about["files"]["model.safetensors"] == before


def test_a_run_whose_checkpoints_were_lost_is_not_begun_anew(run: Path, make_recipe: Make, train: Train) -> None:
    shutil.rmtree(run / "checkpoints")
    log = (run / "log.jsonl").read_text()
    with pytest.raises(InputError, match=r"was saved at step 4, but .*last is missing"):
        train(make_recipe(steps=4), run, resume=True).run()
    assert (run / "log.jsonl").read_text() == log


def test_another_machine_is_told_to_be_inexact(run: Path, make_recipe: Make, train: Train) -> None:
    torch.set_num_threads(2)
    shown = io.StringIO()
    train(make_recipe(steps=4), run, resume=True, console=Console(file=shown, width=200)).run()
    assert "threads was 1 and is now 2: the run goes on, but to rounding, not bit for bit" in shown.getvalue()


def test_a_run_from_before_a_setting_goes_on_with_its_default(run: Path, make_recipe: Make, train: Train) -> None:
    """A setting that is newer than the run: neither its recipe nor its checkpoint knows it."""
    lines = (run / "recipe.toml").read_text().splitlines(keepends=True)
    (run / "recipe.toml").write_text("".join(line for line in lines if not line.startswith("coasting_steps")))
    description = run / "checkpoints" / "last" / "checkpoint.json"
    about = json.loads(description.read_text())
    del about["recipe"]["training"]["coasting_steps"]
    found = about["recipe"]
    check_same_run(found, make_recipe(steps=4), str(run))
    with pytest.raises(InputError, match=r"training.seed \(1111 there, 5 now\) differs"):
        check_same_run(found, make_recipe(steps=4, seed=5), str(run))
    with pytest.raises(InputError, match=r"training\.unheard_of"):
        check_same_run(found | {"training": {**found["training"], "unheard_of": 3}}, make_recipe(steps=4), str(run))
    assert train(make_recipe(steps=4), run, resume=True).run().steps == 4
