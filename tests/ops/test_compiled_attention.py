"""The GPU kernels of attention go through the compiler for a GPU, which need not be there."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need Triton, which is installed on Linux (x86-64) only")


def test_the_kernels_compile_for_a_gpu_that_is_not_there(root: Path, tmp_path: Path) -> None:
    """For compute capability 9.0, with the tools that come with Triton; within the shared memory that there is."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("needs the assembler that comes with Triton on Linux (x86-64)")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root / "src")}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "benchmarks/attention_kernels.py", "--compile", "--dtypes", "bfloat16", "--widths", "64"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shared = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("attention_")]
    assert len(shared) == 5 and max(shared) <= 227 * 1024
