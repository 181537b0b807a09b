"""Keeps a run in its folder: `last`, to resume from, and `best`, the weights with the lowest validation.

    copy the tensors | training goes on
                     | write, hash, flush, rename: a thread

What holds training is the copying, and the save before where that is still being written.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import safetensors

from remanence.config import Recipe, dump_recipe
from remanence.config.recipe import table_of
from remanence.data import Corpus
from remanence.errors import InputError
from remanence.files import write_text
from remanence.training.checkpoint import write_description, write_parts
from remanence.training.copies import Copies
from remanence.training.folder import RunFolder
from remanence.training.identity import check_same_run
from remanence.training.log import read_log
from remanence.training.state import State
from remanence.training.weights import weights
from remanence.training.writer import Writer


class Keeper:
    """Saves and restores the state of one run; used as a context, at whose end what is being written is waited for.

    A save that fails raises OSError, in a sentence, from whichever of its methods is called next; the checkpoint
    before is then still there.
    """

    def __init__(self, folder: RunFolder, recipe: Recipe, corpus: Corpus, state: State) -> None:
        self.folder, self.recipe, self.corpus, self.state = folder, recipe, corpus, state
        self.background = True
        """False lets training wait until everything is written."""
        self.asked_at = 0
        """The step of the last checkpoint, which may still be on its way to the disk."""
        self._shelf = folder.shelf
        self._copies, self._writer = Copies(), Writer()
        self._attempt = secrets.token_hex(4)
        self._written_at = 0
        self._doubtful: list[Path] = []
        self._clock = time.monotonic()

    def __enter__(self) -> Self:
        self._clock = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            self._writer.wait()
        except Exception:
            # What went wrong first is told.
            if kind is None:
                raise

    @property
    def is_time(self) -> bool:
        """Whether training.save_minutes have passed since the last checkpoint, by a clock that nobody can set."""
        minutes = self.recipe.training.save_minutes
        return minutes > 0 and time.monotonic() - self._clock >= 60 * minutes

    @property
    def written_at(self) -> int:
        """The step of the last checkpoint that is whole on the disk; one that is being written is waited for."""
        self._writer.join()
        return self._written_at

    @property
    def failed(self) -> bool:
        """Whether `check` would raise."""
        return self._writer.failed

    def check(self) -> None:
        """Raise what a save that has ended failed with. Waits for nothing."""
        self._writer.check()

    def settle(self) -> None:
        """Wait until everything is on the disk."""
        self._writer.wait()

    def save_last(self, before: Callable[[], None]) -> None:
        """Everything that the rest of the run depends on; `before` brings to the disk what the checkpoint relies on."""
        step, keep = self.state.progress.step, self.recipe.training.keep
        part, tensors, told = self.state.memory_part()
        about = {**self._about(), "resumption": self.state.description(), "memory": {part: told}}

        def put(draft: Path) -> None:
            self._shelf.put_last(draft, step, keep, self._doubtful)
            self._doubtful, self._written_at = [], step

        self._save(self._shelf.last, {**self.state.parts(), part: tensors}, about, before, put)
        self.asked_at, self._clock = step, time.monotonic()

    def save_best(self) -> None:
        """The weights, and what is needed to use them."""
        self._save(
            self._shelf.best, {"model": weights(self.state.model)}, self._about(), _nothing, self._shelf.put_best
        )

    def restore(self) -> list[str]:
        """Make the state what the last whole checkpoint holds; a run that was killed before the first begins anew.

        Gives what is different on this machine, so that numbers will round differently. Raises InputError when no
        checkpoint is whole, or it is of another recipe or of another text.
        """
        self._shelf.clear()
        found = self._shelf.newest
        if not found:
            self._check_nothing_saved()
            return []
        checkpoint = self._shelf.open_last()
        check_same_run(checkpoint.about["recipe"], self.recipe, str(checkpoint.folder))
        if checkpoint.about["corpus"]["fingerprint"] != self.corpus.fingerprint:
            raise InputError(
                f"The corpus {self.corpus.folder} is not the one that {self.folder.path} was trained on; prepare that "
                "one again, or start a new run in another folder."
            )
        self.state.restore(checkpoint)
        self._doubtful = found[: found.index(checkpoint.folder)]
        self.asked_at = self._written_at = checkpoint.step
        # What may change between the parts of a run is from now on as it was given.
        write_text(self.folder.recipe, dump_recipe(self.recipe))
        before, now = checkpoint.about["resumption"]["machine"], self.state.machine
        return [
            f"{what} was {before[what]} and is now {now[what]}"
            for what in now
            if now[what] != before.get(what, now[what])
        ]

    def _save(
        self,
        place: Path,
        parts: dict[str, Any],
        about: dict[str, Any],
        before: Callable[[], None],
        put: Callable[[Path], None],
    ) -> None:
        """Copy the tensors and let the thread do the rest, after what it is doing."""
        if not self.state.ranks.first:
            return
        self._writer.wait()
        taken, arrived = self._copies.take(parts)
        draft = self._shelf.draft(f"{place.name}-{about['step']}.{self._attempt}")

        def job() -> None:
            with self._failing(place, draft):
                arrived()
                before()
                write_description(draft, about, write_parts(draft, taken))
                put(draft)

        self._writer.start(job)
        if not self.background:
            self._writer.wait()

    @contextmanager
    def _failing(self, place: Path, draft: Path) -> Iterator[None]:
        """Turns what can go wrong while a checkpoint is written into one sentence, and leaves no draft."""
        shutil.rmtree(draft, ignore_errors=True)
        try:
            yield
        except (OSError, safetensors.SafetensorError) as error:
            before = self._shelf.has_best if place == self._shelf.best else bool(self._shelf.newest)
            kept = "the one before is kept" if before else "there is none before"
            raise OSError(
                f"The checkpoint {place} could not be saved ({error}), and {kept}; make room and go on with --resume."
            ) from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _check_nothing_saved(self) -> None:
        """Raise InputError where the log knows of a checkpoint: a run that was saved must not begin anew."""
        records = read_log(self.folder.log) if self.folder.log.exists() else []
        steps = [each["step"] for each in records if each.get("kind") in ("validation", "stop", "end")]
        if any(steps) or self._shelf.has_best:
            raise InputError(
                f"{self.folder.path} was saved at step {max(steps, default=0):,}, but {self._shelf.last} is missing; "
                "put the checkpoint back, or start a new run in another folder by --folder."
            )

    def _about(self) -> dict[str, Any]:
        """All that is needed to use the weights without the corpus at hand."""
        corpus, progress, distances = self.corpus, self.state.progress, self.state.distances
        return {
            "step": progress.step,
            "recipe": table_of(self.recipe),
            "corpus": {
                "name": corpus.name,
                "unit": corpus.unit,
                "fingerprint": corpus.fingerprint,
                "tokenizer": corpus.tokenizer.fingerprint,
                "vocab_size": corpus.vocab_size,
                "counts": {name: dict(corpus.split(name).counts) for name in corpus.splits},
            },
            "distances": {"back": distances.back, "ahead": distances.ahead},
            "best": progress.best,
        }


def _nothing() -> None:
    """Nothing has to be on the disk before."""
