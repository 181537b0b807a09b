"""What training compiles is one graph for every model: forward and loss of a segment, in bfloat16, with dropout."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.models.unchecked import without_checks
from tests.models.variants import LANES, VARIANTS, Variant, text

from remanence.data import Batch
from remanence.models import build
from remanence.training.horizon import read_segment


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> Variant:
    return VARIANTS[request.param]


# What torch says when it looks at a memory that carries a gradient, before it makes the graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_forward_and_loss_are_one_graph_in_bfloat16(variant: Variant) -> None:
    """The tails of an adaptive softmax are added behind it: how many rows they have depends on the text.

    A memory that carries a gradient is another kind of input than the first, empty one: two graphs.
    """
    torch._dynamo.reset()
    model = build(dataclasses.replace(variant.config, dropout=0.1, attention_dropout=0.1), seed=1).train()
    tokens, more = text(model, *[model.config.segment_length + 1] * 2)
    starts = torch.zeros(LANES, dtype=torch.bool)
    memory = model.init_memory(LANES)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    whole = not variant.config.cutoffs
    with without_checks(), torch.autocast("cpu", torch.bfloat16):
        function = torch.compile(read_segment, backend=backend, fullgraph=True, dynamic=False) if whole else None
        for text_of_segment in (tokens, more):
            batch = Batch(text_of_segment[:, :-1], text_of_segment[:, 1:], starts)
            if function is None:
                reading = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)
                hidden, memory, _ = reading(batch.tokens, memory, starts)
                objective = model.head.loss(hidden, batch.targets).sum()
            else:
                objective, _, memory = function(model, batch, memory)
    objective.sum().backward()
    assert objective.isfinite().all()
    assert len(graphs) <= 1 + model.memory_carries_gradient
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
