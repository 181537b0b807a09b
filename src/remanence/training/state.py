"""All that a run must have again to go on as if it had never stopped, and how it is laid out in a checkpoint.

    model.safetensors       the weights
    optimizer.safetensors   running means and counts of the optimizer
    state.safetensors       states of the generators
    lanes-0-8.safetensors   the memory of lanes 0 to 7; there may be several such files
    checkpoint.json         the rest: step, position of the lanes, what the log has half summed up

The learning rate is a function of the step and needs nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor

from remanence.data import Batch, Lanes
from remanence.errors import InputError
from remanence.memory import Distances, Memory
from remanence.models import LanguageModel
from remanence.training.checkpoint import Checkpoint
from remanence.training.optimizer import optimizer_state, restore_optimizer
from remanence.training.parts import LANES, Parts
from remanence.training.precision import Precision
from remanence.training.ranks import ALONE, Ranks
from remanence.training.weights import load_weights, weights

_ANOTHER = "resume from another checkpoint."


@dataclass
class Progress:
    """The numbers of a run so far; JSON can hold all of them."""

    step: int = 0
    """Updates made."""
    tokens: int = 0
    """Tokens that were scored in training."""
    seconds: float = 0.0
    """Spent on training steps."""
    stalled: float = 0.0
    """Seconds that training was held by saving, on top of `seconds`."""
    loss_sum: float = 0.0
    """Sum of the steps' losses since the last line of the log, in nats per token."""
    loss_steps: int = 0
    validated_at: int = 0
    """The step of the last validation; 0 before the first."""
    best: dict[str, Any] | None = None
    """The validation with the lowest loss, and its step."""
    reach: int = 0
    """The most tokens that a lane had read since its memory was empty: how full memories have been."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean loss in nats per token since the line before) of every line of the log."""

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Progress:
        """From its fields, as JSON has them. Raises InputError where one is not what it must be."""
        known = {field.name: field.default for field in dataclasses.fields(cls)}
        best, losses = told.get("best"), told.get("losses", [])
        sound = (
            told.keys() <= known.keys()
            and all(_is_number(told[name], type(known[name])) for name in told.keys() - {"best", "losses"})
            and (best is None or (isinstance(best, dict) and _is_number(best.get("nats_per_token"), float)))
            and isinstance(losses, list)
            and all(isinstance(each, list) and len(each) == 2 for each in losses)
            and all(_is_number(step, int) and _is_number(loss, float) for step, loss in losses)
        )
        if not sound:
            raise InputError(f"What a checkpoint tells of the progress of its run is damaged; {_ANOTHER}")
        return cls(**{**told, "losses": [(step, loss) for step, loss in losses]})


@dataclass
class State:
    """A run at one moment. What it holds is changed in place by training."""

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    lanes: Lanes
    memory: Memory
    """Of the lanes of this rank."""
    precision: Precision
    device: torch.device
    compiled: bool = False
    """Whether the model is read by a compiled graph, which rounds in another order."""
    ranks: Ranks = ALONE
    progress: Progress = field(default_factory=Progress)

    def next_batch(self) -> Batch:
        """The next segment of every lane of this rank, on the device."""
        batch = self.lanes.next()
        self.progress.reach = max(self.progress.reach, self.lanes.remembered)
        return batch.to(self.device)

    @property
    def distances(self) -> Distances:
        """The largest distances that training has brought about so far: those the weights know."""
        possible = self.model.distances()
        reach, segment_length = self.progress.reach, self.model.config.segment_length
        back = possible.back if possible.back is None else min(possible.back, reach + segment_length - 1)
        ahead = possible.ahead if possible.ahead is None else min(possible.ahead, max(reach, 1))
        return Distances(back=back, ahead=ahead)

    def parts(self) -> Parts:
        """The tensors of a checkpoint that this rank writes."""
        parts = Parts(self.ranks)
        parts.add("model", weights(self.model))
        parts.add("optimizer", optimizer_state(self.optimizer, self.model))
        parts.add("state", _generators(self.device))
        parts.add_memory(self.memory, self._own_lanes)
        return parts

    @property
    def _own_lanes(self) -> range:
        """The lanes of this rank."""
        return range(self.lanes.lanes)[self.lanes.part]

    def description(self) -> dict[str, Any]:
        """The rest of a checkpoint, for JSON."""
        return {
            "lanes": self.lanes.state(),
            "precision": self.precision,
            "machine": self.machine,
            "progress": dataclasses.asdict(self.progress),
        }

    @property
    def machine(self) -> dict[str, Any]:
        """What the rounding of numbers depends on beside the run itself."""
        threads = torch.get_num_threads()
        return {
            "torch": torch.__version__,
            "device": self.device.type,
            "threads": threads,
            "compiled": self.compiled,
            "ranks": self.ranks.size,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become what was saved. Raises InputError when the checkpoint is damaged or of another model."""
        description = _described(checkpoint)
        memory = _read_memory(checkpoint, self._own_lanes, self.device)
        _check_memory(memory, self.memory, checkpoint)
        load_weights(self.model, checkpoint.tensors("model"), str(checkpoint.folder))
        restore_optimizer(self.optimizer, self.model, checkpoint.tensors("optimizer"))
        self.memory = memory
        self.lanes.restore(description["lanes"])
        self.precision = description["precision"]
        self.progress = Progress.from_json(description["progress"])
        try:
            tensors = checkpoint.tensors("state")
            torch.set_rng_state(tensors["generator/cpu"].clone())
            if "generator/cuda" in tensors and self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["generator/cuda"].clone(), self.device)
        except (KeyError, TypeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{checkpoint.folder} holds no state of a generator ({reason}); {_ANOTHER}") from None


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the description of a checkpoint says of resuming. Raises InputError unless all of it is of its type."""
    told = checkpoint.about.get("resumption")
    told = told if isinstance(told, dict) else {}
    sound = (
        all(isinstance(told.get(name), dict) for name in ("lanes", "machine", "progress"))
        and told.get("precision") in get_args(Precision)
        and told["progress"].get("step") == checkpoint.step
        and isinstance(memory := checkpoint.about.get("memory"), dict)
        and all(isinstance(each, dict) for each in memory.values())
    )
    if not sound:
        raise InputError(f"The description of {checkpoint.folder} lacks what a run is resumed from; {_ANOTHER}")
    return told


def _is_number(value: Any, kind: type) -> bool:
    """Whether a value of JSON is a number that is counted (int) or measured (float)."""
    return (type(value) is int and 0 <= value < 1 << 62) or (kind is float and type(value) is float)


def _check_memory(memory: Memory, like: Memory, checkpoint: Checkpoint) -> None:
    """Raise InputError unless a memory is of the kind and the shapes of the one that training begins with."""
    (given, _), (wanted, _) = memory.state(), like.state()
    for name in [*wanted, *given]:
        shapes = [None if name not in each else tuple(each[name].shape) for each in (given, wanted)]
        if memory.kind != like.kind or shapes[0] != shapes[1]:
            raise InputError(
                f"The memory in {checkpoint.folder} is not one of this model ({memory.kind}, {name} {shapes[0]}, and "
                f"not {like.kind}, {shapes[1]}); {_ANOTHER}"
            )


def _read_memory(checkpoint: Checkpoint, lanes: range, device: torch.device) -> Memory:
    """The memory of some lanes, from the files of any number of ranks. Raises InputError where lanes are missing."""
    memories: list[Memory] = []
    reached = lanes.start
    for part in sorted(checkpoint.parts(LANES), key=_first_and_end):
        first, end = _first_and_end(part)
        if not (first <= reached < min(end, lanes.stop)):
            continue
        tensors = {name: tensor.to(device, copy=True) for name, tensor in checkpoint.tensors(part).items()}
        memory = Memory.from_state(tensors, checkpoint.about["memory"].get(part, {}))
        if memory.lanes != end - first:
            raise InputError(f"{part} in {checkpoint.folder} holds {memory.lanes} lanes and not those; {_ANOTHER}")
        until = min(end, lanes.stop)
        memories.append(memory if (first, end) == (reached, until) else memory[reached - first : until - first])
        reached = until
    if reached < lanes.stop:
        raise InputError(
            f"The checkpoint {checkpoint.folder} has no memory of lane {reached}, as one that an earlier version made; "
            "its weights can be evaluated, but to train on begin a new run."
        )
    return memories[0] if len(memories) == 1 else Memory.concatenate(memories)


def _first_and_end(part: str) -> tuple[int, int]:
    first, _, end = part.removeprefix(LANES).partition("-")
    if not (first.isdecimal() and end.isdecimal() and len(part) < 40):
        raise InputError(f"A checkpoint has {part}.safetensors, whose name does not say which lanes it is of.")
    return int(first), int(end)


def _generators(device: torch.device) -> dict[str, Tensor]:
    """The global generators that training draws from; lanes draw from the seed and the epoch alone."""
    states = {"generator/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["generator/cuda"] = torch.cuda.get_rng_state(device)
    return states
