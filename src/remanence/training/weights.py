"""The weights of a model as named tensors, each tensor once however many names it has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from remanence.errors import InputError


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
    for name in [*wanted, *tensors]:
        if name not in tensors:
            trouble = f"{name} is missing"
        elif name not in wanted:
            trouble = f"{name} is not a weight of this model"
        elif tensors[name].shape != wanted[name].shape:
            trouble = f"{name} has the shape {tuple(tensors[name].shape)} instead of {tuple(wanted[name].shape)}"
        else:
            continue
        raise InputError(f"The weights in {source} are of another model ({trouble}); use the recipe they belong to.")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])


def fingerprint(config: Mapping[str, Any], sha256: str) -> str:
    """What identifies a trained model: its configuration and the hash of the file that holds its weights."""
    return hashlib.sha256(json.dumps([config, sha256], sort_keys=True).encode()).hexdigest()[:32]


def count_parameters(model: nn.Module) -> int:
    """How many numbers are trained; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
