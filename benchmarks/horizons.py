"""What each horizon engine costs each model: bytes alive at once, and time.

    python benchmarks/horizons.py --name horizons

For every model whose memory can carry gradients, over horizons of 2 to 32 segments: the peak of live bytes, counted
storage by storage, and for one horizon the time of each engine, taken in turns, as a ratio to plain backpropagation
through time. Before anything is measured the engines must give the same gradients, with dropout on. Tables and plots
go to benchmarks/results/.
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
from remanence.analysis.live_bytes import LiveBytes
from remanence.data import Batch
from remanence.files import write_json, write_text
from remanence.models import LanguageModel, build, config_class
from remanence.training.engines import ENGINES
from remanence.training.horizon import accumulate_gradients

SIZES: dict[str, Any] = {"vocab_size": 256, "num_layers": 4, "dropout": 0.1}
COUNTED: dict[str, Any] = {
    "segment_length": 32, "model_width": 64, "num_heads": 4, "head_width": 16, "feed_forward_width": 256
}  # fmt: skip
TIMED: dict[str, Any] = {
    "segment_length": 64, "model_width": 256, "num_heads": 4, "head_width": 64, "feed_forward_width": 1024
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "transformer-xl": {"memory_length": 32, "memory_gradient": True},
    "lamemo": {"memory_length": 32, "memory_gradient": True},
    "compressive": {"memory_length": 16, "compressed_length": 16, "compression_rate": 4, "memory_gradient": True},
    "infinite-former": {"memory_length": 32, "num_basis": 32, "memory_gradient": True},
    "memformer": {"num_slots": 16},
    "rmt": {"memory_tokens": 16},
}
HORIZONS = (2, 4, 8, 16, 32)
LANES, TIMED_HORIZON = 4, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="horizons", help="of the result files")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one untimed")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()
    counted: list[dict[str, Any]] = []
    timed: list[dict[str, Any]] = []
    for architecture in arguments.models:
        model = make(architecture, COUNTED)
        check(model)
        memory = model.init_memory(LANES).nbytes
        for horizon in HORIZONS:
            peaks = {engine: peak(model, horizon, engine) for engine in ENGINES}
            counted.append({"architecture": architecture, "horizon": horizon, "memory_bytes": memory, "peaks": peaks})
            print(architecture, horizon, {engine: f"{value / 2**20:.2f} MiB" for engine, value in peaks.items()})
        timed.append({"architecture": architecture, **times(make(architecture, TIMED), arguments.rounds)})
        print(timed[-1])
    about = {
        "command": f"python benchmarks/horizons.py {shlex.join(sys.argv[1:])}".strip(),
        "machine": f"{torch.get_num_threads()} threads, {len(os.sched_getaffinity(0))} cores, {platform.machine()}",
        "versions": f"remanence {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "bytes": f"float32, {LANES} lanes, " + in_words(COUNTED),
        "time": f"float32, {LANES} lanes, horizon {TIMED_HORIZON}, " + in_words(TIMED),
        "models": "; ".join(f"{name} {settings}" for name, settings in MODELS.items()),
    }
    results = Path(__file__).parent / "results"
    write_json(results / f"{arguments.name}.json", {"about": about, "bytes": counted, "time": timed})
    write_text(results / f"{arguments.name}.md", page(about, counted, timed))
    plot(results / f"{arguments.name}.png", counted)


def make(architecture: str, sizes: dict[str, Any]) -> LanguageModel:
    return build(config_class(architecture)(**SIZES, **sizes, **MODELS[architecture]), seed=0).train()


def text(model: LanguageModel, horizon: int) -> list[Batch]:
    drawn = torch.Generator().manual_seed(horizon)
    starts, batches = torch.zeros(LANES, dtype=torch.bool), []
    for _ in range(horizon):
        window = torch.randint(256, (LANES, model.config.segment_length + 1), generator=drawn)
        batches.append(Batch(window[:, :-1], window[:, model.shift :][:, : model.config.segment_length], starts))
    return batches


def check(model: LanguageModel) -> None:
    """All engines that let gradients cross give the same ones. In float32, so to its rounding."""
    found = {}
    for engine in ("full", "recompute", "replay"):
        run(model, 4, engine)
        found[engine] = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
    for engine in ("recompute", "replay"):
        error = float((found[engine] - found["full"]).norm() / found["full"].norm())
        assert error < 1e-5, f"{engine} is off by {error:.1e}"


def run(model: LanguageModel, horizon: int, engine: str) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    accumulate_gradients(model, text(model, horizon), model.init_memory(LANES), engine=engine)


def peak(model: LanguageModel, horizon: int, engine: str) -> int:
    """Live bytes, gradients and text included, weights not."""
    with LiveBytes() as live:
        run(model, horizon, engine)
    return live.peak


def times(model: LanguageModel, rounds: int) -> dict[str, Any]:
    """Seconds of a horizon, engines in turns; and the ratio of each to plain backpropagation in the same round."""
    seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for number in range(rounds + 1):
        for engine, taken in seconds.items():
            began = time.perf_counter()
            run(model, TIMED_HORIZON, engine)
            if number:
                taken.append(time.perf_counter() - began)
    return {
        "seconds": {engine: statistics.median(taken) for engine, taken in seconds.items()},
        "ratio": {
            engine: statistics.median(one / other for one, other in zip(taken, seconds["full"], strict=True))
            for engine, taken in seconds.items()
        },
    }


def in_words(sizes: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in {**SIZES, **sizes}.items())


def page(about: dict[str, str], counted: list[dict[str, Any]], timed: list[dict[str, Any]]) -> str:
    lines = ["# Horizon engines", "", *(f"- {label}: {value}" for label, value in about.items()), ""]
    lines += ["## Peak of live bytes, in MiB", "", f"| model | segments | {' | '.join(ENGINES)} | one memory |"]
    lines += ["|---" * (len(ENGINES) + 3) + "|"]
    for row in counted:
        peaks = " | ".join(f"{row['peaks'][engine] / 2**20:.2f}" for engine in ENGINES)
        lines.append(f"| {row['architecture']} | {row['horizon']} | {peaks} | {row['memory_bytes'] / 2**20:.3f} |")
    lines += [
        "",
        f"From {HORIZONS[0]} to {HORIZONS[-1]} segments the peak grows by so many memories for each segment:",
        "",
    ]
    lines += [f"| model | {' | '.join(ENGINES)} |", "|---" * (len(ENGINES) + 1) + "|"]
    for architecture in dict.fromkeys(row["architecture"] for row in counted):
        first, last = (
            next(row for row in counted if row["architecture"] == architecture and row["horizon"] == horizon)
            for horizon in (HORIZONS[0], HORIZONS[-1])
        )
        grown = [
            (last["peaks"][engine] - first["peaks"][engine]) / (HORIZONS[-1] - HORIZONS[0]) / first["memory_bytes"]
            for engine in ENGINES
        ]
        lines.append(f"| {architecture} | {' | '.join(f'{value:.2f}' for value in grown)} |")
    lines += ["", f"## Time of a horizon of {TIMED_HORIZON} segments, in ratios to plain backpropagation", ""]
    lines += [f"| model | {' | '.join(ENGINES)} | seconds, full |", "|---" * (len(ENGINES) + 2) + "|"]
    for row in timed:
        ratios = " | ".join(f"{row['ratio'][engine]:.2f}" for engine in ENGINES)
        lines.append(f"| {row['architecture']} | {ratios} | {row['seconds']['full']:.2f} |")
    return "\n".join(lines) + "\n"


def plot(path: Path, counted: list[dict[str, Any]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    architectures = list(dict.fromkeys(row["architecture"] for row in counted))
    figure, panels = plt.subplots(2, 3, figsize=(11, 6), sharex=True, squeeze=False, layout="constrained")
    for panel, architecture in zip(panels.flat, architectures, strict=False):
        rows = [row for row in counted if row["architecture"] == architecture]
        for engine in ENGINES:
            heights = [row["peaks"][engine] / 2**20 for row in rows]
            panel.plot([row["horizon"] for row in rows], heights, marker="o", markersize=3, label=engine)
        panel.set(title=architecture, xscale="log", yscale="log")
        panel.set_xticks(HORIZONS, [str(horizon) for horizon in HORIZONS])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0, 0].legend()
    figure.supxlabel("segments in the horizon")
    figure.supylabel("peak of live bytes, MiB")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
