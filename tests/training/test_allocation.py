"""Large blocks are kept where the C library can be told to, and nothing else happens anywhere."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from remanence.training import allocation
from remanence.training.allocation import keep_freed_memory

COUNT = """
import resource, sys, torch
from remanence.training.allocation import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for number in range(12):
    if number == 4:
        began = faults()
    torch.ones(40, 1024, 1024)
print(faults() - began)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has thresholds to set")
def test_blocks_that_are_asked_for_again_cost_no_page_faults() -> None:
    clean = {name: value for name, value in os.environ.items() if name not in (*allocation.SETTINGS, "GLIBC_TUNABLES")}
    faults = {
        mode: int(
            subprocess.run([sys.executable, "-c", COUNT, mode], env=clean, capture_output=True, check=True).stdout
        )
        for mode in ("plain", "keep")
    }
    # 160 MiB, eight times; large pages make the faults of the first few, not none.
    assert faults["plain"] > 8 * 40
    assert faults["keep"] < 40


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")]
)
def test_thresholds_of_the_user_are_left_alone(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert keep_freed_memory() is False


def test_another_system_or_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False
    monkeypatch.setattr(allocation.sys, "platform", "darwin")
    assert keep_freed_memory() is False
