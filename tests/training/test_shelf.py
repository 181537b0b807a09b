"""Which checkpoints are kept, and which one is taken when some are damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from remanence.errors import DamageWarning, InputError
from remanence.training import checkpoint
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


FIRST = {
    "the same step": ([9], 9, lambda shelf: None),
    "the same step, an older one": ([3, 9], 9, lambda shelf: None),
    "a later step": ([9], 20, lambda shelf: None),
    "an earlier step": ([9], 5, lambda shelf: None),
    "one of its number": ([9], 9, lambda shelf: shutil.copytree(shelf.last, shelf.path / "step-9")),
    "one of its number, cut short": (
        [9],
        20,
        lambda shelf: damage(Path(shutil.copytree(shelf.last, shelf.path / "step-9"))),
    ),
    "one of its number, whole, and it cut short": (
        [9],
        20,
        lambda shelf: (shutil.copytree(shelf.last, shelf.path / "step-9"), damage(shelf.last)),
    ),
    "without a description": ([9], 20, lambda shelf: (shelf.last / "checkpoint.json").unlink()),
    "doubtful": ([9, 20], 12, lambda shelf: damage(shelf.last)),
}


@pytest.mark.filterwarnings("ignore::remanence.errors.DamageWarning")
@pytest.mark.parametrize("failure", [SystemExit, OSError])
@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("case", FIRST)
def test_at_every_moment_a_whole_one_is_found(
    case: str, keep: int, failure: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, step, spoil = FIRST[case]
    for calls in range(12):
        shelf = Shelf(tmp_path / f"checkpoints-{calls}")
        put(shelf, *steps, keep=2)
        spoil(shelf)
        made = draft(shelf, step)
        doubtful = [shelf.last] if case == "doubtful" else []
        with monkeypatch.context() as patch:
            done = failing_at(calls, failure, patch)
            with suppress(failure):
                shelf.put_last(made, step, keep, doubtful)
        if case not in ("without a description", "one of its number, whole, and it cut short"):
            # In sight of those that only read, too.
            assert shelf.open_last().step in {*steps, step}
        # A second kill, while the first one is cleaned up.
        for again in range(3):
            with monkeypatch.context() as patch:
                failing_at(again, failure, patch)
                with suppress(failure):
                    shelf.clear()
        shelf.clear()
        assert shelf.open_last().step in {*steps, step}
        assert not [each for each in names(shelf) if each.startswith(".")]
        put(shelf, 31, keep=keep)
        assert shelf.open_last().step == 31 and len(names(shelf)) <= max(keep, 1)
        if done[0] <= calls:
            return
    raise AssertionError("more calls than were tried")


def failing_at(calls: int, failure: type[BaseException], patch: pytest.MonkeyPatch) -> list[int]:
    """Let renaming and removing fail from the call of that number on; gives how many there were."""
    done = [0]

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            done[0] += 1
            if done[0] > calls and not (failure is OSError and named.get("ignore_errors")):
                raise failure("as a disk or a signal would")
            return real(*arguments, **named)

        return call

    patch.setattr(os, "rename", watched(os.rename))
    patch.setattr(shutil, "rmtree", watched(shutil.rmtree))
    return done


def test_without_a_whole_one_nothing_that_was_finished_is_removed(shelf: Shelf) -> None:
    put(shelf, 9)
    damage(shelf.last)
    os.rename(shelf.last, shelf.draft("last.old"))
    shelf.draft("last-12.0").mkdir()
    shelf.clear()
    assert names(shelf) == [".last.old.part"]
    draft(shelf, 12)
    os.rename(draft(shelf, 20), shelf.draft("best-20.0"))
    shelf.clear()
    assert names(shelf) == ["last"] and shelf.open_last().step == 12


def replaced_while_hashed(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    """Let `change` happen after the next description has been read and before its files are."""
    real, done = checkpoint.Checkpoint.check, []

    def check(self: checkpoint.Checkpoint) -> None:
        if not done:
            done.append(self)
            change()
        real(self)

    monkeypatch.setattr(checkpoint.Checkpoint, "check", check)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("keep", [1, 2])
def test_one_that_is_replaced_while_it_is_read_is_not_called_damaged(
    keep: int, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(shelf, 3, 9, keep=keep)
    replaced_while_hashed(shelf, monkeypatch, lambda: put(shelf, 20, keep=keep))
    found = shelf.open_last()
    assert found.step == 20 and shelf.has_still(found)
    put(shelf, 31, keep=keep)
    assert not shelf.has_still(found)


def test_the_best_one_that_is_replaced_while_it_is_read_is_read_anew(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put_best(draft(shelf, 1))
    replaced_while_hashed(shelf, monkeypatch, lambda: shelf.put_best(draft(shelf, 2)))
    assert shelf.open_best().step == 2


def test_other_names_are_no_checkpoints(shelf: Shelf) -> None:
    put(shelf, 3, 9)
    for name in ("step-x", "step-", "other"):
        (shelf.path / name).mkdir()
    (shelf.path / "step-99").write_text("a file")
    assert shelf.newest == [shelf.last, shelf.path / "step-3"]
