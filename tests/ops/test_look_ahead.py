"""Look-ahead attention in blocks against its naive truth, and the merge of two reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from remanence.ops.look_ahead import blocked, look_ahead, merge, naive

QUICK = settings(max_examples=20, deadline=None, derandomize=True, database=None)
TOLERANCES = {torch.float64: (1e-12, 1e-11), torch.float32: (2e-5, 2e-4), torch.bfloat16: (5e-2, 2e-1)}


def problem(
    generator: torch.Generator, lanes: int, heads: int, slots: int, num_keys: int, width: int, dtype: torch.dtype
) -> dict[str, Any]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return {
        "queries": draw(lanes, heads, slots, width),
        "keys": draw(lanes, heads, num_keys, width),
        "values": draw(lanes, heads, num_keys, width),
        "content_bias": draw(heads, width),
        "position_bias": draw(heads, width),
        "positions": draw(slots + num_keys - 1, heads, width),
    }


def window(generator: torch.Generator, lanes: int, slots: int, num_keys: int, *, right: bool) -> Tensor:
    """What may be seen: keys to the right, or all; fewer on some lanes; nothing on some."""
    key = torch.arange(slots - num_keys + 1, slots + 1)
    first = torch.randint(slots - num_keys + 1, slots + 2, (lanes,), generator=generator)
    visible = (key >= first[:, None])[:, None].expand(lanes, slots, num_keys)
    return visible & (key > torch.arange(slots)[:, None]) if right else visible.clone()


def copied(given: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: value.detach().clone().to(dtype).requires_grad_() for name, value in given.items()}


@pytest.fixture(scope="module", params=[1, blocked.LEAST_IN_TURN], ids=["in turn", "at once"])
def blocks(request: pytest.FixtureRequest) -> Iterator[None]:
    """However large its blocks are, both ways of reading them are tried."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "LEAST_IN_TURN", request.param)
        yield


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@QUICK
@given(
    lanes=st.sampled_from([1, 3]),
    heads=st.sampled_from([1, 3]),
    slots=st.integers(1, 13),
    share=st.floats(0, 1),
    width=st.sampled_from([1, 3, 5]),
    right=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_fast_path_is_the_naive_one(
    dtype: torch.dtype, lanes: int, heads: int, slots: int, share: float, width: int, right: bool, seed: int
) -> None:
    num_keys = 1 + round(share * (slots - 1))
    generator = torch.Generator().manual_seed(seed)
    ours = problem(generator, lanes, heads, slots, num_keys, width, dtype)
    exact = torch.float32 if dtype == torch.bfloat16 else dtype
    theirs = copied(ours, exact)
    visible = window(generator, lanes, slots, num_keys, right=right)
    read = look_ahead(**ours, visible=visible, forward_only=right)
    context, logsum, _ = naive.look_ahead(**theirs, visible=visible)
    forward, backward = TOLERANCES[dtype]
    seen = visible.any(-1)[:, None].expand(logsum.shape)
    assert read.logsum is not None and read.logsum.dtype == exact and read.context.dtype == dtype
    assert (read.context[~seen] == 0).all() and torch.isfinite(read.logsum).all()
    torch.testing.assert_close(read.context.to(exact), context, atol=forward, rtol=forward)
    torch.testing.assert_close(read.logsum[seen], logsum[seen], atol=forward, rtol=forward)
    pull = torch.randn(context.shape, generator=generator, dtype=exact)
    push = torch.where(seen, torch.randn(logsum.shape, generator=generator, dtype=exact), 0.0)
    ((read.context * pull).sum() + (read.logsum * push).sum()).backward()
    ((context * pull).sum() + (torch.where(seen, logsum, 0.0) * push).sum()).backward()
    for name, argument in ours.items():
        wanted = theirs[name].grad
        assert argument.grad is not None and torch.isfinite(argument.grad).all(), name
        assert (argument.grad.double() - wanted.double()).abs().max() <= backward * max(1.0, wanted.abs().max()), name


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("slots", "num_keys"), [(5, 5), (7, 2), (4, 1), (1, 1)])
@pytest.mark.parametrize("right", [True, False])
def test_gradients_are_those_of_finite_differences(slots: int, num_keys: int, right: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    given = problem(generator, 2, 1, slots, num_keys, 3, torch.float64)
    visible = window(generator, 2, slots, num_keys, right=right)
    visible[0] = window(generator, 1, slots, num_keys, right=right)[0] | (torch.arange(num_keys) == num_keys - 1)
    seen = visible.any(-1)[:, None]

    def read(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(given, arguments, strict=True))
        result = look_ahead(**named, visible=visible, forward_only=right)  # type: ignore[arg-type]
        assert result.logsum is not None
        return result.context, torch.where(seen, result.logsum, 0.0)

    assert torch.autograd.gradcheck(read, tuple(given.values()))


@pytest.mark.usefixtures("blocks")
def test_the_cost_is_linear_in_the_number_of_slots() -> None:
    flops = []
    for slots in (60, 120):
        given = problem(torch.Generator().manual_seed(0), 1, 1, slots, 5, 3, torch.float32)
        visible = window(torch.Generator().manual_seed(0), 1, slots, 5, right=True)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            look_ahead(**given, visible=visible, forward_only=True)
        flops.append(counter.get_total_flops())
    assert flops[1] < 2.1 * flops[0]
    # Content, context, and at most 2 n - 1 distances: 2 (n + n + 2 n - 1) K multiply-adds a slot.
    assert flops[0] <= 60 * 2 * (2 * 5 + 2 * 5 - 1) * 3


# The merge


def reads(generator: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    """A context and the log-sum of its masses."""
    context = torch.randn(*shape, 5, generator=generator, dtype=torch.float64)
    return context, 3 * torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.1])
def test_the_merge_is_the_naive_one_where_slots_are_active(epsilon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    held, seen = reads(generator, 2, 7, 3), reads(generator, 2, 7, 3)
    active = torch.rand(2, 7, generator=generator) < 0.6
    context, logsum, alpha = merge(*held, *seen, active, epsilon)
    wanted = naive.merge(*held, *seen, epsilon)
    for ours, theirs, kept in zip((context, logsum, alpha), wanted, (*held, torch.ones(2, 7, 3)), strict=True):
        torch.testing.assert_close(ours[active], theirs[active], atol=1e-14, rtol=1e-14)
        assert torch.equal(ours[~active], kept[~active].to(ours.dtype))


def test_merging_adds_masses_and_so_is_associative() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two, three = (reads(generator, 1, 5, 3) for _ in range(3))
    active = torch.ones(1, 5, dtype=torch.bool)
    left = merge(*merge(*one, *two, active, 0.0)[:2], *three, active, 0.0)
    right = merge(*one, *merge(*two, *three, active, 0.0)[:2], active, 0.0)
    torch.testing.assert_close(left[0], right[0], atol=1e-13, rtol=0)
    torch.testing.assert_close(left[1], right[1], atol=1e-13, rtol=0)


def test_merging_two_reads_is_one_read_of_the_union() -> None:
    scores, values = torch.randn(9, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)

    def part(keys: slice) -> tuple[Tensor, Tensor]:
        context = (scores[keys].softmax(0)[:, None] * values[keys]).sum(0)
        return context.reshape(1, 1, 1, 5), scores[keys].logsumexp(0).reshape(1, 1, 1)

    context, logsum, _ = merge(*part(slice(0, 4)), *part(slice(4, 9)), torch.ones(1, 1, dtype=torch.bool), 0.0)
    whole = part(slice(0, 9))
    torch.testing.assert_close(context, whole[0], atol=1e-14, rtol=0)
    torch.testing.assert_close(logsum, whole[1], atol=1e-14, rtol=0)


def test_alpha_is_the_share_of_what_was_held() -> None:
    generator = torch.Generator().manual_seed(0)
    held, seen = reads(generator, 1, 5, 3), reads(generator, 1, 5, 3)
    active = torch.ones(1, 5, dtype=torch.bool)
    alpha = merge(*held, *seen, active, 1e-6)[2]
    assert ((alpha > 0) & (alpha < 1)).all()
    assert (alpha - (held[1] - seen[1]).sigmoid()).abs().max() < 1e-6
    much = merge(held[0], held[1] + 50, *seen, active, 0.0)
    assert (much[2] > 1 - 1e-15).all()
    torch.testing.assert_close(much[0], held[0])
    little = merge(held[0], held[1] - 50, *seen, active, 0.0)
    torch.testing.assert_close(little[0], seen[0])


def test_gradients_of_the_merge_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    arguments = [tensor.requires_grad_() for tensor in (*reads(generator, 1, 3, 2), *reads(generator, 1, 3, 2))]
    active = torch.tensor([[True, False, True]])
    assert torch.autograd.gradcheck(lambda *given: merge(*given, active, 1e-6), tuple(arguments))


def test_inactive_slots_give_what_they_see_no_gradient_and_stay_finite() -> None:
    """What an unwritten slot sees is nothing: its log-sum is the lowest number there is."""
    held = torch.zeros(1, 2, 3, 5, requires_grad=True), torch.zeros(1, 2, 3, requires_grad=True)
    lowest = torch.full((1, 2, 3), torch.finfo(torch.float32).min, requires_grad=True)
    seen = torch.zeros(1, 2, 3, 5, requires_grad=True), lowest
    context, logsum, alpha = merge(*held, *seen, torch.zeros(1, 2, dtype=torch.bool), 1e-6)
    (context.sum() + logsum.sum() + alpha.sum()).backward()
    for tensor in (*held, *seen):
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()
    assert all(tensor.grad is None or not tensor.grad.any() for tensor in seen)
    assert held[0].grad is not None and (held[0].grad == 1).all()


def test_the_merge_keeps_the_type_of_the_context_and_exact_log_sums() -> None:
    held = torch.randn(1, 3, 2, 5).bfloat16(), torch.randn(1, 3, 2)
    seen = torch.randn(1, 3, 2, 5).bfloat16(), torch.randn(1, 3, 2)
    context, logsum, alpha = merge(*held, *seen, torch.ones(1, 3, dtype=torch.bool), 1e-6)
    assert (context.dtype, logsum.dtype, alpha.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    exact = naive.merge(held[0].float(), held[1], seen[0].float(), seen[1], 1e-6)[0]
    torch.testing.assert_close(context.float(), exact, atol=1e-2, rtol=1e-2)
