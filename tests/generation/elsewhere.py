"""A device that is not the CPU, without numbers: what mixes devices, or moves anything between them, is found."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from remanence.models import LanguageModel

DEVICE = torch.device("lazy")
"""Any that every build of torch can name; nothing is computed on it."""


class Still(TorchDispatchMode):
    """Refuses to move tensors between devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {leaf.device for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor) and leaf.dim()}
        if len(devices) > 1:
            raise RuntimeError(f"{func} moves tensors between devices")
        return result


class Elsewhere:
    """Models and memories as if they lay on another device.

    with elsewhere.mode, Still():
        model(elsewhere.tensor(tokens), elsewhere.memory(memory))
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode()

    def tensor(self, tensor: Tensor) -> Tensor:
        return FakeTensor(self.mode, torch.empty_like(tensor, device="meta"), DEVICE)

    def memory(self, memory: Any) -> Any:
        return memory._map(lambda tensor, role: self.tensor(tensor))

    def model(self, model: LanguageModel) -> LanguageModel:
        moved = copy.deepcopy(model)
        for module in moved.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(self.tensor(parameter), requires_grad=False)
        return moved
