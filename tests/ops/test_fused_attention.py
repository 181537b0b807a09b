"""The GPU kernels of attention against their naive truth, forward and backward; on the CPU in Triton's interpreter."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.models.variants import VARIANTS, text
from torch import Tensor

from remanence.ops import look_ahead as ahead
from remanence.ops.attention import fused, naive, relative_attention
from remanence.ops.look_ahead import naive as naive_ahead

pytest.importorskip("triton", reason="the kernels need Triton, which is installed on Linux (x86-64) only")
CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA GPU, or TRITON_INTERPRET=1", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
TOLERANCES = {torch.float32: (2e-5, 2e-4), torch.float16: (1e-2, 3e-2), torch.bfloat16: (5e-2, 2e-1)}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels for every shape, and on the CPU in blocks that are small enough to be interpreted."""
    monkeypatch.setattr(fused, "MODE", "on")
    if CUDA:
        yield
        return
    from tests.interpreter import mend

    from remanence.ops.attention import launch

    mend()
    monkeypatch.setattr(launch, "blocks", lambda *_: launch.Blocks(16, (4,) * 4, (1,) * 4))
    yield


def drawn(generator: torch.Generator, dtype: torch.dtype) -> Any:
    return lambda *shape: torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_()


def problem(seed: int, sizes: tuple[int, int, int, int, int], dtype: torch.dtype, parts: str = "uvr") -> dict[str, Any]:
    """Arguments of relative attention for B, H, T, S, K; `parts` names the biases and tables among u, v, r and t."""
    generator = torch.Generator().manual_seed(seed)
    lanes, heads, num_queries, num_keys, width = sizes
    draw = drawn(generator, dtype)
    causal = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    written = torch.rand(lanes, 1, num_keys, generator=generator) < 0.6
    return {
        "queries": draw(lanes, heads, num_queries, width),
        "keys": draw(lanes, heads, num_keys, width),
        "values": draw(lanes, heads, num_keys, width),
        "visible": (causal & written).to(DEVICE),
        "content_bias": draw(heads, width) if "u" in parts else None,
        "position_bias": draw(heads, width) if "v" in parts else None,
        "positions": draw(num_keys, heads, width) if "r" in parts else None,
        "distance_bias": draw(num_keys, heads) if "t" in parts else None,
    }


def copied(given: dict[str, Any]) -> dict[str, Any]:
    """On the CPU and in float32, without what was not given."""
    return {
        name: value.detach().cpu().float().requires_grad_() if value.is_floating_point() else value.cpu()
        for name, value in given.items()
        if value is not None
    }


def check(given: dict[str, Any], truth: Any, run: Any, generator: torch.Generator) -> None:
    """Context, log-sum, and the gradients of a random combination of both."""
    theirs = copied(given)
    dtype = given["queries"].dtype
    forward, backward = TOLERANCES[dtype]
    context, logsum = run(**given)
    wanted, wanted_logsum, _ = truth(**theirs)
    seen = theirs["visible"].any(-1)[:, None].expand(wanted_logsum.shape)
    assert context.dtype == dtype and logsum.dtype == torch.float32
    assert (context.cpu()[~seen] == 0).all()
    assert (logsum.cpu()[~seen] == torch.finfo(torch.float32).min).all()
    torch.testing.assert_close(context.cpu().float(), wanted, atol=forward, rtol=forward)
    torch.testing.assert_close(logsum.cpu()[seen], wanted_logsum[seen], atol=forward, rtol=forward)
    pull, push = torch.randn(wanted.shape, generator=generator), torch.randn(wanted_logsum.shape, generator=generator)
    ((context.cpu().float() * pull).sum() + (logsum.cpu() * push)[seen].sum()).backward()
    ((wanted * pull).sum() + (wanted_logsum * push)[seen].sum()).backward()
    for name, argument in theirs.items():
        if argument.requires_grad:
            ours = given[name].grad
            assert ours is not None and ours.dtype == given[name].dtype, name
            gap = (ours.cpu().float() - argument.grad).abs().max()
            assert gap <= backward * max(1.0, argument.grad.abs().max()), name


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ((2, 2, 19, 36, 5), "uvr"),
        ((1, 3, 33, 33, 16), "uvr"),
        ((3, 1, 16, 48, 41), "uvr"),
        ((2, 1, 1, 37, 16), "uvr"),
        ((1, 1, 1, 1, 5), "uvr"),
        ((1, 2, 21, 34, 16), "urt"),
        ((1, 2, 21, 34, 16), "rt"),
        ((2, 1, 17, 20, 5), "u"),
        ((2, 1, 40, 3, 16), ""),
    ],
)
def test_the_kernels_are_the_naive_truth(sizes: tuple[int, int, int, int, int], parts: str) -> None:
    given = problem(1, sizes, torch.float32, parts)
    check(given, naive.relative_attention, run_relative, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("sizes", [(2, 2, 17, 20, 5), (1, 1, 33, 36, 16)])
def test_gradients_in_a_fixed_order_are_the_naive_truth(sizes: tuple[int, int, int, int, int]) -> None:
    """Without additions in any order: the kernel of distances goes through lanes and blocks one after the other."""
    given = problem(13, sizes, torch.float32, "uvrt")
    torch.use_deterministic_algorithms(True)
    try:
        check(given, naive.relative_attention, run_relative, torch.Generator().manual_seed(2))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_kernels_take_half_precision(dtype: torch.dtype) -> None:
    given = problem(3, (2, 1, 19, 36, 16), dtype)
    check(given, naive.relative_attention, run_relative, torch.Generator().manual_seed(4))


def run_relative(**given: Any) -> tuple[Tensor, Tensor]:
    read = relative_attention(**given, with_logsum=True)
    assert read.logsum is not None and read.weights is None
    return read.context, read.logsum


@pytest.mark.parametrize(
    ("slots", "num_keys", "right"), [(23, 20, True), (40, 7, True), (17, 17, False), (1, 1, True), (23, 7, False)]
)
def test_slots_look_ahead_through_the_same_kernels(slots: int, num_keys: int, right: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    draw = drawn(generator, torch.float32)
    key = torch.arange(slots - num_keys + 1, slots + 1)
    first = torch.randint(slots - num_keys + 1, slots + 2, (2,), generator=generator)
    visible = (key >= first[:, None])[:, None].expand(2, slots, num_keys)
    visible = visible & (key > torch.arange(slots)[:, None]) if right else visible
    given = {
        "queries": draw(2, 2, slots, 5),
        "keys": draw(2, 2, num_keys, 5),
        "values": draw(2, 2, num_keys, 5),
        "visible": visible.to(DEVICE),
        "content_bias": draw(2, 5),
        "position_bias": draw(2, 5),
        "positions": draw(slots + num_keys - 1, 2, 5),
    }

    def run(**given: Any) -> tuple[Tensor, Tensor]:
        read = ahead.look_ahead(**given, forward_only=right)
        assert read.logsum is not None
        return read.context, read.logsum

    check(given, naive_ahead.look_ahead, run, generator)


def test_no_mask_lets_every_query_see_every_key() -> None:
    given = problem(6, (1, 2, 18, 35, 16), torch.float32, "")
    visible = given.pop("visible")
    free = run_relative(**given, visible=None)
    masked = run_relative(**given, visible=torch.ones_like(visible))
    for one, other in zip(free, masked, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_arguments_may_be_views_of_any_kind() -> None:
    given = problem(7, (2, 2, 19, 30, 5), torch.float32)
    plain = run_relative(**given)
    turned = {
        name: value.detach().transpose(0, -1).contiguous().transpose(0, -1)
        for name, value in given.items()
        if value is not None
    }
    for one, other in zip(run_relative(**turned), plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


# Dropout


def test_dropout_is_that_of_its_seed_forward_and_backward() -> None:
    given = problem(8, (1, 2, 20, 30, 16), torch.float32)
    rate, results = 0.3, []
    for _ in range(2):
        torch.manual_seed(11)
        read = relative_attention(**given, dropout=rate, with_logsum=True)
        results.append(read.context)
    assert torch.equal(*results)
    assert not torch.equal(results[0], relative_attention(**given, dropout=rate).context)
    plain = run_relative(**given)
    torch.testing.assert_close(read.logsum, plain[1], atol=1e-6, rtol=1e-6)
    # The context is linear in the values, so their gradient tells the weights that were used, dropout and all.
    values = given["values"]
    pull = torch.randn(results[0].shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    (gradient,) = torch.autograd.grad((results[0] * pull).sum(), values)
    torch.testing.assert_close((gradient * values).sum(), (results[0] * pull).sum(), atol=1e-3, rtol=1e-4)


def test_gradients_through_dropout_are_those_of_finite_differences() -> None:
    given = problem(9, (1, 1, 17, 20, 5), torch.float32)
    names = [name for name, value in given.items() if isinstance(value, Tensor) and value.requires_grad]
    directions = {name: torch.randn(given[name].shape, device=DEVICE) for name in names}

    def loss(step: float) -> Tensor:
        torch.manual_seed(3)
        moved = {name: given[name] + step * directions[name] for name in names}
        read = relative_attention(**given | moved, dropout=0.4, with_logsum=True)
        return (read.context * pull).sum()

    pull = torch.randn(given["queries"].shape, device=DEVICE)
    exact = sum(
        (gradient * directions[name]).sum()
        for name, gradient in zip(names, torch.autograd.grad(loss(0.0), [given[name] for name in names]), strict=True)
    )
    with torch.no_grad():
        near = (loss(1e-2) - loss(-1e-2)) / 2e-2
    torch.testing.assert_close(near, exact, atol=5e-2, rtol=5e-3)


def test_dropout_drops_at_its_rate_and_keeps_the_mean() -> None:
    queries = torch.zeros(1, 2, 16, 16, device=DEVICE)
    keys = torch.zeros(1, 2, 256, 16, device=DEVICE)
    # With equal weights the context counts the keys that were kept.
    read = relative_attention(queries, keys, torch.ones_like(keys), None, dropout=0.25)
    assert abs(read.context.mean() - 1) < 0.02
    assert 0.02 < read.context[..., 0].std() < 0.06
    columns = [read.context[0, head, :, 0] for head in range(2)]
    assert not torch.equal(*columns)


# As an operator


def test_the_operator_is_well_registered() -> None:
    given = problem(10, (1, 2, 17, 20, 5), torch.float32, "uvrt")
    arguments = [given[name] for name in list(given)]
    seed = torch.tensor([5], device=DEVICE)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(fused._attention, (*arguments, seed, 0.1), test_utils=checks)


def test_a_second_derivative_is_refused() -> None:
    given = problem(11, (1, 1, 3, 4, 5), torch.float32)
    (gradient,) = torch.autograd.grad(run_relative(**given)[0].square().sum(), given["queries"], create_graph=True)
    with pytest.raises(RuntimeError, match="attention_backward"):
        gradient.sum().backward()


# In models


@pytest.mark.parametrize("name", ["transformer-xl", "lamemo"])
def test_a_model_through_the_kernels_equals_the_plain_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = VARIANTS[name].model(torch.float32, num_layers=2, num_heads=1).to(DEVICE)
    carrying = copy.deepcopy(model).train()
    carrying.memory_gradient = True
    results = []
    for mode in ("off", "on"):
        monkeypatch.setattr(fused, "MODE", mode)
        carrying.zero_grad()
        memory, losses = carrying.init_memory(2), []
        for number, tokens in enumerate(text(model, 5, 5, lanes=2)):
            starts = torch.tensor([False, number == 1], device=DEVICE)
            hidden, memory, _ = carrying(tokens.to(DEVICE), memory, starts)
            losses.append(carrying.head.loss(hidden, tokens.to(DEVICE)))
        torch.stack(losses).mean().backward()
        gradients = [parameter.grad.clone() for parameter in carrying.parameters() if parameter.grad is not None]
        results.append([torch.stack(losses).detach(), *gradients])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-3)


def test_one_graph_holds_the_kernels() -> None:
    torch._dynamo.reset()
    given = problem(12, (1, 1, 17, 20, 5), torch.float32)
    leaves = [value for value in given.values() if isinstance(value, Tensor) and value.requires_grad]

    def run(**given: Any) -> Tensor:
        read = relative_attention(**given, dropout=0.2, with_logsum=True)
        assert read.logsum is not None
        return read.context.square().sum() + read.logsum.clamp(min=-9).sum()

    results = []
    for call in (torch.compile(run, fullgraph=True, backend="aot_eager"), run):
        torch.manual_seed(4)
        loss = call(**given)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for compiled, plain in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-4)
