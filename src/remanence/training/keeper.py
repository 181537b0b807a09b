"""Keeps a run in its folder: `last`, to resume from, and `best`, the weights with the lowest validation.

    copy the tensors | training goes on
                     | write, hash, flush, rename: a thread

What holds training is the copying, and the save before where that is still being written.

Of several ranks each writes its own parts into the same draft, and last a page with their sizes and hashes. The first
one waits for the pages of all, joins them to one description, and renames the draft. Threads speak through files alone.
"""

from __future__ import annotations

import secrets
import shutil
import threading
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
from remanence.files import write_json, write_text
from remanence.training.checkpoint import Checkpoint, open_checkpoint, write_description, write_parts
from remanence.training.copies import Copies
from remanence.training.folder import RunFolder
from remanence.training.identity import check_same_run
from remanence.training.log import read_log
from remanence.training.parts import Parts, read_page
from remanence.training.run import check_about
from remanence.training.state import State
from remanence.training.weights import weights
from remanence.training.writer import Writer

PATIENCE, LEAVING = 600.0, 20.0
"""Seconds in which another rank must have written its parts; and when this one is on its way out by an error."""
LOOKS = 0.02
"""Seconds between two looks for the pages of the others."""


class Keeper:
    """Saves and restores the state of one run; used as a context, at whose end what is being written is waited for.

    A save that fails raises OSError, in a sentence, from whichever of its methods is called next; the checkpoint
    before is then still there. Of several ranks all call the same methods at the same step.
    """

    def __init__(self, folder: RunFolder, recipe: Recipe, corpus: Corpus, state: State) -> None:
        self.folder, self.recipe, self.corpus, self.state, self.ranks = folder, recipe, corpus, state, state.ranks
        self.background = True
        """False lets training wait until everything is written."""
        self.asked_at = 0
        """The step of the last checkpoint, which may still be on its way to the disk."""
        self._shelf = folder.shelf
        self._copies, self._writer = Copies(), Writer()
        self._own_is_written = threading.Event()
        self._own_is_written.set()
        self._until = 0.0
        """When this rank stops waiting for the pages of the others."""
        self._attempt = ""
        """In the name of drafts: what an attempt that was killed has left is never taken for this one's."""
        self._written_at = 0
        self._doubtful: list[Path] = []
        self._clock = time.monotonic()

    def __enter__(self) -> Self:
        self._attempt = self.ranks.tell(secrets.token_hex(4))
        self._clock = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self._until = min(self._until, time.monotonic() + LEAVING)
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
        """Whether a save has failed on this rank, and nobody was told."""
        return self._writer.failed

    def check(self) -> None:
        """Raise what a save that has ended failed with on this rank. Waits for nothing."""
        self._writer.check()

    def settle(self) -> None:
        """Wait until everything is on the disk. An error on one rank is one on all."""
        try:
            with self.ranks.together():
                if self.ranks.first and self.ranks.size > 1:
                    # The rest of its job waits for the others, which may fail here.
                    self._own_is_written.wait()
                else:
                    self._writer.wait()
            if self.ranks.size > 1:
                with self.ranks.together():
                    self._writer.wait()
        except BaseException:
            self._until = 0.0
            self._writer.join()
            if self.ranks.first:
                # Nobody writes to the draft any more.
                self._shelf.clear()
            raise

    def save_last(self, before: Callable[[], None]) -> None:
        """Everything that the rest of the run depends on; `before` brings to the disk what the checkpoint relies on."""
        step, keep = self.state.progress.step, self.recipe.training.keep
        about = {**self._about(), "resumption": self.state.description()}

        def put(draft: Path) -> None:
            self._shelf.put_last(draft, step, keep, self._doubtful)
            self._doubtful, self._written_at = [], step

        self._save(self._shelf.last, self.state.parts(), about, before, put)
        self.asked_at, self._clock = step, time.monotonic()

    def save_best(self) -> None:
        """The weights, and what is needed to use them."""
        parts = Parts(self.ranks)
        parts.add("model", weights(self.state.model))
        self._save(self._shelf.best, parts, self._about(), _nothing, self._shelf.put_best)

    def restore(self) -> list[str]:
        """Make the state what the last whole checkpoint holds; a run that was killed before the first begins anew.

        Gives what is different on this machine, so that numbers will round differently. Raises InputError when no
        checkpoint is whole, or it is of another recipe or of another text.
        """
        checkpoint: Checkpoint | None = None
        with self.ranks.together():
            if self.ranks.first:
                self._shelf.clear()
                checkpoint = self._open_last()
        name = self.ranks.tell(checkpoint and checkpoint.folder.name)
        if name is None:
            return []
        with self.ranks.together():
            # Its hashes have been compared by the first rank.
            checkpoint = checkpoint or open_checkpoint(self._shelf.path / name, check=False)
            self.state.restore(checkpoint)
            self.asked_at = self._written_at = checkpoint.step
            if self.ranks.first:
                # What may change between the parts of a run is from now on as it was given.
                write_text(self.folder.recipe, dump_recipe(self.recipe))
        before, now = checkpoint.about["resumption"]["machine"], self.state.machine
        return [
            f"{what} was {before[what]} and is now {now[what]}"
            for what in now
            if now[what] != before.get(what, now[what])
        ]

    def _open_last(self) -> Checkpoint | None:
        """The checkpoint to resume from, if there is any."""
        found = self._shelf.newest
        if not found:
            self._check_nothing_saved()
            return None
        checkpoint = self._shelf.open_last()
        self._doubtful = found[: found.index(checkpoint.folder)]
        check_about(checkpoint.about, str(checkpoint.folder))
        check_same_run(checkpoint.about["recipe"], self.recipe, str(checkpoint.folder))
        if checkpoint.about["corpus"].get("fingerprint") != self.corpus.fingerprint:
            raise InputError(
                f"The corpus {self.corpus.folder} is not the one that {self.folder.path} was trained on; prepare that "
                "one again, or start a new run in another folder."
            )
        return checkpoint

    def _save(
        self,
        place: Path,
        parts: Parts,
        about: dict[str, Any],
        before: Callable[[], None],
        put: Callable[[Path], None],
    ) -> None:
        """Copy the tensors and let the thread do the rest, after what it is doing.

        `parts` are those of this rank; `about`, `before` and `put` (the draft in its place) are the first one's.
        """
        self.settle()
        taken, arrived = self._copies.take(parts.tensors)
        draft = self._shelf.draft(f"{place.name}-{about['step']}.{self._attempt}")
        self._own_is_written.clear()
        self._until = time.monotonic() + PATIENCE

        def job() -> None:
            try:
                with self._failing(place, draft):
                    arrived()
                    files = write_parts(draft, taken, parts.metadata)
                    page = {"files": files, "memory": parts.memory}
                    if not self.ranks.first:
                        write_json(draft / _page(self.ranks.rank), page)
                        return
                    before()
                    self._own_is_written.set()
                    files, meant = self._joined(draft, page)
                    write_description(draft, {**about, "memory": meant}, files)
                    put(draft)
            finally:
                self._own_is_written.set()

        self._writer.start(job)
        if not self.background:
            self.settle()

    def _joined(self, draft: Path, page: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The files of all ranks and what they mean; the pages of the others are removed. Raises OSError."""
        files, memory = dict(page["files"]), dict(page["memory"])
        for rank in range(1, self.ranks.size):
            path = draft / _page(rank)
            while not path.exists():
                if time.monotonic() > self._until:
                    raise OSError(f"process {rank} has not written its part")
                time.sleep(LOOKS)
            others, meant = read_page(path)
            files |= others
            memory |= meant
            path.unlink()
        return files, memory

    @contextmanager
    def _failing(self, place: Path, draft: Path) -> Iterator[None]:
        """Turns what can go wrong while a checkpoint is written into one sentence.

        Leaves no draft, where no other rank may still be writing to it.
        """
        try:
            yield
        except (OSError, safetensors.SafetensorError) as error:
            before = self._shelf.has_best if place == self._shelf.best else bool(self._shelf.newest)
            kept = "the one before is kept" if before else "there is none before"
            raise OSError(
                f"The checkpoint {place} could not be saved ({error}), and {kept}; make room and go on with --resume."
            ) from None
        finally:
            if self.ranks.size == 1:
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


def _page(rank: int) -> str:
    return f"rank-{rank}.json"


def _nothing() -> None:
    """Nothing has to be on the disk before."""
