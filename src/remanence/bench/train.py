"""What a training step costs: forward, loss, backward, clipping, optimizer, the memory handed on.

Every candidate makes whole steps as a run does, with its memory full. The library's models are stepped by the same
functions as `remanence train`, peers by plain PyTorch with the same optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from remanence.bench import own
from remanence.bench.checks import check_equal_when_empty, check_learning, check_reading
from remanence.bench.limit import COMPILED, Limit
from remanence.bench.peak import MatrixPeak
from remanence.bench.peers import RATE, Peer, make_peers, state_bytes
from remanence.bench.result import Result, Table, figure, filled_columns
from remanence.bench.rounds import interleave, line, ratio, summary
from remanence.bench.settings import Settings
from remanence.bench.usage import most_resident_bytes, peak_bytes
from remanence.config import TrainingSettings
from remanence.data import Batch
from remanence.nn.padded import pad_linear_maps
from remanence.training.allocation import keep_freed_memory
from remanence.training.horizon import accumulate_gradients, choose_engine, read_segment
from remanence.training.optimizer import build_optimizer
from remanence.training.precision import autocast

CLIP = 0.25
STRAIGHT = 0.9
"""The least R² at which a line is told as how a cost grows."""
WARMING = 4
"""Steps of each candidate before anything is timed, after which it must have learned something."""


class Training:
    """A candidate: a model, its optimizer and the memory it has come to."""

    def __init__(self, name: str, model: nn.Module, settings: Settings, memory_length: int | None) -> None:
        self.name, self.model, self.settings = name, model, settings
        self.memory_length = memory_length
        """None where the bench's memory length says nothing to it."""
        self.note = ""
        self.optimizer = build_optimizer(model, TrainingSettings(learning_rate=1e-3))
        self.state: Any = None
        shape = (settings.lanes, settings.segment_length + 1)
        generator = torch.Generator().manual_seed(settings.seed)
        drawn = torch.randint(settings.shape.vocabulary, shape, generator=generator).to(settings.device)
        self.tokens, self.targets = drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()

    @property
    def label(self) -> str:
        return self.name if self.memory_length is None else f"{self.name} M {self.memory_length}"

    def backward(self) -> Tensor:
        """Forward, loss and backward of one segment; the mean loss."""
        raise NotImplementedError

    def empty(self) -> Any:
        """The state of lanes that have read nothing."""
        raise NotImplementedError

    def losses(self, state: Any) -> tuple[Tensor, Any]:
        """Of every token in evaluation mode without gradients, and the state after the segment."""
        raise NotImplementedError

    def flops(self) -> tuple[float, str]:
        """Of one step, and whether a formula or the profiler says so."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return counter.get_total_flops(), "counted"

    def state_bytes(self) -> int:
        """What a lane's state takes."""
        raise NotImplementedError

    def step(self) -> Tensor:
        """One whole step; the mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward()
        gradients = [each.grad for each in self.model.parameters() if each.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        nn.utils.clip_grads_with_norm_(self.model.parameters(), CLIP, norm)
        self.optimizer.step()
        return loss

    def fill(self, segments: int) -> None:
        """Read until the memory is full, in training mode but without gradients."""
        with torch.no_grad():
            for _ in range(segments):
                _, self.state = self.losses(self.state)
        self.model.train()

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


class OwnTraining(Training):
    """One of the library's models."""

    def __init__(
        self,
        architecture: str,
        settings: Settings,
        memory_length: int,
        *,
        compiled: bool = False,
        padded: bool = False,
    ) -> None:
        remembers = own.remembers(architecture)
        model = own.make(architecture, settings, memory_length)
        if padded:
            pad_linear_maps(model)
        name = architecture + ", padded" * padded + COMPILED * compiled
        super().__init__(name, model, settings, memory_length if remembers else None)
        self.model: Any = model
        self.asked = memory_length
        self.engine = choose_engine(model, None)
        self.compiled = compiled
        self.read = torch.compile(read_segment, dynamic=False) if compiled else read_segment
        starts = torch.zeros(settings.lanes, dtype=torch.bool, device=settings.device)
        targets = self.targets if model.shift else self.tokens
        self.batch = Batch(self.tokens, targets, starts)
        self.around: Any = partial(autocast, settings.dtype, torch.device(settings.device))
        self.state = self.empty()

    def empty(self) -> Any:
        return self.model.init_memory(self.settings.lanes)

    def backward(self) -> Tensor:
        horizon = accumulate_gradients(
            self.model, [self.batch], self.state, engine=self.engine, read=self.read, around=self.around
        )
        self.state = horizon.memory
        return horizon.loss

    def losses(self, state: Any) -> tuple[Tensor, Any]:
        self.model.eval()
        with torch.no_grad(), self.around():
            hidden, state, _ = self.model(self.tokens, state, self.batch.starts)
            return self.model.head.loss(hidden, self.batch.targets), state

    def flops(self) -> tuple[float, str]:
        counted = self.model.flops(self.settings.lanes)
        return super().flops() if counted is None else (counted.total_training, "formula")

    def state_bytes(self) -> int:
        return own.state_bytes(self.model)


class PeerTraining(Training):
    """A model of another package."""

    def __init__(self, peer: Peer, settings: Settings, memory_length: int) -> None:
        super().__init__(peer.name, peer.model.train(), settings, memory_length if peer.remembers else None)
        self.peer = peer
        self.note = peer.forced
        self.state = self.empty()

    def empty(self) -> Any:
        return self.peer.begin(self.settings.lanes)

    def backward(self) -> Tensor:
        with autocast(self.settings.dtype, torch.device(self.settings.device)):
            loss, self.state = self.peer.loss(self.tokens, self.targets, self.state)
        loss.backward()
        return loss.detach()

    def losses(self, state: Any) -> tuple[Tensor, Any]:
        self.model.eval()
        with torch.no_grad(), autocast(self.settings.dtype, torch.device(self.settings.device)):
            logits, state = self.peer.read(self.tokens, state)
        losses = nn.functional.cross_entropy(logits.float().transpose(1, 2), self.targets, reduction="none")
        return losses, state

    def state_bytes(self) -> int:
        return state_bytes(self.state) // self.settings.lanes


def bench_train(settings: Settings, peak: MatrixPeak, told: Callable[[int, int], None]) -> Result:
    """Measure training steps. Raises Disagreement where candidates are not what they should be."""
    # As the Trainer does.
    keep_freed_memory()
    result = Result("train")
    device = torch.device(settings.device)
    peak.measure()
    check_equal_when_empty(settings, result)
    candidates = _candidates(settings, result)
    largest = max(settings.memory_length)
    segments = (1 + RATE) * -(-largest // settings.segment_length) + 2
    flops: dict[str, tuple[float, str]] = {}
    memory: dict[str, int | None] = {}
    for each in candidates:
        check_learning(each, WARMING, result)
        each.fill(segments)
        check_reading(each, result)
        flops[each.label] = each.flops()
        each.drop_gradients()
        hidden = isinstance(each, OwnTraining) and each.compiled and device.type == "cpu"
        memory[each.label] = None if hidden else peak_bytes(each.step, device)
    times = interleave(
        {each.label: each.step for each in candidates}, settings.rounds, settings.warmup, device, peak, told
    )
    for each in candidates:
        counted, source = flops[each.label]
        found = summary(times[each.label])
        reference = _reference(each, candidates)
        result.rows.append(
            {
                "model": each.name,
                "own": isinstance(each, OwnTraining),
                "memory_length": each.memory_length,
                "lanes": settings.lanes,
                "segment_length": settings.segment_length,
                "parameters": sum(parameter.numel() for parameter in each.model.parameters()),
                "state_bytes_per_lane": each.state_bytes(),
                "flops": counted,
                "flops_from": source,
                "seconds": found,
                "tokens_per_second": settings.lanes * settings.segment_length / found["median"],
                "flops_per_second": counted / found["median"],
                "share_of_peak": counted / found["median"] / peak.flops,
                "reference": reference.label if reference else None,
                "times_reference": ratio(times[each.label], times[reference.label]) if reference else None,
                "peak_bytes": memory[each.label],
                "forced": each.note,
            }
        )
    result.fits = _fits(result.rows)
    result.peak = {**peak.to_json(), "most_resident_bytes": most_resident_bytes()}
    result.tables = _tables(result)
    _notes(result, device)
    return result


def _candidates(settings: Settings, result: Result) -> list[Training]:
    found: list[Training] = []
    for number, length in enumerate(settings.memory_length):
        for architecture in settings.models:
            if number and not own.remembers(architecture):
                continue
            found.append(OwnTraining(architecture, settings, length))
            if settings.compile:
                found.append(OwnTraining(architecture, settings, length, compiled=True))
            if settings.padded:
                found.append(OwnTraining(architecture, settings, length, padded=True))
        if settings.limit and not number:
            found += _limits(settings, length)
        peers = make_peers(settings, length, result.note) if settings.peers else []
        found += [PeerTraining(peer, settings, length) for peer in peers if not number or peer.remembers]
    return found


def _limits(settings: Settings, memory_length: int) -> list[Training]:
    """The Transformer without memory, eager and, where that is asked for, compiled."""
    found: list[Training] = []
    for compiled in (False, True)[: 1 + settings.compile]:
        limit = Limit(settings, compiled=compiled)
        limit.model.to(settings.device)
        found.append(PeerTraining(limit, settings, memory_length))
    # Inside of compiled code the profiler counts nothing.
    found[-1].flops = found[0].flops  # type: ignore[method-assign]
    return found


def _reference(one: Training, candidates: list[Training]) -> Training | None:
    """A Transformer-XL with as long a memory; the first one for models without that length. None where none is."""
    known = [each for each in candidates if each.name == "transformer-xl"]
    alike = [each for each in known if one.memory_length in (None, each.memory_length)]
    return alike[0] if alike else None


def _fits(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How time and memory grow with the length of the memory, where there are at least three lengths."""
    fits = []
    for name in dict.fromkeys(row["model"] for row in rows):
        measured = [row for row in rows if row["model"] == name and row["memory_length"] is not None]
        if len(measured) < 3:
            continue
        fit = {"model": name, "lengths": [row["memory_length"] for row in measured]}
        fit["seconds"] = line([(row["memory_length"], row["seconds"]["median"]) for row in measured])
        if all(row["peak_bytes"] is not None for row in measured):
            fit["peak_bytes"] = line([(row["memory_length"], row["peak_bytes"]) for row in measured])
        fits.append(fit)
    return fits


def _tables(result: Result) -> list[Table]:
    rows = [
        [
            row["model"],
            "" if row["memory_length"] is None else f"{row['memory_length']:,}",
            f"{1e3 * row['seconds']['median']:,.1f}",
            f"{1e3 * row['seconds']['lower_quartile']:,.1f} to {1e3 * row['seconds']['upper_quartile']:,.1f}",
            f"{row['tokens_per_second']:,.0f}",
            "" if row["times_reference"] is None else f"{row['times_reference']:.2f}",
            figure(row["flops"] / 1e9) + ("" if row["flops_from"] == "formula" else "*"),
            f"{figure(100 * row['share_of_peak'], 2)} %",
            "" if row["peak_bytes"] is None else figure(row["peak_bytes"] / 1e6),
            figure(row["parameters"] / 1e6),
            figure(row["state_bytes_per_lane"] / 1e3),
        ]
        for row in result.rows
    ]
    headers = ["model", "M", "ms a step", "quartiles", "tokens/s", "x XL", "GFLOP", "of the peak", "MB at most"]
    known = next((row for row in result.rows if row["reference"] is not None), None)
    caption = "* counted by the profiler, by formula otherwise. MB at most: what the step made itself, at its highest. "
    caption += "kB a lane: its memory."
    if known is not None:
        caption = (
            "x XL: times the transformer-xl with as long a memory (with the first length for models without one), the "
            f"median of the rounds. {caption}"
        )
    step = Table("A training step", [*headers, "M weights", "kB a lane"], rows, caption)
    tables = [filled_columns(step)]
    if result.fits:
        fitted = []
        for fit in result.fits:
            time, memory = fit["seconds"], fit.get("peak_bytes")
            told = [fit["model"], _growth(time, 1e3)]
            told += [f"{time['explained']:.4f}", f"{100 * time['largest_deviation']:.1f} %"]
            if memory:
                told += [_growth(memory, 1e-6)]
                told += [f"{memory['explained']:.4f}", f"{100 * memory['largest_deviation']:.1f} %"]
            fitted.append(told + [""] * (7 - len(told)))
        tables.append(
            Table(
                "Growth with the memory length M, by least squares",
                ["model", "ms a step", "R²", "largest deviation", "MB at most", "R²", "largest deviation"],
                fitted,
            )
        )
    return tables


def _growth(line: dict[str, float], scale: float) -> str:
    """Offset and slope of a line, where it explains what was measured."""
    if line["explained"] < STRAIGHT:
        return "no straight line"
    slope = 1000 * scale * line["slope"]
    sign = "\N{MINUS SIGN}" if slope < 0 else "+"
    return f"{figure(scale * line['offset'])} {sign} {figure(abs(slope))} M / 1000"


def _notes(result: Result, device: torch.device) -> None:
    for row in result.rows:
        if row["forced"]:
            result.note(f"{row['model']}: {row['forced']}.")
    if device.type == "cpu":
        result.note(
            f"The process held {result.peak['most_resident_bytes'] / 1e9:.2f} GB of memory at most, all candidates "
            "together; MB at most counts live tensors of one step, in a step of its own that is not timed."
        )
