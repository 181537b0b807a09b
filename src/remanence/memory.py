"""What a model remembers between segments.

A `Memory` is a value: an immutable tree of tensors that a model is given and gives back. Nothing a model knows of the
past lives anywhere else, which is what makes truncated backpropagation, sessions, lanes and exact resume short.

Shapes
    B   lanes: independent token streams in a batch; the first axis of every tensor
    M   remembered positions (slots), oldest first, right-aligned: the newest is always the last
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

import safetensors
import torch
from jaxtyping import Bool
from safetensors.torch import load, save
from torch import Tensor

from remanence.errors import InputError
from remanence.files import parse_json, read_header, writing
from remanence.rows import append, sharing

FORMAT = "remanence-memory-1"

Some = TypeVar("Some", bound="Memory")
"""The kind of memory that an operation was given and gives back."""


def per_slot(differentiable: bool = True, **options: Any) -> Any:
    """A field of tensors shaped (B, M, ...): resizing keeps its newest rows. See `per_lane` for `differentiable`."""
    return dataclasses.field(metadata={"role": "slot", "differentiable": differentiable}, **options)


def per_lane(differentiable: bool = True, **options: Any) -> Any:
    """A field of tensors shaped (B, ...) without a slot axis, or a memory within this one.

    No gradient ever passes from one segment to another through floating tensors that are not `differentiable`.
    """
    return dataclasses.field(metadata={"role": "lane", "differentiable": differentiable}, **options)


def static(join: Callable[..., Any] | None = None, **options: Any) -> Any:
    """A field that is the same for all lanes and no tensor: an int, a bool, or None.

    `join` makes one value of those of several memories; without it memories that differ cannot be concatenated.
    """
    return dataclasses.field(metadata={"role": "static", "join": join}, **options)


def derived(**options: Any) -> Any:
    """A field that can be computed again from the weights: not saved, not touched by lane operations."""
    return dataclasses.field(metadata={"role": "derived"}, **options)


@dataclass(frozen=True)
class Distances:
    """The largest distances between a query and a key, in tokens: looking back, and (LaMemo) looking ahead.

    Recorded with trained weights; a memory can `hold` distances there, because beyond them no weight has been trained.
    None in one direction means no limit.
    """

    back: int | None = None
    ahead: int | None = None


@dataclass(frozen=True)
class Memory:
    """Everything a model carries from one segment to the next. Each architecture has its own subclass."""

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Memory]]] = {}

    def __init_subclass__(cls, kind: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if kind is not None:
            cls.kind = kind
            Memory.kinds[kind] = cls

    # What it is

    @property
    def lanes(self) -> int:
        """B, the number of lanes."""
        return next(tensor.shape[0] for _, tensor in self._tensors())

    @property
    def length(self) -> int:
        """M, the length that was asked for: the number of slots, unless the memory keeps further ones."""
        return self.slots

    @property
    def slots(self) -> int:
        """How many slots there are, written or not."""
        for field in dataclasses.fields(self):
            if field.metadata["role"] == "slot":
                value = getattr(self, field.name)
                value = value[0] if isinstance(value, tuple) and value else value
                if isinstance(value, Tensor):
                    return value.shape[1]
        return 0

    @property
    def opened(self) -> int:
        """How many tokens of a segment that is still open have been read; 0 between segments."""
        return 0

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors that a save would write."""
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self._tensors())

    # What can be done with it; every operation returns a new memory

    def detach(self: Some) -> Some:
        """The same values, cut off from the graph that computed them."""
        return self._map(lambda tensor, role: tensor.detach())

    def for_gradients(self: Some) -> Some:
        """The same values where gradients are recorded: tensors that were made in inference mode are copied."""
        return self._map(lambda tensor, role: tensor.clone() if tensor.is_inference() else tensor)

    def to(self: Some, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Some:
        """Move to a device and cast floating tensors to `dtype`. Log-sums stay float32 or better."""
        return self._map(partial(_move, device=device, dtype=dtype))

    def __getitem__(self: Some, lanes: int | slice | Tensor | Sequence[int]) -> Some:
        """The memory of some lanes, by index, slice, indices or a boolean mask. An int keeps its lane axis."""
        if isinstance(lanes, int):
            if not -self.lanes <= lanes < self.lanes:
                raise IndexError(f"lane {lanes} does not exist: the memory has {self.lanes} lanes")
            lanes = slice(lanes, lanes + 1 or None)
        elif not isinstance(lanes, slice):
            lanes = torch.as_tensor(lanes)
        return self._map(lambda tensor, role: tensor if role == "derived" else tensor[lanes])

    @staticmethod
    def concatenate(memories: Sequence[Memory]) -> Memory:
        """One memory with the lanes of several, in order.

        Raises InputError unless all are of one kind, shape and state (length, open tokens, settings).
        """
        if not memories:
            raise InputError("No memories were given to concatenate; give at least one.")
        states = [memory.state() for memory in memories]
        for field in dataclasses.fields(memories[0]):
            if join := field.metadata.get("join"):
                joined = join(description.get(field.name, 0) for _, description in states)
                states = [(tensors, {**description, field.name: joined}) for tensors, description in states]
        tensors, description = states[0]
        for other, other_description in states[1:]:
            same_shapes = other.keys() == tensors.keys() and all(
                other[name].shape[1:] == tensors[name].shape[1:] for name in tensors
            )
            if other_description != description or not same_shapes:
                raise InputError(
                    "The memories to concatenate differ in kind, length, settings or open tokens; resize or close them "
                    "first so that only their lanes differ."
                )
        return Memory.from_state(
            {name: torch.cat([other[name] for other, _ in states]) for name in tensors}, description
        )

    def reset(self: Some, starts: Bool[Tensor, " B"]) -> Some:
        """Forget everything on the lanes where a new document starts.

        Raises InputError while a segment is open.
        """
        if self.opened:
            raise InputError(
                f"Lanes cannot be reset while a segment is open ({self.opened} tokens read); close it first."
            )
        return self._map(partial(_forget, starts=starts))

    def resize(self: Some, length: int) -> Some:
        """A memory of another length: the newest slots are kept, missing ones are added as never written.

        Raises InputError for a negative length, and while a segment is open.
        """
        if length < 0:
            raise InputError(f"A memory length of {length} was given; it must be 0 or more.")
        if self.opened:
            raise InputError(
                f"The memory cannot be resized while a segment is open ({self.opened} tokens read); close it first."
            )
        return self._map(partial(_fit, length=length))

    # On disk

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors by name and a JSON description, from which `from_state` makes an equal memory."""
        description: dict[str, Any] = {"kind": self.kind}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata["role"] == "derived":
                continue
            if isinstance(value, tuple):
                description[field.name] = len(value)
            elif isinstance(value, Memory):
                description[field.name] = value.state()[1]
            elif isinstance(value, Distances):
                description[field.name] = {"back": value.back, "ahead": value.ahead}
            elif not isinstance(value, Tensor):
                description[field.name] = value
        return dict(self._tensors()), description

    @staticmethod
    def from_state(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> Memory:
        """Rebuild a memory from what `state` gave. Raises InputError when they do not fit each other."""
        try:
            memory = _rebuild(tensors, description, "")
            memory.check()
        except InputError:
            raise
        except (LookupError, TypeError, AttributeError, StopIteration, ValueError, RecursionError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"The stored memory is incomplete or altered ({type(error).__name__}: {reason}); use a file that was "
                "saved whole."
            ) from None
        return memory

    def check(self) -> None:
        """Raise ValueError unless the tensors fit each other: one number of lanes, one number of slots."""
        lanes, slots = self.lanes, self.slots
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Memory):
                    item.check()
                if isinstance(item, Tensor | Memory) and field.metadata["role"] != "derived":
                    given = item.lanes if isinstance(item, Memory) else item.shape[0]
                    if given != lanes:
                        raise ValueError(f"{field.name} has {given} lanes, not {lanes}")
                if isinstance(item, Tensor) and field.metadata["role"] == "slot" and item.shape[1] != slots:
                    raise ValueError(f"{field.name} has {item.shape[1]} slots, not {slots}")

    def save(self, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write one safetensors file, whole or not at all, with `metadata` (anything JSON can hold) beside it."""
        tensors, description = self.state()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header = {"format": FORMAT, "memory": json.dumps(description), "metadata": json.dumps(dict(metadata or {}))}
        header["sha256"] = _digest(header, tensors)
        with writing(path) as file:
            file.write(save(tensors, metadata=header))

    # How it is built

    def _map(self: Some, function: Callable[[Tensor, str], Tensor]) -> Some:
        """Apply `function(tensor, role)` to every tensor of the tree."""
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value, role = getattr(self, field.name), field.metadata["role"]
            if isinstance(value, Tensor):
                changes[field.name] = function(value, role)
            elif isinstance(value, Memory):
                changes[field.name] = value._map(function)
            elif isinstance(value, tuple):
                changes[field.name] = tuple(function(item, role) for item in value)
        return dataclasses.replace(self, **changes)

    def leaves(self: Some) -> tuple[Some, tuple[Tensor, ...]]:
        """The same values, with fresh leaves for what a gradient may pass through, and these leaves.

        They are the floating tensors of differentiable fields; everything else is detached.
        """
        fresh = self.detach()
        carriers = fresh.carriers()
        for leaf in carriers:
            leaf.requires_grad_()
        return fresh, carriers

    def handed_on(self: Some) -> Some:
        """What the next segment is given: fields that are not differentiable are cut off from the graph."""
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Memory):
                changes[field.name] = value.handed_on()
            elif not field.metadata.get("differentiable", True):
                cut = isinstance(value, Tensor)
                changes[field.name] = value.detach() if cut else tuple(each.detach() for each in value)
        return dataclasses.replace(self, **changes)

    def carriers(self) -> tuple[Tensor, ...]:
        """The tensors of which `leaves` makes leaves, in the same order."""
        found: list[Tensor] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Memory):
                found.extend(value.carriers())
            elif field.metadata.get("differentiable"):
                items = value if isinstance(value, tuple) else (value,)
                found.extend(item for item in items if isinstance(item, Tensor) and item.is_floating_point())
        return tuple(found)

    def _tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            name = prefix + field.name
            if field.metadata["role"] == "derived":
                continue
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, Memory):
                yield from value._tensors(f"{name}.")
            elif isinstance(value, tuple):
                yield from ((f"{name}.{index}", item) for index, item in enumerate(value))


def _move(tensor: Tensor, role: str, device: Any, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def _forget(tensor: Tensor, role: str, starts: Tensor) -> Tensor:
    return tensor if role == "derived" else tensor.masked_fill(starts.reshape(-1, *[1] * (tensor.dim() - 1)), 0)


def _fit(tensor: Tensor, role: str, length: int) -> Tensor:
    if role != "slot":
        return tensor
    kept = tensor[:, max(tensor.shape[1] - length, 0) :]
    padding = kept.new_zeros(kept.shape[0], length - kept.shape[1], *kept.shape[2:])
    return torch.cat([padding, kept], dim=1)


def newest(old: Tensor, new: Tensor, counts: Tensor | None = None, room: int | None = None) -> Tensor:
    """The newest M rows of `[old; new]`, where old is (B, M, ...) and new is (B, T, ...).

    `counts` (B,) says how many of the new rows of each lane are real, from the left; None means all of them. The
    rows that stay are not copied where that can be helped (`rows.append`, which is given the `room`), unless it is 0.
    """
    length, count = old.shape[1], new.shape[1]
    if counts is None:
        if room == 0 or length <= count or not sharing():
            return torch.cat([old[:, count:], new[:, max(count - length, 0) :]], dim=1)
        return append(old, new, room=room)[:, count:]
    rows = torch.cat([old, new], dim=1)
    lanes = torch.arange(rows.shape[0], device=rows.device)[:, None] * rows.shape[1]
    wanted = lanes + counts[:, None] + torch.arange(length, device=rows.device)
    return rows.flatten(0, 1)[wanted.flatten()].unflatten(0, (rows.shape[0], length))


def load_memory(path: str | Path) -> tuple[Memory, dict[str, Any]]:
    """Read a memory and its metadata from the file that `Memory.save` wrote.

    Nothing in the file is executed. Raises InputError when it is missing, cut short, altered or something else.
    """
    try:
        _, header = read_header(path)
        if header.get("format") != FORMAT:
            raise InputError(f"{path} is not a memory file of this library; give a file that was saved as memory.")
        # Read whole, so that nothing depends on the file afterwards.
        tensors = load(Path(path).read_bytes())
        if header["sha256"] != _digest(header, tensors):
            raise ValueError("its contents do not have the hash that was saved with them")
        description, metadata = parse_json(header["memory"]), parse_json(header["metadata"])
        if not (isinstance(description, dict) and isinstance(metadata, dict)):
            raise ValueError("its description or its metadata is no table")
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"There is no memory file {path}; check the path.") from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} is not a whole memory file ({error}); use a file that was saved as memory and not altered."
        ) from None
    return Memory.from_state(tensors, description), metadata


def _digest(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of everything in a memory file that decides what is loaded."""
    digest = hashlib.sha256(f"{header['memory']}\n{header['metadata']}\n".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _rebuild(tensors: Mapping[str, Tensor], description: Mapping[str, Any], prefix: str) -> Memory:
    if not isinstance(description, Mapping):
        raise TypeError("its description is no table")
    kind = description["kind"]
    if kind not in Memory.kinds:
        raise InputError(
            f"The stored memory is of kind {kind!r}, but the kinds known here are "
            f"{', '.join(sorted(Memory.kinds)) or 'none'}; import the module that defines it first."
        )
    values: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    known = _types_of(Memory.kinds[kind])
    for field in dataclasses.fields(Memory.kinds[kind]):
        name = prefix + field.name
        told = description.get(field.name)
        if field.metadata["role"] == "derived":
            continue
        if field.name not in description:
            if name in tensors or field.default is dataclasses.MISSING:
                # What has a default may be newer than the file.
                values[field.name] = tensors[name]
        elif isinstance(told, Mapping) and "kind" in told:
            values[field.name] = _rebuild(tensors, told, f"{name}.")
        elif isinstance(told, Mapping):
            values[field.name] = Distances(**told)
            if any(type(limit) is not int or limit < 0 for limit in told.values() if limit is not None):
                raise ValueError(f"{name} is {dict(told)}, but distances are whole numbers")
        elif field.metadata["role"] == "static" or told is None:
            values[field.name] = told
        else:
            if type(told) is not int or told < 0:
                raise ValueError(f"{name} is {str(told)[:60]}, but it is a number of tensors")
            values[field.name] = tuple(tensors[f"{name}.{index}"] for index in range(told))
        unset = values.get(field.name) is None and field.default is None
        if field.name in values and field.name in known and not unset:
            _check_kind(name, known[field.name], values[field.name], sizes)
    return Memory.kinds[kind](**values)


@cache
def _types_of(kind: type) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    except NameError:
        # A memory of another package may be annotated with names that only a type checker imports.
        return {}


def _check_kind(name: str, kind: Any, value: Any, sizes: dict[str, int]) -> None:
    """Raise ValueError unless a stored value is of the type that its field is annotated with.

    `sizes` are those of the lettered axes met so far: within one memory a letter means one size.
    """
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value is None and type(None) in options:
        return
    if get_origin(options[0]) is tuple and isinstance(value, tuple):
        for each in value:
            _check_kind(name, get_args(options[0])[0], each, sizes)
        return
    if isinstance(value, Tensor) and hasattr(options[0], "dim_str"):
        axes = options[0].dim_str.split()
        if len(axes) != value.dim() or not isinstance(value, options[0]):
            raise ValueError(f"{name} has the shape {tuple(value.shape)} and the type {value.dtype}")
        for axis, size in zip(axes, value.shape, strict=True):
            if axis.isalpha() and sizes.setdefault(axis, size) != size:
                raise ValueError(f"{name} has {size} instead of {sizes[axis]} on the axis {axis}")
    elif type(value) not in options and not (isinstance(value, Memory) and isinstance(value, options[0])):
        raise ValueError(f"{name} is {str(value)[:60]}, which is no value of this setting")
    elif type(value) is int and value < 0:
        raise ValueError(f"{name} is {value}, below 0")
