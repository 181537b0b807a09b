"""Configurations of every architecture at one small size, for the demo and for anybody who wants to look at them all.

What architectures share is given; what only one of them has follows from that. An architecture from another package
says so by a class method of its configuration, `small(shared)`, which is given the shared settings and returns those
that it adds or changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from remanence.errors import InputError
from remanence.models import build, config_class

Settings = dict[str, Any]


def configure(architecture: str, **shared: Any) -> Any:
    """The configuration of an architecture; shared settings that it does not have are left out.

    Raises InputError where it needs a setting of its own and does not say what it is at a small size.
    """
    kind = config_class(architecture)
    own: Callable[[Mapping[str, Any]], Settings] = getattr(kind, "small", None) or _OWN.get(architecture, _nothing)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    settings = {name: value for name, value in shared.items() if name in fields} | own(shared)
    for name, field in fields.items():
        if name not in settings and dataclasses.MISSING is field.default is field.default_factory:
            raise InputError(
                f"The architecture {architecture} needs model.{name}, and its package does not say what that is at a "
                f"small size; give its configuration a class method small(shared) that does, or train it by a recipe."
            )
    return kind(**settings)


def lanes_and_horizon(model: Any, lanes: int) -> dict[str, int]:
    """How many lanes are read for an update, and segments of each; as many tokens for every model.

    Where gradients pass through the memory, two segments in a row on half the lanes: through one, nothing would teach
    the model what to write.
    """
    with torch.device("meta"):
        carries = build(model, seed=0).memory_carries_gradient
    return {"lanes": lanes // 2, "horizon": 2} if carries and lanes % 2 == 0 else {"lanes": lanes, "horizon": 1}


def _nothing(shared: Mapping[str, Any]) -> Settings:
    return {}


def _compressive(shared: Mapping[str, Any]) -> Settings:
    """Half as many compressed slots as raw ones, each standing for up to four tokens."""
    rate = next(rate for rate in (4, 3, 2, 1) if shared["segment_length"] % rate == 0)
    return {"compression_rate": rate, "compressed_length": shared["memory_length"] // 2}


def _infinite_former(shared: Mapping[str, Any]) -> Settings:
    """Half as many basis functions as the short-term memory has slots; an even number, for two widths."""
    return {"num_basis": max(2, shared["memory_length"] // 4 * 2)}


def _memformer(shared: Mapping[str, Any]) -> Settings:
    """Half as many slots as others have positions; encoder and decoder have as many layers as others, together."""
    return {"num_slots": max(1, shared["memory_length"] // 2), "num_layers": max(2, shared["num_layers"])}


def _rmt(shared: Mapping[str, Any]) -> Settings:
    """An eighth of what others remember, which is also read and written in every segment."""
    return {"memory_tokens": max(1, shared["memory_length"] // 8)}


_OWN: dict[str, Callable[[Mapping[str, Any]], Settings]] = {
    "compressive": _compressive,
    "infinite-former": _infinite_former,
    "memformer": _memformer,
    "rmt": _rmt,
}
