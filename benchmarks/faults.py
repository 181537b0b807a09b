"""How many faults of each kind were tried, and how many held what docs/reliability.md promises.

    python benchmarks/faults.py                      100 of each kind, and every damage
    python benchmarks/faults.py kill-train --count 500 --seed 7

starts real processes on real files in a temporary folder, disturbs them (`tests/faults`), goes on afterwards, and
compares what comes out with a run that nothing disturbed, bit for bit. What did not hold is printed at once, with the
reason. The table goes to benchmarks/results/faults.md. Some kinds need root (a mounted disk, another user) or a C
compiler (faults at a chosen call to the system); elsewhere they are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.faults.catalog import KINDS  # noqa: E402
from tests.faults.kinds import Kind, Tally, tally  # noqa: E402
from tests.faults.nursery import Nursery  # noqa: E402
from tests.faults.setting import Setting  # noqa: E402

from remanence.files import read_json, write_json, write_text  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SHOWN = 3
"""How many of the cases that did not hold the page shows of each kind."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [kind.name for kind in KINDS]
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(names)}; all unless given")
    parser.add_argument(
        "--count",
        type=int,
        default=100,
        help="cases of each kind (100); a tenth with ranks, all damages",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - set(names):
        parser.error(f"there is no kind {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    path = arguments.results / "faults.json"
    report: dict[str, Any] = read_json(path, "the results") if path.exists() else {"kinds": {}}
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        # Other users come here too.
        Path(folder).chmod(0o755)
        with Nursery(Path(folder) / "nursery") as nursery:
            setting = Setting(Path(folder) / "setting", nursery)
            for kind in KINDS:
                if kind.name in (arguments.kinds or names):
                    report["kinds"][kind.name] = counted(kind, setting, arguments.seed, arguments.count)
                    # Every kind as it was last counted, in the order of the catalog.
                    report["kinds"] = {name: report["kinds"][name] for name in names if name in report["kinds"]}
                    write_json(path, report)
                    write_text(arguments.results / "faults.md", page(report))
    print(page(report))
    return any(each["not_held"] for each in report["kinds"].values())


def counted(kind: Kind, setting: Setting, seed: int, count: int) -> dict[str, Any]:
    """The cases of a kind, done and counted."""
    day = datetime.now(UTC).date().isoformat()
    what = {"what": kind.what, "seed": seed, "machine": machine(), "day": day, "code": code()}
    if missing := kind.missing(setting):
        print(f"{kind.name}: left out: {missing}", flush=True)
        return {**what, "left_out": missing, "tried": 0, "held": 0, "not_held": {}, "seconds": 0.0}

    def failed(what: str, why: str) -> None:
        print(f"{kind.name}: DID NOT HOLD: {what}: {why}", flush=True)

    began = time.perf_counter()
    # There is a certain number of damages, which are all done; chance has no number.
    wanted = 10**9 if kind.finite else -(-count // 10) if kind.slow else count
    told: Tally = tally(kind, setting, seed, wanted, failed)
    seconds = round(time.perf_counter() - began, 1)
    print(f"{kind.name}: {told.held} of {told.tried} held, in {seconds:.0f} s", flush=True)
    return {**what, "tried": told.tried, "held": told.held, "not_held": dict(told.not_held), "seconds": seconds}


def code() -> str:
    """The commit that was tested; empty outside a git checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return (
        f"{os.cpu_count()} cores of {model or platform.machine()}, {platform.system()} {platform.release()}, "
        f"python {platform.python_version()}, torch {version('torch')}, remanence {version('remanence')}"
    )


def page(report: dict[str, Any]) -> str:
    kinds: dict[str, dict[str, Any]] = report["kinds"]
    tried, held = (sum(each[name] for each in kinds.values()) for name in ("tried", "held"))
    lines = [
        "# Faults, tried and held",
        "",
        "Counted by `python benchmarks/faults.py`: real processes and real files, each disturbed, gone on with and "
        "compared with a run that nothing disturbed, bit for bit. [Reliability](../../docs/reliability.md) says what "
        "is promised. A case in which the fault came too late to meet anything is not counted.",
        "",
        *(f"- {each}" for each in dict.fromkeys(each["machine"] for each in kinds.values())),
        "",
        f"**{held:,} of {tried:,} held.**",
        "",
        "| kind | fault | tried | held | seed | code |",
        "|---|---|--:|--:|--:|---|",
    ]
    for name, each in kinds.items():
        count = (
            f"{each['tried']:,} | {each['held']:,}" if not each.get("left_out") else f"left out: {each['left_out']} |"
        )
        lines.append(f"| {name} | {each['what']} | {count} | {each['seed']} | {each['code']} |")
    failures = {name: each["not_held"] for name, each in kinds.items() if each["not_held"]}
    if failures:
        lines += ["", "## What did not hold", ""]
    for name, cases in failures.items():
        lines += [f"- {name}: {' '.join(case.split())}" for case in list(cases)[:SHOWN]]
        if len(cases) > SHOWN:
            lines.append(f"- {name}: {len(cases) - SHOWN} more")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
