"""Reading, going on, and going on later."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remanence.data.tokenizers.byte import ByteTokenizer
from remanence.errors import InputError
from remanence.generation import Sampling, Session
from remanence.models import LanguageModel

PROMPT = "Naïve café: 你好, мир! "


def ids_of(session: Session, count: int) -> list[list[int | None]]:
    return [step.ids for step in session.steps(count)]


def begun(model: LanguageModel, tokenizer: ByteTokenizer, text: str = PROMPT, **settings: Any) -> Session:
    session = Session(model, tokenizer, **({"seed": 11} | settings))
    session.read(text)
    return session


# Going on


def test_decoding_gives_the_numbers_of_segments_read_at_once(model: LanguageModel, tokenizer: ByteTokenizer) -> None:
    session = begun(model, tokenizer, sampling=Sampling(temperature=0))
    text = list(PROMPT.encode()) + [ids[0] for ids in ids_of(session, 20)]
    memory = model.init_memory(lanes=1)
    best: list[int] = []
    with torch.no_grad():
        for begin in range(0, len(text), model.config.segment_length):
            tokens = torch.tensor([text[begin : begin + model.config.segment_length]])
            hidden, memory, _ = model(tokens, memory)
            best += model.head.logits(hidden)[0].argmax(-1).tolist()
    first = len(PROMPT.encode())
    assert text[first:] == best[first - model.shift : len(best) - model.shift]


def test_a_prompt_cut_anywhere_is_the_same_prompt(model: LanguageModel, tokenizer: ByteTokenizer) -> None:
    expected = ids_of(begun(model, tokenizer), 9)
    for sizes in ([1], [2, 7], [5], [6], [13, 1], [40]):
        session = Session(model, tokenizer, seed=11)
        rest, size = PROMPT, itertools.cycle(sizes)
        while rest:
            count = next(size)
            session.read(rest[:count])
            rest = rest[count:]
        assert ids_of(session, 9) == expected


def test_a_prompt_of_bytes_may_be_cut_inside_a_character(make_model: Callable, tokenizer: ByteTokenizer) -> None:
    session = Session(make_model(), tokenizer, seed=11)
    session.read_bytes(bytes([byte]) for byte in PROMPT.encode())
    assert ids_of(session, 9) == ids_of(begun(make_model(), tokenizer), 9)


def test_samples_are_those_of_separate_sessions(model: LanguageModel, tokenizer: ByteTokenizer) -> None:
    together = ids_of(begun(model, tokenizer, samples=3), 15)
    for sample in range(3):
        alone = ids_of(begun(model, tokenizer, seed=11 + sample), 15)
        assert [ids[sample] for ids in together] == [ids[0] for ids in alone]


def test_text_can_be_read_between_drawn_tokens(model: LanguageModel, tokenizer: ByteTokenizer) -> None:
    session = begun(model, tokenizer, sampling=Sampling(temperature=0))
    drawn = [ids[0] for ids in ids_of(session, 4)]
    session.read(" and then ")
    later = ids_of(session, 8)
    whole = Session(model, tokenizer, sampling=Sampling(temperature=0))
    whole.read_ids([*PROMPT.encode(), *drawn, *b" and then "])
    assert ids_of(whole, 8) == later


def test_an_empty_prompt_begins_after_a_line_break(model: LanguageModel, tokenizer: ByteTokenizer) -> None:
    if not model.shift:
        pytest.skip("it has a beginning of its own")
    assert ids_of(Session(model, tokenizer, seed=3), 9) == ids_of(begun(model, tokenizer, "\n", seed=3), 9)


def test_a_model_with_a_beginning_of_its_own_needs_no_prompt(make_model: Callable, tokenizer: ByteTokenizer) -> None:
    model = make_model("memformer/bos")
    session = Session(model, tokenizer, sampling=Sampling(temperature=0))
    (drawn,) = ids_of(session, 1)
    assert session.tokens_read == 0
    assert drawn == model.head.logits(model.peek(model.init_memory(1)))[0, 0, :256].argmax(-1, keepdim=True).tolist()
    later = ids_of(session, 13)
    text = torch.tensor([drawn + [ids[0] for ids in later]])
    memory, best = model.init_memory(1), []
    for tokens in text.split(model.config.segment_length, dim=1):
        hidden, memory, _ = model(tokens, memory)
        best.append(model.head.logits(hidden).argmax(-1))
    assert torch.equal(torch.cat(best, dim=1), text)


def test_a_stream_is_the_text_of_its_tokens(model: LanguageModel, tokenizer: ByteTokenizer) -> None:
    ids = [step.ids[0] for step in begun(model, tokenizer).steps(40)]
    decoder = tokenizer.stream_decoder()
    assert "".join(begun(model, tokenizer).stream(40)) == decoder.push(ids)


# What it costs


class Watched(torch.nn.Module):
    """A model that notes how much it was given at a time."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model, self.config, self.head = model, model.config, model.head
        self.init_memory, self.distances = model.init_memory, model.distances
        self.shift, self.peek, self.with_projections = model.shift, model.peek, model.with_projections
        self.calls: list[tuple[int, int, int]] = []

    def forward(self, tokens: torch.Tensor, memory: Any, starts: Any, **options: Any) -> Any:
        self.calls.append((tokens.shape[0], tokens.shape[1], memory.nbytes))
        return self.model(tokens, memory, starts, **options)

    def advance(self, tokens: torch.Tensor, memory: Any) -> Any:
        self.calls.append((tokens.shape[0], tokens.shape[1], memory.nbytes))
        return self.model.advance(tokens, memory)


def test_a_long_prompt_is_read_at_constant_memory(model: LanguageModel, tokenizer: ByteTokenizer) -> None:
    watched = Watched(model)
    session = Session(watched, tokenizer, samples=4)
    session.read("x" * 200)
    lanes, lengths, sizes = zip(*watched.calls, strict=True)
    assert set(lanes) == {1}
    assert set(lengths) == {model.config.segment_length}
    assert len(set(sizes)) == 1
    assert session._pending.shape[1] <= model.config.segment_length


def test_a_token_costs_the_same_however_many_came_before(model: LanguageModel, tokenizer: ByteTokenizer) -> None:
    watched = Watched(model)
    session = Session(watched, tokenizer, samples=2)
    session.read("x" * 13)
    ids_of(session, 60)
    segment = model.config.segment_length
    assert watched.calls[-segment:] == watched.calls[-2 * segment : -segment]
    assert {length for _, length, _ in watched.calls[3:]} == {1}


# Stopping


def stop_of(make_model: Callable, tokenizer: ByteTokenizer) -> tuple[str, str]:
    """A text that the model writes with seed 11, and two characters of it that do not occur before."""
    text = "".join(begun(make_model(), tokenizer).stream(60))
    end = next(end for end in range(8, len(text)) if text.index(text[end - 2 : end]) == end - 2)
    return text, text[end - 2 : end]


def test_a_sample_ends_before_its_stop_string(make_model: Callable, tokenizer: ByteTokenizer) -> None:
    text, stop = stop_of(make_model, tokenizer)
    session = begun(make_model(), tokenizer, stops=[stop])
    assert "".join(session.stream(60)) == text[: text.index(stop)]
    assert session.step() is None


def test_other_samples_go_on_when_one_has_ended(make_model: Callable, tokenizer: ByteTokenizer) -> None:
    text, stop = stop_of(make_model, tokenizer)
    session = begun(make_model(), tokenizer, samples=2, seed=10, stops=[stop])
    other = begun(make_model(), tokenizer, seed=10, stops=[stop])
    assert session.generate(60) == ["".join(other.stream(60)), text[: text.index(stop)]]


def test_several_samples_of_which_one_has_ended_do_not_read_on(make_model: Callable, tokenizer: ByteTokenizer) -> None:
    _, stop = stop_of(make_model, tokenizer)
    session = begun(make_model(), tokenizer, samples=2, seed=10, stops=[stop])
    session.generate(60)
    with pytest.raises(InputError, match="have met a stop string"):
        session.read("more")


def test_a_single_sample_reads_on_after_its_stop_string(make_model: Callable, tokenizer: ByteTokenizer) -> None:
    _, stop = stop_of(make_model, tokenizer)
    session = begun(make_model(), tokenizer, stops=[stop])
    session.generate(60)
    session.read("more")
    assert session.step() is not None


# Going on later


@pytest.mark.parametrize("cut", [0, 1, 2, 4, 5, 6, 12, 17])
def test_a_saved_session_goes_on_with_the_same_bits(
    model: LanguageModel, tokenizer: ByteTokenizer, tmp_path: Path, cut: int
) -> None:
    whole = begun(model, tokenizer, samples=2)
    expected = list(whole.steps(24))
    first = begun(model, tokenizer, samples=2)
    steps = list(first.steps(cut))
    first.save(tmp_path / "session.safetensors")
    second = Session.load(tmp_path / "session.safetensors", model, tokenizer)
    assert steps + list(second.steps(24 - cut)) == expected
    ours, theirs = second.memory.state(), whole.memory.state()
    assert ours[1] == theirs[1]
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in theirs[0])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(PROMPT.encode()) + 20), max_size=3).map(sorted))
def test_a_session_may_be_saved_anywhere_in_prompt_and_text(
    make_model: Callable, tokenizer: ByteTokenizer, tmp_path: Path, cuts: list[int]
) -> None:
    prompt, path = PROMPT.encode(), tmp_path / "session.safetensors"
    session, pieces, place = Session(make_model(), tokenizer, seed=11), [], 0
    for cut in [*cuts, len(prompt) + 20]:
        session.read_bytes([prompt[place:cut]])
        pieces += session.stream(max(cut - max(place, len(prompt)), 0), finish=False)
        place = cut
        session.save(path)
        session = Session.load(path, make_model(), tokenizer)
    assert "".join(pieces) == "".join(begun(make_model(), tokenizer).stream(20))


def test_a_stop_string_may_begin_before_the_pause_and_end_after_it(
    make_model: Callable, tokenizer: ByteTokenizer, tmp_path: Path
) -> None:
    text, stop = stop_of(make_model, tokenizer)
    end = len(text[: text.index(stop)].encode())
    for count in range(end - 3, end + 5):
        session = begun(make_model(), tokenizer, stops=[stop])
        before = "".join(session.stream(count, finish=False))
        session.save(tmp_path / "session.safetensors")
        after = "".join(Session.load(tmp_path / "session.safetensors", make_model(), tokenizer).stream(60 - count))
        assert before + after == text[: text.index(stop)]


def test_reading_nothing_changes_nothing(make_model: Callable, tokenizer: ByteTokenizer) -> None:
    text, stop = stop_of(make_model, tokenizer)
    session = begun(make_model(), tokenizer, stops=[stop])
    shown = ""
    for step in session.steps(60):
        shown += step.pieces[0]
        session.read("")
        session.read_bytes([b"", b""])
        session.read_ids([])
    assert shown == text[: text.index(stop)]
    assert session.ended


def test_a_prompt_is_read_once_and_sampled_many_times(
    model: LanguageModel, tokenizer: ByteTokenizer, tmp_path: Path
) -> None:
    begun(model, tokenizer).save(tmp_path / "session.safetensors")
    session = Session.load(tmp_path / "session.safetensors", model, tokenizer, samples=3, seed=40)
    assert ids_of(session, 9) == ids_of(begun(model, tokenizer, samples=3, seed=40), 9)


def test_settings_given_on_loading_replace_the_saved_ones(
    model: LanguageModel, tokenizer: ByteTokenizer, tmp_path: Path
) -> None:
    session = begun(model, tokenizer)
    drawn = ids_of(session, 4)
    session.save(tmp_path / "session.safetensors")
    later = Session.load(tmp_path / "session.safetensors", model, tokenizer, sampling=Sampling(temperature=0))
    whole = Session(model, tokenizer, sampling=Sampling(temperature=0))
    whole.read_ids([*PROMPT.encode(), *(ids[0] for ids in drawn)])
    assert ids_of(later, 6) == ids_of(whole, 6)


def test_a_session_says_its_precision_and_goes_on_in_it(
    model: LanguageModel, tokenizer: ByteTokenizer, tmp_path: Path
) -> None:
    model = model.float()
    session = Session(model, tokenizer, seed=3, precision="bfloat16")
    session.read("Once upon a time there was a long prompt.")
    session.save(tmp_path / "there")
    expected = list(session.steps(20))
    later = Session.load(tmp_path / "there", model, tokenizer)
    assert later.precision == "bfloat16"
    assert list(later.steps(20)) == expected
    assert Session.load(tmp_path / "there", model, tokenizer, precision="float32").precision == "float32"
    assert Session(model, tokenizer, precision="auto").precision in ("float32", "bfloat16")
    with pytest.raises(InputError, match="auto, float32 or bfloat16"):
        Session(model, tokenizer, precision="float16")  # type: ignore[arg-type]


def test_another_number_of_samples_is_refused_once_drawing_has_begun(
    make_model: Callable, tokenizer: ByteTokenizer, tmp_path: Path
) -> None:
    session = begun(make_model(), tokenizer)
    session.step()
    session.save(tmp_path / "session.safetensors")
    with pytest.raises(InputError, match="have begun to draw, and 2 were asked for"):
        Session.load(tmp_path / "session.safetensors", make_model(), tokenizer, samples=2)


@pytest.mark.parametrize("other", ["transformer", "transformer-xl"])
def test_the_memory_of_another_architecture_is_refused(
    make_model: Callable, tokenizer: ByteTokenizer, tmp_path: Path, other: str
) -> None:
    begun(make_model("lamemo"), tokenizer).save(tmp_path / "session.safetensors")
    with pytest.raises(InputError, match=f"is the memory of a lamemo model, and this one is {other};"):
        Session.load(tmp_path / "session.safetensors", make_model(other), tokenizer)


def test_the_memory_of_other_weights_is_refused(make_model: Callable, tokenizer: ByteTokenizer, tmp_path: Path) -> None:
    model = make_model("lamemo")
    begun(model, tokenizer).save(tmp_path / "session.safetensors")
    bias = model.head.bias
    with torch.no_grad():
        bias[7] += 1
        with pytest.raises(InputError, match="is the memory of another model"):
            Session.load(tmp_path / "session.safetensors", model, tokenizer)
        bias[7] -= 1


def test_a_damaged_file_is_refused_wherever_a_byte_was_changed(
    make_model: Callable, tokenizer: ByteTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "session.safetensors"
    session = begun(make_model(), tokenizer)
    session.step()
    session.save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError):
            Session.load(path, make_model(), tokenizer)


def test_a_file_cut_short_is_refused(make_model: Callable, tokenizer: ByteTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "session.safetensors"
    begun(make_model(), tokenizer).save(path)
    whole = path.read_bytes()
    for size in (0, 5, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            Session.load(path, make_model(), tokenizer)


def test_a_bare_memory_is_no_session(make_model: Callable, tokenizer: ByteTokenizer, tmp_path: Path) -> None:
    make_model().init_memory(lanes=1).save(tmp_path / "memory.safetensors")
    with pytest.raises(InputError, match="holds a memory but no session"):
        Session.load(tmp_path / "memory.safetensors", make_model(), tokenizer)


# Lengths and distances


def test_another_memory_length_is_kept_through_a_pause(
    make_model: Callable, tokenizer: ByteTokenizer, tmp_path: Path
) -> None:
    for length in (0, 1, 17):
        session = begun(make_model(), tokenizer, memory_length=length)
        assert session.memory.length == length
        session.save(tmp_path / "session.safetensors")
        assert Session.load(tmp_path / "session.safetensors", make_model(), tokenizer).memory.length == length


def test_distances_are_held_only_where_they_exceed_those_of_training(
    make_model: Callable, tokenizer: ByteTokenizer
) -> None:
    model = make_model()
    trained = model.distances()
    assert Session(model, tokenizer, trained=trained).memory.hold is None
    assert Session(model, tokenizer, trained=trained, memory_length=9).memory.hold == trained
    assert Session(model, tokenizer, trained=trained, memory_length=9, hold_distances=False).memory.hold is None


def test_held_distances_survive_a_pause(make_model: Callable, tokenizer: ByteTokenizer, tmp_path: Path) -> None:
    model = make_model()
    settings = {"trained": model.distances(), "memory_length": 20, "segment_length": 9}
    expected = ids_of(begun(model, tokenizer, **settings), 30)
    session = begun(model, tokenizer, **settings)
    found = ids_of(session, 13)
    session.save(tmp_path / "session.safetensors")
    session = Session.load(tmp_path / "session.safetensors", model, tokenizer)
    assert session.memory.hold == model.distances()
    assert found + ids_of(session, 17) == expected


# Bad input


def test_ids_outside_the_vocabulary_are_refused(make_model: Callable) -> None:
    session = Session(make_model(vocab_size=20), ByteTokenizer())
    with pytest.raises(InputError, match="has 20 entries"):
        session.read("a")


@pytest.mark.parametrize("settings", [{"samples": 0}, {"memory_length": -1}, {"segment_length": 0}, {"stops": [""]}])
def test_settings_that_mean_nothing_are_refused(
    make_model: Callable, tokenizer: ByteTokenizer, settings: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        Session(make_model(), tokenizer, **settings)


def test_a_negative_number_of_tokens_is_refused(make_model: Callable, tokenizer: ByteTokenizer) -> None:
    with pytest.raises(InputError, match="-1 tokens"):
        begun(make_model(), tokenizer).generate(-1)


def test_a_model_without_tokenizer_is_refused(make_model: Callable) -> None:
    with pytest.raises(InputError, match="without its tokenizer"):
        Session(make_model())


def test_a_stream_of_several_samples_is_refused(make_model: Callable, tokenizer: ByteTokenizer) -> None:
    with pytest.raises(InputError, match="has 2 samples and a stream shows one"):
        next(Session(make_model(), tokenizer, samples=2).stream(1))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(seed: int, make_model: Callable, tokenizer: ByteTokenizer) -> None:
    with pytest.raises(InputError, match="seed"):
        Session(make_model(), tokenizer, seed=seed)
