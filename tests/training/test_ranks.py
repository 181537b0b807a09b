"""Several processes that train together: what they learn is what one would."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tests.training.ranked import ROOT, Case, launch, outcome, train

from remanence.data import Corpus
from remanence.errors import InputError, SettingWarning
from remanence.training.folder import RunFolder
from remanence.training.horizon import SEED_APART, pieces_of
from remanence.training.ranks import ALONE, Ranks, joined

CASES = [
    Case("lamemo", "replay", 1),
    Case("lamemo", "truncated", 2),
    Case("transformer-xl-adaptive", "recompute", 2),
    Case("infinite-former", "full", 1),
    Case("memformer", "replay", 1),
]
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def alone(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of every case."""
    folder = tmp_path_factory.mktemp("alone")
    with warnings.catch_warnings():
        # Of some settings it is told that they are unwise.
        warnings.simplefilter("ignore", SettingWarning)
        for case in CASES:
            train(case, corpus, folder / case.name, ALONE)
    return folder


def test_two_ranks_learn_what_one_does(corpus: Corpus, alone: Path, tmp_path: Path) -> None:
    launch(2, corpus.folder, tmp_path, CASES)
    found = {case: outcome(alone / case.name).distance(outcome(tmp_path / case.name)) for case in CASES}
    assert {case: each for case, each in found.items() if max(each) > ROUNDING} == {}


def test_a_run_of_two_ranks_goes_on_on_one_and_on_four(corpus: Corpus, alone: Path, tmp_path: Path) -> None:
    case = CASES[0]
    launch(2, corpus.folder, tmp_path, [case], "--steps=3")
    launch(4, corpus.folder, tmp_path, [case], "--steps=4", "--resume")
    train(case, corpus, tmp_path / case.name, ALONE, resume=True)
    assert max(outcome(alone / case.name).distance(outcome(tmp_path / case.name))) < ROUNDING


@pytest.mark.parametrize(("size", "wanted"), [(1, [(0, 0, 8)]), (2, [(0, 0, 8), (0, 4, 8)])])
def test_a_group_of_lanes_may_be_shared_by_ranks(size: int, wanted: list[tuple[int, int, int]]) -> None:
    found = [piece[1:] for rank in range(size) for piece in pieces_of(8 // size, 1, Ranks(rank, size))]
    assert found == wanted


@pytest.mark.parametrize(("groups", "size"), [(4, 2), (2, 4), (4, 4), (6, 3), (1, 3)])
def test_every_lane_of_every_group_belongs_to_one_rank(groups: int, size: int) -> None:
    lanes = 12 // size
    read = [
        (piece.group, piece.offset + lane)
        for rank in range(size)
        for piece in pieces_of(lanes, groups, Ranks(rank, size))
        for lane in range(piece.size)
    ]
    assert read == [(group, lane) for group in range(groups) for lane in range(12 // groups)]


def test_groups_that_fit_no_ranks_are_refused() -> None:
    with pytest.raises(InputError, match=r"accumulation is 2 and there are 3 processes.*multiple"):
        pieces_of(4, 2, Ranks(1, 3))


def test_lanes_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(InputError, match=r"training.lanes is 6.*4 processes.*start 1, 2, 3, 6 processes"):
        Ranks(0, 4).share(6)


def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined() as ranks, ranks.together():
        assert ranks == ALONE and ranks.gather(3) == [3] and ranks.tell("x") == "x"
        assert torch.equal(ranks.sum(torch.ones(2)), torch.ones(2))
        ranks.barrier()


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "two"), ("REMANENCE_TIMEOUT", "-1")])
def test_an_environment_that_means_nothing_is_one_sentence(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each, number in {"RANK": "0", "WORLD_SIZE": "2", name: value}.items():
        monkeypatch.setenv(each, number)
    with pytest.raises(InputError, match=rf"{name} is '{value}'"), joined():
        pass


def test_a_recipe_that_no_rank_can_use_is_told_once(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "remanence", "train", str(tmp_path / "missing.toml")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, "torchrun's own code for a process that failed"
    assert done.stderr.count("remanence: error:") == 1 and "exitcode  : 2" in done.stderr


def test_a_run_goes_on_by_itself_where_it_is_the_launchers_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    own, restarted = Ranks(0, 2, 0, "today"), Ranks(0, 2, 0, "", restarted=True)
    assert not folder.goes_on(own) and not folder.goes_on(restarted)
    (tmp_path / "recipe.toml").write_text("")
    assert folder.goes_on(restarted) and not folder.goes_on(own) and not folder.goes_on(ALONE)
    (tmp_path / "launch").write_text("today")
    assert folder.goes_on(own) and not folder.goes_on(Ranks(0, 2, 0, "tomorrow", restarted=True))


def test_seeds_of_far_lanes_are_numbers_that_a_generator_takes() -> None:
    for offset in (1, 415, 4096, 10**6):
        torch.Generator().manual_seed((2**62 - 1 + SEED_APART * offset) % (1 << 63))
    assert SEED_APART % 2
