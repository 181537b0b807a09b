"""A trained model, from the folder of its run alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch

from remanence.config import Recipe
from remanence.config.recipe import recipe_from_table, table_of
from remanence.data import Tokenizer, load_tokenizer
from remanence.errors import InputError
from remanence.memory import Distances
from remanence.models import LanguageModel, build
from remanence.training.checkpoint import Checkpoint
from remanence.training.folder import RunFolder
from remanence.training.identity import check_same_run
from remanence.training.shelf import TRIES
from remanence.training.weights import check_size, fingerprint, load_weights


@dataclass(frozen=True, eq=False)
class Run:
    """What `load_run` gives."""

    folder: Path
    recipe: Recipe
    model: LanguageModel
    """In evaluation mode."""
    tokenizer: Tokenizer
    distances: Distances
    """The largest distances that training brought about."""
    fingerprint: str
    """Identifies the weights and the configuration; a memory made by them carries it."""
    step: int
    which: Literal["best", "last"]
    """Which checkpoint this is."""
    corpus: dict[str, Any]
    """Of the corpus trained on: name, unit, fingerprint (also of its tokenizer), vocab_size, and counts by split."""
    best: dict[str, Any] | None
    """What the best validation gave, and its step; None when there was none."""

    @property
    def unit(self) -> str:
        """What one token is: "byte", "character", "word" or "token"."""
        return self.corpus["unit"]


def load_run(
    folder: str | Path,
    which: Literal["best", "last"] = "best",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Run:
    """Load the model of a run, with all that is needed to use it.

    `which` is the checkpoint with the best validation, or the last one; a run that was never validated has no best, and
    gives the last. Where the last one is damaged, the one before it is taken, with a DamageWarning. `dtype` casts the
    weights. The run may still be in training: what is replaced while it is read is read anew. Raises InputError when
    the folder holds no run, the run has no checkpoint yet, or there is none that is whole, or it is of another recipe
    or tokenizer. Nothing in the folder is executed.
    """
    run = RunFolder(Path(folder))
    recipe = run.read_recipe()
    for left in reversed(range(TRIES)):
        chosen = "best" if which == "best" and run.shelf.has_best else "last"
        checkpoint = run.shelf.open_best() if chosen == "best" else run.shelf.open_last()
        try:
            found = _read(run, recipe, checkpoint, chosen)
        except (InputError, OSError, safetensors.SafetensorError):
            # Halves of two checkpoints need not fit each other; one alone has to.
            if not left or run.shelf.has_still(checkpoint):
                raise
        else:
            # The hashes are of what stood there before, and the tensors of what stands there now.
            if run.shelf.has_still(checkpoint):
                return replace(found, model=found.model.to(device=device, dtype=dtype).eval())
    raise InputError(
        f"The checkpoints in {run.shelf.path} were replaced {TRIES} times while they were read; wait for the training "
        "that writes them, or let it save more rarely."
    )


def _read(run: RunFolder, recipe: Recipe, checkpoint: Checkpoint, which: Literal["best", "last"]) -> Run:
    """The run with the weights of one checkpoint. Raises InputError, OSError and safetensors.SafetensorError."""
    about = checkpoint.about
    check_about(about, str(checkpoint.folder))
    check_same_run(about["recipe"], recipe, str(checkpoint.folder))
    tokenizer = load_tokenizer(run.tokenizer)
    # Checkpoints of before this was kept are taken as they are.
    if about["corpus"].get("tokenizer", tokenizer.fingerprint) != tokenizer.fingerprint:
        raise InputError(
            f"{run.tokenizer} is not the tokenizer that the run was trained with; put the one of its corpus there."
        )
    config = recipe_from_table(about["recipe"]).model
    check_size(config, checkpoint.shapes("model"), str(checkpoint.folder))
    model = build(config, seed=0)
    load_weights(model, checkpoint.tensors("model"), str(checkpoint.folder))
    return Run(
        folder=run.path,
        recipe=recipe,
        model=model,
        tokenizer=tokenizer,
        distances=Distances(**about["distances"]),
        fingerprint=fingerprint(table_of(recipe)["model"], checkpoint.sha256("model")),
        step=about["step"],
        which=which,
        corpus=about["corpus"],
        best=about["best"],
    )


def check_about(about: Mapping[str, Any], source: str) -> None:
    """Raise InputError unless the description of a checkpoint has what a run is made of, each of its type."""
    distances = about.get("distances")
    sound = (
        isinstance(about.get("recipe"), dict)
        and (type(about.get("step")) is int and about["step"] >= 0)
        and isinstance(about.get("corpus"), dict)
        and isinstance(about["corpus"].get("unit"), str)
        and isinstance(about.get("best", 0), dict | type(None))
        and (isinstance(distances, dict) and distances.keys() <= {"back", "ahead"})
        and all(each is None or (type(each) is int and each >= 0) for each in distances.values())
    )
    if not sound:
        raise InputError(f"The description of {source} lacks what a run is made of; use another checkpoint.")
