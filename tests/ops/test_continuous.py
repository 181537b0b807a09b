"""The continuous memory against its naive truth, and against the values of the published code."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from remanence.nn.continuous import ContinuousMemory
from remanence.ops.continuous import (
    Basis,
    Fit,
    bin_masses,
    default_widths,
    densest,
    divergence,
    expected_basis,
    fold,
    gaussians,
    naive,
    operator,
    radius,
    rewrite,
    safe,
    uniforms,
)

QUICK = settings(max_examples=20, deadline=None, derandomize=True, database=None)
GOLDEN = Path(__file__).resolve().parent.parent / "golden"
SMALL = Fit(Basis(12, default_widths(12)), 0.5, 0.5, 9)
LANGUAGE = Fit(Basis(512, (0.005, 0.01)), 0.5, 0.5, 512)
SORTING = Fit(Basis(512, (0.01, 0.05)), 1.0, 0.75, 512)


def off(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference in units of the largest entry."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return ((ours.double() - theirs).abs().max() / theirs.abs().max()).item()


# Golden values


class Golden:
    """One golden file, and the module with its weights."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        self.arrays = dict(np.load(GOLDEN / f"infinite_former_{name}.npz", allow_pickle=False))
        self.config = json.loads(str(self.arrays["config"]))
        self.dtype = dtype
        config = self.config
        self.fit = Fit(
            Basis(config["n_basis"], tuple(config["widths"])), config["ridge"], config["tau"], config["n_resample"]
        )
        width, heads = config["d_model"], config["n_head"]
        floor = config["variance_floor"]
        self.module = ContinuousMemory(width, heads, width // heads, self.fit, gate=True, variance_floor=floor)
        self.module.to(dtype)
        with torch.no_grad():
            for theirs, ours in self.names():
                ours.copy_(self[f"weights/{theirs}"])

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.from_numpy(self.arrays[name])
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def names(self, gradient: bool = False) -> Iterator[tuple[str, Tensor]]:
        module = self.module
        for name, linear in (("proj_key", module.key), ("proj_value", module.value), ("attn_out", module.output)):
            yield f"{name}.weight", _of(linear.weight, gradient)
        yield "mu.weight", _of(module.aims, gradient)[:1]
        yield "sigma.weight", _of(module.aims, gradient)[1:]
        assert module.gate is not None and module.gate.bias is not None
        yield "mask_net.weight", _of(module.gate.weight, gradient)
        yield "mask_net.bias", _of(module.gate.bias, gradient)


def _of(parameter: Tensor, gradient: bool) -> Tensor:
    if not gradient:
        return parameter
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def steps(golden: Golden, case: str) -> dict[str, list[Tensor]]:
    """Everything that the golden file tells of each step of a case, computed here."""
    module, config, told = golden.module, golden.config, {}
    short = case == "short_first"
    lanes = slice(0, 1) if short else slice(None)
    past = torch.zeros(golden["blocks"][0, lanes].shape[0], config["n_basis"], config["d_model"], dtype=golden.dtype)
    probabilities = None
    for step in range(3 if short else config["n_steps"]):
        block = golden["blocks"][step, lanes]
        count = config["short_first_len"] if short and step == 0 else block.shape[1]
        block = block * (torch.arange(block.shape[1]) < count)[:, None]
        queries = golden["queries"][step, lanes].clone().requires_grad_()
        counts, known = torch.full((len(block),), count), torch.full((len(block),), step > 0)
        places = golden["sticky/positions"][step] if case == "sticky" and step else None
        module.zero_grad()
        past = module.write(past.detach(), places, block, counts, known)
        recall = module.recall(past)
        reading = module.read(queries, recall)
        parameters = module.fit.basis.parameters(golden.dtype)
        kl = divergence(reading.mean, reading.variance, config["sigma_0"])
        loss = (reading.update * golden["cotangents"][step, lanes]).sum() + config["kl_weight"] * kl.mean()
        loss.backward()
        expected = expected_basis(reading.mean, reading.variance, *parameters)
        values = {
            "coefficients": past,
            "mean": reading.mean,
            "variance": reading.variance,
            "expected_basis": expected,
            "heads": (expected @ recall.values).transpose(1, 2).flatten(2),
            "outputs": reading.update,
            "kl": kl,
            "loss": loss,
            "grads/queries": queries.grad,
        }
        if not short:
            gate = module.gated(block) / block
            values["gate"] = torch.where(block == 0, golden["uniform/gate"][step], gate)
        if case == "sticky":
            values["bin_probabilities"] = probabilities if step else golden["sticky/bin_probabilities"][0]
            masses = bin_masses(reading.mean.detach(), reading.variance.detach(), config["sticky_bins"])
            probabilities = masses / masses.sum(1, keepdim=True)
        values |= {f"grads/{name}": gradient.clone() for name, gradient in golden.names(gradient=True)}
        for name, value in values.items():
            told.setdefault(name, []).append(value.detach())
    return told


def compare(golden: Golden, case: str) -> tuple[float, int]:
    """The worst relative difference of all arrays of a case, and how many there were."""
    told, worst, compared = steps(golden, case), 0.0, 0
    for name, array in golden.arrays.items():
        key = name.removeprefix(f"{case}/")
        if key == name or key in ("bins", "positions", "operator_first"):
            continue
        theirs = torch.from_numpy(array)
        ours = torch.stack(told[key]).reshape(theirs.shape)
        if key == "bin_probabilities":
            ours, theirs = ours[1:], theirs[1:]
        worst = max(worst, off(ours, theirs))
        compared += 1
    return worst, compared


@pytest.mark.parametrize(
    ("name", "case", "arrays"),
    [
        ("lm", "uniform", 17),
        ("lm", "sticky", 17),
        ("lm", "short_first", 15),
        ("sort", "uniform", 17),
        ("sort", "sticky", 17),
    ],
)
def test_all_steps_equal_the_published_code(name: str, case: str, arrays: int) -> None:
    assert compare(Golden(name), case) == (pytest.approx(0, abs=1e-9), arrays)
    assert compare(Golden(name, torch.float32), case)[0] < 3e-4


@pytest.mark.parametrize("name", ["lm", "sort"])
def test_basis_and_operators_equal_the_published_code(name: str) -> None:
    golden = Golden(name)
    centres, widths = golden.fit.basis.parameters()
    assert off(centres, golden["basis/centres"]) < 1e-15 and off(widths, golden["basis/widths"]) < 1e-15
    length = golden.config["block_len"]
    assert off(operator(golden.fit, length, False), golden["operator_first"]) < 1e-9
    assert off(operator(golden.fit, length, True), golden["operator_refit"]) < 1e-9
    if name == "lm":
        short = operator(golden.fit, golden.config["short_first_len"], False)
        assert off(short, golden["short_first/operator_first"]) < 1e-9


@pytest.mark.parametrize("name", ["lm", "sort"])
def test_the_published_sizes_need_float64(name: str) -> None:
    golden = Golden(name)
    large = golden.config["large"]
    fit = Fit(Basis(large["n_basis"], tuple(large["widths"])), large["ridge"], large["tau"], large["n_resample"])
    for which, later in (("first", False), ("refit", True)):
        probe, theirs = golden[f"large/probe_{which}"], golden[f"large/fit_{which}"]
        matrix = operator(fit, large["block_len"], later)
        assert off(matrix @ probe, theirs) < 1e-9
        assert off(matrix.float() @ probe.float(), theirs) < 3e-4
    assert off(in_float32(fit, large["block_len"]) @ probe.float(), theirs) > 3e-2


def in_float32(fit: Fit, length: int) -> Tensor:
    """The later operator as it would be without float64."""
    from remanence.ops.continuous.operator import later_places

    places, padding = (part.float() for part in later_places(length, fit.samples, fit.contraction))
    parameters = fit.basis.parameters(torch.float32)
    design, padded = gaussians(places, *parameters), gaussians(padding, *parameters)
    gram = design.T @ design + padded.T @ padded + fit.ridge * torch.eye(fit.basis.number)
    return torch.cholesky_solve(design.T, torch.linalg.cholesky(gram))


def test_the_divergence_with_a_prior_mean_equals_the_published_code() -> None:
    golden = Golden("lm")
    told = steps(golden, "uniform")
    prior = golden.config["parity_kl_mean"]
    pairs = zip(told["mean"], told["variance"], strict=True)
    kl = torch.stack([divergence(*pair, golden.config["sigma_0"], prior) for pair in pairs])
    assert off(kl, golden["parity/kl_mean/kl"]) < 1e-9


# Writing


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
def test_operators_are_the_naive_ones(length: int, later: bool) -> None:
    for widths in (default_widths(12), (0.2, 0.3, 0.4)):
        fit = Fit(Basis(12, widths), 0.7, 0.6, 7)
        assert torch.allclose(operator(fit, length, later), naive.operator(fit, length, later), rtol=0, atol=1e-10)


def test_an_operator_is_made_once_for_a_length() -> None:
    assert operator(SMALL, 5, True) is operator(SMALL, 5, True)
    assert operator(SMALL, 5, True).shape == (12, 14) and operator(SMALL, 5, False).shape == (12, 5)


@pytest.mark.parametrize(("fit", "length"), [(LANGUAGE, 512), (SORTING, 1024)], ids=["lm", "sort"])
def test_an_operator_solves_the_normal_equations(fit: Fit, length: int) -> None:
    from remanence.ops.continuous.operator import first_places, later_places

    for places, padding in (first_places(length), later_places(length, fit.samples, fit.contraction)):
        later = len(places) > length
        design = gaussians(places, *fit.basis.parameters())
        padded = gaussians(padding, *fit.basis.parameters())
        gram = design.T @ design + padded.T @ padded + fit.ridge * torch.eye(fit.basis.number, dtype=torch.float64)
        assert off(gram @ operator(fit, length, later), design.T) < 1e-8


def smooth(length: int, width: int, correlation: float, generator: torch.Generator) -> Tensor:
    """Noise with a Gaussian correlation of so many tokens, (length, width), of unit variance."""
    reach = int(4 * correlation)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * (correlation / 2) ** 2))
    noise = torch.randn(width, 1, length + 2 * reach, generator=generator, dtype=torch.float64)
    return torch.nn.functional.conv1d(noise, kernel[None, None])[:, 0].T / kernel.norm()


def correlation(one: Tensor, other: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()


def test_a_slow_signal_is_read_again_almost_as_it_was_written() -> None:
    signal = smooth(512, 5, 64, torch.Generator().manual_seed(0))
    coefficients = naive_free_write(LANGUAGE, signal)
    places = (torch.arange(512, dtype=torch.float64) + 0.5) / 512
    assert correlation(gaussians(places, *LANGUAGE.basis.parameters()) @ coefficients, signal) > 0.99


def naive_free_write(fit: Fit, block: Tensor, past: Tensor | None = None) -> Tensor:
    """One lane's block through `rewrite`."""
    known = past is not None
    before = torch.zeros(1, fit.basis.number, block.shape[1], dtype=block.dtype) if past is None else past[None]
    return rewrite(before, None, block[None], torch.tensor([len(block)]), torch.tensor([known]), fit)[0]


@QUICK
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    known=st.integers(0, 31),
    sticky=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_lane_is_written_as_if_it_were_alone(counts: list[int], known: int, sticky: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lanes = len(counts)
    past = torch.randn(lanes, 12, 3, generator=generator, dtype=torch.float64).requires_grad_()
    block = torch.randn(lanes, 6, 3, generator=generator, dtype=torch.float64).requires_grad_()
    places = torch.rand(lanes, 9, generator=generator, dtype=torch.float64).sort(dim=1).values if sticky else None
    has = torch.tensor([bool(known >> lane & 1) for lane in range(lanes)])
    weights = torch.randn(lanes, 12, 3, generator=generator, dtype=torch.float64)
    ours = rewrite(past, places, block, torch.tensor(counts), has, SMALL)
    gradients = torch.autograd.grad((ours * weights).sum(), (past, block))
    rows = []
    for lane, count in enumerate(counts):
        drawn = None if places is None else places[lane].tolist()
        before = past[lane] if has[lane] else None
        rows.append(naive.write(SMALL, before, block[lane, :count], drawn) if count else past[lane])
    theirs = torch.stack(rows)
    expected = torch.autograd.grad((theirs * weights).sum(), (past, block), materialize_grads=True)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)
    assert all(torch.allclose(*pair, rtol=0, atol=1e-9) for pair in zip(gradients, expected, strict=True))


def test_writing_is_linear_and_old_blocks_contract_by_one_map() -> None:
    """B_k = T^k R_first x_0 + sum_j T^(k-j) R_new x_j."""
    generator = torch.Generator().manual_seed(1)
    blocks = [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(7)]
    coefficients = None
    for block in blocks:
        coefficients = naive_free_write(SMALL, block, coefficients)
    assert coefficients is not None
    later = operator(SMALL, 5, True)
    places = torch.arange(1, 10, dtype=torch.float64) / 9
    kept = later[:, :9] @ gaussians(places, *SMALL.basis.parameters())
    total = operator(SMALL, 5, False) @ blocks[0]
    for block in blocks[1:]:
        total = kept @ total + later[:, 9:] @ block
    assert torch.allclose(coefficients, total, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "writes", "share"), [("lm", 8, 0.0036), ("sort", 20, 0.003)])
def test_no_block_is_ever_dropped(name: str, writes: int, share: float) -> None:
    """Adding 1 to every entry of block 0 is still seen after many writes, by as much as the specification says."""
    golden = Golden(name)
    length, generator = golden.config["block_len"], torch.Generator().manual_seed(0)
    blocks = [torch.randn(length, 4, generator=generator, dtype=torch.float64) for _ in range(writes + 1)]
    plain = moved = None
    for number, block in enumerate(blocks):
        plain = naive_free_write(golden.fit, block, plain)
        moved = naive_free_write(golden.fit, block + (number == 0), moved)
    assert plain is not None and moved is not None
    assert (moved - plain).abs().max() / plain.abs().max() == pytest.approx(share, rel=0.35)


def test_a_thousand_writes_stay_bounded() -> None:
    generator = torch.Generator().manual_seed(0)
    past, largest = None, 0.0
    for _ in range(1000):
        past = naive_free_write(SMALL, torch.randn(5, 3, generator=generator, dtype=torch.float64), past)
        largest = max(largest, past.abs().max().item())
    assert past is not None and past.shape == (12, 3) and largest < 10


# Stability and reach


@pytest.mark.parametrize(
    ("fit", "length", "expected"), [(LANGUAGE, 512, 0.27), (SORTING, 1024, 0.53)], ids=["lm", "sort"]
)
def test_the_published_sizes_are_stable(fit: Fit, length: int, expected: float) -> None:
    assert safe(fit, length)
    assert radius(fit, length) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("length", [1, 2, 5, 64, 300])
def test_shorter_blocks_are_stable_too(length: int) -> None:
    assert radius(LANGUAGE, length) < 0.35


def test_narrow_functions_between_few_observations_explode() -> None:
    narrow = Fit(Basis(128, (0.003, 0.006)), 1.0, 0.9, 64)
    assert not safe(narrow, 16)
    assert radius(narrow, 16) > 3


def test_a_constant_block_keeps_the_published_share_of_its_mass() -> None:
    """Fractions of the ideal tau^a: .99 after 4 blocks, .81 after 8, .33 after 10 (spec 3.9, LM sizes)."""
    ones = torch.ones(512, 1, dtype=torch.float64)
    coefficients = naive_free_write(LANGUAGE, ones)
    inside = torch.erf((1 - LANGUAGE.basis.parameters()[0]) / (LANGUAGE.basis.parameters()[1] * math.sqrt(2)))
    inside = (inside + torch.erf(LANGUAGE.basis.parameters()[0] / (LANGUAGE.basis.parameters()[1] * math.sqrt(2)))) / 2
    shares = {}
    for age in range(1, 17):
        coefficients = naive_free_write(LANGUAGE, 0 * ones, coefficients)
        shares[age] = (inside @ coefficients).item() / LANGUAGE.contraction**age
    assert [round(shares[age], 2) for age in (4, 8, 10, 12, 16)] == pytest.approx(
        [0.99, 0.81, 0.33, 0.10, 0.01], abs=0.03
    )


def test_a_million_vectors_are_written_in_constant_space_and_the_first_are_read_less_sharply() -> None:
    """16 blocks of 65,536 noisy vectors, each about something: the oldest subject is still told, less exactly."""
    fit = Fit(Basis(128, default_widths(128)), 0.5, 0.8, 128)
    length, width = 65_536, 16
    assert safe(fit, length)
    generator = torch.Generator().manual_seed(0)
    coefficients, subjects = None, torch.randn(16, width, generator=generator, dtype=torch.float64)
    for subject in subjects:
        noise = torch.randn(length, width, generator=generator)
        coefficients = naive_free_write(fit, subject + noise.double(), coefficients)
    assert coefficients is not None and coefficients.shape == (128, width)
    age = torch.arange(15, -1, -1, dtype=torch.float64)
    middles = fit.contraction**age * (1 - (1 - fit.contraction) / 2)
    read = gaussians(middles, *fit.basis.parameters()) @ coefficients
    agreement = torch.nn.functional.cosine_similarity(read, subjects, dim=1)
    assert agreement[-4:].min() > 0.99
    assert agreement[:4].mean() < agreement[-4:].mean()
    assert agreement[:4].mean() > 0.6


# Reading


@pytest.mark.parametrize(("mean", "variance"), [(0.5, 0.01), (0.03, 1e-4), (0.99, 0.3), (0.4, 4.0)])
def test_the_closed_form_is_the_integral(mean: float, variance: float) -> None:
    basis = Basis(8, (0.1, 0.3))
    ours = expected_basis(
        torch.full((1, 1, 1), mean, dtype=torch.float64),
        torch.full((1, 1, 1), variance, dtype=torch.float64),
        *basis.parameters(),
    )
    assert torch.allclose(ours[0, 0, 0], naive.expected(basis, mean, variance), rtol=0, atol=1e-12)


def test_the_gradient_of_the_closed_form_is_the_numerical_one() -> None:
    centres, widths = Basis(6, (0.2, 0.4)).parameters()
    mean = torch.rand(2, 1, 3, dtype=torch.float64).requires_grad_()
    variance = (torch.rand(2, 1, 3, dtype=torch.float64) + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: expected_basis(m, v, centres, widths), (mean, variance))


def test_a_sharp_look_reads_the_function_and_an_endless_one_nothing() -> None:
    basis = Basis(12, default_widths(12))
    coefficients = torch.randn(12, 3, dtype=torch.float64)
    mean = torch.rand(1, 1, 4, dtype=torch.float64)
    sharp = expected_basis(mean, torch.full_like(mean, 1e-14), *basis.parameters())
    assert torch.allclose(sharp @ coefficients, gaussians(mean, *basis.parameters()) @ coefficients, atol=1e-9)
    assert expected_basis(mean, torch.full_like(mean, 1e12), *basis.parameters()).max() < 1e-6


@pytest.mark.parametrize("wide", [False, True])
def test_two_vectors_a_head_give_what_all_scores_give(wide: bool) -> None:
    heads, width, model = 3, 5 if wide else 2, 6
    module = ContinuousMemory(model, heads, width, SMALL, gate=False, variance_floor=1e-4).double()
    torch.nn.init.normal_(module.aims)
    module.requires_grad_(False)
    coefficients = torch.randn(2, 12, model, dtype=torch.float64)
    queries = torch.randn(2, heads, 4, width, dtype=torch.float64)
    mean, variance = module.look(queries, module.recall(coefficients))
    keys = module.key(coefficients).unflatten(-1, (heads, width))
    for lane in range(2):
        for head in range(heads):
            for place in range(4):
                query = queries[lane, head, place]
                one, two = naive.location(query, keys[lane, :, head], module.aims[0], module.aims[1], 1e-4)
                assert one == pytest.approx(mean[lane, head, place].item(), abs=1e-12)
                assert two == pytest.approx(variance[lane, head, place].item(), abs=1e-12)


def test_a_gate_of_zeros_lets_a_constant_share_pass() -> None:
    module = ContinuousMemory(4, 1, 4, SMALL, gate=True, variance_floor=1e-4).double()
    assert module.gate is not None and module.gate.bias is not None
    torch.nn.init.zeros_(module.gate.weight)
    block = torch.randn(2, 5, 4, dtype=torch.float64)
    assert torch.allclose(module.gated(block), torch.sigmoid(module.gate.bias) * block, rtol=0, atol=1e-15)


def test_the_gate_sees_the_neighbours_inside_the_block_and_zeros_outside() -> None:
    module = ContinuousMemory(4, 1, 4, SMALL, gate=True, variance_floor=1e-4).double()
    assert module.gate is not None and module.gate.bias is not None
    block = torch.randn(1, 5, 4, dtype=torch.float64)
    weight, bias = module.gate.weight, module.gate.bias
    for place in range(5):
        mask = bias.clone()
        for step in (-1, 0, 1):
            if 0 <= place + step < 5:
                mask = mask + weight[:, :, step + 1] @ block[0, place + step]
        expected = torch.sigmoid(mask) * block[0, place]
        assert torch.allclose(module.gated(block)[0, place], expected, rtol=0, atol=1e-14)


def test_under_autocast_the_memory_is_float32_to_the_bit() -> None:
    module = ContinuousMemory(6, 2, 3, SMALL, gate=True, variance_floor=1e-4)
    torch.nn.init.normal_(module.aims)
    past, block = torch.randn(2, 12, 6), torch.randn(2, 5, 6)
    given: Any = (past, torch.rand(2, 9).sort(dim=1).values, block, torch.tensor([5, 3]), torch.tensor([True, False]))
    plain = module.write(*given)
    with torch.autocast("cpu", torch.bfloat16):
        cast = module.write(*given)
        recall = module.recall(cast)
        reading = module.read(torch.randn(2, 2, 4, 3), recall)
    assert cast.dtype == recall.values.dtype == recall.aims.dtype == reading.mean.dtype == torch.float32
    assert torch.equal(cast, plain)
    assert reading.update.dtype == torch.bfloat16


# Sticky memories


@QUICK
@given(seed=st.integers(0, 99), bins=st.sampled_from([1, 3, 128]), real=st.booleans())
def test_masses_of_bins_are_those_of_every_query_by_itself(seed: int, bins: int, real: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    variance = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64) * 0.1 + 1e-6
    mask = torch.rand(2, 4, generator=generator) < 0.5 if real else None
    ours = bin_masses(mean, variance, bins, mask)
    edges = [-1e-6, *(number / bins for number in range(1, bins)), 1 + 1e-6]
    for lane in range(2):
        for number in range(bins):
            total = sum(
                naive.bin_mass(mean[lane, h, i].item(), variance[lane, h, i].item(), edges[number], edges[number + 1])
                for h in range(3)
                for i in range(4)
                if mask is None or mask[lane, i]
            )
            assert ours[lane, number].item() == pytest.approx(total, abs=1e-12)


def test_float32_masses_are_never_negative() -> None:
    mean = torch.rand(4, 8, 64)
    assert (bin_masses(mean, torch.rand(4, 8, 64) * 1e-4 + 1e-6, 128) >= 0).all()


@QUICK
@given(seed=st.integers(0, 99), bins=st.sampled_from([1, 2, 7]), empty=st.booleans())
def test_places_are_where_the_shares_of_the_mass_are_used_up(seed: int, bins: int, empty: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    masses = torch.rand(2, bins, generator=generator, dtype=torch.float64)
    if empty:
        masses[:, : bins // 2] = 0
    shares = torch.rand(2, 9, generator=generator, dtype=torch.float64).sort(dim=1).values
    ours = densest(masses, shares)
    for lane in range(2):
        for place in range(9):
            expected = naive.place_of(masses[lane].tolist(), shares[lane, place].item())
            assert ours[lane, place].item() == pytest.approx(expected, abs=1e-9)
    left = densest(masses, shares, left=True)
    assert torch.allclose(left, (ours * bins).floor() / bins, rtol=0, atol=1e-15)
    assert (ours.diff(dim=1) >= 0).all() and (left.diff(dim=1) >= 0).all()


def test_a_lane_without_attention_is_sampled_evenly() -> None:
    masses = torch.zeros(2, 5)
    masses[1] = 1
    places = densest(masses, (torch.arange(4)[None] + 0.5) / 4)
    assert torch.allclose(places[0], torch.tensor([0.25, 0.5, 0.75, 1]))
    assert torch.allclose(places[1], torch.tensor([0.125, 0.375, 0.625, 0.875]))


@pytest.mark.parametrize("draw", ["stratified", "independent"])
def test_what_was_looked_at_is_what_is_kept(draw: str) -> None:
    """For mu = .25, sigma = .01: every sample lies in [.2, .3], and the new function on (0, tau] shows that stretch."""
    fit = Fit(Basis(64, default_widths(64)), 0.01, 0.5, 200)
    mean = torch.full((1, 2, 3), 0.25, dtype=torch.float64)
    masses = bin_masses(mean, torch.full_like(mean, 1e-4), 128)
    assert masses.sum() == pytest.approx(6, abs=1e-6)
    shares = (torch.arange(200)[None] + 0.5) / 200 if draw == "stratified" else uniforms(torch.tensor([5]), 0, 200)
    places = densest(masses, shares.sort(dim=1).values)
    assert (places > 0.2).all() and (places < 0.3).all()
    past = naive_free_write(fit, smooth(300, 2, 60, torch.Generator().manual_seed(0)))
    block = torch.zeros(1, 300, 2, dtype=torch.float64)
    new = rewrite(past[None], places, block, torch.tensor([300]), torch.tensor([True]), fit)[0]
    parameters = fit.basis.parameters()
    inside = torch.arange(20, 180) / 200 * 0.5
    shown = gaussians(inside.double(), *parameters) @ new
    stretch = gaussians(places[0, 19:179].double(), *parameters) @ past
    assert (shown - stretch).abs().max() < 0.06 * stretch.abs().max()


def test_attention_everywhere_samples_evenly() -> None:
    mean = torch.full((1, 1, 1), 0.5, dtype=torch.float64)
    masses = bin_masses(mean, torch.full_like(mean, 1e6), 128)
    places = densest(masses, (torch.arange(64)[None] + 0.5) / 64)
    assert (places - (torch.arange(64) + 0.5) / 64).abs().max() < 1e-6


def test_random_numbers_depend_on_key_stream_and_place_alone_and_are_spread_evenly() -> None:
    keys = torch.tensor([0, 1, -7, 2**62])
    state = torch.get_rng_state()
    drawn = uniforms(keys, 3, 5000)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(uniforms(keys[[2, 0]], 3, 5000), drawn[[2, 0]])
    assert not torch.equal(uniforms(keys, 4, 5000), drawn)
    assert (drawn > 0).all() and (drawn < 1).all()
    counts = torch.stack([torch.histc(row, 10, 0, 1) for row in drawn])
    assert ((counts - 500).abs() < 110).all()
    together = torch.corrcoef(torch.cat([drawn, drawn[:, 1:].new_zeros(4, 1)], dim=1)[:, :5000])
    assert (together - torch.eye(4)).abs().max() < 0.06
    assert len(drawn.unique()) > 19_000


@QUICK
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4), cut=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_key_is_the_hash_of_the_text_however_it_is_cut(lengths: list[int], cut: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1 << 20, (len(lengths), 6), generator=generator)
    fresh = torch.zeros(len(lengths), dtype=torch.long)
    whole = fold(fresh, tokens)
    assert torch.equal(fold(fold(fresh, tokens[:, :cut]), tokens[:, cut:]), whole)
    assert whole.tolist() == [naive.key_of(row) for row in tokens.tolist()]
    padded = fold(fresh, tokens, torch.tensor(lengths))
    assert padded.tolist() == [naive.key_of(row[:n]) for row, n in zip(tokens.tolist(), lengths, strict=True)]


def test_the_products_of_writing_are_counted() -> None:
    """R X of the real rows, and twice the samples where there was a memory; the same on the way back."""
    past, block = torch.randn(3, 12, 4, requires_grad=True), torch.randn(3, 6, 4, requires_grad=True)
    counts, known = torch.tensor([5, 0, 3]), torch.tensor([True, True, False])
    with FlopCounterMode(display=False) as counter:
        rewrite(past, None, block, counts, known, SMALL).sum().backward()
    once = 2 * 12 * 4 * (5 + 2 * 9) + 2 * 12 * 4 * 3
    assert counter.get_total_flops() == 2 * once


def test_products_keep_their_mantissas_whatever_the_process_allows() -> None:
    before = torch.get_float32_matmul_precision()
    given: Any = (torch.randn(1, 12, 3), None, torch.randn(1, 5, 3), torch.tensor([5]), torch.tensor([True]), SMALL)
    plain = rewrite(*given)
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(rewrite(*given), plain)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
