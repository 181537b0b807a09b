"""Adam as written down, clipping, and decay of matrices only."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from remanence.config import TrainingSettings
from remanence.data import Batch
from remanence.errors import InputError
from remanence.models import LanguageModel, build, config_class
from remanence.training.horizon import accumulate_gradients
from remanence.training.optimizer import build_optimizer, optimizer_state, restore_optimizer
from remanence.training.schedule import learning_rate

STEPS = 40


def small_model(dtype: torch.dtype = torch.float64) -> LanguageModel:
    config = config_class("transformer-xl")(
        vocab_size=13, segment_length=5, memory_length=4, num_layers=2, model_width=8, num_heads=2, head_width=4,
        feed_forward_width=9, dropout=0.0,
    )  # fmt: skip
    return build(config, seed=1).to(dtype)


def random_batches() -> list[Batch]:
    drawn = torch.Generator().manual_seed(8)
    windows = [torch.randint(13, (3, 6), generator=drawn) for _ in range(STEPS)]
    return [Batch(each[:, :-1], each[:, 1:], torch.zeros(3, dtype=torch.bool)) for each in windows]


def test_forty_steps_with_clip_and_cosine_follow_the_written_rule() -> None:
    settings = TrainingSettings(steps=STEPS, learning_rate=3e-2, clip_norm=0.25)
    ours, theirs = small_model(), small_model()
    optimizer = build_optimizer(ours, settings)
    memory, other_memory = ours.init_memory(lanes=3), theirs.init_memory(lanes=3)
    first = [torch.zeros_like(each) for each in theirs.parameters()]
    second = [torch.zeros_like(each) for each in theirs.parameters()]
    for step, batch in enumerate(random_batches()):
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        horizon = accumulate_gradients(ours, [batch], memory)
        memory = horizon.memory
        nn.utils.clip_grad_norm_(ours.parameters(), settings.clip_norm)
        optimizer.step()

        hidden, other_memory, _ = theirs(batch.tokens, other_memory, batch.starts)
        other_memory = other_memory.detach()
        loss = theirs.head.loss(hidden, batch.targets).double().mean()
        gradients = torch.autograd.grad(loss, list(theirs.parameters()))
        norm = math.sqrt(sum(float(each.square().sum()) for each in gradients))
        scale = min(1.0, settings.clip_norm / (norm + 1e-6))
        rate = 3e-2 * (1 + math.cos(math.pi * step / STEPS)) / 2
        with torch.no_grad():
            for index, (parameter, gradient) in enumerate(zip(theirs.parameters(), gradients, strict=True)):
                first[index] += 0.1 * (scale * gradient - first[index])
                second[index] += 0.001 * ((scale * gradient) ** 2 - second[index])
                mean, square = first[index] / (1 - 0.9 ** (step + 1)), second[index] / (1 - 0.999 ** (step + 1))
                parameter -= rate * mean / (square.sqrt() + 1e-8)
        assert float(horizon.loss) == pytest.approx(float(loss.detach()), abs=1e-6 if step else 1e-7)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_only_matrices_decay() -> None:
    model = small_model(torch.float32)
    optimizer = build_optimizer(model, TrainingSettings(optimizer="adamw", weight_decay=0.1, learning_rate=0.5))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        share = 0.95 if parameter.dim() >= 2 else 1.0
        assert torch.allclose(parameter, before[name] * share)


def test_the_state_is_given_back_as_it_was_taken() -> None:
    model = small_model(torch.float32)
    optimizer = build_optimizer(model, TrainingSettings())
    assert optimizer_state(optimizer, model) == {}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    taken = {name: tensor.clone() for name, tensor in optimizer_state(optimizer, model).items()}
    other = build_optimizer(model, TrainingSettings())
    restore_optimizer(other, model, taken)
    found = optimizer_state(other, model)
    assert found.keys() == taken.keys() and all(torch.equal(found[name], taken[name]) for name in taken)
    assert all(found[name].data_ptr() != taken[name].data_ptr() for name in taken)


def test_the_state_of_another_model_is_refused() -> None:
    optimizer = build_optimizer(model := small_model(), TrainingSettings())
    with pytest.raises(InputError, match="holds nowhere/exp_avg, which does not fit the model"):
        restore_optimizer(optimizer, model, {"nowhere/exp_avg": torch.zeros(3)})
