"""Files of published weights: what is read of them, and what is refused before PyTorch is let near it."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from remanence.errors import InputError
from remanence.interop import from_published, read_weights

from .test_published import equal, golden


def tensors() -> dict[str, Tensor]:
    table = torch.arange(12.0).reshape(3, 4)
    return {
        "table": table,
        "tied": table,
        "rows": table[1:],
        "turned": table.T,
        "half": torch.ones(5, dtype=torch.bfloat16),
        "one": torch.tensor(3),
        "none": torch.zeros(0, 7),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_weights(path)
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth"])
@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda state: {"state_dict": state, "epoch": 3, "lr": [0.1]}])
def test_tensors_are_read_from_an_archive_of_pytorch(tmp_path: Path, suffix: str, wrap: Callable[..., Any]) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(tensors()), path)
    found = read_weights(path)
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[name], tensor) and not found[name].requires_grad for name, tensor in tensors().items())


def test_the_state_of_a_module_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    torch.save(module.state_dict(), tmp_path / "a.pt")
    found = read_weights(tmp_path / "a.pt")
    assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())


def test_a_published_model_is_read_from_either_kind_of_file(tmp_path: Path) -> None:
    kind, arrays, config = golden("transformer_xl_base")
    named = {name: torch.from_numpy(array).clone() for name, array in arrays.items()}
    torch.save(named, tmp_path / "a.pt")
    save_file(named, tmp_path / "a.safetensors")
    direct = from_published(kind, arrays, config)  # type: ignore[arg-type]
    for name in ("a.pt", "a.safetensors"):
        assert equal(direct, from_published(kind, read_weights(tmp_path / name), config))  # type: ignore[arg-type]


class Harmful:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_what_a_pickle_would_execute_is_refused_unexecuted(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2), "b": Harmful(tmp_path / "made")}, tmp_path / "a.pt")
    assert "mkdir" in refused(tmp_path / "a.pt")
    assert not (tmp_path / "made").exists()


def test_a_whole_module_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3), tmp_path / "a.pt")
    told = refused(tmp_path / "a.pt")
    assert "torch.nn.modules.linear.Linear" in told and "state_dict()" in told


def test_what_an_older_pytorch_wrote_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert "1.6" in refused(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [[torch.zeros(2)], torch.zeros(2), {}, {"a": 1.0}, {"epoch": 3}, 7])
def test_what_is_no_mapping_of_tensors_is_refused(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "a.pt")
    refused(tmp_path / "a.pt")


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None], packed: int = zipfile.ZIP_STORED) -> Path:
    """The archive with its records changed."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return path


def pickled(old: bytes, new: bytes) -> Callable[[dict[str, bytes]], None]:
    def change(records: dict[str, bytes]) -> None:
        (name,) = [name for name in records if name.endswith("data.pkl")]
        assert old in records[name]
        records[name] = records[name].replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    "change",
    [
        # The record has 12 numbers; the pickle speaks of two thousand million, or of a tensor that repeats one.
        pickled(b"K\x0ctq", b"J\xff\xff\xff\x7ftq"),
        pickled(b"K\x03K\x04\x86", b"J\xff\xff\xff\x7fK\x04\x86"),
        pickled(b"K\x04K\x01\x86", b"K\x00K\x00\x86"),
        pickled(b"K\x00K\x03K\x04", b"K\x09K\x03K\x04"),
        pickled(b"FloatStorage", b"QloatStorage"),
        pickled(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009"),
        lambda records: records.pop("a/data/0"),
        lambda records: records.pop("a/data.pkl"),
        lambda records: records.update({"a/data/0": b"1"}),
        lambda records: records.update({"b/data.pkl": b"."}),
    ],
)
def test_a_pickle_that_speaks_of_more_than_there_is_is_refused(
    tmp_path: Path, change: Callable[[dict[str, bytes]], None]
) -> None:
    torch.save({"a": torch.zeros(3, 4)}, tmp_path / "a.pt")

    def changed(records: dict[str, bytes]) -> None:
        change(records)
        if "K\x00K\x00" in records.get("a/data.pkl", b"").decode("latin-1"):
            # A stride of nothing repeats a number; the shape is made one that only that allows.
            records["a/data.pkl"] = records["a/data.pkl"].replace(b"K\x03K\x04", b"K\xffK\xff")

    refused(rewritten(tmp_path / "a.pt", changed))


def test_a_packed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "a.pt")
    assert "packed" in refused(rewritten(tmp_path / "a.pt", lambda records: None, zipfile.ZIP_DEFLATED))


def test_tensors_that_share_a_record_a_thousand_times_are_refused(tmp_path: Path) -> None:
    shared = torch.zeros(10_000)
    torch.save({str(number): shared for number in range(1000)}, tmp_path / "a.pt")
    assert "speaks of" in refused(tmp_path / "a.pt")


def test_a_configuration_is_compared_with_the_weights_before_a_model_is_made() -> None:
    kind, arrays, config = golden("transformer_xl_base")
    for change in ({"n_layer": 10**9}, {"d_inner": 10**12}, {"vocab_size": 10**14}):
        with pytest.raises(InputError):
            from_published(kind, arrays, config | change)  # type: ignore[arg-type]
