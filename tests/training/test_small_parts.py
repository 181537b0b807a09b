"""Units, precision, device, display and signals."""

from __future__ import annotations

import io
import math
import os
import signal
import threading

import pytest
import torch
from rich.console import Console

from remanence.errors import InputError
from remanence.training import precision
from remanence.training.device import choose_device
from remanence.training.interrupts import Interrupted, Interrupts
from remanence.training.progress import Display, duration
from remanence.training.units import unit_of


@pytest.mark.parametrize(
    ("unit", "counts", "nats", "told"),
    [
        ("byte", {}, math.log(2), "1.000 bits per byte"),
        ("character", {}, math.log(4), "2.000 bits per character"),
        ("word", {}, math.log(1120.25), "1,120.25 perplexity"),
        ("token", {"tokens": 20, "words": 8, "lines": 2}, math.log(3), "9.00 word perplexity"),
        ("token", {}, math.log(8), "8.00 perplexity"),
        ("word", {}, 1e6, "1.014e+304 perplexity"),
    ],
)
def test_the_loss_is_told_in_the_unit_of_the_corpus(unit: str, counts: dict[str, int], nats: float, told: str) -> None:
    assert unit_of(unit, counts).text(nats) == told


@pytest.mark.parametrize(("faster", "chosen"), [(2.0, "bfloat16"), (1.1, "float32"), (0.5, "float32")])
def test_auto_takes_bfloat16_only_where_it_is_clearly_faster(
    faster: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_seconds", lambda left, right: 1 / faster if left.dtype == torch.bfloat16 else 1.0)
    precision._measured.cache_clear()
    assert precision.choose("auto", "cpu") == chosen
    assert precision.choose("float32", "cpu") == "float32" and precision.choose("bfloat16", "cpu") == "bfloat16"
    precision._measured.cache_clear()


def test_measuring_draws_nothing_from_the_generators() -> None:
    precision._measured.cache_clear()
    before = torch.get_rng_state()
    assert precision.choose("auto", torch.device("cpu")) in ("float32", "bfloat16")
    assert torch.equal(before, torch.get_rng_state())


def test_autocast_computes_products_in_bfloat16() -> None:
    left = torch.ones(2, 2)
    with precision.autocast("bfloat16", "cpu"):
        assert (left @ left).dtype == torch.bfloat16
    with precision.autocast("float32", "cpu"):
        assert (left @ left).dtype == torch.float32


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "meta:x"])
def test_a_device_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(InputError, match=f'The device "{name}" was asked for, .* cannot use; choose auto, cpu'):
        choose_device(name)


def test_auto_is_a_gpu_or_the_cpu() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (303, "5 min 03 s"), (7620, "2 h 07 min")]
)
def test_durations_are_told_as_people_say_them(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_without_a_terminal_progress_is_a_plain_line_now_and_then() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, width=60), steps=100, done=0)
    display.start()
    for step in range(1, 6):
        display.step(step)
        display.trained(step, "2.5 bits per byte [x]", 1234.5)
    display.stop()
    (line,) = out.getvalue().splitlines()
    assert line.startswith("step 1 of 100: 2.5 bits per byte [x], 1,234 tokens/s, ") and line.endswith(" left")


def test_on_a_terminal_progress_is_a_bar() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, width=140), steps=100, done=0)
    display.start()
    display.trained(40, "2.5 bits per byte", 1234.5)
    display.doing("validating")
    display.stop()
    assert "validating" in out.getvalue() and "40/100" in out.getvalue() and "step 40" not in out.getvalue()


def test_the_first_signal_is_remembered_and_the_second_stops_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "saving after this step" in capfd.readouterr().err


def test_work_that_changes_nothing_is_left_at_the_first_signal() -> None:
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted), interrupts.at_once():
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted), interrupts.at_once():
            pytest.fail("was entered after the signal")


def test_outside_the_main_thread_no_handler_is_set() -> None:
    before = signal.getsignal(signal.SIGINT)
    found = []

    def enter() -> None:
        with Interrupts():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_repeated_sigterm_is_the_same_notice_and_a_second_ctrl_c_ends_at_once() -> None:
    with Interrupts(speaking=False) as interrupts:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
