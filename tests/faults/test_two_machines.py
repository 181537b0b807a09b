"""Two machines train together, their link is cut and restored, and nothing of it can be seen in the weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.launch import Launch, reached, wait_for_step
from tests.faults.network import ADDRESSES, Machines
from tests.faults.nursery import Nursery
from tests.faults.setting import Setting, Undisturbed

STEPS = 120
CUT_AT = 25


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("machines")
    with Nursery(folder / "nursery") as nursery:
        yield Setting(folder / "setting", nursery)


@pytest.fixture(scope="module")
def recipe(setting: Setting) -> Path:
    return setting.write_recipe("together", steps=STEPS, save_every=10, validate_every=0)


@pytest.fixture(scope="module")
def undisturbed(setting: Setting, recipe: Path) -> Undisturbed:
    """Two processes on one machine."""
    run = setting.folder / "together"
    options = ["--standalone", "--nproc-per-node", "2"]
    launch = Launch(options, ["train", recipe, "--folder", run], setting.folder / "together.told")
    ended = launch.wait()
    assert ended.code == 0, ended.told
    return Undisturbed.of(run)


@pytest.fixture
def machines() -> Iterator[Machines]:
    if why := Machines.missing():
        pytest.skip(why)
    with Machines() as both:
        yield both


@pytest.mark.parametrize(
    ("seconds", "patience", "restarts"),
    [pytest.param(1.5, 60, 0, id="short"), pytest.param(6.0, 3, 1, id="long")],
)
def test_a_cut_link_changes_no_weight(
    seconds: float,
    patience: int,
    restarts: int,
    machines: Machines,
    setting: Setting,
    recipe: Path,
    undisturbed: Undisturbed,
    tmp_path: Path,
) -> None:
    """A short cut is waited out; after a long one the ranks give up, meet again and go on from the checkpoint."""
    run = tmp_path / "run"
    launches = [
        Launch(
            [
                *("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--monitor-interval", "0.2"),
                *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29500", "--rdzv-id", run.parent.name),
                *("--rdzv-conf", f"is_host={int(number == 0)}", "--local-addr", ADDRESSES[number]),
            ],
            ["train", recipe, "--folder", run],
            tmp_path / f"told-{number}",
            before=machines.inside(number),
            GLOO_SOCKET_IFNAME=machines.devices[number],
            REMANENCE_TIMEOUT=str(patience),
        )
        for number in range(2)
    ]
    wait_for_step(launches, run, CUT_AT)
    machines.cut()
    time.sleep(seconds)
    during = reached(run)
    machines.restore()
    ended = [each.wait() for each in launches]
    assert [each.code for each in ended] == [0, 0], "\n".join(each.told[-2000:] for each in ended)
    assert during < STEPS, "the run ended while the link was cut: nothing was disturbed"
    assert Undisturbed.of(run) == undisturbed
    log = (run / "log.jsonl").read_text()
    assert log.count('"resume"') == restarts
