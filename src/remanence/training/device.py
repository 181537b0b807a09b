"""Where to compute."""

from __future__ import annotations

import torch

from remanence.errors import InputError


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is a CUDA GPU when there is one. Raises InputError when it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        usable = "cpu" + (", cuda" if torch.cuda.is_available() else "")
        raise InputError(
            f'The device "{name}" was asked for, which this machine cannot use; choose auto, {usable}.'
        ) from None
    return device
