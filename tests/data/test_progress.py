"""The progress bar: drawn on a terminal, silent elsewhere."""

from __future__ import annotations

import sys

import pytest

from remanence.data.progress import Progress


def test_nothing_is_drawn_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as bar:
        bar.stage("Reading", 10)
        bar.advance(10)
    assert capsys.readouterr() == ("", "")


def test_stages_are_drawn_on_a_terminal_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress() as bar:
        bar.stage("Reading", 1000)
        bar.advance(1000)
        bar.stage("Merging", None)
    out, drawn = capsys.readouterr()
    assert not out
    assert "Reading" in drawn and "Merging" in drawn


def test_a_quiet_bar_draws_nothing_on_a_terminal_either(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(show=False) as bar:
        bar.stage("Reading", 10)
    assert capsys.readouterr() == ("", "")
