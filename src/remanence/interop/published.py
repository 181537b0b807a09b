"""Weights of the published implementations of LaMemo, Transformer-XL and the ∞-former.

`from_published` turns a mapping of official names to arrays into a model of this library. Every official tensor is a
parameter here, or some rows of one; the table is `published_layout`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from remanence.errors import InputError
from remanence.models import InfiniteFormerConfig, LaMemoConfig, LanguageModel, TransformerXLConfig, build, outline
from remanence.models.base import ModelConfig

_SIZES = {
    "vocab_size": "vocab_size",
    "n_layer": "num_layers",
    "d_model": "model_width",
    "n_head": "num_heads",
    "d_head": "head_width",
    "d_inner": "feed_forward_width",
    "mem_len": "memory_length",
}
_ATTENTION_TYPES = {
    0: None,
    1: None,
    3: "disentangled",
    31: "transformer-xl",
    32: "disentangled-content",
    33: "disentangled",
}
_BUFFERS = ("train_logits_constant", "eval_logits_constant", "inv_freq")
_UNUSED = ("long_term_attention.proj_query.weight", "dec_attn.qkv_net_.weight")
"""Weights of the published ∞-former that it never uses."""
_LONG_TERM = {
    "n_basis": "num_basis",
    "widths": "basis_widths",
    "ridge": "ridge",
    "tau": "contraction",
    "n_resample": "num_resamples",
    "variance_floor": "variance_floor",
    "sigma_0": "prior_width",
    "kl_weight": "kl_weight",
    "kl_mean": "kl_mean",
    "reset_after_tokens": "reset_after_tokens",
    "sticky": "sticky",
    "sticky_bins": "sticky_bins",
    "sticky_offset": "sticky_offset",
}


@dataclass(frozen=True)
class Place:
    """Where an official tensor lies: rows of a parameter (all without `rows`), in reverse order when `flipped`."""

    parameter: str
    rows: slice | int | None = None
    flipped: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """The official tensor, taken out of the parameter (or out of its gradient)."""
        part = tensor if self.rows is None else tensor[self.rows]
        return part.flip(0) if self.flipped else part


def from_published(
    kind: Literal["lamemo", "transformer-xl", "infinite-former"], weights: Mapping[str, Any], config: Mapping[str, Any]
) -> LanguageModel:
    """A model with published weights, in evaluation mode and in the dtype of the weights.

    Args:
        kind: which published implementation the names come from.
        weights: official name to array (or tensor), as `read_weights` gives them; a `module.` prefix, tied
            duplicates and buffers are accepted.
        config: the official settings: vocab_size, n_layer, n_head, d_model, d_head, d_inner, mem_len, and where they
            differ from the defaults clamp_len, same_length, pre_norm, layer_norm_eps, attn_type (or position and
            window), interpolation_eps, d_embed, cutoffs, div_val, tie_projs, memory_init, segment_lengths.
            For the ∞-former (its sorting model): vocab_size, n_layer, n_head, d_model, d_inner, stm_len, block_len,
            n_basis, and where they differ widths, tau, ridge, n_resample, variance_floor, sigma_0, kl_weight, kl_mean,
            reset_after_tokens, sticky, sticky_bins, sticky_offset.

    Raises InputError that names each entry which is missing, left over or misshapen.
    """
    named = {name.removeprefix("module."): _tensor(name, value) for name, value in weights.items()}
    settings = _config(kind, config, named)
    # Shapes alone, until the weights are known to fit: a configuration may speak of more than any machine has.
    model = outline(settings, len(named))
    layout = published_layout(model, kind)
    dtypes = {tensor.dtype for name, tensor in named.items() if name in layout}
    if len(dtypes) > 1:
        raise InputError(f"The weights have several types ({', '.join(map(str, dtypes))}); give all of them in one.")
    dtype = dtypes.pop() if dtypes else torch.float32
    if not dtype.is_floating_point:
        raise InputError(f"The weights are of type {dtype}, but they must be floating-point numbers.")
    parameters = dict(model.named_parameters())

    missing = [name for name in layout if name not in named]
    ignored = (*_BUFFERS, *_UNUSED) if kind == "infinite-former" else _BUFFERS
    extra = [name for name in named if name not in layout and not name.endswith(ignored)]
    wrong = [
        f"{name} is {tuple(named[name].shape)} instead of {tuple(place.of(parameters[place.parameter]).shape)}"
        for name, place in layout.items()
        if name in named and named[name].shape != place.of(parameters[place.parameter]).shape
    ]
    if missing or extra or wrong:
        told = [
            f"{len(what)} {label} ({'; '.join(what[:8])}{'; ...' if len(what) > 8 else ''})"
            for what, label in ((missing, "missing"), (extra, "unknown"), (wrong, "misshapen"))
            if what
        ]
        raise InputError(f"The weights do not fit the {kind} configuration: {', '.join(told)}; give the matching pair.")
    _check_ties(layout, named)
    model = build(settings, seed=0).to(dtype)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, place in layout.items():
            place_of = named[name].flip(0) if place.flipped else named[name]
            target = parameters[place.parameter]
            (target if place.rows is None else target[place.rows]).copy_(place_of)
    return model.eval()


def published_layout(model: LanguageModel, kind: str) -> dict[str, Place]:
    """Where each official tensor lies in a model of this library. Tied tensors appear under all their names."""
    return dict(_layout(model, kind))


def _layout(model: LanguageModel, kind: str) -> Iterator[tuple[str, Place]]:
    config: Any = model.config
    if kind == "infinite-former":
        yield from _infinite_former_layout(config)
        return
    tables, edges = len(model.embedding.tables), model.embedding.edges
    for number in range(tables):
        yield f"word_emb.emb_layers.{number}.weight", Place(f"embedding.tables.{number}")
        yield f"crit.out_layers.{number}.weight", Place(f"embedding.tables.{number}")
        rows = None if tables == 1 else slice(edges[number], edges[number + 1])
        yield f"crit.out_layers.{number}.bias", Place("head.bias", rows)
    projections = len(model.embedding.projections)
    for number in range(projections):
        yield f"word_emb.emb_projs.{number}", Place(f"embedding.projections.{number}")
    if projections:
        for number in range(len(edges) - 1):
            own = str(number) in model.head.projections
            tied = f"embedding.projections.{min(number, projections - 1)}"
            yield f"crit.out_projs.{number}", Place(f"head.projections.{number}" if own else tied)
    if config.cutoffs:
        # The published code counts tail slots from the end.
        yield "crit.cluster_weight", Place("head.cluster_weight", flipped=True)
        yield "crit.cluster_bias", Place("head.cluster_bias", flipped=True)

    yield "r_w_bias", Place("biases.content")
    if config.position == "learned":
        yield "r_emb", Place("learned.table")
        yield "r_bias", Place("learned.distance_bias")
    else:
        yield "r_r_bias", Place("biases.position")
    if kind == "lamemo" and isinstance(config, LaMemoConfig):
        if config.position != "transformer-xl":
            yield "r_r_bias_future", Place("ahead_biases.position")
        if config.position == "disentangled-content":
            yield "r_w_bias_future", Place("ahead_biases.content")
    yield from _layers_layout(config)


def _infinite_former_layout(config: InfiniteFormerConfig) -> Iterator[tuple[str, Place]]:
    """The sorting model: an output of its own, and a long-term memory inside the attention of every layer."""
    yield "word_emb.emb_layers.0.weight", Place("embedding.tables.0")
    yield "proj_output.weight", Place("head.tables.0")
    yield "r_w_bias", Place("biases.content")
    yield "r_r_bias", Place("biases.position")
    yield from _layers_layout(config)
    for number in range(config.num_layers):
        theirs, ours = f"layers.{number}.dec_attn.long_term_attention", f"long_term.{number}"
        for name, own in (("proj_key", "key"), ("proj_value", "value"), ("attn_out", "output")):
            yield f"{theirs}.{name}.weight", Place(f"{ours}.{own}.weight")
        yield f"{theirs}.mu.weight", Place(f"{ours}.aims", slice(0, 1))
        yield f"{theirs}.sigma.weight", Place(f"{ours}.aims", slice(1, 2))
        for part in ("weight", "bias") if config.gate else ():
            yield f"{theirs}.mask_net.{part}", Place(f"{ours}.gate.{part}")


def _layers_layout(config: Any) -> Iterator[tuple[str, Place]]:
    inner = config.num_heads * config.head_width
    for number in range(config.num_layers):
        theirs, ours = f"layers.{number}", f"layers.{number}"
        joint = f"{ours}.queries_keys_values.weight"
        if isinstance(config, LaMemoConfig):
            yield f"{theirs}.dec_attn.q_net.weight", Place(joint, slice(0, inner))
            yield f"{theirs}.dec_attn.kv_net.weight", Place(joint, slice(inner, 3 * inner))
        else:
            yield f"{theirs}.dec_attn.qkv_net.weight", Place(joint)
        if config.position != "learned":
            yield f"{theirs}.dec_attn.r_net.weight", Place(f"{ours}.positions.weight")
        yield f"{theirs}.dec_attn.o_net.weight", Place(f"{ours}.output.weight")
        for part in ("weight", "bias"):
            yield f"{theirs}.dec_attn.layer_norm.{part}", Place(f"{ours}.norm_attention.{part}")
            yield f"{theirs}.pos_ff.CoreNet.0.{part}", Place(f"{ours}.feed_forward_in.{part}")
            yield f"{theirs}.pos_ff.CoreNet.3.{part}", Place(f"{ours}.feed_forward_out.{part}")
            yield f"{theirs}.pos_ff.layer_norm.{part}", Place(f"{ours}.norm_feed_forward.{part}")


def _config(kind: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ModelConfig:
    try:
        return _read_config(kind, config, weights)
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"The published configuration cannot be read ({error}); give its settings in the types that they had."
        ) from None


def _read_config(kind: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ModelConfig:
    if kind == "infinite-former":
        return _read_infinite_former(config, weights)
    if kind not in ("lamemo", "transformer-xl"):
        raise InputError(f"The kind {kind!r} is not known; give 'lamemo', 'transformer-xl' or 'infinite-former'.")
    absent = [name for name in _SIZES if name not in config]
    if absent:
        raise InputError(f"The published configuration lacks {', '.join(absent)}; give them all.")
    settings: dict[str, Any] = {ours: _integer(theirs, config[theirs]) for theirs, ours in _SIZES.items()}
    clamp = _integer("clamp_len", config.get("clamp_len", -1))
    settings |= {
        "segment_length": max(_integers("segment_lengths", config.get("segment_lengths")), default=1),
        "dropout": float(config.get("dropout", 0.0)),
        "attention_dropout": float(config.get("dropatt", 0.0)),
        "norm": "pre" if config.get("pre_norm", config.get("pre_lnorm", False)) else "post",
        "clamp_length": clamp if clamp > 0 else None,
        "same_length": bool(config.get("same_length", False)),
        "layer_norm_epsilon": float(config.get("layer_norm_eps", 1e-5)),
        "embedding_width": None if config.get("d_embed") is None else _integer("d_embed", config["d_embed"]),
        "cutoffs": _integers("cutoffs", config.get("cutoffs")),
        "div_value": _integer("div_val", config.get("div_val", 1)),
        "tie_projections": tuple(bool(tie) for tie in config.get("tie_projs") or ()),
        "share_position_biases": weights["r_w_bias"].dim() == 2 if "r_w_bias" in weights else True,
    }
    attention = config.get("attn_type", 0 if kind == "transformer-xl" else None)
    if attention is not None and attention not in _ATTENTION_TYPES:
        raise InputError(f"attn_type {attention!r} is not known; it must be one of {sorted(_ATTENTION_TYPES)}.")
    recurrent = attention in (0, 1) or (attention is None and config.get("model") == "TransformerXL")
    if recurrent:
        if attention == 1 or config.get("position") == "learned":
            settings["position"] = "learned"
            if "r_emb" in weights and weights["r_emb"].dim() == 4:
                # The table's size is what training fixed: its segment and memory together.
                settings["segment_length"] = max(weights["r_emb"].shape[1] - settings["memory_length"], 1)
        settings["memory_init"] = config.get("memory_init", "empty")
        return TransformerXLConfig(**settings)
    settings["position"] = config.get("position") or _ATTENTION_TYPES[attention or 3]
    settings["window"] = config.get("window") or ("full" if attention == 33 else "right")
    epsilon = config.get("interpolation_eps")
    settings["interpolation_epsilon"] = 1e-6 if epsilon is None else float(epsilon)
    return LaMemoConfig(**settings)


def _read_infinite_former(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> InfiniteFormerConfig:
    sizes = {name: ours for name, ours in _SIZES.items() if name not in ("d_head", "mem_len")}
    sizes |= {"stm_len": "memory_length", "block_len": "segment_length"}
    absent = [name for name in (*sizes, "n_basis") if name not in config]
    if absent:
        raise InputError(f"The published configuration lacks {', '.join(absent)}; give them all.")
    settings: dict[str, Any] = {ours: _integer(theirs, config[theirs]) for theirs, ours in sizes.items()}
    heads = settings["num_heads"]
    settings["head_width"] = settings["model_width"] // heads if heads > 0 else 0
    settings |= {"tie_embedding": False, "sticky": False, "dropout": float(config.get("dropout", 0.0))}
    settings["gate"] = any(name.endswith("mask_net.weight") for name in weights)
    settings |= {ours: config[theirs] for theirs, ours in _LONG_TERM.items() if theirs in config}
    if settings.get("basis_widths") is not None:
        settings["basis_widths"] = tuple(float(width) for width in settings["basis_widths"])
    return InfiniteFormerConfig(**settings)


def _check_ties(layout: Mapping[str, Place], weights: Mapping[str, Tensor]) -> None:
    """Two official names of one parameter must hold the same values."""
    first: dict[str, str] = {}
    for name, place in layout.items():
        if place.rows is None:
            other = first.setdefault(place.parameter, name)
            if other != name and not torch.equal(weights[name], weights[other]):
                raise InputError(
                    f"{name} and {other} are tied but hold different values; give weights in which they are equal, or "
                    "a configuration that does not tie them."
                )


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except TypeError:
        raise InputError(f"The weight {name} is not an array of numbers; give arrays or tensors.") from None


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"The published setting {name} is {value!r}, but it must be a whole number.")
    return value


def _integers(name: str, values: Any) -> tuple[int, ...]:
    if values is not None and not isinstance(values, list | tuple):
        raise InputError(f"The published setting {name} is {values!r}, but it must be a list of whole numbers.")
    return tuple(_integer(name, value) for value in values or ())
