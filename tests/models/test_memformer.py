"""Memformer alone: reference values of whole models, the reading of a segment one call later, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.variants import LANES, SIZES, VARIANTS, Variant, equal, gap, histories, read, text
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from remanence.errors import InputError
from remanence.models import Memformer, MemformerConfig, build
from remanence.models.memformer import MemformerExtras
from remanence.ops.slots import biased_normalization, initial_slots

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
MEMFORMERS = {name: variant for name, variant in VARIANTS.items() if isinstance(variant.config, MemformerConfig)}
BOTH = ("memformer", "memformer-bos")


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

    def __call__(self, values: Tensor, rate: float, training: bool = True, lanes: bool = True) -> Tensor:
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


# The reading of a segment, one call later


@pytest.fixture(params=list(MEMFORMERS))
def memformer(request: pytest.FixtureRequest) -> Variant:
    return MEMFORMERS[request.param]


def embedded(model: Any, segments: list[Tensor], memory: Any) -> tuple[list[list[Tensor]], Tensor]:
    """What each call embedded, for its encoder and for its decoder, and the logits of the last."""
    calls: list[Tensor] = []

    def remember(module: nn.Module, given: Any, result: Tensor) -> None:
        calls.append(result)

    handle = model.embedding.register_forward_hook(remember)
    pairs = []
    hidden = torch.empty(0)
    for tokens in segments:
        hidden, memory, _ = model(tokens, memory)
        pairs.append(calls[-2:])
    handle.remove()
    return pairs, model.head.logits(hidden)


@pytest.mark.parametrize("length", [0, 7])
@pytest.mark.parametrize("place", [0, 3, 10])
def test_a_prediction_sees_all_of_the_segment_before_and_older_ones_through_slots_alone(
    memformer: Variant, place: int, length: int
) -> None:
    model = memformer.model()
    pairs, logits = embedded(model, text(model), model.init_memory(LANES, length))
    inputs = [tensor for pair in pairs for tensor in pair]
    gradients = torch.autograd.grad(logits[:, place].square().sum(), inputs, allow_unused=True)
    first, first_decoded, older, older_decoded, before, own = (
        torch.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(inputs, gradients, strict=True)
    )
    assert (before != 0).any(-1).all()
    seen = (own != 0).any(-1)
    begins = 1 - model.shift
    assert seen[:, begins : place + 1].all() and not seen[:, place + 1 :].any() and not seen[:, :begins].any()
    assert (older != 0).any(-1).all() == (older != 0).any() == (length > 0)
    assert not first_decoded.any() and not older_decoded.any()
    # The first call had nothing to encode but an opening, which is no token.
    assert not first.any()


def test_with_its_slots_frozen_only_the_segment_before_counts(memformer: Variant) -> None:
    model = memformer.model()
    older, before, now = text(model)
    slots = torch.randn(LANES, 7, SIZES["model_width"], dtype=torch.float64)
    seen = []
    for first in (older, (older + 1) % memformer.config.vocab_size):
        memory = read(model, [first, before])[1]
        seen.append(model(now, dataclasses.replace(memory, bank=slots)).hidden)
    assert equal(*seen)


def test_a_lane_that_read_nothing_encodes_an_opening_and_writes_nothing(memformer: Variant) -> None:
    model: Any = memformer.model()
    memory = model.init_memory(LANES)
    home = initial_slots(model.biases, model.radius, model.parts)
    (tokens,) = text(model, 5)
    after = model(tokens, memory, extras=True)
    assert gap(after.memory.bank, home.expand(LANES, -1, -1)) == 0
    assert after.memory.written.all() and not memory.written.any()
    assert isinstance(after.extras, MemformerExtras) and (after.extras.own_weight == 1).all()
    wanted = F.pad(tokens, (0, memory.previous.shape[1] - 5))
    assert torch.equal(after.memory.previous, wanted)
    assert torch.equal(after.memory.previous_valid, torch.arange(wanted.shape[1]).expand(LANES, -1) < 5)
    (gradient,) = torch.autograd.grad(after.memory.bank.square().sum() + after.memory.bank.sum(), model.biases)
    assert gradient.any()


def test_slots_keep_their_length_and_lie_where_flushing_shows_them(memformer: Variant) -> None:
    model: Any = memformer.model()
    memory = histories(model)
    for tokens in text(model, 5, 3):
        shown = model.flush(memory)
        opened = model(tokens[:, :1], memory, close=False).memory
        assert equal(model.flush(opened), shown)
        memory = model(tokens, memory).memory
        assert equal(memory.bank, shown)
        lengths = memory.bank.unflatten(-1, (model.parts, -1)).norm(dim=-1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, model.radius), rtol=1e-13, atol=0)


def test_own_weights_are_told_when_a_segment_opens(memformer: Variant) -> None:
    model: Any = memformer.model()
    tokens, after = text(model, 5, 5)
    memory = model(tokens, model.init_memory(LANES)).memory
    told = model(after, memory, extras=True).extras.own_weight
    assert told.shape == (LANES, 7, model.writer_heads)
    assert ((told > 0) & (told < 1)).all()
    opened = model(after[:, :2], memory, close=False).memory
    assert model(after[:, 2:], opened, extras=True).extras.own_weight is None
    assert model(after, memory).extras.own_weight is None


def test_without_forgetting_the_biases_are_beginnings_alone() -> None:
    model: Any = MEMFORMERS["memformer-keeping"].model()
    tokens, after = text(model, 5, 5)
    memory = model(tokens, model.init_memory(LANES)).memory.detach()
    model(after, memory).memory.bank.sum().backward()
    assert model.biases.grad is None or not model.biases.grad.any()


@pytest.mark.parametrize("name", BOTH)
def test_the_memory_alone_costs_no_decoder(name: str) -> None:
    model: Any = MEMFORMERS[name].model(torch.float32, num_layers=6)
    (tokens,) = text(model, 11)
    memory, costs = histories(model), []
    for call in (model.advance, model, lambda tokens, memory: model.flush(memory)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call(tokens, memory)
        costs.append(counter.get_total_flops())
    assert costs[0] == costs[2] < 0.4 * costs[1]


def test_the_memory_has_the_bytes_it_should() -> None:
    """4 P D for the slots and 9 T for the previous segment, as specified, and one for each slot's own state."""
    model = MEMFORMERS["memformer"].model(torch.float32)
    assert histories(model).nbytes == LANES * (4 * 7 * 10 + 9 * 11 + 7)


def test_slots_stay_exact_in_a_memory_of_lower_precision() -> None:
    """A weight of 0.999 for itself is 1 or 0.996 in bfloat16, and a slot lives for many segments."""
    model = MEMFORMERS["memformer"].model()
    (tokens,) = text(model, 3)
    for memory in (histories(model), model(tokens, histories(model), close=False).memory):
        lower = memory.to(dtype=torch.bfloat16)
        assert lower.bank.dtype == torch.float32 and memory.to(dtype=torch.float64).bank.dtype == torch.float64
        if memory.segment is not None:
            assert lower.segment.bank.dtype == torch.float32
            assert lower.segment.keys[0].dtype == torch.bfloat16
    assert build(MEMFORMERS["memformer"].config, seed=0).to(torch.bfloat16).init_memory(1).bank.dtype == torch.float32


# What comes next, without a last token


@pytest.mark.parametrize("name", [name for name in MEMFORMERS if "bos" in name])
def test_peeking_gives_the_output_of_the_next_token_before_it_is_known(name: str) -> None:
    model: Any = MEMFORMERS[name].model()
    memory = histories(model)
    for tokens in text(model, 11, 3, 11):
        hidden = model(tokens, memory).hidden
        for place in range(tokens.shape[1]):
            assert gap(model.peek(memory), hidden[:, place, None]) < 1e-12
            last = place == tokens.shape[1] - 1
            memory = model(tokens[:, place, None], memory, close=last and tokens.shape[1] < 11).memory
        if memory.opened:
            assert gap(model.peek(memory), model.peek(model.close(memory))) == 0
            memory = model.close(memory)


def test_a_model_that_scores_the_next_token_is_not_peeked() -> None:
    model = MEMFORMERS["memformer"].model()
    with pytest.raises(TypeError, match="last output"):
        model.peek(model.init_memory(1))


@pytest.mark.parametrize("segment", [28, 56])
def test_every_pixel_of_an_image_is_scored_and_drawn_from_what_came_before(segment: int) -> None:
    """784 tokens as one document, the first of them predicted from the opening alone."""
    config = MemformerConfig(
        **SIZES | {"vocab_size": 256, "segment_length": segment, "num_layers": 2},
        num_slots=3,
        writer_heads=2,
        alignment="bos",
    )
    model: Any = build(config, seed=1).double().eval()
    image = torch.randint(256, (1, 784), generator=torch.Generator().manual_seed(0))
    memory, scores = model.init_memory(1), []
    with torch.no_grad():
        for number, tokens in enumerate(image.split(segment, dim=1)):
            hidden, memory, _ = model(tokens, memory, torch.tensor([number == 0]))
            scores.append(model.head.loss(hidden, tokens))
        nats = torch.cat(scores, dim=1)
        assert nats.shape == (1, 784) and (nats > 0).all()
        drawn = model.init_memory(1)
        for place in range(2 * segment + 3):
            token = image[:, place, None]
            assert gap(model.head.loss(model.peek(drawn), token), nats[:, place, None]) < 1e-12
            drawn = model(token, drawn, close=(place + 1) % segment == 0).memory


# Gradients


@pytest.mark.parametrize("name", BOTH)
def test_a_horizon_of_one_segment_teaches_the_writer_nothing(name: str) -> None:
    model: Any = MEMFORMERS[name].model().train()
    tokens, after, last = text(model)
    memory = histories(model)
    for horizon in (1, 2):
        model.zero_grad()
        memory = model(tokens, memory).memory.detach()
        losses = []
        for segment in (after, last)[:horizon]:
            hidden, memory, _ = model(segment, memory)
            losses.append(model.head.loss(hidden, segment).sum())
        torch.stack(losses).sum().backward()
        writers = [p.grad for named, p in model.named_parameters() if named.startswith("write_")]
        assert all((grad is None) == (horizon == 1) for grad in writers)
        assert model.encoder[0].attention.queries.weight.grad.any()


# Beginnings


@pytest.mark.parametrize("name", list(MEMFORMERS))
def test_biases_begin_at_a_tenth_of_the_radius(name: str) -> None:
    model: Any = build(MEMFORMERS[name].config, seed=2)
    lengths = model.biases.unflatten(-1, (model.parts, -1)).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.1 * model.radius))
    home = initial_slots(model.biases, model.radius, model.parts)
    torch.testing.assert_close(biased_normalization(home[None], model.biases, model.radius, model.parts)[0], home)


@pytest.mark.parametrize(
    ("layers", "given", "encoders"), [(2, None, 1), (3, None, 1), (8, None, 2), (12, None, 3), (6, 2, 2)]
)
def test_a_quarter_of_the_layers_encodes_unless_told_otherwise(layers: int, given: int | None, encoders: int) -> None:
    config = MemformerConfig(**SIZES | {"num_layers": layers}, num_slots=3, writer_heads=2, encoder_layers=given)
    model: Any = build(config, seed=0)
    assert (len(model.encoder), len(model.decoder)) == (encoders, layers - encoders)


# What is refused


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("num_slots", {"num_slots": 0}),
        ("num_slots", {"num_slots": -1}),
        ("temperature", {"temperature": 0.0}),
        ("temperature", {"temperature": -0.5}),
        ("temperature", {"temperature": float("inf")}),
        ("temperature", {"temperature": float("nan")}),
        ("radius", {"radius": 0.0}),
        ("radius", {"radius": float("inf")}),
        ("radius_unit", {"radius_unit": "two"}),
        ("num_layers", {"num_layers": 1}),
        ("encoder_layers", {"encoder_layers": 3}),
        ("encoder_layers", {"encoder_layers": 4}),
        ("encoder_layers", {"encoder_layers": 0}),
        ("writer_heads", {"writer_heads": None}),
        ("writer_heads", {"writer_heads": 0}),
        ("writer_heads", {"writer_heads": 4}),
        ("alignment", {"alignment": "left"}),
        ("normalization", {"normalization": "row"}),
        ("memory_norm", {"memory_norm": "shared"}),
        ("model_width", {"model_width": 9}),
    ],
    ids=str,
)
def test_impossible_settings_are_refused_by_name(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"model\.{name}\b"):
        MemformerConfig(**SIZES | {"num_slots": 3, "writer_heads": 2} | settings)


def test_a_segment_beyond_the_learned_positions_is_refused(memformer: Variant) -> None:
    model = memformer.model()
    (tokens,) = text(model, 12)
    with pytest.raises(InputError, match=r"12 tokens.*positions for 11"):
        model(tokens, model.init_memory(LANES))
    opened = model(tokens[:, :11], model.init_memory(LANES), close=False).memory
    with pytest.raises(InputError, match="12 tokens"):
        model(tokens[:, :1], opened)
    with pytest.raises(InputError, match="64 tokens"):
        model.distances(segment_length=64)
    assert model.distances(segment_length=4) == model.distances()


def test_more_slots_than_were_learned_are_refused(memformer: Variant) -> None:
    model = memformer.model()
    with pytest.raises(InputError, match="0 to 7"):
        model.init_memory(LANES, 8)
    (tokens,) = text(model, 5)
    with pytest.raises(InputError, match="number of slots is 8"):
        model(tokens, histories(model).resize(8))


def test_a_memory_of_another_shape_is_refused() -> None:
    model = MEMFORMERS["memformer"].model()
    (tokens,) = text(model, 5)
    for changes, told in (({"model_width": 12}, "width is 12"), ({"segment_length": 13}, "segment length is 13")):
        other = MEMFORMERS["memformer"].model(**changes)
        with pytest.raises(InputError, match=told):
            model(tokens, other.init_memory(LANES))


def test_a_memory_resized_on_the_way_keeps_its_first_slots(memformer: Variant) -> None:
    """Slots are places, each with a bias of its own; those that are added begin anew."""
    model: Any = memformer.model()
    memory, (tokens,) = histories(model), text(model, 5)
    assert torch.equal(memory.resize(3).bank, memory.bank[:, :3])
    grown = memory.resize(3).resize(7)
    assert not grown.written[:, 3:].any() and torch.equal(grown.written[:, :3], memory.written[:, :3])
    home = initial_slots(model.biases, model.radius, model.parts)
    placed = torch.where(grown.written[..., None], grown.bank, home)
    filled = dataclasses.replace(grown, bank=placed, written=torch.ones_like(grown.written))
    assert gap(model(tokens, grown).hidden, model(tokens, filled).hidden) < 1e-12
    with pytest.raises(InputError, match="0 or more"):
        memory.resize(-1)


def test_a_setting_without_effect_is_told() -> None:
    plain = MEMFORMERS["memformer"].config
    assert not plain.without_effect()
    assert "memory_gradient" in dataclasses.replace(plain, memory_gradient=True).without_effect()[0]


def recalled(forgetful: bool) -> float:
    """Nats at the end of teaching to tell the first token two segments later; chance is log 4."""
    config = SIZES | {"vocab_size": 5, "segment_length": 2, "num_layers": 2, "model_width": 16, "num_heads": 2}
    model: Any = build(MemformerConfig(**config | {"head_width": 8, "dropout": 0.0, "num_slots": 3}), seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(80):
        segments = torch.randint(4, (3, 32, 2), generator=generator)
        # The last token is the question.
        wanted, segments[2, :, 1] = segments[0, :, 0].clone(), 4
        memory, hidden = model.init_memory(32), torch.empty(0)
        for number, tokens in enumerate(segments):
            with torch.set_grad_enabled(number > 0):
                if forgetful:
                    memory = dataclasses.replace(memory, written=torch.zeros_like(memory.written))
                hidden, memory, _ = model(tokens, memory)
        loss = model.head.loss(hidden[:, 1:], wanted[:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


def test_it_learns_to_tell_what_stood_two_segments_back_and_only_through_its_slots() -> None:
    assert recalled(forgetful=False) < 1.15
    assert recalled(forgetful=True) > 1.35
