"""Corpora known by name: where they are published, how the published work prepared them, and what must come out."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from remanence.data.spool import DocumentRule
from remanence.errors import InputError


@dataclass(frozen=True)
class Published:
    """A corpus with a name."""

    name: str
    title: str
    licence: str
    homepage: str
    tokenizer: str
    documents: DocumentRule = "none"
    validation: float = 0.05
    test: float = 0.05
    expected: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "python-stdlib": Published(
            name="python-stdlib",
            title=f"The standard library of Python {platform.python_version()}, one document a module, without tests",
            licence="PSF-2.0",
            homepage="https://docs.python.org/3/license.html",
            tokenizer="byte",
            documents="file",
        ),
    }
)


def published(name: str) -> Published:
    if name not in PUBLISHED:
        raise InputError(f"There is no published corpus {name!r}; known are {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]
