"""Memory as a value: what can be done with one, and what a damaged file of one gives."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import random
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from remanence.errors import InputError
from remanence.memory import (
    Distances,
    Memory,
    derived,
    load_memory,
    newest,
    per_lane,
    per_slot,
    static,
)


@dataclass(frozen=True)
class Inner(Memory, kind="test-inner"):
    """Part of the memory below."""

    rows: tuple[Tensor, ...] = per_lane()
    tables: tuple[Tensor, ...] = derived(default=())
    tokens: int = static(default=0)


@dataclass(frozen=True)
class Sample(Memory, kind="test-sample"):
    """A memory with a field of every role."""

    hidden: tuple[Tensor, ...] = per_slot()
    valid: Tensor = per_slot()
    counts: Tensor = per_lane()
    flag: bool = static(default=False)
    hold: Distances | None = static(default=None)
    segment: Inner | None = per_lane(default=None)

    @property
    def opened(self) -> int:
        return 0 if self.segment is None else self.segment.tokens


def sample(lanes: int = 3, slots: int = 5, *, opened: bool = False) -> Sample:
    generator = torch.Generator().manual_seed(lanes + slots)
    segment = Inner(
        rows=tuple(torch.randn(lanes, 2, 2, generator=generator) for _ in range(2)),
        tables=(torch.randn(7, 2, generator=generator),),
        tokens=2,
    )
    return Sample(
        hidden=tuple(torch.randn(lanes, slots, 2, generator=generator) for _ in range(2)),
        valid=torch.ones(lanes, slots, dtype=torch.bool),
        counts=torch.arange(lanes) + 1,
        flag=True,
        hold=Distances(4, None),
        segment=segment if opened else None,
    )


def same(one: Memory, other: Memory) -> bool:
    (ours, described), (theirs, told) = one.state(), other.state()
    return described == told and ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


# What it is


def test_a_memory_knows_its_size() -> None:
    memory = sample()
    assert (memory.lanes, memory.length, memory.opened) == (3, 5, 0)
    assert sample(opened=True).opened == 2
    assert memory.nbytes == 2 * 3 * 5 * 2 * 4 + 3 * 5 + 3 * 8
    # Tables can be computed again and are not counted.
    assert sample(opened=True).nbytes == memory.nbytes + 2 * 3 * 2 * 2 * 4


def test_a_memory_without_slots_still_knows_its_lanes() -> None:
    memory = sample(slots=0)
    assert (memory.lanes, memory.length) == (3, 0)


def test_a_memory_cannot_be_changed() -> None:
    memory = sample()
    with pytest.raises(dataclasses.FrozenInstanceError):
        memory.flag = False  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del memory.counts  # type: ignore[misc]


def test_no_operation_changes_the_memory_it_is_called_on() -> None:
    memory = sample(opened=True)
    before = Memory.from_state({name: tensor.clone() for name, tensor in memory.state()[0].items()}, memory.state()[1])
    closed = sample()
    kept = Memory.from_state({name: tensor.clone() for name, tensor in closed.state()[0].items()}, closed.state()[1])
    closed.reset(torch.tensor([True, False, True]))
    memory.to(dtype=torch.float64)
    memory.detach()
    _ = memory[1:], memory[0], memory[torch.tensor([True, False, True])]
    Memory.concatenate([memory, memory])
    closed.resize(2)
    closed.resize(8)
    assert same(memory, before) and same(closed, kept)


# What can be done with it


@pytest.mark.parametrize(
    ("lanes", "chosen"),
    [
        (1, [1]),
        (-1, [2]),
        (slice(0, 2), [0, 1]),
        (slice(None, None, 2), [0, 2]),
        ([2, 0, 0], [2, 0, 0]),
        (torch.tensor([1, 0]), [1, 0]),
        (torch.tensor([True, False, True]), [0, 2]),
        ([False, True, False], [1]),
        (torch.tensor([], dtype=torch.long), []),
    ],
)
@pytest.mark.parametrize("opened", [False, True])
def test_lanes_are_chosen_by_number_slice_list_or_mask(lanes: Any, chosen: list[int], opened: bool) -> None:
    memory = sample(opened=opened)
    part = memory[lanes]
    assert part.lanes == len(chosen) and part.length == 5
    tensors = memory.state()[0]
    assert all(torch.equal(tensor, tensors[name][chosen]) for name, tensor in part.state()[0].items())
    assert part.state()[1] == memory.state()[1]
    if opened:
        assert part.segment is not None and memory.segment is not None
        assert torch.equal(part.segment.tables[0], memory.segment.tables[0])


def test_a_lane_that_does_not_exist_is_an_error() -> None:
    for lane in (3, -4):
        with pytest.raises(IndexError, match="3 lanes"):
            sample()[lane]
    with pytest.raises(IndexError):
        sample()[torch.tensor([5])]


@pytest.mark.parametrize("opened", [False, True])
def test_memories_are_joined_by_lane(opened: bool) -> None:
    memory = sample(opened=opened)
    joined = Memory.concatenate([memory[2], memory[:2], memory[2]])
    assert same(joined, memory[[2, 0, 1, 2]])


def test_one_memory_alone_is_joined_to_itself() -> None:
    assert same(Memory.concatenate([sample()]), sample())


@pytest.mark.parametrize(
    "other",
    [
        sample(slots=4),
        sample(opened=True),
        dataclasses.replace(sample(), flag=False),
        dataclasses.replace(sample(), hold=Distances(5, None)),
        dataclasses.replace(sample(), hidden=sample().hidden[:1]),
        Inner(rows=(torch.zeros(3, 2, 2),)),
    ],
    ids=["length", "open", "setting", "hold", "layers", "kind"],
)
def test_memories_that_differ_in_more_than_lanes_are_not_joined(other: Memory) -> None:
    with pytest.raises(InputError, match="differ"):
        Memory.concatenate([sample(), other])


def test_no_memories_are_not_joined() -> None:
    with pytest.raises(InputError, match="at least one"):
        Memory.concatenate([])


def test_a_reset_forgets_the_lanes_that_start_and_no_other() -> None:
    memory, starts = sample(), torch.tensor([True, False, True])
    for name, tensor in memory.reset(starts).state()[0].items():
        assert not tensor[starts].any()
        assert torch.equal(tensor[~starts], memory.state()[0][name][~starts])


def test_a_lane_is_not_reset_inside_a_segment() -> None:
    with pytest.raises(InputError, match="while a segment is open"):
        sample(opened=True).reset(torch.tensor([True, False, True]))


def test_a_reset_forgets_even_what_is_not_a_number() -> None:
    """A lane that went wrong must not live on as 0 times NaN."""
    memory = sample()
    broken = dataclasses.replace(memory, hidden=tuple(torch.full_like(rows, torch.nan) for rows in memory.hidden))
    assert not any(rows.any() for rows in broken.reset(torch.ones(3, dtype=torch.bool)).hidden)


@pytest.mark.parametrize("length", [0, 1, 4, 5, 6, 11])
def test_resizing_keeps_the_newest_slots_and_adds_unwritten_ones(length: int) -> None:
    memory = sample()
    resized = memory.resize(length)
    assert resized.length == length and resized.lanes == 3
    kept = min(length, 5)
    for rows, before in zip((*resized.hidden, resized.valid), (*memory.hidden, memory.valid), strict=True):
        assert torch.equal(rows[:, length - kept :], before[:, 5 - kept :])
        assert not rows[:, : length - kept].any()
    assert torch.equal(resized.counts, memory.counts) and resized.hold == memory.hold


def test_resizing_to_a_negative_length_or_while_open_is_refused() -> None:
    with pytest.raises(InputError, match="-1"):
        sample().resize(-1)
    with pytest.raises(InputError, match="open"):
        sample(opened=True).resize(3)


def test_casting_touches_floating_tensors_only() -> None:
    memory = sample(opened=True).to(dtype=torch.bfloat16)
    kinds = {name: tensor.dtype for name, tensor in memory.state()[0].items()}
    assert kinds.pop("valid") == torch.bool and kinds.pop("counts") == torch.long
    assert set(kinds.values()) == {torch.bfloat16}
    assert memory.segment is not None and memory.segment.tables[0].dtype == torch.bfloat16


def test_moving_takes_every_tensor_along() -> None:
    memory = sample(opened=True).to("meta")
    assert all(tensor.is_meta for tensor in memory.state()[0].values())
    assert memory.segment is not None and memory.segment.tables[0].is_meta


def test_detaching_cuts_every_tensor() -> None:
    memory = sample(opened=True)
    attached = dataclasses.replace(memory, hidden=tuple(rows.requires_grad_() * 2 for rows in memory.hidden))
    assert not any(tensor.requires_grad for tensor in attached.detach().state()[0].values())


@given(
    lanes=st.integers(1, 3),
    old=st.integers(0, 6),
    new=st.integers(1, 6),
    data=st.data(),
)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_the_newest_rows_are_those_of_each_lane_alone(lanes: int, old: int, new: int, data: Any) -> None:
    held = torch.arange(lanes * old).reshape(lanes, old, 1)
    rows = 100 + torch.arange(lanes * new).reshape(lanes, new, 1)
    counts = data.draw(st.lists(st.integers(0, new), min_size=lanes, max_size=lanes))
    kept = newest(held, rows, torch.tensor(counts))
    for lane, count in enumerate(counts):
        joint = [*held[lane, :, 0].tolist(), *rows[lane, :count, 0].tolist()]
        assert kept[lane, :, 0].tolist() == joint[len(joint) - old :]
    assert torch.equal(newest(held, rows), newest(held, rows, torch.full((lanes,), new)))


# On disk


@pytest.mark.parametrize("opened", [False, True])
def test_a_saved_memory_is_loaded_bit_for_bit(tmp_path: Path, opened: bool) -> None:
    memory = sample(opened=opened)
    memory.save(tmp_path / "memory", {"text": "é", "list": [1, None, {"deep": 2.5}]})
    loaded, metadata = load_memory(tmp_path / "memory")
    assert isinstance(loaded, Sample) and same(loaded, memory)
    assert metadata == {"text": "é", "list": [1, None, {"deep": 2.5}]}
    assert loaded.hold == Distances(4, None) and loaded.flag is True
    # What is derived is left for the model to compute again.
    assert loaded.segment is None or loaded.segment.tables == ()


def test_lanes_cut_out_of_a_memory_are_saved_as_they_are(tmp_path: Path) -> None:
    memory = sample()
    for part in (memory[1:], memory[[2, 0]], memory.resize(2), memory.resize(0)):
        part.save(tmp_path / "memory")
        assert same(load_memory(tmp_path / "memory")[0], part)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_every_type_of_number_is_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    memory = sample().to(dtype=dtype)
    memory.save(tmp_path / "memory")
    assert same(load_memory(tmp_path / "memory")[0], memory)


def test_saving_a_memory_that_hangs_on_a_graph_saves_its_values(tmp_path: Path) -> None:
    memory = sample()
    attached = dataclasses.replace(memory, hidden=tuple(rows.clone().requires_grad_() * 1 for rows in memory.hidden))
    attached.save(tmp_path / "memory")
    assert same(load_memory(tmp_path / "memory")[0], memory)


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "memory"
    sample().save(path)
    before = path.read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        sample(lanes=1).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["memory"]


def test_metadata_that_is_not_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        sample().save(tmp_path / "memory", {"a": object()})
    assert not os.listdir(tmp_path)


def test_the_loaded_memory_does_not_depend_on_its_file(tmp_path: Path) -> None:
    memory = sample()
    memory.save(tmp_path / "memory")
    loaded, _ = load_memory(tmp_path / "memory")
    (tmp_path / "memory").write_bytes(b"\0" * 3)
    assert same(loaded, memory)


# Files that are damaged or something else


def saved(tmp_path: Path, *, opened: bool = True) -> tuple[Path, bytes]:
    path = tmp_path / "memory"
    sample(lanes=2, slots=3, opened=opened).save(path, {"step": 3})
    return path, path.read_bytes()


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path, whole = saved(tmp_path)
    for length in {*range(20), *range(20, len(whole), 7), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="memory"):
            load_memory(path)


def test_a_file_with_bytes_behind_its_end_is_refused(tmp_path: Path) -> None:
    path, whole = saved(tmp_path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError):
        load_memory(path)


def test_a_file_with_any_bit_flipped_is_refused(tmp_path: Path) -> None:
    path, whole = saved(tmp_path)
    dice = random.Random(1)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(InputError):
            load_memory(path)


def test_a_file_with_bytes_exchanged_is_refused(tmp_path: Path) -> None:
    path, whole = saved(tmp_path)
    dice = random.Random(2)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for _ in range(200):
        damaged = bytearray(whole)
        place = dice.randrange(header if dice.random() < 0.7 else len(whole))
        damaged[place] = dice.choice([value for value in b'\0 ",09[{}\xff' if value != damaged[place]])
        path.write_bytes(damaged)
        with pytest.raises(InputError):
            load_memory(path)


@given(content=st.binary(max_size=60))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_anything_that_is_no_memory_is_refused(content: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        with pytest.raises(InputError):
            load_memory(file.name)


def test_a_header_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    path, whole = saved(tmp_path)
    for size in (len(whole), 1 << 31, 1 << 40, (1 << 64) - 1):
        path.write_bytes(struct.pack("<Q", size) + whole[8:])
        with pytest.raises(InputError):
            load_memory(path)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    safetensors.torch.save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(InputError, match="not a memory file"):
        load_memory(path)
    safetensors.torch.save_file({"weight": torch.ones(3)}, path, {"format": "pt"})
    with pytest.raises(InputError, match="not a memory file"):
        load_memory(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        load_memory(tmp_path / "nowhere")


def test_a_folder_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises((InputError, OSError)):
        load_memory(tmp_path)


def rewritten(path: Path, **changes: Any) -> None:
    """Write the file again with entries of its header exchanged, as a program of somebody else might."""
    with safetensors.safe_open(str(path), framework="pt") as file:
        header = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "tensors" in changes:
        tensors = changes.pop("tensors")(tensors)
    for name, change in changes.items():
        header[name] = change(header[name])
    safetensors.torch.save_file(tensors, path, header)


def described(**changes: Any) -> Any:
    return lambda text: json.dumps(json.loads(text) | changes)


ALTERED: dict[str, dict[str, Any]] = {
    "format of another version": {"format": lambda text: "remanence-memory-999"},
    "unknown kind": {"memory": described(kind="test-other")},
    "kind that is no word": {"memory": described(kind=[1])},
    "no kind": {"memory": lambda text: "{}"},
    "description that is a list": {"memory": lambda text: "[]"},
    "description that is a number": {"memory": lambda text: "3"},
    "description that is no JSON": {"memory": lambda text: "{"},
    "description nested without end": {"memory": lambda text: "[" * 100_000},
    "metadata that is no JSON": {"metadata": lambda text: "nothing"},
    "metadata nested without end": {"metadata": lambda text: '{"a":' * 100_000},
    "metadata that is a list": {"metadata": lambda text: "[]"},
    "more layers than there are": {"memory": described(hidden=9)},
    "very many layers": {"memory": described(hidden=10**15)},
    "layers that are no number": {"memory": described(hidden="two")},
    "hold with unknown limits": {"memory": described(hold={"left": 3})},
    "hold that is no number": {"memory": described(hold={"back": "far", "ahead": None})},
    "a part of unknown kind": {"memory": described(segment={"kind": "test-other"})},
    "a part that is no part": {"memory": described(segment=7)},
    "a setting of another type": {"memory": described(flag="yes")},
    "a missing tensor": {"tensors": lambda tensors: {n: t for n, t in tensors.items() if n != "valid"}},
    "a tensor of other lanes": {"tensors": lambda tensors: tensors | {"counts": torch.arange(9)}},
    "a tensor of other slots": {"tensors": lambda tensors: tensors | {"valid": torch.ones(2, 9, dtype=torch.bool)}},
    "a tensor without lanes": {"tensors": lambda tensors: tensors | {"counts": torch.tensor(3)}},
    "another value": {"tensors": lambda tensors: tensors | {"counts": torch.tensor([7, 8])}},
    "no tensors": {"tensors": lambda tensors: {}},
}


@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_file_is_refused_in_a_sentence(tmp_path: Path, what: str) -> None:
    path, _ = saved(tmp_path)
    rewritten(path, **ALTERED[what])
    with pytest.raises(InputError) as refused:
        load_memory(path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_a_memory_that_was_pickled_is_not_executed(tmp_path: Path) -> None:
    """A pickle that would leave a trace when loaded is refused, and leaves none."""
    trace = tmp_path / "trace"
    command = f"cos\nsystem\n(S'touch {trace}'\ntR.".encode()
    for content in (command, struct.pack("<Q", len(command)) + command):
        (tmp_path / "memory").write_bytes(content)
        with pytest.raises(InputError):
            load_memory(tmp_path / "memory")
    assert not trace.exists()


def test_state_that_does_not_fit_is_refused() -> None:
    tensors, description = sample().state()
    for broken, told in (
        ({}, description),
        ({name: tensor[:1] if name == "valid" else tensor for name, tensor in tensors.items()}, description),
        (tensors, {}),
        (tensors, description | {"kind": None}),
        (tensors, description | {"hidden": 3}),
    ):
        with pytest.raises(InputError):
            Memory.from_state(broken, told)


def test_fit_is_checked_even_when_assertions_are_switched_off() -> None:
    """`python -O` drops assert statements; what a user's file holds must be refused all the same."""
    assert "assert " not in inspect.getsource(Memory.check)


@dataclass(frozen=True)
class Grown(Memory, kind="test-grown"):
    """A kind of memory to which fields with defaults were added after a file was written."""

    carried: Tensor = per_lane()
    added: tuple[Tensor, ...] = per_slot(default=())
    number: int = static(default=3)


def test_a_file_from_before_a_field_with_a_default_is_read() -> None:
    tensors, description = Grown(torch.ones(2, 3)).state()
    older = {name: value for name, value in description.items() if name == "kind"}
    rebuilt = Memory.from_state(tensors, older)
    assert isinstance(rebuilt, Grown) and rebuilt.added == () and rebuilt.number == 3
    with pytest.raises(InputError, match="incomplete"):
        Memory.from_state({}, older)
