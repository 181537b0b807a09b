"""Recipes over seeds: numbers, figures, tables, and sentences that claim no more than the seeds support."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import random
import statistics

import pytest

pytest.importorskip("matplotlib")

from remanence.analysis import trial_plots, trial_tables, trial_wording, trials
from remanence.analysis.comparison import CurvePoint, MemoryScore
from remanence.analysis.palette import looks
from remanence.analysis.trial_report import write_report, write_tables
from remanence.analysis.trials import Contender, Trial, Trials, chance_of, gaps

MEANS = {
    "transformer": 2.31,
    "transformer-xl": 2.10,
    "lamemo": 2.105,
    "compressive": 2.09,
    "infinite-former": 2.12,
    "memformer": 2.2,
    "rmt": 2.18,
}


def make_trial(seed: int, value: float, lengths: tuple[int, ...], own: int, speed: float, draw: random.Random) -> Trial:
    text = random.Random(1)
    sizes = tuple(text.randint(900, 1100) for _ in range(30))
    hard = [text.gauss(0, 0.2) for _ in sizes]
    steps = [(100 * number, value + 1.5 * math.exp(-number / 2)) for number in range(1, 7)]
    curve = tuple(CurvePoint(1000 * step, speed * step, bits + draw.gauss(0, 0.01)) for step, bits in steps)
    return Trial(
        seed=seed,
        folder=f"runs/x/seed-{seed}",
        steps=600,
        tokens=600_000,
        seconds=600 * speed,
        training=curve,
        validation=curve,
        validation_value=value + 0.02,
        by_memory=tuple(
            MemoryScore(length, value + (0.2 * math.exp(-length / 30) if length != own else 0.0), 30_000, 1.0)
            for length in lengths
        ),
        value=value,
        bits=value,
        stretch_nats=tuple(
            (value + where + draw.gauss(0, 0.01)) * math.log(2) * size for where, size in zip(hard, sizes, strict=True)
        ),
        stretch_tokens=sizes,
        evaluation_speed=50_000.0,
    )


def make_trials(names: tuple[str, ...] = tuple(MEANS), seeds: int = 3, spread: float = 0.005) -> Trials:
    found = []
    for index, name in enumerate(names):
        draw = random.Random(name)
        own = {"transformer": 0, "memformer": 32, "rmt": 8}.get(name, 64)
        lengths = {"transformer": (0,), "memformer": (0, 32), "rmt": (0, 8)}.get(name, (0, 32, 64, 128))
        speed = 0.03 + 0.01 * index
        found.append(
            Contender(
                name=f"{name}-books",
                architecture=name,
                parameters=3_000_000 + index,
                memory_kind=name,
                memory_length=own,
                memory_bytes=own * 4096,
                training_flops=9e6 * (1 + index / 10),
                evaluation_flops=3e6 * (1 + index / 10),
                step_tokens=1000,
                steps=600,
                recipe=f'name = "{name}-books"\n',
                trials=tuple(
                    make_trial(seed, MEANS[name] + draw.gauss(0, spread), lengths, own, speed, draw)
                    for seed in range(1, seeds + 1)
                ),
            )
        )
    return Trials(
        title="Seven memories on books",
        measure="bits per byte",
        higher_is_better=False,
        budget="tokens",
        amount=600_000.0,
        text="books",
        seeds=tuple(range(1, seeds + 1)),
        contenders=tuple(found),
        protocol={"Scored": "Everything once."},
        settings={"Text": "books"},
        machine={"Machine": "2 cores"},
        gaps=gaps(found),
        date="2026-01-31 12:00",
        version="0.1.0",
        command="remanence compare <books>",
    )


def failed(found: Trials, name: str, seed: int) -> Trials:
    """The same with one run that failed."""
    contenders = tuple(
        dataclasses.replace(
            each,
            trials=tuple(
                Trial(seed, "", failed="it <burnt>") if trial.seed == seed else trial for trial in each.trials
            ),
        )
        if each.architecture == name
        else each
        for each in found.contenders
    )
    return dataclasses.replace(found, contenders=contenders, gaps=gaps(contenders))


def test_it_comes_back_equal_from_its_file(tmp_path):
    found = failed(make_trials(), "lamemo", 2)
    found.save(tmp_path / "results.json")
    assert Trials.load(tmp_path / "results.json") == found


def test_the_spread_is_that_of_a_sample_and_one_seed_has_none():
    assert trials.spread([1.0, 2.0, 4.0]) == pytest.approx(math.sqrt(7 / 3))
    assert trials.spread([1.0]) is None


@pytest.mark.parametrize(
    ("t", "freedom", "chance"),
    # From printed tables of Student's t: two-sided 5 %, 1 % and 10 %.
    [(12.706, 1, 0.05), (4.303, 2, 0.05), (2.776, 4, 0.05), (9.925, 2, 0.01), (1.812, 10, 0.1), (0.0, 3, 1.0)],
)
def test_the_tail_of_students_t_is_that_of_printed_tables(t, freedom, chance):
    assert trials._two_sided(t, freedom) == pytest.approx(chance, rel=2e-3)


def test_welch_is_what_repeated_draws_show():
    draw = random.Random(2)
    found = [chance_of([draw.gauss(0, 1) for _ in range(3)], [draw.gauss(0, 3) for _ in range(3)]) for _ in range(1000)]
    assert 0.02 < statistics.mean(each is not None and each < 0.05 for each in found) < 0.075


def test_values_without_spread_or_company_have_no_test_to_pass():
    assert chance_of([1.0], [2.0, 3.0]) is None
    assert chance_of([1.0, 1.0], [2.0, 2.0]) == 0.0
    assert chance_of([1.0, 1.0], [1.0, 1.0]) == 1.0


def test_a_large_gap_is_told_apart_and_a_small_one_is_not():
    found = make_trials()
    assert found.gap("transformer-books", "lamemo-books").settled(len(found.gaps), higher_is_better=False)
    assert not found.gap("transformer-xl-books", "lamemo-books").settled(len(found.gaps), higher_is_better=False)
    there, back = found.gap("rmt-books", "lamemo-books"), found.gap("lamemo-books", "rmt-books")
    assert there.value == -back.value and there.bits == -back.bits


def test_more_pairs_ask_for_more():
    gap = dataclasses.replace(make_trials().gaps[0], chance=0.01, apart=True)
    assert gap.settled(3, higher_is_better=False) and not gap.settled(21, higher_is_better=False)


def test_seeds_that_cross_are_never_told_apart():
    gap = dataclasses.replace(make_trials().gaps[0], chance=1e-9, apart=False)
    assert not gap.settled(1, higher_is_better=False)


@pytest.mark.parametrize("value", [-0.1, 0.1])
@pytest.mark.parametrize("higher_is_better", [False, True])
def test_text_that_says_the_opposite_of_the_seeds_settles_nothing(value, higher_is_better):
    gap = dataclasses.replace(make_trials().gaps[0], value=value, chance=1e-9, apart=True, text_error=0.01)
    agreeing = -value if higher_is_better else value
    assert dataclasses.replace(gap, bits=agreeing).settled(1, higher_is_better)
    assert not dataclasses.replace(gap, bits=-agreeing).settled(1, higher_is_better)
    assert not dataclasses.replace(gap, bits=agreeing / 6).settled(1, higher_is_better)
    assert dataclasses.replace(gap, bits=-agreeing, text_error=None).settled(1, higher_is_better)


def test_a_better_accuracy_with_more_bits_beats_nothing():
    found = dataclasses.replace(make_trials(), higher_is_better=True)
    said = [finding.text for finding in trial_wording.verdict(found)]
    assert not any("beats" in text or "is worse" in text for text in said)
    assert any(text.endswith("0 are told apart; the order of the others may be chance.") for text in said)


def test_one_seed_claims_nothing():
    found = make_trials(seeds=1)
    said = " ".join(finding.text for finding in trial_wording.verdict(found))
    assert "beats" not in said and "told apart from every" not in said and "no more than a number" in said
    assert all(finding.good is None for finding in trial_wording.verdict(found))
    assert "One seed says nothing" in trial_wording.limits(found)[0]


def test_recipes_that_are_alike_are_hardly_ever_told_apart():
    wins = 0
    for number in range(100):
        draw = random.Random(number)
        some = [
            dataclasses.replace(
                each, trials=tuple(dataclasses.replace(t, value=2 + draw.gauss(0, 0.01)) for t in each.trials)
            )
            for each in make_trials(("lamemo", "rmt", "memformer")).contenders
        ]
        wins += any(gap.settled(3, higher_is_better=False) for gap in gaps(some))
    assert wins <= 10


def test_memory_that_wins_with_every_seed_is_said_to_beat_none():
    said = [finding.text for finding in trial_wording.verdict(make_trials())]
    assert any(text.startswith("LaMemo beats the model without memory by") for text in said)
    assert any("but not from" in text or "none of the others" in text for text in said)


def test_a_memory_that_loses_is_said_to_lose():
    found = make_trials()
    turned = tuple(dataclasses.replace(gap, bits=-gap.bits) for gap in found.gaps)
    worse = dataclasses.replace(found, higher_is_better=True, gaps=turned)
    said = [finding.text for finding in trial_wording.verdict(worse)]
    assert any(text.startswith("LaMemo is worse than the model without memory") for text in said)
    assert worse.ranked[0].architecture == "transformer"


def test_scores_of_other_text_have_no_error_over_text():
    found = make_trials(("lamemo", "memformer"))
    other = dataclasses.replace(
        found.contenders[1],
        trials=tuple(dataclasses.replace(t, stretch_tokens=(5,) * 30) for t in found.contenders[1].trials),
    )
    (gap,) = gaps([found.contenders[0], other])
    assert gap.text_error is None and gap.seed_error is not None
    assert "other text" in trial_tables.gap_rows(dataclasses.replace(found, gaps=(gap,)))[1][0]


def test_a_failed_run_is_in_every_table():
    found = failed(make_trials(), "lamemo", 2)
    assert "lamemo-books, seed 2, failed: it <burnt>" in trial_tables.plain(found)
    assert "2/3" in trial_tables.plain(found) and "it <burnt>" in trial_tables.markdown(found)
    rows = list(csv.DictReader(io.StringIO(trial_tables.comma_separated(found))))
    assert rows[2]["seed_2"] == "failed" and float(rows[2]["mean"]) == pytest.approx(
        statistics.mean(found.contenders[2].values)
    )
    assert any("seed 2 failed: it <burnt>." in finding.text for finding in trial_wording.verdict(found))


def test_a_recipe_without_any_score_leaves_the_rest_whole(tmp_path):
    found = make_trials(("transformer", "lamemo", "rmt"))
    for seed in (1, 2, 3):
        found = failed(found, "lamemo", seed)
    write_tables(found, tmp_path)
    write_report(found, tmp_path)
    assert len(found.gaps) == 1 and "failed" in (tmp_path / "table.txt").read_text()


def test_every_figure_names_every_recipe_and_its_axes():
    found = make_trials()
    for draw in (
        trial_plots.curves_by_tokens,
        trial_plots.curves_by_seconds,
        trial_plots.by_memory,
        trial_plots.by_flops,
        trial_plots.by_seconds,
        trial_plots.by_memory_bytes,
    ):
        (axes,) = draw(found).axes
        texts = [text.get_text() for text in axes.texts]
        assert {look.label for look in looks({e.name: e.architecture for e in found.contenders}).values()} <= set(texts)
        assert axes.get_xlabel() and axes.get_ylabel()


def test_bands_take_seeds_together_where_they_were_measured_alike():
    curves = [[CurvePoint(10, 1.0, 3.0), CurvePoint(20, 2.0, 2.0)], [CurvePoint(20, 2.5, 2.2)]]
    assert trial_plots.band(curves) == [[CurvePoint(20, 2.0, 2.0), CurvePoint(20, 2.5, 2.2)]]
    assert trial_plots.band([]) == []


def test_the_page_is_whole_and_escapes_what_it_is_given(tmp_path):
    write_report(failed(make_trials(), "lamemo", 2), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6 and "$" not in page
    assert "it &lt;burnt&gt;" in page and "<burnt>" not in page and "&lt;books&gt;" in page


def test_recipes_of_one_architecture_differ_in_name_and_look():
    found = looks({"small": "lamemo", "large": "lamemo", "xl": "transformer-xl"})
    assert found["small"].label == "small" and found["xl"].label == "Transformer-XL"
    assert len({look.colour for look in found.values()}) == 3
