"""Named tensors from the files in which weights are published: `.safetensors`, and `.pt`, `.pth` or `.bin` of PyTorch.

A file of PyTorch is a zip archive of one pickle, which says what there is, and one record of raw numbers for each
storage. A pickle is a program. So it is first read as a list of operations without being run: only a mapping of names
to tensors may come of it, and every tensor must lie within a record that the archive really holds. Only then PyTorch
loads it, with weights_only, mapped from the file.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from remanence.errors import InputError
from remanence.files import read_header

LARGEST_PICKLE = 1 << 24
"""Bytes of the pickle in an archive, where the numbers are not: about a hundred for each tensor."""
MOST_SHARED = 4
"""Tied tensors may share a record; together they must not speak of more than so many times the file."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Where training scripts keep the weights among other things."""
_ITEM = {
    **dict.fromkeys(("BoolStorage", "ByteStorage", "CharStorage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage"), 8),
}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a file of weights by name, on the CPU, for `from_published`.

    Nothing in the file is executed. Raises InputError for a file that is missing, damaged, speaks of more than it
    holds, or holds anything but tensors: a whole module, as some training scripts save it, is refused.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"There is no file of weights {path}; check the path.") from None
    if path.suffix == ".safetensors":
        try:
            read_header(path)
            return load_file(path)
        except (ValueError, RuntimeError, OverflowError, safetensors.SafetensorError) as error:
            raise InputError(f"{path} is not a whole safetensors file ({error}); fetch it anew.") from None
    if start != b"PK\x03\x04":
        raise InputError(
            f"{path} is no archive of PyTorch 1.6 or later, and what earlier ones wrote cannot be checked before it is "
            "loaded; open it where it is trusted and save its state_dict() again."
        )
    inside = _checked(path)
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        for key in inside.within:
            loaded = loaded[key]
        tensors = {name: loaded[name].detach() for name in inside.shapes}
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be loaded as weights alone ({reason}); fetch it anew.") from None
    if any(tuple(tensors[name].shape) != shape for name, shape in inside.shapes.items()):
        raise InputError(f"{path} is not what its directory says; fetch it anew.")
    return tensors


@dataclass(frozen=True)
class _Inside:
    """What an archive holds: the shapes of its tensors, and the keys that lead to their mapping."""

    shapes: dict[str, tuple[int, ...]]
    within: tuple[str, ...]


def _checked(path: Path) -> _Inside:
    """What there is in an archive of PyTorch. Raises InputError for anything that must not be loaded."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            records = _records(archive, size)
            (name,) = [name for name in records if name.endswith("/data.pkl")]
            if records[name] > LARGEST_PICKLE:
                raise ValueError(f"its pickle has {records[name]:,} bytes, and at most {LARGEST_PICKLE:,} are read")
            told = _Teller(records, name.removesuffix("data.pkl") + "data/").tell(archive.read(name))
    except InputError:
        raise
    except _Refused as error:
        raise InputError(
            f"{path} holds {error}, and nothing but tensors is read from a pickle; open it where it is trusted, and "
            "save its state_dict() instead."
        ) from None
    except Exception as error:  # zipfile and pickletools raise whatever their readers do
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is not a whole file of weights ({reason}); fetch it anew.") from None
    found, within = told, ()
    if isinstance(told, dict) and not _is_weights(told):
        key = next((key for key in WRAPPERS if _is_weights(told.get(key))), None)
        if key is not None:
            found, within = told[key], (key,)
    if not _is_weights(found):
        raise InputError(
            f"{path} holds no mapping of names to tensors, at its top or as {', '.join(WRAPPERS)}; save the "
            "state_dict() of the model instead."
        )
    if (spoken := sum(tensor.nbytes for tensor in found.values())) > MOST_SHARED * size:
        raise InputError(f"{path} has {size:,} bytes and speaks of {spoken:,} in its tensors; fetch it anew.")
    return _Inside({name: tensor.shape for name, tensor in found.items()}, within)


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, int]:
    """The bytes of every record. Raises ValueError unless they lie, unpacked and each for itself, within the file."""
    records: dict[str, int] = {}
    for each in archive.infolist():
        if each.filename in records or each.compress_type != zipfile.ZIP_STORED or each.flag_bits & 1:
            raise ValueError(f"its record {each.filename} is there twice, packed or encrypted")
        if each.file_size != each.compress_size or each.header_offset + each.file_size > size:
            raise ValueError(f"its record {each.filename} lies beyond the file")
        records[each.filename] = each.file_size
    if sum(records.values()) > size:
        raise ValueError(f"its records have {sum(records.values()):,} bytes, and it has {size:,}")
    if len({name.partition("/")[0] for name in records}) != 1:
        raise ValueError("its records are not in one folder")
    return records


def _is_weights(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(each, _Lying) for each in value.values())


class _Refused(Exception):
    """The pickle would make something that is no tensor: what, in words."""


@dataclass(frozen=True)
class _Named:
    """A function or class that a pickle names; nothing is imported."""

    name: str


@dataclass(frozen=True)
class _Storage:
    numbers: int
    item: int


@dataclass(frozen=True)
class _Lying:
    """A tensor, and how many bytes its numbers have."""

    shape: tuple[int, ...]
    nbytes: int


class _Teller:
    """Tells what a pickle would make, from its operations; knows those that a mapping of tensors is written with."""

    def __init__(self, records: Mapping[str, int], folder: str) -> None:
        self._records, self._folder = records, folder
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def tell(self, data: bytes) -> Any:
        """Raises ValueError for what is damaged, and _Refused for what is no tensor."""
        for operation, argument, _ in pickletools.genops(data):
            name = operation.name
            if name == "STOP":
                return self._stack.pop()
            if name in ("GLOBAL", "STACK_GLOBAL"):
                if name == "STACK_GLOBAL":
                    attribute, module = self._stack.pop(), self._stack.pop()
                    argument = f"{module} {attribute}"
                self._stack.append(_Named(str(argument).replace(" ", ".", 1)))
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name in _GIVEN:
                self._stack.append(argument)
            elif name not in _OPERATIONS:
                raise _Refused(f"an operation {name}")
            else:
                _OPERATIONS[name](self, argument)
        raise ValueError("its pickle has no end")

    def _mark(self, argument: Any) -> None:
        self._marks.append(len(self._stack))

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _tuple(self, argument: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _short_tuple(self, count: int) -> None:
        values = self._stack[-count:]
        if len(values) < count:
            raise ValueError("its pickle is damaged")
        self._stack[-count:] = [tuple(values)]

    def _set(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise _Refused(f"something set on {_words(target)}")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise _Refused(f"something appended to {_words(target)}")
        target.extend(values)

    def _reduce(self, argument: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        name = function.name if isinstance(function, _Named) else _words(function)
        if name == "collections.OrderedDict" and arguments == ():
            self._stack.append({})
        elif name == "torch._utils._rebuild_tensor_v2":
            self._stack.append(_lying(*arguments[:4]))
        elif name == "torch._utils._rebuild_parameter" and isinstance(arguments[0], _Lying):
            self._stack.append(arguments[0])
        else:
            raise _Refused(f"an object made by {name}")

    def _build(self, argument: Any) -> None:
        self._stack.pop()
        if not isinstance(self._stack[-1], dict):
            raise _Refused(f"an object of {_words(self._stack[-1])}")

    def _storage(self, argument: Any) -> None:
        word, kind, key, _, numbers = self._stack.pop()
        item = _ITEM.get(kind.name.removeprefix("torch.")) if isinstance(kind, _Named) else None
        if word != "storage" or item is None or not kind.name.startswith("torch."):
            raise _Refused(f"a storage of {_words(kind)}")
        if type(numbers) is not int or self._records.get(f"{self._folder}{key}") != numbers * item:
            raise ValueError(f"the record {key} has not the {str(numbers)[:30]} numbers that its tensors need")
        self._stack.append(_Storage(numbers, item))

    def _new(self, argument: Any) -> None:
        raise _Refused(f"an object of {_words(self._stack[-2])}")


def _words(value: Any) -> str:
    return value.name if isinstance(value, _Named) else f"a {type(value).__name__}"


def _lying(storage: Any, offset: Any, shape: Any, strides: Any) -> _Lying:
    """Where a tensor lies in its storage. Raises ValueError where that is beyond its end, or it repeats numbers."""
    sides = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(type(each) is int and 0 <= each < 1 << 62 for each in sides):
        raise ValueError("a tensor has sizes that are no sizes")
    numbers = math.prod(shape)
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if len(shape) > 16 or numbers > storage.numbers or (numbers and last >= storage.numbers):
        raise ValueError(f"a tensor of shape {shape} lies beyond its {storage.numbers:,} numbers")
    return _Lying(shape, numbers * storage.item)


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
}
_GIVEN = ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_OPERATIONS: dict[str, Callable[[_Teller, Any], Any]] = {
    "PROTO": lambda teller, argument: None,
    "FRAME": lambda teller, argument: None,
    "MARK": _Teller._mark,
    "TUPLE": _Teller._tuple,
    "TUPLE1": lambda teller, argument: teller._short_tuple(1),
    "TUPLE2": lambda teller, argument: teller._short_tuple(2),
    "TUPLE3": lambda teller, argument: teller._short_tuple(3),
    "SETITEM": lambda teller, argument: teller._set([teller._stack.pop(-2), teller._stack.pop()]),
    "SETITEMS": lambda teller, argument: teller._set(teller._since_mark()),
    "APPEND": lambda teller, argument: teller._append([teller._stack.pop()]),
    "APPENDS": lambda teller, argument: teller._append(teller._since_mark()),
    "BINPUT": lambda teller, argument: teller._memo.update({argument: teller._stack[-1]}),
    "LONG_BINPUT": lambda teller, argument: teller._memo.update({argument: teller._stack[-1]}),
    "MEMOIZE": lambda teller, argument: teller._memo.update({len(teller._memo): teller._stack[-1]}),
    "BINGET": lambda teller, argument: teller._stack.append(teller._memo[argument]),
    "LONG_BINGET": lambda teller, argument: teller._stack.append(teller._memo[argument]),
    "REDUCE": _Teller._reduce,
    "BUILD": _Teller._build,
    "BINPERSID": _Teller._storage,
    "NEWOBJ": _Teller._new,
}
