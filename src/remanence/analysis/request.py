"""What a comparison is asked to do, and the plan that follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from remanence.analysis import compare
from remanence.analysis.budget import Kind
from remanence.analysis.comparison import restore
from remanence.analysis.cost import Price
from remanence.config import Recipe
from remanence.config.recipe import completed, recipe_from_table
from remanence.config.tables import differences
from remanence.data import Corpus
from remanence.data.corpus import Split
from remanence.errors import InputError
from remanence.files import read_json, write_json

FORMAT = 1
MAY_CHANGE = ("recipe.description", "recipe.data.corpus", "recipe.training.device", "recipe.training.tensorboard")
"""Settings of a recipe that may differ when a comparison is resumed; the text is checked by its fingerprint."""
LANES_SCORED = 16
"""Lanes that read the test text, at most and where no recipe says otherwise."""


@dataclass(frozen=True)
class Asked:
    """What a comparison is asked to do, beside its recipes."""

    seeds: tuple[int, ...]
    budget: Kind = "tokens"
    amount: float | None = None
    """Tokens, seconds or FLOPs a run; None is what the first recipe's own steps take."""
    memory_lengths: tuple[int, ...] | None = None
    """At test time; None is nothing, half, all and twice the longest of training."""
    test_tokens: int = 0
    """Of the test split; 0 is all of it."""
    validations: int = 6
    checkpoint: Literal["best", "last"] = "last"


@dataclass(frozen=True)
class Plan:
    """What was asked for and what follows from it. Goes to plan.json and comes back equal."""

    asked: dict[str, Any]
    corpus: str
    """Fingerprint."""
    recipes: dict[str, dict[str, Any]]
    """As they were given."""
    prices: dict[str, Price | None]
    """None where a recipe could not be priced, because it cannot be trained."""
    step_seconds: dict[str, float]
    """Measured, where the budget is time."""
    amount: float
    steps: dict[str, int]

    def save(self, path: Path) -> None:
        write_json(path, {"format": FORMAT} | dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> Plan:
        value = read_json(path, "the plan of the comparison")
        try:
            if value.pop("format") != FORMAT:
                raise KeyError("format")
            plan = restore(cls, value)
            if not plan.recipes.keys() == plan.steps.keys() == plan.prices.keys():
                raise ValueError("its recipes, steps and prices are not of the same names")
            return plan
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is no whole plan of a comparison ({error}); compare in another folder.") from None

    def check_same(self, folder: Path, asked: dict[str, Any], corpus: str, recipes: dict[str, dict[str, Any]]) -> None:
        """Raise InputError unless the plan is of the very same comparison."""
        if list(self.recipes) != list(recipes):
            wrong = f"it compares {', '.join(self.recipes)}, and not {', '.join(recipes)}"
        elif self.corpus != corpus:
            wrong = "it was made with another text"
        elif keys := differences(begun := _with_defaults(self.asked), asked):
            name = keys[0]
            wrong = f"its {name.replace('_', ' ')} is {shown(begun.get(name))}, and not {shown(asked.get(name))}"
        else:
            keys = [
                (name, key.removeprefix("recipe."))
                for name in recipes
                for key in differences(completed(self.recipes[name]), completed(recipes[name]), "recipe.")
                if key not in MAY_CHANGE
            ]
            if not keys:
                return
            wrong = f"{keys[0][1]} of {keys[0][0]} was another"
        raise InputError(
            f"{folder} holds another comparison: {wrong}; give what it was begun with, or another --folder."
        )


def check_alike(recipes: Sequence[Recipe]) -> None:
    """Raise InputError unless the recipes can be compared: names of their own, one text, read in one way."""
    names = [recipe.name for recipe in recipes]
    if not names:
        raise InputError("There is no recipe to compare; give one or more.")
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f'{names.count(name)} recipes have the name "{name}", which names the folder of their runs; give them '
                "names of their own."
            )
    first = recipes[0]
    for other in recipes[1:]:
        if other.data.corpus != first.data.corpus:
            raise InputError(
                f"{first.name} reads {first.data.corpus or 'no corpus'} and {other.name} reads "
                f"{other.data.corpus or 'no corpus'}; name one for all by --corpus."
            )
        if other.data.protocol != first.data.protocol:
            raise InputError(
                f"{first.name} reads its text by the {first.data.protocol} protocol and {other.name} by the "
                f"{other.data.protocol} one; choose one for all by --data.protocol."
            )


def load_asked(folder: Path) -> tuple[list[Recipe], Asked]:
    """What the comparison in a folder was begun with. Raises InputError where there is none."""
    if not (folder / "plan.json").exists():
        raise InputError(f"There is no comparison in {folder} to go on with; give its recipes to begin one.")
    plan = Plan.load(folder / "plan.json")
    try:
        asked = restore(Asked, plan.asked)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"The plan in {folder} is damaged ({error}); compare in another folder.") from None
    return [recipe_from_table(table) for table in plan.recipes.values()], asked


def test_text(corpus: Corpus, recipe: Recipe, tokens: int) -> Split:
    """What every run is scored on: the test split, or about so many tokens of it."""
    if "test" not in corpus.splits:
        raise InputError(
            f"The corpus {corpus.name} has no test split to score; prepare it with one, or name another by --corpus."
        )
    split = corpus.split("test")
    if not tokens or tokens >= len(split):
        return split
    if recipe.data.protocol == "document" and not split.whole_documents:
        return compare.excerpt(split, tokens, LANES_SCORED, seed=0, anywhere=True)
    return split.first(tokens)


def _with_defaults(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for; an option that is newer than the plan had its default then."""
    newer = {each.name: each.default for each in dataclasses.fields(Asked) if each.default is not dataclasses.MISSING}
    return {**newer, **asked}


def shown(value: Any) -> str:
    """A value of `Asked`, in a sentence."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "what follows from the recipes" if value is None else str(value)
