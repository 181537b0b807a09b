"""`remanence compare`: several recipes, several seeds, one budget; a table, plots and a report."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import shlex
import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from remanence.commands.options import option
from remanence.config.flags import parse_flags
from remanence.errors import InputError

if TYPE_CHECKING:
    from remanence.analysis.request import Asked
    from remanence.analysis.study import Study
    from remanence.analysis.trials import Trials
    from remanence.config import Recipe

HELP = """\
Train several recipes with several seeds on the same text under the same budget, and compare them.

Settings of recipes are flags, too, and hold for every recipe that has them: --training.steps 2000,
--data.protocol document, --model.dropout 0. Recipes come first.

Stopped or killed, it goes on by the same command, from the last checkpoint; what is finished is never
made again. A run that fails is told at the end (exit code 1) and tried again the next time.

Example: remanence compare recipes/*-books.toml --seeds 3 --training.steps 1000 --test-tokens 100000
"""
OVERRIDES = ("--data.", "--model.", "--training.", "--evaluation.")


@dataclass(frozen=True)
class Arguments:
    """What the command is given."""

    recipes: Annotated[tyro.conf.Positional[tuple[Path, ...]], option("RECIPE [RECIPE ...]")] = ()
    """Recipes; none with --resume, which takes those of the folder."""
    seeds: Annotated[tuple[int, ...], option("N [N ...]")] = (3,)
    """How many seeds, 1 to N, or the seeds themselves; 3 unless given."""
    budget: Literal["tokens", "time", "flops"] = "tokens"
    """What every run gets equally much of: text, measured time of training steps, or counted FLOPs."""
    amount: Annotated[float | None, option("X")] = None
    """How much of it a run gets: tokens, seconds or FLOPs; what the steps of the first recipe take unless given."""
    corpus: Annotated[str | None, option("DIR|URL")] = None
    """A prepared corpus for all recipes."""
    folder: Annotated[Path | None, option("DIR")] = None
    """Where everything goes; comparisons/NAME with the name of the corpus unless given."""
    memory_lengths: Annotated[tuple[int, ...], option("M [M ...]")] = ()
    """Memory lengths to score with, where a model can take them, beside its own; 0, half, all and twice the longest of
    training unless given."""
    test_tokens: Annotated[int, option("N")] = 0
    """Score so many tokens of the test split; all of it unless given."""
    validation_tokens: Annotated[int | None, option("N")] = None
    """Validate on so many tokens; as the recipes say unless given."""
    validations: Annotated[int, option("N")] = 6
    """Validations in each run, points of its learning curve; 6 unless given."""
    checkpoint: Literal["last", "best"] = "last"
    """The weights to score: those after the last step, or those with the best validation of each run."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only go on with the comparison in the folder."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0 or self.seeds == (0,):
            raise InputError(
                f'--seeds is "{" ".join(map(str, self.seeds))}", but it must be how many, 1 or more, or seeds that '
                "differ."
            )
        for name in ("test_tokens", "validations"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}, but it must be 0 or more.")
        if self.amount is not None and not 0 < self.amount < float("inf"):
            raise InputError(f"--amount is {self.amount:g}, but a budget must be above 0.")
        if any(length < 0 for length in self.memory_lengths):
            raise InputError("--memory-lengths must be 0 or more.")


def main(argv: Sequence[str], prog: str) -> int:
    arguments, overrides = parse(argv, prog)
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "the report is drawn with matplotlib, which is not installed; run `pip install 'remanence[plots]'` and "
            "start the comparison again."
        )
    # Not before the flags are read: help is instant, and PyTorch is not.
    from rich.console import Console

    from remanence.analysis.compare import Stopped
    from remanence.analysis.study import Study
    from remanence.commands.train import open_corpus

    recipes, asked, folder = _request(arguments, overrides, _given(argv))
    try:
        corpus = open_corpus(recipes[0].data.corpus)
    except InputError as error:
        if any(name.startswith("--data.corpus") for name, *_ in overrides):
            raise
        raise InputError(str(error).replace("--data.corpus", "--corpus")) from None
    study = Study(recipes, corpus, folder, asked, Console(stderr=True))
    command = " ".join([prog, *map(shlex.quote, argv)])
    try:
        with _stopped_by_signals():
            study.run()
            trials = _written(study, command)
    except Stopped as stopped:
        advice = (
            f"; go on with: remanence compare --resume --folder {shlex.quote(str(folder))}"
            if study.begun
            else " before its steps were planned; run the same command again."
        )
        print(f"remanence: the comparison was stopped{advice}", file=sys.stderr)
        return 128 + stopped.signal
    show(trials, folder)
    return 1 if trials.failures else 0


def parse(argv: Sequence[str], prog: str) -> tuple[Arguments, list[list[str]]]:
    """The command's own arguments, and the flags for recipes, each with its values."""
    own, overrides = _sorted_out(argv)
    arguments = parse_flags(Arguments, own, prog, HELP)
    if not arguments.recipes:
        if not arguments.resume:
            raise InputError(f"A recipe comes first: {prog} recipes/*-books.toml; see {prog} --help.")
        if arguments.folder is None:
            raise InputError("--resume without recipes needs --folder, the folder of the comparison.")
        if overrides:
            raise InputError(
                f"{overrides[0][0]} cannot be given with --resume alone: the comparison keeps its recipes."
            )
    for name, *_ in overrides:
        flag = name.partition("=")[0]
        if flag == "--training.seed":
            raise InputError("--training.seed cannot be given for a comparison; give --seeds.")
        if flag == "--model.architecture":
            raise InputError("--model.architecture cannot be given for a comparison: every recipe has its own.")
        if flag == "--data.corpus" and arguments.corpus is not None:
            raise InputError("--corpus and --data.corpus were both given; give one of them.")
    return arguments, overrides


def show(trials: Trials, folder: Path) -> None:
    """The table, the findings and where everything is, on standard output."""
    from remanence.analysis.trial_tables import plain
    from remanence.analysis.trial_wording import verdict

    print(plain(trials))
    for finding in verdict(trials):
        print(f"{ {True: '+', False: '!', None: '-'}[finding.good] } {finding.text}")
    print(f"\nThe report: {folder / 'report.html'}")
    if trials.failures:
        some = "one run" if len(trials.failures) == 1 else f"{len(trials.failures)} runs"
        print(
            f"remanence: {some} failed, as told in {folder / 'failures'}; the same command tries again what failed and "
            "keeps the rest.",
            file=sys.stderr,
        )


def _request(
    arguments: Arguments, overrides: Sequence[Sequence[str]], given: Collection[str]
) -> tuple[list[Recipe], Asked, Path]:
    """The recipes with their flags, what is asked for, and the folder; `given` are the options that were written."""
    from remanence.analysis.request import load_asked

    if not arguments.recipes:
        assert arguments.folder is not None
        recipes, asked = load_asked(arguments.folder)
        _check_given(arguments, given, recipes, asked)
        return [_moved(recipe, arguments.corpus) for recipe in recipes], asked, arguments.folder
    flags = [*overrides]
    if arguments.validation_tokens is not None:
        flags.append(["--training.validation-tokens", str(arguments.validation_tokens)])
    recipes = [_moved(recipe, arguments.corpus) for recipe in _recipes(arguments.recipes, flags)]
    asked = _asked(arguments)
    folder = arguments.folder or Path("comparisons") / (Path(recipes[0].data.corpus).name or "unnamed")
    if arguments.resume and not (folder / "plan.json").exists():
        raise InputError(f"There is no comparison in {folder} to go on with; leave --resume out to begin one.")
    return recipes, asked, folder


def _asked(arguments: Arguments) -> Asked:
    from remanence.analysis.request import Asked

    seeds = arguments.seeds
    return Asked(
        seeds=tuple(range(1, seeds[0] + 1)) if len(seeds) == 1 else seeds,
        budget=arguments.budget,
        amount=arguments.amount,
        memory_lengths=tuple(sorted(set(arguments.memory_lengths))) or None,
        test_tokens=arguments.test_tokens,
        validations=arguments.validations,
        checkpoint=arguments.checkpoint,
    )


def _check_given(arguments: Arguments, given: Collection[str], recipes: Sequence[Recipe], asked: Asked) -> None:
    """Raise InputError for an option that is not what the comparison was begun with. Its text is checked elsewhere."""
    from remanence.analysis.request import shown

    pairs = {
        field.name: (getattr(_asked(arguments), field.name), getattr(asked, field.name))
        for field in dataclasses.fields(asked)
    }
    mine = arguments.validation_tokens
    others = [each.training.validation_tokens for each in recipes if each.training.validation_tokens != mine]
    pairs["validation_tokens"] = (mine, others[0] if others else mine)
    for name, (mine, begun) in pairs.items():
        if name in given and mine != begun:
            raise InputError(
                f"--{name.replace('_', '-')} is {shown(mine)}, but the comparison in {arguments.folder} was begun with "
                f"{shown(begun)}; leave it out, or begin another comparison in a folder of its own."
            )


def _recipes(paths: Sequence[Path], overrides: Sequence[Sequence[str]]) -> list[Recipe]:
    """Each recipe with the flags that it knows. A setting of a model that no recipe knows is refused."""
    from remanence.analysis.study import named
    from remanence.config import Recipe
    from remanence.config.flags import flag_types
    from remanence.config.recipe import draft_recipe, settle

    drafts: list[Recipe] = []
    for path in paths:
        with named(str(path), len(paths)):
            drafts.append(draft_recipe(path))
    known = [set(flag_types(type(draft), draft)) for draft in drafts]
    recipes = []
    for draft, flags in zip(drafts, known, strict=True):
        mine: list[str] = []
        for words in overrides:
            name = words[0].partition("=")[0].replace("_", "-")
            positive = name.replace(".no-", ".")
            elsewhere = any({name, positive} & other for other in known)
            if not name.startswith("--model.") or {name, positive} & flags or not elsewhere:
                mine += words
        if mine:
            draft = parse_flags(Recipe, mine, "remanence compare RECIPE...", default=draft)
        with named(draft.name, len(paths)):
            recipes.append(settle(draft))
    return recipes


def _moved(recipe: Recipe, corpus: str | None) -> Recipe:
    if corpus is None:
        return recipe
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, corpus=corpus))


def _sorted_out(argv: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Flags of the command, and flags of recipes, each with the words up to the next flag."""
    own: list[str] = []
    overrides: list[list[str]] = []
    taking = own
    for word in argv:
        if word.startswith(OVERRIDES):
            overrides.append([word])
            taking = overrides[-1]
        elif word.startswith("--"):
            own.append(word)
            taking = own
        else:
            taking.append(word)
    return own, overrides


def _given(argv: Sequence[str]) -> set[str]:
    """The names of the command's own options that were written."""
    words = (word.partition("=")[0] for word in _sorted_out(argv)[0] if word.startswith("--"))
    return {word.removeprefix("--").replace("-", "_") for word in words}


def _written(study: Study, command: str) -> Trials:
    """What was found, in its files."""
    from remanence.analysis.gathering import gather
    from remanence.analysis.trial_report import write_report, write_tables

    trials = gather(study, command)
    write_tables(trials, study.folder)
    if trials.ranked:
        write_report(trials, study.folder)
    return trials


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop what is not training, which has its own way to stop and save."""
    from remanence.analysis.compare import Stopped

    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    try:
        usual = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        for each, handler in usual.items():
            signal.signal(each, handler)
