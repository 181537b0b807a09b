"""Checkpoints: folders that are whole or not there, and that show when they were cut short or altered.

    model.safetensors, ...   one file of tensors for each part
    checkpoint.json          everything else, with the size and SHA-256 of every file and of itself

A checkpoint is written beside its place, flushed to the disk, and moved there; the one before stays until then. Nothing
that is read from one is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from remanence.errors import InputError
from remanence.files import read_header, read_json, sha256_file, write_json

FORMAT = "remanence-checkpoint-1"
ABOUT = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose description has been read and found unaltered."""

    folder: Path
    about: dict[str, Any]
    """What was given as `about` to `save_checkpoint`, and "files"."""

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors of one part, of which nothing else is read. Raises InputError as `tensors` does."""
        path = self.folder / f"{part}.safetensors"
        try:
            return read_header(path)[0]
        except FileNotFoundError:
            raise InputError(
                f"The checkpoint {self.folder} is incomplete: {path.name} is missing; use another checkpoint."
            ) from None
        except ValueError as error:
            raise InputError(f"{path} was cut short or altered ({error}); use another checkpoint.") from None

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The tensors of one part. Raises InputError when its file is missing, cut short or altered."""
        name = f"{part}.safetensors"
        path, told = self.folder / name, self.about["files"].get(name)
        if told is None:
            raise InputError(f"The checkpoint {self.folder} has no {name}; resume from `last`, which has every part.")
        if not path.is_file():
            raise InputError(f"The checkpoint {self.folder} is incomplete: {name} is missing; use another checkpoint.")
        if (size := path.stat().st_size) != told["bytes"]:
            raise InputError(
                f"{path} has {size} bytes instead of {told['bytes']}: it was cut short or altered; use another "
                "checkpoint."
            )
        if sha256_file(path) != told["sha256"]:
            raise InputError(f"{path} was altered since it was saved: its SHA-256 differs; use another checkpoint.")
        try:
            return load_file(path)
        except safetensors.SafetensorError as error:
            raise InputError(f"{path} is not a safetensors file ({error}); use another checkpoint.") from None


def save_checkpoint(place: Path, parts: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]) -> Checkpoint:
    """Write a checkpoint folder at `place`, replacing the one that is there only once the new one is whole.

    Raises OSError (a full disk, a missing permission), in a sentence; the checkpoint before is then untouched.
    """
    draft = place.with_name(f".{place.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        files = {f"{part}.safetensors": _save(draft / f"{part}.safetensors", each) for part, each in parts.items()}
        description = {"format": FORMAT, **about, "files": files}
        write_json(draft / ABOUT, {**description, "checksum": _checksum(description)})
        _flush(draft)
        _replace(place, draft)
    except (OSError, safetensors.SafetensorError) as error:
        kept = "the one before is kept" if exists(place) else "there is none before"
        raise OSError(
            f"The checkpoint {place} could not be saved ({error}), and {kept}; make room and go on with --resume."
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Checkpoint(place, description)


def open_checkpoint(place: Path) -> Checkpoint:
    """Read the description of a checkpoint. Raises InputError when there is none, or it was cut short or altered."""
    folder = place
    if not place.exists() and _previous(place).exists():
        # The process was killed in the instant between moving the old one away and the new one in.
        folder = _previous(place)
    if not folder.is_dir():
        raise InputError(f"There is no checkpoint {place}; check the run's folder.")
    about = read_json(folder / ABOUT, "The description of the checkpoint")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{folder / ABOUT} is not the description of a checkpoint of this library ({FORMAT}).")
    if about.pop("checksum", None) != _checksum(about):
        raise InputError(f"{folder / ABOUT} was altered since it was saved; use another checkpoint.")
    return Checkpoint(folder, about)


def exists(place: Path) -> bool:
    """Whether there is a checkpoint to open."""
    return place.is_dir() or _previous(place).is_dir()


def _save(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    # The library makes files private; ours follow the user's umask, as the folder does.
    path.chmod(path.parent.stat().st_mode & 0o666)
    _flush(path)
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _replace(place: Path, draft: Path) -> None:
    """Move `draft` to `place`. A folder cannot take the place of a full one in one step, so the old one steps aside."""
    if place.exists():
        shutil.rmtree(_previous(place), ignore_errors=True)
        os.rename(place, _previous(place))
    os.rename(draft, place)
    _flush(place.parent)
    shutil.rmtree(_previous(place), ignore_errors=True)


def _previous(place: Path) -> Path:
    return place.with_name(f".{place.name}.previous")


def _checksum(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
