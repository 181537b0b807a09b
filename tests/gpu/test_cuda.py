"""The models on a CUDA GPU give the numbers of the CPU. Skipped where there is no such GPU.

`REMANENCE_GPU_TESTS=cpu` runs the bodies on the CPU instead, against itself: it proves nothing but that they run.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.unchecked import without_checks

from remanence.data import Batch
from remanence.data.tokenizers.byte import ByteTokenizer
from remanence.generation import Sampling, Session
from remanence.generation.graphs import Cycle, recorder_of
from remanence.memory import load_memory
from remanence.models import LanguageModel, build, config_class
from remanence.models.base import ModelConfig
from remanence.training.horizon import accumulate_gradients, read_segment
from remanence.training.precision import autocast

DEVICE = os.environ.get("REMANENCE_GPU_TESTS", "cuda")

pytestmark = [
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # The compiler advises TensorFloat-32, which would not give the same numbers.
    pytest.mark.filterwarnings("ignore:TensorFloat32:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def shapes_unchecked() -> Iterator[None]:
    """The checks of shapes cannot be part of one compiled graph."""
    with without_checks():
        yield


LENGTH, VOCABULARY, LANES = 9, 61, 3
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "segment_length": LENGTH,
    "num_layers": 3,
    "model_width": 32,
    "num_heads": 2,
    "head_width": 16,
    "feed_forward_width": 48,
    "dropout": 0.0,
}


def config(architecture: str, **settings: Any) -> ModelConfig:
    return config_class(architecture)(**SIZES | settings)


CONFIGS: dict[str, ModelConfig] = {
    "transformer": config("transformer"),
    "transformer-xl": config("transformer-xl", memory_length=13),
    "lamemo": config("lamemo", memory_length=13),
    "compressive": config("compressive", memory_length=13, compressed_length=5, compression_rate=3),
    "infinite-former": config("infinite-former", memory_length=13, num_basis=12),
    "memformer": config("memformer", num_slots=5),
    "rmt": config("rmt", memory_tokens=4),
}
"""One of each architecture."""
MORE = {
    "transformer-xl-adaptive": config("transformer-xl", memory_length=13, cutoffs=(20, 40), div_value=2),
    "transformer-xl-odd-widths": config(
        "transformer-xl", memory_length=13, model_width=26, num_heads=3, head_width=7, feed_forward_width=35
    ),
    "lamemo-long": config("lamemo", memory_length=29),
    "lamemo-full": config("lamemo", memory_length=13, window="full"),
    "lamemo-signed": config("lamemo", memory_length=13, position="transformer-xl"),
    "lamemo-odd-widths": config(
        "lamemo", memory_length=13, model_width=26, num_heads=3, head_width=7, feed_forward_width=35
    ),
    "compressive-most-used": config(
        "compressive", memory_length=13, compressed_length=5, compression_rate=3, compression="most-used"
    ),
    "infinite-former-no-slots": config("infinite-former", memory_length=0, num_basis=12),
    "memformer-bos": config("memformer", num_slots=5, alignment="bos"),
}
ALL = CONFIGS | MORE


def stream(segments: int = 4) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(VOCABULARY, (segments, LANES, LENGTH + 1), generator=generator)
    starts = torch.zeros(segments, LANES, dtype=torch.bool)
    starts[2, 1] = True
    return [(tokens[i, :, :-1], tokens[i, :, 1:], starts[i]) for i in range(segments)]


def read(model: LanguageModel, device: str, run: Any = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses of all segments on the CPU, and the gradients of their mean."""
    model = model.to(device)
    model.zero_grad()
    memory, losses = model.init_memory(LANES), []
    for tokens, targets, starts in stream():
        hidden, memory, _ = (model if run is None else run)(tokens.to(device), memory, starts.to(device))
        losses.append(model.head.loss(hidden, targets.to(device)))
    losses = torch.stack(losses)
    losses.mean().backward()
    gradients = {name: each.grad.cpu().clone() for name, each in model.named_parameters() if each.grad is not None}
    return losses.detach().cpu(), gradients


def check_gradients(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], largest: float) -> None:
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(
            gradient, expected[name], rtol=0, atol=largest, msg=lambda told, n=name: f"{n}: {told}"
        )


@pytest.mark.parametrize("name", ALL)
def test_losses_and_gradients_equal_those_of_the_cpu(name: str) -> None:
    model = build(ALL[name], seed=1).double()
    expected, gradients = read(model, "cpu")
    losses, ours = read(model, DEVICE)
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)
    check_gradients(ours, gradients, 1e-10)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_autocast_stays_close_to_float32(name: str) -> None:
    model = build(ALL[name], seed=1).to(DEVICE)
    expected, gradients = read(model, DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        losses, ours = read(model, DEVICE)
    assert losses.isfinite().all()
    assert (losses - expected).abs().mean() < 0.05
    for each, gradient in ours.items():
        assert gradient.isfinite().all(), each
        # In bfloat16 a gradient is a hundredth off; one that is half wrong is no rounding.
        assert (gradient - gradients[each]).norm() < 0.3 * gradients[each].norm() + 1e-3, each


@pytest.mark.parametrize("name", CONFIGS)
def test_one_compiled_graph_gives_the_same_numbers(name: str) -> None:
    torch._dynamo.reset()
    model = build(ALL[name], seed=1).to(DEVICE)
    expected, gradients = read(model, DEVICE)
    backend = "inductor" if DEVICE == "cuda" else "eager"
    # The first memory has no gradient behind it, where later ones have.
    with torch._dynamo.config.patch(error_on_recompile=not model.memory_carries_gradient):
        losses, ours = read(model, DEVICE, torch.compile(model, fullgraph=True, dynamic=False, backend=backend))
    torch.testing.assert_close(losses, expected, rtol=0, atol=2e-4)
    check_gradients(ours, gradients, 2e-4)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("engine", ["full", "recompute", "replay"])
def test_engines_give_one_gradient(name: str, engine: str) -> None:
    if name in ("transformer", "infinite-former"):
        pytest.skip("no gradient crosses segments")
    settings: dict[str, Any] = {} if name in ("memformer", "rmt") else {"memory_gradient": True}
    if name == "compressive":
        settings["auxiliary"] = "none"
    found = []
    for device, how in (("cpu", "full"), (DEVICE, engine)):
        model = build(dataclasses.replace(ALL[name], **settings), seed=1).double().to(device).train()
        batches = [Batch(*(each.to(device) for each in given)) for given in stream(3)]
        horizon = accumulate_gradients(model, batches, model.init_memory(LANES), engine=how)
        gradients = {key: each.grad.cpu() for key, each in model.named_parameters() if each.grad is not None}
        found.append((horizon.loss.cpu(), gradients))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-10)
    check_gradients(found[1][1], found[0][1], 1e-10)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_goes_on_from_what_was_saved(name: str, tmp_path: Path) -> None:
    model = build(dataclasses.replace(ALL[name], dropout=0.2), seed=1).to(DEVICE).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = [Batch(*(each.to(DEVICE) for each in given)) for given in stream(4)]

    def steps(memory: Any, some: list[Batch]) -> Any:
        for batch in some:
            optimizer.zero_grad()
            around = partial(autocast, "bfloat16", DEVICE)
            memory = accumulate_gradients(model, [batch], memory, engine="full", around=around).memory
            optimizer.step()
        return memory

    torch.manual_seed(5)
    memory = steps(model.init_memory(LANES), batches[:2])
    memory.save(tmp_path / "memory")
    weights = {key: each.detach().cpu().clone() for key, each in model.state_dict().items()}
    moments = {key: [t.cpu().clone() for t in each.values()] for key, each in optimizer.state_dict()["state"].items()}
    state = torch.get_rng_state()
    expected = steps(memory, batches[2:])
    after = {key: each.detach().clone() for key, each in model.state_dict().items()}

    model.load_state_dict(weights)
    saved = optimizer.state_dict()
    for key, each in saved["state"].items():
        for tensor, value in zip(each.values(), moments[key], strict=True):
            tensor.copy_(value)
    optimizer.load_state_dict(saved)
    torch.set_rng_state(state)
    again = steps(load_memory(tmp_path / "memory")[0].to(DEVICE), batches[2:])
    for key, value in model.state_dict().items():
        # Equal bits on a CPU only: the fused kernels add up the table's gradient by atomics, in any order, on a GPU.
        close = torch.equal(value, after[key]) if DEVICE == "cpu" else torch.allclose(value, after[key], atol=1e-4)
        assert close, key
    assert again.state()[1] == expected.state()[1]


@pytest.mark.parametrize("name", ALL)
def test_token_by_token_equals_the_segment_at_once(name: str) -> None:
    model = build(ALL[name], seed=1).double().to(DEVICE).eval()
    memory = again = model.init_memory(LANES)
    with torch.no_grad():
        for tokens, _, starts in stream():
            tokens = tokens.to(DEVICE)
            expected, memory, _ = model(tokens, memory, starts.to(DEVICE))
            for place in range(LENGTH):
                first, last = place == 0, place == LENGTH - 1
                given = starts.to(DEVICE) if first else None
                hidden, again, _ = model(tokens[:, place, None], again, given, close=last)
                torch.testing.assert_close(hidden[:, 0], expected[:, place], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_memory_moves_between_cpu_and_gpu(name: str) -> None:
    model = build(ALL[name], seed=1).to(DEVICE).eval()
    tokens, _, _ = stream()[0]
    _, memory, _ = model(tokens.to(DEVICE), model.init_memory(LANES))
    there_and_back = memory.to("cpu").to(DEVICE)
    for key, tensor in memory.state()[0].items():
        assert torch.equal(there_and_back.state()[0][key], tensor)


# Decoding


@pytest.fixture
def recorder() -> Any:
    """CUDA graphs; on a CPU the tape that stands in for them."""
    from tests.generation.tape import TapeRecorder

    return recorder_of(torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device("cpu")) or TapeRecorder()


@pytest.mark.parametrize("lanes", [1, 5])
@pytest.mark.parametrize("name", ALL)
def test_decoding_by_graphs_equals_plain_decoding(
    name: str, lanes: int, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModel, "_check", lambda *arguments: None)
    model = build(ALL[name], seed=1).double().to(DEVICE).eval()

    def step(tokens: torch.Tensor, memory: Any) -> tuple[torch.Tensor, Any]:
        hidden, memory, _ = model(tokens, memory, close=memory.opened + 1 == LENGTH)
        return model.head.logits(hidden if model.shift else model.peek(memory))[:, -1], memory

    cycle = Cycle(step, LENGTH, recorder, lambda memory: model.waits(memory, close=memory.opened + 1 == LENGTH))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        first = torch.randint(VOCABULARY, (lanes, LENGTH), generator=generator).to(DEVICE)
        plain = memory = model.with_projections(model(first, model.init_memory(lanes)).memory)
        for place in range(3 * LENGTH + 2):
            token = torch.randint(VOCABULARY, (lanes, 1), generator=generator)
            logits, memory = cycle(token, memory)
            expected, plain = step(token.to(DEVICE), plain)
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10, msg=lambda told, at=place: f"{at}: {told}")
            ours, theirs = memory.state()[0], plain.state()[0]
            for key in theirs:
                torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-10)
    assert len(cycle.recorded) >= LENGTH - 1


@pytest.mark.filterwarnings("error::remanence.errors.SettingWarning")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_session_with_graphs_draws_the_tokens_of_the_cpu_through_a_pause_there(
    name: str, recorder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read, drawn and saved on the GPU by graphs; gone on with on the CPU, and the other way round."""
    if DEVICE == "cpu":
        monkeypatch.setattr(LanguageModel, "_check", lambda *arguments: None)
        monkeypatch.setattr("remanence.generation.session.recorder_of", lambda device: recorder)
    models = {
        device: build(dataclasses.replace(ALL[name], vocab_size=256), seed=1).double().to(device).eval()
        for device in ("cpu", DEVICE)
    }
    found = []
    for here, there, graphs in (("cpu", "cpu", False), (DEVICE, "cpu", True), ("cpu", DEVICE, True)):
        path = tmp_path / f"{here}-{there}-{graphs}"
        session = Session(
            models[here], ByteTokenizer(), samples=2, sampling=Sampling(top_k=40, top_p=0.9), seed=3, graphs=graphs
        )
        session.read("What was written before")
        steps = list(session.steps(25))
        session.save(path)
        found.append(steps + list(Session.load(path, models[there], ByteTokenizer(), graphs=graphs).steps(25)))
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_what_reads_a_segment_compiled_has_the_losses_of_plain_reading() -> None:
    """The function that training compiles, in bfloat16."""
    torch._dynamo.reset()
    backend = "inductor" if DEVICE == "cuda" else "eager"
    model = build(ALL["lamemo-odd-widths"], seed=1).to(DEVICE).eval()
    tokens, targets, starts = (each.to(DEVICE) for each in stream()[0])
    batch, memory = Batch(tokens, targets, starts), model.init_memory(LANES)
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        expected = read_segment(model, batch, memory)[0]
        ours = torch.compile(read_segment, fullgraph=True, dynamic=False, backend=backend)(model, batch, memory)[0]
    torch.testing.assert_close(ours.float(), expected.float(), rtol=0.02, atol=0)
