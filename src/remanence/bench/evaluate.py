"""What scoring costs: short segments after long memories, each model as it is and as `remanence evaluate` reads.

Evaluation knows that weights do not change. So it lays them out once for the processor (packed), and keeps what they
make of the slots beside them where anything can be saved by that (kept, `with_projections`). Every candidate reads the
same text, segment by segment, with its memory full. Before anything is timed, all must give the same losses, in
float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from remanence.bench import own, peers
from remanence.bench.checks import EXACT, check_same, finer, once
from remanence.bench.peak import MatrixPeak
from remanence.bench.result import Result, Table, figure, filled_columns
from remanence.bench.rounds import interleave, ratio, summary
from remanence.bench.settings import Settings
from remanence.bench.usage import peak_bytes
from remanence.nn.packed import PackedLinear, fixed
from remanence.training.allocation import keep_freed_memory
from remanence.training.precision import autocast

PROTOCOLS = ((64, 640), (1, 512))
"""Tokens of a segment and positions remembered, of published evaluations."""
QUICK = ((4, 16), (1, 8))
LEAST = 16
"""Tokens that a turn reads at least, so that its time can be told from the clock's."""
FILLED = 64
"""Memories are filled by segments of so many tokens; how they were filled changes no cost."""


class Scoring:
    """A candidate and what it has read."""

    def __init__(
        self, name: str, settings: Settings, protocol: tuple[int, int], *, packed: bool = False, kept: bool = False
    ) -> None:
        self.name, self.packed, self.kept, self.settings, self.protocol = name, packed, kept, settings, protocol
        self.around: Any = partial(autocast, settings.dtype, torch.device(settings.device))
        self.note = ""
        self.remembers = True
        """Whether the length of the memory is the protocol's to choose."""
        self.state: Any = None
        self.flops: int | None = None
        """Of one segment of all lanes, where a formula tells."""

    @property
    def label(self) -> str:
        return self.name + (", packed" if self.packed else "") + (", kept" if self.kept else "")

    def losses(self, drawn: Tensor) -> Tensor:
        """Of one segment, after which the state is one segment older; `drawn` holds one token more."""
        raise NotImplementedError

    def turn(self, segments: Tensor, inference: bool = True) -> None:
        """Read several segments, (number, B, T + 1)."""
        # As the command does.
        inference = inference and self.settings.device == "cpu"
        with torch.inference_mode() if inference else torch.no_grad(), self.around():
            for drawn in segments:
                self.losses(drawn)


class OwnScoring(Scoring):
    """One of the library's models."""

    def __init__(
        self,
        architecture: str,
        model: Any,
        settings: Settings,
        protocol: tuple[int, int],
        *,
        packed: bool = False,
        kept: bool = False,
    ) -> None:
        super().__init__(architecture, settings, protocol, packed=packed, kept=kept)
        self.model = fixed(model, own.precision_type(settings)) if packed else model
        self.remembers = own.remembers(architecture)
        counted = model.flops(settings.lanes, protocol[0], protocol[1] if self.remembers else None)
        self.flops = None if counted is None else counted.total_forward

    def begin(self, memory: Any) -> bool:
        """Go on from a memory; whether there is anything to keep in it."""
        keeping = self.model.with_projections(memory)
        self.state = keeping if self.kept else memory
        return keeping is not memory

    def losses(self, drawn: Tensor) -> Tensor:
        hidden, self.state, _ = self.model(drawn[:, :-1], self.state)
        targets = drawn[:, 1:] if self.model.shift else drawn[:, :-1]
        return self.model.head.loss(hidden, targets)


class PeerScoring(Scoring):
    """A model of another package."""

    def __init__(self, peer: peers.Peer, settings: Settings, protocol: tuple[int, int]) -> None:
        super().__init__(peer.name, settings, protocol)
        self.peer, self.note = peer, peer.forced
        self.remembers = peer.remembers
        self.state = peer.begin(settings.lanes)

    def losses(self, drawn: Tensor) -> Tensor:
        logits, self.state = self.peer.read(drawn[:, :-1], self.state)
        return F.cross_entropy(logits.float().transpose(1, 2), drawn[:, 1:], reduction="none")


def bench_evaluate(settings: Settings, peak: MatrixPeak, told: Callable[[int, int], None]) -> Result:
    """Measure evaluation. Raises Disagreement where keeping changes a loss."""
    result = Result("evaluate")
    # As the command does.
    keep_freed_memory()
    peak.measure()
    protocols = settings.protocols or (QUICK if settings.quick else PROTOCOLS)
    segment = max(FILLED if not settings.quick else 0, *(length for length, _ in protocols))
    models = {}
    for number, protocol in enumerate(protocols):
        for architecture in settings.models:
            if architecture not in models or not own.remembers(architecture):
                sized = dataclasses.replace(settings, segment_length=segment)
                models[architecture] = own.make(architecture, sized, protocol[1]).eval()
        done = number * (settings.rounds + settings.warmup)
        total = len(protocols) * (settings.rounds + settings.warmup)
        _measure(
            settings, protocol, models, result, peak, lambda step, _, done=done, total=total: told(done + step, total)
        )
    result.peak = peak.to_json()
    for row in result.rows:
        row["share_of_peak"] = None if row["flops"] is None else row["flops_per_second"] / peak.flops
    result.tables = [_table(result)]
    return result


def _measure(
    settings: Settings,
    protocol: tuple[int, int],
    models: dict[str, Any],
    result: Result,
    peak: MatrixPeak,
    told: Callable[[int, int], None],
) -> None:
    """One protocol, all candidates taking turns."""
    length, _ = protocol
    device = torch.device(settings.device)
    generator = torch.Generator().manual_seed(settings.seed)
    number = max(1, LEAST // length)
    shape = (number, settings.lanes, length + 1)
    segments = torch.randint(settings.shape.vocabulary, shape, generator=generator).to(device)
    candidates: list[Scoring] = []
    for architecture, model in models.items():
        memory = filled(model, settings, protocol[1] if own.remembers(architecture) else None)
        check_keeping(model, memory, settings, protocol, result)
        packs = any(isinstance(each, PackedLinear) for each in fixed(model).modules())
        for packed, kept in ((False, False), (True, False), (packs, True)):
            one = OwnScoring(architecture, model, settings, protocol, packed=packed, kept=kept)
            if (one.begin(memory) or not kept) and (packs or not packed):
                candidates.append(one)
    if settings.peers:
        sized = dataclasses.replace(settings, segment_length=length)
        for peer in peers.make_peers(sized, protocol[1], result.note, peers.SCORED):
            peer.model.eval()
            check_cache(peer, sized, protocol, result)
            found = PeerScoring(peer, settings, protocol)
            _fill_peer(found, settings, length, peer.fills * -(-protocol[1] // length) + 2)
            candidates.append(found)
    # In inference mode what counts bytes meets einsum before autocast has chosen its numbers; only peers call it.
    made = {
        each.label: peak_bytes(lambda each=each: each.turn(segments[:1], isinstance(each, OwnScoring)), device)
        for each in candidates
    }
    calls = {each.label: partial(each.turn, segments) for each in candidates}
    times = interleave(calls, settings.rounds, settings.warmup, device, peak, told)
    for each in candidates:
        found = {name: value / number for name, value in summary(times[each.label]).items()}
        plain = each.name if each.kept or each.packed else None
        unkept = next((label for label in (f"{each.name}, packed", each.name) if each.kept and label in times), None)
        nearest = "transformer-xl" if "transformer-xl" in times else None
        result.rows.append(
            {
                "model": each.name,
                "own": isinstance(each, OwnScoring),
                "packed": each.packed,
                "kept": each.kept,
                "segment_length": length,
                "memory_length": protocol[1] if each.remembers else None,
                "lanes": settings.lanes,
                "seconds": found,
                "tokens_per_second": settings.lanes * length / found["median"],
                "times_faster_than_plain": ratio(times[plain], times[each.label]) if plain else None,
                "times_faster_by_keeping": ratio(times[unkept], times[each.label]) if unkept else None,
                "reference": nearest,
                "times_reference": ratio(times[each.label], times[nearest]) if nearest else None,
                "flops": None if each.kept else each.flops,
                "flops_per_second": None if each.kept or not each.flops else each.flops / found["median"],
                "peak_bytes": made[each.label],
                "forced": each.note,
            }
        )
        if each.note:
            result.note(f"{each.name}: {each.note}.")


def check_keeping(model: Any, plain: Any, settings: Settings, protocol: tuple[int, int], result: Result) -> None:
    """After a memory, packed weights and what is kept of its slots give the losses of all made anew, in float32."""
    remembers = own.remembers(model.config.architecture)
    with torch.no_grad():
        reading = fixed(model)
        kept = reading.with_projections(plain)
        keeps = kept is not plain
        empty = model.init_memory(settings.lanes, protocol[1] if remembers else None)
        generator = torch.Generator().manual_seed(settings.seed + 1)
        drawn = torch.randint(model.vocab_size, (4, settings.lanes, protocol[0] + 1), generator=generator)
        apart = 0.0
        packs = any(isinstance(each, PackedLinear) for each in reading.modules())
        if not (keeps or packs):
            return
        for each in drawn.to(settings.device):
            losses = []
            for reader, memory in ((model, plain), (reading, kept)):
                hidden, memory, _ = reader(each[:, :-1], memory)
                losses.append((reader.head.loss(hidden, each[:, 1:]), memory))
            (one, plain), (other, kept) = losses
            limit = EXACT
            if keeps:
                hidden, _, _ = model(each[:, :-1], empty)
                limit = finer(one, model.head.loss(hidden, each[:, 1:]))
            ways = ["its projections kept"] * keeps + ["its weights packed"] * packs
            how = "with " + " and ".join(ways)
            apart = max(apart, check_same(f"{model.config.architecture} {how}", other, one, limit))
    once(
        result,
        f"{model.config.architecture} gives the losses of a plain reading {how}, segment {protocol[0]}"
        + (f" and memory {protocol[1]}" if remembers else "")
        + f", in float32, to {apart:.1e} nats.",
    )


def check_cache(peer: peers.Peer, settings: Settings, protocol: tuple[int, int], result: Result) -> None:
    """A peer's logits are finite, and a cache gives what reading the same window at once gives."""
    length, memory = protocol
    generator = torch.Generator().manual_seed(settings.seed + 2)
    drawn = torch.randint(settings.shape.vocabulary, (2, 2 * length), generator=generator).to(settings.device)
    with torch.no_grad():
        _, state = peer.read(drawn[:, :length], peer.begin(2))
        logits, _ = peer.read(drawn[:, length:], state)
        check_same(f"{peer.name} on its own", logits, logits, 0.0)
        cached = isinstance(peer, peers.GPT2Window) and not isinstance(peer, peers.GPT2Again)
        if cached and 2 * length <= memory + settings.segment_length:
            whole = peer.model(drawn, use_cache=False).logits[:, length:]
            limit = finer(whole, peer.read(drawn[:, length:], peer.begin(2))[0])
            apart = check_same(f"{peer.name} beside the whole window read at once", logits, whole, limit)
            once(result, f"{peer.name} gives the logits of its window read at once, to {apart:.1e}.")
    once(result, "The logits of every model of another package are finite.")


def filled(model: Any, settings: Settings, memory_length: int | None) -> Any:
    """A memory that is full."""
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        memory = model.init_memory(settings.lanes, memory_length)
        length = min(FILLED, model.config.segment_length)
        compressed = getattr(model.config, "compressed_slots", 0) * getattr(model.config, "compression_rate", 1)
        for _ in range(-(-(memory.length + compressed) // length) + 2):
            drawn = torch.randint(model.vocab_size, (settings.lanes, length), generator=generator)
            memory = model(drawn.to(settings.device), memory).memory
    return memory


def _fill_peer(candidate: PeerScoring, settings: Settings, length: int, segments: int) -> None:
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(segments):
        drawn = torch.randint(settings.shape.vocabulary, (1, settings.lanes, length + 1), generator=generator)
        candidate.turn(drawn.to(settings.device))


def _table(result: Result) -> Table:
    rows = [
        [
            row["model"] + (", packed" if row["packed"] else "") + (", kept" if row["kept"] else ""),
            f"{row['segment_length']}",
            "" if row["memory_length"] is None else f"{row['memory_length']}",
            f"{1e3 * row['seconds']['median']:,.2f}",
            f"{1e3 * row['seconds']['lower_quartile']:,.2f} to {1e3 * row['seconds']['upper_quartile']:,.2f}",
            f"{row['tokens_per_second']:,.0f}",
            "" if row["times_faster_than_plain"] is None else f"{row['times_faster_than_plain']:.2f}",
            "" if row["times_faster_by_keeping"] is None else f"{row['times_faster_by_keeping']:.2f}",
            "" if row["times_reference"] is None else f"{row['times_reference']:.2f}",
            "" if row["share_of_peak"] is None else f"{figure(100 * row['share_of_peak'], 2)} %",
            figure(row["peak_bytes"] / 1e6),
        ]
        for row in result.rows
    ]
    table = Table(
        "Evaluation",
        [
            "model",
            "segment",
            "memory",
            "ms a segment",
            "quartiles",
            "tokens/s",
            "times faster",
            "by keeping",
            "x XL",
            "of the peak",
            "MB at most",
        ],
        rows,
        "packed: weights are laid out once for the processor. kept: what they make of the slots is kept beside them "
        "(with_projections). remanence evaluate does both. times faster: than the same model as it is; by keeping: "
        "than without keeping alone. Medians of the rounds."
        + (
            " x XL: times the transformer-xl as it is, with the same segment and memory."
            if any(row["times_reference"] is not None for row in result.rows)
            else ""
        ),
    )
    return filled_columns(table)
