"""What one rank writes of a checkpoint: its files of tensors, and what has to be known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from remanence.errors import InputError
from remanence.files import are_files, read_json
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


def read_page(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a rank has written down of its parts: the files with their sizes and hashes, and what memories mean.

    Raises InputError when it is not what a rank writes.
    """
    page = read_json(path, "What a process has written of the checkpoint")
    if not (isinstance(page, dict) and are_files(page.get("files")) and isinstance(page.get("memory"), dict)):
        raise InputError(f"{path} is not what a process writes of its part of a checkpoint; go on with --resume.")
    return page["files"], page["memory"]
