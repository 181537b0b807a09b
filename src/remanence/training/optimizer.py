"""Adam and AdamW, and their state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from remanence.config import TrainingSettings
from remanence.errors import InputError
from remanence.training.shares import rows_of, shapes_of, shared_like

COUNT, MEANS = "step", ("exp_avg", "exp_avg_sq")
"""What PyTorch calls the state of a parameter."""


def build_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimizer of a recipe. Matrices decay, vectors (biases, gains) do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in parameters if each.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [each for each in parameters if each.dim() < 2], "weight_decay": 0.0},
    ]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    # One kernel over all weights, on CPU too: see the figures in docs/training.md.
    fused = {parameter.device.type for parameter in parameters} <= {"cpu", "cuda", "mps"}
    return kind(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=fused,
    )


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The state of every parameter as tensors named "parameter name/what it is"; empty before the first update."""
    return {
        f"{name}/{what}": value
        for name, parameter in model.named_parameters()
        for what, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give back what `optimizer_state` took. Raises InputError when it belongs to other parameters."""
    parameters = dict(model.named_parameters())
    shapes = shapes_of(tensors)
    for key, shape in shapes.items():
        name, _, what = key.rpartition("/")
        # The kernels read all of a parameter's state, in its own type.
        whole = all(f"{name}/{each}" in shapes for each in (COUNT, *MEANS))
        known = name in parameters and what in (COUNT, *MEANS) and whole
        fits = known and shape == (() if what == COUNT else parameters[name].shape)
        value = tensors[key] if fits else None
        if value is None or value.dtype != parameters[name].dtype:
            raise InputError(
                f"The optimizer state holds {key}, which does not fit the model; resume with the recipe that the "
                "checkpoint was made with."
            )
        parameter = parameters[name]
        if not shape:
            place = parameter.device if _is_fused(optimizer) else torch.device("cpu")
            optimizer.state[parameter][what] = value.to(place, copy=True)
        else:
            rows = rows_of(value, parameter).to(parameter.device, copy=True)
            optimizer.state[parameter][what] = shared_like(rows, parameter)


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.defaults.get("fused"))
