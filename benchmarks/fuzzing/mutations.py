"""Ways to spoil a file: some know what kind of file it is, so that the spoilt one still gets past the first check."""

from __future__ import annotations

import copy
import io
import json
import tomllib
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import tomli_w

NUMBERS = (0, -1, 1, 2, 3, 255, 256, 65536, 10**6, 10**9, 2**31, -(2**31), 2**32, 2**53, 2**63 - 1, -(2**63), 2**63)
NUMBERS += (2**64, 10**12, 10**18, 10**30, -(10**30))
FLOATS = (0.0, -1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), 1e9, 0.5)
TEXTS = ("", "a", "..", "../../etc/passwd", "/", "\0", "\x1b[2J", "\ud800", "a" * 5000, "é", "10", "nan", "[", "(a+)+$")


def spoil(data: bytes, kind: str, random: Random) -> bytes:
    """A changed file of a kind ("json", "toml", "safetensors", "pt", "bytes", ...); bytes alone every third time."""
    for _ in range(1 if random.random() < 0.7 else random.randint(2, 5)):
        change = _KINDS.get(kind)
        try:
            data = change(data, random) if change and random.random() < 0.7 else spoil_bytes(data, random)
        except Exception:  # what is spoilt already may not be of its kind any more
            data = spoil_bytes(data, random)
    return data


def spoil_bytes(data: bytes, random: Random) -> bytes:
    """Flip, set, cut, insert, copy, and numbers that are far too large."""
    data = bytearray(data or b"\0")
    place = random.randrange(len(data))
    other = random.randrange(len(data))
    match random.randrange(8):
        case 0:
            data[place] ^= 1 << random.randrange(8)
        case 1:
            data[place] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))
        case 2:
            del data[place : place + random.choice((1, 2, 8, 100, len(data)))]
        case 3:
            data[place:place] = random.randbytes(random.choice((1, 4, 16, 300)))
        case 4:
            data[place:place] = data[other : other + random.choice((1, 8, 64, 1000))]
        case 5:
            data[place : place + 8] = data[other : other + 8]
        case 6:
            size, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
            number = random.choice(NUMBERS) & ((1 << (8 * size)) - 1)
            data[place : place + size] = number.to_bytes(size, order)
        case _:
            data[place:place] = bytes(data[place : place + random.choice((1, 3, 20))]) * random.choice((2, 50, 2000))
    return bytes(data)


def spoil_value(value: Any, random: Random) -> Any:
    """A tree of JSON with one node changed, taken away, doubled, moved or buried."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []
    level: list[Any] = [value]
    while level:
        node = level.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in items:
            places.append((node, key))
            if isinstance(child, dict | list):
                level.append(child)
    if not places or random.random() < 0.02:
        return odd(value, random)
    node, key = random.choice(places)
    match random.randrange(7):
        case 0 if isinstance(node, dict):
            del node[key]
        case 1 if isinstance(node, dict):
            node[random.choice((*TEXTS[:6], f"{key}s", random.choice(list(node))))] = node.pop(key)
        case 2 if isinstance(node, list):
            node[key:key] = node[key : key + 1] * random.choice((1, 5, 1000))
        case 3:
            other, place = random.choice(places)
            node[key] = copy.deepcopy(other[place])
        case 4 if isinstance(node[key], str) and node[key][:1] in "{[":
            node[key] = json.dumps(spoil_value(json.loads(node[key]), random))
        case _:
            node[key] = odd(node[key], random)
    return value


def odd(value: Any, random: Random) -> Any:
    """Something else in the place of a value."""
    match random.randrange(8):
        case 0 | 1:
            return random.choice(NUMBERS)
        case 2:
            return random.choice(FLOATS)
        case 3:
            return random.choice(TEXTS)
        case 4:
            return random.choice((None, True, False, [], {}, [[]], {"": None}, [value], {"kind": value}))
        case 5:
            for _ in range(random.choice((3, 70, 900))):
                value = [value] if random.random() < 0.5 else {"a": value}
            return value
        case 6 if type(value) is int:
            return value + random.choice((-1, 1, 2, value, 1000, -value * 2))
        case _:
            return [random.choice(NUMBERS) for _ in range(random.choice((1, 3, 40)))]


def _json(data: bytes, random: Random) -> bytes:
    if random.random() < 0.1:
        text, names = data.decode(), [name for name in ('"', "{", "[", ",") if name.encode() in data]
        # Keys that are there twice, and brackets without end.
        if random.random() < 0.5 and text.startswith("{"):
            key = random.choice([*json.loads(text), "a"])
            return f"{{{json.dumps(key)}: {random.choice(NUMBERS)}, {text[1:]}".encode()
        place = text.index(random.choice(names))
        return (text[:place] + random.choice("[{") * random.choice((1, 100, 100_000)) + text[place:]).encode()
    return json.dumps(spoil_value(json.loads(data), random)).encode()


def _lines(data: bytes, random: Random) -> bytes:
    lines = data.splitlines()
    place = random.randrange(len(lines))
    lines[place] = _json(lines[place], random)
    return b"\n".join(lines) + b"\n"


def _toml(data: bytes, random: Random) -> bytes:
    if random.random() < 0.2:
        key = ".".join(["a"] * random.choice((2, 15, 17, 3000)))
        line = random.choice(
            (f"{key} = 1", f"[{key}]", "x = " + "[" * random.choice((5, 100, 5000)), f"x = {'9' * 5000}")
        )
        lines = data.decode().splitlines()
        lines.insert(random.randrange(len(lines)), line)
        return "\n".join(lines).encode()
    return tomli_w.dumps(_without_none(spoil_value(tomllib.loads(data.decode()), random))).encode(
        "utf-8", "surrogatepass"
    )


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value if each is not None] if isinstance(value, list) else value


def _safetensors(data: bytes, random: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    counts = [each for each in header.values() if str(each.get("dtype")) == "I64" and each["data_offsets"][1]]
    if random.random() < 0.3 and counts:
        # What is counted decides where things are looked up.
        begin, end = random.choice(counts)["data_offsets"]
        place = begin + 8 * random.randrange((end - begin) // 8)
        number = random.choice((*NUMBERS[:7], random.randrange(-3, 30))) & (2**64 - 1)
        body = body[:place] + number.to_bytes(8, "little") + body[place + 8 :]
    elif random.random() < 0.2 and body:
        body = spoil_bytes(body, random)
    elif random.random() < 0.6 and "__metadata__" in header:
        header["__metadata__"] = spoil_value(header["__metadata__"], random)
        for name in ("memory", "metadata", "DCP_SHARDING_INFO"):
            told = header["__metadata__"].get(name) if isinstance(header["__metadata__"], dict) else None
            if random.random() < 0.6 and isinstance(told, str):
                header["__metadata__"][name] = json.dumps(spoil_value(json.loads(told), random))
    else:
        header = spoil_value(header, random)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def _archive(data: bytes, random: Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(each.filename, archive.read(each)) for each in archive.infolist()]
    place = next((at for at, (name, _) in enumerate(records) if name.endswith("data.pkl")), 0)
    if random.random() < 0.2:
        place = random.randrange(len(records))
    name, content = records[place]
    records[place] = (random.choice(TEXTS[1:6]) if random.random() < 0.05 else name, spoil_bytes(content, random))
    if random.random() < 0.05:
        records.append(random.choice(records))
    target = io.BytesIO()
    packed = random.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
    with zipfile.ZipFile(target, "w", packed) as archive:
        for name, content in records:
            archive.writestr(name or "a", content)
    return target.getvalue()


_KINDS: dict[str, Callable[[bytes, Random], bytes]] = {
    "json": _json,
    "lines": _lines,
    "toml": _toml,
    "safetensors": _safetensors,
    "pt": _archive,
}
