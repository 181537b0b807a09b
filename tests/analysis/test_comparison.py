"""A comparison is plain data that survives its file."""

import json

import pytest
from tests.analysis.synthetic import make_comparison

from remanence.analysis import Comparison
from remanence.errors import InputError


def test_a_comparison_comes_back_equal_from_its_file(tmp_path):
    comparison = make_comparison()
    comparison.save(tmp_path / "results.json")
    assert Comparison.load(tmp_path / "results.json") == comparison


def test_a_difference_can_be_asked_for_in_both_directions():
    comparison = make_comparison()
    there = comparison.difference("lamemo", "transformer-xl")
    back = comparison.difference("transformer-xl", "lamemo")
    assert there and back and there.value == -back.value and there.error == back.error
    assert comparison.difference("lamemo", "lamemo") is None


def test_a_model_without_memory_has_one_score_for_every_memory_length():
    comparison = make_comparison()
    none, lamemo = comparison.model("transformer"), comparison.model("lamemo")
    assert none and lamemo
    assert none.at_memory(64) == none.at_memory(0) == none.by_memory[0]
    assert lamemo.at_memory(64) == lamemo.by_memory[2] and lamemo.at_memory(63) is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"models": 3},
        {"unknown": 1},
        {"title": 5},
        {"models": [{"architecture": "lamemo"}]},
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, change):
    path = tmp_path / "results.json"
    make_comparison().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="again"):
        Comparison.load(path)
