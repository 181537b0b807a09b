"""What several ranks do in the tests of sharding; in a module of its own, so that new processes find it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tests.models.variants import LANES, VARIANTS, enliven, text
from tests.training.test_engines import segments
from torch import Tensor, distributed, multiprocessing

from remanence.config import load_recipe
from remanence.data import Batch, Corpus
from remanence.models import LanguageModel, build
from remanence.training import Trainer
from remanence.training.engines import ENGINES
from remanence.training.horizon import Reading, lanes_of, read_segment
from remanence.training.ranks import Ranks, leave
from remanence.training.sharding import Shards, mesh_of, total_norm
from remanence.training.shares import own

SIX = ("transformer-xl", "lamemo", "compressive", "infinite-former", "memformer", "rmt")
SEGMENTS, STEPS = 3, 2


class Job(NamedTuple):
    """What is trained, and how."""

    variant: str
    engine: str
    parts: int = 1

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.engine}-{self.parts}"


JOBS = [Job(variant, engine) for variant in SIX for engine in ("full", "replay")]
JOBS += [Job("transformer-xl-adaptive", "truncated", 2), Job("lamemo", "recompute", 2), Job("compressive", "recompute")]


def small(variant: str, **changes: Any) -> LanguageModel:
    config = dataclasses.replace(VARIANTS[variant].config, memory_gradient=True, **changes)
    return enliven(build(config, seed=3), seed=3).double().train()


def backward(model: LanguageModel, batches: list[Batch], job: Job, rank: int, size: int) -> None:
    """The share of one rank in the gradient of all lanes, its lanes read in so many parts."""
    counts = [batch.scored for batch in batches]
    lanes = LANES // size // job.parts
    for part in range(job.parts):
        first = rank * LANES // size + part * lanes
        cell = Reading(
            model,
            [lanes_of(batch, slice(first, first + lanes)) for batch in batches],
            counts=counts,
            shares=len(batches) * LANES,
            seed=5,
            read_segment=read_segment,
            around=nullcontext,
            last=lambda objective: objective,
        )
        ENGINES[job.engine](cell, model.init_memory(lanes))


def train(job: Job, rank: int = 0, size: int = 1) -> dict[str, Tensor]:
    """The weights after two steps, and the norm of the last gradient."""
    model = small(job.variant)
    batches = segments(model, SEGMENTS)
    shards = Shards(model, mesh_of(torch.device("cpu"), size)) if size > 1 else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3, fused=True)
    norm = torch.zeros(())
    for _ in range(STEPS):
        optimizer.zero_grad()
        with shards.summing() if shards else nullcontext():
            backward(model, batches, job, rank, size)
        norm = total_norm([each.grad for each in model.parameters() if each.grad is not None])
        optimizer.step()
    with shards.whole() if shards else nullcontext():
        found = {name: each.detach().clone() for name, each in model.named_parameters()}
    return found | {"norm": norm}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest relative difference of a tensor."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in other)


# What the ranks do


def _enter(rank: int, size: int, folder: str, task: Callable[[int, int], dict[str, Tensor]]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        save_file(task(rank, size), f"{folder}/{rank}.safetensors")
    finally:
        leave()
    # A thread that still spoke for the group would take the process down at its end.
    assert "pt_gloo_runloop" not in threads()


def threads() -> list[str]:
    """The names of this process's threads, those that Python knows nothing of among them (on Linux)."""
    found: list[str] = []
    for each in Path("/proc/self/task").glob("*/comm"):
        # One that ends meanwhile has no name.
        with suppress(OSError):
            found.append(each.read_text().strip())
    return found


def on_ranks(size: int, folder: Path, task: Callable[[int, int], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What a task gave on each rank."""
    multiprocessing.spawn(_enter, args=(size, str(folder), task), nprocs=size)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(size)]


def everything(rank: int, size: int) -> dict[str, Tensor]:
    """All tasks one after the other, for processes take seconds to start."""
    weights = {f"{job.name}/{name}": each for job in JOBS for name, each in train(job, rank, size).items()}
    return weights | facts(rank, size) | idle(rank, size)


def some_jobs(rank: int, size: int) -> dict[str, Tensor]:
    jobs = [Job("lamemo", "full"), Job("memformer", "replay")]
    return {f"{job.name}/{name}": each for job in jobs for name, each in train(job, rank, size).items()}


def facts(rank: int, size: int) -> dict[str, Tensor]:
    """What holds while and after a step is made."""
    model = small("transformer-xl-adaptive", num_layers=6)
    numbers = sum(each.numel() for each in model.parameters())
    shards = Shards(model, mesh_of(torch.device("cpu"), size))
    whole: list[int] = []
    for layer in model.layers:
        layer.finish = _counted(layer.finish, shards, whole)
    # The targets of rank 0 lie in the head of the softmax, those of rank 1 in its tails.
    (tokens,) = text(model, 5, lanes=2)
    targets = tokens % 7 if rank == 0 else 12 + tokens % 7
    batch = Batch(tokens, targets, torch.ones(2, dtype=torch.bool))
    with shards.summing():
        nats, _, _ = read_segment(model, batch, model.init_memory(2))
        nats.backward()
    kept = sum(own(each).numel() for each in model.parameters())
    return {
        "whole": torch.tensor(max(whole)),
        "share": torch.tensor(kept / numbers),
        "gradients": torch.tensor([each.grad is not None for each in model.parameters()]),
    }


def _counted(method: Callable[..., Any], shards: Shards, found: list[int]) -> Callable[..., Any]:
    def counting(*given: Any) -> Any:
        result = method(*given)
        found.append(sum(group.gathered for group in shards.layers))
        return result

    return counting


def idle(rank: int, size: int) -> dict[str, Tensor]:
    """An idle parameter has no gradient, and a rank that fails inside a step gives its weights back."""
    model = small("lamemo-one-layer")
    shards = Shards(model, mesh_of(torch.device("cpu"), size))
    with shards.summing():
        backward(model, segments(model, 1), Job("lamemo-one-layer", "truncated"), rank, size)
    without = {name for name, each in model.named_parameters() if each.grad is None}
    failed = False
    try:
        with shards.summing():
            raise InterruptedError
    except InterruptedError:
        failed = not any(group.gathered for group in shards.groups)
    return {"idle": torch.tensor(without == set(VARIANTS["lamemo-one-layer"].idle)), "failed": torch.tensor(failed)}


def run(recipe: str, folder: str, rank: int, size: int) -> dict[str, Tensor]:
    """A run of several ranks by the recipe in a file; what it leaves is in its folder."""
    given, ranks = load_recipe(recipe), Ranks(rank, size, rank)
    corpus, quiet = Corpus.open(given.data.corpus), Console(quiet=True)
    with ranks.together():
        # The first one makes the folder when all have seen that it is not there.
        trainer = Trainer(given, corpus, folder, console=quiet, ranks=ranks, validate=sum_of_squares)
    trainer.run()
    return {"step": torch.tensor(trainer.state.progress.step)}


def sum_of_squares(model: LanguageModel) -> dict[str, float]:
    """Falls or rises with the weights, which are whole when it is called."""
    return {"nats_per_token": sum(float(each.detach().square().sum()) for each in model.parameters())}
