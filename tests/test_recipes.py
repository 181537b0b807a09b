"""Every recipe parses, builds, and is what it says it is."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from remanence.config import Recipe, load_recipe
from remanence.config.recipe import table_of
from remanence.config.tables import types_of
from remanence.models import InfiniteFormerConfig, TransformerXLConfig, build
from remanence.training.weights import count_parameters

RECIPES = sorted((Path(__file__).resolve().parent.parent / "recipes").glob("*.toml"))

PUBLISHED = {
    "lamemo-wikitext-103": 151_106_715,
    "lamemo-enwik8": 41_055_948,
    "lamemo-text8": 40_965_147,
    "transformer-xl-wikitext-103": 151_107_538,
    "transformer-xl-enwik8": 41_055_436,
    "transformer-xl-text8": 40_964_635,
}
MODELS = ("lamemo", "transformer-xl", "transformer")
LEARNING_THROUGH_TIME = ("rmt",)
SMALL = ("wikitext-2", "wiki2015", "books")


def recipe(name: str) -> Recipe:
    return load_recipe(RECIPES[0].parent / f"{name}.toml")


def parameters(recipe: Recipe) -> int:
    """How many the model has, without a byte for them."""
    with torch.device("meta"):
        return count_parameters(build(recipe.sized(recipe.model.vocab_size or 256).model, seed=0))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_parses_and_builds(path: Path) -> None:
    made = load_recipe(path)
    assert made.name == path.stem and made.description and made.data.corpus.startswith("data/")
    assert parameters(made) > 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_its_corpus_is_prepared_and_how_it_is_run(path: Path) -> None:
    comment = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(line.startswith("#   remanence prepare ") for line in comment)
    assert f"#   remanence train recipes/{path.name}" in comment


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_the_published_models_have_the_published_number_of_parameters(name: str, count: int) -> None:
    made = recipe(name)
    assert parameters(made) == count
    assert f"{count:,} parameters" in (RECIPES[0].parent / f"{name}.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_optimisation_is_as_published(name: str) -> None:
    made = recipe(name)
    training, lamemo, words = made.training, made.architecture == "lamemo", "wikitext" in name
    expected = (250_000 if words else 50_000) if lamemo else (200_000 if words else 400_000)
    assert training.steps == expected and training.lanes == ((64 if words else 40) if lamemo else (60 if words else 22))
    assert (training.optimizer, training.learning_rate, training.betas, training.epsilon) == (
        "adam",
        2.5e-4,
        (0.9, 0.999),
        1e-8,
    )
    assert (training.schedule, training.warmup_steps, training.floor, training.weight_decay) == ("cosine", 0, 0.0, 0.0)
    # LaMemo's script clips at 0.25 the gradient of half the loss.
    assert training.clip_norm == (0.5 if lamemo else 0.25) and training.seed == 1111
    assert made.model.dropout == 0.1 and made.model.memory_length == made.model.segment_length == (
        150 if words else 512
    )


@pytest.mark.parametrize(("corpus", "lengths"), {"wikitext-103": (64, 640, 400), "enwik8": (80, 2100, 820)}.items())
def test_transformer_xl_is_scored_as_published(corpus: str, lengths: tuple[int, int, int]) -> None:
    evaluation = recipe(f"transformer-xl-{corpus}").evaluation
    assert (evaluation.segment_length, evaluation.memory_length, evaluation.clamp_length) == lengths
    assert evaluation.same_length


@pytest.mark.parametrize("corpus", SMALL)
def test_the_small_recipes_of_a_corpus_differ_in_the_model_alone(corpus: str) -> None:
    tables = []
    for model in MODELS:
        table = table_of(dataclasses.replace(recipe(f"{model}-{corpus}"), name="any", description=""))
        for only in ("architecture", "memory_length", "position", "window", "interpolation_epsilon", "look_ahead_init"):
            table["model"].pop(only, None)
        table["model"].pop("memory_init", None)
        tables.append(table)
    assert tables[0] == tables[1] == tables[2]
    with_memory = [recipe(f"{model}-{corpus}").model.memory_length for model in MODELS[:2]]
    assert with_memory[0] == with_memory[1] > 0


@pytest.mark.parametrize("corpus", SMALL)
@pytest.mark.parametrize("model", LEARNING_THROUGH_TIME)
def test_models_that_learn_through_time_read_as_many_tokens_for_an_update(model: str, corpus: str) -> None:
    """They differ from the others in the model, and in how the tokens of an update are cut into lanes and segments."""
    tables = []
    for name in (model, "transformer-xl"):
        training = recipe(f"{name}-{corpus}").training
        tables.append(dataclasses.replace(training, lanes=training.lanes * training.horizon, horizon=1, engine=None))
    assert tables[0] == tables[1]
    assert recipe(f"{model}-{corpus}").training.horizon > 1
    assert math.isclose(
        parameters(recipe(f"{model}-{corpus}")), parameters(recipe(f"transformer-xl-{corpus}")), rel_tol=0.2
    )


@pytest.mark.parametrize("corpus", SMALL)
def test_the_infinite_former_is_a_transformer_xl_with_something_beside_it(corpus: str) -> None:
    tables = []
    for model in ("infinite-former", "transformer-xl"):
        table = table_of(dataclasses.replace(recipe(f"{model}-{corpus}"), name="any", description=""))
        own = "architecture", *(set(types_of(InfiniteFormerConfig)) - set(types_of(TransformerXLConfig)))
        table["model"] = {name: value for name, value in table["model"].items() if name not in own}
        tables.append(table)
    assert tables[0] == tables[1]


@pytest.mark.parametrize("corpus", SMALL)
def test_the_small_models_are_of_one_size(corpus: str) -> None:
    counts = [parameters(recipe(f"{model}-{corpus}")) for model in MODELS]
    assert max(counts) < 20e6 and math.isclose(min(counts), max(counts), rel_tol=1e-3)


def test_the_recipe_in_the_documentation_parses_and_builds(tmp_path: Path) -> None:
    page = (RECIPES[0].parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    (tmp_path / "shown.toml").write_text(page.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    assert parameters(load_recipe(tmp_path / "shown.toml")) > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_documentation_tells_the_published_counts(name: str) -> None:
    page = (RECIPES[0].parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert f"| [{name}](../recipes/{name}.toml) | {PUBLISHED[name]:,} |" in page


COMPRESSIVE = {
    "compressive-enwik8": 352_807_168,
    "compressive-wikitext-103": 359_637_834,
    "compressive-pg-19": 599_401_728,
}


@pytest.mark.parametrize(("name", "count"), COMPRESSIVE.items())
def test_the_sizes_of_the_compressive_paper_are_told_where_they_stand(name: str, count: int) -> None:
    folder = RECIPES[0].parent
    assert parameters(recipe(name)) == count
    told = (folder / f"{name}.toml").read_text(encoding="utf-8")
    assert f"{count:,} parameters" in told and "were not verified" in told.replace("\n# ", " ")
    page = (folder.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert f"| [{name}](../recipes/{name}.toml) | {count:,} |" in page


def test_the_sizes_of_the_compressive_paper_are_those_that_were_transcribed() -> None:
    sizes = {}
    for name in COMPRESSIVE:
        model, scored = recipe(name).model, recipe(name).evaluation
        lengths = (model.segment_length, model.memory_length, model.compressed_length, model.compression_rate)
        sizes[name] = (model.num_layers, *lengths, scored.memory_length, scored.compressed_length)
        assert (model.compression, model.auxiliary_kind) == ("conv", "attention")
        assert (recipe(name).training.learning_rate, recipe(name).training.clip_norm) == (3e-4, 0.1)
    assert sizes == {
        "compressive-enwik8": (24, 768, 768, 1152, 3, 768, 3072),
        "compressive-wikitext-103": (18, 512, 512, 512, 4, 500, 1500),
        "compressive-pg-19": (36, 512, 512, 512, 2, None, None),
    }


@pytest.mark.parametrize("corpus", SMALL)
def test_the_small_compressive_recipes_differ_from_the_others_in_the_model_alone(corpus: str) -> None:
    ours, theirs = (
        dataclasses.replace(recipe(f"{model}-{corpus}"), name="any", description="")
        for model in ("compressive", "transformer-xl")
    )
    assert dataclasses.replace(ours, model=theirs.model) == theirs
    own = {
        "architecture",
        "compressed_length",
        "compression_rate",
        "compression",
        "auxiliary_weight",
        "compressed_position",
    }
    ours_table, theirs_table = (table_of(each)["model"] for each in (ours, theirs))
    assert {name: value for name, value in ours_table.items() if name not in own} == {
        name: value for name, value in theirs_table.items() if name != "architecture"
    }
    assert 1.0 < parameters(ours) / parameters(theirs) < 1.35


@pytest.mark.parametrize("task", ["sorting", "sorting-small", "mnist-small"])
def test_the_recipes_of_a_task_differ_in_the_model_alone(task: str) -> None:
    made = [recipe(path.stem) for path in RECIPES if path.stem.endswith(f"-{task}")]
    assert len(made) >= 4 and len({each.data for each in made}) == 1
    assert len({dataclasses.replace(each.training, engine=None) for each in made}) == 1
    if "sorting" in task:
        symbols = int(made[0].data.corpus.removeprefix("data/sorting-"))
        segments = -(-(symbols + 20) // made[0].model.segment_length)
        # One update reads whole documents, and the whole answer lies in the last segment.
        assert all(each.training.horizon == segments and each.data.protocol == "document" for each in made)
        assert symbols >= (segments - 1) * made[0].model.segment_length
