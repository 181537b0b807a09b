"""Fused attention on a CUDA GPU: shapes of real models, and whole models, against the plain path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.gpu.test_cuda import read
from torch import Tensor

from remanence.models import LaMemoConfig, TransformerXLConfig, build
from remanence.ops.attention import fused, relative_attention
from remanence.ops.look_ahead import look_ahead

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype).requires_grad_()


def problem(lanes: int, heads: int, rows: int, num_keys: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "queries": draw(lanes, heads, rows, width, dtype=dtype),
        "keys": draw(lanes, heads, num_keys, width, dtype=dtype),
        "values": draw(lanes, heads, num_keys, width, dtype=dtype),
        "content_bias": draw(heads, width, dtype=torch.float32),
        "position_bias": draw(heads, width, dtype=torch.float32),
    }


def compare(run: Any, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels err no more than four times as much as the plain path in the same dtype, against float64."""
    leaves = list(given.values())
    exact = {name: value.detach().double().requires_grad_() for name, value in given.items()}
    results = []
    for arguments, mode in ((exact, "off"), (given, "off"), (given, "on")):
        monkeypatch.setattr(fused, "MODE", mode)
        found = run(**arguments)
        torch.manual_seed(1)
        pulls = [torch.randn(each.shape, device="cuda") for each in (found.context, found.logsum)]
        loss = (found.context * pulls[0]).sum() + (found.logsum * pulls[1]).sum()
        leaves = list(arguments.values())
        results.append([found.context, found.logsum, *torch.autograd.grad(loss, leaves)])
    for truth, plain, ours in zip(*results, strict=True):
        scale = truth.norm().clamp(min=1e-6)
        allowed = 4 * ((plain.double() - truth).norm() / scale).item() + 1e-3
        assert ((ours.double() - truth).norm() / scale).item() < allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("lanes", "heads", "segment", "slots", "width"),
    [(3, 8, 512, 512, 64), (4, 10, 150, 600, 41), (2, 2, 100, 33, 128), (2, 3, 17, 0, 16)],
)
def test_looking_back(
    lanes: int, heads: int, segment: int, slots: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = problem(lanes, heads, segment, slots + segment, width, dtype)
    given["positions"] = draw(slots + segment, heads, width, dtype=dtype)
    visible = torch.ones(segment, slots + segment, dtype=torch.bool, device="cuda").tril(slots).repeat(lanes, 1, 1)
    # The slots of each lane are written to a different degree.
    for lane in range(lanes):
        visible[lane, :, : slots * lane // lanes] = False
    compare(lambda **given: relative_attention(**given, visible=visible, with_logsum=True), given, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("slots", "num_keys", "width"), [(512, 512, 64), (600, 150, 41), (100, 33, 16)])
def test_looking_ahead(
    slots: int, num_keys: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = problem(3, 4, slots, num_keys, width, dtype)
    given["positions"] = draw(slots + num_keys - 1, 4, width, dtype=dtype)
    key = torch.arange(slots - num_keys + 1, slots + 1, device="cuda")
    visible = (key > torch.arange(slots, device="cuda")[:, None]).repeat(3, 1, 1)
    compare(lambda **given: look_ahead(**given, visible=visible, forward_only=True), given, monkeypatch)


CONFIGS = [
    config(
        vocab_size=61, segment_length=9, num_layers=3, model_width=32, num_heads=2, head_width=16,
        feed_forward_width=48, dropout=0.0, memory_length=13,
    )
    for config in (TransformerXLConfig, LaMemoConfig)
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.architecture)
def test_a_model_under_autocast_through_the_kernels(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, results = build(config, seed=1).cuda(), []
    for mode in ("off", "on"):
        monkeypatch.setattr(fused, "MODE", mode)
        with torch.autocast("cuda", torch.bfloat16):
            results.append(read(model, "cuda"))
    (expected, gradients), (losses, ours) = results
    assert (losses - expected).abs().max() < 0.05
    for one, other in zip(ours, gradients, strict=True):
        assert (one - other).norm() <= 0.15 * other.norm() + 1e-3


@pytest.mark.filterwarnings("ignore:TensorFloat32:UserWarning")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.architecture)
def test_one_compiled_graph_with_the_kernels(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "MODE", "on")
    torch._dynamo.reset()
    model = build(config, seed=1).cuda()
    expected, gradients = read(model, "cuda")
    losses, ours = read(model, "cuda", torch.compile(model, fullgraph=True, dynamic=False))
    torch.testing.assert_close(losses, expected, rtol=0, atol=2e-4)
    for gradient, other in zip(ours, gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=2e-4)


def test_runs_are_equal_bit_for_bit_where_torch_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    given = problem(4, 4, 300, 700, 64, torch.bfloat16)
    given["positions"] = draw(700, 4, 64, dtype=torch.bfloat16)
    visible = torch.ones(1, 300, 700, dtype=torch.bool, device="cuda").tril(400)
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for _ in range(2):
            torch.manual_seed(5)
            context = relative_attention(**given, visible=visible, dropout=0.1).context
            results.append([context, *torch.autograd.grad(context.float().square().sum(), list(given.values()))])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, *results))
