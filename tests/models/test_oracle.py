"""The models against a second implementation, in loops: any variant, any lengths, any limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.oracle import Oracle, State
from tests.models.variants import enliven
from torch import Tensor

from remanence.memory import Distances
from remanence.models import LanguageModel, build, config_class

SIZES: dict[str, Any] = {
    "vocab_size": 7,
    "segment_length": 3,
    "model_width": 4,
    "num_heads": 2,
    "head_width": 3,
    "feed_forward_width": 5,
}
COMMON = {
    "num_layers": st.sampled_from([1, 2, 3]),
    "norm": st.sampled_from(["post", "pre"]),
    "clamp_length": st.sampled_from([None, 1, 3]),
    "share_position_biases": st.booleans(),
    "memory_length": st.sampled_from([1, 2, 3, 5, 7]),
    "same_length": st.booleans(),
}
LIMITS = st.none() | st.integers(1, 6)
SEGMENTS = st.lists(st.integers(1, 5), min_size=1, max_size=4)
QUICK = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def make(architecture: str, options: dict[str, Any]) -> LanguageModel:
    config = config_class(architecture)(**SIZES | options)
    return enliven(build(config, seed=0), seed=4).double().eval()


def newest(rows: Tensor, count: int) -> Tensor:
    """The last `count` slots of the first lane."""
    return rows[0, rows.shape[1] - count :]


def same(ours: Tensor, theirs: list[Any]) -> bool:
    return not theirs or np.abs(newest(ours, len(theirs)).numpy() - np.stack(theirs)).max() < 1e-10


def compare(model: LanguageModel, slots: int, lengths: list[int], hold: Distances) -> None:
    """Two lanes read with the model; the oracle reads each by itself."""
    oracle = Oracle(model, slots, hold.back, hold.ahead)
    generator = torch.Generator().manual_seed(0)
    segments = [torch.randint(7, (2, length), generator=generator) for length in lengths]
    for lane in range(2):
        memory, state = model.init_memory(2, slots, hold), oracle.fresh()
        for tokens in segments:
            with torch.no_grad():
                hidden, memory, _ = model(tokens, memory)
                logits = model.head.logits(hidden)
            theirs, state = oracle.segment(tokens[lane].tolist(), state)
            assert np.abs(logits[lane].numpy() - theirs).max() < 1e-10
            compare_memory(memory[lane], state)


def compare_memory(memory: Any, state: State) -> None:
    if memory.kind == "lamemo":
        assert memory.valid.sum() == len(state.embedding)
        assert same(memory.embedding, state.embedding)
        assert memory.last_length.tolist() == [state.last_length]
        # The oracle keeps the last layer's as well, which nobody reads.
        assert all(same(*pair) for pair in zip(memory.context, state.context[:-1], strict=True))
        assert all(same(*pair) for pair in zip(memory.logsum, state.logsum[:-1], strict=True))
    else:
        assert all(same(*pair) for pair in zip(memory.hidden, state.hidden, strict=True))


@QUICK
@given(options=st.fixed_dictionaries(COMMON), lengths=SEGMENTS, back=LIMITS, zeros=st.booleans(), learned=st.booleans())
def test_transformer_xl_is_its_definition(
    options: dict[str, Any], lengths: list[int], back: int | None, zeros: bool, learned: bool
) -> None:
    options |= {"memory_init": "zeros" if zeros else "empty", "position": "learned" if learned else "relative"}
    compare(make("transformer-xl", options), options["memory_length"], lengths, Distances(back))


@QUICK
@given(
    options=st.fixed_dictionaries(COMMON),
    lengths=SEGMENTS,
    back=LIMITS,
    ahead=LIMITS,
    variant=st.sampled_from(
        [
            ("disentangled", "right"),
            ("disentangled", "full"),
            ("transformer-xl", "right"),
            ("disentangled-content", "right"),
        ]
    ),
)
def test_lamemo_is_its_definition(
    options: dict[str, Any], lengths: list[int], back: int | None, ahead: int | None, variant: tuple[str, str]
) -> None:
    options |= {"position": variant[0], "window": variant[1]}
    compare(make("lamemo", options), options["memory_length"], lengths, Distances(back, ahead))


@QUICK
@given(
    lengths=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    slots=st.sampled_from([1, 4, 6]),
    later=st.sampled_from([1, 3, 9]),
    window=st.sampled_from(["right", "full"]),
)
def test_lamemo_with_another_memory_length_at_test_time_is_its_definition(
    lengths: list[int], slots: int, later: int, window: str
) -> None:
    model = make("lamemo", {"num_layers": 2, "memory_length": 2, "window": window})
    tokens = [torch.randint(7, (1, length)) for length in lengths]
    memory, oracle = model.init_memory(1, slots), Oracle(model, slots)
    state = oracle.fresh()
    for number, segment in enumerate(tokens):
        if number == 1:
            # The oracle's rows are cut as the memory's are: the newest stay.
            memory, oracle.slots = memory.resize(later), later
            state.embedding = oracle.newest(state.embedding)
            state.context = [oracle.newest(rows) for rows in state.context]
            state.logsum = [oracle.newest(rows) for rows in state.logsum]
        with torch.no_grad():
            hidden, memory, _ = model(segment, memory)
            logits = model.head.logits(hidden)[0].numpy()
        theirs, state = oracle.segment(segment[0].tolist(), state)
        assert np.abs(logits - theirs).max() < 1e-10
        compare_memory(memory, state)


@QUICK
@given(
    num_layers=st.sampled_from([1, 2]),
    norm=st.sampled_from(["post", "pre"]),
    clamp_length=st.sampled_from([None, 2]),
    length=st.integers(1, 7),
)
def test_a_transformer_is_the_definition_without_memory(
    num_layers: int, norm: str, clamp_length: int | None, length: int
) -> None:
    options = {"num_layers": num_layers, "norm": norm, "clamp_length": clamp_length}
    compare(make("transformer", options), 0, [length, 3], Distances())
