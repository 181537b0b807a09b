"""What a training step costs for each architecture, side by side, beside the machine's own matrix product.

    python benchmarks/training_step.py --name training-step [--compile]

The architectures take turns, step by step, so that a machine whose speed wanders slows all alike. Before anything
is timed, a Transformer-XL and a LaMemo on an empty memory must give the losses of a Transformer with the same weights.
Medians, ratios and peaks go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from remanence import __version__
from remanence.files import write_json, write_text
from remanence.models import LanguageModel, build, config_class
from remanence.training.allocation import keep_freed_memory

SHAPES: dict[str, dict[str, int]] = {
    "small": {"num_layers": 4, "model_width": 256, "num_heads": 4, "head_width": 64, "feed_forward_width": 1024},
    "wikitext-103 layer": {
        "num_layers": 4, "model_width": 410, "num_heads": 10, "head_width": 41, "feed_forward_width": 2100
    },
    "enwik8 base": {
        "num_layers": 12, "model_width": 512, "num_heads": 8, "head_width": 64, "feed_forward_width": 2048
    },
}  # fmt: skip
CPU = [("small", 16, 64, 64), ("small", 16, 128, 128), ("wikitext-103 layer", 4, 150, 150),
       ("wikitext-103 layer", 4, 150, 600)]  # fmt: skip
GPU = [("enwik8 base", 22, 512, 512), ("enwik8 base", 44, 512, 512)]
ARCHITECTURES = ("transformer", "transformer-xl", "lamemo")
VOCABULARY = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="training-step", help="of the result files")
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each architecture, after three untimed")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keep_freed_memory()
    check_agreement()
    rows: list[dict[str, Any]] = []
    for shape, lanes, segment, memory in GPU if device == "cuda" else CPU:
        peak = matrix_peak(device)
        steps = {
            name: stepper(name, shape, lanes, segment, memory, device, arguments.compile) for name in ARCHITECTURES
        }
        times: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(arguments.steps + 3):
            for name, step in steps.items():
                seconds = step()
                if number >= 3:
                    times[name].append(seconds)
        rows += [
            {
                "shape": shape, "lanes": lanes, "segment": segment, "memory": memory, "architecture": name,
                "milliseconds": statistics.median(times[name]) * 1e3,
                "tokens_per_second": lanes * segment / statistics.median(times[name]),
                "ratio_to_transformer_xl": statistics.median(
                    one / other for one, other in zip(times[name], times["transformer-xl"], strict=True)
                ),
                "matrix_peak_gflops": peak,
            }
            for name in steps
        ]  # fmt: skip
    about = {
        "command": f"python benchmarks/training_step.py {shlex.join(sys.argv[1:])}".strip(),
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"{torch.get_num_threads()} threads, {len(os.sched_getaffinity(0))} cores, {platform.machine()}",
        "precision": "bfloat16 autocast, dropout 0.1, Adam",
        "compiled": str(arguments.compile),
        "versions": f"remanence {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }
    results = Path(__file__).parent / "results"
    write_json(results / f"{arguments.name}.json", {"about": about, "rows": rows})
    write_text(results / f"{arguments.name}.md", page(about, rows))
    print(page(about, rows))


def check_agreement() -> None:
    """All three are one model while the memory is empty."""
    sizes = {**SHAPES["small"], "vocab_size": VOCABULARY, "segment_length": 16, "dropout": 0.0}
    tokens = torch.randint(VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(0))
    losses = []
    for name in ARCHITECTURES:
        model = make(name, sizes, 16)
        hidden, _, _ = model(tokens[:, :-1], model.init_memory(2))
        losses.append(model.head.loss(hidden, tokens[:, 1:]))
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-5, atol=1e-5)


def make(architecture: str, sizes: dict[str, Any], memory: int) -> LanguageModel:
    remembering = {} if architecture == "transformer" else {"memory_length": memory}
    model = build(config_class(architecture)(**sizes, **remembering), seed=0)
    if architecture == "lamemo":
        # Drawn in another order: take the values that the others have.
        other = build(config_class("transformer")(**sizes), seed=0)
        model.load_state_dict(other.state_dict(), strict=False)
    return model


def stepper(
    architecture: str, shape: str, lanes: int, segment: int, memory: int, device: str, compiled: bool
) -> Callable[[], float]:
    """A function that makes one training step and says how long it took."""
    sizes = {**SHAPES[shape], "vocab_size": VOCABULARY, "segment_length": segment, "dropout": 0.1}
    model = make(architecture, sizes, memory).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    held = [model.init_memory(lanes)]
    starts = torch.zeros(lanes, dtype=torch.bool, device=device)
    tokens = torch.randint(VOCABULARY, (lanes, segment + 1), device=device)

    def read(remembered: Any) -> tuple[torch.Tensor, Any]:
        with torch.autocast(device, torch.bfloat16):
            hidden, remembered, _ = model(tokens[:, :-1], remembered, starts)
            return model.head.loss(hidden, tokens[:, 1:]).mean(), remembered

    reading = torch.compile(read, dynamic=False) if compiled else read

    def step() -> float:
        wait(device)
        began = time.perf_counter()
        loss, held[0] = reading(held[0])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait(device)
        return time.perf_counter() - began

    return step


def matrix_peak(device: str) -> float:
    """GFLOP/s of a large bfloat16 matrix product."""
    size = 8192 if device == "cuda" else 2048
    matrix = torch.randn(size, size, device=device).to(torch.bfloat16)
    best = float("inf")
    for _ in range(6):
        wait(device)
        began = time.perf_counter()
        matrix @ matrix
        wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e9


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def page(about: dict[str, str], rows: list[dict[str, Any]]) -> str:
    lines = ["# A training step", "", *(f"- {label}: {value}" for label, value in about.items()), ""]
    lines += ["| shape | lanes | T | M | architecture | ms, median | tokens/s | times Transformer-XL | bf16 peak |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row['shape']} | {row['lanes']} | {row['segment']} | {row['memory']} | {row['architecture']} "
        f"| {row['milliseconds']:.1f} | {row['tokens_per_second']:,.0f} | {row['ratio_to_transformer_xl']:.2f} "
        f"| {row['matrix_peak_gflops']:,.0f} GFLOP/s |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
