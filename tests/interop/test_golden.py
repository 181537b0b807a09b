"""Equality with the published implementations: outputs, memories, loss and gradients of every golden file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from remanence.interop import from_published, published_layout
from remanence.models import LaMemoMemory, LanguageModel

GOLDEN = Path(__file__).parent.parent / "golden"
FILES = sorted([*GOLDEN.glob("lamemo_*.npz"), *GOLDEN.glob("transformer_xl_*.npz")])


class Golden:
    """One golden file and the model with its weights."""

    def __init__(self, path: Path, dtype: type = np.float64) -> None:
        self.arrays: dict[str, NDArray[Any]] = dict(np.load(path, allow_pickle=False))
        self.config = json.loads(str(self.arrays["config"]))
        self.kind = "lamemo" if path.stem.startswith("lamemo") else "transformer-xl"
        weights = {name[8:]: array for name, array in self.arrays.items() if name.startswith("weights/")}
        cast = {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in weights.items()}
        self.model: LanguageModel = from_published(self.kind, cast, self.config)  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    @property
    def segments(self) -> int:
        return len(self.config["segment_lengths"])


def gap(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return (ours.double() - theirs).abs().max().item() if ours.numel() else 0.0


def memory_gap(golden: Golden, segment: int, memory: Any) -> float:
    """Largest difference of the rows written so far; all others must be invalid (or zeros that count as rows)."""
    key = "embedding" if isinstance(memory, LaMemoMemory) else "hidden/0"
    rows = golden[f"memory/{segment}/{key}"].shape[1] if f"memory/{segment}/{key}" in golden.arrays else 0
    assert memory.valid.sum(1).tolist() == [rows] * memory.lanes
    newest = slice(memory.length - rows, None)
    worst = 0.0
    if isinstance(memory, LaMemoMemory):
        worst = gap(memory.embedding[:, newest], golden[f"memory/{segment}/embedding"])
        for layer, (context, logsum) in enumerate(zip(memory.context, memory.logsum, strict=True)):
            worst = max(worst, gap(context[:, newest], golden[f"memory/{segment}/context/{layer}"]))
            worst = max(worst, gap(logsum[:, newest], golden[f"memory/{segment}/logsum/{layer}"]))
    elif rows:
        for layer, hidden in enumerate(memory.hidden):
            worst = max(worst, gap(hidden[:, newest], golden[f"memory/{segment}/hidden/{layer}"]))
    return worst


def run(golden: Golden) -> tuple[float, Tensor]:
    """Read every segment; the largest difference of scores and memories, and the loss of the last segment."""
    model, worst = golden.model, 0.0
    memory = model.init_memory(golden.config["batch"])
    loss = torch.zeros(())
    for segment in range(golden.segments):
        hidden, memory, _ = model(golden[f"tokens/{segment}"], memory)
        logits = model.head.logits(hidden)
        if f"logits/{segment}" in golden.arrays:
            worst = max(worst, gap(logits, golden[f"logits/{segment}"]))
        if f"log_probs/{segment}" in golden.arrays:
            worst = max(worst, gap(logits.log_softmax(-1), golden[f"log_probs/{segment}"]))
            nll = model.head.loss(hidden, golden[f"targets/{segment}"])
            worst = max(worst, gap(nll, golden[f"nll/{segment}"]))
            loss = nll.mean()
        worst = max(worst, memory_gap(golden, segment, memory))
    if "targets" in golden.arrays:
        loss = model.head.loss(hidden, golden["targets"]).mean()
    return worst, loss


def test_all_golden_files_are_here() -> None:
    assert sum(file.stem.startswith("lamemo") for file in FILES) == 18
    assert sum(file.stem.startswith("transformer_xl") for file in FILES) == 14


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_outputs_memories_loss_and_gradients_equal_the_published_code(path: Path) -> None:
    golden = Golden(path)
    worst, loss = run(golden)
    assert worst < 1e-10
    assert gap(loss, golden["loss"]) < 1e-10
    loss.backward()
    compared = 0
    parameters = dict(golden.model.named_parameters())
    layout = published_layout(golden.model, golden.kind)
    covered = set()
    for name, place in layout.items():
        if f"grads/{name}" not in golden.arrays:
            continue
        gradient = parameters[place.parameter].grad
        assert gradient is not None, name
        assert gap(place.of(gradient), golden[f"grads/{name}"]) < 1e-10, name
        covered.add(place.parameter)
        compared += 1
    assert compared == sum(name.startswith("grads/") for name in golden.arrays)
    assert covered == set(parameters)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_float32_stays_close_to_the_published_code(path: Path) -> None:
    golden = Golden(path, np.float32)
    loose = golden.config["pre_norm"] or bool(golden.config.get("cutoffs"))
    worst, loss = run(golden)
    assert worst < (1e-4 if loose else 2e-5)
    loss.backward()
    parameters = dict(golden.model.named_parameters())
    for name, place in published_layout(golden.model, golden.kind).items():
        if f"grads/{name}" in golden.arrays:
            theirs = golden[f"grads/{name}"]
            gradient = parameters[place.parameter].grad
            assert gradient is not None
            assert gap(place.of(gradient), theirs) < 1e-4 * max(theirs.abs().max().item(), 1e-3), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_token_by_token_gives_the_published_memories(path: Path) -> None:
    golden = Golden(path)
    model = golden.model
    memory = model.init_memory(golden.config["batch"])
    name = "logits" if "logits/0" in golden.arrays else "log_probs"
    with torch.no_grad():
        for segment in range(golden.segments):
            tokens = golden[f"tokens/{segment}"]
            for place in range(tokens.shape[1]):
                hidden, memory, _ = model(tokens[:, place, None], memory, close=place == tokens.shape[1] - 1)
                logits = model.head.logits(hidden)[:, 0]
                logits = logits if name == "logits" else logits.log_softmax(-1)
                assert gap(logits, golden[f"{name}/{segment}"][:, place]) < 1e-10
            assert memory_gap(golden, segment, memory) < 1e-10
