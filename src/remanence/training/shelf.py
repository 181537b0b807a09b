"""Where the checkpoints of a run stand, and which of them are kept.

    last      the newest, to resume from
    step-N    older ones, which take its place when it is damaged
    best      the weights with the best validation

A new checkpoint is written as a draft beside them (a hidden name) and renamed into its place, and only then is an old
one removed; so a run finds a whole one at every moment. What is removed is made a draft first: no half is ever taken
for a checkpoint.

Others may read while a run is trained: what was found is looked for again where something changed its place meanwhile.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from remanence.errors import DamageWarning, InputError
from remanence.files import flush_folder
from remanence.training.checkpoint import ABOUT, Checkpoint, Damaged, open_checkpoint

Found = TypeVar("Found")
DRAFT = ".part"
TRIES = 20
"""How often something is read anew because a training run beside has put another checkpoint there."""


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

        def found() -> Checkpoint:
            # The process may have been killed in the instant between moving the old one away and the new one in.
            stepped_aside = not self.best.exists() and self._best_before.exists()
            return open_checkpoint(self._best_before if stepped_aside else self.best)

        return self._undisturbed(found)

    def open_last(self) -> Checkpoint:
        """The newest checkpoint that is whole; damaged ones are passed over with a DamageWarning.

        Raises InputError when there is none.
        """
        checkpoint, tried = self._undisturbed(self._find_whole)
        if checkpoint is None:
            if not tried:
                raise InputError(f"There is no checkpoint {self.last}; check the run's folder.")
            raise InputError(
                f"None of the checkpoints in {self.path} is whole: {'; '.join(tried)}; put a whole one back, or start "
                "a new run in another folder by --folder."
            )
        if tried:
            warnings.warn(
                f"{'; '.join(tried)}; the checkpoint before it, {checkpoint.folder} of step {checkpoint.step:,}, is "
                "used instead.",
                DamageWarning,
                stacklevel=2,
            )
        return checkpoint

    def has_still(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint stands where it was opened: a training run beside may have put another one there."""
        try:
            return open_checkpoint(checkpoint.folder, check=False).about == checkpoint.about
        except (InputError, OSError):
            return False

    def draft(self, name: str) -> Path:
        """Where a checkpoint is written before it is put in its place."""
        return self.path / f".{name}{DRAFT}"

    def put_last(self, draft: Path, step: int, keep: int, doubtful: Collection[Path] = ()) -> None:
        """Make the checkpoint `draft` of that step the last one, and keep the `keep` newest in all.

        Those of this step and later ones are of a future that was taken back; they and the `doubtful` ones go, when
        the new one stands in its place.
        """
        gone: list[Path] = []
        if self.last.exists():
            before = None if self.last in doubtful else self._step_of_last()
            if before is None:
                gone.append(self._aside(self.last))
            else:
                # Also one that will go stays in sight until the new one is there: it may be the only whole one.
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
        """Remove what attempts that were killed left behind; what is needed of it takes its place again.

        Where nothing to resume from is whole, the newest draft that is becomes such, and without one no draft that was
        ever finished is removed.
        """
        drafts = list(self.path.glob(f".*{DRAFT}"))
        finished = [each for each in drafts if (each / ABOUT).exists() and each.name.startswith((".last", ".step-"))]
        if finished and self._find_whole()[0] is None:
            whole = [found for each in finished if (found := _whole(each))]
            if whole:
                newest = max(whole, key=lambda found: found.step)
                place = self.last if not self.last.exists() else self.path / f"step-{newest.step}"
                shutil.rmtree(place, ignore_errors=True)
                os.rename(newest.folder, place)
                flush_folder(self.path)
            else:
                drafts = [each for each in drafts if each not in finished]
        for each in drafts:
            shutil.rmtree(each, ignore_errors=True)

    @property
    def _best_before(self) -> Path:
        return self.path / ".best.previous"

    def _find_whole(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and what is wrong with those that are newer."""
        tried: list[str] = []
        for folder in self.newest:
            try:
                return open_checkpoint(folder), tried
            except Damaged as damage:
                tried.append(damage.reason)
            except (InputError, OSError):
                # Moved away since it was listed.
                tried.append(f"{folder} is missing")
        return None, tried

    def _undisturbed(self, read: Callable[[], Found]) -> Found:
        """What `read` gives or raises, of a moment in which no checkpoint changed its place."""
        for _ in range(TRIES):
            before = self._places()
            try:
                found = read()
            except (InputError, OSError):
                if self._places() == before:
                    raise
                continue
            if self._places() == before:
                return found
        return read()

    def _places(self) -> dict[str, tuple[int, int]]:
        """Which folder stands where."""
        places = {}
        for folder in [*self.newest, self.best, self._best_before]:
            try:
                about = folder.stat()
            except OSError:
                continue
            places[folder.name] = about.st_ino, about.st_mtime_ns
        return places

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


def _whole(folder: Path) -> Checkpoint | None:
    try:
        return open_checkpoint(folder)
    except InputError:
        return None
