"""What one rank writes of a checkpoint: its files of tensors, and what has to be known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from remanence.memory import Memory
from remanence.training.ranks import Ranks
from remanence.training.shares import share, share_name

LANES = "lanes-"


@dataclass(frozen=True)
class Parts:
    """The tensors of a rank's files by the name of the part, which is the file's without its ending."""

    ranks: Ranks
    tensors: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    """What stands in a file beside its tensors."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What the tensors of a memory mean, for JSON."""

    def add(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """What all ranks have alike, which the first one writes, or of which each has a share and writes that."""
        if any(isinstance(tensor, DTensor) for tensor in tensors.values()):
            name = share_name(part, self.ranks.rank, self.ranks.size)
            self.tensors[name], self.metadata[name] = share(tensors, self.ranks.first)
        elif self.ranks.first:
            self.tensors[part] = tensors

    def add_memory(self, memory: Memory, lanes: range) -> None:
        """The memory of the rank's lanes, which no other rank has."""
        name = f"{LANES}{lanes.start}-{lanes.stop}"
        self.tensors[name], self.memory[name] = memory.state()
