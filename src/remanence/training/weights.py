"""The weights of a model as named tensors, each tensor once however many names it has."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from remanence.errors import InputError
from remanence.models import outline
from remanence.models.base import ModelConfig
from remanence.training.shares import own, rows_of, shapes_of


def weights(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps: parameters and persistent buffers; a tied tensor stands under its first name."""
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            named[name] = tensor
            seen.add(id(tensor))
    return named


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy `tensors` into the model. Raises InputError naming what is missing, unknown or of another shape."""
    wanted = weights(model)
    check_shapes(wanted, shapes_of(tensors), source)
    with torch.no_grad():
        for name, tensor in wanted.items():
            own(tensor).copy_(rows_of(tensors[name], tensor))


def check_shapes(wanted: Mapping[str, Tensor], given: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raise InputError, naming one tensor, unless the shapes `given` by a file are those of a model's weights."""
    for name in [*wanted, *given]:
        if name not in given:
            trouble = f"{name} is missing"
        elif name not in wanted:
            trouble = f"{name} is not a weight of this model"
        elif given[name] != wanted[name].shape:
            trouble = f"{name} has the shape {given[name]} instead of {tuple(wanted[name].shape)}"
        else:
            continue
        raise InputError(f"The weights in {source} are of another model ({trouble}); use the recipe they belong to.")


def check_size(config: ModelConfig, given: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raise InputError, before anything is allocated, where a model is not the one that a file has the weights of, or
    where the memory of a single lane would not fit into this machine.
    """
    model = outline(config, len(given))
    check_shapes(weights(model), given, source)
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 40
    try:
        with torch.device("meta"):
            needed = model.init_memory(lanes=1).nbytes
    except (RuntimeError, OverflowError, TypeError):
        needed = sys.maxsize
    if needed > room:
        raise InputError(
            f"The recipe of {source} asks for a memory of {needed:,} bytes a lane, and this machine has {room:,}; give "
            "the run a shorter memory."
        )


def fingerprint(config: Mapping[str, Any], sha256: str) -> str:
    """What identifies a trained model: its configuration and the hash of the file that holds its weights."""
    return hashlib.sha256(json.dumps([config, sha256], sort_keys=True).encode()).hexdigest()[:32]


def count_parameters(model: nn.Module) -> int:
    """How many numbers are trained; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
