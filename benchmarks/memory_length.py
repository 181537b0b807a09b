"""What memory buys on one text: recipes that differ in the model alone, scored with several memory lengths.

    python benchmarks/memory_length.py --name books --recipes recipes/*-books.toml

trains every recipe, scores the test split with each memory length (and
those beyond the trained one also without holding distances), and writes NAME.json, NAME.md and NAME.png to
benchmarks/results/. Interrupted, it goes on where it was; runs that are finished are not trained again. What is not
known here is taken for a setting of the recipe, such as --training.steps 2000.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from remanence import __version__
from remanence.analysis.palette import model_colour, model_label, model_marker
from remanence.commands.train import validation
from remanence.config import Recipe, load_recipe
from remanence.data import Corpus, Split
from remanence.evaluation import Protocol, Score, evaluate
from remanence.files import write_json, write_text, writing
from remanence.models import ModelConfig
from remanence.training import Run, Trainer, load_run
from remanence.training.log import read_log

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    arguments, flags = parse()
    findings, recipes = [], [load_recipe(path, flags) for path in arguments.recipes]
    corpus = Corpus.open(recipes[0].data.corpus)
    recipes = [recipe.sized(corpus.vocab_size) for recipe in recipes]
    check_alike(recipes)
    for recipe in recipes:
        run = trained(recipe, corpus, arguments.runs / arguments.name / recipe.architecture)
        findings.append(found(run, corpus, arguments.memory_lengths, arguments.lanes, arguments.test_tokens))
    command = f"python benchmarks/memory_length.py {shlex.join(sys.argv[1:])}"
    shown = {**recipe_facts(recipes[0], corpus), "command": command}
    report = {"about": shown, "machine": machine(), "models": findings}
    write_json(RESULTS / f"{arguments.name}.json", report)
    write_text(RESULTS / f"{arguments.name}.md", page(arguments.name, report))
    draw(RESULTS / f"{arguments.name}.png", report)
    print(page(arguments.name, report))


def check_alike(recipes: Sequence[Recipe]) -> None:
    """Nothing but the architecture, and what is an architecture's own, may differ."""
    for recipe in recipes[1:]:
        assert recipe.training == recipes[0].training and recipe.data == recipes[0].data, "the recipes train unlike"
        for field in dataclasses.fields(ModelConfig):
            mine, first = getattr(recipe.model, field.name), getattr(recipes[0].model, field.name)
            assert mine == first, f"the recipes differ in model.{field.name}"


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=Path, nargs="+", required=True)
    parser.add_argument("--name", required=True, help="of the result files and of the folder of runs")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--memory-lengths", type=int, nargs="+", default=[0, 32, 64, 128, 256, 512])
    parser.add_argument("--lanes", type=int, default=16, help="lanes of the test")
    parser.add_argument("--test-tokens", type=int, default=0, help="score so many tokens of the test; 0 for all")
    return parser.parse_known_args()


def trained(recipe: Recipe, corpus: Corpus, folder: Path) -> Run:
    """The finished run of a recipe, trained or resumed where needed."""
    if (folder / "recipe.toml").exists():
        run = load_run(folder, which="last") if (folder / "checkpoints" / "last").exists() else None
        if run is not None and run.step >= recipe.training.steps:
            return run
    split = corpus.split("validation")

    def validate(model: Any) -> dict[str, Any]:
        return validation(model, split, recipe, corpus, trainer.state.precision)

    trainer = Trainer(recipe, corpus, folder, validate=validate, resume=(folder / "recipe.toml").exists())
    if trainer.run().interrupted:
        raise SystemExit("Interrupted; run the same command again to go on.")
    return load_run(folder, which="last")


def found(run: Run, corpus: Corpus, lengths: Sequence[int], lanes: int, test_tokens: int) -> dict[str, Any]:
    """What a run's log says, and its scores with every memory length."""
    text = beginning(corpus.split("test"), test_tokens)
    log = read_log(run.folder / "log.jsonl")
    steps = [record for record in log if record["kind"] == "train"]
    model = run.model.to("cuda" if torch.cuda.is_available() else "cpu")
    memory = run.recipe.model.memory_length
    scores = []
    for length in lengths if memory else [0]:
        for hold in [True, False] if length > memory else [True]:
            protocol = Protocol(memory_length=length, lanes=lanes, hold_distances=hold)
            score = evaluate(model, text, protocol, trained=run.distances, corpus=corpus.name)
            print(f"{run.recipe.architecture}, memory {length}, held {hold}: {score.headline}", file=sys.stderr)
            scores.append({"memory_length": length, "held": hold, **told(score)})
    return {
        "architecture": run.recipe.architecture,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": run.step,
        "tokens": steps[-1]["tokens"],
        "training_seconds": round(steps[-1]["seconds"], 1),
        "precision": next(record["precision"] for record in log if record["kind"] == "start"),
        "training": [[record["tokens"], round(record["seconds"], 2), record["loss"]] for record in steps],
        "validation": validations(log),
        "scores": scores,
    }


def beginning(split: Split, tokens: int) -> Split:
    """The first tokens of a split, with counts in proportion; the whole of it for 0."""
    if not tokens or tokens >= len(split):
        return split
    counts = {name: round(count * tokens / len(split)) for name, count in split.counts.items()}
    documents = split.documents[split.documents < tokens]
    return dataclasses.replace(split, tokens=split.tokens[:tokens], documents=documents, counts=counts)


def told(score: Score) -> dict[str, Any]:
    names = ("nats_per_token", "perplexity", "bits_per_byte", "word_perplexity")
    return {**{name: getattr(score, name) for name in names}, "tokens": score.tokens, "measure": score.measure}


def validations(log: Sequence[dict[str, Any]]) -> list[list[float]]:
    """[tokens, training seconds, nats per token] at each validation."""
    points, here = [], None
    for record in log:
        if record["kind"] == "train":
            here = record
        elif record["kind"] == "validation" and here is not None:
            points.append([here["tokens"], round(here["seconds"], 2), record["nats_per_token"]])
    return points


def recipe_facts(recipe: Recipe, corpus: Corpus) -> dict[str, Any]:
    model, training = recipe.model, recipe.training
    return {
        "corpus": corpus.name,
        "unit": corpus.unit,
        "vocabulary": corpus.vocab_size,
        "model": f"{model.num_layers} layers of width {model.model_width}, {model.num_heads} heads of "
        f"{model.head_width}, feed-forward {model.feed_forward_width}, dropout {model.dropout}",
        "lengths": f"segment {model.segment_length}, memory {model.memory_length}, {training.lanes} lanes",
        "training": f"{training.steps} steps, {training.optimizer}, learning rate {training.learning_rate:g}, "
        f"{training.schedule}, seed {training.seed}",
    }


def machine() -> dict[str, str]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    cores = len(os.sched_getaffinity(0))
    versions = f"remanence {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return {"processor": f"{cores} cores, {platform.machine()}", "gpu": gpu, "versions": versions}


def page(name: str, report: dict[str, Any]) -> str:
    lines = [f"# What memory buys: {name}", ""]
    lines += [f"- {label}: {value}" for label, value in {**report["about"], **report["machine"]}.items()]
    lines += [
        "",
        "| model | parameters | training tokens | training time | final validation |",
        "|---|---|---|---|---|",
    ]
    for model in report["models"]:
        nats = model["validation"][-1][2] if model["validation"] else math.nan
        lines.append(
            f"| {model['architecture']} | {model['parameters']:,} | {model['tokens']:,} "
            f"| {model['training_seconds']:,.0f} s | {nats / math.log(2):.4f} bits per token |"
        )
    lines += ["", "Test text, each token scored once:", ""]
    lines += ["| model | memory at test | distances | bits per byte | perplexity per token | word perplexity |"]
    lines += ["|---|---|---|---|---|---|"]
    for model in report["models"]:
        for score in model["scores"]:
            byte, word = score["bits_per_byte"], score["word_perplexity"]
            lines.append(
                f"| {model['architecture']} | {score['memory_length']} | {'held' if score['held'] else 'not held'} "
                f"| {f'{byte:.4f}' if byte else '-'} | {score['perplexity']:,.3f} | {f'{word:,.1f}' if word else '-'} |"
            )
    return "\n".join(lines) + "\n\n" + f"![curves and memory lengths]({name}.png)\n"


def draw(path: Path, report: dict[str, Any]) -> None:
    """Validation by tokens and by training time, and the test by memory length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    by_tokens, by_time, by_memory = figure.subplots(1, 3)
    for model in report["models"]:
        name = model["architecture"]
        style = {"color": model_colour(name).light, "marker": model_marker(name), "label": model_label(name), "ms": 4}
        points = model["validation"]
        bits = [nats / math.log(2) for _, _, nats in points]
        by_tokens.plot([tokens / 1e6 for tokens, _, _ in points], bits, **style)
        by_time.plot([seconds / 60 for _, seconds, _ in points], bits, **style)
        held = [score for score in model["scores"] if score["held"]]
        bits = [score["nats_per_token"] / math.log(2) for score in held]
        if len(held) == 1:
            by_memory.axhline(bits[0], ls=":", color=style["color"], label=style["label"])
        else:
            by_memory.plot([score["memory_length"] for score in held], bits, **style)
    by_tokens.set(xlabel="training tokens (millions)", ylabel="bits per token", title="validation by tokens")
    by_time.set(xlabel="training time (minutes)", title="validation by time")
    by_memory.set(xlabel="memory length at test time", title="test, distances held beyond the trained")
    by_memory.set_xscale("symlog", base=2, linthresh=32)
    for axes in (by_tokens, by_time, by_memory):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with writing(path) as file:
        figure.savefig(file, format="png", dpi=110)


if __name__ == "__main__":
    Console(stderr=True).rule("what memory buys")
    main()
