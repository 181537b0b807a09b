"""Linear maps whose weights are laid out once for the processor, for reading with weights that do not change.

A CPU library computes x W^T fastest from an order of its own in W, and gets it there anew at every call unless it is
kept so: for one row of float32 that is half of the time, for 64 rows the products themselves become twice as fast.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """`nn.Linear` with the same parameters, which it takes as they are now: x W^T + b in `dtype`."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias, self.dtype = linear.weight, linear.bias, dtype
        self._packed = _pack(linear.weight, dtype)
        self._added = None if linear.bias is None else linear.bias.detach().to(dtype)
        self._tails: dict[int, Tensor] = {}

    def forward(self, rows: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
        return _multiply(rows.to(self.dtype), self._packed, self._added)

    def rectified(self, rows: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
        """max(0, x W^T + b) in one pass."""
        return _multiply(rows.to(self.dtype), self._packed, self._added, "relu")

    def tail(self, rows: Float[Tensor, "*N D"], begin: int) -> Float[Tensor, "*N G"]:
        """The outputs from `begin` on, without the bias."""
        if begin not in self._tails:
            self._tails[begin] = _pack(self.weight[begin:], self.dtype)
        return _multiply(rows.to(self.dtype), self._tails[begin], None)


def fixed(module: Any, dtype: torch.dtype | None = None) -> Any:
    """A module that computes the same with the same parameters, as long as these do not change; for no gradients.

    With `dtype` bfloat16 its linear maps are those of autocast. Nothing changes on other devices than a CPU, in other
    types, where torch was built without oneDNN, and where hooks see a linear map.
    """
    if type(module) is nn.Linear:
        wanted = module.weight.dtype if dtype is None else dtype
        return PackedLinear(module, wanted) if _can_be_packed(module, wanted) else module
    if parametrize.is_parametrized(module):
        # It cannot be copied, and makes its weights anew at every call.
        return module
    twin = copy.copy(module)
    twin._modules = {name: each if each is None else fixed(each, dtype) for name, each in module._modules.items()}
    return twin


def _can_be_packed(linear: nn.Linear, dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or linear.weight.device.type != "cpu":
        return False
    # Hooks may make the weight anew at every call (norms, pruning), or change what goes in and out.
    if not isinstance(linear.weight, nn.Parameter) or linear._forward_pre_hooks or linear._forward_hooks:
        return False
    supported = dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported and {dtype, linear.weight.dtype} <= set(DTYPES)


def _pack(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), None)


def _multiply(rows: Tensor, packed: Tensor, added: Tensor | None, then: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, packed, added, then, [], "")
