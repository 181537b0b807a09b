"""Weights, gradients and optimizer state in shares: every rank keeps 1/R of each parameter (`fully_shard`, FSDP2).

    gather   a group's weights, whole, in the place of its shares       all-gather
    collect  the sum over ranks of a group's gradients, in shares       reduce-scatter
    release  the shares in the place of the whole weights again

A layer is a group, and so is all that belongs to no layer. Between steps nothing but shares is held: what the optimizer
sees are parameters, gradients and means of 1/R of the rows. During a step the group of no layer is whole, and of the
layers those that were used last, forwards or backwards.

The hooks of `fully_shard` stand around one forward of each module. Here layers are read through several methods, by
engines that read a segment twice or go back over several, so gathering is asked for by any method of a layer and by the
gradients of what it gave; a new architecture needs no line for it, as long as it uses layers by their methods.

Shapes: R ranks; a parameter of n rows has ceil(n / R) on each rank, the last ones fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import isfunction
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from remanence.training.shares import own

LAYERS_WHOLE = 2
"""Layers that are whole at a time: the one in use and the one before it."""


class Group(nn.Module):
    """Parameters that are gathered together. Its forward is never called, so no hook of `fully_shard` ever runs."""

    def __init__(self, part: nn.Module, mesh: DeviceMesh, elsewhere: set[nn.Parameter]) -> None:
        super().__init__()
        self.part, self.mesh = part, mesh
        self.names = [name for name, each in part.named_parameters() if each not in elsewhere]
        fully_shard(self, mesh=mesh, reshard_after_forward=False, ignored_params=elsewhere)
        self.shares: list[Any] = [part.get_parameter(name) for name in self.names]
        self.gathered = False
        self.owes = False
        """Whether a gradient may have come since it was last collected; the same on all ranks."""
        self.received = [False] * len(self.names)
        """Which parameters had a gradient on this rank."""

    def gather(self) -> None:
        if not self.gathered:
            self._sharded.unshard()
            self.gathered = True

    def release(self) -> None:
        if self.gathered:
            self._sharded.reshard()
            self.gathered = False

    def collect(self) -> None:
        """Add the sum over ranks of the gradients to those of the shares."""
        wholes = [self.part.get_parameter(name) for name in self.names]
        ranks = self.mesh.size()
        rows = [torch.zeros_like(each) if each.grad is None else each.grad for each in wholes]
        self.received = [had or each.grad is not None for had, each in zip(self.received, wholes, strict=True)]
        sent = torch.cat([_padded(each, ranks).view(ranks, -1) for each in rows], dim=1)
        summed = torch.empty_like(sent[0])
        distributed.reduce_scatter(summed, list(sent), group=self.mesh.get_group())
        parts = summed.split([-(-len(each) // ranks) * each[0].numel() for each in rows])
        for share, whole, part in zip(self.shares, wholes, parts, strict=True):
            local = share.to_local()
            gradient = part[: local.numel()].view(local.shape)
            if share.grad is None:
                share.grad = DTensor.from_local(
                    gradient, self.mesh, share.placements, run_check=False, shape=share.shape, stride=share.stride()
                )
            else:
                share.grad.to_local().add_(gradient)
            whole.grad = None
        self.owes = False

    @property
    def _sharded(self) -> FSDPModule:
        assert isinstance(self, FSDPModule)
        return self


class Shards:
    """The parameters of a model, which is changed in place, in shares of all ranks of a mesh."""

    def __init__(self, model: nn.Module, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self.layers: list[Group] = []
        taken: set[nn.Parameter] = set()
        for part in _layers(model):
            if set(part.parameters()) - taken:
                self.layers.append(Group(part, mesh, taken))
                taken |= set(self.layers[-1].shares)
        self.rest = Group(model, mesh, taken)
        self._streaming = False
        """Whether layers come and go as they are used."""
        self._used: list[Group] = []
        """Layers that are whole, the one used last at the end."""
        self._inside: Group | None = None
        self._pinned: Group | None = None
        """The layer that the gradient is in: what is computed again for it must not take its weights away."""
        for group in self.layers:
            self._listen(group)

    @property
    def groups(self) -> tuple[Group, ...]:
        return (*self.layers, self.rest)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Every weight whole, for reading."""
        try:
            for group in self.groups:
                group.gather()
            yield
        finally:
            for group in self.groups:
                group.release()

    @contextmanager
    def summing(self) -> Iterator[None]:
        """Weights are whole when they are used; the gradients that they receive are summed over ranks in the shares.

        A parameter that took part on no rank has no gradient afterwards, as on one process.
        """
        self._streaming = True
        try:
            self.rest.gather()
            yield
            for group in self.groups:
                if group.gathered and (group.owes or group is self.rest):
                    group.collect()
        finally:
            for group in self.groups:
                group.release()
            self._used.clear()
            self._pinned, self._streaming = None, False
        had = torch.tensor([each for group in self.groups for each in group.received], dtype=torch.uint8)
        had = had.to(self.mesh.device_type)
        distributed.all_reduce(had, distributed.ReduceOp.MAX, group=self.mesh.get_group())
        shares = [share for group in self.groups for share in group.shares]
        for share, took in zip(shares, had.tolist(), strict=True):
            if not took:
                share.grad = None
        for group in self.groups:
            group.received = [False] * len(group.names)

    def _listen(self, group: Group) -> None:
        """Let every method of a layer's modules ask for its weights."""
        for module in group.part.modules():
            for name in _methods(type(module)):
                setattr(module, name, self._asking(group, getattr(module, name)))

    def _asking(self, group: Group, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def asking(*given: Any, **named: Any) -> Any:
            if self._inside is group or not self._streaming:
                return method(*given, **named)
            self._use(group)
            outer, self._inside = self._inside, group
            try:
                result = method(*given, **named)
            finally:
                self._inside = outer
            if torch.is_grad_enabled():
                for each in tree_leaves(result):
                    if isinstance(each, Tensor) and each.requires_grad:
                        each.register_hook(came_back)
            return result

        def came_back(gradient: Tensor) -> None:
            self._pinned = group
            self._use(group)
            group.owes = True

        return asking

    def _use(self, group: Group) -> None:
        """Make a layer whole, and let go of those that were used longest ago."""
        if self._used and self._used[-1] is group:
            return
        if group in self._used:
            self._used.remove(group)
        self._used.append(group)
        for old in self._used[:-LAYERS_WHOLE]:
            if old is not self._pinned:
                self._used.remove(old)
                if old.owes:
                    old.collect()
                old.release()
        group.gather()


def mesh_of(device: torch.device, size: int) -> DeviceMesh:
    """All ranks, side by side."""
    return init_device_mesh(device.type, (size,))


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, a scalar, the same on all ranks that have shares of them."""
    norm = nn.utils.get_total_norm([own(each) for each in gradients])
    meshes = [each.device_mesh for each in gradients if isinstance(each, DTensor)]
    if not meshes:
        return norm
    squares = norm.square()
    distributed.all_reduce(squares, group=meshes[0].get_group())
    return squares.sqrt()


def _layers(model: nn.Module) -> Iterable[nn.Module]:
    """The elements of the lists that a model has: the rule by which a new architecture is divided."""
    for each in model.children():
        if isinstance(each, nn.ModuleList):
            yield from each


def _methods(kind: type) -> set[str]:
    """The public methods of a kind of module; of PyTorch's own kinds its forward alone."""
    kinds = [each for each in kind.__mro__ if not each.__module__.startswith("torch.")]
    public = {name for each in kinds for name, value in vars(each).items() if name[0] != "_" and isfunction(value)}
    return {"forward"} | public


def _padded(tensor: Tensor, ranks: int) -> Tensor:
    """With rows of zeros up to a multiple of the ranks."""
    missing = -len(tensor) % ranks
    return tensor if not missing else torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
