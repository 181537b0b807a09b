"""The processes that train one model together.

    torchrun --nproc-per-node 4 -m remanence train RECIPE

starts R ranks. Rank r has the lanes r B / R to (r + 1) B / R of all B. Whatever is a sum over lanes (losses, counts,
gradients) is summed over the ranks. Nobody but this module knows how they talk to each other: all else is given a
`Ranks`, and one process is the case R = 1.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from traceback import clear_frames
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import debug

from remanence.errors import Elsewhere, InputError
from remanence.training.interrupts import Interrupted
from remanence.training.meeting import met

TIMEOUT = "REMANENCE_TIMEOUT"
"""The environment variable that says for how many seconds a rank waits for another one before it gives up."""
PATIENCE = 600.0
"""That number, unless it is set: a rank that validates, saves or compiles is longer on its way than one that trains."""

LOST = ("gloo", "Gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""Words by which PyTorch's errors of a connection are known; they are of no kind of their own."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """One process among those that train together."""

    rank: int = 0
    """The number of this process, from 0."""
    size: int = 1
    """R, how many there are."""
    local: int = 0
    """Its number on this machine: the GPU that it takes."""
    launch: str = ""
    """What the launcher calls this job, through all its restarts; empty where it has no name of its own."""
    restarted: bool = False
    """Whether the launcher started this process again after one had died."""

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def share(self, lanes: int) -> slice:
        """The lanes of this rank. Raises InputError unless all ranks get as many."""
        if lanes % self.size:
            fitting = [str(size) for size in range(1, lanes + 1) if lanes % size == 0]
            raise InputError(
                f"training.lanes is {lanes}, which {self.size} processes cannot share evenly; set it to a multiple of "
                f"{self.size}, or start {', '.join(fitting)} processes."
            )
        return self.part(lanes)

    def part(self, lanes: int) -> slice:
        """The lanes of this rank, which may be one fewer than another's, or none."""
        return slice(self.rank * lanes // self.size, (self.rank + 1) * lanes // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def tell(self, value: Value) -> Value:
        """What the first rank gives, on all of them."""
        if self.size == 1:
            return value
        told: list[Any] = [value]
        dist.broadcast_object_list(told)
        return told[0]

    def gather(self, value: Value) -> list[Value]:
        """What every rank gives, in order, on all of them."""
        if self.size == 1:
            return [value]
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, value)
        return told

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.gather(None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, an error on one rank becomes one on all of them, when all have come to the end.

        Nothing inside may wait for another rank. Raises the rank's own InputError, OSError or `Interrupted`; where it
        had none, `Interrupted` when another was interrupted, else the InputError of the first that failed.
        """
        if self.size == 1:
            yield
            return
        own: BaseException | None = None
        try:
            yield
        except (InputError, OSError, Interrupted) as error:
            own = error
        words = None if own is None else [isinstance(own, Interrupted), str(own)]
        found = [(rank, each) for rank, each in enumerate(self.gather(words)) if each is not None]
        if not found:
            return
        if any(interrupted for _, (interrupted, _) in found):
            raise Interrupted from own
        rank, (_, sentence) = found[0]
        if self.rank == rank:
            assert own is not None
            raise own
        raise Elsewhere(sentence)


ALONE = Ranks()
"""One process."""


@contextmanager
def joined() -> Iterator[Ranks]:
    """The group that the launcher describes in the environment (`torchrun`), for as long as the block lasts.

    Raises InputError where the environment means nothing, and where another process has gone or does not answer.
    """
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield ALONE
        return
    numbers = {name: _number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")}
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "")
    ranks = Ranks(
        rank=numbers["RANK"],
        size=numbers["WORLD_SIZE"],
        local=numbers["LOCAL_RANK"],
        # A static rendezvous calls every job so.
        launch="" if launch == "none" else launch,
        restarted=numbers["TORCHELASTIC_RESTART_COUNT"] > 0,
    )
    if ranks.size == 1:
        yield ranks
        return
    cuda = torch.cuda.is_available()
    if cuda and ranks.local < torch.cuda.device_count():
        torch.cuda.set_device(ranks.local)
    seconds = _patience()
    patience = timedelta(seconds=seconds)
    # Starting takes longer than answering: one machine may still be importing while the other is ready.
    start = max(seconds, PATIENCE)
    store, _, _ = next(rendezvous("env://", ranks.rank, ranks.size, timeout=timedelta(seconds=start)))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=met(store, ranks.rank, ranks.size, start),
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=patience,
    )
    try:
        yield ranks
        # Whoever leaves while another still speaks to it takes that one down.
        ranks.barrier()
    except BaseException as error:
        # What was raised holds on to the places it came through, and they to the model.
        _forget_places(error)
        if not (isinstance(error, RuntimeError) and any(each in str(error) for each in LOST)):
            raise
        sentence = (
            f"Another process of this run has ended or did not answer for {seconds:g} s ({TIMEOUT}); what is said of "
            "it tells why, and --resume goes on from the last checkpoint."
        )
        raise (InputError if ranks.first else Elsewhere)(sentence) from None
    finally:
        leave()


def leave() -> None:
    """End the group, and with it the threads that speak for it.

    A thread of gloo gives back its last tensors when the group is gone from memory. Where that is left to the end of
    the interpreter, the tensors' Python halves cannot be given back any more, and the process aborts (PyTorch 2.13).
    DTensor remembers layouts, these their mesh, and that the group; models and what watches over them are cycles.
    """
    getattr(debug, "_clear_sharding_prop_cache", lambda: None)()
    gc.collect()
    dist.destroy_process_group()


def _forget_places(error: BaseException | None) -> None:
    """Empty the frames that an error came through, and those of what led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _number(name: str) -> int:
    value = os.environ.get(name, "0")
    if not value.isdecimal():
        raise InputError(f"The environment variable {name} is {value!r}, but it must be a whole number; use torchrun.")
    return int(value)


def _patience() -> float:
    value = os.environ.get(TIMEOUT, str(PATIENCE))
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(
            f"The environment variable {TIMEOUT} is {value!r}, but it must be a number of seconds above 0."
        )
    return seconds
