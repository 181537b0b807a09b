"""The log of a run: one JSON object a line, and whatever else wants to see the records.

Every record has a "kind" ("start", "train", "validation", "resume", "stop", "end") and a "step". After a kill, lines
beyond the step that is resumed from are taken back, so that no step stands there twice and no line is torn.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from remanence.errors import InputError
from remanence.files import parse_json, write_text


class Sink(Protocol):
    """Something that is shown every record."""

    def write(self, record: dict[str, Any]) -> None: ...

    def sync(self) -> None:
        """Bring what was written to the disk, before a checkpoint that relies on it."""
        ...

    def close(self) -> None: ...


class JsonLines:
    """`log.jsonl`, always written."""

    def __init__(self, path: Path, resumed_step: int = 0, validated_at: int = 0) -> None:
        """Take back what was written after `resumed_step`, and validations after the one that is known."""
        if path.exists():
            known = {"validation": validated_at}
            kept = [each for each in read_log(path) if each["step"] <= known.get(str(each.get("kind")), resumed_step)]
            write_text(path, "".join(_line(record) for record in kept))
        # Without a buffer: what a full disk refused must not come back when the file is closed.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)

    def write(self, record: dict[str, Any]) -> None:
        line = _line(record).encode("utf-8")
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            # The system does not say which file it was that the disk had no room for.
            raise OSError(error.errno, error.strerror, self._file.name) from None

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """The numbers of every record as scalars."""

    def __init__(self, folder: Path, resumed_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed_step + 1 if resumed_step else None)

    @staticmethod
    def check_installed() -> None:
        """Raise InputError where TensorBoard is missing."""
        if find_spec("tensorboard") is None:
            raise InputError(
                "training.tensorboard is true, but TensorBoard is not installed; install remanence[tensorboard] or set "
                "it to false."
            )

    def write(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a line that a crash tore or a disk damaged is left out."""
    records: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and type(record.get("step")) is int and record["step"] >= 0:
            records.append(record)
    return records


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
