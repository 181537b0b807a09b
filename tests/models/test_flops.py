"""The formulas of every model against the profiler's count of what really runs, forward and in training.

What runs is never less than the formula says, and more by what is known to be wasted: a spare column of position scores
that the shift reads, look-ahead positions in whole blocks, the logits that the loss computes again for its gradient,
projections that the auxiliary loss of a compressive Transformer makes again.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.models.variants import Variant
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from remanence.models import LanguageModel, ModelConfig, build
from remanence.models.compressive import CompressiveConfig
from remanence.models.flops import Flops

LANES = 3
FILLING = 8
"""Segments that fill every memory here."""
TOLERANCE = 0.002
LARGE: dict[str, Any] = {
    "vocab_size": 61,
    "model_width": 48,
    "num_heads": 4,
    "head_width": 12,
    "feed_forward_width": 96,
    "writer_heads": None,
}
FOURFOLD = ("segment_length", "memory_length", "compressed_length", "num_slots", "memory_tokens")


@pytest.fixture(params=["small", "large"])
def config(request: pytest.FixtureRequest, variant: Variant) -> ModelConfig:
    """Of a variant, as it is and several times as large."""
    if request.param == "small":
        return variant.config
    fields = {field.name for field in dataclasses.fields(variant.config) if field.init}
    changes = {name: 4 * (getattr(variant.config, name) or 0) for name in FOURFOLD if name in fields}
    return dataclasses.replace(
        variant.config, **changes, **{name: value for name, value in LARGE.items() if name in fields}
    )


def count(model: LanguageModel, tokens: Tensor, targets: Tensor, *, training: bool) -> int:
    """What the profiler sees of one segment after a full memory."""
    model.train(training)
    memory = model.init_memory(LANES)
    with torch.no_grad():
        for _ in range(FILLING):
            memory = model(tokens, memory).memory
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        hidden, _, extras = model(tokens, memory.detach())
        loss = model.head.loss(hidden, targets).mean()
        if extras.auxiliary_loss is not None:
            loss = loss + extras.auxiliary_loss.mean()
        if training:
            loss.backward()
    return counter.get_total_flops()


def tails(model: LanguageModel, targets: Tensor) -> list[int]:
    """How many targets lie in each tail of an adaptive softmax."""
    bins = list(pairwise(model.head.edges))
    return [int(((targets >= low) & (targets < high)).sum()) for low, high in bins[1:]]


def wasted(model: Any, length: int, scored: list[int], *, training: bool) -> int:
    """The most that is known to be computed beyond what the formula asks for."""
    config = model.config
    flops, times = Flops(), 3 if training else 1
    inner, memory = config.num_heads * config.head_width, config.memory_length
    if config.architecture == "memformer":
        times = 0
    # The shift of position scores reads one column past the table.
    tokens = length + 2 * memory if config.architecture == "rmt" else length
    for _ in range(times * config.num_layers):
        flops.add("spare column", LANES * tokens, inner, 1, gradients=0)
    if config.architecture == "lamemo" and memory:
        # Slots in whole blocks of n, each slot against the distances that the keys of its block can have; or against
        # all distances where slots are few.
        keys = min(length, memory)
        rows, columns = -(-memory // keys) * keys, max(2 * keys, memory + 1)
        for _ in range(times * (config.num_layers - 1)):
            flops.add("look-ahead", LANES * rows, inner, columns, gradients=0)
    if isinstance(config, CompressiveConfig) and config.compressed_slots:
        rate = config.compression_rate
        evicted = LANES * ((rate - 1 + length) // rate) * rate
        for _ in range(config.num_layers):
            if config.compressed_position == "centre":
                beyond = (rate - 1) * config.compressed_slots
                flops.add("centre", times * LANES * length, inner, beyond, gradients=0)
                flops.add("centre", times * beyond, config.model_width, inner, gradients=0)
            if training and config.auxiliary_kind != "none":
                flops.add("compressed twice", evicted // rate, 6 * rate * config.model_width, config.model_width)
                flops.add("queries again", LANES * length, config.model_width, inner, gradients=0)
                flops.add("evicted keys and values again", evicted, config.model_width, 2 * inner, gradients=0)
    if training:
        edges = model.head.edges
        for number, rows in enumerate((LANES * length, *scored)):
            size = edges[number + 1] - edges[number] + (len(scored) if number == 0 else 0)
            flops.add("logits again", rows, model.head.width(number), size, gradients=0)
    return flops.total_training


@pytest.mark.parametrize("training", [False, True])
def test_the_formula_is_what_runs(config: ModelConfig, training: bool) -> None:
    model = build(config, seed=0)
    drawn = torch.randint(model.vocab_size, (LANES, config.segment_length + 1))
    tokens, targets = drawn[:, :-1], drawn[:, 1:]
    scored = tails(model, targets)
    flops = model.flops(LANES, tails=scored)
    if flops is None:
        pytest.skip("an architecture from elsewhere may do without a formula")
    formula = flops.total_training if training else flops.total_forward
    counted = count(model, tokens, targets, training=training)
    allowed = wasted(model, config.segment_length, scored, training=training)
    assert (1 - TOLERANCE) * formula <= counted <= (1 + TOLERANCE) * formula + allowed, (counted, flops.forward)


def test_a_longer_memory_and_segment_are_counted_as_they_are_read(variant: Variant) -> None:
    if not variant.queue:
        pytest.skip("the length of its memory is not the caller's to choose")
    model = build(variant.config, seed=0)
    if isinstance(variant.config.memory_length, int) and not variant.memory_length:
        pytest.skip("has no memory")
    longer = model.flops(LANES, 2 * variant.config.segment_length, 3 * variant.memory_length)
    usual = model.flops(LANES)
    if longer is None or usual is None:
        pytest.skip("an architecture from elsewhere may do without a formula")
    assert longer.total_forward > usual.total_forward and longer.total_training > 2 * usual.total_training


def test_a_model_that_brings_no_formula_is_not_counted_by_that_of_its_parent() -> None:
    from remanence.models import TransformerXL, TransformerXLConfig

    class Other(TransformerXL):
        pass

    sizes: dict[str, Any] = dict.fromkeys(("num_layers", "model_width", "num_heads", "head_width"), 4)
    config = TransformerXLConfig(vocab_size=9, segment_length=4, memory_length=4, feed_forward_width=4, **sizes)
    assert Other(config).flops() is None and TransformerXL(config).flops() is not None


def test_the_parts_add_up_and_lanes_share_the_tables_of_distances() -> None:
    from remanence.models import LaMemo, LaMemoConfig

    sizes: dict[str, Any] = {"num_layers": 3, "model_width": 8, "num_heads": 2, "head_width": 4}
    model = LaMemo(LaMemoConfig(vocab_size=9, segment_length=4, memory_length=6, feed_forward_width=16, **sizes))
    one, many = model.flops(1), model.flops(5)
    assert one is not None and many is not None
    assert set(one.forward) == {
        "projections",
        "feed-forward",
        "attention",
        "position scores",
        "memory",
        "look-ahead",
        "distances",
        "head",
    }
    assert sum(one.forward.values()) == one.total_forward
    for part in one.forward:
        assert many.forward[part] == one.forward[part] * (1 if part == "distances" else 5)
    # By hand: 6 + 4 rows in two layers, 4 in the last one; the band of 4 keys for 6 slots.
    assert one.forward["projections"] == 2 * (10 + 10 + 4) * 8 * 4 * 8
    assert one.forward["look-ahead"] == 2 * 2 * 6 * 4 * 8 * 3
    assert one.forward["head"] == 2 * 4 * 8 * 9 and one.training["head"] == 3 * one.forward["head"]
