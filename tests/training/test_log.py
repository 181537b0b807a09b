"""The log of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remanence.training.log import JsonLines, TensorBoard, read_log


def steps(path: Path) -> list[tuple[str, int]]:
    return [(record["kind"], record["step"]) for record in read_log(path)]


def write(path: Path, *records: tuple[str, int], resumed: int = 0, validated: int = 0) -> None:
    log = JsonLines(path, resumed, validated)
    for kind, step in records:
        log.write({"kind": kind, "step": step, "text": "ü"})
    log.close()


def test_every_record_is_a_line_of_json(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", ("start", 0), ("train", 5))
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 5]


def test_what_lies_beyond_the_step_resumed_from_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, ("start", 0), ("train", 5), ("validation", 5), ("train", 10), ("validation", 10), ("train", 15))
    write(path, ("resume", 10), ("train", 15), resumed=10, validated=10)
    assert steps(path) == [
        ("start", 0), ("train", 5), ("validation", 5), ("train", 10), ("validation", 10), ("resume", 10), ("train", 15),
    ]  # fmt: skip


def test_a_validation_that_the_checkpoint_does_not_know_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, ("train", 5), ("validation", 5), ("train", 10), ("validation", 10))
    write(path, resumed=10, validated=5)
    assert steps(path) == [("train", 5), ("validation", 5), ("train", 10)]


@pytest.mark.parametrize("torn", ['{"kind": "train", "st', '{"kind": "train"}', "\x00\x00", "[1]"])
def test_a_torn_line_is_left_out(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "log.jsonl"
    write(path, ("train", 5))
    with open(path, "a") as file:
        file.write(torn)
    write(path, ("train", 10), resumed=5)
    assert steps(path) == [("train", 5), ("train", 10)]


def test_a_damaged_line_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, ("train", 5), ("train", 10), ("train", 15), resumed=15)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1].replace(b"{", b"\xfb"), *lines[2:]]))
    assert steps(path) == [("train", 5), ("train", 15)]


def test_tensorboard_is_given_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    sink = TensorBoard(tmp_path)
    sink.write({"kind": "train", "step": 3, "loss": 1.5, "told": "text"})
    sink.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 1.5)]


def test_a_full_disk_is_told_with_the_name_of_the_log(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = JsonLines.__new__(JsonLines)
    log._file = open(tmp_path / "log.jsonl", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left on device") as error:
        log.write({"kind": "train", "step": 1})
    assert error.value.filename == str(tmp_path / "log.jsonl")
    log.close()
