"""How the processes of one start find each other, and nobody of an earlier start.

A launcher keeps its store when it starts processes again, and the addresses of the dead are still in it: whoever looked
before the new ones were written would call a process that is gone (torchrun of PyTorch 2.13, whose restarts share one
store). So every process leaves a word that nobody else ever used; the first one repeats all the words it finds, until
everyone has found its own among them:

    rank r      here/r = word            start contains word: seen/NAME/r
    rank 0      start = all words        all of seen/NAME: go/NAME            NAME = the hash of all words

What is written under NAME is of this start alone.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid

from torch._C._distributed_c10d import PrefixStore, Store

PAUSE = 0.02
"""Seconds between two looks."""


def met(store: Store, rank: int, size: int, seconds: float) -> Store:
    """The corner of a store that belongs to the processes of this start. Raises TimeoutError where some stay away."""
    deadline = time.monotonic() + seconds
    own = uuid.uuid4().hex
    store.set(f"here/{rank}", own)
    told: list[str] = []
    while time.monotonic() < deadline:
        if rank == 0:
            words = [store.get(f"here/{each}").decode() for each in range(size)]
            if words != told:
                store.set("start", json.dumps(words))
        else:
            words = json.loads(store.get("start"))
        name = hashlib.sha256("".join(words).encode()).hexdigest()
        if rank != 0 and words != told and words[rank : rank + 1] == [own]:
            store.set(f"seen/{name}/{rank}", "")
        told = words
        if rank == 0 and all(store.check([f"seen/{name}/{each}"]) for each in range(1, size)):
            store.set(f"go/{name}", "")
        if words[rank : rank + 1] == [own] and store.check([f"go/{name}"]):
            return PrefixStore(name, store)
        time.sleep(PAUSE)
    raise TimeoutError(f"rank {rank} waited {seconds:g} s for {size - 1} others")
