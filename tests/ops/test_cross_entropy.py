"""Cross-entropy in chunks of the vocabulary against its naive truth, and what it never holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from remanence.ops.cross_entropy import linear_cross_entropy, naive

QUICK = settings(max_examples=20, deadline=None, derandomize=True, database=None)
TOLERANCES = {torch.float64: (1e-12, 1e-12), torch.float32: (2e-5, 2e-5), torch.bfloat16: (5e-2, 6e-2)}


def problem(
    rows: int, words: int, width: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (words, width), (words,))
    hidden, weight, bias = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    targets = torch.randint(-2, words, (rows,), generator=generator)
    return hidden, weight, bias, targets


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@QUICK
@given(
    rows=st.sampled_from([1, 3, 7]),
    words=st.sampled_from([1, 2, 5, 11, 23]),
    width=st.sampled_from([1, 3, 5]),
    chunk=st.sampled_from([1, 10, 30, 1000]),
    seed=st.integers(0, 99),
)
def test_the_fast_path_is_the_naive_one(
    dtype: torch.dtype, rows: int, words: int, width: int, chunk: int, seed: int
) -> None:
    *ours, targets = problem(rows, words, width, dtype, seed)
    exact = torch.float32 if dtype == torch.bfloat16 else dtype
    theirs = [tensor.detach().to(exact).requires_grad_() for tensor in ours]
    forward, backward = TOLERANCES[dtype]
    nats = linear_cross_entropy(*ours, targets, chunk_elements=chunk)  # type: ignore[call-arg]
    wanted = naive.linear_cross_entropy(*theirs, targets)  # type: ignore[call-arg]
    assert nats.dtype == exact and nats.shape == (rows,)
    torch.testing.assert_close(nats, wanted, atol=forward * width, rtol=forward)
    pull = torch.randn(rows, dtype=exact)
    (nats * pull).sum().backward()
    (wanted * pull).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None and other.grad is not None and one.grad.dtype == dtype
        scale = max(1.0, other.grad.abs().max().item())
        assert (one.grad.double() - other.grad.double()).abs().max() <= backward * scale


@pytest.mark.parametrize("chunk", [1, 12, 1000])
def test_gradients_are_those_of_finite_differences(chunk: int) -> None:
    *given, _ = problem(4, 7, 3, torch.float64)
    given = [tensor.detach().double().requires_grad_() for tensor in given]
    targets = torch.tensor([3, -1, 0, 6])
    assert torch.autograd.gradcheck(
        lambda hidden, weight, bias: linear_cross_entropy(hidden, weight, bias, targets, chunk_elements=chunk), given
    )


def test_targets_that_are_not_scored_cost_nothing_and_teach_nothing() -> None:
    hidden, weight, bias, _ = problem(3, 5, 2, torch.float64)
    nats = linear_cross_entropy(hidden, weight, bias, torch.tensor([-1, 2, -100]))
    assert nats[0] == nats[2] == 0 and nats[1] > 0
    nats.sum().backward()
    assert hidden.grad is not None and not hidden.grad[[0, 2]].any() and hidden.grad[1].any()
    weight.grad = None
    linear_cross_entropy(hidden, weight, bias, torch.full((3,), -1)).sum().backward()
    assert weight.grad is not None and not weight.grad.any()  # type: ignore[union-attr]


def test_no_rows_give_no_losses_and_no_gradient() -> None:
    hidden, weight, bias, targets = problem(0, 5, 2, torch.float32)
    nats = linear_cross_entropy(hidden, weight, bias, targets)
    assert nats.shape == (0,)
    nats.sum().backward()
    assert weight.grad is not None and not weight.grad.any()
    assert bias.grad is not None and not bias.grad.any()


def test_logits_of_any_size_give_finite_losses() -> None:
    hidden = torch.tensor([[1e4, -1e4]], requires_grad=True)
    weight = torch.tensor([[1e4, 0.0], [0.0, 1e4], [-1e4, 0.0]])
    nats = linear_cross_entropy(hidden, weight, torch.zeros(3), torch.tensor([1]), chunk_elements=1)
    nats.backward()
    assert nats.item() == pytest.approx(2e8)
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()


class Largest(TorchDispatchMode):
    """Watches for the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_the_logits_of_all_words_are_never_held() -> None:
    rows, words, width, chunk = 60, 1000, 3, 600
    *given, targets = problem(rows, words, width, torch.float32)
    with Largest() as forward:
        nats = linear_cross_entropy(*given, targets, chunk_elements=chunk)  # type: ignore[call-arg]
    assert forward.numel <= max(chunk, given[0].numel())
    with Largest() as backward:
        nats.sum().backward()
    # The gradient of the weight is a result, not a cost.
    assert backward.numel <= max(chunk, words * width) < rows * words / 10


def test_what_is_kept_for_the_way_back_does_not_grow_with_rows_times_words() -> None:
    *given, targets = problem(60, 1000, 3, torch.float32)
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        linear_cross_entropy(*given, targets, chunk_elements=600)  # type: ignore[call-arg]
    assert kept <= sum(tensor.numel() for tensor in given) + 3 * 60


def test_autocast_multiplies_in_its_type_and_sums_in_float32() -> None:
    *given, targets = problem(7, 11, 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        nats = linear_cross_entropy(*given, targets)  # type: ignore[call-arg]
    assert nats.dtype == torch.float32
    nats.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.float32 for tensor in given)
    exact = naive.linear_cross_entropy(*given, targets)  # type: ignore[call-arg]
    torch.testing.assert_close(nats, exact, atol=0.1, rtol=0.05)
    assert not torch.equal(nats, exact)


def test_float64_is_left_alone_by_autocast() -> None:
    *given, targets = problem(7, 11, 5, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        nats = linear_cross_entropy(*given, targets)  # type: ignore[call-arg]
    torch.testing.assert_close(nats, naive.linear_cross_entropy(*given, targets), atol=1e-12, rtol=0)  # type: ignore[call-arg]
