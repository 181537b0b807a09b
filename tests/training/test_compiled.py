"""What training compiles is one graph for every model: forward and loss of a segment, in bfloat16, with dropout."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.models.unchecked import without_checks
from tests.models.variants import LANES, VARIANTS, Variant, enliven, gap, text

from remanence.data import Batch
from remanence.models import build
from remanence.training.horizon import accumulate_gradients, read_segment


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> Variant:
    return VARIANTS[request.param]


# The compiler asks every input whether it has a .grad, and hides what torch says of one that is no leaf, such as a
# memory that carries a gradient (`safe_has_grad`). It hides nothing where warnings are
# raised as errors, as in these tests.
OF_NO_LEAF = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@OF_NO_LEAF
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


@OF_NO_LEAF
@pytest.mark.parametrize("name", ["transformer-xl", "memformer", "rmt"])
def test_compiled_gradients_over_a_horizon_are_the_plain_ones(name: str) -> None:
    torch._dynamo.reset()
    config = dataclasses.replace(VARIANTS[name].config, memory_gradient=True, num_layers=2)
    model = enliven(build(config, seed=3), seed=3).double().train()
    length = model.config.segment_length
    starts = torch.tensor([True, False, True, False])
    batches = [
        Batch(each[:, :-1], each[:, 1:], starts & (number > 0))
        for number, each in enumerate(text(model, length + 1, length + 1))
    ]
    results = {}
    with without_checks():
        compiled = torch.compile(read_segment, dynamic=False, fullgraph=True, backend="aot_eager")
        for call in ("plain", "full", "replay", "truncated"):
            model.zero_grad()
            engine, read = ("full", read_segment) if call == "plain" else (call, compiled)
            accumulate_gradients(model, batches, model.init_memory(LANES), engine=engine, read=read)
            results[call] = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    plain, truncated = results["plain"], results.pop("truncated")
    assert any(key not in truncated or gap(truncated[key], plain[key]) > 1e-6 for key in plain)
    for found in results.values():
        assert found.keys() == plain.keys()
        assert all(gap(found[key], plain[key]) <= 1e-12 * (1 + plain[key].abs().max()) for key in plain)
