"""Nothing wrong is ever timed: what differs, does not learn, does not read its memory or is not finite is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from remanence.bench import checks, evaluate, ops, own, peers
from remanence.bench.checks import Disagreement
from remanence.bench.result import Result
from remanence.bench.settings import SHAPES, Settings
from remanence.bench.train import OwnTraining
from remanence.models import LaMemo, TransformerXL


@pytest.fixture
def settings() -> Settings:
    return Settings(
        kind="train",
        shape_name="quick",
        shape=SHAPES["quick"],
        models=("transformer", "transformer-xl", "lamemo"),
        lanes=2,
        segment_length=8,
        memory_length=(16,),
        dtype="float32",
        device="cpu",
        threads=1,
        rounds=2,
        quick=True,
    )


def spoil(monkeypatch: pytest.MonkeyPatch, kind: Any, amount: float, when: Any = lambda memory: True) -> None:
    """Let the hidden states of an architecture be off, for some memories."""
    plain = kind.forward

    def wrong(self: Any, tokens: Any, memory: Any, *arguments: Any, **options: Any) -> Any:
        found = plain(self, tokens, memory, *arguments, **options)
        return (
            found._replace(hidden=found.hidden + amount * torch.ones(self.config.model_width).cumsum(0))
            if when(memory)
            else found
        )

    monkeypatch.setattr(kind, "forward", wrong)


def test_models_that_are_one_while_empty_agree(settings: Settings) -> None:
    result = Result("train")
    checks.check_equal_when_empty(settings, result)
    (sentence,) = result.checks
    assert sentence.startswith("transformer-xl and lamemo on an empty memory give the losses of a transformer")


def test_a_model_that_is_another_one_while_empty_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, LaMemo, 0.1)
    with pytest.raises(Disagreement, match=r"lamemo on an empty memory beside transformer: the results are .* apart"):
        checks.check_equal_when_empty(settings, Result("train"))


def test_numbers_that_are_not_finite_are_refused() -> None:
    one = torch.ones(3)
    with pytest.raises(Disagreement, match="not finite"):
        checks.check_same("a thing", one, one / 0, 1.0)
    with pytest.raises(Disagreement, match=r"apart, more than 0\.1; nothing was timed"):
        checks.check_same("a thing", one, one + 0.2, 0.1)
    assert checks.check_same("a thing", one, one + 0.05, 0.1) == pytest.approx(0.05)


def test_a_model_whose_steps_teach_it_nothing_is_refused(settings: Settings) -> None:
    candidate = OwnTraining("lamemo", settings, 16)
    checks.check_learning(candidate, 3, Result("train"))
    for group in candidate.optimizer.param_groups:
        group["lr"] = 0.0
    with pytest.raises(Disagreement, match=r"lamemo M 16 does not learn: its loss was .* and after 3 steps"):
        checks.check_learning(candidate, 3, Result("train"))


def test_a_memory_that_is_not_read_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = OwnTraining("transformer-xl", settings, 16)
    candidate.fill(4)
    checks.check_reading(candidate, Result("train"))
    monkeypatch.setattr(candidate, "state", candidate.empty())
    with pytest.raises(Disagreement, match="transformer-xl M 16 does not read its memory"):
        checks.check_reading(candidate, Result("train"))


def test_projections_that_change_a_loss_are_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    model = own.make("transformer-xl", settings, 16).eval()
    memory, result = evaluate.filled(model, settings, 16), Result("evaluate")
    evaluate.check_keeping(model, memory, settings, (4, 16), result)
    assert len(result.checks) == 1
    spoil(monkeypatch, TransformerXL, 0.1, when=lambda memory: bool(memory.keys))
    with pytest.raises(Disagreement, match="transformer-xl with its projections kept"):
        evaluate.check_keeping(model, memory, settings, (4, 16), result)


def test_a_peer_whose_cache_is_not_its_window_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    result = Result("evaluate")
    (window,) = peers.make_peers(settings, 16, result.note, (peers.GPT2Window,))
    window.model.eval()
    evaluate.check_cache(window, settings, (8, 16), result)
    assert any("gives the logits of its window read at once" in sentence for sentence in result.checks)
    plain = peers.GPT2Window.read

    def wrong(self: Any, tokens: Any, state: Any) -> Any:
        logits, state = plain(self, tokens, state)
        for layer in state.layers:
            layer.values = layer.values.flip(2)
        return logits, state

    monkeypatch.setattr(peers.GPT2Window, "read", wrong)
    with pytest.raises(Disagreement, match="GPT-2, sliding cache beside the whole window read at once"):
        evaluate.check_cache(window, settings, (8, 16), result)


def test_an_operation_that_is_not_its_definition_is_refused(settings: Settings) -> None:
    case = ops._attention(settings, 16)
    assert case.check() < 1e-4
    case.implementations["remanence"] = lambda **given: ops._plain_attention(
        **given | {"positions": given["positions"].flip(0)}
    )
    with pytest.raises(Disagreement, match="attention by remanence"):
        case.check()


class Halved(torch.autograd.Function):
    """The same, with half its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient / 2


def test_a_gradient_that_is_not_the_definitions_is_refused(settings: Settings) -> None:
    case = ops._look_ahead(settings, 16)
    right = case.implementations["remanence"]
    assert case.check() < 1e-4
    case.implementations["remanence"] = lambda **given: right(**given | {"keys": given["keys"].detach()})
    with pytest.raises(Disagreement, match="the gradient of keys in look-ahead by remanence is missing"):
        case.check()
    case.implementations["remanence"] = lambda **given: right(**given | {"keys": Halved.apply(given["keys"])})
    with pytest.raises(Disagreement, match="the gradient of keys in look-ahead by remanence: the results are"):
        case.check()


def test_dropout_that_drops_another_share_is_refused(settings: Settings) -> None:
    case = ops._dropout(settings)
    ops.check_dropout(case, settings, Result("ops"))
    case.implementations["remanence"] = lambda values: torch.nn.functional.dropout(values, 0.3)
    with pytest.raises(Disagreement, match=r"dropout by remanence keeps 0\.\d+ where 0\.9000 were asked for"):
        ops.check_dropout(case, settings, Result("ops"))


def test_a_package_that_is_missing_is_left_out_with_what_installs_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(peers, "_import", missing)
    result = Result("train")
    assert peers.make_peers(settings, 16, result.note) == []
    assert len(result.notes) == len(peers.TRAINED)
    assert all("pip install 'remanence[bench]'" in note for note in result.notes)
    adaptive = dataclasses.replace(settings, shape=dataclasses.replace(SHAPES["quick"], cutoffs=(10,)))
    assert peers.make_peers(adaptive, 16, result.note) == [] and "adaptive softmax" in result.notes[-1]
