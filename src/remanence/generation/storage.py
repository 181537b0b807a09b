"""A session as one memory file: the memory as tensors, the rest in its metadata, one checksum over both."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from remanence.config.tables import read_table
from remanence.errors import InputError
from remanence.generation.sampling import Sampling
from remanence.memory import Memory, load_memory

FORMAT = "remanence-session-1"
MOST_SAMPLES = 1 << 14
"""Texts drawn side by side, in a file; each will have a lane of memory."""


def save(path: str | Path, memory: Memory, state: dict[str, Any]) -> None:
    """Write memory and state, whole or not at all."""
    memory.save(path, metadata={"format": FORMAT, "session": state})


def load(path: str | Path) -> tuple[Memory, dict[str, Any]]:
    """What `save` wrote. Raises InputError when the file is missing, altered, cut short or no session."""
    memory, metadata = load_memory(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} holds a memory but no session; give a file that generation wrote with --memory-out.")
    state = metadata.get("session")
    if not isinstance(state, dict):
        raise InputError(f"{path} lacks what a session consists of; generate the memory again.")
    return memory, state


@contextmanager
def refusing(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong with values that are missing or of another type into an error about the file."""
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, AssertionError) as error:
        raise InputError(
            f"{path} is not a session this version can read ({type(error).__name__}: {error}); "
            "generate the memory again."
        ) from None


def check_model(path: str | Path, saved: dict[str, Any], present: dict[str, Any]) -> None:
    """Raise InputError unless a saved session belongs to the present model."""
    if saved["architecture"] != present["architecture"]:
        raise InputError(
            f"{path} is the memory of a {saved['architecture']} model, and this one is {present['architecture']}; "
            "give the run that the memory was made with."
        )
    if saved["fingerprint"] != present["fingerprint"]:
        raise InputError(
            f"{path} is the memory of another model (its weights, configuration or tokenizer differ from this one's); "
            "give the run and the checkpoint that the memory was made with."
        )
    if saved["weights"] != present["weights"]:
        raise InputError(
            f"{path} was made with weights in {saved['weights'].removeprefix('torch.')}, and these are in "
            f"{present['weights'].removeprefix('torch.')}; load the model in the same precision."
        )


def number(value: Any, least: int = 0, most: int = 1 << 62) -> int:
    """A whole number that a session says. Raises TypeError or ValueError for anything else."""
    if type(value) is not int:
        raise TypeError(f"a {type(value).__name__} where a whole number belongs")
    if not least <= value <= most:
        raise ValueError(f"{value} where {least} to {most} belong")
    return value


def sampling(value: Any) -> Sampling:
    """How a session chose tokens."""
    return read_table(Sampling, value, "sampling")


def texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError("something else where a list of texts belongs")
    return value


def check_counts(found: dict[str, tuple[int, int]]) -> None:
    """Raise ValueError where a session holds (given, wanted) different numbers of something."""
    for what, (given, wanted) in found.items():
        if given != wanted:
            raise ValueError(f"{given} {what} where {wanted} belong")


def fingerprint_of(model: nn.Module) -> str:
    """SHA-256 of a model's configuration and weights, for a model that comes without a run."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def generator_to_text(generator: torch.Generator) -> str:
    return base64.b64encode(generator.get_state().numpy().tobytes()).decode("ascii")


def generator_from_text(text: str) -> torch.Generator:
    generator = torch.Generator()
    state = bytearray(base64.b64decode(text, validate=True))
    generator.set_state(torch.frombuffer(state, dtype=torch.uint8))
    return generator


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
