"""The feed-forward part that keeps one inner tensor, against its naive truth, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from remanence.ops.dropout.bits import random_mask
from remanence.ops.feed_forward import feed_forward
from remanence.ops.feed_forward.naive import feed_forward as naive

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}


def problem(dtype: torch.dtype, shape: tuple[int, ...], width: int, inner: int) -> list[Tensor]:
    """Rows, W_1, b_1, W_2, b_2."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((*shape, width), (inner, width), (inner,), (width, inner), (width,))
    drawn = [torch.randn(each, generator=generator, dtype=torch.float64) for each in shapes]
    return [each.div(each.shape[-1] ** 0.5).to(dtype).requires_grad_() for each in drawn]


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (7,), (2, 0)], ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_it_is_the_naive_one_with_the_same_mask(dtype: torch.dtype, shape: tuple[int, ...], rate: float) -> None:
    ours = problem(dtype, shape, 5, 11)
    theirs = [each.detach().to(torch.float64).requires_grad_() for each in ours]
    rows = ours[0].flatten(0, -2).shape[0]
    torch.manual_seed(1)
    kept = random_mask(torch.Size([rows, 11]), rate) == 1 if rate else torch.ones(rows, 11, dtype=torch.bool)
    torch.manual_seed(1)
    given = feed_forward(*ours, rate)  # type: ignore[call-arg]
    wanted = naive(*theirs, kept.view(*shape, 11), rate)  # type: ignore[call-arg]
    assert given.dtype == dtype
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(given.double(), wanted, atol=tolerance, rtol=tolerance)
    pull = torch.randn(wanted.shape, dtype=torch.float64)
    (given * pull.to(dtype)).sum().backward()
    (wanted * pull).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None and other.grad is not None and one.grad.dtype == dtype
        torch.testing.assert_close(one.grad.double(), other.grad, atol=4 * tolerance, rtol=4 * tolerance)


def test_gradients_are_those_of_finite_differences() -> None:
    def drawn_alike(*given: Tensor) -> Tensor:
        torch.manual_seed(2)
        return feed_forward(*given, 0.3)  # type: ignore[call-arg]

    assert torch.autograd.gradcheck(drawn_alike, tuple(problem(torch.float64, (2, 3), 3, 5)))


def test_products_are_in_the_autocast_dtype_and_gradients_in_that_of_the_weights() -> None:
    ours = problem(torch.float32, (3, 5), 5, 11)
    with torch.autocast("cpu", torch.bfloat16):
        given = feed_forward(*ours)  # type: ignore[call-arg]
    assert given.dtype == torch.bfloat16
    given.float().sum().backward()
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in ours)


def test_one_tensor_of_the_inner_width_is_kept() -> None:
    ours = problem(torch.float32, (6, 5), 5, 64)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.numel()) or each, lambda each: each):
        feed_forward(*ours, 0.1)  # type: ignore[call-arg]
    assert sum(size == 30 * 64 for size in kept) == 1 and max(kept) == 30 * 64
