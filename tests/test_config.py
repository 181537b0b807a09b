"""Recipes: TOML files and flags become checked settings, and every mistake is told in one sentence."""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remanence.config import (
    DataSettings,
    EvaluationSettings,
    Recipe,
    SettingWarning,
    TrainingSettings,
    dump_recipe,
    load_recipe,
)
from remanence.config.recipe import recipe_from_table, table_of, unsized
from remanence.config.tables import read_table, union_of
from remanence.errors import InputError
from remanence.models import architectures, config_class

TEXT = """
name = "small"
[data]
corpus = "data/books"
[model]
architecture = "lamemo"
vocab_size = 300
segment_length = 16
memory_length = 24
num_layers = 2
model_width = 8
num_heads = 2
head_width = 4
feed_forward_width = 12
cutoffs = [100, 200]
[training]
steps = 7
learning_rate = 1
[evaluation]
memory_length = 48
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str = TEXT, name: str = "small.toml") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def test_a_file_becomes_settings_with_defaults_for_the_rest(write: Any) -> None:
    recipe = load_recipe(write())
    assert recipe.name == "small" and recipe.architecture == "lamemo"
    assert recipe.model.cutoffs == (100, 200) and recipe.model.memory_length == 24
    assert recipe.training.learning_rate == 1.0 and recipe.training.betas == (0.9, 0.999)
    assert recipe.evaluation == EvaluationSettings(memory_length=48)


def test_flags_override_the_file(write: Any) -> None:
    flags = "--model.memory-length 640 --training.steps=9 --model.same_length --model.cutoffs 50 60 70"
    more = "--evaluation.memory-length None --training.betas 0.8 0.9"
    recipe = load_recipe(write(), f"{flags} {more}".split())
    assert (recipe.model.memory_length, recipe.training.steps, recipe.model.same_length) == (640, 9, True)
    assert recipe.model.cutoffs == (50, 60, 70) and recipe.training.betas == (0.8, 0.9)
    assert recipe.evaluation.memory_length is None


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("steps = 7", "step = 7", "There is no setting training.step; did you mean training.steps?"),
        (
            "memory_length = 24",
            "memry_length = 24",
            "There is no setting model.memry_length; did you mean model.memory_length?",
        ),
        ("[training]", "[trainng]", "There is no setting trainng; did you mean training?"),
        ("steps = 7", 'steps = "many"', 'training.steps is "many", but it must be a whole number.'),
        ("steps = 7", "steps = 7.5", "training.steps is 7.5, but it must be a whole number."),
        ("steps = 7", "steps = true", "training.steps is true, but it must be a whole number."),
        ("learning_rate = 1", "learning_rate = nan", "training.learning_rate is nan, but it must be a number."),
        ("steps = 7", "betas = [0.9]", "training.betas is [0.9], but it must be a list of 2 numbers."),
        ("[100, 200]", "[100, 'x']", 'model.cutoffs[1] is "x", but it must be a whole number.'),
        ("steps = 7", 'schedule = "cosin"', 'training.schedule is "cosin", but it must be one of "cosine", "linear",'),
        ("steps = 7", "steps = 0", "training.steps is 0, but it must be at least 1."),
        ("steps = 7", "lanes = 6\naccumulation = 4", "training.accumulation is 4, which does not divide the 6 lanes"),
        ("learning_rate = 1", "learning_rate = 0", "training.learning_rate is 0, but it must be above 0."),
        ("segment_length = 16", "segment_length = 0", "model.segment_length is 0, but it must be 1 or more."),
        ("segment_length = 16", "", "model.segment_length is missing; give a whole number."),
        ('architecture = "lamemo"', "", "model.architecture is missing; give one of "),
        ('architecture = "lamemo"', 'architecture = "lameno"', 'did you mean "lamemo"?'),
        ('name = "small"', "", "name is missing; give a text."),
        ("[evaluation]\nmemory_length = 48", "[evaluation]\nsegment_length = 0", "evaluation.segment_length is 0"),
        ("name", "na me", "is not a TOML file"),
    ],
)
def test_a_mistake_in_the_file_is_told_in_a_sentence(write: Any, old: str, new: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe(write(TEXT.replace(old, new, 1)))
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--model.memory-lenth 3", "There is no flag --model.memory-lenth; did you mean --model.memory-length?"),
        ("--training.steps many", '--training.steps is "many", but it must be a whole number.'),
        ("--training.steps=1.5", '--training.steps is "1.5", but it must be a whole number.'),
        ("--training.steps", "--training.steps is given without a value, but it must be a whole number."),
        ("--training.steps --name x", "--training.steps is given without a value, but it must be a whole number."),
        ("--model.norm mid", '--model.norm is "mid", but it must be one of "post", "pre".'),
        ("--model.cutoffs 1 x", '--model.cutoffs is "1 x", but it must be a list of whole numbers.'),
        ("--model.same-length true", '--model.same-length is "true", but it takes no value'),
        ("--model.clamp-length x", '--model.clamp-length is "x", but it must be a whole number.'),
        ("--training.betas 0.5", '--training.betas is "0.5", but it must be a list of 2 numbers.'),
        ("--model.memory-length -4", "model.memory_length is -4, but it must be 0 or more."),
        ("--training.steps 0", "training.steps is 0, but it must be at least 1."),
        ("--model.no-memory-length", "There is no flag --model.no-memory-length"),
        ("--model.architecture", "--model.architecture is given without a value"),
        ("100", "Unrecognized options: 100"),
    ],
)
def test_a_mistake_in_a_flag_is_told_in_a_sentence(write: Any, flags: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe(write(), flags.split())
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ("--evaluation.same-length", True),
        ("--evaluation.no-same-length", False),
        ("--evaluation.same_length --training.steps 2", True),
        ("--evaluation.same-length True", True),
        ("--evaluation.same-length=false", False),
        ("--evaluation.same-length none", None),
        ("--training.steps 2", None),
    ],
)
def test_a_switch_that_may_be_none_needs_no_value(write: Any, flags: str, value: bool | None) -> None:
    assert load_recipe(write(), flags.split()).evaluation.same_length is value


def test_such_a_switch_stands_before_other_arguments() -> None:
    from remanence.commands.evaluate import Arguments
    from remanence.config.flags import parse_flags

    given = parse_flags(Arguments, ["--same-length", "runs/x", "--clamp-length", "4"], "remanence evaluate")
    assert given.same_length is True and str(given.run) == "runs/x" and given.clamp_length == 4
    with pytest.raises(InputError, match='--same-length is "5", but it must be true or false'):
        parse_flags(Arguments, ["runs/x", "--same-length=5"], "remanence evaluate")


@pytest.mark.parametrize("name", ["", ".", "..", "../evil", "a/b", "a\\b", "/absolute"])
def test_a_name_is_one_folder(write: Any, name: str) -> None:
    with pytest.raises(InputError, match="but it names a folder in runs"):
        load_recipe(write(TEXT.replace('"small"', f"'{name}'")))


def test_a_vocabulary_that_is_open_is_not_told_as_a_number(write: Any) -> None:
    with pytest.raises(InputError, match=r"below the vocabulary size\.?$"):
        load_recipe(write(TEXT.replace("vocab_size = 300\n", "").replace("[100, 200]", "[10, 5]")))


def test_a_flag_may_mend_what_the_file_has_wrong(write: Any) -> None:
    path = write(TEXT.replace("model_width = 8", "model_width = 7"))
    with pytest.raises(InputError, match="model_width is 7"):
        load_recipe(path)
    assert load_recipe(path, ["--model.model-width", "10"]).model.model_width == 10


def test_a_missing_file_names_the_nearest_one(write: Any, tmp_path: Path) -> None:
    write()
    with pytest.raises(InputError, match=r"did you mean .*small\.toml\?"):
        load_recipe(tmp_path / "smal.toml")
    with pytest.raises(InputError, match="check the path"):
        load_recipe(tmp_path / "nowhere" / "small.toml")
    with pytest.raises(InputError, match="is a folder"):
        load_recipe(tmp_path)


def test_a_resolved_recipe_is_read_back_as_an_equal_one(write: Any) -> None:
    recipe = load_recipe(write(), ["--model.clamp-length", "30", "--model.window", "full", "--description", 'a "b" ü'])
    assert load_recipe(write(dump_recipe(recipe), "again.toml")) == recipe


@given(
    learning_rate=st.floats(1e-12, 1e6),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    steps=st.integers(1, 10**9),
    name=st.text(st.characters(exclude_characters="/\\\0", exclude_categories=("Cs",)), min_size=1).filter(
        lambda name: name.strip() not in ("", ".", "..")
    ),
    clamp=st.none() | st.integers(1, 10**6),
)
def test_any_settings_survive_the_file(
    learning_rate: float, betas: tuple[float, float], steps: int, name: str, clamp: int | None
) -> None:
    import tomllib

    config = config_class("transformer-xl")(
        vocab_size=9, segment_length=3, memory_length=2, num_layers=1, model_width=4, num_heads=1, head_width=4,
        feed_forward_width=4, clamp_length=clamp,
    )  # fmt: skip
    training = TrainingSettings(steps=steps, learning_rate=learning_rate, betas=betas)
    recipe = Recipe(name, training=training, model=config, data=DataSettings(corpus=name))
    assert recipe_from_table(tomllib.loads(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    "kind", [TrainingSettings, EvaluationSettings, DataSettings, *map(config_class, architectures())]
)
def test_a_setting_that_may_be_none_is_none_unless_given(kind: type) -> None:
    # TOML has no None: it is written by leaving the key out.
    hints = get_type_hints(kind)
    optional = [field for field in fields(kind) if type(None) in union_of(hints[field.name])]
    assert all(field.default is None for field in optional)


def test_the_vocabulary_may_be_left_to_the_corpus(write: Any) -> None:
    recipe = load_recipe(write(TEXT.replace("vocab_size = 300", "").replace("cutoffs = [100, 200]", "")))
    assert recipe.model.vocab_size is None
    sized = recipe.sized(77)
    assert sized.model.vocab_size == 77 and type(sized.model) is config_class("lamemo")
    assert load_recipe(write(dump_recipe(recipe), "again.toml")) == recipe
    with pytest.raises(InputError, match=r"has 77 token ids, but the recipe's model\.vocab_size is 300"):
        load_recipe(write()).sized(77)


def test_settings_are_checked_although_the_vocabulary_is_open(write: Any) -> None:
    with pytest.raises(InputError, match="model_width is 7"):
        load_recipe(write(TEXT.replace("vocab_size = 300", "").replace("model_width = 8", "model_width = 7")))
    recipe = load_recipe(write(TEXT.replace("vocab_size = 300", "")))
    with pytest.raises(InputError, match="cutoffs"):
        recipe.sized(150)


def test_another_architecture_leaves_out_what_it_does_not_know(write: Any) -> None:
    with pytest.warns(SettingWarning, match="model.memory_length: left out, for the transformer has no such setting"):
        recipe = load_recipe(
            write(TEXT.replace("[evaluation]\nmemory_length = 48", "")), ["--model.architecture=transformer"]
        )
    assert recipe.architecture == "transformer" and recipe.model.segment_length == 16
    assert load_recipe(write(), ["--model.architecture", "transformer-xl"]).model.memory_length == 24


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--training.schedule constant --training.floor 0.1", "training.floor has no effect"),
        ("--training.warmup-steps 7", "never reach the full learning rate"),
        ("--training.validate-every 0 --training.validation-tokens 5", "training.validation_tokens has no effect"),
    ],
)
def test_a_setting_without_effect_warns(write: Any, flags: str, words: str) -> None:
    with pytest.warns(SettingWarning, match=words):
        load_recipe(write(), flags.split())


def test_memory_in_the_evaluation_of_a_model_without_memory_warns(write: Any) -> None:
    text = TEXT.replace('"lamemo"', '"transformer"').replace("memory_length = 24\n", "")
    with pytest.warns(SettingWarning, match="evaluation.memory_length has no effect"):
        load_recipe(write(text))


def test_reading_a_recipe_of_a_run_again_does_not_warn_again(write: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_recipe(write(TEXT.replace("steps = 7", "steps = 7\nwarmup_steps = 7")), warn=False)


def test_a_draft_has_the_fields_of_its_configuration() -> None:
    for name in architectures():
        kind = config_class(name)
        assert {field.name for field in fields(unsized(kind))} == {field.name for field in fields(kind)}
        assert issubclass(unsized(kind), kind)


def test_the_architecture_stands_first_in_the_table_of_the_model(write: Any) -> None:
    assert next(iter(table_of(load_recipe(write()))["model"])) == "architecture"


@pytest.mark.parametrize("box", [True, False])
def test_what_is_missing_is_said_in_one_sentence_whatever_the_terminal_draws(
    box: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from remanence.commands.generate import Arguments
    from remanence.config.flags import parse_flags

    if not box:
        monkeypatch.setenv("LC_ALL", "C")
        monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    with pytest.raises(InputError) as told:
        parse_flags(Arguments, [], "remanence generate")
    assert str(told.value) == "RUN is missing (folder of a run); see remanence generate --help."


def test_rules_of_hyphens_are_no_words() -> None:
    from remanence.config.flags import _words_of

    plain = " Required options \n ------- \n  Missing from x:  \n  RUN \n ------- \n  For full helptext \n \n"
    assert _words_of(plain) == "Missing from x: RUN"


def test_a_seed_that_no_generator_takes_is_refused() -> None:
    from remanence.config import TrainingSettings

    with pytest.raises(InputError, match="below 2 to the power of 63"):
        TrainingSettings(seed=2**63)


@pytest.mark.parametrize(("architecture", "setting"), [("memformer", "num_slots"), ("rmt", "memory_tokens")])
def test_the_setting_that_another_architecture_calls_otherwise_is_suggested(architecture: str, setting: str) -> None:
    with pytest.raises(InputError, match=f"did you mean model.{setting}"):
        read_table(unsized(config_class(architecture)), {"memory_length": 5}, "model")


@pytest.mark.parametrize(("architecture", "setting"), [("memformer", "num_slots"), ("rmt", "memory_tokens")])
def test_a_memory_of_nothing_is_refused_by_the_name_of_its_setting(architecture: str, setting: str) -> None:
    sizes = ("segment_length", "num_layers", "model_width", "num_heads", "head_width", "feed_forward_width")
    for count in (0, -1):
        with pytest.raises(InputError, match=rf"^model\.{setting} is {count}, but it must be 1 or more"):
            config_class(architecture)(**dict.fromkeys(("vocab_size", *sizes), 2), **{setting: count})
