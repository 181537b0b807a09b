"""What single operations cost, forward and backward, beside their readable definition and plain PyTorch.

Attention with relative positions, looking ahead, the vocabulary head, dropout; and what loading lanes and logging take
of the steps of a real run. Before anything is timed, each implementation must give what `naive.py` gives, gradients
included, in float32.

Shapes: B lanes, T tokens, M slots, S = M + T keys, H heads, K head width, V vocabulary, N = B T rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from remanence.bench.checks import Disagreement, check_same, once
from remanence.bench.overhead import measure_overhead
from remanence.bench.peak import MatrixPeak
from remanence.bench.result import Result, Table, figure
from remanence.bench.rounds import interleave, ratio, summary
from remanence.bench.settings import Settings
from remanence.bench.usage import peak_bytes
from remanence.ops.attention import naive as naive_attention
from remanence.ops.attention import relative_attention
from remanence.ops.cross_entropy import linear_cross_entropy
from remanence.ops.cross_entropy import naive as naive_cross_entropy
from remanence.ops.dropout import dropout
from remanence.ops.look_ahead import look_ahead
from remanence.ops.look_ahead import naive as naive_look_ahead

WORDS, QUICK_WORDS = 267_735, 997
"""The vocabulary of WikiText-103, and one to try."""
FEW = 16
APART = 2e-3
"""How far results and gradients may lie from the definition, in float32."""

Operation = Callable[..., Tensor]


class Case:
    """One operation on given tensors, in several implementations, the library's first."""

    def __init__(self, operation: str, about: str, tensors: dict[str, Tensor], flops: float = 0.0) -> None:
        self.operation, self.about, self.tensors, self.flops = operation, about, tensors, flops
        self.implementations: dict[str, Operation] = {}
        self.other: set[str] = set()
        """Those that compute something else, a limit to compare with."""

    def run(self, name: str, dtype: torch.dtype | None = None) -> tuple[Tensor, dict[str, Tensor | None]]:
        """Forward and backward; what came out and the gradients."""
        given = {key: tensor.detach() for key, tensor in self.tensors.items()}
        for key, tensor in given.items():
            if tensor.is_floating_point():
                given[key] = tensor.to(dtype or tensor.dtype).requires_grad_()
        found = self.implementations[name](**given)
        found.float().square().mean().backward()
        return found.detach(), {key: tensor.grad for key, tensor in given.items()}

    def check(self) -> float:
        """Raise Disagreement where an implementation is not the definition; how far they are apart."""
        wanted, gradients = self.run("definition", torch.float32)
        apart = 0.0
        for name in self.implementations:
            if name == "definition" or name in self.other:
                continue
            found, own = self.run(name, torch.float32)
            apart = max(apart, check_same(f"{self.operation} by {name}", found, wanted, APART))
            for key, gradient in gradients.items():
                other = own[key]
                what = f"the gradient of {key} in {self.operation} by {name}"
                if gradient is None:
                    continue
                if other is None:
                    raise Disagreement(f"{what} is missing; nothing was timed.")
                scale = max(gradient.abs().max().item(), 1e-12)
                check_same(what, other / scale, gradient / scale, APART)
        return apart


def bench_ops(settings: Settings, peak: MatrixPeak, told: Callable[[int, int], None]) -> Result:
    """Measure operations. Raises Disagreement where one does not give what its definition gives."""
    result = Result("ops")
    peak.measure()
    device = torch.device(settings.device)
    makers: list[Callable[[], Case]] = []
    for length in settings.memory_length:
        makers.append(partial(_attention, settings, length))
        if length:
            makers.append(partial(_look_ahead, settings, length))
    words = QUICK_WORDS if settings.quick else WORDS
    vocabularies = dict.fromkeys((settings.shape.vocabulary, words))
    makers += [partial(_cross_entropy, settings, vocabulary) for vocabulary in vocabularies]
    makers.append(partial(_dropout, settings))
    total = len(makers) * (settings.rounds + settings.warmup)
    for number, maker in enumerate(makers):
        # One at a time: the tensors of a large head would crowd out the rest.
        case = maker()
        if case.operation == "dropout":
            check_dropout(case, settings, result)
        else:
            # The definition of a large head in float32 takes gigabytes: a few rows show as much.
            apart = (case if case.operation != "vocabulary head" else _few_rows(case)).check()
            once(result, f"{case.operation}, {case.about}: all give the definition in float32, to {apart:.1e}.")
        calls = {name: partial(case.run, name) for name in case.implementations}
        memory = {name: peak_bytes(call, device) for name, call in calls.items()}
        done = number * (settings.rounds + settings.warmup)
        times = interleave(
            calls, settings.rounds, settings.warmup, device, peak, lambda step, _, done=done: told(done + step, total)
        )
        first = next(iter(calls))
        for name in calls:
            found = summary(times[name])
            flops = case.flops if name not in case.other else 0.0
            result.rows.append(
                {
                    "operation": case.operation,
                    "about": case.about,
                    "implementation": name,
                    "same": name not in case.other,
                    "seconds": found,
                    "times_ours": ratio(times[name], times[first]),
                    "peak_bytes": memory[name],
                    "flops": flops or None,
                    "flops_per_second": flops / found["median"] if flops else None,
                }
            )
    result.peak = peak.to_json()
    for row in result.rows:
        speed = row["flops_per_second"]
        row["share_of_peak"] = speed / peak.flops if speed else None
    overhead = measure_overhead(settings)
    result.rows.append({"operation": "training run", **overhead})
    result.tables = [_table(result), _overhead_table(overhead)]
    return result


# The operations


def _attention(settings: Settings, memory: int) -> Case:
    shape, tokens = settings.shape, settings.segment_length
    keys, heads, width = memory + tokens, shape.num_heads, shape.head_width
    drawn = partial(_drawn, settings)
    query = torch.arange(memory, keys)[:, None]
    visible = (query >= torch.arange(keys))[None].to(settings.device)
    tensors = {
        "queries": drawn(settings.lanes, heads, tokens, width),
        "keys": drawn(settings.lanes, heads, keys, width),
        "values": drawn(settings.lanes, heads, keys, width),
        "visible": visible,
        "content_bias": drawn(heads, width),
        "position_bias": drawn(heads, width),
        "positions": drawn(keys, heads, width),
    }
    flops = 3 * 2 * settings.lanes * heads * tokens * keys * width * 3
    case = Case("attention", f"T {tokens}, M {memory}", tensors, flops)
    case.implementations = {
        "remanence": lambda **given: relative_attention(**given).context,
        "definition": lambda **given: naive_attention.relative_attention(**given)[0],
        "plain PyTorch": _plain_attention,
        "scaled_dot_product_attention, no positions": _without_positions,
    }
    case.other = {"scaled_dot_product_attention, no positions"}
    return case


def _plain_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    positions: Tensor,
) -> Tensor:
    """As the published code writes it: two products, a shift that copies, a mask, a softmax."""
    content = (queries + content_bias[:, None]) @ keys.transpose(-2, -1)
    position = (queries + position_bias[:, None]) @ positions.permute(1, 2, 0)
    rows, columns = position.shape[-2:]
    padded = F.pad(position, (1, 0)).view(*position.shape[:2], columns + 1, rows)
    shifted = padded[:, :, 1:].reshape(position.shape)
    scores = ((content + shifted) / math.sqrt(queries.shape[-1])).masked_fill(~visible[:, None], -torch.inf)
    return scores.float().softmax(-1).to(values.dtype) @ values


def _without_positions(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor, **others: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible[:, None])


def _look_ahead(settings: Settings, memory: int) -> Case:
    shape = settings.shape
    keys, heads, width = min(settings.segment_length, memory), shape.num_heads, shape.head_width
    drawn = partial(_drawn, settings)
    slot = torch.arange(memory)[:, None]
    visible = (torch.arange(memory - keys + 1, memory + 1) > slot)[None].to(settings.device)
    tensors = {
        "queries": drawn(settings.lanes, heads, memory, width),
        "keys": drawn(settings.lanes, heads, keys, width),
        "values": drawn(settings.lanes, heads, keys, width),
        "visible": visible,
        "content_bias": drawn(heads, width),
        "position_bias": drawn(heads, width),
        "positions": drawn(memory + keys - 1, heads, width),
    }
    flops = 3 * 2 * settings.lanes * heads * memory * keys * width * 3
    case = Case("look-ahead", f"n {keys}, M {memory}", tensors, flops)
    case.implementations = {
        "remanence": lambda **given: look_ahead(**given, forward_only=True).context,
        "definition": lambda **given: naive_look_ahead.look_ahead(**given)[0],
    }
    return case


def _cross_entropy(settings: Settings, vocabulary: int) -> Case:
    rows, width = settings.lanes * settings.segment_length, settings.shape.model_width
    drawn = partial(_drawn, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    tensors = {
        "hidden": drawn(rows, width),
        # Weights are float32 under autocast, and so is what is kept for their gradient.
        "weight": _drawn(settings, vocabulary, width, exact=True),
        "bias": _drawn(settings, vocabulary, exact=True),
        "targets": torch.randint(vocabulary, (rows,), generator=generator).to(settings.device),
    }
    case = Case("vocabulary head", f"{rows:,} rows, {vocabulary:,} words", tensors, 3 * 2 * rows * width * vocabulary)
    case.implementations = {
        "remanence": linear_cross_entropy,
        "definition": _plain_cross_entropy,
        "plain PyTorch": lambda hidden, weight, bias, targets: F.cross_entropy(
            F.linear(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype)).float(), targets, reduction="none"
        ),
    }
    return case


def _few_rows(case: Case) -> Case:
    """The same head on at most `FEW` rows."""
    given = case.tensors
    few = Case(
        case.operation, case.about, {**given, "hidden": given["hidden"][:FEW], "targets": given["targets"][:FEW]}
    )
    few.implementations = case.implementations
    return few


def _plain_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return naive_cross_entropy.linear_cross_entropy(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype), targets)


def _dropout(settings: Settings) -> Case:
    rows = settings.segment_length + max(settings.memory_length)
    values = _drawn(settings, settings.lanes, rows, settings.shape.feed_forward_width)
    case = Case("dropout", " x ".join(f"{size:,}" for size in values.shape), {"values": values})
    case.implementations = {
        "remanence": lambda values: dropout(values, settings.dropout),
        "plain PyTorch": lambda values: F.dropout(values, settings.dropout),
    }
    return case


def check_dropout(case: Case, settings: Settings, result: Result) -> None:
    """As much is dropped as was asked for, the rest is scaled, and gradients take the same way."""
    for name, operation in case.implementations.items():
        ones = torch.ones_like(case.tensors["values"], dtype=torch.float32).requires_grad_()
        found = operation(ones)
        found.sum().backward()
        kept = found.detach() != 0
        share, scale = kept.float().mean().item(), 1 / (1 - settings.dropout)
        spread = math.sqrt(settings.dropout * (1 - settings.dropout) / kept.numel())
        if abs(share - (1 - settings.dropout)) > 6 * spread + 1e-4:
            raise Disagreement(
                f"dropout by {name} keeps {share:.4f} where {1 - settings.dropout:.4f} were asked for; nothing was "
                "timed."
            )
        assert ones.grad is not None
        check_same(f"dropout by {name}", found.detach(), kept * scale, 1e-5)
        check_same(f"the gradient of dropout by {name}", ones.grad, kept * scale, 1e-5)
    once(result, "Both kinds of dropout keep the share that was asked for, and their gradients take the same way.")


def _drawn(settings: Settings, *shape: int, exact: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(settings.seed + len(shape))
    drawn = torch.randn(shape, generator=generator)
    if len(shape) == 2 and exact:
        drawn /= math.sqrt(shape[1])
    return drawn.to(settings.device, torch.float32 if exact else getattr(torch, settings.dtype))


# The tables


def _table(result: Result) -> Table:
    rows = [
        [
            row["operation"],
            row["about"],
            row["implementation"],
            f"{1e3 * row['seconds']['median']:,.2f}",
            f"{1e3 * row['seconds']['lower_quartile']:,.2f} to {1e3 * row['seconds']['upper_quartile']:,.2f}",
            f"{row['times_ours']:.2f}",
            figure(row["peak_bytes"] / 1e6),
            "" if row["share_of_peak"] is None else f"{figure(100 * row['share_of_peak'], 2)} %",
        ]
        for row in result.rows
        if "implementation" in row
    ]
    return Table(
        "Operations, forward and backward",
        ["operation", "size", "implementation", "ms", "quartiles", "x remanence", "MB at most", "of the peak"],
        rows,
        "definition: naive.py, written to be read. x remanence: median over the rounds. of the peak: by formula, each "
        "product forward and twice backward.",
        words=3,
    )


def _overhead_table(found: dict[str, Any]) -> Table:
    return Table(
        f"A run of {found['steps']} steps of {found['architecture']}",
        ["ms a step", "loading lanes, ms", "share", "logging, ms", "share"],
        [
            [
                f"{1e3 * found['seconds_step']:,.2f}",
                f"{1e3 * found['seconds_loading']:,.3f}",
                f"{100 * found['share_loading']:.2f} %",
                f"{1e3 * found['seconds_logging']:,.3f}",
                f"{100 * found['share_logging']:.2f} %",
            ]
        ],
        f"Medians of one step of remanence train, with a line in the log every {found['log_every']} steps; logging is "
        "the mean of all steps.",
        words=0,
    )
