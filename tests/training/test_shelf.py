"""Which checkpoints are kept, and which one is taken when some are damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from remanence.errors import DamageWarning, InputError
from remanence.training.checkpoint import write_description, write_parts
from remanence.training.shelf import Shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "checkpoints")


def draft(shelf: Shelf, step: int) -> Path:
    folder = shelf.draft(f"last-{step}.0")
    write_description(folder, {"step": step}, write_parts(folder, {"model": {"a": torch.full((9,), float(step))}}))
    return folder


def put(shelf: Shelf, *steps: int, keep: int = 2) -> None:
    for step in steps:
        shelf.put_last(draft(shelf, step), step, keep)


def names(shelf: Shelf) -> list[str]:
    return sorted(each.name for each in shelf.path.iterdir())


def damage(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 5)


@pytest.mark.parametrize(
    ("keep", "left"), [(1, ["last"]), (2, ["last", "step-20"]), (3, ["last", "step-20", "step-9"])]
)
def test_the_newest_are_kept(keep: int, left: list[str], shelf: Shelf) -> None:
    put(shelf, 3, 9, 20, 100, keep=keep)
    assert names(shelf) == left and shelf.open_last().step == 100


def test_a_checkpoint_of_the_same_step_takes_its_place(shelf: Shelf) -> None:
    put(shelf, 3, 9, 9)
    assert names(shelf) == ["last", "step-3"] and shelf.open_last().step == 9


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_a_kill_between_any_two_moves_loses_nothing(moves: int, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    put(shelf, 3, 9)
    made, real, done = draft(shelf, 20), os.rename, []

    def rename(source: Path, target: Path) -> None:
        if len(done) == moves:
            raise SystemExit
        done.append(source)
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    if moves < 3:
        with pytest.raises(SystemExit):
            shelf.put_last(made, 20, 2)
    else:
        shelf.put_last(made, 20, 2)
    monkeypatch.undo()
    assert shelf.open_last().step == (9 if moves < 2 else 20)
    shelf.clear()
    put(shelf, 31)
    assert shelf.open_last().step == 31 and names(shelf) == ["last", "step-9" if moves < 2 else "step-20"]


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(shelf: Shelf) -> None:
    put(shelf, 3, 9, 20, keep=3)
    damage(shelf.last)
    with pytest.warns(DamageWarning, match=r"last.model.safetensors has 5 bytes .*/step-9 of step 9, is used instead"):
        assert shelf.open_last().step == 9
    (shelf.path / "step-9" / "checkpoint.json").unlink()
    with pytest.warns(DamageWarning, match=r"has 5 bytes .* is missing.*/step-3 of step 3, is used instead"):
        assert shelf.open_last().step == 3
    assert names(shelf) == ["last", "step-3", "step-9"]


def test_when_none_is_whole_all_that_were_tried_are_told(shelf: Shelf) -> None:
    put(shelf, 3, 9)
    damage(shelf.last)
    damage(shelf.path / "step-3")
    told = r"None of the checkpoints in .* is whole: .*last.model.safetensors has 5 .*step-3.model.safetensors has 5"
    with pytest.raises(InputError, match=told):
        shelf.open_last()


@pytest.mark.parametrize("step", [12, 40])
def test_what_was_damaged_goes_when_a_whole_one_is_there_and_not_before(step: int, shelf: Shelf) -> None:
    put(shelf, 3, 9, 20, keep=3)
    damage(shelf.last)
    damage(shelf.path / "step-9")
    made = draft(shelf, step)
    assert names(shelf) == [made.name, "last", "step-3", "step-9"]
    shelf.put_last(made, step, 2, doubtful=[shelf.last, shelf.path / "step-9"])
    assert names(shelf) == ["last", "step-3"] and shelf.open_last().step == step


def test_a_damaged_last_without_a_description_makes_room(shelf: Shelf) -> None:
    put(shelf, 3, 9)
    (shelf.last / "checkpoint.json").write_text("{")
    put(shelf, 12)
    assert names(shelf) == ["last", "step-3"] and shelf.open_last().step == 12


def test_a_kill_between_the_two_moves_leaves_the_best_one(shelf: Shelf) -> None:
    shelf.put_best(draft(shelf, 1))
    made = draft(shelf, 2)
    os.rename(shelf.best, shelf.path / ".best.previous")
    assert shelf.has_best and shelf.open_best().step == 1
    shelf.put_best(made)
    assert shelf.open_best().step == 2
    shelf.put_best(draft(shelf, 3))
    assert names(shelf) == ["best"] and shelf.open_best().step == 3


def test_other_names_are_no_checkpoints(shelf: Shelf) -> None:
    put(shelf, 3, 9)
    for name in ("step-x", "step-", "other"):
        (shelf.path / name).mkdir()
    (shelf.path / "step-99").write_text("a file")
    assert shelf.newest == [shelf.last, shelf.path / "step-3"]
