"""Memformer alone: reference values of whole models, the reading of a segment one call later, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.variants import VARIANTS, gap
from torch import Tensor
from torch.nn import functional as F

from remanence.models import Memformer, MemformerConfig, build
from remanence.ops.slots import initial_slots

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
NAMES = tuple(name for name in VARIANTS if name.startswith("memformer"))


class Reference:
    """A model with the weights of a reference file."""

    def __init__(self, name: str, alignment: str) -> None:
        stored = np.load(GOLDEN / f"memformer_{name}.npz", allow_pickle=False)
        self.stored = {key: torch.from_numpy(np.array(stored[key])) for key in stored.files if key != "config"}
        told = json.loads(str(stored["config"]))
        config = MemformerConfig(
            vocab_size=told["vocab"],
            segment_length=told["L"],
            num_layers=told["enc_layers"] + told["dec_layers"],
            encoder_layers=told["enc_layers"],
            model_width=told["d"],
            num_heads=told["heads"],
            head_width=told["d"] // told["heads"],
            feed_forward_width=told["ffn"],
            dropout=told.get("dropout", 0.0),
            layer_norm_epsilon=told["ln_eps"],
            tie_embedding=False,
            num_slots=told["slots"],
            temperature=told["tau"],
            radius=told["radius"],
            normalization=told["norm"],
            memory_norm=told["memory_norm"],
            alignment=alignment,  # type: ignore[arg-type]
        )
        built = build(config, seed=0).double().eval()
        assert isinstance(built, Memformer)
        self.model, self.told = built, told
        for parameter, value in self.paired("weights"):
            parameter.data = value

    def paired(self, what: str) -> Iterator[tuple[torch.nn.Parameter, Tensor]]:
        """Every parameter with its reference value ("weights") or gradient ("grads", ..)."""
        scale = self.model.scale
        for name, parameter in self.model.named_parameters():
            parts, scaled = self.sources(name)
            value = torch.cat([self.stored[f"{what}/{part}"] for part in parts])
            if parts == ["emb"]:
                value = value[self.told["bos"]] if name == "opening" else value[: self.told["vocab"]]
            if scaled:
                # Their embeddings are not scaled, ours are by the root of the width.
                value = value / scale if what == "weights" else value * scale
            yield parameter, value

    @staticmethod
    def sources(name: str) -> tuple[list[str], bool]:
        """Reference names of one of our parameters, and whether ours is the scaled one."""
        single = {
            "embedding.tables.0": ("emb", True),
            "opening": ("emb", True),
            "encoder_positions": ("enc.pos", True),
            "decoder_positions": ("dec.pos", True),
            "head.tables.0": ("out.weight", False),
            "head.bias": ("out.bias", False),
            "biases": ("v", False),
            "write_queries.weight": ("writer.W_Q", False),
            "write_keys.weight": ("writer.W_K", False),
            "write_values.weight": ("writer.W_V", False),
        }
        if name in single:
            source, scaled = single[name]
            return [source], scaled
        if name.startswith(("encoder_norm", "decoder_norm")):
            return [f"{name[:3]}.ln.{name.rpartition('.')[2]}"], False
        stack, number, part, *rest = name.split(".")
        layer = f"{stack[:3]}{number}"
        place, short = {"attention": (1, "sa"), "reader": (2, "rd"), "encoder": (2, "ca"), "feed_forward": (3, "ff")}[
            part
        ]
        if rest[0] == "norm":
            return [f"{layer}.ln{place}.{rest[1]}"], False
        if part == "feed_forward":
            return [f"{layer}.ff.{'W' if rest[1] == 'weight' else 'b'}_{1 if rest[0] == 'widen' else 2}"], False
        named = {"queries": ["W_Q"], "keys_values": ["W_K", "W_V"], "output": ["W_O"]}[rest[0]]
        return [f"{layer}.{short}.{each}" for each in named], False

    def check_gradients(self, what: str) -> None:
        for parameter, wanted in self.paired(what):
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert gap(grad, wanted) < 1e-11 * max(1.0, wanted.abs().max().item())


# A stream of segments


@pytest.mark.parametrize(
    ("alignment", "perplexity", "count"), [("bos", 14.971664799186, 32), ("aligned", 16.965723810227, 29)]
)
def test_a_stream_has_the_reference_values(alignment: str, perplexity: float, count: int) -> None:
    reference = Reference("lm_stream", alignment)
    model, stored = reference.model, reference.stored
    memory = model.init_memory(reference.told["B"])
    beginning = initial_slots(model.biases, model.radius).expand(reference.told["B"], -1, -1)
    logits = []
    for number, (tokens, starts) in enumerate(zip(stored["tokens"], stored["starts"], strict=True)):
        before = torch.where(memory.written[..., None], memory.bank, beginning)
        before = torch.where(starts[:, None, None] & (number > 0), before, before)
        assert gap(before, stored["slots"][number]) < 1e-12
        hidden, memory, _ = model(tokens, memory, starts)
        logits.append(model.head.logits(hidden))
        assert gap(logits[-1], stored[f"logits_{alignment}"][number]) < 1e-12
    assert gap(memory.bank, stored["slots"][-1]) < 1e-12
    tokens, seen = torch.cat(list(stored["tokens"]), dim=1), torch.cat(logits, dim=1)
    nats = F.cross_entropy(
        (seen if alignment == "bos" else seen[:, :-1]).transpose(1, 2),
        tokens if alignment == "bos" else tokens[:, 1:],
        reduction="none",
    )
    if alignment == "aligned":
        nats = F.pad(nats, (0, 1)) * torch.cat(list(stored["scored_aligned"]), dim=1)
        assert int(stored["scored_aligned"].sum()) == count
    assert gap(nats, torch.cat(list(stored[f"nll_{alignment}"]), dim=1)) < 1e-12
    assert (nats.sum() / count).exp().item() == pytest.approx(perplexity, rel=1e-12)
    assert model.shift == (0 if alignment == "bos" else 1)


# Gradients through time, with the stored dropout


class Masks:
    """Stands for dropout: multiplies by the stored masks, in the order in which the reference has them."""

    def __init__(self, reference: Reference) -> None:
        self.stored, self.queue = reference.stored, iter(())
        config = reference.told
        self.sites = ["enc.emb"]
        self.sites += [f"enc{layer}.{part}" for layer in range(config["enc_layers"]) for part in ("sa", "rd", "ff")]
        self.sites += ["dec.emb"]
        self.sites += [f"dec{layer}.{part}" for layer in range(config["dec_layers"]) for part in ("sa", "ca", "ff")]

    def begin(self, step: int) -> None:
        assert next(self.queue, None) is None
        # What leaves the decoder is dropped out in this library, and not in the reference.
        self.queue = iter([*(self.stored[f"dropout/{site}"][step] for site in self.sites), torch.ones(())])

    def __call__(self, values: Tensor, rate: float, training: bool = True) -> Tensor:
        return values * next(self.queue)


class Unrolled:
    """The steps of the reference: the first segment is given as already read."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, cuts: tuple[int, ...] = (), first: Tensor | None = None
    ) -> None:
        self.reference = Reference("mrbp_lm", "bos")
        model, stored = self.reference.model.train(), self.reference.stored
        masks = Masks(self.reference)
        monkeypatch.setattr("remanence.models.base.dropout", masks)
        monkeypatch.setattr("remanence.nn.sublayers.dropout", masks)
        memory = model.init_memory(self.reference.told["B"])
        seen: list[Tensor] = []
        handle = model.encoder_norm.register_forward_hook(lambda module, given, result: seen.append(result))
        memory = dataclasses.replace(memory, previous=stored["tokens"][0], previous_valid=~memory.previous_valid)
        if first is not None:
            memory = dataclasses.replace(memory, bank=first, written=~memory.written)
        self.losses, self.logits, self.slots = [], [], []
        for step, tokens in enumerate(stored["tokens"][1:]):
            masks.begin(step)
            memory = memory.detach() if step in cuts else memory
            hidden, memory, _ = model(tokens, memory)
            memory.bank.retain_grad()
            self.logits.append(model.head.logits(hidden))
            self.losses.append(model.head.loss(hidden, tokens).mean())
            self.slots.append(memory.bank)
        handle.remove()
        self.states = torch.stack(seen)
        self.total = (torch.stack(self.losses) * stored["loss_weight"]).sum()
        self.total.backward()


def test_a_language_model_has_the_reference_values_and_gradients_through_time(monkeypatch: pytest.MonkeyPatch) -> None:
    unrolled = Unrolled(monkeypatch)
    stored = unrolled.reference.stored
    assert gap(torch.stack(unrolled.losses), stored["loss"]) < 1e-12
    assert unrolled.total.item() == pytest.approx(16.105299801255, abs=1e-11)
    assert gap(torch.stack(unrolled.logits), stored["logits"]) < 1e-12
    assert gap(unrolled.states, stored["X"]) < 1e-12
    assert gap(torch.stack(unrolled.slots), stored["M"][1:]) < 1e-12
    unrolled.reference.check_gradients("grads")
    for slots, carry in zip(unrolled.slots, stored["carry"][1:], strict=True):
        assert gap(torch.zeros_like(slots) if slots.grad is None else slots.grad, carry) < 1e-12


@pytest.mark.parametrize(("cuts", "what"), [((2,), "grads_cut2"), ((1, 2, 3), "grads_h1")])
def test_gradients_that_are_cut_are_the_reference_ones(
    monkeypatch: pytest.MonkeyPatch, cuts: tuple[int, ...], what: str
) -> None:
    unrolled = Unrolled(monkeypatch, cuts)
    unrolled.reference.check_gradients(what)
    writers = [p.grad for name, p in unrolled.reference.model.named_parameters() if name.startswith("write_")]
    assert all(grad is None for grad in writers) == (what == "grads_h1")


def test_a_beginning_from_outside_gets_the_reference_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Reference("mrbp_lm", "bos").stored["M"][0].clone().requires_grad_()
    unrolled = Unrolled(monkeypatch, first=first)
    stored = unrolled.reference.stored
    assert first.grad is not None and gap(first.grad, stored["carry"][0]) < 1e-12
    biases = unrolled.reference.model.biases.grad
    assert biases is not None and gap(biases, stored["grad_v_bmn_route"]) < 1e-11
