"""The comparison that `remanence demo` makes: from a text to a report, within a given time."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

import remanence
from remanence.analysis import compare, plots
from remanence.analysis.comparison import Comparison, ModelFindings, TextFacts
from remanence.analysis.palette import model_label
from remanence.analysis.plan import EVALUATION_END, Cost, Plan, plan_steps, plan_tokens
from remanence.analysis.report import render
from remanence.analysis.small import configure, lanes_and_horizon
from remanence.analysis.wording import duration
from remanence.config import DataSettings, Recipe, TrainingSettings, dump_recipe
from remanence.data import Corpus
from remanence.data.corpus import Split
from remanence.data.prepare import prepare
from remanence.errors import InputError
from remanence.evaluation import Score
from remanence.files import sha256_file, write_text, writing
from remanence.generation import Sampling
from remanence.models import build
from remanence.training.precision import choose

WARMUP_SHARE = 0.1
"""Of all steps."""
SAMPLING = Sampling(temperature=0.7, top_p=0.95)
FEW_STEPS = 600
"""With fewer, models have hardly begun to use a memory."""
SMALLEST_TEXT = 100_000


@dataclass(frozen=True)
class Scale:
    """How large everything is. Lengths and amounts are in tokens, which are bytes."""

    segment_length: int = 64
    memory_length: int = 64
    memory_lengths: tuple[int, ...] = (0, 32, 64, 128, 256)
    """At test time; that of training is among them."""
    num_layers: int = 4
    model_width: int = 128
    num_heads: int = 4
    lanes: int = 32
    learning_rate: float = 4e-3
    validation_tokens: int = 16_384
    lanes_scored: int = 16
    least_scored: int = 65_536
    most_scored: int = 131_072
    sample_tokens: int = 500
    prompt_tokens: int = 400

    @property
    def step_tokens(self) -> int:
        return self.lanes * self.segment_length


class Demo:
    """One demo.

    text        a file to read; None for the standard library of the running Python
    out         everything goes below this folder
    seconds     how long all may take, counted from `began` (a value of time.perf_counter)
    console     where progress is told
    scale       smaller for tests
    """

    def __init__(
        self,
        *,
        text: Path | None,
        out: Path,
        seconds: float,
        architectures: tuple[str, ...],
        seed: int,
        command: str,
        began: float,
        console: Console,
        scale: Scale = Scale(),
    ) -> None:
        self.text, self.out, self.seconds, self.architectures = text, out, seconds, architectures
        self.seed, self.command, self.began, self.console, self.scale = seed, command, began, console, scale
        self.folder: Path | None = None
        """Where this demo keeps its runs; None until it has one."""

    def run(self) -> tuple[Comparison, Path]:
        """Prepare, measure, train, score, write. Raises InputError, and Stopped after Ctrl-C."""
        scale, corpus = self.scale, self._corpus()
        recipes = self._recipes(corpus)
        lengths = {
            name: compare.lengths_for(build(recipe.model, seed=0), scale.memory_lengths)
            for name, recipe in recipes.items()
        }
        first = recipes[self.architectures[0]]
        self._say("Measuring what a training step of each model costs on this machine.")
        costs = {
            name: compare.measure_cost(recipe, corpus, lengths[name], scale.lanes_scored, self.out)
            for name, recipe in recipes.items()
        }
        plan = plan_steps(costs, self._left(1.0), scale.validation_tokens, scale.memory_length)
        self._announce(plan, costs)
        recipes = {name: _planned(recipe, plan) for name, recipe in recipes.items()}

        self.folder = folder = _new_folder(self.out)
        runs = {}
        for number, (name, recipe) in enumerate(recipes.items(), 1):
            self.console.rule(f"{number} of {len(recipes)}: {model_label(name)}", align="left", style="dim")
            runs[name] = compare.train(recipe, corpus, folder / name, self.console)

        self.console.rule("Scores", align="left", style="dim")
        amount = plan_tokens(costs, self._left(EVALUATION_END), scale.least_scored, scale.most_scored)
        text = compare.excerpt(corpus.split("test"), amount, scale.lanes_scored, self.seed, anywhere=True)
        short = compare.excerpt(text, scale.least_scored, scale.lanes_scored, self.seed)
        protocol = compare.reading(text, first, scale.lanes_scored)
        findings, close = [], {}
        for name, run in runs.items():
            self._say(f"Scoring {model_label(name)} on {len(text):,} bytes that no model was trained on.")
            found, close[name] = compare.score(run, text, lengths[name], protocol, corpus, short)
            findings.append(found)
        writer = runs.get("lamemo", runs[self.architectures[-1]])
        prompt = compare.prompt_from(text, corpus.tokenizer, scale.prompt_tokens)
        sample = compare.write_sample(writer, prompt, scale.sample_tokens, SAMPLING, self.seed)

        comparison = Comparison(
            title=f"What memory buys on {self._called()}",
            unit=close[self.architectures[0]].measure,
            text=self._facts(corpus),
            models=tuple(findings),
            segment_length=scale.segment_length,
            memory_length=scale.memory_length,
            protocol=_protocol(text, amount // scale.lanes_scored, close),
            settings=_settings(recipes[self.architectures[0]], corpus, scale.memory_length),
            recipes={name: dump_recipe(recipe) for name, recipe in recipes.items()},
            machine=_machine(first),
            differences=compare.differences(close),
            sample=sample,
            date=time.strftime("%Y-%m-%d %H:%M"),
            version=remanence.__version__,
            command=self.command,
            notes=_notes(plan, corpus, findings),
        )
        return self._write(comparison, folder), folder

    def _corpus(self) -> Corpus:
        """The prepared text, from an earlier demo where it is the same text."""
        if self.text is None:
            key = f"python-{platform.python_version()}"
        elif not self.text.is_file():
            raise InputError(f"There is no text file {self.text}; check the path, or leave --text out.")
        elif self.text.stat().st_size < SMALLEST_TEXT:
            raise InputError(
                f"{self.text} has {self.text.stat().st_size:,} bytes, but the demo needs {SMALLEST_TEXT:,} or more; "
                "give a longer text, or leave --text out."
            )
        else:
            key = f"{self.text.stem}-{sha256_file(self.text)[:8]}"
        folder = self.out / "text" / key
        if folder.exists():
            try:
                corpus = Corpus.open(folder, verify=True)
            except InputError:
                self._say(f"What an earlier demo prepared in {folder} is damaged, and is made anew.")
            else:
                self._say(f"The text: {self._source()}, prepared by an earlier demo.")
                return corpus
        source = "python-stdlib" if self.text is None else self.text
        corpus = prepare(source, folder, tokenizer="byte", overwrite=True)
        self._say(f"The text: {self._source()}, prepared in {folder}.")
        return corpus

    def _recipes(self, corpus: Corpus) -> dict[str, Recipe]:
        """The same recipe for every architecture. Its number of steps is open until their cost is known."""
        scale = self.scale
        documents = {name: len(corpus.split(name).documents) for name in ("train", "test")}
        by_document = documents["train"] >= 4 * scale.lanes and documents["test"] >= scale.lanes_scored
        training = TrainingSettings(
            lanes=scale.lanes,
            learning_rate=scale.learning_rate,
            floor=0.05,
            precision=choose("auto", "cpu"),
            device="cpu",
            seed=self.seed,
            validation_tokens=scale.validation_tokens,
            save_every=0,
        )
        data = DataSettings(corpus=str(corpus.folder), protocol="document" if by_document else "published")
        recipes = {}
        for name in self.architectures:
            model = configure(
                name,
                vocab_size=corpus.vocab_size,
                segment_length=scale.segment_length,
                memory_length=scale.memory_length,
                num_layers=scale.num_layers,
                model_width=scale.model_width,
                num_heads=scale.num_heads,
                head_width=scale.model_width // scale.num_heads,
                feed_forward_width=4 * scale.model_width,
                dropout=0.0,
            )
            recipes[name] = Recipe(
                name=f"demo-{name}",
                description="One of the models of remanence demo, which differ in their architecture alone.",
                data=data,
                model=model,
                training=dataclasses.replace(training, **lanes_and_horizon(model, scale.lanes)),
            )
        return recipes

    def _announce(self, plan: Plan, costs: dict[str, Cost]) -> None:
        told = ", ".join(f"{model_label(name)} {1000 * cost.step:.0f} ms" for name, cost in costs.items())
        self._say(f"A step of {self.scale.step_tokens:,} tokens: {told}.")
        left = self._left(1.0)
        fits = f"of the {duration(left)} that are left" if plan.seconds < left else "which is more than was asked for"
        self._say(
            f"Each model gets {plan.steps:,} steps, {plan.steps * self.scale.step_tokens / 1e6:.2f} million tokens; "
            f"training should take {duration(plan.seconds)}, {fits}."
        )

    def _facts(self, corpus: Corpus) -> TextFacts:
        parts = {name: corpus.split(name).counts["bytes"] for name in corpus.splits}
        return TextFacts(corpus.name, self._source(), parts, corpus.fingerprint)

    def _called(self) -> str:
        return "the Python standard library" if self.text is None else self.text.name

    def _source(self) -> str:
        if self.text is None:
            return f"the source of the Python {platform.python_version()} standard library"
        return self.text.name

    def _left(self, share: float) -> float:
        """Seconds until `share` of the time is used."""
        return share * self.seconds - (time.perf_counter() - self.began)

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _write(self, comparison: Comparison, folder: Path) -> Comparison:
        """The files of the report; the newest report stands in the folder above too, under a name that stays."""
        # Drawn once for the clock, so that the page can say how long everything took.
        render(comparison)
        comparison = dataclasses.replace(comparison, seconds=time.perf_counter() - self.began)
        page = render(comparison)
        comparison.save(folder / "results.json")
        with writing(folder / "picture.png") as file:
            plots.summary(comparison).savefig(file, format="png", dpi=96)
        write_text(folder / "report.html", page)
        write_text(self.out / "report.html", page)
        return comparison


def _planned(recipe: Recipe, plan: Plan) -> Recipe:
    training = dataclasses.replace(
        recipe.training,
        steps=plan.steps,
        warmup_steps=round(WARMUP_SHARE * plan.steps),
        log_every=plan.log_every,
        validate_every=plan.validate_every,
    )
    return dataclasses.replace(recipe, training=training)


def _new_folder(out: Path) -> Path:
    """The first number that no demo has used."""
    number = 1
    while True:
        folder = out / str(number)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def _protocol(text: Split, longest: int, close: dict[str, Score]) -> dict[str, str]:
    """How the scores were taken, as label and sentence."""
    one = max(close.values(), key=lambda score: score.protocol.memory_length or 0)
    drawn = (
        f"a stretch of {longest:,} bytes from anywhere in each of {len(text.documents)} files (all of a shorter one)"
        if len(text.documents) > 1
        else "the beginning"
    )
    return {
        "Text": f"{len(text):,} bytes of the test part, which no model was trained on: {drawn}.",
        "Unit": f"{one.measure.capitalize()}: the mean of -log2 p(byte) over the scored bytes.",
        "Scored": one.protocol.words()[0],
        "Read as": f"{one.protocol.words()[1]} The sweep differs in the memory length alone.",
        "Distances": "With a memory longer than in training, distances are held at the largest one seen in training.",
        "Numbers": one.protocol.words()[-1],
        "± of a difference": f"The standard error over {len(one.measurements['loss_by_stretch']['tokens'])} stretches "
        "of text that both models read; it does not cover the choice of seed.",
        "Weights": "Those after the last step of each model.",
    }


def _settings(recipe: Recipe, corpus: Corpus, memory_length: int) -> dict[str, str]:
    model, training = recipe.model, recipe.training
    reading = (
        "whole files in random order, memory forgotten where a file begins"
        if recipe.data.protocol == "document"
        else "one stream cut into lanes, memory never forgotten"
    )
    return {
        "Text": f"{corpus.name}: {corpus.split('train').counts['bytes']:,} bytes for training, as bytes",
        "Read as": reading,
        "Model": f"{model.num_layers} layers of width {model.model_width}, {model.num_heads} heads of width "
        f"{model.head_width}, feed-forward width {model.feed_forward_width}, dropout {model.dropout:g}",
        "Lengths": f"segment {model.segment_length} tokens, memory {memory_length} tokens (where there is one)",
        "Training": f"{training.steps:,} steps of {training.lanes} lanes × {model.segment_length} tokens, Adam, "
        f"learning rate {training.learning_rate:g} after {training.warmup_steps} steps of warm-up, then a cosine down "
        f"to {training.floor:.0%} of it, gradients clipped at {training.clip_norm:g}",
        "Numbers": f"matrix products in {training.precision}; weights, softmax and losses in float32",
        "Seed": str(training.seed),
    }


def _machine(recipe: Recipe) -> dict[str, str]:
    return {
        "Machine": f"{platform.machine()}, {os.cpu_count()} cores, PyTorch on {torch.get_num_threads()}",
        "System": platform.system(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "Precision": recipe.training.precision,
    }


def _notes(plan: Plan, corpus: Corpus, findings: list[ModelFindings]) -> tuple[str, ...]:
    """What was particular about this demo and limits what it says."""
    notes = []
    if plan.steps < FEW_STEPS:
        notes.append(
            f"Only {plan.steps} steps of training: models begin to use their memory after several hundred. Give the "
            "demo more minutes for a fair picture."
        )
    passes = findings[0].tokens / len(corpus.split("train"))
    if passes > 1:
        notes.append(f"The training text was read {passes:.1f} times, so that models may know parts of it by heart.")
    return tuple(notes)
