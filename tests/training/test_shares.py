"""Files with some rows of each tensor are joined, and are those of torch.distributed.checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import checkpoint

from remanence.training.shares import Joined, share_metadata, share_name


def write(folder: Path, number: int, tensors: dict[str, Tensor], first: dict[str, int]) -> Path:
    path = folder / f"{share_name('model', number, 3)}.safetensors"
    begins = {
        name: [first.get(name, 0)] * min(each.dim(), 1) + [0] * (each.dim() - 1) for name, each in tensors.items()
    }
    save_file(tensors, path, metadata=share_metadata(begins))
    return path


@pytest.fixture
def whole() -> dict[str, Tensor]:
    return {"table": torch.randn(5, 2), "bias": torch.randn(2), "count": torch.tensor(7.0)}


@pytest.fixture
def paths(whole: dict[str, Tensor], tmp_path: Path) -> list[Path]:
    """Three ranks, of which the last has no row of the bias."""
    table, bias = whole["table"], whole["bias"]
    return [
        write(tmp_path, 0, {"table": table[:2].clone(), "bias": bias[:1].clone(), "count": whole["count"]}, {}),
        write(tmp_path, 1, {"table": table[2:4].clone(), "bias": bias[1:].clone()}, {"table": 2, "bias": 1}),
        write(tmp_path, 2, {"table": table[4:].clone()}, {"table": 4}),
    ]


def test_the_rows_of_all_files_are_the_whole_tensors(whole: dict[str, Tensor], paths: list[Path]) -> None:
    joined = Joined(paths[::-1])
    assert joined.shapes == {"table": (5, 2), "bias": (2,), "count": ()}
    assert set(joined) == set(whole) and len(joined) == 3
    assert all(torch.equal(joined[name], whole[name]) for name in whole)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_storage_of_torch_reads_them(whole: dict[str, Tensor], paths: list[Path]) -> None:
    found = {name: torch.zeros_like(each) for name, each in whole.items()}
    reader = checkpoint.HuggingFaceStorageReader(str(paths[0].parent))
    checkpoint.load(found, storage_reader=reader, no_dist=True)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_the_storage_of_torch_wrote_is_read(whole: dict[str, Tensor], tmp_path: Path) -> None:
    writer = checkpoint.HuggingFaceStorageWriter(str(tmp_path), save_distributed=True)
    checkpoint.save(dict(whole), storage_writer=writer, no_dist=True)
    joined = Joined(list(tmp_path.glob("*.safetensors")))
    assert all(torch.equal(joined[name], whole[name]) for name in whole)


def test_missing_rows_are_noticed(paths: list[Path]) -> None:
    with pytest.raises(ValueError, match="are missing or there twice"):
        Joined([paths[0], paths[2]])
    with pytest.raises(ValueError, match="are missing or there twice"):
        Joined([*paths, paths[1]])


def test_rows_of_two_shapes_are_refused(paths: list[Path]) -> None:
    other = write(paths[0].parent, 3, {"table": torch.zeros(1, 3)}, {"table": 5})
    with pytest.raises(ValueError, match="table has rows of two shapes"):
        Joined([*paths, other])


@pytest.mark.parametrize("told", ["", "null", "[]", '{"table": {}}', '{"table": {"saved_offsets": [-1, 0]}}', "{"])
def test_a_file_that_does_not_say_what_it_has_is_refused(told: str, tmp_path: Path) -> None:
    path = tmp_path / "model-1-of-1.safetensors"
    save_file({"table": torch.zeros(2, 2)}, path, metadata={"DCP_SHARDING_INFO": told} if told else {})
    with pytest.raises(ValueError, match=r"Expecting|does not say which rows of table"):
        Joined([path])
