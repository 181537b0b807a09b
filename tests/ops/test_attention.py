"""Relative attention as training uses it against its naive truth, on odd sizes, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from remanence.ops.attention import cpu, masked_softmax, naive, relative_attention, shift

QUICK = settings(max_examples=20, deadline=None, derandomize=True, database=None)
TOLERANCES = {torch.float64: (1e-12, 1e-11), torch.float32: (2e-5, 2e-4), torch.bfloat16: (5e-2, 2e-1)}
SIZES = st.sampled_from([1, 3, 5])


def problem(
    generator: torch.Generator, sizes: tuple[int, int, int, int, int], dtype: torch.dtype, parts: dict[str, bool]
) -> dict[str, Any]:
    """Arguments of relative attention: B, H, T, M, K; keys are M + T."""
    lanes, heads, num_queries, slots, width = sizes
    num_keys = slots + num_queries

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    given: dict[str, Any] = {
        "queries": draw(lanes, heads, num_queries, width),
        "keys": draw(lanes, heads, num_keys, width),
        "values": draw(lanes, heads, num_keys, width),
        "content_bias": draw(heads, width) if parts["content"] else None,
        "position_bias": draw(heads, width) if parts["table"] and parts["position"] else None,
        "positions": draw(num_keys, heads, width) if parts["table"] else None,
        "distance_bias": draw(num_keys, heads) if parts["table"] and parts["distance"] else None,
    }
    causal = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(slots)
    written = torch.rand(lanes, num_keys, generator=generator) < 0.6
    given["visible"] = causal & written[:, None]
    return given


def check(ours: dict[str, Any], theirs: dict[str, Any], dtype: torch.dtype, generator: torch.Generator) -> None:
    """Context, log-sum and gradients of a random combination of both."""
    forward, backward = TOLERANCES[dtype]
    read = relative_attention(**ours, with_logsum=True, with_weights=True)
    context, logsum, weights = naive.relative_attention(**theirs)
    assert read.logsum is not None and read.logsum.dtype == context.dtype
    assert read.context.dtype == dtype
    seen = theirs["visible"].any(-1)[:, None].expand(logsum.shape)
    assert (read.context[~seen] == 0).all()
    torch.testing.assert_close(read.context.to(context.dtype), context, atol=forward, rtol=forward)
    torch.testing.assert_close(read.logsum[seen], logsum[seen], atol=forward, rtol=forward)
    assert read.weights is not None
    torch.testing.assert_close(read.weights[seen].to(weights.dtype), weights[seen], atol=forward, rtol=forward)
    assert torch.isfinite(read.logsum).all()
    pull = torch.randn(context.shape, generator=generator, dtype=context.dtype)
    push = torch.randn(logsum.shape, generator=generator, dtype=context.dtype)
    # A log-sum of nothing is a constant.
    push = torch.where(seen, push, 0.0)
    ((read.context * pull).sum() + (read.logsum * push).sum()).backward()
    ((context * pull).sum() + (torch.where(seen, logsum, 0.0) * push).sum()).backward()
    for name, argument in ours.items():
        if isinstance(argument, Tensor) and argument.requires_grad:
            wanted = theirs[name].grad
            assert argument.grad is not None and torch.isfinite(argument.grad).all(), name
            scale = max(1.0, wanted.abs().max().item())
            assert (argument.grad.double() - wanted.double()).abs().max() <= backward * scale, name


def copied(given: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: value.detach().clone().to(dtype).requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in given.items()
    }


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@QUICK
@given(
    sizes=st.tuples(SIZES, SIZES, SIZES, st.sampled_from([0, 1, 3, 7]), SIZES),
    parts=st.fixed_dictionaries({name: st.booleans() for name in ("content", "position", "table", "distance")}),
    seed=st.integers(0, 99),
)
def test_the_fast_path_is_the_naive_one(
    dtype: torch.dtype, sizes: tuple[int, int, int, int, int], parts: dict[str, bool], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours = problem(generator, sizes, dtype, parts)
    exact = torch.float32 if dtype == torch.bfloat16 else dtype
    check(ours, copied(ours, exact), dtype, generator)


@pytest.mark.parametrize("elements", [1, 40])
def test_heads_in_turn_give_what_they_give_at_once(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    parts = dict.fromkeys(("content", "position", "table", "distance"), True)
    ours = problem(generator, (2, 5, 3, 4, 3), torch.float64, parts)
    monkeypatch.setattr(cpu, "CHUNK_ELEMENTS", elements)
    check(ours, copied(ours, torch.float64), torch.float64, generator)


@pytest.mark.parametrize("with_table", [False, True])
def test_gradients_are_those_of_finite_differences_with_dropout_too(with_table: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    parts = {"content": True, "position": with_table, "table": with_table, "distance": False}
    given = problem(generator, (2, 2, 3, 1, 2), torch.float64, parts)
    given["visible"][..., 0] = True
    named = {name: value for name, value in given.items() if value is not None and name != "visible"}

    def drawn_alike(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(4)
        tensors: Any = dict(zip(named, arguments, strict=True))
        read = relative_attention(**tensors, visible=given["visible"], dropout=0.3, with_logsum=True)
        assert read.logsum is not None
        return read.context, read.logsum

    assert torch.autograd.gradcheck(drawn_alike, tuple(named.values()))


def test_no_mask_lets_every_query_see_every_key() -> None:
    generator = torch.Generator().manual_seed(0)
    given = problem(
        generator,
        (2, 3, 1, 4, 5),
        torch.float64,
        dict.fromkeys(("content", "position", "table"), True) | {"distance": False},
    )
    given["visible"] = torch.ones_like(given["visible"])
    masked = relative_attention(**given, with_logsum=True, with_weights=True)
    free = relative_attention(**given | {"visible": None}, with_logsum=True, with_weights=True)
    for one, other in zip(masked, free, strict=True):
        assert one is not None and other is not None and torch.equal(one, other)


def test_log_sum_and_weights_are_given_only_when_asked_for() -> None:
    values = torch.randn(1, 1, 3, 5)
    assert relative_attention(values, values, values, None)[1:] == (None, None)
    assert relative_attention(values, values, values, None, with_weights=True).weights is not None
    assert relative_attention(values, values, values, None, with_logsum=True).logsum is not None


def test_rows_that_see_nothing_are_zero_with_zero_gradients() -> None:
    queries, keys, values = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    visible = torch.zeros(2, 5, 5, dtype=torch.bool)
    visible[1, 2:, :2] = True
    read = relative_attention(queries, keys, values, visible, with_logsum=True)
    assert (read.context[0] == 0).all() and (read.context[1, :, :2] == 0).all()
    assert read.logsum is not None
    assert (read.logsum[0] < -1e300).all() and torch.isfinite(read.logsum).all()
    (read.context.square().sum() + read.context.sum()).backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in (queries, keys, values) if tensor.grad is not None)
    assert not queries.grad[0].any() and not values.grad[0].any() and not keys.grad[0].any()  # type: ignore[index]


def test_scores_of_any_size_give_finite_weights() -> None:
    queries = torch.full((1, 1, 2, 3), 1e4, requires_grad=True)
    keys = torch.tensor([[[[1e4] * 3, [-1e4] * 3]]])
    read = relative_attention(queries, keys, keys, None, with_logsum=True, with_weights=True)
    read.context.sum().backward()
    assert torch.isfinite(read.context).all() and torch.isfinite(queries.grad).all()  # type: ignore[arg-type]
    assert read.weights is not None
    assert torch.equal(read.weights, torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]))


def test_dropout_acts_on_the_weights_and_not_on_the_log_sum() -> None:
    queries, keys, values = (torch.randn(2, 3, 40, 4) for _ in range(3))
    asked = {"with_logsum": True, "with_weights": True}
    plain = relative_attention(queries, keys, values, None, **asked)
    dropped = relative_attention(queries, keys, values, None, **asked, dropout=0.5)
    assert dropped.weights is not None and plain.weights is not None
    assert dropped.logsum is not None and plain.logsum is not None
    assert torch.equal(dropped.logsum, plain.logsum) and torch.equal(dropped.weights, plain.weights)
    assert not torch.allclose(dropped.context, plain.context)


# The softmax


@pytest.mark.parametrize("with_position", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_softmax_are_those_of_finite_differences(with_position: bool, masked: bool) -> None:
    content = torch.randn(2, 1, 3, 5, dtype=torch.float64, requires_grad=True)
    position = torch.randn(2, 1, 3, 5, dtype=torch.float64, requires_grad=True) if with_position else None
    visible = torch.rand(2, 3, 5) < 0.7 if masked else None
    if visible is not None:
        visible[..., 0] = True

    def both(*scores: Tensor) -> tuple[Tensor, Tensor]:
        weights, logsum = masked_softmax(scores[0], scores[1] if with_position else None, visible, True)
        assert logsum is not None
        return weights, logsum

    assert torch.autograd.gradcheck(both, (content, position) if position is not None else (content,))


def test_the_log_sum_of_a_row_that_sees_nothing_has_no_gradient() -> None:
    content = torch.randn(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    visible = torch.tensor([[[False, False, False], [True, False, True]]])
    _, logsum = masked_softmax(content, None, visible, True)
    assert logsum is not None
    logsum.sum().backward()
    assert content.grad is not None
    assert not content.grad[0, 0, 0].any() and content.grad[0, 0, 1, [0, 2]].all()


def test_the_softmax_does_not_change_its_arguments() -> None:
    content, position = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    before = content.clone(), position.clone()
    for visible in (None, torch.rand(1, 3, 4) < 0.5):
        for second in (None, position):
            masked_softmax(content, second, visible, True)
    assert torch.equal(content, before[0]) and torch.equal(position, before[1])


def test_weights_sum_to_one_and_are_zero_where_hidden() -> None:
    content = torch.randn(2, 3, 4, 7)
    visible = torch.rand(2, 4, 7) < 0.5
    visible[..., 3] = True
    weights, _ = masked_softmax(content, None, visible)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 4))
    assert not weights[(~visible)[:, None].expand(weights.shape)].any()


# The shift


@pytest.mark.parametrize(
    ("rows", "width", "offset", "columns"),
    [(3, 8, 2, 5), (5, 6, 4, 2), (1, 4, 0, 4), (1, 4, 2, 2), (4, 9, 4, 4), (2, 3, 1, 1)],
)
def test_the_shift_is_its_definition(rows: int, width: int, offset: int, columns: int) -> None:
    table = torch.randn(2, 3, rows, width)
    shifted = shift(table, offset, columns)
    assert shifted.shape == (2, 3, rows, columns)
    for row in range(rows):
        for column in range(columns):
            place = offset + column - row
            if 0 <= place < width:
                assert torch.equal(shifted[:, :, row, column], table[:, :, row, place])


def test_the_shift_copies_nothing() -> None:
    table = torch.randn(2, 3, 8)
    assert shift(table, 2, 5).untyped_storage().data_ptr() == table.untyped_storage().data_ptr()


def test_the_shift_carries_gradients_back_to_where_they_came_from() -> None:
    table = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda table: shift(table.contiguous(), 2, 5), table)
