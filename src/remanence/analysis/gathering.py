"""From the folder of a comparison to what was found in it."""

from __future__ import annotations

import math
import os
import platform
import time

import torch

import remanence
from remanence.analysis.budget import Budget
from remanence.analysis.cost import step_tokens
from remanence.analysis.study import Study
from remanence.analysis.trials import Contender, Picture, Trials, gaps
from remanence.config import dump_recipe
from remanence.config.recipe import table_of
from remanence.config.tables import differences
from remanence.evaluation import Score

BUDGETS = {
    "tokens": "Every run was given {} of training: equal text, whatever that costs.",
    "time": "Every run was given {} of training: the number of steps follows from the time that a step took when it "
    "was measured before the comparison began, so that the schedule of the learning rate ends where training ends.",
    "flops": "Every run was given {} of training: the number of steps follows from the FLOPs counted in a few real "
    "training steps.",
}


def gather(study: Study, command: str = "") -> Trials:
    """Everything that is there of a comparison, finished or not. Its study has been planned."""
    contenders = tuple(_contender(study, name) for name in study.recipes)
    score = next((found for name in study.recipes for found in _scores(study, name)), None)
    words = Budget(study.asked.budget, study.plan.amount).words()
    return Trials(
        title=f"{len(contenders)} recipes on {study.corpus.name}",
        measure=score.measure if score else "",
        higher_is_better=score.higher_is_better if score else False,
        budget=study.asked.budget,
        amount=study.plan.amount,
        text=study.corpus.manifest.get("title") or study.corpus.name,
        seeds=study.asked.seeds,
        contenders=contenders,
        protocol=_protocol(study, score),
        settings=_settings(study, words),
        machine={
            "Machine": f"{platform.machine()}, {os.cpu_count()} cores, PyTorch on {torch.get_num_threads()}",
            "System": platform.system(),
            "Python": platform.python_version(),
            "PyTorch": torch.__version__,
        },
        gaps=gaps(contenders),
        pictures=_pictures(study),
        date=time.strftime("%Y-%m-%d %H:%M"),
        version=remanence.__version__,
        command=command,
        notes=_notes(study),
    )


def _contender(study: Study, name: str) -> Contender:
    recipe, price, size = study.recipes[name], study.plan.prices[name], study.sizes[name]
    tokens = step_tokens(recipe)
    return Contender(
        name=name,
        architecture=recipe.architecture,
        parameters=size.parameters,
        memory_kind=size.memory_kind,
        memory_length=study.headline_length(name),
        memory_bytes=size.memory_bytes,
        training_flops=price.step_flops / tokens if price else math.nan,
        evaluation_flops=price.reading_flops if price else math.nan,
        step_tokens=tokens,
        steps=study.plan.steps[name],
        recipe=dump_recipe(study.jobs[list(study.recipes).index(name)].recipe),
        trials=study.trials(name),
    )


def _scores(study: Study, name: str) -> list[Score]:
    return [
        score
        for seed in study.asked.seeds
        for score in study.scores(name, seed)
        if score.protocol.memory_length == study.headline_length(name)
    ]


def _protocol(study: Study, score: Score | None) -> dict[str, str]:
    if score is None:
        return {}
    words = score.protocol.words()
    weights = {"last": "Those after the last step.", "best": "Those with the best validation of each run."}
    return {
        "Scored": words[0],
        "Read as": f"{words[1]} The sweep differs in the memory length alone.",
        "Memory": "Each recipe is judged with its own memory length. What a length counts is the architecture's own: "
        "tokens, slots, memory tokens.",
        "Numbers": words[-1],
        "Weights": weights[study.asked.checkpoint],
        "Spread": "The sample standard deviation over seeds; a band reaches from the lowest to the highest seed.",
        "FLOPs": "Counted in real steps: matrix products, convolutions and attention kernels, forward and backward, "
        "what is computed twice included; norms, softmax and the optimizer left out.",
        "Speed": "Tokens a second, the median over seeds; validation and saving left out; on this machine, with what "
        "else it was doing.",
    }


def _settings(study: Study, amount: str) -> dict[str, str]:
    first, names = study.first, list(study.recipes)
    training = first.training
    tables = [table_of(recipe) for recipe in study.recipes.values()]
    unlike = sorted(
        {key for table in tables[1:] for key in differences(tables[0], table) if key.startswith(("training.", "data."))}
    )
    counts = study.corpus.split("train").counts
    return {
        "Text": f"{study.corpus.name}: {counts['tokens']:,} tokens ({study.corpus.unit}s) for training",
        "Budget": BUDGETS[study.asked.budget].format(amount),
        "Seeds": ", ".join(map(str, study.asked.seeds)),
        "Steps": ", ".join(f"{name} {study.plan.steps[name]:,}" for name in names),
        "Learning rate": f"{training.learning_rate:g} at most for {first.name}, {training.schedule} schedule",
        "Warm-up": "The share of the steps that each recipe gives it.",
        "Differ beside the model": ", ".join(unlike) or "nothing",
    }


def _notes(study: Study) -> tuple[str, ...]:
    """What was particular about this comparison and limits what it says."""
    notes, size = [], len(study.corpus.split("train"))
    read = {name: step_tokens(recipe) * study.plan.steps[name] for name, recipe in study.recipes.items()}
    if max(read.values()) > size:
        notes.append(f"The training text was read up to {max(read.values()) / size:.1f} times.")
    low, high = min(read.values()), max(read.values())
    if study.asked.budget == "tokens" and high > 1.005 * low:
        notes.append(
            f"Steps of different size do not divide the budget alike: runs read between {low:,} and {high:,} tokens."
        )
    if study.asked.budget == "time":
        spent = [trial.seconds for name in study.recipes for trial in study.trials(name) if not trial.failed]
        if spent:
            notes.append(
                f"Planned were {study.plan.amount:,.0f} s of training a run; it took {min(spent):,.0f} to "
                f"{max(spent):,.0f} s."
            )
    return tuple(notes)


def _pictures(study: Study) -> tuple[Picture, ...]:
    """What runs left in their folder `pictures`: NAME.png, with a caption in NAME.txt beside it."""
    found = []
    for job in study.jobs:
        for path in sorted((job.folder / "pictures").glob("*.png")):
            caption = path.with_suffix(".txt")
            text = caption.read_text(encoding="utf-8").strip() if caption.exists() else ""
            title = f"{job.name}, seed {job.seed}: {path.stem.replace('-', ' ')}"
            found.append(Picture(title, text, str(path.relative_to(study.folder))))
    return tuple(found)
