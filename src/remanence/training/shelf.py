"""Where the checkpoints of a run stand, and which of them are kept.

    last      the newest, to resume from
    step-N    older ones, which take its place when it is damaged
    best      the weights with the best validation

A new checkpoint is written as a draft beside them (a hidden name) and renamed into its place, and only then is an old
one removed; so there is a whole one at every moment. What is removed is made a draft first: no half is ever taken for a
checkpoint.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from remanence.errors import DamageWarning, InputError
from remanence.files import flush_folder
from remanence.training.checkpoint import Checkpoint, Damaged, open_checkpoint

DRAFT = ".part"


@dataclass(frozen=True)
class Shelf:
    """The folder `checkpoints` of a run."""

    path: Path

    @property
    def last(self) -> Path:
        return self.path / "last"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def older(self) -> list[Path]:
        """Those that were `last` once, newest first."""
        numbers = (each.name.removeprefix("step-") for each in self.path.glob("step-*") if each.is_dir())
        return [self.path / f"step-{step}" for step in sorted((int(n) for n in numbers if n.isdecimal()), reverse=True)]

    @property
    def newest(self) -> list[Path]:
        """All that a run can be resumed from, newest first."""
        return [*([self.last] if self.last.is_dir() else []), *self.older]

    @property
    def has_best(self) -> bool:
        return self.best.is_dir() or self._best_before.is_dir()

    def open_best(self) -> Checkpoint:
        """The checkpoint with the best validation. Raises InputError when there is none, or it is damaged."""
        if not self.best.exists() and self._best_before.exists():
            # The process was killed in the instant between moving the old one away and the new one in.
            return open_checkpoint(self._best_before)
        return open_checkpoint(self.best)

    def open_last(self) -> Checkpoint:
        """The newest checkpoint that is whole; damaged ones are passed over with a DamageWarning.

        Raises InputError when there is none.
        """
        tried: list[str] = []
        for folder in self.newest:
            try:
                checkpoint = open_checkpoint(folder)
            except Damaged as damage:
                tried.append(damage.reason)
                continue
            if tried:
                warnings.warn(
                    f"{'; '.join(tried)}; the checkpoint before it, {folder} of step {checkpoint.step:,}, is used "
                    "instead.",
                    DamageWarning,
                    stacklevel=2,
                )
            return checkpoint
        if not tried:
            raise InputError(f"There is no checkpoint {self.last}; check the run's folder.")
        raise InputError(
            f"None of the checkpoints in {self.path} is whole: {'; '.join(tried)}; put a whole one back, or start a "
            "new run in another folder by --folder."
        )

    def draft(self, name: str) -> Path:
        """Where a checkpoint is written before it is put in its place."""
        return self.path / f".{name}{DRAFT}"

    def put_last(self, draft: Path, step: int, keep: int, doubtful: Collection[Path] = ()) -> None:
        """Make the checkpoint `draft` of that step the last one, and keep the `keep` newest in all.

        Those of this step and later ones are of a future that was taken back; they and the `doubtful` ones go.
        """
        gone: list[Path] = []
        if self.last.exists():
            before = self._step_of_last()
            if before is None or before >= step or self.last in doubtful:
                gone.append(self._aside(self.last))
            else:
                aside = self.path / f"step-{before}"
                if aside.exists():
                    gone.append(self._aside(aside))
                os.rename(self.last, aside)
        os.rename(draft, self.last)
        flush_folder(self.path)
        older = self.older
        stale = [each for each in older if int(each.name.removeprefix("step-")) >= step or each in doubtful]
        kept = [each for each in older if each not in stale]
        gone += [self._aside(each) for each in [*stale, *kept[max(keep - 1, 0) :]]]
        for each in gone:
            shutil.rmtree(each, ignore_errors=True)

    def put_best(self, draft: Path) -> None:
        """Make the checkpoint `draft` the best one."""
        # A folder cannot take the place of a full one in one step, so the old one steps aside.
        if self.best.exists():
            shutil.rmtree(self._best_before, ignore_errors=True)
            os.rename(self.best, self._best_before)
        os.rename(draft, self.best)
        flush_folder(self.path)
        shutil.rmtree(self._best_before, ignore_errors=True)

    def clear(self) -> None:
        """Remove what attempts that were killed left behind."""
        for each in self.path.glob(f".*{DRAFT}"):
            shutil.rmtree(each, ignore_errors=True)

    @property
    def _best_before(self) -> Path:
        return self.path / ".best.previous"

    def _step_of_last(self) -> int | None:
        try:
            return open_checkpoint(self.last, check=False).step
        except InputError:
            return None

    def _aside(self, folder: Path) -> Path:
        """The folder under the name of a draft, to be removed."""
        aside = self.draft(f"{folder.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, aside)
        return aside
