"""What the suite of all models runs on. A new architecture is one line of `VARIANTS`, and passes or does not.

An architecture that lives elsewhere joins by `REMANENCE_TEST_VARIANTS=package.module`, whose own `VARIANTS` are added.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from remanence.memory import Memory
from remanence.models import LanguageModel, ModelConfig, build, config_class
from remanence.models.relative import RelativeConfig

SIZES: dict[str, Any] = {
    "vocab_size": 19,
    "segment_length": 5,
    "num_layers": 3,
    "model_width": 10,
    "num_heads": 3,
    "head_width": 5,
    "feed_forward_width": 13,
}
LANES = 4


@dataclass(frozen=True)
class Variant:
    """One configuration, and what the suite must know of it that no configuration says."""

    config: ModelConfig
    idle: frozenset[str] = frozenset()
    """Parameters that no loss can reach, by the definition of the variant."""
    compiled: bool = False
    """Whether the tests that compile, which take seconds, run on it."""
    longest: int | None = None
    """The longest memory its weights can have; any length where None."""
    queue: bool = True
    """Its memory is a queue of slots: new ones push out the oldest, and those never written are not seen."""
    forgets_at_zero: bool = True
    """A memory of length 0 holds nothing at all."""

    @property
    def windowed(self) -> bool:
        """Whether every query may be shown the same number of keys."""
        return self.relative and self.queue

    @property
    def relative(self) -> bool:
        """Whether its attention knows distances, which may be clamped, held and measured."""
        return isinstance(self.config, RelativeConfig)

    @property
    def memory_length(self) -> int:
        return self.config.memory_length  # type: ignore[attr-defined]

    def model(self, dtype: torch.dtype = torch.float64, **changes: Any) -> LanguageModel:
        """A model in evaluation mode whose weights make every output depend on all that it may see.

        Equal models are built once; a test that alters weights takes a copy.
        """
        model = _model(dataclasses.replace(self.config, **changes), dtype)
        model.zero_grad()
        return model.eval()


TRAITS = frozenset(field.name for field in dataclasses.fields(Variant)) - {"config", "idle"}


def variant(architecture: str, *, idle: tuple[str, ...] = (), dropout: float = 0.0, **settings: Any) -> Variant:
    """A tiny configuration with all settings odd: M = 7 where the architecture has a memory, T = 5. Or a trait."""
    traits = {name: settings.pop(name) for name in TRAITS & settings.keys()}
    cls = config_class(architecture)
    if "memory_length" in {field.name for field in dataclasses.fields(cls)}:
        settings = {"memory_length": 7} | settings
    return Variant(cls(**SIZES | {"dropout": dropout} | settings), frozenset(idle), **traits)


CONTINUOUS: dict[str, Any] = {"queue": False, "forgets_at_zero": False}
"""What leaves the slots of an ∞-former is remembered elsewhere."""

VARIANTS: dict[str, Variant] = {
    "transformer": variant("transformer", compiled=True),
    "transformer-absolute": variant("transformer", position="absolute"),
    "transformer-pre-norm-clamp": variant("transformer", norm="pre", clamp_length=2),
    "transformer-xl": variant("transformer-xl", compiled=True),
    "transformer-xl-learned": variant("transformer-xl", position="learned"),
    "transformer-xl-learned-clamp": variant("transformer-xl", position="learned", clamp_length=4),
    "transformer-xl-zeros": variant("transformer-xl", memory_init="zeros"),
    "transformer-xl-pre-norm": variant("transformer-xl", norm="pre", memory_length=3),
    "transformer-xl-same-length": variant("transformer-xl", same_length=True),
    "transformer-xl-clamp-untied": variant("transformer-xl", clamp_length=6, share_position_biases=False),
    "transformer-xl-adaptive": variant(
        "transformer-xl", cutoffs=(7, 12), div_value=2, tie_projections=(False, True, True)
    ),
    "transformer-xl-adaptive-plain": variant("transformer-xl", cutoffs=(7, 12), embedding_width=6),
    "transformer-xl-no-memory": variant("transformer-xl", memory_length=0),
    "lamemo": variant("lamemo", compiled=True),
    "lamemo-signed": variant("lamemo", position="transformer-xl"),
    "lamemo-content": variant("lamemo", position="disentangled-content"),
    "lamemo-full": variant("lamemo", window="full", compiled=True),
    "lamemo-long": variant("lamemo", memory_length=17, segment_length=3),
    "lamemo-full-long": variant("lamemo", window="full", memory_length=11, segment_length=3),
    "lamemo-pre-norm-short": variant("lamemo", norm="pre", memory_length=3),
    "lamemo-clamp-same-length": variant("lamemo", clamp_length=4, same_length=True),
    "lamemo-untied-adaptive": variant("lamemo", share_position_biases=False, cutoffs=(7, 12), div_value=2),
    "lamemo-one-layer": variant("lamemo", num_layers=1, idle=("ahead_biases.position",)),
    "lamemo-no-memory": variant("lamemo", memory_length=0, idle=("ahead_biases.position",)),
    "infinite-former": variant("infinite-former", num_basis=12, num_resamples=9, compiled=True, **CONTINUOUS),
    "infinite-former-no-slots": variant("infinite-former", num_basis=12, memory_length=0, **CONTINUOUS),
    "infinite-former-short": variant("infinite-former", num_basis=10, memory_length=3, gate=False, **CONTINUOUS),
    "infinite-former-pre-norm-equal": variant(
        "infinite-former", num_basis=8, memory_length=5, norm="pre", sticky=False, **CONTINUOUS
    ),
    "infinite-former-published-sticky": variant(
        "infinite-former",
        num_basis=12,
        basis_widths=(0.2, 0.3, 0.5),
        sticky_offset="left",
        sticky_draw_evaluation="independent",
        sticky_bins=7,
        contraction=0.75,
        **CONTINUOUS,
    ),
    "rmt": variant("rmt", memory_tokens=3, longest=3, queue=False, compiled=True),
    "rmt-rewriting": variant("rmt", memory_tokens=2, longest=2, queue=False, write_tokens="memory"),
    "rmt-pre-norm-clamp": variant(
        "rmt", memory_tokens=1, longest=1, queue=False, norm="pre", clamp_length=4, share_position_biases=False
    ),
}

# It reads no segment longer than T, so T must be longer than all that the suite reads.
SLOTS: dict[str, Any] = {"segment_length": 11, "num_slots": 7, "longest": 7, "queue": False, "forgets_at_zero": False}
VARIANTS |= {
    "memformer": variant("memformer", **SLOTS, writer_heads=2, compiled=True),
    "memformer-bos": variant("memformer", **SLOTS, writer_heads=5, alignment="bos", compiled=True),
    "memformer-heads": variant("memformer", **SLOTS, writer_heads=5, normalization="head", encoder_layers=2),
    "memformer-root": variant("memformer", **SLOTS, writer_heads=1, memory_norm="none", radius_unit="sqrt-width"),
    "memformer-keeping": variant("memformer", **SLOTS, writer_heads=2, forgetting=False, temperature=1.0),
    "memformer-bos-untied": variant(
        "memformer", **SLOTS, writer_heads=2, alignment="bos", cutoffs=(7, 12), div_value=2, tie_embedding=False
    ),
}

# Its slots are two queues: what a longer first one keeps, a shorter one compresses. No C of 0 but where it is named.
QUEUES: dict[str, Any] = {"compressed_length": 3, "compression_rate": 5, "queue": False, "forgets_at_zero": False}
TWO = QUEUES | {"segment_length": 4, "compression_rate": 2, "memory_length": 3}
VARIANTS |= {
    "compressive": variant("compressive", **TWO, compiled=True),
    "compressive-mean": variant("compressive", **QUEUES, compression="mean"),
    "compressive-max": variant("compressive", **TWO, compression="max"),
    "compressive-dilated-autoencoding": variant(
        "compressive", **QUEUES, compression="dilated", auxiliary="autoencoding", compiled=True
    ),
    "compressive-most-used": variant("compressive", **TWO, compression="most-used", compiled=True),
    "compressive-centre-pre-norm": variant("compressive", **TWO, compressed_position="centre", norm="pre"),
    "compressive-same-length-clamp": variant("compressive", **TWO, same_length=True, clamp_length=6),
    "compressive-backpropagated": variant("compressive", **TWO, auxiliary="none", memory_gradient=True),
    "compressive-rate-one": variant("compressive", **(QUEUES | {"compression_rate": 1}), compression="mean"),
    "compressive-nothing-compressed": variant(
        "compressive", compressed_length=0, compression_rate=5, compression="mean", queue=True
    ),
}

for _module in filter(None, os.environ.get("REMANENCE_TEST_VARIANTS", "").split(",")):
    VARIANTS |= importlib.import_module(_module).VARIANTS


@cache
def _model(config: ModelConfig, dtype: torch.dtype) -> LanguageModel:
    return enliven(build(config, seed=3), seed=3).to(dtype)


def enliven(model: LanguageModel, seed: int) -> LanguageModel:
    """Weights large enough that attention is sharp; the initial ones hardly tell one key from another."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.data = 1 + 0.2 * values
        elif parameter.dim() == 1 or "biases" in name or "table" in name:
            parameter.data = 0.5 * values
        else:
            parameter.data = 1.5 * values / parameter.shape[-1] ** 0.5
    return model


def text(model: LanguageModel, *lengths: int, lanes: int = LANES, seed: int = 1) -> list[Tensor]:
    """Segments of random tokens, each (lanes, length); by default three of the trained length."""
    generator = torch.Generator().manual_seed(seed)
    lengths = lengths or (model.config.segment_length,) * 3
    return [torch.randint(model.config.vocab_size, (lanes, length), generator=generator) for length in lengths]


def read(model: LanguageModel, segments: list[Tensor], memory: Any = None) -> tuple[Tensor, Any]:
    """Logits of all segments in a row, (B, T1 + T2 + .., V), and the memory after them."""
    memory = model.init_memory(segments[0].shape[0]) if memory is None else memory
    logits = []
    for tokens in segments:
        hidden, memory, _ = model(tokens, memory)
        logits.append(model.head.logits(hidden))
    return torch.cat(logits, dim=1), memory


def histories(model: LanguageModel) -> Any:
    """A memory whose four lanes have lived through different things: three segments, two, one, and none.

    It is read in evaluation mode, whatever mode the model is in: others who ask for it get the same one.
    """
    if model not in _histories:
        training = model.training
        _histories[model] = lived(model.eval())
        model.train(training)
    return _histories[model]


def lived(model: LanguageModel) -> Any:
    """The same memory read anew, in the mode that the model is in."""
    memory = model.init_memory(LANES)
    with torch.no_grad():
        for number, tokens in enumerate(text(model, 4, 2, 3, seed=7)):
            memory = model(tokens, memory, torch.arange(LANES) == number).memory
    return memory.reset(torch.arange(LANES) == 3)


_histories: WeakKeyDictionary[LanguageModel, Any] = WeakKeyDictionary()


def tensors(memory: Memory) -> dict[str, Tensor]:
    """What a save of the memory would write."""
    return memory.state()[0]


def gap(one: Any, other: Any) -> float:
    """Largest absolute difference of two tensors, or of all that two memories hold."""
    if isinstance(one, Memory):
        ours, theirs = tensors(one), tensors(other)
        assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
        return max((gap(ours[name], theirs[name]) for name in ours), default=0.0)
    assert one.shape == other.shape, (one.shape, other.shape)
    assert one.dtype == other.dtype, (one.dtype, other.dtype)
    return (one.double() - other.double()).abs().max().item() if one.numel() else 0.0


def equal(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, Memory):
        ours, theirs = tensors(one), tensors(other)
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return one.dtype == other.dtype and torch.equal(one, other)


def cuts(length: int) -> Iterator[list[int]]:
    """Ways of reading a segment in pieces: token by token, the first alone, the last alone, thirds."""
    yield [1] * length
    if length > 2:
        yield [1, length - 1]
        yield [length - 1, 1]
        yield [2, 1, *([length - 3] if length > 3 else [])]
