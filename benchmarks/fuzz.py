"""Feed spoilt files to every parser of the library and count what comes of it.

    python benchmarks/fuzz.py --inputs 120000 --name fuzzing

Two kinds of fuzzers: mutations that know the kind of file (`fuzzing/mutations.py`), from a seed for each parser; and
atheris, which keeps what reaches new lines of the library (`pip install atheris`; left out, with a sentence, where it
is not installed). Both sign half of the inputs again where a parser checks a hash. Parsers of a kind (the
first word of their names) share a process, so that even one that takes it down is counted. Results go to
benchmarks/results/NAME.md and .json; inputs that crashed are kept in the folder that --kept names. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
SHARED = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
GUIDED = "coverage-guided"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=120_000, help="in all")
    parser.add_argument("--guided", type=float, default=0.25, help="share of them that is guided by coverage")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--only", default="", help="parsers whose names hold this")
    parser.add_argument("--name", default="fuzzing")
    parser.add_argument("--kept", type=Path, default=None, help="folder for inputs that crashed")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which nothing more is tried")
    parser.add_argument("--until", type=float, default=math.inf, help=argparse.SUPPRESS)
    parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments)
        return
    begin = time.monotonic()
    arguments.until = begin + 60 * arguments.minutes
    sys.path.insert(0, str(ROOT))
    from benchmarks.fuzzing.parsers import parsers

    chosen = [each for each in parsers() if arguments.only in each.name]
    guided = round(arguments.inputs * arguments.guided) if find_spec("atheris") else 0
    if not guided:
        print("atheris is not installed, so nothing is guided by coverage: pip install atheris")
    whole = sum(each.share for each in chosen)
    tallies: dict[str, dict[str, Any]] = {}
    counts: Counter[str] = Counter()
    for each in chosen:
        counts[kind_of(each.name)] += round((arguments.inputs - guided) * each.share / whole)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        last = pool.submit(run, arguments, GUIDED, guided)
        for found in pool.map(partial(run, arguments), counts, counts.values()):
            gather(tallies, found, "structured")
            for name in found:
                print(name, {**tallies[name], "crashes": dict(tallies[name]["crashes"])}, flush=True)
        gather(tallies, last.result(), GUIDED)
    write(arguments, tallies, time.monotonic() - begin)


def run(arguments: argparse.Namespace, worker: str, count: int) -> dict[str, Any]:
    """What a process of its own found; one that dies is begun again behind the input that killed it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "PYTHONHASHSEED": "0"}
    found: dict[str, Any] = {}
    done = deaths = 0
    while done < count and deaths < 20 and time.monotonic() < arguments.until:
        with tempfile.TemporaryDirectory(dir=SHARED) as folder:
            report = Path(folder) / "report.json"
            environment["TMPDIR"] = folder
            command = [sys.executable, __file__, "--worker", worker, "--inputs", str(count - done), "--report", report]
            command += ["--until", str(arguments.until)]
            command += ["--seed", str(arguments.seed + 1000 * deaths), "--only", arguments.only]
            command += ["--kept", arguments.kept] if arguments.kept else []
            ended = subprocess.run(
                list(map(str, command)), env=environment, capture_output=True, text=True, check=False
            )
            results = json.loads(report.read_text()) if report.exists() else {}
            for name, tally in results.items():
                add(found.setdefault(name, {"crashes": Counter()}), tally)
            done += sum(tally["tried"] for tally in results.values())
            if ended.returncode or not (results or time.monotonic() > arguments.until):
                deaths += 1
                lines = ended.stderr.strip().splitlines() or [""]
                fault = f"process ended with {ended.returncode}: {lines[-1][:100]}"
                name = next(reversed(results), worker)
                add(found.setdefault(name, {"crashes": Counter()}), {"tried": 1, "crashes": {fault: 1}})
                done += 1
                print(worker, fault, flush=True)
    return found


def work(arguments: argparse.Namespace) -> None:
    """Try inputs in this process and report after every hundred."""
    sys.path.insert(0, str(ROOT))
    if arguments.worker == GUIDED:
        import atheris

        with atheris.instrument_imports(include=["remanence"]):
            from benchmarks.fuzzing.parsers import parsers
    else:
        from benchmarks.fuzzing.parsers import parsers
    from benchmarks.fuzzing.trying import Bench, guided

    folder = arguments.report.parent
    wanted = [
        each for each in parsers() if arguments.only in each.name and arguments.worker in (GUIDED, kind_of(each.name))
    ]
    benches = [Bench(each, folder / each.name.replace(" ", "-"), arguments.kept) for each in wanted]

    def report() -> None:
        told = {bench.parser.name: bench.tally.to_json() for bench in benches if bench.tally.tried}
        arguments.report.with_suffix(".part").write_text(json.dumps(told))
        os.replace(arguments.report.with_suffix(".part"), arguments.report)

    if arguments.worker == GUIDED:
        guided(benches, arguments.inputs, arguments.seed, folder / "inputs", report, arguments.until)
        return
    whole = sum(bench.parser.share for bench in benches)
    for bench in benches:
        for number in range(math.ceil(arguments.inputs * bench.parser.share / whole)):
            if time.monotonic() > arguments.until:
                break
            bench.random(Random(f"{arguments.seed}/{bench.parser.name}/{number}"))
            if number % 100 == 99:
                report()
        report()


def kind_of(name: str) -> str:
    """Parsers of a kind share a process."""
    return name.partition(".")[0].split()[0]


def gather(tallies: dict[str, dict[str, Any]], found: dict[str, Any], kind: str) -> None:
    for name, tally in found.items():
        total = tallies.setdefault(name, {"crashes": Counter()})
        add(total, tally)
        total[kind] = total.get(kind, 0) + tally["tried"]


def add(total: dict[str, Any], tally: dict[str, Any]) -> None:
    for key, value in tally.items():
        if key in ("largest", "slowest"):
            total[key] = max(total.get(key, 0), value)
        elif key == "crashes":
            total["crashes"].update(value)
        else:
            total[key] = total.get(key, 0) + value


def write(arguments: argparse.Namespace, tallies: dict[str, dict[str, Any]], seconds: float) -> None:
    """The table."""
    from remanence.files import write_json, write_text

    names = ("remanence", "torch", "safetensors", "tokenizers", "numpy", "hypothesis", "atheris")
    versions = {name: version(name) for name in names[1:] if find_spec(name)}
    about = {"python": platform.python_version(), **versions}
    sums = {key: sum(tally.get(key, 0) for tally in tallies.values()) for key in ("tried", "accepted", "refused")}
    crashes = sum(sum(tally["crashes"].values()) for tally in tallies.values())
    lines = [
        "# Files that nobody vouches for",
        "",
        f"`python benchmarks/fuzz.py --inputs {arguments.inputs} --seed {arguments.seed}`, {arguments.jobs} "
        "processes at a time "
        f"on a shared x86 machine with 2 cores, {time.strftime('%Y-%m-%d')}, {seconds / 60:.0f} minutes; "
        f"{', '.join(f'{name} {each}' for name, each in about.items())}.",
        "",
        f"{sums['tried']:,} inputs: {sums['accepted']:,} accepted, {sums['refused']:,} refused by InputError, "
        f"{crashes:,} crashes.",
        "",
        "| parser | structured | coverage-guided | accepted | refused | crashes "
        "| largest, MiB | slowest, s | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, tally in tallies.items():
        lines.append(
            f"| {name} | {tally.get('structured', 0):,} | {tally.get(GUIDED, 0):,} | {tally.get('accepted', 0):,} "
            f"| {tally.get('refused', 0):,} | {sum(tally['crashes'].values()):,} "
            f"| {tally.get('largest', 0) / 2**20:.1f} | {tally.get('slowest', 0):.2f} | {tally.get('seconds', 0):.0f} |"
        )
    lines += [
        "",
        "Largest: by how much the resident memory of the process grew at most while one input was read, beyond 16 "
        "times the bytes of its files; the address space could not grow by more than 64 MiB beyond that, or reading "
        "would have failed, which counts as a crash. Accepted inputs are those whose change does no harm: a comment, a "
        "number in range, a weight.",
    ]
    lines += [
        f"- {name}: {kind} ({count})" for name, each in tallies.items() for kind, count in each["crashes"].items()
    ]
    write_text(RESULTS / f"{arguments.name}.md", "\n".join(lines) + "\n")
    plain = {name: {**tally, "crashes": dict(tally["crashes"])} for name, tally in tallies.items()}
    write_json(RESULTS / f"{arguments.name}.json", {"about": about, "seed": arguments.seed, "parsers": plain})
    print("\n".join(lines))


if __name__ == "__main__":
    main()
