"""Copies of tensors in the computer's memory, for a thread to write while training goes on.

A copy is made into the place of the one before where the shapes are the same: fresh memory costs more than copying, and
pinned memory, which a GPU can fill on its own, much more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Copies:
    """Places to copy to, one for each tensor of each part; used for one save at a time."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], Tensor] = {}

    def take(
        self, parts: Mapping[str, Mapping[str, Tensor]]
    ) -> tuple[dict[str, dict[str, Tensor]], Callable[[], object]]:
        """The parts as contiguous tensors on the CPU that nothing else changes, and what to call before reading them.

        A GPU copies after what it was asked before and before what it is asked next, so nobody waits but the reader.
        """
        devices: set[torch.device] = set()
        taken: dict[str, dict[str, Tensor]] = {}
        for part, tensors in parts.items():
            taken[part] = {}
            for name, tensor in tensors.items():
                place = self._place((part, name), tensor)
                # On other devices an asynchronous copy would have no event to wait for.
                place.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
                taken[part][name] = place
                if tensor.is_cuda:
                    devices.add(tensor.device)
        events = []
        for device in devices:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            events.append(event)
        return taken, lambda: [event.synchronize() for event in events]

    def _place(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        place = self._places.get(key)
        if place is None or place.shape != tensor.shape or place.dtype != tensor.dtype:
            place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._places[key] = place
        return place
