"""The folder of a run: what is where in it, and that it holds one run only.

recipe.toml      the resolved recipe
launch           the name of the job that began it, where the launcher of several processes gave one
tokenizer/       the tokenizer of the corpus, so that the run can be used without it
log.jsonl        see log.py
profile/         recorded steps, where any were asked for
checkpoints/     `last`, to resume from, older ones, and `best`, the weights with the best validation (shelf.py)
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remanence.config import Recipe, dump_recipe, load_recipe
from remanence.data.staging import staging
from remanence.errors import InputError
from remanence.files import make_folder, write_text
from remanence.training.ranks import Ranks
from remanence.training.shelf import Shelf


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its things."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def _launch(self) -> Path:
        return self.path / "launch"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    @property
    def diverged(self) -> Path:
        return self.path / "diverged.json"

    @property
    def shelf(self) -> Shelf:
        """Its checkpoints."""
        return Shelf(self.path / "checkpoints")

    @property
    def holds_run(self) -> bool:
        return self.recipe.is_file()

    def check_free(self) -> None:
        """Raise InputError when something is there already."""
        if self.holds_run:
            raise InputError(
                f"{self.path} already holds a run; go on with it by --resume, or choose another folder by --folder."
            )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(f"{self.path} exists and is not empty; choose another folder by --folder.")

    def check_run(self) -> None:
        """Raise InputError when there is no run."""
        if not self.holds_run:
            raise InputError(f"{self.path} holds no run: there is no recipe.toml in it; check the path.")

    def goes_on(self, ranks: Ranks) -> bool:
        """Whether the processes were started again for a run that they have begun: after one of them had died, or after
        a machine came or went, which the launcher does not count as a restart.
        """
        if not self.holds_run:
            return False
        name = self._launch.read_text(encoding="utf-8", errors="replace") if self._launch.is_file() else ""
        return name == ranks.launch if name and ranks.launch else ranks.restarted

    def create(self, recipe: Recipe, tokenizer: Any, launch: str = "") -> None:
        """Make the folder with the recipe and the tokenizer in it, in one step. Raises InputError like `check_free`."""
        self.check_free()
        with staging(self.path, "--folder") as draft:
            # Another process may have made it while this one came here.
            self.check_free()
            make_folder(draft / "checkpoints", self.path, "--folder")
            tokenizer.save(draft / "tokenizer")
            write_text(draft / "recipe.toml", dump_recipe(recipe))
            if launch:
                write_text(draft / self._launch.name, launch)
            os.rename(draft, self.path)

    def read_recipe(self) -> Recipe:
        """The resolved recipe of the run. Raises InputError when there is none."""
        self.check_run()
        return load_recipe(self.recipe, warn=False)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held while the run is trained: two processes in one folder would overwrite each other's checkpoints.

        The lock goes with the process, however it ends. Raises InputError when another process holds it.
        """
        with locked(self.path, "is being trained"):
            yield


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Held by one process at a time; the lock goes with the process, however it ends.

    Raises InputError when another one holds it, with `busy` for what it does: "is being trained".
    """
    try:
        file = open(folder / ".lock", "w")  # noqa: SIM115 (closed by the block below)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written to ({error.strerror or error}); make it writable, or copy it elsewhere."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder} {busy} by another process; wait for it or stop it first.") from None
        yield
