"""Checkpoints are written beside training, and nothing of that is lost or passed over in silence."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remanence.config import Recipe
from remanence.errors import InputError
from remanence.memory import Memory
from remanence.training import Trainer, keeper
from remanence.training.checkpoint import open_checkpoint
from remanence.training.copies import Copies
from remanence.training.log import read_log
from remanence.training.ranks import Ranks
from remanence.training.writer import Writer

Make = Callable[..., Recipe]
Train = Callable[..., Trainer]


def files(folder: Path, which: str = "last") -> dict[str, Any]:
    return open_checkpoint(folder / "checkpoints" / which).about["files"]


def test_copies_are_whole_on_the_cpu_and_stay_as_they_were() -> None:
    copies, wide = Copies(), torch.arange(12.0).reshape(3, 4)
    taken, arrived = copies.take({"a": {"x": wide[:, 1:3], "y": torch.tensor(3)}, "b": {"x": wide.bfloat16()}})
    arrived()
    wide.zero_()
    assert torch.equal(taken["a"]["x"], torch.tensor([[1.0, 2.0], [5.0, 6.0], [9.0, 10.0]]))
    assert taken["a"]["x"].is_contiguous() and taken["b"]["x"].dtype == torch.bfloat16
    again, _ = copies.take({"a": {"x": wide[:, :2], "y": torch.tensor([3, 4])}})
    assert again["a"]["x"].data_ptr() == taken["a"]["x"].data_ptr() and again["a"]["y"].tolist() == [3, 4]


def test_a_writer_does_one_job_at_a_time_and_tells_what_went_wrong_once() -> None:
    writer, going, done = Writer(), threading.Event(), []

    def slow() -> None:
        going.wait(60)
        done.append("slow")

    def fail() -> None:
        raise OSError("no room")

    writer.start(slow)
    writer.check()
    threading.Timer(0.05, going.set).start()
    writer.start(lambda: done.append("next"))
    writer.wait()
    assert done == ["slow", "next"]
    writer.start(fail)
    writer.join()
    with pytest.raises(OSError, match="no room"):
        writer.check()
    writer.check()
    writer.start(fail)
    with pytest.raises(OSError, match="no room"):
        writer.start(slow)


def test_training_goes_on_while_a_checkpoint_is_written(
    make_recipe: Make, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(steps=7, save_every=4, log_every=1)
    train(recipe, tmp_path / "whole").run()
    real, trainer, seen = keeper.write_parts, train(recipe, tmp_path / "slow"), []

    def write_parts(draft: Path, parts: dict[str, dict[str, Tensor]], metadata: Any) -> Any:
        deadline = time.monotonic() + 60
        while trainer.state.progress.step < 6 and time.monotonic() < deadline:
            time.sleep(0.001)
        seen.append(trainer.state.progress.step)
        return real(draft, parts, metadata)

    monkeypatch.setattr(keeper, "write_parts", write_parts)
    trainer.run()
    assert seen[0] >= 6 and open_checkpoint(tmp_path / "slow" / "checkpoints" / "step-4").step == 4
    # What was written is what was there at step 4, and the end is the same.
    assert files(tmp_path / "slow", "step-4") == files(tmp_path / "whole", "step-4")
    assert files(tmp_path / "slow") == files(tmp_path / "whole")


def test_a_save_that_fails_stops_the_run_at_the_next_step(
    make_recipe: Make, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeper, "write_description", fail)
    trainer = train(make_recipe(steps=500, save_every=4), tmp_path / "run")
    with pytest.raises(OSError, match=r"last could not be saved .*, and there is none before; make room and go on"):
        trainer.run()
    assert 4 <= trainer.state.progress.step <= 8 and os.listdir(tmp_path / "run" / "checkpoints") == []


def test_a_save_that_fails_at_the_end_fails_the_run(
    make_recipe: Make, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = keeper.write_parts, []

    def write_parts(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(keeper, "write_parts", write_parts)
    with pytest.raises(OSError, match=r"No space left on device.*, and the one before is kept; make room"):
        train(make_recipe(steps=8), tmp_path / "run").run()
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["last"]
    assert [each["kind"] for each in read_log(tmp_path / "run" / "log.jsonl")][-1] == "train"
    assert train(make_recipe(steps=8), tmp_path / "run", resume=True).run().steps == 8


def test_an_error_elsewhere_waits_for_what_is_being_written(
    make_recipe: Make, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = keeper.write_parts
    monkeypatch.setattr(keeper, "write_parts", lambda *given: (time.sleep(0.3), real(*given))[1])
    trainer = train(make_recipe(steps=50), tmp_path / "run")
    read, calls = trainer.state.lanes.next, []

    def fail() -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("something else")
        return read()

    monkeypatch.setattr(trainer.state.lanes, "next", fail)
    with pytest.raises(RuntimeError, match="something else"):
        trainer.run()
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["last"]
    assert open_checkpoint(tmp_path / "run" / "checkpoints" / "last").step == 4


def test_checkpoints_by_the_clock(
    make_recipe: Make, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(steps=6, save_every=0, save_minutes=2.0, keep=9)
    trainer, now = train(recipe, tmp_path / "run"), [0.0]
    monkeypatch.setattr(keeper.time, "monotonic", lambda: now[0])
    real = trainer.state.optimizer.step

    def step() -> None:
        real()
        now[0] += 50.0

    monkeypatch.setattr(trainer.state.optimizer, "step", step)
    trainer.run()
    # Before step 4 the clock stood at 150 seconds; all ranks learn of it when a step begins.
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["last", "step-4"]


def test_how_long_saving_held_training_is_told(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    result = train(make_recipe(steps=6, log_every=3), tmp_path / "run").run()
    told = read_log(tmp_path / "run" / "log.jsonl")
    assert told[-1]["kind"] == "end" and told[-1]["stalled"] == pytest.approx(result.stalled, abs=1e-3)
    assert result.stalled > 0 and next(each["stalled"] for each in told if each["kind"] == "train") == 0


def test_a_disk_that_takes_no_more_leaves_the_checkpoint_before(
    make_recipe: Make, train: Train, tmp_path: Path
) -> None:
    train(make_recipe(steps=4, schedule="constant"), tmp_path / "run").run()
    before = files(tmp_path / "run")
    limit = before["optimizer.safetensors"]["bytes"] - 100
    # The limit on the size of a file fails like a full disk, inside the library that writes the tensors.
    code = (
        "import resource, sys; from remanence.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))\n"
        "raise SystemExit(main(sys.argv[2:]))"
    )
    command = ["train", str(tmp_path / "run"), "--resume", "--training.steps", "6"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(limit), *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"The checkpoint {tmp_path / 'run' / 'checkpoints' / 'last'} could not be saved (" in done.stderr
    assert "and the one before is kept; make room and go on with --resume." in done.stderr
    assert files(tmp_path / "run") == before


class Threads(Ranks):
    """Ranks that are threads of this process, for what they say to each other."""

    @classmethod
    def of(cls, size: int) -> list[Threads]:
        made, barrier, said = [cls(rank, size) for rank in range(size)], threading.Barrier(size), [None] * size
        for each in made:
            object.__setattr__(each, "meeting", (barrier, said))
        return made

    def gather(self, value: Any) -> list[Any]:
        barrier, said = self.meeting
        said[self.rank] = value
        barrier.wait(60)
        told = list(said)
        barrier.wait(60)
        return told

    def tell(self, value: Any) -> Any:
        return self.gather(value)[0]


def at_once(do: Callable[[Any], Any], each: list[Any]) -> list[Any]:
    """What `do` gives for each, or the error it raises, all of them in threads at the same time."""

    def attempt(one: Any) -> Any:
        try:
            return do(one)
        except (InputError, OSError) as error:
            return error

    with ThreadPoolExecutor(len(each)) as pool:
        return list(pool.map(attempt, each))


@pytest.fixture
def begin(make_recipe: Make, train: Train, tmp_path: Path) -> Callable[..., list[Trainer]]:
    """Trainers of several ranks of one run, which are not run."""

    def make(size: int, **settings: Any) -> list[Trainer]:
        recipe = make_recipe(steps=4, **settings)
        resume = (tmp_path / "run").exists()
        made = [train(recipe, tmp_path / "run", ranks=ranks, resume=resume) for ranks in Threads.of(size)]
        if not resume:
            made[0].folder.create(recipe, made[0].corpus.tokenizer)
        return made

    return make


def read(trainer: Trainer, segments: int) -> None:
    """Read on all lanes of a rank, without learning."""
    state = trainer.state
    with torch.no_grad():
        for _ in range(segments):
            batch = state.next_batch()
            _, state.memory, _ = state.model(batch.tokens, state.memory, batch.starts)
    state.progress.step += segments


def save(trainer: Trainer) -> None:
    with trainer.keeper as keeping:
        keeping.save_last(before=lambda: None)
        keeping.settle()


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (2, 4), (4, 2), (1, 1)])
def test_memories_travel_with_their_lanes_to_any_number_of_ranks(
    sizes: tuple[int, int], begin: Callable[..., list[Trainer]]
) -> None:
    before = begin(sizes[0])
    for each in before:
        each.model.eval()
        read(each, 3)
    assert at_once(save, before) == [None] * sizes[0]
    after = begin(sizes[1])
    assert all(each == [] or "ranks was" in each[0] for each in at_once(lambda each: each.keeper.restore(), after))
    wanted, found = (Memory.concatenate([each.state.memory for each in ranks]).state() for ranks in (before, after))
    assert found[1] == wanted[1] and found[0].keys() == wanted[0].keys()
    assert all(torch.equal(found[0][name], wanted[0][name]) for name in wanted[0])
    assert after[-1].state.progress.step == 3 and after[-1].state.lanes.state() == before[0].state.lanes.state()
    names = sorted(before[0].folder.shelf.last.glob("lanes-*"))
    assert len(names) == sizes[0] and not list(before[0].folder.shelf.last.glob("rank-*"))


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_write_its_part_stops_all_with_its_sentence(
    failing: int, begin: Callable[..., list[Trainer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks, real = begin(2), keeper.write_parts
    at_once(save, ranks)

    def write_parts(draft: Path, parts: dict[str, Any], metadata: Any) -> Any:
        if ("model" in parts) == (failing == 0):
            raise OSError(28, "No space left on this one")
        return real(draft, parts, metadata)

    monkeypatch.setattr(keeper, "write_parts", write_parts)
    for each in ranks:
        each.state.progress.step = 5
    told = at_once(save, ranks)
    assert all("No space left on this one" in str(error) for error in told)
    assert isinstance(told[failing], OSError)
    shelf = ranks[0].folder.shelf
    assert os.listdir(shelf.path) == ["last"] and open_checkpoint(shelf.last).step == 0


def test_what_a_killed_attempt_left_is_never_mixed_into_a_checkpoint(begin: Callable[..., list[Trainer]]) -> None:
    ranks = begin(2)
    at_once(save, ranks)
    shelf = ranks[0].folder.shelf
    left = shelf.draft("last-3.0123abcd")
    left.mkdir()
    (left / "rank-1.json").write_text("{}")
    ranks = begin(2)
    at_once(lambda each: each.keeper.restore(), ranks)
    assert os.listdir(shelf.path) == ["last"]
    drafts = at_once(lambda each: each.keeper.__enter__()._attempt, ranks)
    assert drafts[0] == drafts[1] != "0123abcd"
