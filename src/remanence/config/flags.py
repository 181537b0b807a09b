"""Command-line flags <-> dataclasses, by tyro, with every error in one sentence.

tyro reads the types, the defaults and the docstrings of the fields, so that a setting is described in one place only:
`memory_length` of the table `model` is the flag `--model.memory-length`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from remanence.config.tables import describe, types_of, union_of, unknown_key
from remanence.errors import InputError

Settings = TypeVar("Settings")

SYNONYMS = {"--out": "--folder", "--output": "--folder", "--folder": "--out"}
"""What one command calls as another does not."""


def parse_flags(
    kind: type[Settings],
    argv: Sequence[str],
    prog: str,
    description: str | None = None,
    default: Settings | None = None,
) -> Settings:
    """An instance of the dataclass `kind` from the flags in `argv`; what is not given keeps the value of `default`.

    `prog` is the command as the user typed it ("remanence train"), `description` the text above the flags in the help
    (default: the docstring of `kind`). `--help` prints the help and raises SystemExit(0). Raises InputError, in one
    sentence, for unknown flags (naming the nearest valid one), wrong values and missing arguments.
    """
    argv = _with_switch_values(argv, flag_types(kind, default))
    options: dict[str, Any] = {"prog": prog, "description": description, "args": list(argv)}
    if default is not None:
        options["default"] = default
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
    raise _explain(complaint.getvalue(), argv, flag_types(kind, default), prog, _synonyms(default))


def flag_types(kind: Any, default: Any = None, prefix: str = "--") -> dict[str, Any]:
    """Every flag of a dataclass with its type. Nested dataclasses are dotted; positional arguments are left out."""
    flags: dict[str, Any] = {}
    marked = get_type_hints(kind, include_extras=True)
    for name, annotation in types_of(kind).items():
        value = getattr(default, name, None)
        nested = type(value) if dataclasses.is_dataclass(value) else annotation
        markers = getattr(marked[name], "__metadata__", ())
        renamed = [marker.name for marker in markers if getattr(marker, "name", None) is not None]
        dashed = renamed[0] if renamed else name.replace("_", "-")
        if dataclasses.is_dataclass(nested):
            flags |= flag_types(nested, value, f"{prefix}{dashed}." if dashed else prefix)
        elif "Positional" not in map(repr, markers):
            flags[prefix + dashed] = annotation
            flags |= {alias: annotation for marker in markers for alias in getattr(marker, "aliases", None) or ()}
    return flags


def _synonyms(default: Any) -> dict[str, str]:
    """Flags that are not there, and those that are called so elsewhere; see `ModelConfig.synonyms`."""
    found = dict(SYNONYMS)
    for holder in (default, getattr(default, "recipe", None)):
        for one, other in getattr(getattr(holder, "model", None), "synonyms", {}).items():
            found[f"--model.{one}".replace("_", "-")] = f"--model.{other}".replace("_", "-")
    return found


def _with_switch_values(argv: Sequence[str], flags: dict[str, Any]) -> list[str]:
    """Give switches that may also be None their value: `--x` means `--x True` and `--no-x` means `--x False`."""
    values = {"true": "True", "false": "False", "none": "None"}
    words: list[str] = []
    for position, word in enumerate(argv):
        if word == "--":
            return [*words, *argv[position:]]
        written, attached, value = word.partition("=")
        canonical = written.replace("_", "-")
        positive = re.sub(r"(--|\.)no-([^.]*)$", r"\1\2", canonical)
        flag = canonical if canonical in flags else positive
        if written.startswith("--") and flag in flags and set(union_of(flags[flag])) == {bool, type(None)}:
            following = argv[position + 1].lower() if position + 1 < len(argv) else ""
            if attached:
                words.append(f"{written}={values.get(value.lower(), value)}")
            elif flag == canonical and following in values:
                words.append(written)
            else:
                words += [flag, str(flag == canonical)]
        elif words and words[-1] in flags and set(union_of(flags[words[-1]])) == {bool, type(None)}:
            words.append(values.get(word.lower(), word))
        else:
            words.append(word)
    return words


def _explain(
    complaint: str, argv: Sequence[str], flags: dict[str, Any], prog: str, synonyms: dict[str, str]
) -> InputError:
    """The error for what tyro refused: our own sentence where a flag is at fault, and tyro's words otherwise."""
    for position, word in enumerate(argv):
        written, attached, value = word.partition("=")
        if not written.startswith("--") or written in ("--", "--help"):
            continue
        canonical = written.replace("_", "-")
        negated = re.sub(r"(--|\.)no-([^.]*)$", r"\1\2", canonical)
        flag = canonical if canonical in flags else negated
        if flag not in flags or (flag != canonical and flags[flag] is not bool):
            return unknown_key(written, flags, noun="flag", meant=synonyms.get(canonical))
        words = [value] if attached else _values(argv[position + 1 :], flags[flag])
        if not _fits(flags[flag], words):
            given = " ".join(words)
            told = f'is "{given}"' if given else "is given without a value"
            if flags[flag] is bool:
                return InputError(f"{written} {told}, but it takes no value; write {flag} or leave it out.")
            return InputError(f"{written} {told}, but it must be {describe(flags[flag])}.")
    told = _words_of(complaint)
    if missing := re.match(r"Missing from [^:]*: (\S+) (.*?)\.? ?\(required\)", told):
        return InputError(f"{missing[1]} is missing ({missing[2][:1].lower()}{missing[2][1:]}); see {prog} --help.")
    if choice := re.match(r"invalid choice '(.*?)' for argument '(.*?)'", told, re.IGNORECASE):
        return InputError(f'"{choice[1]}" is not what {choice[2]} may be; see {prog} --help.')
    refused = re.match(r"Error parsing [\w.-]+: (.*)$", told)
    return InputError(refused[1] if refused else f"{told.rstrip('.')}; see {prog} --help.")


def _words_of(complaint: str) -> str:
    """What tyro says is wrong: it stands between a title and the first rule; what follows repeats the help."""
    # Where the terminal has no box characters the frame is blank and the rules are hyphens.
    lines = [line.strip("│ ") for line in complaint.splitlines()[1:-1]]
    rules = [index for index, line in enumerate(lines) if index and re.fullmatch("[─-]{2,}", line)]
    first = 1 if lines and re.fullmatch("[─-]{2,}", lines[0]) else 0
    return " ".join(" ".join(lines[first : rules[0] if rules else len(lines)]).split())


def _values(words: Sequence[str], annotation: Any) -> list[str]:
    """The words that belong to a flag of this type: up to the next flag, and no more than the type takes."""
    flags = (index for index, word in enumerate(words) if re.match(r"-[^\d.]", word))
    values = list(words[: next(flags, len(words))])
    if annotation is bool:
        # A word after a switch may be a positional argument, unless it is one that people write for yes and no.
        return (
            values[:1] if values and values[0].lower() in ("true", "false", "yes", "no", "on", "off", "1", "0") else []
        )
    return values if any(get_origin(option) in (tuple, list) for option in union_of(annotation)) else values[:1]


def _fits(annotation: Any, words: Sequence[str]) -> bool:
    """Whether tyro reads `words` as a value of this type; True for types that are not looked into."""
    if annotation is bool:
        return not words
    if get_origin(annotation) is tuple:
        items = get_args(annotation)
        if items[-1] is Ellipsis:
            return all(_fits(items[0], [word]) for word in words)
        return len(items) == len(words) and all(_fits(item, [word]) for item, word in zip(items, words, strict=True))
    if len(union_of(annotation)) > 1:
        return any(
            words == ["None"]
            if option is type(None)
            else words in (["True"], ["False"])
            if option is bool
            else _fits(option, words)
            for option in union_of(annotation)
        )
    if len(words) != 1:
        return bool(words) or annotation not in (int, float, str)
    if annotation in (int, float):
        try:
            annotation(words[0])
        except ValueError:
            return False
    return get_origin(annotation) is not Literal or words[0] in map(str, get_args(annotation))
