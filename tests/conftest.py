"""What all tests share: determinism, one thread a worker, shapes checked as they run, and the real text of `shared`."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Workers would fight for the cores, and results would depend on how many there are.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# Kernels for a GPU run in Triton's interpreter where there is none. It must be known before Triton is first imported.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")


# Wherever shapes stand in signatures they are checked, by the name of each axis. The numeric tower lets 0 be a float.
# On a machine without beartype the rest of the tests can run all the same.
if importlib.util.find_spec("beartype"):
    jaxtyping.install_import_hook(
        ["remanence.memory", "remanence.ops", "remanence.nn", "remanence.models"],
        "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
    )


class Kernels:
    """Finds modules of kernels before the hook does: Triton must find the functions as they are written."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if ".triton_" not in name:
            return None
        return PathFinder.find_spec(name, path, target)


sys.meta_path.insert(0, Kernels)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same state of the global generators, whatever ran before it."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (the libraries below us may still draw from it)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def shapes_unchecked_once_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that compiles gives up checking shapes from there on: the checks cannot be part of one compiled graph."""
    import torch

    plain = torch.compile

    def compile_without_checks(*arguments: Any, **options: Any) -> Any:
        jaxtyping.config.update("jaxtyping_disable", True)
        return plain(*arguments, **options)

    monkeypatch.setattr(torch, "compile", compile_without_checks)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The maintainers' folder with real text and published values, which a user's clone does not have."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the maintainers' folder `shared` beside the clone")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT
