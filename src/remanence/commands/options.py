"""How the flags of a command appear in its help."""

from __future__ import annotations

from typing import Any

import tyro


def option(metavar: str, name: str | None = None) -> Any:
    """A flag whose help shows what it takes and leaves the default to the text, where it reads better."""
    return tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint="")
