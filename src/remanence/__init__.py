"""Transformer language models that carry a memory from one segment of text to the next.

The names below are imported on first use: `import remanence` is instant, and `remanence.build` brings torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remanence.config import Recipe, load_recipe
    from remanence.data import Corpus, Lanes
    from remanence.errors import InputError
    from remanence.evaluation import Protocol, Score, evaluate
    from remanence.generation import Session
    from remanence.memory import Memory, load_memory
    from remanence.models import (
        CompressiveConfig,
        InfiniteFormerConfig,
        LaMemoConfig,
        MemformerConfig,
        RMTConfig,
        TransformerConfig,
        TransformerXLConfig,
        build,
    )
    from remanence.training import Trainer, load_run

__version__ = "0.1.0"

__all__ = [
    "CompressiveConfig",
    "Corpus",
    "InfiniteFormerConfig",
    "InputError",
    "LaMemoConfig",
    "Lanes",
    "MemformerConfig",
    "Memory",
    "Protocol",
    "RMTConfig",
    "Recipe",
    "Score",
    "Session",
    "Trainer",
    "TransformerConfig",
    "TransformerXLConfig",
    "__version__",
    "build",
    "evaluate",
    "load_memory",
    "load_recipe",
    "load_run",
]

_HOMES = {
    "CompressiveConfig": "models",
    "Corpus": "data",
    "InfiniteFormerConfig": "models",
    "InputError": "errors",
    "LaMemoConfig": "models",
    "Lanes": "data",
    "MemformerConfig": "models",
    "Memory": "memory",
    "Protocol": "evaluation",
    "RMTConfig": "models",
    "Recipe": "config",
    "Score": "evaluation",
    "Session": "generation",
    "Trainer": "training",
    "TransformerConfig": "models",
    "TransformerXLConfig": "models",
    "build": "models",
    "evaluate": "evaluation",
    "load_memory": "memory",
    "load_recipe": "config",
    "load_run": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'remanence' has no attribute {name!r}")
    return getattr(import_module(f"remanence.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
