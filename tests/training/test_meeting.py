"""Processes that were started together find each other in a store that remembers those before them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from remanence.training.meeting import met


def start(store: dist.Store, size: int) -> None:
    """Let so many ranks meet, and tell each other something."""

    def rank(number: int) -> set[str]:
        corner = met(store, number, size, 20)
        corner.set(f"address/{number}", str(number))
        return {corner.get(f"address/{each}").decode() for each in range(size)}

    with ThreadPoolExecutor(size) as pool:
        assert list(pool.map(rank, reversed(range(size)))) == [{str(each) for each in range(size)}] * size


@pytest.mark.parametrize("sizes", [(1,), (3,), (3, 3, 3), (4, 2, 3)])
def test_ranks_meet_however_many_there_were_before(sizes: tuple[int, ...]) -> None:
    store = dist.HashStore()
    for size in sizes:
        start(store, size)


def test_a_rank_does_not_take_the_dead_for_the_living() -> None:
    store = dist.HashStore()
    start(store, 2)
    before = json.loads(store.get("start"))
    with pytest.raises(TimeoutError, match="others"):
        met(store, 1, 2, 0.2)
    with pytest.raises(TimeoutError, match="others"):
        met(store, 0, 2, 0.2)
    assert json.loads(store.get("start"))[0] != before[0]
