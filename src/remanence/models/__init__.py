"""The architectures, one file each, all keeping the contract of `base.LanguageModel`."""

from __future__ import annotations

import difflib

import torch

from remanence.errors import InputError
from remanence.models.base import Extras, LanguageModel, ModelConfig, ModelOutput
from remanence.models.lamemo import LaMemo, LaMemoConfig, LaMemoMemory
from remanence.models.transformer import Transformer, TransformerConfig
from remanence.models.transformer_xl import TransformerXL, TransformerXLConfig, TransformerXLMemory

__all__ = [
    "Extras",
    "LaMemo",
    "LaMemoConfig",
    "LaMemoMemory",
    "LanguageModel",
    "ModelConfig",
    "ModelOutput",
    "Transformer",
    "TransformerConfig",
    "TransformerXL",
    "TransformerXLConfig",
    "TransformerXLMemory",
    "architectures",
    "build",
    "config_class",
]

_MODELS: dict[str, type[LanguageModel]] = {
    model.config_class.architecture: model for model in (Transformer, TransformerXL, LaMemo)
}


def architectures() -> tuple[str, ...]:
    """The names that `config_class` and recipes know."""
    return tuple(_MODELS)


def config_class(architecture: str) -> type[ModelConfig]:
    """The configuration dataclass of an architecture. Raises InputError for a name that is not known."""
    if architecture not in _MODELS:
        near = difflib.get_close_matches(architecture, _MODELS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(f"The architecture {architecture!r} is not one of {', '.join(_MODELS)}{hint}")
    return _MODELS[architecture].config_class


def build(config: ModelConfig, seed: int | None = None) -> LanguageModel:
    """An initialised model in training mode, in float32.

    Args:
        config: of any architecture.
        seed: of the initial values; drawn from torch's global generator when left out.
    """
    generator = torch.Generator()
    generator.manual_seed(int(torch.randint(2**63 - 1, ())) if seed is None else seed)
    with torch.random.fork_rng(devices=[]):
        # torch fills its layers from the global generator, which is the caller's, before we fill them again.
        model = _MODELS[config.architecture](config)
    model.initialize(generator)
    return model
