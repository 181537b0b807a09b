"""What every parameter is before training (the published initialisers of Transformer-XL and LaMemo).

| parameter                                    | values        |
|----------------------------------------------|---------------|
| weights of linear layers, embedding tables   | N(0, 0.02)    |
| content and position biases, cluster weights | N(0, 0.02)    |
| projections of embedding and softmax head    | N(0, 0.01)    |
| gains of layer norms                         | N(1, 0.02)    |
| additive biases                              | 0             |
"""

from __future__ import annotations

import torch
from torch import nn

from remanence.nn.embedding import TokenEmbedding
from remanence.nn.heads import SoftmaxHead

WEIGHT, PROJECTION = 0.02, 0.01


def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """Fill every parameter in place, in the order of registration, from one generator."""
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.LayerNorm):
            normal(own["weight"], WEIGHT, generator, mean=1.0)
            own["bias"].data.zero_()
            continue
        projections: set[int] = set()
        if isinstance(module, TokenEmbedding | SoftmaxHead):
            for parameter in module.projections.parameters():
                projections.add(id(parameter))
                normal(parameter, PROJECTION, generator)
            for table in module.tables:
                normal(table, WEIGHT, generator)
        if isinstance(module, nn.ParameterList | nn.ParameterDict):
            # Filled by the module that owns the list.
            continue
        for name, parameter in own.items():
            if name == "bias" or name == "cluster_bias" or name == "distance_bias":
                parameter.data.zero_()
            else:
                normal(parameter, WEIGHT, generator)


def normal(parameter: torch.Tensor, deviation: float, generator: torch.Generator, mean: float = 0.0) -> None:
    """Draw in float32 on the CPU, so that the values depend on the seed alone."""
    if parameter.is_meta:
        return
    values = torch.randn(parameter.shape, generator=generator, dtype=torch.float32, device="cpu") * deviation + mean
    parameter.data.copy_(values)
