"""The architectures, one file each, all keeping the contract of `base.LanguageModel`."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points

import torch

from remanence.errors import InputError
from remanence.models.base import Extras, LanguageModel, ModelConfig, ModelOutput
from remanence.models.compressive import CompressiveConfig, CompressiveMemory, CompressiveTransformer
from remanence.models.infinite_former import InfiniteFormer, InfiniteFormerConfig, InfiniteFormerMemory
from remanence.models.lamemo import LaMemo, LaMemoConfig, LaMemoMemory
from remanence.models.memformer import Memformer, MemformerConfig, MemformerMemory
from remanence.models.rmt import RecurrentMemoryTransformer, RMTConfig, RMTMemory
from remanence.models.transformer import Transformer, TransformerConfig
from remanence.models.transformer_xl import TransformerXL, TransformerXLConfig, TransformerXLMemory

__all__ = [
    "CompressiveConfig",
    "CompressiveMemory",
    "CompressiveTransformer",
    "Extras",
    "InfiniteFormer",
    "InfiniteFormerConfig",
    "InfiniteFormerMemory",
    "LaMemo",
    "LaMemoConfig",
    "LaMemoMemory",
    "LanguageModel",
    "Memformer",
    "MemformerConfig",
    "MemformerMemory",
    "ModelConfig",
    "ModelOutput",
    "RMTConfig",
    "RMTMemory",
    "RecurrentMemoryTransformer",
    "Transformer",
    "TransformerConfig",
    "TransformerXL",
    "TransformerXLConfig",
    "TransformerXLMemory",
    "architectures",
    "build",
    "config_class",
]

OUTSIDE = "remanence.models"
"""The entry points by which a package adds an architecture: its name, and its subclass of LanguageModel."""

_MODELS: dict[str, type[LanguageModel]] = {
    model.config_class.architecture: model
    for model in (
        Transformer,
        TransformerXL,
        LaMemo,
        InfiniteFormer,
        CompressiveTransformer,
        Memformer,
        RecurrentMemoryTransformer,
    )
}


def architectures() -> tuple[str, ...]:
    """The names that `config_class` and recipes know, those of installed packages last."""
    return (*_MODELS, *sorted(set(_outside()) - set(_MODELS)))


def config_class(architecture: str) -> type[ModelConfig]:
    """The configuration dataclass of an architecture. Raises InputError for a name that is not known."""
    return _model_class(architecture).config_class


@cache
def _outside() -> dict[str, EntryPoint]:
    """The architectures that installed packages add, not imported yet."""
    return {entry.name: entry for entry in entry_points(group=OUTSIDE)}


@cache
def _model_class(architecture: str) -> type[LanguageModel]:
    if architecture in _MODELS:
        return _MODELS[architecture]
    if architecture not in _outside():
        near = difflib.get_close_matches(architecture, architectures(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(f"The architecture {architecture!r} is not one of {', '.join(architectures())}{hint}")
    entry = _outside()[architecture]
    try:
        model = entry.load()
    except Exception as error:
        raise InputError(
            f"The architecture {architecture!r} is promised by {entry.value}, which cannot be imported "
            f"({type(error).__name__}: {error}); mend or remove the package that adds it."
        ) from error
    named = getattr(getattr(model, "config_class", None), "architecture", None)
    if not (isinstance(model, type) and issubclass(model, LanguageModel) and named == architecture):
        raise InputError(
            f"The architecture {architecture!r} is promised by {entry.value}, which must be a LanguageModel whose "
            f"configuration has that name, but is {model!r}; mend or remove the package that adds it."
        )
    return model


def outline(config: ModelConfig, tensors: int) -> LanguageModel:
    """A model of shapes alone, which takes no memory for its weights: what a file must hold to be of this model.

    `tensors` is how many the file has. Raises InputError, before anything is made, where the configuration needs more.
    """
    # Every layer and every bin of the vocabulary has a tensor of its own, in all architectures.
    parts = max(config.num_layers, len(config.cutoffs) + 1)
    if parts > tensors:
        raise InputError(
            f"The configuration has {parts:,} layers or parts of the vocabulary, and the file of its weights holds "
            f"{tensors:,} tensors, so that some are missing; use the two that belong together."
        )
    try:
        with torch.device("meta"):
            return _model_class(config.architecture)(config)
    except (RuntimeError, OverflowError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"No model has the sizes of the configuration ({reason}); correct them.") from None


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
        model = _model_class(config.architecture)(config)
    model.initialize(generator)
    return model
