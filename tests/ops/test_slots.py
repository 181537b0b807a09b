"""Memory slots: reference values cell by cell, the fast operations against the loops, and what forgetting does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from remanence.ops.attention import relative_attention
from remanence.ops.slots import biased_normalization, initial_slots, naive, write_slots

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
CELLS = ("base", "masked-root-d", "per-head")
QUICK = settings(max_examples=20, deadline=None, derandomize=True, database=None)
TOLERANCES = {torch.float64: (1e-12, 1e-11), torch.float32: (2e-5, 2e-4), torch.bfloat16: (8e-2, 2e-1)}
NORMS = (0.1, 0.5, 1.15, 3.2)


class Cell:
    """Reader, writer and normalisation over several segments, as in the reference files."""

    def __init__(self, name: str, *, loops: bool) -> None:
        stored = np.load(GOLDEN / f"memformer_cell_{name}.npz", allow_pickle=False)
        self.config = json.loads(str(stored["config"]))
        self.stored = {key: torch.from_numpy(np.array(stored[key])) for key in stored.files if key != "config"}
        self.weights = {
            key.removeprefix("weights/"): value.clone().requires_grad_()
            for key, value in self.stored.items()
            if key.startswith("weights/")
        }
        self.x = self.stored["x"].clone().requires_grad_()
        self.loops = loops
        self.parts = self.config["heads"] if self.config["norm"] == "head" else 1
        self.values: dict[str, list[Tensor]] = {}

    def split(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.config["heads"], -1)).transpose(1, 2)

    def keep(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def initial(self) -> Tensor:
        return initial_slots(self.weights["v"], self.config["radius"], self.parts)

    def run(self, first: Tensor | None = None) -> Tensor:
        """The loss; `first` is what the slots hold before the first segment, M_0 unless given."""
        stored, lanes = self.stored, self.config["B"]
        fresh = self.initial().expand(lanes, -1, -1)
        slots = fresh if first is None else first
        loss = torch.zeros((), dtype=torch.float64)
        self.keep(M=slots)
        for t in range(self.config["T"]):
            starts = stored["starts"][t] & (t > 0)
            used = torch.where(starts[:, None, None], fresh, slots)
            valid = stored["mask"][t]
            out, seen = self.read(self.x[t], used)
            out, seen = out * valid[..., None], seen * valid[:, None, :, None]
            tokens = (self.x[t] + out) * valid[..., None]
            written, attention = self.write(used, tokens, valid)
            slots = self.forget(written)
            biased = written + self.weights["v"]
            self.keep(M=slots, M_used=used, read_attn=seen, read_out=out, X=tokens)
            self.keep(write_attn=attention, m_prime=written, m_biased=biased)
            loss = loss + (stored["coef_X"][t] * tokens).sum()
        return loss + (stored["coef_M"] * slots).sum()

    def read(self, x: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        names = ("reader.W_Q", "reader.W_K", "reader.W_V", "reader.W_O")
        query, key, value, output = (self.weights[name] for name in names)
        if self.config["memory_norm"] == "own":
            gain, bias = self.weights["reader.ln.weight"], self.weights["reader.ln.bias"]
            slots = F.layer_norm(slots, slots.shape[-1:], gain, bias, self.config["ln_eps"])
        if self.loops:
            lanes = [
                naive.read_slots(*pair, query, key, value, output, self.config["heads"])
                for pair in zip(x, slots, strict=True)
            ]
            return torch.stack([lane[0] for lane in lanes]), torch.stack([lane[1] for lane in lanes])
        heads = [self.split(rows) for rows in (x @ query.T, slots @ key.T, slots @ value.T)]
        read = relative_attention(*heads, None, with_weights=True)
        assert read.weights is not None
        return read.context.transpose(1, 2).flatten(2) @ output.T, read.weights

    def write(self, slots: Tensor, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = (self.weights[f"writer.W_{name}"] for name in "QKV")
        heads, temperature = self.config["heads"], self.config["tau"]
        if self.loops:
            lanes = [
                naive.write_slots(*lane, query, key, value, heads, temperature)
                for lane in zip(slots, x, valid, strict=True)
            ]
            return torch.stack([lane[0] for lane in lanes]), torch.stack([lane[1] for lane in lanes])
        rows = (slots @ query.T, slots @ key.T, x @ key.T, x @ value.T)
        written = write_slots(slots, *map(self.split, rows), valid, temperature)
        assert torch.equal(written.own, written.weights[..., 0].transpose(1, 2))
        return written.slots, written.weights

    def forget(self, written: Tensor) -> Tensor:
        bias, radius = self.weights["v"], self.config["radius"]
        if not self.loops:
            return biased_normalization(written, bias, radius, self.parts)
        return torch.stack([naive.biased_normalization(lane, bias, radius, self.parts) for lane in written])


@pytest.mark.parametrize("loops", [True, False], ids=["loops", "fast"])
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_has_the_reference_values_and_gradients(name: str, loops: bool) -> None:
    cell = Cell(name, loops=loops)
    loss = cell.run()
    assert abs(loss.item() - cell.stored["loss"].item()) < 1e-12 * max(1.0, abs(loss.item()))
    for key, values in cell.values.items():
        torch.testing.assert_close(torch.stack(values), cell.stored[key], atol=1e-12, rtol=1e-12, msg=key)
    loss.backward()
    torch.testing.assert_close(cell.x.grad, cell.stored["grad_x"], atol=1e-11, rtol=1e-11)
    for key, weight in cell.weights.items():
        torch.testing.assert_close(weight.grad, cell.stored[f"grads/{key}"], atol=1e-11, rtol=1e-11, msg=key)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_passes_the_reference_gradient_to_the_memory_it_was_given(name: str) -> None:
    cell = Cell(name, loops=False)
    first = cell.initial().detach().expand(cell.config["B"], -1, -1).clone().requires_grad_()
    cell.run(first).backward()
    torch.testing.assert_close(first.grad, cell.stored["grad_M0"], atol=1e-11, rtol=1e-11)


# The operations against their loops


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@QUICK
@given(
    lanes=st.sampled_from([1, 3]),
    heads=st.sampled_from([1, 3]),
    slots=st.sampled_from([1, 4, 7]),
    tokens=st.sampled_from([1, 3, 5]),
    width=st.sampled_from([1, 3, 5]),
    part=st.sampled_from([1, 3]),
    temperature=st.sampled_from([0.25, 1.0]),
    seed=st.integers(0, 99),
)
def test_writing_is_what_the_loops_write(
    dtype: torch.dtype,
    lanes: int,
    heads: int,
    slots: int,
    tokens: int,
    width: int,
    part: int,
    temperature: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    inner, outer = heads * width, heads * part
    shapes = {"slots": (lanes, slots, outer), "x": (lanes, tokens, outer)}
    shapes |= {"query": (inner, outer), "key": (inner, outer), "value": (outer, outer)}
    ours: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5
        ours[name] = values.to(exact if name == "slots" else dtype).requires_grad_()
    theirs = {name: value.detach().clone().to(exact).requires_grad_() for name, value in ours.items()}
    valid = torch.rand(lanes, tokens, generator=generator) < 0.6

    def split(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (heads, -1)).transpose(1, 2)

    held = ours["slots"].to(dtype)
    rows = (held @ ours["query"].T, held @ ours["key"].T, ours["x"] @ ours["key"].T, ours["x"] @ ours["value"].T)
    written = write_slots(ours["slots"], *map(split, rows), valid, temperature)
    rest = (theirs["query"], theirs["key"], theirs["value"], heads, temperature)
    lane = [naive.write_slots(*one, *rest) for one in zip(theirs["slots"], theirs["x"], valid, strict=True)]
    slots_loop, weights_loop = (torch.stack(each) for each in zip(*lane, strict=True))
    forward, backward = TOLERANCES[dtype]
    assert written.slots.dtype == written.weights.dtype == exact
    torch.testing.assert_close(written.slots, slots_loop, atol=forward, rtol=forward)
    torch.testing.assert_close(written.weights, weights_loop, atol=forward, rtol=forward)
    pull = torch.randn(slots_loop.shape, generator=generator, dtype=exact)
    (written.slots * pull).sum().backward()
    (slots_loop * pull).sum().backward()
    for name, leaf in ours.items():
        grad, wanted = leaf.grad, theirs[name].grad
        wanted = torch.zeros_like(theirs[name]) if wanted is None else wanted
        grad = torch.zeros_like(leaf) if grad is None else grad
        torch.testing.assert_close(grad.to(exact), wanted, atol=backward, rtol=backward, msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@QUICK
@given(
    parts=st.sampled_from([1, 3]),
    slots=st.sampled_from([1, 5]),
    width=st.sampled_from([1, 3]),
    radius=st.sampled_from([1.0, 3.5]),
    seed=st.integers(0, 99),
)
def test_normalising_is_what_the_loops_do(
    dtype: torch.dtype, parts: int, slots: int, width: int, radius: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    written = torch.randn(2, slots, parts * width, generator=generator, dtype=dtype)
    bias = torch.randn(slots, parts * width, generator=generator, dtype=dtype)
    pull = torch.randn(written.shape, generator=generator, dtype=dtype)
    results = []
    for loops in (False, True):
        leaves = [tensor.clone().requires_grad_() for tensor in (written, bias)]
        if loops:
            normal = torch.stack([naive.biased_normalization(lane, leaves[1], radius, parts) for lane in leaves[0]])
        else:
            normal = biased_normalization(*leaves, radius, parts)
        (normal * pull).sum().backward()
        results.append((normal.detach(), *(leaf.grad for leaf in leaves)))
    forward, backward = TOLERANCES[dtype]
    torch.testing.assert_close(results[0][0], results[1][0], atol=forward, rtol=forward)
    torch.testing.assert_close(results[0][1:], results[1][1:], atol=backward, rtol=backward)


# By hand


def write_plain(slots: Tensor, x: Tensor, heads: int, temperature: float, valid: Tensor | None = None) -> Tensor:
    """One lane written with identity weights."""
    rows = [rows[None].unflatten(-1, (heads, -1)).transpose(1, 2) for rows in (slots, slots, x, x)]
    valid = torch.ones(1, len(x), dtype=torch.bool) if valid is None else valid[None]
    return write_slots(slots[None], *rows, valid, temperature).slots[0]


@pytest.mark.parametrize(
    ("token", "heads", "wanted"),
    [
        ([1.0, 1.0], 1, [[0.9486833, 0.3162278], [0.4472136, 0.8944272]]),
        ([2.0, 0.0], 1, [[1.0, 0.0], [0.4372817, 0.8993246]]),
        ([2.0, 0.0], 2, [[1.0, 0.0], [0.7504168, 0.6609649]]),
    ],
)
def test_two_slots_and_one_token_by_hand(token: list[float], heads: int, wanted: list[list[float]]) -> None:
    written = write_plain(torch.eye(2), torch.tensor([token]), heads, 0.5)
    normal = biased_normalization(written[None], torch.tensor([[0.5, 0.0], [0.0, 0.0]]), 1.0)[0]
    torch.testing.assert_close(normal, torch.tensor(wanted), atol=1e-7, rtol=0)


# Properties of the writer


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_no_slot_sees_another() -> None:
    slots, x = drawn(4, 6), drawn(5, 6, seed=1)
    jacobian: Any = torch.autograd.functional.jacobian(lambda held: write_plain(held, x, 3, 0.25), slots)
    for one in range(4):
        for other in range(4):
            assert (jacobian[one, :, other] == 0).all() == (one != other)


def test_a_slot_that_keeps_itself_whole_stays_bit_for_bit() -> None:
    slots, x = drawn(4, 6) * 100, drawn(5, 6, seed=1) * 1e-3
    assert torch.equal(write_plain(slots, x, 3, 0.01), slots)


def test_slots_that_are_shown_no_token_stay() -> None:
    slots, x = drawn(4, 6), drawn(5, 6, seed=1)
    assert torch.equal(write_plain(slots, x, 3, 0.25, torch.zeros(5, dtype=torch.bool)), slots)


def test_the_order_of_slots_and_of_tokens_does_not_matter_and_padding_does_not() -> None:
    slots, x, order = drawn(4, 6), drawn(5, 6, seed=1), torch.tensor([2, 0, 3, 1])
    plain = write_plain(slots, x, 3, 0.25)
    torch.testing.assert_close(write_plain(slots[order], x, 3, 0.25), plain[order], atol=1e-14, rtol=0)
    torch.testing.assert_close(write_plain(slots, x.flip(0), 3, 0.25), plain, atol=1e-14, rtol=0)
    padded = torch.cat([x, drawn(2, 6, seed=2)])
    valid = torch.arange(7) < 5
    torch.testing.assert_close(write_plain(slots, padded, 3, 0.25, valid), plain, atol=1e-14, rtol=0)


# What normalisation with a bias does when nothing is written


def angle(one: Tensor, other: Tensor) -> float:
    """In radians, exact for small ones too."""
    one, other = one / one.norm(), other / other.norm()
    return 2 * math.atan2((one - other).norm().item(), (one + other).norm().item())


def fade(slot: Tensor, bias: Tensor, radius: float = 1.0, parts: int = 1) -> Tensor:
    return biased_normalization(slot[None, None], bias[None], radius, parts)[0, 0]


def test_a_bias_as_long_as_the_slot_halves_the_angle() -> None:
    slot, bias = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    seen = []
    for _ in range(3):
        slot = fade(slot, bias)
        seen.append(math.degrees(angle(slot, bias)))
    assert seen == pytest.approx([45, 22.5, 11.25], abs=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("radius", "parts"), [(1.0, 1), (512**0.5, 1), (1.0, 8)])
def test_near_the_bias_what_differs_shrinks_by_one_over_one_plus_nu(norm: float, radius: float, parts: int) -> None:
    width = 16
    bias = torch.full((width,), norm / width**0.5, dtype=torch.float64)
    home = initial_slots(bias[None], radius, parts)[0]
    # A little off within one piece, across its part of the bias.
    off = torch.zeros(width, dtype=torch.float64)
    off[0], off[1] = 1, -1
    piece = width // parts
    length = home[:piece].norm().item()
    slot = home + off / off.norm() * length * math.tan(1e-3)
    slot[:piece] *= length / slot[:piece].norm()
    before = angle(slot[:piece], bias[:piece])
    after = angle(fade(slot, bias, radius, parts)[:piece], bias[:piece])
    nu = bias[:piece].norm().item() / length
    assert after / before == pytest.approx(1 / (1 + nu), rel=1e-5)


@pytest.mark.parametrize("theta", [0.3, 1.2, 2.5, 3.0])
@pytest.mark.parametrize("norm", NORMS)
def test_the_angle_to_the_bias_follows_its_formula(theta: float, norm: float) -> None:
    slot = torch.tensor([math.cos(theta), math.sin(theta)], dtype=torch.float64)
    bias = torch.tensor([norm, 0.0], dtype=torch.float64)
    wanted = math.atan2(math.sin(theta), math.cos(theta) + norm)
    assert angle(fade(slot, bias), bias) == pytest.approx(wanted, abs=1e-12)
    gain = torch.autograd.functional.jacobian(lambda held: fade(held, bias), slot)
    across = torch.tensor([-math.sin(theta), math.cos(theta)], dtype=torch.float64)
    length = math.sqrt(1 + 2 * norm * math.cos(theta) + norm**2)
    # In the plane of slot and bias; orthogonally to both the gain is 1 / length.
    after = fade(slot, bias)
    expected = (torch.eye(2, dtype=torch.float64) - torch.outer(after, after)) / length
    torch.testing.assert_close(gain, expected, atol=1e-12, rtol=0)
    assert (gain @ across).norm() <= 1 / length + 1e-12


def test_the_beginning_is_where_forgetting_ends() -> None:
    bias = drawn(4, 6)
    for radius, parts in ((1.0, 1), (2.5, 1), (1.0, 3)):
        home = initial_slots(bias, radius, parts)
        torch.testing.assert_close(biased_normalization(home[None], bias, radius, parts)[0], home, atol=1e-14, rtol=0)


@pytest.mark.parametrize("parts", [1, 3])
def test_every_step_ends_at_the_radius(parts: int) -> None:
    slots = biased_normalization(drawn(2, 4, 6) * 10, drawn(4, 6, seed=1), 2.5, parts)
    lengths = slots.unflatten(-1, (parts, -1)).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 2.5), atol=1e-14, rtol=0)


def test_content_opposite_to_the_bias_gives_no_nan() -> None:
    bias = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    slot = torch.tensor([[[-1.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    normal = biased_normalization(slot, bias, 1.0)
    normal.sum().backward()
    assert torch.isfinite(normal).all()
    for leaf in (slot, bias):
        assert leaf.grad is not None and torch.isfinite(leaf.grad).all()


def test_without_a_bias_only_the_length_changes() -> None:
    slots = drawn(2, 4, 6)
    kept = biased_normalization(slots, None, 1.0)
    torch.testing.assert_close(kept, slots / slots.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(biased_normalization(kept, None, 1.0), kept, atol=1e-15, rtol=0)
