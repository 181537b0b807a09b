"""Recorded steps give the tokens and the memory of plain ones. Graphs themselves are in tests/gpu; here runs a tape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.generation.elsewhere import Elsewhere, Still
from tests.generation.tape import Tape, TapeRecorder, Waiting
from tests.models.unchecked import without_checks
from tests.models.variants import VARIANTS, Variant, gap, text
from torch import Tensor

from remanence.data.tokenizers.byte import ByteTokenizer
from remanence.errors import SettingWarning
from remanence.generation import Sampling, Session, session
from remanence.generation.graphs import Cycle, copied
from remanence.models import LanguageModel
from remanence.models.base import LanguageModel as Base


@pytest.fixture(autouse=True)
def tokens_unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a GPU the values of tokens are not looked at, for that would wait."""
    monkeypatch.setattr(Base, "_check", lambda *arguments: None)
    with without_checks():
        yield


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> Variant:
    return VARIANTS[request.param]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    """Sessions record on tapes."""
    made = TapeRecorder()
    monkeypatch.setattr(session, "recorder_of", lambda device: made)
    return made


def steps_of(model: LanguageModel) -> tuple[Callable[..., Any], Callable[[Any], bool], int]:
    length = model.config.segment_length

    def step(tokens: Tensor, memory: Any) -> tuple[Tensor, Any]:
        hidden, memory, _ = model(tokens, memory, close=memory.opened + 1 == length)
        return model.head.logits(hidden if model.shift else model.peek(memory))[:, -1], memory

    return step, lambda memory: model.waits(memory, close=memory.opened + 1 == length), length


def begin(model: LanguageModel, lanes: int, *, projected: bool = True) -> Any:
    memory = model.init_memory(lanes)
    (tokens,) = text(model, model.config.segment_length, lanes=lanes, seed=8)
    memory = model(tokens, memory).memory
    return model.with_projections(memory) if projected else memory


def test_a_cycle_gives_what_the_model_gives(variant: Variant) -> None:
    model = variant.model()
    step, waits, length = steps_of(model)
    recorder = TapeRecorder()
    cycle = Cycle(step, length, recorder, waits)
    with torch.no_grad():
        plain = memory = begin(model, 2)
        (tokens,) = text(model, 3 * length + 2, lanes=2)
        for place in range(tokens.shape[1]):
            token = tokens[:, place, None]
            logits, memory = cycle(token, memory)
            expected, plain = step(token, plain)
            assert gap(logits, expected) < 1e-12, place
            assert gap(memory, plain) < 1e-12, place
            assert memory.opened == plain.opened
    unrecorded = {place % length for place in range(length)} - set(cycle.recorded)
    assert unrecorded == ({0} if model.config.architecture == "infinite-former" else set())
    # An empty memory may be of another kind than those after it, and then the steps up to there are recorded twice.
    assert recorder.recorded <= 2 * length


def test_only_a_step_that_says_so_waits_for_the_device(variant: Variant) -> None:
    model = variant.model()
    step, waits, length = steps_of(model)
    with torch.no_grad():
        memory = begin(model, 2)
        (tokens,) = text(model, 2 * length, lanes=2)
        for place in range(tokens.shape[1]):
            waited = False
            try:
                with Tape():
                    step(tokens[:, place, None], copied(memory))
            except Waiting:
                waited = True
            assert waited == waits(memory), place
            _, memory = step(tokens[:, place, None], memory)


def test_a_step_moves_nothing_between_devices(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    # It does not know the device, and none of these models computes in anything but float64.
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *arguments: False)
    model, elsewhere = variant.model(), Elsewhere()
    step, waits, length = steps_of(model)
    step_there, _, _ = steps_of(elsewhere.model(model))
    with torch.no_grad():
        memory = begin(model, 2)
        (tokens,) = text(model, length, lanes=2)
        for place in range(length):
            token = tokens[:, place, None]
            if not waits(memory):
                given = elsewhere.tensor(token), elsewhere.memory(memory)
                with elsewhere.mode, Still():
                    step_there(*given)
            _, memory = step(token, memory)


@pytest.mark.parametrize("name", ["transformer-xl", "lamemo", "compressive", "infinite-former", "memformer", "rmt"])
def test_a_cycle_is_entered_anywhere_with_any_memory(name: str) -> None:
    model = VARIANTS[name].model()
    step, waits, length = steps_of(model)
    cycle = Cycle(step, length, TapeRecorder(), waits)
    with torch.no_grad():
        (tokens,) = text(model, 60, lanes=2)
        memories = [begin(model, 2), begin(model, 2)]
        memories[1] = model(tokens[:, :2], memories[1], close=False).memory
        plain, used = list(memories), 0
        for turn, count in enumerate([3, 1, length + 2, 2 * length, 3, 1]):
            lane = turn % 2
            for _ in range(count):
                token = tokens[:, used % 60, None]
                used += 1
                logits, memories[lane] = cycle(token, memories[lane])
                expected, plain[lane] = step(token, plain[lane])
                assert gap(logits, expected) < 1e-12
            memories[lane] = cycle.kept(memories[lane])
            assert gap(memories[lane], plain[lane]) < 1e-12
        assert gap(memories[0], plain[0]) < 1e-12


def test_another_batch_is_recorded_anew() -> None:
    model = VARIANTS["lamemo"].model()
    step, waits, length = steps_of(model)
    cycle = Cycle(step, length, TapeRecorder(), waits)
    with torch.no_grad():
        plain = memory = begin(model, 3)
        (tokens,) = text(model, 20, lanes=3)
        for place in range(20):
            lanes = torch.arange(3 if place < 8 else 1)
            if place == 8:
                memory, plain = cycle.kept(memory)[lanes], plain[lanes]
            logits, memory = cycle(tokens[lanes, place, None], memory)
            expected, plain = step(tokens[lanes, place, None], plain)
            assert gap(logits, expected) < 1e-12
            assert gap(memory, plain) < 1e-12


def test_a_step_that_was_not_committed_can_be_made_again() -> None:
    for name in ("transformer-xl", "lamemo", "compressive", "memformer", "rmt"):
        model = VARIANTS[name].model()
        step, waits, length = steps_of(model)
        cycle = Cycle(step, length, TapeRecorder(), waits)
        with torch.no_grad():
            plain = memory = begin(model, 2)
            (tokens,) = text(model, 3 * length, lanes=2)
            for place in range(3 * length):
                cycle(tokens[:, place - 1, None], memory)
                logits, memory = cycle(tokens[:, place, None], memory)
                expected, plain = step(tokens[:, place, None], plain)
                assert gap(logits, expected) < 1e-12, (name, place)


def test_what_is_kept_does_not_change_with_the_next_step() -> None:
    model = VARIANTS["transformer-xl"].model()
    step, waits, length = steps_of(model)
    cycle = Cycle(step, length, TapeRecorder(), waits)
    with torch.no_grad():
        memory = begin(model, 1)
        _, memory = cycle(torch.tensor([[3]]), memory)
        kept = cycle.kept(memory)
        before = copied(kept)
        for token in range(2 * length):
            _, memory = cycle(torch.tensor([[token % 7]]), memory)
    assert gap(kept, before) == 0


# Sessions


def test_a_session_draws_the_same_tokens_and_keeps_the_same_memory(
    model: LanguageModel, tokenizer: ByteTokenizer, recorder: TapeRecorder
) -> None:
    sessions = [
        Session(model, tokenizer, samples=2, seed=3, sampling=Sampling(top_k=50), graphs=graphs)
        for graphs in (False, True)
    ]
    found = []
    for each in sessions:
        each.read("What was written before")
        steps = list(each.steps(15))
        each.read(" and more, much more of it,")
        found.append(steps + list(each.steps(20)))
    assert found[0] == found[1]
    assert recorder.recorded > 0
    assert gap(sessions[0].memory, sessions[1].memory) < 1e-5
    assert sessions[0].tokens_read == sessions[1].tokens_read


def test_a_session_is_saved_and_loaded_in_the_middle_of_a_recorded_segment(
    model: LanguageModel, tokenizer: ByteTokenizer, recorder: TapeRecorder, tmp_path: Path
) -> None:
    session = Session(model, tokenizer, seed=3, graphs=True)
    session.read("Once")
    list(session.steps(9))
    session.save(tmp_path / "there")
    expected = list(session.steps(20))
    for graphs in (False, True):
        assert list(Session.load(tmp_path / "there", model, tokenizer, graphs=graphs).steps(20)) == expected


def test_samples_that_end_leave_a_batch_that_goes_on(
    model: LanguageModel, tokenizer: ByteTokenizer, recorder: TapeRecorder
) -> None:
    found = []
    for graphs in (False, True):
        session = Session(model, tokenizer, samples=4, seed=1, stops=("e", "a", "\n"), graphs=graphs)
        session.read("The ")
        found.append(list(session.steps(60)))
    assert found[0] == found[1]


@pytest.mark.parametrize(("announced", "recorded"), [(17, False), (18, True)])
def test_steps_are_recorded_where_enough_tokens_follow(
    make_model: Callable, tokenizer: ByteTokenizer, recorder: TapeRecorder, announced: int, recorded: bool
) -> None:
    session = Session(make_model("transformer-xl"), tokenizer)
    session.read("The ")
    for _ in session.steps(announced):
        pass
    assert bool(recorder.recorded) == recorded


def test_drawing_goes_on_where_steps_cannot_be_recorded(
    make_model: Callable, tokenizer: ByteTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("lamemo")
    monkeypatch.setattr(session, "recorder_of", lambda device: TapeRecorder(room=0))
    sessions = [Session(model, tokenizer, seed=3, graphs=graphs) for graphs in (False, True)]
    for each in sessions:
        each.read("Once")
    expected = list(sessions[0].steps(20))
    with pytest.warns(SettingWarning, match="would keep"):
        found = list(sessions[1].steps(20))
    assert found == expected
    assert gap(sessions[0].memory, sessions[1].memory) < 1e-5
