"""Sentences claim what the numbers allow, and no more."""

import dataclasses

import pytest
from tests.analysis.synthetic import make_comparison

from remanence.analysis import CurvePoint, wording


def with_bits(comparison, architecture, bits):
    """The comparison in which a model's score at the training memory is another."""
    models = []
    for model in comparison.models:
        if model.architecture == architecture:
            scores = tuple(
                dataclasses.replace(score, value=bits) if score.memory_length in (0, 64) else score
                for score in model.by_memory
            )
            model = dataclasses.replace(model, by_memory=scores)
        models.append(model)
    return dataclasses.replace(comparison, models=tuple(models), differences=())


def test_a_clear_gain_over_no_memory_is_called_clear():
    findings = wording.verdict(make_comparison())
    assert [finding.good for finding in findings[:2]] == [True, True]
    assert "LaMemo clearly beats the model without memory" in findings[1].text


def test_a_memory_that_does_not_help_is_called_wrong():
    finding = wording.verdict(with_bits(make_comparison(), "lamemo", 2.4))[1]
    assert finding.good is False and "LaMemo does not beat" in finding.text and "something is wrong" in finding.text


def test_a_gain_within_its_error_is_not_called_clear():
    comparison = make_comparison()
    unsure = tuple(dataclasses.replace(entry, error=0.2) for entry in comparison.differences)
    finding = wording.verdict(dataclasses.replace(comparison, differences=unsure))[0]
    assert finding.good is False and "does not beat the model without memory clearly" in finding.text


def test_equal_tokens_name_who_is_ahead_and_by_how_much():
    comparison = make_comparison()
    behind = wording.verdict(comparison)[2].text
    assert "behind Transformer-XL" in behind and "1.0%" in behind and "± 0.004" in behind
    ahead = wording.verdict(with_bits(comparison, "lamemo", 2.0))[2].text
    assert "ahead of Transformer-XL" in ahead


def test_a_difference_within_two_errors_is_no_difference():
    comparison = make_comparison()
    unsure = tuple(dataclasses.replace(entry, error=0.02) for entry in comparison.differences)
    text = wording.verdict(dataclasses.replace(comparison, differences=unsure))[2].text
    assert "closer than this test text can tell" in text


def test_equal_seconds_compare_at_the_end_of_the_quicker_model():
    text = wording.verdict(make_comparison())[3].text
    assert "1.65 times" in text and "had not fallen yet" in text


def test_a_curve_is_read_between_its_points_only():
    points = [CurvePoint(1, 10.0, 3.0), CurvePoint(2, 20.0, 2.0)]
    assert wording.bits_after(points, 15.0) == pytest.approx(2.5)
    assert wording.bits_after(points, 20.0) == pytest.approx(2.0)
    assert wording.bits_after(points, 9.0) is None and wording.bits_after(points, 21.0) is None


def test_one_model_alone_has_a_verdict_too():
    comparison = make_comparison()
    for model in comparison.models:
        wording.verdict(dataclasses.replace(comparison, models=(model,)))


@pytest.mark.parametrize(("seconds", "text"), [(9.4, "9 s"), (60.0, "1 min 00 s"), (287.4, "4 min 47 s")])
def test_durations_read_like_speech(seconds, text):
    assert wording.duration(seconds) == text
