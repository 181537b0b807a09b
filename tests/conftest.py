"""What all tests share: determinism, one thread a worker, shapes checked as they run, and the real text of `shared`."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Workers would fight for the cores, and results would depend on how many there are.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same state of the global generators, whatever ran before it."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (the libraries below us may still draw from it)
    torch.manual_seed(0)


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
