"""What the arithmetic of large corpora rests on: encoding speed on one and two cores, and what training reads.

    python benchmarks/large_corpora.py wiki2015.txt data/sample

prepares the text (not compressed) as bytes and with the tokenizer of a prepared corpus, in shards, at one and at two
processes; opens a manifest of 100,000 shards; and reads lanes from a web server on this machine, counting ranges and
bytes. Writes benchmarks/results/large-corpora.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from prepare import machine, measure, versions

from remanence.data import Corpus, Lanes
from remanence.data.manifest import check_manifest, corpus_fingerprint, divided
from remanence.data.parts import join
from remanence.files import write_json, write_text

SHARDS = 100_000
LANES, SEGMENT, STEPS = 32, 512, 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a text file, not compressed")
    parser.add_argument("tokenizer", type=Path, help="the folder of a prepared corpus")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    runs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, tokenizer in (("bytes", "byte"), ("bpe", str(arguments.tokenizer))):
            for cores in (1, 2):
                options = ["--documents", "separator", "--tokenizer", tokenizer, "--shard-tokens", "4194304"]
                found = measure(arguments.text, folder / f"{kind}-{cores}", [*options, "--workers", str(cores)], cores)
                runs[f"{kind}, {cores}"] = {key: value for key, value in found.items() if key != "command"}
            runs[f"{kind}, 2 parts at once"] = parts(arguments.text, folder / f"{kind}-parts", tokenizer, found)
        report: dict[str, Any] = {
            "machine": machine(2),
            "versions": versions(),
            "prepare": runs,
            "manifest": manifest(folder),
            "reading": reading(folder / "bpe-2"),
        }
    write_json(arguments.results / "large-corpora.json", report)
    write_text(arguments.results / "large-corpora.md", page(report))
    print(page(report))


def parts(text: Path, folder: Path, tokenizer: str, whole: dict[str, Any]) -> dict[str, Any]:
    """Two commands that know nothing of each other, each with one process and one half of the text; then joined."""
    halves, data = folder / "text", text.read_bytes()
    halves.mkdir(parents=True)
    cut = data.index(b"\n", len(data) // 2) + 1
    (halves / "1").write_bytes(data[:cut])
    (halves / "2").write_bytes(data[cut:])
    command = [sys.executable, "-m", "remanence", "prepare", str(halves), "--out", str(folder / "out"), "--quiet"]
    command += ["--documents", "separator", "--tokenizer", tokenizer, "--shard-tokens", "4194304", "--workers", "1"]
    load, before, began = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    running = [subprocess.Popen([*command, "--part", f"{index}/2"]) for index in (1, 2)]
    if any(process.wait() for process in running):
        raise SystemExit("a part failed")
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    join(folder / "out")
    return whole | {
        "seconds": round(seconds, 2),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "load_of_the_machine_before": round(load, 1),
        "text_megabytes_per_second": round(len(data) / 1e6 / seconds, 1),
        "peak_resident_megabytes": "not taken",
    }


def manifest(folder: Path) -> dict[str, Any]:
    """A manifest of 100,000 shards: its size, and the time and memory to read and check it in a new process."""
    made = json.loads((folder / "bpe-1" / "manifest.json").read_text())
    entry = made["splits"]["train"]
    one = {"tokens": 1 << 28, "documents": 200_000, "sha256": entry["shards"][0]["sha256"]}
    shards = [{"file": f"part-{1 + i // 100:06}-of-001000/train-{i % 100:05}", **one} for i in range(SHARDS)]
    entry |= {"shards": shards, "sha256": divided(shards), "documents": SHARDS * one["documents"]}
    entry["counts"]["tokens"] = SHARDS * one["tokens"]
    made["fingerprint"] = corpus_fingerprint(made["tokenizer"]["fingerprint"], made["splits"])
    path = folder / "manifest.json"
    write_json(path, made)
    check_manifest(str(path), made)
    program = (
        "import sys, numpy as np; from pathlib import Path; from remanence.data.corpus import Corpus\n"
        "from remanence.data.places import Local; from remanence.data.manifest import check_manifest\n"
        "place = Local(Path(sys.argv[1])); told = place.manifest(); check_manifest('manifest', told)\n"
        "split = Corpus(Path(sys.argv[1]), told, place)._shards('train'); print(len(split[0]))"
    )
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "shards": SHARDS,
        "bytes": path.stat().st_size,
        "seconds": round(time.perf_counter() - began, 2),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
    }


def reading(folder: Path) -> dict[str, Any]:
    """Lanes over a web server on this machine, beside lanes over the files."""
    asked: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            data = (folder / self.path.lstrip("/")).read_bytes() if self.command == "HEAD" else None
            path, span = folder / self.path.lstrip("/"), self.headers.get("Range")
            size = path.stat().st_size
            begin, end = 0, size
            if span:
                first, last = span.removeprefix("bytes=").split("-")
                begin, end = int(first), int(last) + 1
            self.send_response(206 if span else 200)
            self.send_header("Content-Length", str(end - begin))
            self.send_header("Accept-Ranges", "bytes")
            if span:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
            self.end_headers()
            if data is None:
                with open(path, "rb") as file:
                    file.seek(begin)
                    self.wfile.write(file.read(end - begin))
                if path.suffix == ".tokens":
                    asked.append(end - begin)

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 (its name in the library)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        seconds = {}
        for where in (str(folder), f"http://127.0.0.1:{server.server_port}"):
            corpus = Corpus.open(where)
            lanes = Lanes(corpus.split("train"), LANES, SEGMENT)
            lanes.next()
            began = time.perf_counter()
            for _ in range(STEPS):
                lanes.next()
            seconds["file" if where == str(folder) else "web"] = round(time.perf_counter() - began, 3)
        server.shutdown()
    tokens = LANES * SEGMENT * STEPS
    return {
        "lanes": LANES,
        "segment": SEGMENT,
        "tokens": tokens,
        "seconds": seconds,
        "bytes_of_a_token": corpus.dtype.itemsize,
        "ranges": len(asked),
        "bytes": sum(asked),
    }


def page(report: dict[str, Any]) -> str:
    known, read, told = report["manifest"], report["reading"], report["versions"]
    lines = [
        "# What large corpora cost",
        "",
        f"Measured by `python benchmarks/large_corpora.py` on {report['machine']['processor']}, "
        + ", ".join(f"{name} {number}" for name, number in told.items())
        + ". Load is the number of processes that wanted one of the two cores just before; processor seconds do not "
        "tell of it.",
        "",
        "| tokenizer, processes | seconds | processor seconds | load before | text MB/s | MB per processor second | "
        "tokens | bytes per token | peak resident MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in report["prepare"].items():
        size = run["text_megabytes_per_second"] * run["seconds"]
        lines.append(
            f"| {name} | {run['seconds']} | {run['processor_seconds']} | {run['load_of_the_machine_before']} | "
            f"{run['text_megabytes_per_second']} | {size / run['processor_seconds']:.1f} | {run['tokens']:,} | "
            f"{run['bytes_per_token']} | {run['peak_resident_megabytes']} |"
        )
    lines += [
        "",
        f"A manifest of {known['shards']:,} shards has {known['bytes']:,} bytes; reading and checking it takes "
        f"{known['seconds']} s ({known['processor_seconds']} processor seconds), the start of Python included.",
        "",
        f"{read['lanes']} lanes of segments of {read['segment']} tokens, {read['tokens']:,} tokens of "
        f"{read['bytes_of_a_token']} bytes: {read['seconds']['file']} s from files and {read['seconds']['web']} s from "
        f"a web server on the same machine, which was asked for {read['ranges']:,} ranges and gave {read['bytes']:,} "
        "bytes "
        f"({read['bytes'] / read['tokens'] / read['bytes_of_a_token']:.2f} for each that was read, blocks ahead "
        "included).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
