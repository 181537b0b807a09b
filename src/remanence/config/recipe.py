"""A recipe: one complete, reproducible run, as a TOML file and as a frozen dataclass.

name = "lamemo-books"
[data]      corpus = "data/books"
[model]     architecture = "lamemo", then the fields of its configuration
[training]  TrainingSettings
[evaluation]  EvaluationSettings
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w

from remanence.config.settings import DataSettings, EvaluationSettings, TrainingSettings
from remanence.config.tables import nearest, read_table, types_of, write_table
from remanence.errors import InputError, SettingWarning
from remanence.files import check_nesting, read_text
from remanence.models import architectures, config_class

LARGEST = 1 << 20
"""Bytes of a recipe."""
# What was read is never given back (*+): a line of blanks would else take time as the square of its length.
_PART = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_MANY_DOTS = re.compile(rf"^[ \t]*+\[{{0,2}}[ \t]*+(?:{_PART}){{16}}", re.MULTILINE)
VOCABULARY_TO_TRY = 1 << 24
"""Stands in for a vocabulary that is not known yet, to check the other settings of a model."""


@dataclass(frozen=True)
class Recipe:
    """One complete, reproducible run."""

    name: str
    """Names the run's folder, runs/NAME."""
    description: str = ""
    """What the run is for, in a sentence."""
    data: DataSettings = field(default_factory=DataSettings)
    model: Any = None
    """The configuration of one architecture. Its vocab_size is None until a corpus has told it (`sized`)."""
    training: TrainingSettings = field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        # Only a text is checked: a help without a recipe shows a name that is still missing.
        if isinstance(self.name, str) and (self.name in ("", ".", "..") or re.search(r"[/\\\0]", self.name)):
            raise InputError(
                f'name is "{self.name}", but it names a folder in runs; give one without / and \\, and place the run '
                "elsewhere by --folder."
            )

    @property
    def architecture(self) -> str:
        return self.model.architecture

    def sized(self, vocab_size: int) -> Recipe:
        """The recipe with the vocabulary of its corpus.

        Raises InputError when the recipe names a vocabulary of another size.
        """
        given = self.model.vocab_size
        if given is None:
            model = _model_from({**write_table(self.model), "vocab_size": vocab_size}, self.architecture)
            return dataclasses.replace(self, model=model)
        if given != vocab_size:
            raise InputError(
                f"The corpus has {vocab_size} token ids, but the recipe's model.vocab_size is {given}; leave it out to "
                "take that of the corpus, or prepare the corpus that the recipe describes."
            )
        return self


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), prog: str = "remanence train RECIPE", warn: bool = True
) -> Recipe:
    """Read a TOML file and apply flags to it, such as ["--model.memory-length", "640"].

    Raises InputError for a missing or malformed file, an unknown key or flag (naming the nearest valid one), a value of
    the wrong type or out of range. Warns (SettingWarning) about settings that have no effect.
    """
    # Not at the top: tyro takes a tenth of a second, and a library user may never give a flag.
    from remanence.config.flags import parse_flags

    architecture, overrides = take_architecture(overrides)
    recipe = draft_recipe(path, architecture)
    return settle(parse_flags(Recipe, overrides, prog, default=recipe) if overrides else recipe, warn)


def draft_recipe(path: str | Path, architecture: str | None = None) -> Recipe:
    """The recipe in a file, before flags: the model's settings are not checked yet, since flags may still mend them.

    With another `architecture` than the file's, settings that only the file's has are left out, with a warning.
    """
    table = _read_toml(Path(path))
    model = table.get("model")
    if architecture in architectures() and isinstance(model, dict) and model.get("architecture") in architectures():
        theirs, ours = (types_of(config_class(name)) for name in (model["architecture"], architecture))
        foreign = [name for name in model if name in theirs and name not in ours]
        table["model"] = {name: value for name, value in model.items() if name not in foreign}
        if foreign:
            names = ", ".join(f"model.{name}" for name in foreign)
            warnings.warn(
                f"{names}: left out, for the {architecture} has no such setting.", SettingWarning, stacklevel=3
            )
    return recipe_from_table(table, architecture, check=False)


def settle(recipe: Recipe, warn: bool = True) -> Recipe:
    """A draft as a recipe whose settings have all been checked; warns about those that have no effect."""
    recipe = recipe_from_table(table_of(recipe))
    if warn:
        warn_of_settings_without_effect(recipe)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The text of a TOML file that `load_recipe` turns into an equal recipe."""
    return tomli_w.dumps(table_of(recipe))


def table_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested tables, the architecture first in [model]."""
    return write_table(recipe) | {"model": {"architecture": recipe.architecture, **write_table(recipe.model)}}


def recipe_from_table(table: Mapping[str, Any], architecture: str | None = None, check: bool = True) -> Recipe:
    """The recipe that `table_of` wrote, or that a TOML file holds; `architecture` overrides the one in [model].

    Without `check` it is a draft: see `draft_recipe`.
    """
    table = dict(table)
    model = table.pop("model", None)
    if not isinstance(model, Mapping):
        raise InputError(f"The recipe has no table [model]; add it, with architecture = {_choices()}.")
    model = dict(model)
    named = model.pop("architecture", None)
    architecture = architecture or named
    if architecture is None:
        raise InputError(f"model.architecture is missing; give one of {_choices()}.")
    if architecture not in architectures():
        shown = f"model.architecture is {architecture!r}".replace("'", '"')
        raise InputError(f"{shown}, but it must be one of {_choices()}; did you mean {_like(architecture)}?")
    recipe = read_table(Recipe, table)
    return dataclasses.replace(recipe, model=_model_from(model, architecture, check))


def completed(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe's table with the defaults of settings that are newer than it; as it is, when some are not known here."""
    try:
        return table_of(recipe_from_table(table))
    except InputError:
        return table


def take_architecture(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The architecture named by `--model.architecture`, which decides what flags there are, and the other flags."""
    flags, rest, architecture = list(overrides), [], None
    while flags:
        word = flags.pop(0)
        name, attached, value = word.partition("=")
        if name != "--model.architecture":
            rest.append(word)
        elif attached or flags:
            architecture = value if attached else flags.pop(0)
        else:
            raise InputError(f"--model.architecture is given without a value, but it must be one of {_choices()}.")
    return architecture, rest


def warn_of_settings_without_effect(recipe: Recipe) -> None:
    training, model, evaluation = recipe.training, recipe.model, recipe.evaluation
    without: list[str] = []
    if training.schedule == "constant" and training.floor:
        without.append("training.floor has no effect, because the constant schedule never falls.")
    if training.warmup_steps >= training.steps:
        without.append(
            f"training.warmup_steps is {training.warmup_steps}, so the {training.steps} steps never reach the full "
            "learning rate."
        )
    if training.validation_tokens and not training.validate_every:
        without.append("training.validation_tokens has no effect, because training.validate_every is 0.")
    if not model.memory_length and "memory_length" not in types_of(type(model)) and evaluation.memory_length:
        without.append(f"evaluation.memory_length has no effect, because the {recipe.architecture} has no memory.")
    if evaluation.compressed_length is not None and not hasattr(model, "compressed_slots"):
        without.append(
            f"evaluation.compressed_length has no effect, because the {recipe.architecture} compresses nothing."
        )
    for message in (*without, *model.without_effect()):
        warnings.warn(message, SettingWarning, stacklevel=3)


@cache
def unsized(kind: type) -> type:
    """The configuration class `kind` with a vocabulary that may be None: that of a corpus not opened yet."""
    return dataclasses.make_dataclass(
        kind.__name__,
        [("vocab_size", int | None, None)],
        bases=(kind,),
        frozen=True,
        kw_only=True,
        namespace={"__post_init__": lambda self: None, "__doc__": kind.__doc__, "__module__": kind.__module__},
    )


def _model_from(table: Mapping[str, Any], architecture: str, check: bool = True) -> Any:
    kind = config_class(architecture)
    tentative = read_table(unsized(kind), table, "model")
    if not check:
        return tentative
    values: dict[str, Any] = {each.name: getattr(tentative, each.name) for each in dataclasses.fields(kind)}
    if tentative.vocab_size is not None:
        return kind(**values)
    values["vocab_size"] = VOCABULARY_TO_TRY
    try:
        kind(**values)
    except InputError as error:
        # The stand-in is nothing that the reader of the sentence has ever given.
        raise InputError(
            str(error).replace(f"the vocabulary size {VOCABULARY_TO_TRY}", "the vocabulary size")
        ) from None
    return tentative


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_text(path, LARGEST))
    except FileNotFoundError:
        others = sorted(other.name for other in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        hint = f"did you mean {path.parent / nearest(path.name, others)}?" if others else "check the path."
        raise InputError(f"There is no recipe {path}; {hint}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, but a recipe is a TOML file.") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is not a TOML file ({error}); correct it there.") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text that nobody vouches for.

    Raises ValueError when it is not TOML, nested too deeply, or holds a whole number that 64 bits do not.
    """
    # The parser remembers every beginning of a dotted key: memory that grows with the square of its length.
    if _MANY_DOTS.search(text):
        raise ValueError("a key of more than 16 parts")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError("arrays or tables that lie too deep in each other") from None
    check_nesting(table)
    _check_numbers(table)
    return table


def _check_numbers(value: Any) -> None:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_numbers(each)
    elif type(value) is int and not -(1 << 63) <= value < 1 << 63:
        raise ValueError("a whole number beyond 64 bits")


def _choices() -> str:
    return ", ".join(f'"{name}"' for name in architectures())


def _like(name: str) -> str:
    return f'"{nearest(name, architectures())}"'
