"""Checkpoints: folders that are whole or not there, and that show when they were cut short or altered.

    model.safetensors, ...   one file of tensors for each part, or one of each rank (`shares.py`)
    checkpoint.json          everything else, with the size and SHA-256 of every file and of itself

A checkpoint is written as a draft, flushed to the disk, and put in its place by one renaming (`shelf.py`). Nothing that
is read from one is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from remanence.errors import InputError
from remanence.files import are_files, flush_folder, read_header, read_json, sha256_file, write_json
from remanence.training.shares import Joined, is_share

FORMAT = "remanence-checkpoint-1"
ABOUT = "checkpoint.json"


class Damaged(InputError):
    """A checkpoint is not as it was saved; `reason` says what is wrong, without a full stop."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; use another checkpoint.")
        self.reason = reason


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose description has been read and found unaltered."""

    folder: Path
    about: dict[str, Any]
    """What was given as `about` when it was written, and "files"."""

    @property
    def step(self) -> int:
        return self.about["step"]

    def check(self) -> None:
        """Raise Damaged unless every file is there and has the size and the SHA-256 that were saved with it."""
        for name, told in self.about["files"].items():
            self._find(name)
            path = self.folder / name
            try:
                found = sha256_file(path)
            except OSError as error:
                raise Damaged(f"{path} cannot be read ({error.strerror or error})") from None
            if found != told["sha256"]:
                raise Damaged(f"{path} was altered since it was saved: its SHA-256 differs")

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors of one part, of which nothing else is read. Raises InputError as `tensors` does."""
        paths = self._paths(part)
        try:
            return Joined(paths).shapes if self._is_shared(part) else read_header(paths[0])[0]
        except ValueError as error:
            raise Damaged(f"{paths[0]} was cut short or altered ({error})") from None

    def tensors(self, part: str) -> Mapping[str, Tensor]:
        """The tensors of one part, whose hash `check` has compared. Raises InputError when it has no such part.

        Those that ranks wrote in shares are read when they are asked for, one at a time.
        """
        paths = self._paths(part)
        try:
            return Joined(paths) if self._is_shared(part) else load_file(paths[0])
        except (ValueError, safetensors.SafetensorError) as error:
            raise Damaged(f"{paths[0]} was cut short or altered ({error})") from None

    def sha256(self, part: str) -> str:
        """What identifies the tensors of one part: the hash of its file, or of the hashes of its files."""
        hashes = [self.about["files"][path.name]["sha256"] for path in self._paths(part)]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    def parts(self, prefix: str) -> list[str]:
        """The names of the parts that begin with `prefix`."""
        names = (name.removesuffix(".safetensors") for name in self.about["files"])
        return sorted(name for name in names if name.startswith(prefix))

    def _is_shared(self, part: str) -> bool:
        return f"{part}.safetensors" not in self.about["files"] and bool(self._shares(part))

    def _shares(self, part: str) -> list[str]:
        return [name for name in self.parts(f"{part}-") if is_share(part, name)]

    def _paths(self, part: str) -> list[Path]:
        """The files of a part."""
        names = self._shares(part) if self._is_shared(part) else [part]
        return [self._find(f"{name}.safetensors") for name in names]

    def _find(self, name: str) -> Path:
        """The path of a file of the expected size."""
        path, told = self.folder / name, self.about["files"].get(name)
        if told is None:
            raise InputError(f"The checkpoint {self.folder} has no {name}; resume from `last`, which has every part.")
        if not path.is_file():
            raise Damaged(f"The checkpoint {self.folder} is incomplete: {name} is missing")
        if (size := path.stat().st_size) != told["bytes"]:
            raise Damaged(f"{path} has {size} bytes instead of {told['bytes']}: it was cut short or altered")
        return path


def write_parts(
    draft: Path, parts: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, dict[str, str]] | None = None
) -> dict[str, dict[str, Any]]:
    """Write one file of tensors for each part into the folder `draft`, flushed; gives "bytes" and "sha256" by name.

    `metadata` is put into the file of the part that it is for. The tensors lie on the CPU, each whole in its own
    storage. Raises OSError and safetensors.SafetensorError.
    """
    draft.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Any]] = {}
    for part, tensors in parts.items():
        path = draft / f"{part}.safetensors"
        save_file(dict(tensors), path, metadata=(metadata or {}).get(part))
        # The library makes files private; ours follow the user's umask, as the folder does.
        path.chmod(draft.stat().st_mode & 0o666)
        _flush(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    return files


def write_description(draft: Path, about: Mapping[str, Any], files: Mapping[str, dict[str, Any]]) -> None:
    """Write the description that makes the folder `draft` a checkpoint of these files."""
    description = {"format": FORMAT, **about, "files": dict(sorted(files.items()))}
    write_json(draft / ABOUT, {**description, "checksum": _checksum(description)})
    flush_folder(draft)


def open_checkpoint(folder: Path, check: bool = True) -> Checkpoint:
    """Read the description of a checkpoint and, to `check`, compare the hash of every file.

    Raises InputError when there is none, and Damaged when something in it was cut short or altered.
    """
    if not folder.is_dir():
        raise InputError(f"There is no checkpoint {folder}; check the run's folder.")
    try:
        about = read_json(folder / ABOUT, "The description of the checkpoint")
    except InputError as error:
        raise Damaged(str(error).partition(";")[0]) from None
    except OSError as error:
        raise Damaged(f"{folder / ABOUT} cannot be read ({error.strerror or error})") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise Damaged(f"{folder / ABOUT} is not the description of a checkpoint of this library ({FORMAT})")
    if about.pop("checksum", None) != _checksum(about):
        raise Damaged(f"{folder / ABOUT} was altered since it was saved")
    if not are_files(about.get("files")):
        raise Damaged(f"{folder / ABOUT} does not say which files there are")
    if type(about.get("step")) is not int or about["step"] < 0:
        raise Damaged(f"{folder / ABOUT} does not say of which step it is")
    checkpoint = Checkpoint(folder, about)
    if check:
        checkpoint.check()
    return checkpoint


def _checksum(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
