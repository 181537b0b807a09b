"""Work on all cores: child processes that encode and count ranges of text.

The children are plain processes that speak JSON over pipes (`worker.py`). Unlike `multiprocessing` they do not import
the caller's main module, so preparing from a script, a notebook or standard input needs no guard; nothing is pickled,
and they end when their input does, however the parent ended.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from remanence.data.encoding import Encoded, Encoder, NotText, Task, count_task, encode_task, encoder_for
from remanence.data.tokenizers import load_tokenizer
from remanence.data.vocabulary import Symbol
from remanence.errors import InputError

SMALL = 8 << 20
"""Bytes of text below which starting processes costs more than it saves."""
_THREADS = 4
"""Cores that copying bytes can keep busy; the disk is the limit beyond."""

Work = TypeVar("Work")
Answer = TypeVar("Answer")


class Crew:
    """Encodes and counts tasks in order, on `workers` processes, or in this one when there is little to do."""

    def __init__(self, workers: int, size: int) -> None:
        self._workers = workers if size >= SMALL and sys.executable else 1
        self._children: list[_Child] = []
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.stop()

    def count(self, tasks: Iterable[Task], kind: Symbol) -> Generator[Counter[str]]:
        """Symbols of every task, in order of first appearance."""
        if self._workers == 1:
            return (Counter(count_task(task, kind)) for task in tasks)
        return self._on_children(tasks, {"do": "count", "kind": kind}, lambda answer, read: Counter(answer["counts"]))

    def encode(self, tasks: Iterable[Task], tokenizer: Path, drop: bytes, dtype: np.dtype) -> Generator[Encoded]:
        """Every task encoded with the tokenizer kept in a folder; `drop` names bytes left out of the text."""
        encoder: Encoder | None = encoder_for(load_tokenizer(tokenizer), drop)
        if encoder is None:
            # The bytes are the tokens: numpy and hashing leave the interpreter free, so threads do.
            return in_threads(lambda task: encode_task(task, None, dtype), tasks, min(self._workers, _THREADS))
        if self._workers == 1:
            return (encode_task(task, encoder, dtype) for task in tasks)
        request = {"do": "encode", "tokenizer": str(tokenizer), "drop": list(drop), "dtype": dtype.str}

        def take(answer: dict[str, Any], read: Callable[[int], bytes]) -> Encoded:
            tokens = np.frombuffer(read(answer["tokens"]), dtype)
            return Encoded(tokens, np.frombuffer(read(answer["documents"]), "<i8"), answer["counts"])

        return self._on_children(tasks, request, take)

    def _on_children(
        self,
        tasks: Iterable[Task],
        request: dict[str, Any],
        take: Callable[[dict[str, Any], Callable[[int], bytes]], Answer],
    ) -> Generator[Answer]:
        while len(self._children) < self._workers:
            self._children.append(_Child())
            self._idle.put(self._children[-1])

        def ask(task: Task) -> Answer:
            child = self._idle.get()
            try:
                return child.ask(request | {"task": asdict(task) | {"before": list(task.before)}}, take)
            finally:
                self._idle.put(child)

        return in_threads(ask, tasks, self._workers)


class _Child:
    def __init__(self) -> None:
        paths = json.dumps([path for path in sys.path if path])
        program = (
            f"import sys, json; sys.path[:] = json.loads({paths!r}); from remanence.data.worker import main; main()"
        )
        # One core each: the libraries inside must not start threads of their own for all cores.
        alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | alone | {"TOKENIZERS_PARALLELISM": "false"},
            # Ctrl-C in a terminal is for the parent alone, which then stops its children.
            start_new_session=True,
        )

    def ask(self, request: dict[str, Any], take: Callable[[dict[str, Any], Callable[[int], bytes]], Answer]) -> Answer:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            line = stdout.readline()
        except (BrokenPipeError, ValueError):
            line = b""
        if not line.endswith(b"\n"):
            raise _lost()
        answer = json.loads(line)
        if "not_text" in answer:
            raise NotText(*answer["not_text"])
        if "input_error" in answer:
            raise InputError(answer["input_error"])
        if "failure" in answer:
            raise RuntimeError(f"A worker process failed:\n{answer['failure']}")

        def read(size: int) -> bytes:
            data = stdout.read(size)
            if len(data) != size:
                raise _lost()
            return data

        return take(answer, read)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def in_threads(function: Callable[[Work], Answer], work: Iterable[Work], threads: int) -> Generator[Answer]:
    """`function` of every piece of work in order, at most twice as many of them begun as there are threads."""
    with ThreadPoolExecutor(threads, "encode") as pool:
        begun: deque[Future[Answer]] = deque()
        try:
            for piece in work:
                begun.append(pool.submit(function, piece))
                if len(begun) >= 2 * threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


def cores() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _lost() -> InputError:
    return InputError(
        "A worker process was ended by the system, perhaps because memory ran out; run the same command again with "
        "fewer --workers."
    )
