"""Tensors in several files, each with some of their rows: ranks write their shares by themselves, anybody reads them.

    model-1-of-2.safetensors, model-2-of-2.safetensors

The layout is the one of `torch.distributed.checkpoint` with its safetensors storage (`HuggingFaceStorageWriter`, which
saves what is distributed): the metadata of a file say for each of its tensors where it begins in the whole one. So its
`HuggingFaceStorageReader` reads these files, too. They are written and read here without a process group, for a thread
must not wait for another machine, and one process reads what sixty-four wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from remanence.files import parse_json, read_header

OFFSETS, OFFSET = "DCP_SHARDING_INFO", "saved_offsets"
"""Where the storage of torch.distributed.checkpoint says where a tensor begins."""


class _Piece(NamedTuple):
    """Rows of one tensor in one file."""

    first: int
    rows: int
    path: Path


def share_name(part: str, rank: int, size: int) -> str:
    """What the file of a rank is called, without its ending."""
    return f"{part}-{rank + 1}-of-{size}"


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
