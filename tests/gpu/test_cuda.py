"""The models on a CUDA GPU give the numbers of the CPU. Skipped where there is no such GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from remanence.models import LaMemoConfig, LanguageModel, TransformerConfig, TransformerXLConfig, build
from remanence.models.base import ModelConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "segment_length": 9,
    "num_layers": 3,
    "model_width": 32,
    "num_heads": 2,
    "head_width": 16,
    "feed_forward_width": 48,
    "dropout": 0.0,
}
CONFIGS: list[ModelConfig] = [
    TransformerConfig(**SIZES),
    TransformerXLConfig(**SIZES, memory_length=13),
    TransformerXLConfig(**SIZES, memory_length=13, cutoffs=(20, 40), div_value=2),
    LaMemoConfig(**SIZES, memory_length=13),
    LaMemoConfig(**SIZES, memory_length=29),
    LaMemoConfig(**SIZES, memory_length=13, window="full"),
    LaMemoConfig(**SIZES, memory_length=13, position="transformer-xl"),
]


def names(config: ModelConfig) -> str:
    return f"{config.architecture}-{getattr(config, 'position', '')}-{getattr(config, 'memory_length', 0)}"


def stream(segments: int = 4, lanes: int = 3, length: int = 9) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(61, (segments, lanes, length + 1), generator=generator)
    starts = torch.zeros(segments, lanes, dtype=torch.bool)
    starts[2, 1] = True
    return [(tokens[i, :, :-1], tokens[i, :, 1:], starts[i]) for i in range(segments)]


def read(model: LanguageModel, device: str, run: Any = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Losses of all segments on the CPU, and the gradients of their mean."""
    model = model.to(device)
    model.zero_grad()
    memory, losses = model.init_memory(3), []
    for tokens, targets, starts in stream():
        hidden, memory, _ = (model if run is None else run)(tokens.to(device), memory, starts.to(device))
        losses.append(model.head.loss(hidden, targets.to(device)))
    losses = torch.stack(losses)
    losses.mean().backward()
    gradients = [each.grad.cpu().clone() for each in model.parameters() if each.grad is not None]
    return losses.detach().cpu(), gradients


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_losses_and_gradients_equal_those_of_the_cpu(config: ModelConfig) -> None:
    model = build(config, seed=1).double()
    expected, gradients = read(model, "cpu")
    losses, ours = read(model, "cuda")
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)
    for gradient, other in zip(ours, gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_bfloat16_autocast_stays_close_to_float32(config: ModelConfig) -> None:
    model = build(config, seed=1).cuda()
    expected, _ = read(model, "cuda")
    with torch.autocast("cuda", torch.bfloat16):
        losses, _ = read(model, "cuda")
    assert losses.isfinite().all()
    assert (losses - expected).abs().mean() < 0.05


# The compiler advises TensorFloat-32, which would not give the same numbers.
@pytest.mark.filterwarnings("ignore:TensorFloat32:UserWarning")
@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[1], CONFIGS[3]], ids=names)
def test_one_compiled_graph_gives_the_same_numbers(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    torch._dynamo.reset()
    model = build(config, seed=1).cuda()
    expected, gradients = read(model, "cuda")
    losses, ours = read(model, "cuda", torch.compile(model, fullgraph=True, dynamic=False))
    torch.testing.assert_close(losses, expected, rtol=0, atol=2e-4)
    for gradient, other in zip(ours, gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=2e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_token_by_token_equals_the_segment_at_once(config: ModelConfig) -> None:
    model = build(config, seed=1).double().cuda().eval()
    memory = again = model.init_memory(3)
    with torch.no_grad():
        for tokens, _, starts in stream():
            tokens = tokens.cuda()
            expected, memory, _ = model(tokens, memory, starts.cuda())
            for place in range(tokens.shape[1]):
                first, last = place == 0, place == tokens.shape[1] - 1
                hidden, again, _ = model(tokens[:, place, None], again, starts.cuda() if first else None, close=last)
                torch.testing.assert_close(hidden[:, 0], expected[:, place], rtol=0, atol=1e-10)


def test_a_memory_moves_between_cpu_and_gpu() -> None:
    model = build(CONFIGS[3], seed=1).cuda().eval()
    tokens, _, _ = stream()[0]
    _, memory, _ = model(tokens.cuda(), model.init_memory(3))
    there_and_back = memory.to("cpu").to("cuda")
    for name, tensor in memory.state()[0].items():
        assert torch.equal(there_and_back.state()[0][name], tensor)
