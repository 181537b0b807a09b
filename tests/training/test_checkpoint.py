"""Checkpoints are whole or not there, and show what was done to them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import nn

from remanence.errors import InputError
from remanence.training import checkpoint as module
from remanence.training.checkpoint import exists, open_checkpoint, save_checkpoint
from remanence.training.weights import count_parameters, load_weights, weights

PARTS = {
    "model": {"a": torch.arange(1000.0), "b": torch.ones(3, 2, dtype=torch.bfloat16)},
    "state": {"c": torch.ones(())},
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "last", PARTS, {"step": 1})
    return tmp_path / "last"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_read_back(place: Path) -> None:
    found = open_checkpoint(place)
    assert found.about["step"] == 1 and left(place.parent) == ["last"]
    for part, tensors in PARTS.items():
        read = found.tensors(part)
        assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_the_files_follow_the_umask(place: Path) -> None:
    allowed = 0o666 & place.stat().st_mode
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {allowed}


def test_a_new_checkpoint_takes_the_place_of_the_old_one(place: Path) -> None:
    save_checkpoint(place, {"model": {"a": torch.zeros(2)}}, {"step": 2})
    assert open_checkpoint(place).about["step"] == 2 and left(place) == ["checkpoint.json", "model.safetensors"]
    assert left(place.parent) == ["last"]


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_cut_short_is_recognised(place: Path, name: str, share: float) -> None:
    path = place / name
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(InputError, match=r"cut short|not valid JSON") as error:
        open_checkpoint(place).tensors("model")
    assert name in str(error.value)


def test_an_altered_tensor_file_is_recognised(place: Path) -> None:
    path = place / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors was altered since it was saved"):
        open_checkpoint(place).tensors("model")


def test_an_altered_description_is_recognised(place: Path) -> None:
    path = place / "checkpoint.json"
    path.write_text(path.read_text().replace('"step": 1', '"step": 9'))
    with pytest.raises(InputError, match=r"checkpoint\.json was altered"):
        open_checkpoint(place)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "other"}', "3"])
def test_something_else_is_no_checkpoint(place: Path, text: str) -> None:
    (place / "checkpoint.json").write_text(text)
    with pytest.raises(InputError, match="is not the description of a checkpoint"):
        open_checkpoint(place)


def test_a_missing_file_and_a_missing_part_are_told(place: Path) -> None:
    found = open_checkpoint(place)
    (place / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"incomplete: model\.safetensors is missing"):
        found.tensors("model")
    with pytest.raises(InputError, match=r"has no optimizer\.safetensors"):
        found.tensors("optimizer")
    with pytest.raises(InputError, match="There is no checkpoint"):
        open_checkpoint(place.parent / "best")


@pytest.mark.parametrize("failing", ["save_file", "write_json"])
def test_a_full_disk_leaves_the_checkpoint_before(place: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        if failing == "save_file":
            raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, failing, fail)
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint(place, PARTS, {"step": 2})
    assert open_checkpoint(place).about["step"] == 1 and left(place.parent) == ["last"]


def test_a_disk_that_takes_no_more_leaves_the_checkpoint_before(place: Path) -> None:
    # The limit on the size of a file fails like a full disk, inside the library that writes the tensors.
    code = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from remanence.training.checkpoint import save_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: save_checkpoint(Path(sys.argv[1]), {'model': {'a': torch.zeros(9000)}}, {'step': 2})\n"
        "except OSError as error: print('told:', error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"told: The checkpoint {place} could not be saved (")
    assert "and the one before is kept; make room and go on with --resume." in done.stdout
    assert open_checkpoint(place).about["step"] == 1 and left(place.parent) == ["last"]


def test_a_kill_between_the_two_moves_loses_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.rename, []

    def rename(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise SystemExit
        real(source, target)

    monkeypatch.setattr(module.os, "rename", rename)
    with pytest.raises(SystemExit):
        save_checkpoint(place, PARTS, {"step": 2})
    monkeypatch.undo()
    assert not place.exists() and exists(place)
    found = open_checkpoint(place)
    assert found.about["step"] == 1 and torch.equal(found.tensors("state")["c"], torch.ones(()))
    save_checkpoint(place, PARTS, {"step": 3})
    assert open_checkpoint(place).about["step"] == 3 and left(place.parent) == ["last"]


def test_what_a_killed_save_left_is_overwritten(place: Path) -> None:
    draft = place.parent / ".last.part"
    draft.mkdir()
    (draft / "model.safetensors").write_bytes(b"half")
    save_checkpoint(place, PARTS, {"step": 2})
    assert left(place.parent) == ["last"]


def test_the_description_is_readable_json(place: Path) -> None:
    told = json.loads((place / "checkpoint.json").read_text())
    assert told["files"]["model.safetensors"]["bytes"] == (place / "model.safetensors").stat().st_size


class Tied(nn.Module):
    """One tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.out = nn.Linear(3, 4)
        self.out.weight = self.embedding.weight


def test_a_tied_weight_is_kept_once_and_stays_tied() -> None:
    model, other = Tied(), Tied()
    kept = weights(model)
    assert list(kept) == ["embedding.weight", "out.bias"] and count_parameters(model) == 16
    load_weights(other, kept, "here")
    assert torch.equal(other.out.weight, model.embedding.weight) and other.out.weight is other.embedding.weight


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"out.bias": None}, "out.bias is missing"),
        ({"extra": torch.ones(1)}, "extra is not a weight of this model"),
        ({"out.bias": torch.ones(5)}, r"out.bias has the shape \(5,\) instead of \(4,\)"),
    ],
)
def test_weights_of_another_model_are_refused(change: dict[str, Any], told: str) -> None:
    tensors = {name: each for name, each in {**weights(Tied()), **change}.items() if each is not None}
    with pytest.raises(InputError, match=told):
        load_weights(Tied(), tensors, "somewhere")
