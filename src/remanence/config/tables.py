"""Tables of a TOML file <-> frozen dataclasses, with errors that say which key, what was given and what is allowed.

The types understood are those that TOML can write: int, float, bool, str, `Literal`, `tuple` of these, other
dataclasses as sub-tables, and `| None`, which is written by leaving the key out (so None must then be the default).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from remanence.errors import InputError

Settings = TypeVar("Settings")


@cache
def types_of(kind: type) -> dict[str, Any]:
    """The resolved type of every field of a dataclass, in order."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def nearest(name: Any, names: Iterable[str]) -> str:
    """The one of `names` that is spelled most like `name`, which a file may have made a number."""
    return difflib.get_close_matches(str(name)[:100], list(names), n=1, cutoff=0.0)[0]


def read_table(kind: type[Settings], table: Any, where: str = "", default: Settings | None = None) -> Settings:
    """An instance of the dataclass `kind` from a table; what is left out keeps the value of `default` or the class.

    `where` is the dotted name of the table in errors ("" for the whole file). Raises InputError for an unknown key
    (naming the nearest valid one), a missing key and a value of the wrong type.
    """
    if not isinstance(table, Mapping):
        raise InputError(f"{where} is {_shown(table)}, but it must be a table of settings; write it as [{where}].")
    known = types_of(kind)
    values: dict[str, Any] = {}
    for name, value in table.items():
        key = f"{where}.{name}" if where else name
        if name not in known:
            others = (f"{where}.{other}" if where else other for other in known)
            meant = getattr(kind, "synonyms", {}).get(name)
            raise unknown_key(key, others, meant=f"{where}.{meant}" if where else meant)
        inner = getattr(default, name) if default is not None else None
        values[name] = read_value(known[name], value, key, inner)
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if default is not None:
            values.setdefault(field.name, getattr(default, field.name))
        elif required and field.name not in values:
            key = f"{where}.{field.name}" if where else field.name
            raise InputError(f"{key} is missing; give {describe(known[field.name])}.")
    return kind(**values)


def read_value(annotation: Any, value: Any, key: str, default: Any = None) -> Any:
    """`value` as the type `annotation`; `key` is its dotted name in errors."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return read_table(annotation, value, key, default)
    options = union_of(annotation)
    if len(options) > 1:
        if value is None:
            return None
        return read_value(next(option for option in options if option is not type(None)), value, key)
    origin = get_origin(annotation)
    if origin is Literal:
        if value in get_args(annotation):
            return value
    elif origin is tuple:
        items = get_args(annotation)
        if isinstance(value, list | tuple):
            if items[-1] is Ellipsis:
                return tuple(read_value(items[0], item, f"{key}[{index}]") for index, item in enumerate(value))
            if len(items) == len(value):
                pairs = zip(items, value, strict=True)
                return tuple(read_value(item, each, f"{key}[{index}]") for index, (item, each) in enumerate(pairs))
    elif annotation is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif annotation is Any or (type(value) is annotation):
        return value
    raise wrong_type(key, value, annotation)


def write_table(settings: Any) -> dict[str, Any]:
    """The table that `read_table` turns into an equal dataclass. None is left out, tuples become lists."""
    table: dict[str, Any] = {}
    for name in types_of(type(settings)):
        value = getattr(settings, name)
        if value is None:
            continue
        if dataclasses.is_dataclass(value):
            table[name] = write_table(value)
        else:
            table[name] = list(value) if isinstance(value, tuple) else value
    return table


def differences(one: Mapping[str, Any], other: Mapping[str, Any], where: str = "") -> list[str]:
    """The dotted keys at which two tables differ, in order."""
    keys: list[str] = []
    for name in dict.fromkeys([*one, *other]):
        key, left, right = f"{where}{name}", one.get(name), other.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += differences(left, right, f"{key}.")
        elif left != right:
            keys.append(key)
    return keys


def union_of(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def describe(annotation: Any, several: bool = False) -> str:
    """What a value of this type is called in an error: "a whole number", 'one of "post", "pre"'."""
    options = [option for option in union_of(annotation) if option is not type(None)]
    if len(options) > 1:
        return " or ".join(describe(option) for option in options)
    (kind,) = options
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in get_args(kind))
    if get_origin(kind) is tuple:
        items = get_args(kind)
        number = "" if items[-1] is Ellipsis else f"{len(items)} "
        return f"a list of {number}{describe(items[0], several=True)}"
    singular, plural = {
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        bool: ("true or false", "true or false"),
        str: ("a text", "texts"),
    }.get(kind, ("a table", "tables"))
    return plural if several else singular


def unknown_key(key: str, names: Iterable[str], noun: str = "setting", meant: str | None = None) -> InputError:
    """The error for a key that is none of `names`; `meant` is the one to suggest, if it is there."""
    names = list(names)
    if not names:
        return InputError(f"There is no {noun} {key}, because nothing can be set there; leave it out.")
    return InputError(f"There is no {noun} {key}; did you mean {meant if meant in names else nearest(key, names)}?")


def wrong_type(key: str, value: Any, annotation: Any) -> InputError:
    return InputError(f"{key} is {_shown(value)}, but it must be {describe(annotation)}.")


def at_least(minimum: float, **values: float) -> None:
    """Raise InputError for the first of `values` that is below `minimum`; a double underscore in a name is a dot."""
    for name, value in values.items():
        if value < minimum:
            raise InputError(f"{name.replace('__', '.')} is {value:g}, but it must be at least {minimum:g}.")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a table"
    text = repr(value).replace("'", '"') if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
