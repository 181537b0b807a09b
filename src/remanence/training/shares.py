"""Tensors of which a rank has some rows, in memory and in files: ranks write theirs by themselves, anybody reads them.

    model-1-of-2.safetensors, model-2-of-2.safetensors

The layout is the one of `torch.distributed.checkpoint` with its safetensors storage (`HuggingFaceStorageWriter`, which
saves what is distributed): the metadata of a file say for each of its tensors where it begins in the whole one. So its
`HuggingFaceStorageReader` reads these files, too. They are written and read here without a process group, for a thread
must not wait for another machine, and one process reads what sixty-four wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from remanence.files import parse_json, read_header

OFFSETS, OFFSET = "DCP_SHARDING_INFO", "saved_offsets"
"""Where the storage of torch.distributed.checkpoint says where a tensor begins."""


class _Piece(NamedTuple):
    """Rows of one tensor in one file."""

    first: int
    rows: int
    path: Path


def own(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this rank has, maybe none; all of one that is not in shares."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rows_of(whole: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor, the rows that this rank has of another one of its shape."""
    return whole if not isinstance(like, DTensor) else whole.narrow(0, _begin(like), len(own(like)))


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors, of which those in files are not read."""
    if isinstance(tensors, Joined):
        return tensors.shapes
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def shared_like(rows: Tensor, like: Tensor) -> Tensor:
    """A tensor that is in shares as `like` is, of the rows that this rank has of it."""
    if not isinstance(like, DTensor):
        return rows
    shape, stride = like.shape, like.stride()
    return DTensor.from_local(rows, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)


def share(tensors: Mapping[str, Tensor], first: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a rank writes of tensors in shares, and the metadata of its file; the rest is written by the first rank."""
    rows, begins = {}, {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            if first:
                rows[name], begins[name] = tensor, [0] * tensor.dim()
        elif own(tensor).numel():
            rows[name], begins[name] = own(tensor), [_begin(tensor)] + [0] * (tensor.dim() - 1)
    return rows, share_metadata(begins)


def _begin(tensor: DTensor) -> int:
    """The first row that this rank has: all ranks but the last ones have as many."""
    mesh = tensor.device_mesh
    return min(len(tensor), mesh.get_local_rank() * -(-len(tensor) // mesh.size()))


def share_name(part: str, rank: int, size: int) -> str:
    """What the file of a rank is called, without its ending."""
    return f"{part}-{rank + 1}-of-{size}"


def is_share(part: str, name: str) -> bool:
    """Whether `share_name` calls a file of this part so."""
    return re.fullmatch(rf"{re.escape(part)}-\d{{1,9}}-of-\d{{1,9}}", name) is not None


def share_metadata(begins: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """The metadata of a file whose tensors begin there in the whole ones, one number for each axis."""
    offsets = {name: {OFFSET: list(begin)} for name, begin in begins.items()}
    return {OFFSETS: json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}


class Joined(Mapping[str, Tensor]):
    """The whole tensors of the files of all ranks; each is read when it is asked for.

    Raises ValueError, with what is wrong and no full stop, when a file is damaged or rows are missing.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        pieces: dict[str, list[_Piece]] = {}
        tails: dict[str, tuple[int, ...]] = {}
        for path in paths:
            shapes, begins = _described(path)
            for name, shape in shapes.items():
                pieces.setdefault(name, []).append(_Piece(begins[name], shape[0] if shape else 1, path))
                if tails.setdefault(name, shape[1:]) != shape[1:]:
                    raise ValueError(f"{name} has rows of two shapes")
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of the whole tensors."""
        self._pieces = {name: sorted(found) for name, found in pieces.items()}
        for name, found in self._pieces.items():
            if found[0].first or any(one.first + one.rows != other.first for one, other in pairwise(found)):
                raise ValueError(f"rows of {name} are missing or there twice")
            scalar = not _described(found[0].path)[0][name]
            self.shapes[name] = () if scalar else (found[-1].first + found[-1].rows, *tails[name])

    def __getitem__(self, name: str) -> Tensor:
        parts = []
        for piece in self._pieces[name]:
            with safe_open(piece.path, framework="pt") as file:
                parts.append(file.get_tensor(name))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


def _described(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """The shapes of the tensors of a file, and the rows they begin with."""
    shapes, metadata = read_header(path)
    try:
        # The library that reads the tensors later has checks of its own.
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    told = parse_json(metadata.get(OFFSETS, "null"))
    begins: dict[str, int] = {}
    for name, shape in shapes.items():
        try:
            begin = told[name][OFFSET]
            sound = len(begin) == len(shape) and all(type(each) is int and each >= 0 for each in begin)
        except (KeyError, TypeError):
            sound = False
        if not sound or any(begin[1:]):
            raise ValueError(f"it does not say which rows of {name} it has")
        begins[name] = begin[0] if shape else 0
    return shapes, begins
