"""Recipes: TOML files and flags <-> frozen dataclasses, where an unknown key is an error."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remanence.config.recipe import Recipe, SettingWarning, dump_recipe, load_recipe
    from remanence.config.settings import DataSettings, EvaluationSettings, TrainingSettings

__all__ = [
    "DataSettings",
    "EvaluationSettings",
    "Recipe",
    "SettingWarning",
    "TrainingSettings",
    "dump_recipe",
    "load_recipe",
]

_SETTINGS = ("DataSettings", "EvaluationSettings", "TrainingSettings")


# Recipes bring the models, and these torch; the flags of a command that needs neither stay instant.
def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'remanence.config' has no attribute {name!r}")
    return getattr(import_module(f"remanence.config.{'settings' if name in _SETTINGS else 'recipe'}"), name)
