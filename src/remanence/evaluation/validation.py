"""The score of a run in training: of the validation split, at the lengths of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from remanence.config import Recipe
from remanence.data import Corpus, Lanes
from remanence.data.corpus import Split
from remanence.errors import InputError
from remanence.evaluation.perplexity import evaluate
from remanence.evaluation.protocol import Protocol
from remanence.models import LanguageModel
from remanence.training.ranks import ALONE, Ranks


def validation(
    model: LanguageModel,
    split: Split,
    recipe: Recipe,
    corpus: Corpus,
    precision: Any,
    ranks: Ranks = ALONE,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The score of `split` at the lengths of training, as numbers for the log."""
    protocol = Protocol(starts=recipe.data.protocol, lanes=_lanes(split, recipe), precision=precision)
    score = evaluate(model, split, protocol, corpus=corpus.name, ranks=ranks, progress=progress)
    names = ("bits_per_byte", "bits_per_character", "bits_per_pixel", "perplexity", "accuracy", "value")
    numbers = {name: getattr(score, name) for name in names}
    return {
        "nats_per_token": score.nats_per_token,
        "headline": score.headline,
        **{name: value for name, value in numbers.items() if value is not None and math.isfinite(value)},
        "tokens": score.tokens,
        "seconds": round(score.seconds, 3),
    }


def validation_split(corpus: Corpus, recipe: Recipe) -> Split:
    """What validation reads. Raises InputError when it cannot be scored, which must not be found out after training."""
    split, limit = corpus.split("validation"), recipe.training.validation_tokens
    if limit and limit < len(split):
        split = split.first(limit)
    try:
        Lanes.once(split, _lanes(split, recipe), recipe.model.segment_length, recipe.data.protocol)
    except InputError:
        part = f"the first {len(split):,} tokens of " if limit else ""
        raise InputError(
            f"There is nothing to score in {part}the validation split of {corpus.name}; "
            + (f"raise training.validation_tokens from {limit:,}, " if limit else "")
            + "prepare the corpus with more validation text, or set training.validate_every to 0."
        ) from None
    return split


def _lanes(split: Split, recipe: Recipe) -> int:
    """Every lane begins cold, so that a short text is not read by as many lanes as training has."""
    return min(recipe.training.lanes, max(1, len(split) // (4 * recipe.model.segment_length)))
