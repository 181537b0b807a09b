"""Checkpoints are whole or not there, and show what was done to them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from remanence.errors import InputError
from remanence.training.checkpoint import Damaged, open_checkpoint, write_description, write_parts
from remanence.training.shares import share_metadata
from remanence.training.weights import count_parameters, load_weights, weights

PARTS = {
    "model": {"a": torch.arange(1000.0), "b": torch.ones(3, 2, dtype=torch.bfloat16)},
    "state": {"c": torch.ones(())},
}


def write(folder: Path, step: int = 1) -> Path:
    """A checkpoint of that step."""
    write_description(folder, {"step": step}, write_parts(folder, PARTS))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write(tmp_path / "last")


def test_what_was_saved_is_read_back(place: Path) -> None:
    found = open_checkpoint(place)
    assert found.step == 1 and found.parts("") == ["model", "state"] and found.parts("st") == ["state"]
    for part, tensors in PARTS.items():
        read = found.tensors(part)
        assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_what_ranks_wrote_in_shares_is_read_whole(tmp_path: Path) -> None:
    table, count = torch.arange(10.0).view(5, 2), torch.ones(())
    first = {"model-1-of-2": {"table": table[:3].clone(), "count": count}}
    second = {"model-2-of-2": {"table": table[3:].clone()}}
    files = write_parts(
        tmp_path, first, {"model-1-of-2": share_metadata({"table": [0, 0], "count": []})}
    ) | write_parts(tmp_path, second, {"model-2-of-2": share_metadata({"table": [3, 0]})})
    write_description(tmp_path, {"step": 1}, files)
    found = open_checkpoint(tmp_path)
    assert found.shapes("model") == {"table": (5, 2), "count": ()}
    read = found.tensors("model")
    assert torch.equal(read["table"], table) and torch.equal(read["count"], count)
    assert found.sha256("model") not in {told["sha256"] for told in files.values()}
    write_description(tmp_path, {"step": 1}, {name: told for name, told in files.items() if "1-of" not in name})
    with pytest.raises(Damaged, match="rows of table are missing"):
        open_checkpoint(tmp_path).tensors("model")


def test_the_files_follow_the_umask(place: Path) -> None:
    allowed = 0o666 & place.stat().st_mode
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {allowed}


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_cut_short_is_recognised(place: Path, name: str, share: float) -> None:
    path = place / name
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(Damaged, match=r"cut short|not valid JSON") as error:
        open_checkpoint(place)
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors"])
def test_an_altered_tensor_file_is_recognised(place: Path, name: str) -> None:
    path = place / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match=rf"{name} was altered since it was saved"):
        open_checkpoint(place)


def test_an_altered_description_is_recognised(place: Path) -> None:
    path = place / "checkpoint.json"
    path.write_text(path.read_text().replace('"step": 1', '"step": 9'))
    with pytest.raises(Damaged, match=r"checkpoint\.json was altered"):
        open_checkpoint(place)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "other"}', "3"])
def test_something_else_is_no_checkpoint(place: Path, text: str) -> None:
    (place / "checkpoint.json").write_text(text)
    with pytest.raises(InputError, match="is not the description of a checkpoint"):
        open_checkpoint(place)


def test_a_missing_file_and_a_missing_part_are_told(place: Path) -> None:
    found = open_checkpoint(place)
    (place / "model.safetensors").unlink()
    with pytest.raises(Damaged, match=r"incomplete: model\.safetensors is missing"):
        open_checkpoint(place)
    with pytest.raises(InputError, match=r"has no optimizer\.safetensors"):
        found.tensors("optimizer")
    with pytest.raises(InputError, match="There is no checkpoint"):
        open_checkpoint(place.parent / "best")


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
