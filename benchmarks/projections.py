"""What keeping the projections of a memory saves in evaluation: short segments, long memories.

    python benchmarks/projections.py --name projections

Each model reads the same text twice, segment by segment in turns, once as it is and once with what fixed weights make
of its slots kept beside them (`with_projections`, as `remanence evaluate` does). Before anything is timed, both must
give the same losses. Medians of the ratio in each turn go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from remanence import __version__
from remanence.files import write_json, write_text
from remanence.models import LanguageModel, build, config_class

SIZES: dict[str, Any] = {
    "vocab_size": 256, "num_layers": 4, "model_width": 410, "num_heads": 10, "head_width": 41,
    "feed_forward_width": 2100,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "transformer-xl": {},
    "compressive": {"compression_rate": 1, "compression": "mean", "compressed_length": 64},
    "infinite-former": {"num_basis": 64},
}
PROTOCOLS = ((64, 640, 1), (64, 640, 8), (1, 512, 1), (1, 512, 8))
"""Tokens of a segment, slots, lanes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="projections", help="of the result files")
    parser.add_argument("--turns", type=int, default=15, help="timed segments, after the memory is full")
    arguments = parser.parse_args()
    rows = []
    for architecture, settings in MODELS.items():
        config = config_class(architecture)(segment_length=64, memory_length=640, **SIZES, **settings)
        model = build(config, seed=0).eval()
        for segment, slots, lanes in PROTOCOLS:
            found = compare(model, segment, slots, lanes, arguments.turns)
            rows.append({"architecture": architecture, "segment": segment, "memory": slots, "lanes": lanes, **found})
            print(rows[-1])
    about = {
        "command": f"python benchmarks/projections.py {shlex.join(sys.argv[1:])}".strip(),
        "machine": f"{torch.get_num_threads()} threads, {len(os.sched_getaffinity(0))} cores, {platform.machine()}",
        "versions": f"remanence {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "model": "bfloat16 autocast; " + ", ".join(f"{name} {value}" for name, value in SIZES.items()),
    }
    results = Path(__file__).parent / "results"
    write_json(results / f"{arguments.name}.json", {"about": about, "rows": rows})
    write_text(results / f"{arguments.name}.md", page(about, rows))


@torch.no_grad()
def compare(model: LanguageModel, segment: int, slots: int, lanes: int, turns: int) -> dict[str, Any]:
    """Medians of the seconds of a segment, without and with projections kept, and of their ratio."""
    drawn = torch.Generator().manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        memory = model.init_memory(lanes, slots)
        # Filled by long segments: how a memory was filled changes nothing.
        for _ in range(-(-slots // 64) + 2):
            memory = model(torch.randint(256, (lanes, 64), generator=drawn), memory).memory
        memories = [memory, model.with_projections(memory)]
        seconds: list[list[float]] = [[], []]
        for turn in range(turns + 2):
            tokens = torch.randint(256, (lanes, segment + 1), generator=drawn)
            losses = []
            for number, each in enumerate(memories):
                began = time.perf_counter()
                hidden, memories[number], _ = model(tokens[:, :-1], each)
                losses.append(model.head.loss(hidden, tokens[:, 1:]))
                if turn > 1:
                    seconds[number].append(time.perf_counter() - began)
            torch.testing.assert_close(losses[1], losses[0], rtol=2e-2, atol=2e-2)
    ratios = [plain / kept for plain, kept in zip(*seconds, strict=True)]
    return {
        "plain_ms": 1e3 * statistics.median(seconds[0]),
        "kept_ms": 1e3 * statistics.median(seconds[1]),
        "times_faster": statistics.median(ratios),
    }


def page(about: dict[str, str], rows: list[dict[str, Any]]) -> str:
    lines = ["# Reading with projections kept", "", *(f"- {label}: {value}" for label, value in about.items()), ""]
    lines += ["| model | segment | memory | lanes | ms a segment | ms, kept | times faster |", "|---" * 7 + "|"]
    lines += [
        f"| {row['architecture']} | {row['segment']} | {row['memory']} | {row['lanes']} | {row['plain_ms']:.1f} "
        f"| {row['kept_ms']:.1f} | {row['times_faster']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
