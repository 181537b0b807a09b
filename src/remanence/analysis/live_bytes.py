"""How many bytes of tensors are alive at once.

Resident memory of a process says little on a CPU: the allocator keeps what was freed, and never the same amount twice.
This counts the storages that operations made and that something still holds.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts within a `with` block, on every device.

        with LiveBytes() as live:
            loss.backward()
        print(live.peak)

    Tensors that were there before are not counted. Operations take a few times longer while it counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes alive that were made inside."""
        self.peak = 0
        """The most that `now` has been."""
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(each) for each in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if id(storage) not in self._known and id(storage) not in before:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self._known[key] = weakref.finalize(storage, self._freed, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _freed(self, key: int, size: int) -> None:
        if self._known.pop(key, None) is not None:
            self.now -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    # Packed weights (`nn/packed.py`) are opaque: they have no storage to look at.
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and not leaf.is_mkldnn]
    return [tensor.untyped_storage() for tensor in tensors]
