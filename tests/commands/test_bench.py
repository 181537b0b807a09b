"""`remanence bench`, from the command line to its results."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remanence.bench.checks import Disagreement
from remanence.cli import main
from remanence.models import LaMemo

NUMBERS = (int, float)


def bench(kind: str, folder: Path, *flags: str) -> dict[str, Any]:
    assert main(["bench", kind, "--quick", "--rounds", "2", "--out", str(folder), *flags]) == 0
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    page = (folder / "results.md").read_text(encoding="utf-8")
    assert page.startswith(f"# remanence bench {kind}\n") and "## Agreed before timing" in page and "| --- |" in page
    return found


def check_layout(found: dict[str, Any], kind: str) -> None:
    """What every results.json holds."""
    assert found["version"] == 1 and found["kind"] == kind
    assert set(found) == {
        "version",
        "kind",
        "about",
        "settings",
        "peak",
        "checks",
        "rows",
        "fits",
        "notes",
    }
    assert found["about"]["command"].startswith(f"remanence bench {kind} --quick")
    assert {"processor", "cores", "threads", "gpu", "device", "allocator"} <= set(found["about"]["machine"])
    assert {"python", "torch"} <= set(found["about"]["versions"]) and found["about"]["date"].startswith("20")
    assert found["peak"]["flops_per_second"] > 0 and found["peak"]["measured"] >= 3
    assert found["settings"]["shape"]["name"] == "quick" and found["checks"]
    for row in found["rows"]:
        if "seconds" in row:
            times = row["seconds"]
            assert 0 < times["fastest"] <= times["lower_quartile"] <= times["median"] <= times["slowest"]


def test_training_steps_of_all_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = bench("train", tmp_path / "new" / "folder", "--memory-length", "4", "8", "16", "--no-peers")
    check_layout(found, "train")
    rows = found["rows"]
    assert [row["model"] for row in rows if row["memory_length"] == 8] == [
        "transformer-xl",
        "lamemo",
        "compressive",
        "infinite-former",
    ]
    assert sum(row["model"] == "transformer" for row in rows) == 1
    for row in rows:
        assert row["flops_from"] == "formula" and 0 < row["share_of_peak"] < 1 and row["peak_bytes"] > 0
        assert row["tokens_per_second"] == pytest.approx(16 / row["seconds"]["median"])
        assert row["share_of_peak"] == pytest.approx(
            row["flops"] / row["seconds"]["median"] / found["peak"]["flops_per_second"]
        )
        if row["model"] == "transformer-xl":
            assert row["times_reference"] == 1.0
    fits = {fit["model"]: fit for fit in found["fits"]}
    assert set(fits) == {"transformer-xl", "lamemo", "compressive", "infinite-former"}
    # Bytes are counted, so that they are as linear here as anywhere.
    assert fits["lamemo"]["peak_bytes"]["explained"] > 0.99 and fits["lamemo"]["lengths"] == [4, 8, 16]
    shown = capsys.readouterr().out
    assert "A training step" in shown and "of the peak" in shown and "results.json" not in shown
    assert "equal weights in float32" in shown


def test_training_steps_of_other_packages(tmp_path: Path) -> None:
    pytest.importorskip("x_transformers")
    found = bench("train", tmp_path, "--models", "transformer-xl", "--memory-length", "8")
    others = {row["model"]: row for row in found["rows"] if not row["own"]}
    assert set(others) == {
        "x-transformers XL",
        "GPT-2",
        "compressive-transformer-pytorch",
        "memformer package",
        "recurrent-memory-transformer-pytorch",
    }
    for row in others.values():
        assert row["flops_from"] == "counted" and row["flops"] > 0 and row["parameters"] > 0
    assert any("T5 biases" in note for note in found["notes"])


def test_evaluation_with_and_without_projections(tmp_path: Path) -> None:
    found = bench("evaluate", tmp_path, "--models", "transformer-xl", "lamemo", "rmt", "--dtype", "bfloat16")
    check_layout(found, "evaluate")
    own = {
        (row["model"], row["kept"], row["segment_length"]): row
        for row in found["rows"]
        if row["own"] and row["packed"] == row["kept"]
    }
    assert {key[2] for key in own} == {4, 1} and ("transformer-xl", True, 1) in own
    assert own["transformer-xl", True, 4]["times_faster_than_plain"] > 0
    assert own["transformer-xl", False, 4]["times_faster_than_plain"] is None
    assert own["transformer-xl", True, 4]["times_faster_by_keeping"] > 0
    assert any(row["packed"] and not row["kept"] for row in found["rows"])
    # Nothing can be kept of it.
    assert ("rmt", True, 4) not in own
    assert any("projections kept" in sentence for sentence in found["checks"])


def test_one_protocol_of_ones_own(tmp_path: Path) -> None:
    flags = ["--no-peers", "--models", "transformer-xl", "--segment-length", "2", "--memory-length", "6", "10"]
    found = bench("evaluate", tmp_path, *flags, "--lanes", "3")
    assert {(row["segment_length"], row["memory_length"], row["lanes"]) for row in found["rows"]} == {
        (2, 6, 3),
        (2, 10, 3),
    }


def test_generation_after_few_and_many_tokens(tmp_path: Path) -> None:
    found = bench("generate", tmp_path, "--models", "lamemo", "memformer", "--tokens", "10", "300", "--batch", "2")
    check_layout(found, "generate")
    rows = {(row["model"], row["after_tokens"]): row for row in found["rows"]}
    assert {("lamemo", 10), ("lamemo", 300), ("lamemo, refreshing at every token", 10)} <= set(rows)
    assert rows["lamemo", 10]["times_first_place"] == 1.0 and rows["lamemo", 300]["times_first_place"] > 0
    assert rows["lamemo", 10]["times_refreshing"] > 0 and rows["lamemo", 300]["batch"] == 2
    if importlib.util.find_spec("transformers"):
        assert rows["lamemo", 10]["times_gpt2"] > 0
    assert any("lamemo gives token by token" in sentence for sentence in found["checks"])
    if sys.platform == "linux":
        assert rows["lamemo", 300]["resident_bytes_last"] > 1e7


def test_operations_beside_their_definition(tmp_path: Path) -> None:
    found = bench("ops", tmp_path, "--memory-length", "8")
    check_layout(found, "ops")
    operations = {row["operation"] for row in found["rows"]}
    assert operations == {"attention", "look-ahead", "vocabulary head", "dropout", "training run"}
    (run,) = [row for row in found["rows"] if row["operation"] == "training run"]
    assert 0 < run["share_loading"] < 1 and 0 < run["share_logging"] < 1 and run["steps"] == 10
    heads = [row for row in found["rows"] if row["operation"] == "vocabulary head"]
    assert {row["implementation"] for row in heads} == {"remanence", "definition", "plain PyTorch"}


def test_results_that_differ_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = LaMemo._look_back

    def wrong(self: Any, *arguments: Any, **options: Any) -> Any:
        read = plain(self, *arguments, **options)
        return read._replace(context=read.context.flip(2))

    monkeypatch.setattr(LaMemo, "_look_back", wrong)
    assert main(["bench", "train", "--quick", "--no-peers", "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("remanence bench: error: lamemo on an empty memory beside transformer: ")
    assert err.endswith("; nothing was timed.\n") and not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "is missing"),
        (["nothing"], "nothing"),
        (["train", "--models", "lamem"], "did you mean 'lamemo'?"),
        (["train", "--models", "rmt", "rmt"], "at most once"),
        (["train", "--rounds", "0"], "--rounds is 0, but it must be 1 or more."),
        (["train", "--threads", "0"], "--threads is 0, but it must be 1 or more."),
        (["train", "--dropout", "1"], "--dropout is 1, but it must be at least 0 and below 1."),
        (["train", "--memory-length", "-1"], "--memory-length is [-1], but it must be numbers of 0 or more."),
        (["train", "--vocabulary", "1"], "--vocabulary is 1, but it must be 2 or more."),
        (["train", "--device", "nowhere"], 'The device "nowhere"'),
        (["train", "--tokens", "5"], "--tokens says nothing to remanence bench train"),
        (["generate", "--compile"], "--compile says nothing to remanence bench generate"),
        (["generate", "--memory-length", "4", "8"], "takes one --memory-length"),
        (["generate", "--batch", "0"], "--batch is [0]"),
        (["evaluate", "--segment-length", "4"], "give both, or neither"),
        (["train", "--shape", "huge"], "--shape"),
        (["train", "--threads", "100000000"], "--threads is 100000000, but it must be"),
        (["train", "--memory-length", "9" * 23], "but it must be 10,000,000 or less."),
        (["generate", "--tokens", "9" * 23], "but it must be 1,000,000,000 or less."),
        (["train", "--quick", "--shape", "small"], "--shape says nothing beside --quick"),
        (["train", "--out", ""], "--out is empty"),
        (["ops", "--no-peers"], "--no-peers says nothing to remanence bench ops"),
        (["nosuch"], "choose train, evaluate, generate or ops."),
    ],
)
def test_what_cannot_be_measured_is_refused(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("remanence: error: ") and err.count("\n") == 1 and told in err


def test_a_folder_that_cannot_be_made_is_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["bench", "train", "--quick", "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err


def test_ctrl_c_is_told_in_a_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("remanence.bench.train.interleave", stop)
    assert main(["bench", "train", "--quick", "--no-peers", "--models", "transformer"]) == 130
    assert capsys.readouterr() == ("", "remanence: interrupted\n")


def test_help_needs_no_torch() -> None:
    """It is shown at once."""
    told = "import sys; from remanence.cli import main; main(['bench', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert "--memory-length" in done.stdout and done.stdout.rstrip().endswith("False")


def test_disagreement_is_no_error_of_the_user() -> None:
    assert not issubclass(Disagreement, ValueError)


def test_what_is_not_there_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(
        "evaluate", tmp_path, "--models", "lamemo", "rmt", "--no-peers", "--segment-length", "4", "--memory-length", "8"
    )
    for row in found["rows"]:
        assert row["times_reference"] is None and (row["times_faster_by_keeping"] is not None) == row["kept"]
        assert row["memory_length"] == (8 if row["model"] == "lamemo" else None)
    assert not any("rmt" in sentence and "projections kept" in sentence for sentence in found["checks"])
    out = capsys.readouterr().out
    assert "x XL" not in out and "the figures mean nothing" in out and "shape quick: 2 layers of width 32" in out


def test_results_of_another_command_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text('{"about": {"command": "remanence bench ops"}}')
    assert main(["bench", "train", "--quick", "--out", str(tmp_path)]) == 2
    assert 'holds the results of "remanence bench ops", which would be lost' in capsys.readouterr().err


def test_nothing_is_left_of_a_bench_that_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("remanence.commands.bench.run", stop)
    assert main(["bench", "train", "--quick", "--out", str(tmp_path / "a" / "b")]) == 130
    assert not (tmp_path / "a").exists()


def test_the_help_of_one_bench_shows_its_own_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "remanence bench train" in out and "--compile" in out and "--tokens" not in out and "FOLDER" in out


def test_small_figures_are_not_rounded_to_nothing() -> None:
    from remanence.bench.result import figure

    assert [figure(number) for number in (0, 0.0123, 4.3, 1234.5, -1)] == [
        "0",
        "0.0123",
        "4.30",
        "1,234",
        "\N{MINUS SIGN}1.00",
    ]
