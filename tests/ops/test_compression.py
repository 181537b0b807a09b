"""Compression in batches against its loops: functions, losses, and which rows go where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from remanence.ops.compression import (
    attention_loss,
    autoencoding_loss,
    convolution,
    dilated_convolutions,
    evict,
    gather,
    max_pooling,
    mean_pooling,
    most_used,
    naive,
    transposed_convolution,
)

QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def taps(weight: Tensor, count: int) -> list[Tensor]:
    return list(weight.chunk(count, dim=1))


def compare(
    fast: Callable[..., Tensor], truth: Callable[..., Tensor], *given: Tensor, tolerance: float = 1e-12
) -> None:
    """Values and gradients of two functions of the same tensors."""
    results = []
    for function in (fast, truth):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in given]
        value = function(*leaves)
        pull = draw(*value.shape, seed=9).detach()
        results.append((value, *torch.autograd.grad((value * pull).sum(), leaves)))
    assert all(ours.shape == theirs.shape for ours, theirs in zip(*results, strict=True))
    assert max((ours - theirs).abs().max().item() for ours, theirs in zip(*results, strict=True)) < tolerance


# Functions


@pytest.mark.parametrize("rate", [1, 2, 3, 5])
@pytest.mark.parametrize("groups", [1, 3])
def test_pooling_is_its_definition(rate: int, groups: int) -> None:
    for fast, truth in ((mean_pooling, naive.mean_pooling), (max_pooling, naive.max_pooling)):
        compare(
            lambda old, fast=fast: fast(old, rate),
            lambda old, truth=truth: torch.stack([truth(lane, rate) for lane in old]),
            draw(2, groups * rate, 7),
        )


@pytest.mark.parametrize("rate", [1, 2, 3, 5])
@pytest.mark.parametrize("groups", [1, 3])
def test_convolution_and_its_transpose_are_their_definitions(rate: int, groups: int) -> None:
    compare(
        convolution,
        lambda old, weight, bias: torch.stack([naive.convolution(lane, taps(weight, rate), bias) for lane in old]),
        draw(2, groups * rate, 7),
        draw(7, 7 * rate, seed=1),
        draw(7, seed=2),
    )
    compare(
        transposed_convolution,
        lambda rows, weight, bias: torch.stack(
            [naive.transposed_convolution(lane, weight.split(7), bias) for lane in rows]
        ),
        draw(2, groups, 7),
        draw(7 * rate, 7, seed=1),
        draw(7, seed=2),
    )


def test_convolution_is_that_of_torch() -> None:
    old, weight, bias = draw(2, 6, 5), draw(5, 5, 3, seed=1), draw(5, seed=2)
    theirs = torch.nn.functional.conv1d(old.transpose(1, 2), weight, bias, stride=3).transpose(1, 2)
    ours = convolution(old, weight.transpose(1, 2).flatten(1), bias)
    assert (ours - theirs).abs().max() < 1e-13


@pytest.mark.parametrize("rate", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("real", [(3, 1), (2, 3), (0, 2)])
def test_dilated_convolutions_are_their_definition_on_lanes_that_evict_differently(
    rate: int, real: tuple[int, int]
) -> None:
    length = 3 * rate
    mask = torch.arange(length) < torch.tensor(real)[:, None] * rate

    def fast(old: Tensor, *weights: Tensor) -> Tensor:
        made = dilated_convolutions(old, mask, *weights, rate=rate)  # type: ignore[arg-type]
        return torch.cat([lane[:count] for lane, count in zip(made, real, strict=True)])

    def truth(old: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
        lanes = [
            naive.dilated_convolutions(
                lane[: count * rate], taps(first, 3), first_bias, taps(second, 3), second_bias, rate
            )
            for lane, count in zip(old, real, strict=True)
            if count
        ]
        return torch.cat(lanes)

    weights = draw(5, 15, seed=1), draw(5, seed=2), draw(5, 15, seed=3), draw(5, seed=4)
    compare(fast, truth, draw(2, length, 5), *weights)


def test_no_row_of_a_group_is_missed_by_dilated_convolutions_up_to_seven() -> None:
    for rate in range(1, 8):
        old = draw(1, 3 * rate, 4)
        weights = [draw(4, 12, seed=1).abs(), draw(4, seed=2).abs(), draw(4, 12, seed=3).abs(), draw(4, seed=4)]
        made = dilated_convolutions(old.abs(), torch.ones(1, 3 * rate, dtype=torch.bool), *weights, rate=rate)  # type: ignore[arg-type]
        for group in range(3):
            (gradient,) = torch.autograd.grad(made[0, group].sum(), old, retain_graph=True)
            assert gradient[0, group * rate : (group + 1) * rate].all(), (rate, group)


@QUICK
@given(
    rate=st.integers(1, 4),
    real=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    levels=st.sampled_from([1, 2, 5, 50]),
    seed=st.integers(0, 99),
)
def test_the_most_used_rows_are_kept_in_their_order(rate: int, real: list[int], levels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    length = 3 * rate
    old = draw(len(real), length, 3).detach()
    usage = torch.randint(levels, (len(real), length), generator=generator).double() / levels
    groups = torch.tensor(real)
    mask = torch.arange(length) < groups[:, None] * rate
    made = most_used(old, usage, mask, groups, rate)
    for lane, count in enumerate(real):
        if count:
            wanted = naive.most_used(old[lane, : count * rate], usage[lane, : count * rate], rate)
            assert torch.equal(made[lane, :count], wanted)


def test_of_equally_used_rows_the_older_are_kept() -> None:
    old = torch.arange(6.0, dtype=torch.float64).reshape(1, 6, 1)
    usage = torch.tensor([[0.1, 0.3, 0.3, 0.1, 0.1, 0.3]], dtype=torch.float64)
    kept = most_used(old, usage, torch.ones(1, 6, dtype=torch.bool), torch.tensor([2]), 3)
    assert kept.flatten().tolist() == [1.0, 2.0]


# Losses


@QUICK
@given(rate=st.integers(1, 3), real=st.lists(st.integers(0, 2), min_size=1, max_size=3), padded=st.booleans())
def test_losses_are_their_definitions_on_what_is_real(rate: int, real: list[int], padded: bool) -> None:
    lanes, length, width = len(real), 2 * rate, 5
    groups = torch.tensor(real)
    asked = [3 if padded and lane else 4 for lane in range(lanes)]
    asking = torch.arange(4) < torch.tensor(asked)[:, None] if padded else None
    queries, old_keys, old_values = (
        draw(lanes, 2, 4, width),
        draw(lanes, 2, length, width),
        draw(lanes, 2, length, width),
    )
    keys, values = draw(lanes, 2, 2, width, seed=5), draw(lanes, 2, 2, width, seed=6)

    def truth(*given: Tensor) -> Tensor:
        losses = []
        for lane, count in enumerate(real):
            q, k, v, ck, cv = (tensor[lane] for tensor in given)
            far, near = count * rate, count
            parts = q[:, : asked[lane]], k[:, :far], v[:, :far], ck[:, :near], cv[:, :near]
            losses.append(naive.attention_loss(*parts) if count else sum(each.sum() * 0 for each in given))
        return torch.stack(losses)  # type: ignore[arg-type]

    compare(
        lambda *given: attention_loss(*given, groups, asking),
        truth,
        *(tensor.detach() for tensor in (queries, old_keys, old_values, keys, values)),
    )
    old, rebuilt = draw(lanes, length, width).detach(), draw(lanes, length, width, seed=7).detach()
    mask = torch.arange(length) < groups[:, None] * rate
    compare(
        lambda *given: autoencoding_loss(*given, mask),
        lambda one, other: torch.stack(
            [
                naive.autoencoding_loss(one[lane, : count * rate], other[lane, : count * rate])
                if count
                else one.sum() * 0 + other.sum() * 0
                for lane, count in enumerate(real)
            ]
        ),
        old,
        rebuilt,
    )


def test_losses_are_in_float32_or_better() -> None:
    for dtype, exact in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        parts = [torch.randn(1, 1, count, 2).to(dtype) for count in (3, 4, 4, 2, 2)]
        assert attention_loss(*parts, torch.tensor([2])).dtype == exact  # type: ignore[arg-type]
        rows = torch.randn(1, 4, 2).to(dtype)
        assert autoencoding_loss(rows, rows, torch.ones(1, 4, dtype=torch.bool)).dtype == exact


# Where rows go


def lives(steps: list[Any], memory_length: int, compressed_length: int, rate: int) -> None:
    """Two lanes that live apart, in one tensor and in lists."""
    slots = compressed_length + memory_length + rate - 1
    rows, valid = torch.zeros(2, slots, 1), torch.zeros(2, slots, dtype=torch.bool)
    raw, written = torch.zeros(2, dtype=torch.long), 0
    lists: list[Any] = [([], []) for _ in range(2)]
    for lengths in steps:
        tokens = max(lengths)
        if tokens == 0:
            continue
        segment = torch.arange(1.0, 2 * tokens + 1).reshape(2, tokens, 1) + 100 * written
        written += 1
        plan = evict(valid, raw, torch.tensor(lengths), tokens, memory_length, compressed_length, rate)
        joint = torch.cat([rows, segment], dim=1)
        old = gather(joint, plan.old)
        made = mean_pooling(old, rate) if old.shape[1] else old
        before = rows
        rows, valid, raw = (
            gather(torch.cat([joint, made, torch.zeros(2, 1, 1)], dim=1), plan.rows),
            plan.valid,
            plan.raw,
        )
        for lane, length in enumerate(lengths):
            compressed, kept, gone = naive.evict(
                *lists[lane],
                list(segment[lane, :length]),
                memory_length,
                compressed_length,
                rate,
                lambda old: naive.mean_pooling(old, rate),
            )
            lists[lane] = compressed, kept
            wanted = [*compressed, *kept]
            assert raw[lane] == len(kept) and valid[lane].sum() == len(wanted)
            assert valid[lane, slots - len(wanted) :].all() and not rows[lane, : slots - len(wanted)].any()
            assert torch.allclose(
                rows[lane, slots - len(wanted) :].flatten(), torch.tensor([float(row) for row in wanted])
            )
            if compressed_length:
                assert torch.equal(old[lane, plan.real[lane]].flatten(), torch.tensor([float(row) for row in gone]))
            if length == 0:
                assert torch.equal(rows[lane], before[lane])


@QUICK
@given(
    steps=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6),
    memory_length=st.integers(0, 6),
    compressed_length=st.integers(0, 4),
    rate=st.integers(1, 4),
)
def test_rows_go_where_the_lists_say(steps: list[Any], memory_length: int, compressed_length: int, rate: int) -> None:
    lives(steps, memory_length, compressed_length, rate)


def test_sizes_token_by_token_are_those_of_the_specification() -> None:
    """n_m = 8, c = 4: the raw memory breathes between 8 and 11 rows."""
    slots = 3 + 8 + 3
    valid, raw = torch.zeros(1, slots, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
    sizes = []
    for _ in range(16):
        plan = evict(valid, raw, torch.tensor([1]), 1, 8, 3, 4)
        valid, raw = plan.valid, plan.raw
        sizes.append((int(valid.sum() - raw), int(raw)))
    assert sizes == [(0, n) for n in range(1, 12)] + [(1, n) for n in range(8, 12)] + [(2, 8)]
