"""Decoding without the cost of launching it: every step of a segment is recorded once and replayed for ever after.

A decode cycle is the T steps of one token each that open, extend and close a segment. Shapes are the same in every
cycle, so step p of one is step p of all: it reads the memory that step p - 1 left in the same place, and one buffer of
tokens, and writes one buffer of logits and the memory after it. On a GPU that is a CUDA graph for each place within
the segment, all in one pool of memory; a replay launches hundreds of kernels at the cost of one call.

    cycle = Cycle(step, recorder)
    logits, memory = cycle(tokens, memory)     # like step(tokens, memory), for tokens of shape (B, 1)

What it gives back lies in its own buffers and changes with the next call; `kept` copies what must outlive that. Any
memory may be given at any time: one that the cycle did not make is copied to where the step reads.

Shapes
    B   lanes
    V   vocabulary
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from remanence.memory import Memory
from remanence.recording import repeated
from remanence.rows import rehearsing

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""Logits (B, V) and the memory after tokens (B, 1): a function of nothing else, which waits for no device."""

SHARE = 0.25
"""Of the free memory of a device, what the steps of a cycle may keep beside the buffers that they share."""


class Recording(NamedTuple):
    """One step, ready to be repeated."""

    results: Any
    """The memory that every replay writes, always in the same place."""
    replay: Callable[[], Any]


class Recorder(Protocol):
    """How a step is made repeatable."""

    def record(self, compute: Callable[[], Any]) -> Recording:
        """Make `compute`, which reads fixed buffers and gives a new memory, repeatable. It need not have run yet."""
        ...

    def room(self) -> float:
        """Bytes that there are for what the steps keep."""
        ...


class GraphRecorder:
    """CUDA graphs, one for each step, in one pool.

    A step runs once by itself before it is captured, on the stream of the captures: kernels are compiled and loaded,
    and libraries take their workspaces, where that is allowed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)

    def record(self, compute: Callable[[], Any]) -> Recording:
        kind = self.device.type
        casting = torch.autocast(
            kind,
            dtype=torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            # Casts that outlive the capture by autocast's cache would be freed before the replay reads them.
            cache_enabled=False,
        )
        graph, waiting = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        self.stream.wait_stream(waiting)
        with torch.cuda.stream(self.stream), casting:
            torch.clear_autocast_cache()
            with rehearsing():
                compute()
            torch.cuda.synchronize(self.device)
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                results = compute()
            finally:
                graph.capture_end()
        waiting.wait_stream(self.stream)
        return Recording(results, graph.replay)

    def room(self) -> float:
        free, _ = torch.cuda.mem_get_info(self.device)
        return SHARE * free


def recorder_of(device: torch.device) -> Recorder | None:
    """CUDA graphs on a GPU that has them, elsewhere nothing."""
    return GraphRecorder(device) if device.type == "cuda" else None


class Cycle:
    """The recorded steps of a segment for one batch; recorded when they are first reached.

    step              what one token does
    segment_length    T, where segments close
    recorder          how a step is made repeatable
    waits             of a memory, whether the step from there waits for the device: such a step is never recorded
    """

    def __init__(
        self,
        step: Step,
        segment_length: int,
        recorder: Recorder,
        waits: Callable[[Any], bool] = lambda memory: False,
    ) -> None:
        self._step, self._length, self._recorder, self._waits = step, segment_length, recorder, waits
        self._clear()

    def __call__(self, tokens: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Logits (B, V) and the memory after tokens (B, 1), in buffers that the next call may change.

        Until then the same call gives the same again. Raises RuntimeError where a step cannot be recorded; the memory
        that was given is whole then.
        """
        with torch.no_grad():
            if self._waits(memory):
                return self._step(tokens.to(_device(memory)), self.kept(memory))
            with repeated():
                place = self._enter(tokens, memory)
                if place not in self._recordings:
                    self._recordings[place] = self._recorder.record(partial(self._compute, place))
                    self._check_room(place)
                recording = self._recordings[place]
                recording.replay()
        assert self._logits is not None
        return self._logits, recording.results

    @property
    def recorded(self) -> list[int]:
        """Places within the segment whose step is recorded."""
        return sorted(self._recordings)

    def kept(self, memory: Any) -> Any:
        """The memory itself, or a copy where it lies in buffers of the cycle."""
        return copied(memory) if self._owns(memory) else memory

    def _clear(self) -> None:
        self._inputs: dict[int, Any] = {}
        self._recordings: dict[int, Recording] = {}
        self._tokens: Tensor | None = None
        self._logits: Tensor | None = None

    def _owns(self, memory: Any) -> bool:
        return any(recording.results is memory for recording in self._recordings.values())

    def _enter(self, tokens: Tensor, memory: Any) -> int:
        """Put memory and tokens where the step reads them, and say which place it has in the segment.

        What was recorded for memories of another kind or batch is dropped.
        """
        place = memory.opened
        known = self._inputs.get(place)
        other_batch = self._tokens is not None and self._tokens.shape != tokens.shape
        if other_batch or (known is not None and _kind(known) != _kind(memory)):
            memory, known = self.kept(memory), None
            self._clear()
        if known is None:
            # What a closed segment left is read until the next one has closed and left its own: two places, not one.
            self._inputs[place] = memory if place and self._owns(memory) else copied(memory)
        elif known is not memory:
            _move(memory, known)
        if self._tokens is None:
            self._tokens = torch.empty_like(tokens, device=_device(memory))
        self._tokens.copy_(tokens)
        return place

    def _compute(self, place: int) -> Any:
        assert self._tokens is not None
        logits, memory = self._step(self._tokens, self._inputs[place])
        if self._logits is None:
            self._logits = torch.empty_like(logits)
        self._logits.copy_(logits)
        # What a segment leaves may be what its first step wrote, which the next segment writes over.
        return memory if memory.opened else copied(memory)

    def _check_room(self, place: int) -> None:
        """Raise RuntimeError where a whole segment of steps that keep as much as this one would fill the device."""
        results = self._recordings[place].results
        if place - 1 not in self._recordings or not results.opened:
            return
        before = {tensor.untyped_storage().data_ptr() for tensor in _tensors(self._inputs[place])}
        storages = {each.data_ptr(): each for each in (tensor.untyped_storage() for tensor in _tensors(results))}
        fresh = sum(storage.nbytes() for address, storage in storages.items() if address not in before)
        if fresh * self._length > self._recorder.room():
            raise RuntimeError(f"the steps of a segment would keep {fresh * self._length:,} bytes")


def copied(memory: Any) -> Any:
    """The same values in tensors of their own, without a trace of where they came from."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(memory):
        value = getattr(memory, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = value.clone(memory_format=torch.contiguous_format)
        elif isinstance(value, Memory):
            changes[field.name] = copied(value)
        elif isinstance(value, tuple):
            changes[field.name] = tuple(item.clone(memory_format=torch.contiguous_format) for item in value)
    return dataclasses.replace(memory, **changes)


def _tensors(memory: Any) -> Iterator[Tensor]:
    """All tensors, what is derived from the weights included, in the order of the fields."""
    for field in dataclasses.fields(memory):
        value = getattr(memory, field.name)
        if isinstance(value, Memory):
            yield from _tensors(value)
        elif isinstance(value, Tensor | tuple):
            yield from value if isinstance(value, tuple) else (value,)


def _kind(memory: Any) -> tuple[Any, ...]:
    """All that decides which operations read a memory: everything but the numbers in its tensors."""
    parts: list[Any] = [type(memory)]
    for field in dataclasses.fields(memory):
        value = getattr(memory, field.name)
        if isinstance(value, Memory):
            parts.append(_kind(value))
        elif isinstance(value, Tensor | tuple):
            given = value if isinstance(value, tuple) else (value,)
            parts.append(tuple((tuple(each.shape), each.dtype, each.device) for each in given))
        else:
            parts.append(value)
    return tuple(parts)


def _move(source: Any, target: Any) -> None:
    """Copy every tensor of a memory to the place of its equal in another."""
    pairs = [pair for pair in zip(_tensors(source), _tensors(target), strict=True) if not _same(*pair)]
    written = {old.untyped_storage().data_ptr() for _, old in pairs}
    # A source that shares a buffer with a target may be written over before it is read.
    read = [new.clone() if new.untyped_storage().data_ptr() in written else new for new, _ in pairs]
    for new, (_, old) in zip(read, pairs, strict=True):
        old.copy_(new)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.stride() == other.stride()


def _device(memory: Any) -> torch.device:
    return next(_tensors(memory)).device
