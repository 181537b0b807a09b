"""Files that are either whole or not there.

Everything the library writes passes through here: the bytes go to a temporary file beside the target, are flushed to
the disk, and take the target's name in one step. A crash, a full disk or an interrupt leaves the old file as it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from remanence.errors import InputError

LARGEST_JSON = 1 << 26
"""Bytes of a JSON file, or of a header, that are read unless a caller says otherwise."""
DEEPEST = 64
"""Levels of lists and tables within each other."""
BLOCK = 1 << 20
_HALVES = re.compile(r"\\u[dD][89a-fA-F]")
"""How characters beyond 16 bits may be written, by two halves."""
_TOO_DEEP = f"lists and tables more than {DEEPEST} deep in each other"
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Types of numbers in a safetensors file."""
HASHED_AT_ONCE = 2**22
"""Bytes. In small blocks a thread would wait for the interpreter at each of them while another one is busy."""


def make_folder(folder: Path, asked: Path, flag: str) -> None:
    """Make a folder and those above it. Raises InputError that names the one that was asked for, and its flag."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The folder {asked} cannot be made ({error.strerror or error}); choose one that can be written by {flag}."
        ) from None


@contextmanager
def writing(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file that becomes `path` when the block ends without an error, and vanishes otherwise."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; what we publish follows the user's umask.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    with writing(path, "w") as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: str | Path, most: int) -> str:
    """A file of UTF-8 text. Raises InputError when it has more than `most` bytes, else what `open` raises."""
    pieces, size = [], 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            pieces.append(block)
            if (size := size + len(block)) > most:
                raise InputError(f"{path} has more than the {most:,} bytes that are read of such a file; make it anew.")
    return b"".join(pieces).decode("utf-8")


def read_json(path: str | Path, what: str, most: int = LARGEST_JSON) -> Any:
    """The value in a JSON file; `what` names it in errors ("the manifest of the corpus").

    Raises InputError when the file is missing, larger than `most` bytes, or not JSON as `parse_json` takes it.
    """
    try:
        return parse_json(read_text(path, most))
    except FileNotFoundError:
        raise InputError(f"{what} is missing: there is no file {path}; check the path or make it anew.") from None
    except IsADirectoryError:
        raise InputError(f"{what} is missing: {path} is a folder; check the path or make it anew.") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{what} in {path} is not valid JSON ({error}); restore the file or make it anew.") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text that nobody vouches for.

    Raises ValueError when it is not JSON, nested too deeply, or holds a whole number that 64 bits do not, or half of a
    character, which could not be written again.
    """
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    check_nesting(value)
    if _HALVES.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half of a character in a text") from None
    return value


def check_nesting(value: Any) -> None:
    """Raise ValueError when lists and tables lie deeper in each other than anything here writes them."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def read_header(path: str | Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The shapes of the tensors in a safetensors file, and its metadata, without reading the tensors.

    Raises ValueError when the file is no such file, or its size is not the one that its tensors need.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_JSON):
            raise ValueError("it is cut short, or no safetensors file")
        header = parse_json(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    metadata = header.pop("__metadata__", None) or {}
    try:
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        bits = {name: _BITS[entry["dtype"]] for name, entry in header.items()}
        sound = all(type(side) is int and side >= 0 for shape in shapes.values() for side in shape)
        sound &= isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header is damaged ({type(error).__name__}: {error})") from None
    if not sound:
        raise ValueError("its header says what is no shape or no metadata")
    # In bits, for there are numbers of four.
    promised = sum(bits[name] * math.prod(shape) for name, shape in shapes.items())
    if promised != 8 * (size - 8 - length):
        raise ValueError(f"its header promises {promised // 8:,} bytes of numbers and it has {size - 8 - length:,}")
    return shapes, metadata


def are_files(value: Any) -> bool:
    """Whether a value of JSON is a table of files in the folder of that table, with their sizes and hashes."""
    return isinstance(value, dict) and all(
        # A name that is no plain one would lead out of the folder.
        (name == Path(name).name and not name.startswith("."))
        and isinstance(told, dict)
        and (type(told.get("bytes")) is int and isinstance(told.get("sha256"), str))
        for name, told in value.items()
    )


def _whole(digits: str) -> int:
    # 20 digits are enough for 64 bits; Python itself would take thousands.
    if len(digits) > 20 or not -(1 << 63) <= (number := int(digits)) < 1 << 64:
        raise ValueError(f"a whole number of {len(digits)} digits, beyond 64 bits")
    return number


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in blocks."""
    digest, block = hashlib.sha256(), bytearray(HASHED_AT_ONCE)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(memoryview(block)[:count])
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def flush_folder(folder: Path) -> None:
    """Make the renaming itself survive a power cut, where the system lets a folder be flushed."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
