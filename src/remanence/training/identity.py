"""Whether two recipes are of the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remanence.config import Recipe
from remanence.config.recipe import completed, table_of
from remanence.config.tables import differences
from remanence.errors import InputError

MAY_CHANGE = (
    "description",
    "data.corpus",
    "training.device",
    "training.compile",
    "training.distribution",
    "training.log_every",
    "training.save_every",
    "training.save_minutes",
    "training.keep",
    "training.validate_every",
    "training.validation_tokens",
    "training.tensorboard",
    "evaluation.",
)
"""Settings that may differ when a run is resumed: none of them decides what the weights become, to rounding. The corpus
may have moved; that it is the same text is checked by its fingerprint."""
OPEN_ENDED = ("constant", "inverse-sqrt")
"""Schedules that do not look at the number of steps, so that a run may be made longer."""


def check_same_run(found: Mapping[str, Any], given: Recipe, where: str) -> None:
    """Raise InputError, naming the keys, when the recipe `given` is not the one `found` at `where` (as a table)."""
    may_change = MAY_CHANGE + (("training.steps",) if given.training.schedule in OPEN_ENDED else ())
    # A setting that is newer than the run had its default then.
    found = completed(found)
    keys = [key for key in differences(found, table_of(given)) if not key.startswith(may_change)]
    if not keys:
        return
    shown = ", ".join(f"{key} ({_value(found, key)} there, {_value(table_of(given), key)} now)" for key in keys[:3])
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    raise InputError(
        f"{where} was made with another recipe: {shown}{more} differ{'s' if len(keys) == 1 else ''}; resume with the "
        "recipe it was made with, or start a new run in another folder."
    )


def _value(table: Mapping[str, Any], key: str) -> str:
    value: Any = table
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return "unset" if value is None else str(value)
