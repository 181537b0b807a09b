"""Keeps a run in its folder: `last`, to resume from, and `best`, the weights with the lowest validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remanence.config import Recipe, dump_recipe
from remanence.config.recipe import table_of
from remanence.data import Corpus
from remanence.errors import InputError
from remanence.files import write_text
from remanence.training.checkpoint import exists, open_checkpoint, save_checkpoint
from remanence.training.folder import RunFolder
from remanence.training.identity import check_same_run
from remanence.training.log import read_log
from remanence.training.state import State
from remanence.training.weights import weights


@dataclass(frozen=True)
class Keeper:
    """Saves and restores the state of one run."""

    folder: RunFolder
    recipe: Recipe
    corpus: Corpus
    state: State

    def save_last(self) -> None:
        """Everything that the rest of the run depends on. Raises OSError; the checkpoint before is then still there."""
        save_checkpoint(self.folder.last, self.state.parts(), {**self._about(), "resumption": self.state.description()})

    def save_best(self) -> None:
        """The weights, and what is needed to use them."""
        save_checkpoint(self.folder.best, {"model": weights(self.state.model)}, self._about())

    def restore(self) -> list[str]:
        """Make the state what the last checkpoint holds; a run that was killed before the first begins anew.

        Gives what is different on this machine, so that numbers will round differently. Raises InputError when the
        checkpoint is damaged, of another recipe or of another text.
        """
        if not exists(self.folder.last):
            self._check_nothing_saved()
            return []
        checkpoint = open_checkpoint(self.folder.last)
        check_same_run(checkpoint.about["recipe"], self.recipe, str(checkpoint.folder))
        if checkpoint.about["corpus"]["fingerprint"] != self.corpus.fingerprint:
            raise InputError(
                f"The corpus {self.corpus.folder} is not the one that {self.folder.path} was trained on; prepare that "
                "one again, or start a new run in another folder."
            )
        self.state.restore(checkpoint)
        # What may change between the parts of a run is from now on as it was given.
        write_text(self.folder.recipe, dump_recipe(self.recipe))
        before, now = checkpoint.about["resumption"]["machine"], self.state.machine
        return [
            f"{what} was {before[what]} and is now {now[what]}"
            for what in now
            if now[what] != before.get(what, now[what])
        ]

    def _check_nothing_saved(self) -> None:
        """Raise InputError where the log knows of a checkpoint: a run that was saved must not begin anew."""
        records = read_log(self.folder.log) if self.folder.log.exists() else []
        steps = [each["step"] for each in records if each.get("kind") in ("validation", "stop", "end")]
        if any(steps) or exists(self.folder.best):
            raise InputError(
                f"{self.folder.path} was saved at step {max(steps, default=0):,}, but {self.folder.last} is missing; "
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
