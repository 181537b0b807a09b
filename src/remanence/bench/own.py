"""The library's models, sized for a bench."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from remanence.bench.settings import BASIS, MEMORY_TOKENS, SLOTS, Settings
from remanence.errors import InputError
from remanence.models import LanguageModel, build, config_class


def configuration(architecture: str, settings: Settings, memory_length: int, **changes: Any) -> Any:
    """A configuration of any architecture in the shape of a bench; what it calls its memory decides what it is given.

    Raises InputError for an architecture that needs a setting no bench knows.
    """
    kind = config_class(architecture)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    segment = changes.get("segment_length", settings.segment_length)
    sizes = {
        **settings.shape.model,
        "segment_length": segment,
        "dropout": settings.dropout,
        "memory_length": memory_length,
        "num_slots": max(1, min(SLOTS, memory_length)),
        "memory_tokens": max(1, min(MEMORY_TOKENS, memory_length)),
        "num_basis": max(4, min(BASIS, segment // 4 * 2)),
        "compression_rate": next(rate for rate in (2, 3, 5, 7, 1) if segment % rate == 0),
    }
    chosen = {name: value for name, value in (sizes | changes).items() if name in fields}
    missing = [
        name
        for name, field in fields.items()
        if name not in chosen and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(
            f"A bench does not know what {missing[0]} of a {architecture} should be; leave {architecture} out of "
            "--models, or give the setting a default."
        )
    return kind(**chosen)


def remembers(architecture: str) -> bool:
    """Whether the length of the memory is the bench's to choose."""
    return "memory_length" in {field.name for field in dataclasses.fields(config_class(architecture)) if field.init}


def make(architecture: str, settings: Settings, memory_length: int, **changes: Any) -> LanguageModel:
    """A model in training mode on the device of the bench."""
    return build(configuration(architecture, settings, memory_length, **changes), seed=settings.seed).to(
        settings.device
    )


def state_bytes(model: LanguageModel) -> int:
    """What a lane's memory takes."""
    return model.init_memory(lanes=1).nbytes


def precision_type(settings: Settings) -> torch.dtype:
    return getattr(torch, settings.dtype)
