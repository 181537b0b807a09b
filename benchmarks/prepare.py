"""How long `remanence prepare` takes on one large file, and how much memory it and its children hold.

    python benchmarks/prepare.py wiki2015.txt.xz

prepares the file as bytes, then trains a BPE of 16,384 on it and encodes it, each in a process of its own on two cores,
and writes what was measured to benchmarks/results/. Resident memory is the sum over the process and all its children,
read from /proc fifty times a second; pages they share are counted for each, so the true figure is no larger. The
results are opened and verified (hashes, token ids) before anything is reported.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from remanence.data import Corpus
from remanence.files import sha256_file, write_json, write_text

RUNS = {
    "bytes": ["--documents", "separator"],
    "bpe-16384": ["--documents", "separator", "--tokenizer", "bpe", "--vocab-size", "16384"],
}
LIMITS = {"bytes": {"seconds": 15.0, "megabytes": 500.0}}
INTERVAL = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a text file, compressed or not")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = {
            name: measure(arguments.text, Path(folder) / name, options, arguments.cores)
            for name, options in RUNS.items()
        }
    name = arguments.text.name.split(".")[0]
    report = {
        "what": f"remanence prepare on {arguments.text.name}",
        "text": {"bytes": arguments.text.stat().st_size, "sha256": sha256_file(arguments.text)},
        "machine": machine(arguments.cores),
        "versions": versions(),
        "runs": measured,
    }
    write_json(arguments.results / f"prepare-{name}.json", report)
    write_text(arguments.results / f"prepare-{name}.md", page(report))
    print(page(report))


def measure(text: Path, out: Path, options: list[str], cores: int) -> dict[str, Any]:
    """Prepare in a new process on some cores; figures of that, after the result was verified."""
    usable = sorted(os.sched_getaffinity(0))[:cores]
    command = [sys.executable, "-m", "remanence", "prepare", str(text), "--out", str(out), "--quiet", *options]
    load = os.getloadavg()[0]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, usable))
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(INTERVAL)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    corpus = Corpus.open(out, verify=True)
    counts = {split: corpus.manifest["splits"][split]["counts"] for split in corpus.splits}
    size = sum(entry["bytes"] for entry in counts.values())
    tokens = sum(entry["tokens"] for entry in counts.values())
    return {
        "command": " ".join(["remanence prepare", text.name, *options]),
        "seconds": round(seconds, 2),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "load_of_the_machine_before": round(load, 1),
        "peak_resident_megabytes": round(peak / 1e6, 1),
        "text_megabytes_per_second": round(size / 1e6 / seconds, 1),
        "vocabulary": corpus.vocab_size,
        "tokens": tokens,
        "bytes_per_token": round(size / tokens, 3),
        "splits": counts,
    }


def resident(pid: int) -> int:
    """Bytes resident in a process and all below it."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text()
                pages[int(entry.name)] = int(Path(entry.path, "statm").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            # The name of the program, in brackets, may hold blanks.
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return sum(pages.get(member, 0) for member in below) * os.sysconf("SC_PAGE_SIZE")


def machine(cores: int) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return {
        "processor": model,
        "cores_used": cores,
        "cores_of_the_machine": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("remanence", "numpy", "tokenizers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def page(report: dict[str, Any]) -> str:
    machine, runs = report["machine"], report["runs"]
    lines = [
        f"# {report['what']}",
        "",
        f"Measured by `python benchmarks/prepare.py` on {machine['cores_used']} cores of {machine['processor']} "
        f"({machine['system']}), " + ", ".join(f"{name} {number}" for name, number in report["versions"].items()) + ".",
        f"The file has {report['text']['bytes']:,} bytes as it lies on the disk "
        f"(SHA-256 `{report['text']['sha256']}`). Time is that of the whole command, the start of Python included; "
        "memory is the peak of all its processes together. Load is the number of processes that wanted a core just "
        f"before, on a machine of {machine['cores_of_the_machine']} cores: seconds tell of them too, and processor "
        "seconds do not.",
        "",
        "| command | seconds | processor seconds | load before | peak resident MB | text MB/s | vocabulary | tokens | "
        "bytes per token |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{run['command']}` | {run['seconds']} | {run['processor_seconds']} | "
        f"{run['load_of_the_machine_before']} | {run['peak_resident_megabytes']} | "
        f"{run['text_megabytes_per_second']} | {run['vocabulary']:,} | {run['tokens']:,} | {run['bytes_per_token']} |"
        for run in runs.values()
    ]
    lines.append("")
    for name, limits in LIMITS.items():
        run = runs[name]
        kept = run["seconds"] < limits["seconds"] and run["peak_resident_megabytes"] < limits["megabytes"]
        lines.append(
            f"Asked for {name}: under {limits['seconds']:.0f} s and under {limits['megabytes']:.0f} MB. "
            f"{'Kept.' if kept else 'Not kept.'}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
