"""What a step costs when weights are in shares: numbers gathered, numbers reduced, numbers whole at a time.

    python benchmarks/sharding.py

For every model, horizon engine and horizon: how often a rank receives each weight in a step (gathered), how often it
sends each gradient (reduced), and the most weights and gradients that it has whole at a time, all as multiples of the
model's parameters. Once with all layers whole for a step, once as `training/sharding.py` has it: the layers in use.
The counts do not depend on the number of ranks, so one process does. The table goes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from remanence import __version__
from remanence.data import Batch
from remanence.files import write_text
from remanence.models import build, config_class
from remanence.training import sharding
from remanence.training.engines import ENGINES
from remanence.training.horizon import accumulate_gradients

SIZES: dict[str, Any] = {
    "vocab_size": 256, "num_layers": 12, "dropout": 0.0, "segment_length": 8, "model_width": 64, "num_heads": 4,
    "head_width": 16, "feed_forward_width": 256,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "transformer-xl": {"memory_length": 8, "memory_gradient": True},
    "lamemo": {"memory_length": 8, "memory_gradient": True},
    "compressive": {"memory_length": 4, "compressed_length": 4, "compression_rate": 4, "memory_gradient": True},
    "infinite-former": {"memory_length": 8, "num_basis": 8, "memory_gradient": True},
    "memformer": {"num_slots": 8},
    "rmt": {"memory_tokens": 8},
}
HORIZONS = (1, 4)
LANES = 2


class Counter:
    """Numbers that pass between ranks, and those that are whole, counted at every gather, collection and release."""

    def __init__(self, groups: tuple[sharding.Group, ...]) -> None:
        self.gathered = self.reduced = self.peak = 0
        self.groups = groups
        for group in groups:
            self._count(group, "gather", "gathered")
            self._count(group, "collect", "reduced")
            self._count(group, "release", "")

    def _count(self, group: sharding.Group, name: str, total: str) -> None:
        method, size = getattr(group, name), sum(share.numel() for share in group.shares)

        def counting() -> None:
            self._look()
            if total and (name != "gather" or not group.gathered):
                setattr(self, total, getattr(self, total) + size)
            method()
            self._look()

        setattr(group, name, counting)

    def _look(self) -> None:
        whole = [group.part.get_parameter(name) for group in self.groups if group.gathered for name in group.names]
        self.peak = max(self.peak, sum(each.numel() * (1 if each.grad is None else 2) for each in whole))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="sharding", help="of the result file")
    arguments = parser.parse_args()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    lines = []
    for architecture, settings in MODELS.items():
        for engine in ENGINES:
            for horizon in HORIZONS:
                row = [f"{architecture} | {engine} | {horizon}"]
                for layers in (SIZES["num_layers"] * 2, sharding.LAYERS_WHOLE):
                    row += [f"{each:.2f}" for each in counted(architecture, settings, engine, horizon, layers, mesh)]
                lines.append(f"| {' | '.join(row)} |")
                print(lines[-1], flush=True)
    distributed.destroy_process_group()
    head = "| model | engine | segments | gathered | reduced | whole | gathered, by layer | reduced | whole |"
    sizes = ", ".join(f"{name} {value}" for name, value in SIZES.items())
    text = [
        "# Weights in shares",
        "",
        "- command: python benchmarks/sharding.py",
        f"- versions: remanence {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"- sizes: {sizes}; {sharding.LAYERS_WHOLE} layers whole at a time in the last three columns",
        f"- models: {'; '.join(f'{name} {settings}' for name, settings in MODELS.items())}",
        "",
        "All numbers are multiples of the parameters of the model: what a rank receives as weights in a step, what it "
        "sends as gradients, and the most weights and gradients that are whole at a time.",
        "",
        head,
        "|---" * 9 + "|",
        *lines,
        "",
    ]
    write_text(Path(__file__).parent / "results" / f"{arguments.name}.md", "\n".join(text))


def counted(
    architecture: str, settings: dict[str, Any], engine: str, horizon: int, layers: int, mesh: DeviceMesh
) -> tuple[float, float, float]:
    """Numbers gathered, reduced and whole in one step, as multiples of the model's parameters."""
    model = build(config_class(architecture)(**SIZES, **settings), seed=1).train()
    drawn = torch.randint(SIZES["vocab_size"], (LANES, SIZES["segment_length"]))
    batches = [Batch(drawn, drawn, torch.zeros(LANES, dtype=torch.bool)) for _ in range(horizon)]
    memory = model.init_memory(LANES)
    total = sum(each.numel() for each in model.parameters())
    shards = sharding.Shards(model, mesh)
    counter, usual = Counter(shards.groups), sharding.LAYERS_WHOLE
    sharding.LAYERS_WHOLE = layers
    try:
        with shards.summing():
            accumulate_gradients(model, batches, memory, engine=engine)
    finally:
        sharding.LAYERS_WHOLE = usual
    return counter.gathered / total, counter.reduced / total, counter.peak / total


if __name__ == "__main__":
    main()
