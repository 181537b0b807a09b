"""The ∞-former: the published model's numbers, what is written when, what is forgotten, and what never is."""

from __future__ import annotations

import dataclasses
import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.variants import LANES, SIZES, VARIANTS, enliven, equal, gap, read, tensors, text
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from remanence.config import SettingWarning, load_recipe
from remanence.errors import InputError
from remanence.interop import from_published, published_layout
from remanence.memory import Memory
from remanence.models import InfiniteFormer, InfiniteFormerConfig, build, infinite_former
from remanence.nn.continuous import ContinuousMemory
from remanence.ops.continuous import Basis, Fit, bin_masses, divergence, gaussians, radius, safe

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
RECIPES = sorted((Path(__file__).resolve().parent.parent.parent / "recipes").glob("*.toml"))


def config(**settings: Any) -> InfiniteFormerConfig:
    return InfiniteFormerConfig(**SIZES | {"memory_length": 5, "num_basis": 12, "dropout": 0.0} | settings)


def model(dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    return enliven(build(config(**settings), seed=3), seed=3).to(dtype).eval()


def off(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference in units of the largest entry."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return ((ours.detach().double() - theirs).abs().max() / theirs.abs().max()).item()


def arrays_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    arrays = dict(np.load(GOLDEN / f"infinite_former_{name}.npz", allow_pickle=False))
    return arrays, json.loads(str(arrays.pop("config")))


# The published models


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 3e-4)], ids=["float64", "float32"])
def test_the_sorting_model_equals_the_published_code(
    dtype: type, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, settings = arrays_of("decoder")
    golden = {name: torch.from_numpy(array) for name, array in arrays.items()}
    weights = {name[8:]: array.astype(dtype) for name, array in arrays.items() if name.startswith("weights/")}
    published: Any = from_published("infinite-former", weights, settings).train()
    nats: list[Tensor] = []

    def kept(*given: Any) -> Tensor:
        nats.append(divergence(*given))
        return nats[-1]

    monkeypatch.setattr(infinite_former, "divergence", kept)
    memory, compared = published.init_memory(settings["batch"]), 0
    for segment, length in enumerate(settings["segment_lengths"]):
        nats.clear()
        published.zero_grad()
        hidden, memory, extras = published(golden[f"tokens/{segment}"], memory)
        losses = published.head.loss(hidden, golden[f"targets/{segment}"])
        loss = losses.mean() + extras.auxiliary_loss.mean()
        assert off(published.head.logits(hidden), golden[f"logits/{segment}"]) < tolerance
        assert off(losses.mean(), golden[f"cross_entropy/{segment}"]) < tolerance
        assert off(loss, golden[f"loss/{segment}"]) < tolerance
        if segment >= 2:
            assert off(sum(nats, torch.zeros(())), golden[f"kl/{segment}"]) < tolerance
        for layer in range(settings["n_layer"]):
            rows = golden[f"memory/{segment}/hidden/{layer}"]
            slots = min(rows.shape[1], settings["stm_len"])
            assert off(memory.hidden[layer][:, -slots:], rows[:, -slots:]) < tolerance
            pending = 0 if segment == 0 else length
            assert memory.pending.tolist() == [pending] * 2
            if pending:
                block = rows[:, -slots - pending : -slots]
                assert off(memory.block[layer][:, :pending], block) < tolerance
            if segment >= 2:
                theirs = golden[f"memory/{segment}/coefficients/{layer}"]
                assert off(memory.coefficients[layer], theirs) < tolerance
                compared += 1
    assert compared == 6
    loss.backward()
    parameters, covered = dict(published.named_parameters()), {"head.bias"}
    for name, place in published_layout(published, "infinite-former").items():
        gradient = parameters[place.parameter].grad
        assert gradient is not None and off(place.of(gradient), golden[f"grads/{name}"]) < tolerance, name
        covered.add(place.parameter)
    assert covered == set(parameters)
    assert sum(name.startswith("grads/") for name in arrays) == len(published_layout(published, "infinite-former"))


def test_published_weights_that_do_not_fit_are_named() -> None:
    arrays, settings = arrays_of("decoder")
    weights = {name[8:]: array for name, array in arrays.items() if name.startswith("weights/")}
    missing = {name: array for name, array in weights.items() if "mu.weight" not in name}
    with pytest.raises(InputError, match=r"layers\.0\.dec_attn\.long_term_attention\.mu\.weight"):
        from_published("infinite-former", missing, settings)
    with pytest.raises(InputError, match="n_basis"):
        from_published("infinite-former", weights, {name: v for name, v in settings.items() if name != "n_basis"})
    with pytest.raises(InputError, match="contraction"):
        from_published("infinite-former", weights, settings | {"tau": 1.0})


class Block:
    """A GPT-2 block with a long-term memory beside its attention: the retrofit, in plain functions of named weights."""

    def __init__(self, weights: dict[str, Tensor], settings: dict[str, Any], dtype: torch.dtype) -> None:
        self.weights = {name: weight.to(dtype).requires_grad_() for name, weight in weights.items()}
        self.heads = settings["n_head"]
        width = settings["d_model"]
        basis = Basis(settings["n_basis"], tuple(settings["widths"]))
        self.fit = Fit(basis, settings["ridge"], settings["tau"], settings["n_resample"])
        floor = settings["variance_floor"]
        self.memory = ContinuousMemory(
            width, self.heads, width // self.heads, self.fit, gate=True, variance_floor=floor
        )
        self.memory.to(dtype)
        long = "attn.long_term_attention."
        with torch.no_grad():
            for ours, theirs in (("key", "proj_key"), ("value", "proj_value"), ("output", "attn_out")):
                getattr(self.memory, ours).weight.copy_(weights[f"{long}{theirs}.weight"])
            self.memory.aims.copy_(torch.cat([weights[f"{long}mu.weight"], weights[f"{long}sigma.weight"]]))
            assert self.memory.gate is not None and self.memory.gate.bias is not None
            self.memory.gate.weight.copy_(weights[f"{long}mask_net.weight"])
            self.memory.gate.bias.copy_(weights[f"{long}mask_net.bias"])

    def gradients(self) -> dict[str, Tensor]:
        long, memory = "attn.long_term_attention.", self.memory
        assert memory.gate is not None and memory.gate.bias is not None and memory.aims.grad is not None
        found = {name: weight.grad for name, weight in self.weights.items() if "long_term" not in name}
        for ours, theirs in (("key", "proj_key"), ("value", "proj_value"), ("output", "attn_out")):
            found[f"{long}{theirs}.weight"] = getattr(memory, ours).weight.grad
        found |= {f"{long}mu.weight": memory.aims.grad[:1], f"{long}sigma.weight": memory.aims.grad[1:]}
        found |= {f"{long}mask_net.weight": memory.gate.weight.grad, f"{long}mask_net.bias": memory.gate.bias.grad}
        return {name: gradient for name, gradient in found.items() if gradient is not None}

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, hidden.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def linear(self, name: str, hidden: Tensor) -> Tensor:
        return hidden @ self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def __call__(self, hidden: Tensor, coefficients: Tensor | None) -> tuple[Tensor, Any]:
        projected = self.linear("attn.c_attn", self.norm("ln_1", hidden))
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1)
        )
        context = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        update = self.linear("attn.c_proj", context.transpose(1, 2).flatten(2))
        reading = None
        if coefficients is not None:
            reading = self.memory.read(queries, self.memory.recall(coefficients))
            update = update + reading.update
        hidden = hidden + update
        inner = F.gelu(self.linear("mlp.c_fc", self.norm("ln_2", hidden)), approximate="tanh")
        return hidden + self.linear("mlp.c_proj", inner), reading


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 3e-4)], ids=str)
def test_the_gpt2_retrofit_equals_the_published_code(dtype: torch.dtype, tolerance: float) -> None:
    arrays, settings = arrays_of("gpt2")
    golden = {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype == np.float64}
    blocks = []
    for layer in range(settings["n_layer"]):
        own = f"weights/{layer}."
        weights = {name.removeprefix(own): golden[name] for name in golden if name.startswith(own)}
        blocks.append(Block(weights, settings, dtype))
    waiting: list[Tensor | None] = [None, None]
    coefficients: list[Tensor | None] = [None, None]
    masses: list[Tensor | None] = [None, None]
    for segment in range(len(settings["segment_lengths"])):
        hidden = inputs = golden[f"inputs/{segment}"].to(dtype).requires_grad_()
        nats = torch.zeros((), dtype=dtype)
        for layer, block in enumerate(blocks):
            for weight in (*block.weights.values(), *block.memory.parameters()):
                weight.grad = None
            rows, past, mass = waiting[layer], coefficients[layer], masses[layer]
            if rows is not None:
                places = None
                if past is not None:
                    assert mass is not None
                    places = golden[f"positions/{segment}/{layer}"]
                    told = golden[f"bin_probabilities/{segment}/{layer}"]
                    assert off(mass / mass.sum(1, keepdim=True), told) < tolerance
                known = torch.full((2,), past is not None)
                before = torch.zeros(2, settings["n_basis"], settings["d_model"], dtype=dtype) if past is None else past
                now = block.memory.write(before, places, rows, torch.full((2,), rows.shape[1]), known)
                assert off(now, golden[f"memory/{segment}/coefficients/{layer}"]) < tolerance
                coefficients[layer] = now
            waiting[layer] = hidden.detach()
            hidden, reading = block(hidden, coefficients[layer])
            if reading is not None:
                nats = nats + divergence(reading.mean, reading.variance, settings["sigma_0"])
                masses[layer] = bin_masses(reading.mean.detach(), reading.variance.detach(), settings["sticky_bins"])
                coefficients[layer] = coefficients[layer].detach()  # type: ignore[union-attr]
        loss = (hidden * golden[f"cotangents/{segment}"]).sum() + settings["kl_weight"] * nats.mean()
        assert off(hidden, golden[f"outputs/{segment}"]) < tolerance
        assert off(loss, golden[f"loss/{segment}"]) < tolerance
        loss.backward()
        assert inputs.grad is not None and off(inputs.grad, golden[f"grads_inputs/{segment}"]) < tolerance
        if segment:
            assert off(nats, golden[f"kl/{segment}"]) < tolerance
    compared = 0
    for layer, block in enumerate(blocks):
        for name, gradient in block.gradients().items():
            assert off(gradient, golden[f"grads/{layer}.{name}"]) < tolerance, name
            compared += 1
    assert compared == sum(name.startswith("grads/") for name in golden)


def test_forgetting_by_count_is_an_option_that_equals_the_published_code() -> None:
    arrays, settings = arrays_of("lm")
    golden = {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype == np.float64}
    infinite: Any = build(
        InfiniteFormerConfig(
            vocab_size=3,
            segment_length=settings["block_len"],
            memory_length=0,
            num_layers=1,
            model_width=settings["d_model"],
            num_heads=settings["n_head"],
            head_width=settings["d_model"] // settings["n_head"],
            feed_forward_width=4,
            num_basis=settings["n_basis"],
            basis_widths=tuple(settings["widths"]),
            num_resamples=settings["n_resample"],
            sticky=False,
            reset_after_tokens=settings["reset_after_tokens"],
        ),
        seed=0,
    ).double()
    module = infinite.long_term[0]
    with torch.no_grad():
        for ours, theirs in (
            ("key", "proj_key"),
            ("value", "proj_value"),
            ("output", "attn_out"),
            ("gate", "mask_net"),
        ):
            getattr(module, ours).weight.copy_(golden[f"weights/{theirs}.weight"])
        module.gate.bias.copy_(golden["weights/mask_net.bias"])
        module.aims.copy_(torch.cat([golden["weights/mu.weight"], golden["weights/sigma.weight"]]))
    memory = infinite.init_memory(2)
    for step in range(settings["n_steps"]):
        waiting = torch.full((2,), settings["block_len"])
        memory = infinite._open(dataclasses.replace(memory, block=(golden["blocks"][step],), pending=waiting), None)
        assert off(memory.coefficients[0], golden["parity/reset/coefficients"][step]) < 1e-9
        outputs = module.read(golden["queries"][step], module.recall(memory.coefficients[0])).update
        assert off(outputs, golden["parity/reset/outputs"][step]) < 1e-9
    assert memory.written.tolist() == [2 * settings["block_len"]] * 2


# What is written, and when


class Ledger:
    """Everything that a model writes, lane by lane, in the order in which it is written."""

    def __init__(self, infinite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[list[Tensor]] = [[] for _ in range(LANES)]
        self.counts: list[list[int]] = [[] for _ in range(LANES)]
        first, write = infinite.long_term[0], infinite.long_term[0].write

        def noted(past: Tensor, places: Any, block: Tensor, counts: Tensor, known: Tensor) -> Tensor:
            for lane, count in enumerate(counts.tolist()):
                self.rows[lane].extend(block[lane, :count])
                self.counts[lane] += [count] if count else []
            return write(past, places, block, counts, known)

        monkeypatch.setattr(first, "write", noted, raising=False)


@pytest.mark.parametrize("slots", [0, 1, 3, 5, 7, 10, 13])
@pytest.mark.parametrize("pieces", [False, True])
def test_every_token_is_written_exactly_once_in_order(
    slots: int, pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the lengths of segments, slots and calls, on every lane: written + waiting + in a slot = read."""
    infinite = model(memory_length=slots)
    ledger = Ledger(infinite, monkeypatch)
    memory, history = infinite.init_memory(LANES), [[] for _ in range(LANES)]
    generator = torch.Generator().manual_seed(slots)
    for number, tokens in enumerate(text(infinite, 5, 2, 5, 14, 1, 5, 23, 4)):
        length = tokens.shape[1]
        lengths = torch.randint(length + 1, (LANES,), generator=generator) if number % 2 else None
        if pieces and lengths is None:
            for part in tokens.split(2, dim=1):
                memory = infinite(part, memory, close=False).memory
            memory = infinite.close(memory)
        else:
            memory = infinite(tokens, memory, lengths=lengths).memory
        embedded = infinite.embedding(tokens)
        for lane in range(LANES):
            history[lane].extend(embedded[lane, : length if lengths is None else int(lengths[lane])])
            kept = memory.hidden[0][lane][memory.valid[lane]]
            waiting = memory.block[0][lane, : memory.pending[lane]]
            seen = [*ledger.rows[lane], *waiting, *kept]
            assert (
                len(seen)
                == len(history[lane])
                == memory.written[lane] + memory.pending[lane] + memory.valid[lane].sum()
            )
            assert not seen or torch.equal(torch.stack(seen), torch.stack(history[lane]))
    assert max(map(max, ledger.counts)) <= 5


@pytest.mark.parametrize(("slots", "after"), [(0, 1), (5, 2), (10, 3), (7, 2)])
def test_a_segment_reaches_the_long_term_memory_once_it_has_left_the_slots(slots: int, after: int) -> None:
    infinite = model(memory_length=slots)
    first, *others = text(infinite, *[5] * 5)
    changed = first.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 19
    lives = []
    for begin in (first, changed):
        memory, life = infinite.init_memory(LANES), []
        for tokens in (begin, *others):
            memory = infinite(tokens, memory).memory
            life.append(memory.coefficients[0])
        lives.append(life)
    gaps = [gap(one, other) for one, other in zip(*lives, strict=True)]
    assert all(each == 0 for each in gaps[:after]) and all(each > 1e-9 for each in gaps[after:])


def test_with_one_and_a_half_segments_of_slots_the_first_block_is_short() -> None:
    infinite = model(memory_length=7)
    memory, waiting = infinite.init_memory(LANES), []
    for tokens in text(infinite, *[5] * 5):
        memory = infinite(tokens, memory).memory
        waiting.append(memory.pending[0].item())
    assert waiting == [0, 3, 5, 5, 5]


def test_a_long_segment_writes_what_that_many_short_ones_would_write() -> None:
    """The contraction is per block of the trained length, so reading faster does not forget faster."""
    infinite = model(memory_length=0, num_layers=1, sticky=False)
    whole, parts = infinite.init_memory(LANES), infinite.init_memory(LANES)
    (tokens,) = text(infinite, 15)
    whole = infinite(tokens, whole).memory
    for part in tokens.split(5, dim=1):
        parts = infinite(part, parts).memory
    assert whole.pending.tolist() == parts.pending.tolist() == [5] * LANES
    assert whole.written.tolist() == parts.written.tolist() == [10] * LANES
    assert gap(whole.coefficients[0], parts.coefficients[0]) < 1e-12


def test_the_function_is_constant_inside_a_segment_and_written_once_when_it_opens() -> None:
    infinite = model()
    _, memory = read(infinite, text(infinite, 5, 5, 5))
    (tokens,) = text(infinite, 5)
    opened = infinite(tokens[:, :1], memory, close=False).memory
    further = infinite(tokens[:, 1:3], opened, close=False).memory
    assert not equal(opened.coefficients[0], memory.coefficients[0])
    assert equal(further.coefficients[0], opened.coefficients[0])
    assert equal(infinite(tokens[:, 3:], further).memory.coefficients[0], opened.coefficients[0])


def test_without_output_weights_it_is_a_transformer_xl() -> None:
    infinite = model(output_init="zero")
    for long_term in infinite.long_term:
        long_term.output.weight.data.zero_()
    shared = {name: p for name, p in infinite.state_dict().items() if not name.startswith("long_term")}
    sizes = SIZES | {"memory_length": 5, "dropout": 0.0}
    from remanence.models import TransformerXL, TransformerXLConfig

    plain = TransformerXL(TransformerXLConfig(**sizes)).double().eval()
    plain.load_state_dict(shared)
    segments = text(infinite, 5, 5, 5, 5)
    assert equal(read(infinite, segments)[0], read(plain, segments)[0])
    fresh: Any = build(config(output_init="zero"), seed=0)
    assert not any(long_term.output.weight.any() for long_term in fresh.long_term)


# Gradients


def losses(infinite: Any, segments: list[Tensor]) -> tuple[Tensor, Any]:
    """The loss of the last segment alone, with its auxiliary part."""
    memory, loss = infinite.init_memory(LANES), torch.zeros(())
    for tokens in segments:
        hidden, memory, extras = infinite(tokens, memory)
        loss = infinite.head.loss(hidden, tokens).mean() + extras.auxiliary_loss.sum()
    return loss, memory


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_gradient_reaches_all_of_the_long_term_memory_in_the_segment_that_writes(norm: str) -> None:
    infinite = model(norm=norm).train()
    loss, memory = losses(infinite, text(infinite, *[5] * 4))
    loss.backward()
    for name, parameter in infinite.long_term.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert not any(tensor.requires_grad for tensor in tensors(memory).values())


def test_the_gate_learns_from_the_newest_block_alone() -> None:
    """With nothing waiting, the old function is a constant, and no gradient reaches the gate."""
    infinite = model().train()
    _, memory = losses(infinite, text(infinite, *[5] * 4))
    memory = dataclasses.replace(memory, pending=torch.zeros_like(memory.pending))
    (tokens,) = text(infinite, 5)
    infinite.zero_grad()
    infinite.head.loss(infinite(tokens, memory).hidden, tokens).sum().backward()
    gate = infinite.long_term[0].gate
    assert gate.weight.grad is None or not gate.weight.grad.any()
    assert infinite.long_term[0].value.weight.grad.any()


@pytest.mark.parametrize(("carries", "reaches"), [(False, False), (True, True)])
def test_gradient_through_time_is_an_option(carries: bool, reaches: bool) -> None:
    infinite = model(memory_length=0, num_layers=1, memory_gradient=carries)
    embedded = []
    handle = infinite.embedding.register_forward_hook(lambda module, given, result: embedded.append(result))
    memory = infinite.init_memory(LANES)
    hidden = torch.zeros(())
    for tokens in text(infinite, *[5] * 4):
        hidden, memory, _ = infinite(tokens, memory)
    handle.remove()
    gradients = torch.autograd.grad(hidden.square().sum(), embedded, allow_unused=True)
    assert all((each is not None and bool(each.any())) == reaches for each in gradients[:3])


def test_the_auxiliary_loss_is_the_weighted_divergence_of_lanes_with_a_memory() -> None:
    infinite = model(kl_weight=0.25, sticky=False).train()
    memory = infinite.init_memory(LANES)
    for number, tokens in enumerate(text(infinite, 5, 5)):
        memory = infinite(tokens, memory, lengths=torch.tensor([5, 5, 5 * number, 0])).memory
    (tokens,) = text(infinite, 5)
    lengths = torch.tensor([5, 2, 5, 5])
    loss = infinite(tokens, memory, lengths=lengths).extras.auxiliary_loss
    assert (loss > 0).tolist() == [True, True, False, False]
    alone = infinite(tokens[1:2, :2], memory[1]).extras.auxiliary_loss
    assert gap(alone, loss[1:2]) < 1e-12
    assert infinite.eval()(tokens, memory, extras=True).extras.auxiliary_loss is None


# Sticky memories


def test_draws_repeat_and_touch_no_generator() -> None:
    infinite = model().train()
    segments = text(infinite, *[5] * 5)
    state = torch.get_rng_state()
    first = read(infinite, segments)
    second = read(infinite, segments)
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(first[0], second[0]) and equal(first[1], second[1])


def test_draws_differ_between_texts_layers_and_modes() -> None:
    infinite = model().train()
    _, memory = read(infinite, text(infinite, *[5] * 4))
    drawn = [infinite._places(memory, layer, 0) for layer in range(3)]
    assert all((places.diff(dim=1) >= 0).all() for places in drawn)
    masses = dataclasses.replace(memory, masses=(memory.masses[0],) * 3)
    drawn = [infinite._places(masses, layer, place) for layer in range(2) for place in range(2)]
    assert len({tuple(places[0].tolist()) for places in drawn}) == 4
    same = dataclasses.replace(memory, masses=tuple(mass[:1].expand(LANES, -1) for mass in memory.masses))
    assert len({tuple(row.tolist()) for row in infinite._places(same, 0, 0)}) == LANES
    infinite.eval()
    assert len({tuple(row.tolist()) for row in infinite._places(same, 0, 0)}) == 1


def test_an_evaluation_in_between_changes_no_training_state() -> None:
    infinite = model().train()
    first, second = text(infinite, 5, 5, 5), text(infinite, 5, 5, 5, seed=9)
    _, memory = read(infinite, first)
    expected = read(infinite, second, memory)
    infinite.eval()
    read(infinite, text(infinite, 5, 5, 5, 5, seed=4))
    again = read(infinite.train(), second, memory)
    assert equal(again[0], expected[0]) and equal(again[1], expected[1])


def test_a_memory_without_attention_counts_is_another_memory() -> None:
    sticky, plain = model(), model(sticky=False)
    (tokens,) = text(sticky, 5)
    with pytest.raises(InputError, match="sticky bins"):
        sticky(tokens, plain.init_memory(LANES))
    with pytest.raises(InputError, match="basis functions"):
        sticky(tokens, model(num_basis=8).init_memory(LANES))
    with pytest.raises(InputError, match="longest block"):
        sticky(tokens, model(segment_length=6).init_memory(LANES))


# Precision, compilation, advancing


def test_coefficients_are_float32_whatever_the_model_computes_in() -> None:
    infinite = model(torch.float32)
    segments = text(infinite, *[5] * 4)
    with torch.autocast("cpu", torch.bfloat16):
        _, memory = read(infinite, segments)
    assert {each.dtype for each in (*memory.coefficients, *memory.masses)} == {torch.float32}
    half = model(torch.bfloat16)
    _, memory = read(half, segments)
    assert {each.dtype for each in memory.coefficients} == {torch.float32}
    assert {each.dtype for each in memory.block} == {torch.bfloat16}
    cast = model(torch.float32).init_memory(2).to(dtype=torch.bfloat16)
    assert {each.dtype for each in (*cast.coefficients, *cast.masses)} == {torch.float32}


@pytest.mark.parametrize("name", ["infinite-former", "infinite-former-no-slots", "infinite-former-pre-norm-equal"])
def test_advancing_gives_the_memory_of_a_whole_call(name: str) -> None:
    infinite = VARIANTS[name].model()
    whole = advanced = infinite.init_memory(LANES)
    for tokens in text(infinite, 5, 12, 2, 5):
        starts, lengths = torch.tensor([False, True, False, False]), torch.tensor([5, 2, 0, tokens.shape[1]])
        whole = infinite(tokens, whole, starts, lengths).memory
        advanced = infinite.advance(tokens, advanced, starts, lengths)
        assert equal(advanced, whole)


def test_gradients_of_a_compiled_model_are_the_plain_ones() -> None:
    infinite = model(num_layers=2).train()
    segments = text(infinite, *[5] * 4)

    def step(tokens: Tensor, memory: Any, starts: Tensor) -> tuple[Tensor, Any]:
        hidden, memory, extras = infinite(tokens, memory, starts)
        return infinite.head.loss(hidden, tokens).sum() + extras.auxiliary_loss.sum(), memory

    results = []
    torch._dynamo.reset()
    for call in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        infinite.zero_grad()
        memory = infinite.init_memory(LANES)
        for number, tokens in enumerate(segments):
            with torch._dynamo.config.patch(error_on_recompile=number > 0):
                loss, memory = call(tokens, memory, torch.tensor([number == 1, False, False, True]))
            loss.backward()
        results.append({name: p.grad.clone() for name, p in infinite.named_parameters()})
    assert max(gap(results[0][name], results[1][name]) for name in results[0]) < 1e-10


def test_a_saved_memory_goes_on_in_training_with_the_same_draws(tmp_path: Path) -> None:
    infinite = model().train()
    _, memory = read(infinite, text(infinite, *[5] * 4))
    after = text(infinite, 5, 5, seed=5)
    rebuilt = Memory.from_state(*memory.state())
    one, other = read(infinite, after, memory), read(infinite, after, rebuilt)
    assert equal(one[0], other[0]) and equal(one[1], other[1])


# Endless streams


def test_a_million_tokens_take_constant_time_and_memory_a_segment() -> None:
    """One lane, 1,954 segments of 512 tokens; at the end, the last segments are still felt, ever less."""
    infinite: Any = build(
        InfiniteFormerConfig(
            vocab_size=7,
            segment_length=512,
            memory_length=0,
            num_layers=1,
            model_width=4,
            num_heads=1,
            head_width=4,
            feed_forward_width=4,
            num_basis=64,
            dropout=0.0,
        ),
        seed=0,
    ).eval()
    enliven(infinite, seed=0)
    generator = torch.Generator().manual_seed(0)
    memory, costs, sizes, largest, recent = infinite.init_memory(1), set(), set(), 0.0, []
    with torch.no_grad():
        for number in range(1954):
            # A few symbols at a time, so that a segment differs from the next in more than its order.
            tokens = torch.randint(number % 5, number % 5 + 3, (1, 512), generator=generator)
            if number in (2, 100, 1000, 1953):
                with FlopCounterMode(display=False) as counter:
                    memory = infinite.advance(tokens, memory)
                costs.add(counter.get_total_flops())
            else:
                memory = infinite.advance(tokens, memory)
            sizes.add(memory.nbytes)
            largest = max(largest, memory.coefficients[0].abs().max().item())
            recent = [*recent[-7:], (memory, tokens)]
    assert 1954 * 512 > 1_000_000 and memory.written.item() == 1953 * 512
    assert len(sizes) == len(costs) == 1 and costs != {0} and largest < 100
    # The segment of some segments ago read as another one: how much the function at the end changes.
    felt = []
    for age in (1, 3, 5):
        past = recent[-age - 2][0]
        with torch.no_grad():
            past = infinite.advance((recent[-age - 1][1] + 2) % 7, past)
            for _, tokens in recent[len(recent) - age :]:
                past = infinite.advance(tokens, past)
        felt.append(gap(past.coefficients[0], memory.coefficients[0]))
    assert felt[0] > felt[1] > felt[2] > 1e-4


def test_after_a_million_tokens_the_first_of_them_can_still_be_read() -> None:
    """Sixteen long segments, each with a topic: a token in every second place. All topics are read at the end.

    The place of a segment of age a is the middle of its share of [0, 1], (tau^(a + 1), tau^a]; the first has all that
    is left, [0, tau^15]. What is read there is compared with the embeddings of all sixteen topics.
    """
    count, length, contraction = 16, 62_501, 0.85
    infinite: Any = build(
        InfiniteFormerConfig(
            vocab_size=64,
            segment_length=length,
            memory_length=0,
            num_layers=1,
            model_width=64,
            num_heads=2,
            head_width=8,
            feed_forward_width=8,
            num_basis=128,
            contraction=contraction,
            gate=False,
            sticky=False,
            dropout=0.0,
        ),
        seed=0,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    topics = torch.randperm(64, generator=generator)[:count]
    memory, costs, sizes = infinite.init_memory(1), [], set()
    with torch.no_grad():
        for topic in topics:
            tokens = torch.randint(64, (1, length), generator=generator)
            tokens = torch.where(torch.rand(1, length, generator=generator) < 0.5, topic, tokens)
            with FlopCounterMode(display=False) as counter:
                memory = infinite.advance(tokens, memory)
            costs.append(counter.get_total_flops())
            sizes.add(memory.nbytes)
        # The last segment is written when the next one opens.
        memory = infinite(tokens[:, :8], memory, close=False).memory
    assert memory.written.item() == count * length > 1_000_000
    # Nothing to write at first, then nothing to keep.
    assert len(sizes) == 1 and len(set(costs[2:])) == 1
    edges = [0.0, *(contraction**age for age in range(count - 1, -1, -1))]
    places = torch.tensor([(low + high) / 2 for low, high in pairwise(edges)])
    basis = infinite.config.fit.basis
    read_out = gaussians(places, *basis.parameters(torch.float32, places.device)) @ memory.coefficients[0][0]
    table = infinite.embedding.tables[0].detach()
    wanted = F.normalize(table[topics] - table.mean(0), dim=1)
    likeness = F.normalize(read_out, dim=1) @ wanted.T
    assert (likeness.argmax(1) == torch.arange(count)).all()
    early, late = likeness.diagonal()[:4].mean().item(), likeness.diagonal()[-4:].mean().item()
    assert 0.7 < early < late - 0.03 and late > 0.9


# Settings


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("num_basis", {"num_basis": 7}),
        ("num_basis", {"num_basis": 2}),
        ("num_basis", {"num_basis": 0}),
        ("num_basis", {"num_basis": 10, "basis_widths": (0.2, 0.3, 0.4)}),
        ("basis_widths", {"basis_widths": ()}),
        ("basis_widths", {"basis_widths": (0.2, -0.1)}),
        ("contraction", {"contraction": 0.0}),
        ("contraction", {"contraction": 1.0}),
        ("contraction", {"contraction": float("nan")}),
        ("ridge", {"ridge": 0.0}),
        ("variance_floor", {"variance_floor": 0.0}),
        ("prior_width", {"prior_width": -1.0}),
        ("kl_weight", {"kl_weight": -1e-6}),
        ("num_resamples", {"num_resamples": 0}),
        ("reset_after_tokens", {"reset_after_tokens": 0}),
        ("sticky_bins", {"sticky_bins": 0}),
        ("sticky_offset", {"sticky_offset": "right"}),
        ("sticky_draw_training", {"sticky_draw_training": "iid"}),
        ("write_input", {"write_input": "normed"}),
        ("write_input", {"write_input": "raw"}),
        ("output_init", {"output_init": "ones"}),
        ("memory_init", {"memory_init": "zeros"}),
        ("memory_length", {"memory_length": -1}),
    ],
)
def test_impossible_settings_are_refused_by_name(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"model\.{name}\b"):
        config(**settings)


def test_more_functions_than_samples_are_refused_where_the_memory_would_explode() -> None:
    narrow = {"num_basis": 128, "basis_widths": (0.003, 0.006), "contraction": 0.9, "ridge": 1.0, "num_resamples": 64}
    with pytest.raises(InputError, match=r"grow up to .*-fold with every block; give fewer basis functions"):
        config(segment_length=16, **narrow)


def test_sticky_settings_without_sticky_memories_are_told() -> None:
    (told,) = config(sticky=False, sticky_offset="left").without_effect()
    assert told == "model.sticky_offset has no effect, because model.sticky is false."
    assert not config(sticky_offset="left").without_effect()


def test_leaving_the_safe_region_warns() -> None:
    with pytest.warns(SettingWarning, match="outside the region"):
        config(segment_length=5, num_basis=48)


def test_every_published_size_and_every_recipe_is_stable() -> None:
    language = Fit(Basis(512, (0.005, 0.01)), 0.5, 0.5, 512)
    sorting = Fit(Basis(512, (0.01, 0.05)), 1.0, 0.75, 512)
    checked = [(language, 512), (sorting, 1024)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", SettingWarning)
        recipes = [load_recipe(path).model for path in RECIPES if "infinite" in path.read_text(encoding="utf-8")]
    checked += [(each.fit, each.segment_length) for each in recipes if isinstance(each, InfiniteFormerConfig)]
    assert len(checked) >= 4
    for fit, length in checked:
        assert safe(fit, length) and radius(fit, length) < 1
        assert all(radius(fit, count) < 1 for count in (1, 2, length // 2))


def test_the_published_number_of_parameters_a_layer() -> None:
    """6 D^2 + D + 2 N: 3,540,736 at D = 768 and N = 512, 541,324 at D = 300."""
    for width, heads, expected in ((768, 12, 3_540_736), (300, 6, 541_324)):
        with torch.device("meta"):
            module = ContinuousMemory(
                width,
                heads,
                width // heads,
                Fit(Basis(512, (0.005, 0.01)), 0.5, 0.5, 512),
                gate=True,
                variance_floor=1e-4,
            )
        assert sum(parameter.numel() for parameter in module.parameters()) == expected


def test_it_is_made_by_name() -> None:
    assert type(build(config(), seed=0)) is InfiniteFormer


def test_the_sorting_model_drops_nothing_of_what_attention_adds() -> None:
    """Model (c): dropout everywhere but on the output of attention."""
    sorting = model(torch.float32, dropout=0.5, attention_output_dropout=0.0, num_layers=1, tie_embedding=False).train()
    layer = sorting.layers[0]
    stream, context = torch.zeros(1, 3, 10), torch.randn(1, 3, 3, 5)
    seen: list[Tensor] = []
    layer.norm_attention.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    layer.finish(stream, context)
    assert torch.equal(seen[0], layer.output(context.transpose(1, 2).flatten(2)))
    with pytest.raises(InputError, match=r"model\.attention_output_dropout"):
        config(attention_output_dropout=1.0)
