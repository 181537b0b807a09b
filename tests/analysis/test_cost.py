"""What is counted is the steady state: a memory that is full and writes to what lies behind its slots."""

from __future__ import annotations

import dataclasses
import random

import pytest

from remanence.analysis import cost
from remanence.analysis.cost import measure_price
from remanence.config import DataSettings, EvaluationSettings, Recipe, TrainingSettings
from remanence.data import Corpus
from remanence.data.prepare import prepare
from remanence.models import config_class


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("cost")
    draw = random.Random(1)
    words = ["memory", "segment", "what", "was", "written"]
    (folder / "text.txt").write_text(" ".join(draw.choices(words, k=3000)), encoding="utf-8")
    return prepare(folder / "text.txt", folder / "corpus", name="words", validation=0.1, test=0.1)


def make_recipe(corpus: Corpus, slots: int, horizon: int, **evaluation: int) -> Recipe:
    model = config_class("infinite-former")(
        vocab_size=corpus.vocab_size,
        segment_length=8,
        memory_length=slots,
        num_layers=2,
        model_width=16,
        num_heads=2,
        head_width=8,
        feed_forward_width=16,
        num_basis=8,
    )
    return Recipe(
        "small",
        data=DataSettings(str(corpus.folder)),
        model=model,
        training=TrainingSettings(steps=3, lanes=2, horizon=horizon, precision="float32", device="cpu"),
        evaluation=EvaluationSettings(**evaluation),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("slots", "horizon"), [(0, 1), (16, 1), (24, 2)])
def test_reading_on_before_counting_changes_no_count(slots, horizon, corpus, tmp_path, monkeypatch):
    recipe = make_recipe(corpus, slots, horizon)
    usual = measure_price(recipe, corpus, tmp_path)
    for more in (3, 5):
        monkeypatch.setattr(cost, "OVERFLOWING", more)
        assert measure_price(recipe, corpus, tmp_path) == usual
    monkeypatch.setattr(cost, "OVERFLOWING", 0)
    assert cost._steps_to_fill(recipe) == max(2, slots // 8 // horizon)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("slots", "horizon", "steps"), [(0, 1, 2), (16, 1, 4), (24, 2, 3), (160, 1, 22)])
def test_two_segments_more_than_fill_the_slots_are_read(slots, horizon, steps, corpus):
    assert cost._steps_to_fill(make_recipe(corpus, slots, horizon)) == steps


@pytest.mark.filterwarnings("ignore")
def test_reading_is_counted_with_the_segments_of_evaluation(corpus, tmp_path):
    recipe = make_recipe(corpus, 16, 1)
    longer = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, memory_length=15))
    usual = measure_price(recipe, corpus, tmp_path)
    short = measure_price(make_recipe(corpus, 16, 1, segment_length=4), corpus, tmp_path)
    assert short.step_flops == usual.step_flops and short.reading_flops != usual.reading_flops
    assert measure_price(longer, corpus, tmp_path).reading_flops < usual.reading_flops
