"""A memory on disk is the memory, whether its segment is open or closed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.variants import Variant, equal, histories, tensors, text

from remanence.memory import Distances, Memory, load_memory


@pytest.mark.parametrize("opened", [0, 2])
def test_saving_and_loading_is_bit_exact_and_so_is_going_on(variant: Variant, opened: int, tmp_path: Path) -> None:
    model = variant.model(torch.float32)
    tokens, after = text(model, 5, 4)
    memory = histories(model)
    if opened:
        memory = model(tokens[:, :opened], memory, close=False).memory
    memory.save(tmp_path / "memory.safetensors", {"step": 7, "name": "naïve"})
    loaded, metadata = load_memory(tmp_path / "memory.safetensors")
    assert metadata == {"step": 7, "name": "naïve"}
    assert type(loaded) is type(memory)
    assert equal(loaded, memory)
    assert loaded.state()[1] == memory.state()[1]
    assert (loaded.lanes, loaded.length, loaded.opened) == (memory.lanes, memory.length, opened)
    for close in (False, True, True):
        one, memory, _ = model(after, memory, close=close)
        other, loaded, _ = model(after, loaded, close=close)
        assert equal(other, one)
        assert equal(loaded, memory)


@pytest.mark.parametrize("hold", [Distances(2, 6), Distances(6, 2), Distances(3, None)])
def test_a_held_memory_goes_on_bit_for_bit_after_loading(remembering: Variant, hold: Distances, tmp_path: Path) -> None:
    if not remembering.relative:
        pytest.skip("it knows no distances")
    model = remembering.model(torch.float32)
    tokens, after = text(model, 5, 4)
    memory = model(tokens, model.init_memory(4, hold=hold)).memory
    memory = model(tokens[:, :2], memory, close=False).memory
    memory.save(tmp_path / "memory")
    loaded, _ = load_memory(tmp_path / "memory")
    assert loaded.hold == hold  # type: ignore[attr-defined]
    assert equal(model(after, loaded).hidden, model(after, memory).hidden)


def test_state_and_from_state_are_each_others_inverse(variant: Variant) -> None:
    model = variant.model()
    (tokens,) = text(model, 3)
    for memory in (histories(model), model(tokens, histories(model), close=False).memory):
        rebuilt = Memory.from_state(*memory.state())
        assert equal(rebuilt, memory)
        assert rebuilt.state()[1] == memory.state()[1]


def test_nbytes_is_what_a_save_writes_beside_its_header(variant: Variant, tmp_path: Path) -> None:
    model = variant.model(torch.float32)
    (tokens,) = text(model, 3)
    for memory in (histories(model), model(tokens, histories(model), close=False).memory):
        memory.save(tmp_path / "memory")
        written = (tmp_path / "memory").read_bytes()
        header = 8 + int.from_bytes(written[:8], "little")
        assert len(written) - header == memory.nbytes


def test_every_tensor_of_a_memory_has_its_lanes_first(variant: Variant) -> None:
    model = variant.model()
    (tokens,) = text(model, 3)
    for memory in (histories(model), model(tokens, histories(model), close=False).memory):
        assert all(tensor.shape[0] == 4 for tensor in tensors(memory).values())


def test_a_memory_keeps_its_size_from_the_first_step(variant: Variant) -> None:
    model = variant.model()
    memory = model.init_memory(4)
    shapes = {name: tensor.shape for name, tensor in tensors(memory).items()}
    for tokens in text(model, 5, 2, 9):
        memory = model(tokens, memory).memory
        assert {name: tensor.shape for name, tensor in tensors(memory).items()} == shapes
