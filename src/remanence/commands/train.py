"""`remanence train`: a recipe and flags in, a run's folder out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from remanence.commands.options import option
from remanence.config import Recipe
from remanence.config.flags import parse_flags
from remanence.config.recipe import draft_recipe, settle, take_architecture, unsized
from remanence.data import Corpus
from remanence.data.places import is_url
from remanence.data.published import PUBLISHED
from remanence.errors import InputError
from remanence.evaluation.validation import validation, validation_split
from remanence.models import LanguageModel, config_class
from remanence.training import Trainer
from remanence.training.folder import RunFolder
from remanence.training.ranks import Ranks, joined

HELP = """\
Train a model from a recipe: a TOML file, or the folder of a run to --resume.

Every setting of the recipe is a flag. --model.architecture NAME takes another model, and --help
after a recipe shows its own settings.

Ctrl-C and SIGTERM save and stop (exit codes 130 and 143). A run that was stopped or killed goes on
with --resume as if nothing had happened.

Several processes share the lanes: torchrun --nproc-per-node 4 -m remanence train RECIPE (docs/distributed.md).

Example: remanence train recipes/lamemo-wikitext-2.toml --model.memory-length 256 --training.steps 2000
(its corpus is made by: remanence prepare wikitext-2)
"""


@dataclass(frozen=True)
class Arguments:
    """What the command is given."""

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RECIPE")]
    """A recipe, or the folder of a run to resume."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    folder: Path | None = None
    """Where the run goes; runs/NAME with the name of the recipe, unless given."""
    resume: bool = False
    """Go on with the run in the folder, from its last checkpoint."""
    profile: Annotated[int | None, option("N")] = None
    """Record N steps with PyTorch's profiler: a trace and a table of what took longest, in the run's folder."""


def main(argv: Sequence[str], prog: str) -> int:
    if "-h" in argv or "--help" in argv:
        parse(argv, prog)
    with joined() as ranks:
        signal = _train(argv, prog, ranks)
    return 0 if signal is None else 128 + signal


def _train(argv: Sequence[str], prog: str, ranks: Ranks) -> int | None:
    """The signal that stopped the run. Nothing of the trainer is left when the group of ranks ends."""
    with ranks.together():
        trainer = _trainer(parse(argv, prog), ranks)
    return trainer.run().signal


def _trainer(arguments: Arguments, ranks: Ranks) -> Trainer:
    recipe = arguments.recipe
    folder = arguments.folder or Path("runs") / recipe.name
    corpus = open_corpus(recipe.data.corpus)
    validated = "validation" in corpus.splits and recipe.training.validate_every > 0
    split = validation_split(corpus, recipe) if validated else None

    def validate(model: LanguageModel) -> dict[str, Any]:
        assert split is not None
        stop = trainer.stop_if_interrupted
        return validation(model, split, recipe, corpus, trainer.state.precision, ranks, stop)

    trainer = Trainer(
        recipe,
        corpus,
        folder,
        validate=validate if validated else None,
        resume=arguments.resume or RunFolder(folder).goes_on(ranks),
        profile=arguments.profile,
        ranks=ranks,
    )
    return trainer


def parse(argv: Sequence[str], prog: str = "remanence train") -> Arguments:
    """The arguments with the recipe they name, its flags applied. Raises InputError; `--help` raises SystemExit(0)."""
    if not argv or argv[0].startswith("-"):
        if {"-h", "--help"} & set(argv):
            parse_flags(Arguments, ["--help"], prog, HELP, default=_template())
        raise InputError(f"A recipe comes first: {prog} recipes/lamemo-wikitext-2.toml; see {prog} --help.")
    path = Path(argv[0])
    is_run = path.is_dir()
    if not (path / "recipe.toml").is_file() and (is_run or ("--resume" in argv and path.suffix != ".toml")):
        raise InputError(f"There is no run in {path}; give a recipe, or the folder of a run and --resume.")
    architecture, flags = take_architecture(argv[1:])
    draft = draft_recipe(path / "recipe.toml" if is_run else path, architecture)
    default = Arguments(path, draft, folder=path if is_run else None)
    arguments = parse_flags(Arguments, [argv[0], *flags], prog, HELP, default=default)
    if is_run and not arguments.resume:
        raise InputError(f"{path} is the folder of a run; add --resume to go on with it, or give a recipe.")
    return dataclasses.replace(arguments, recipe=settle(arguments.recipe))


def open_corpus(folder: str) -> Corpus:
    """The prepared corpus that a recipe names. Raises InputError where there is none."""
    if not folder:
        raise InputError("data.corpus is missing; give the folder of a prepared corpus by --data.corpus.")
    if is_url(folder):
        return Corpus.open(folder)
    path = Path(folder)
    if not path.is_dir():
        # The standard place of a corpus known by name; the text of any other is the user's.
        made = f"TEXT --out {path}"
        if path.parent == Path("data") and path.name in (*PUBLISHED, "mnist"):
            made = path.name
        elif path.parent == Path("data") and (length := path.name.removeprefix("sorting-")).isdigit():
            made = f"sorting --length {length}"
        raise InputError(
            f"There is no prepared corpus at {path}; make it with `remanence prepare {made}`, or name another by "
            "--data.corpus."
        )
    return Corpus.open(path)


def _template() -> Arguments:
    """What the help shows when no recipe is given: LaMemo's settings, those a recipe has to give as required."""
    kind = unsized(config_class("lamemo"))
    required = [each.name for each in dataclasses.fields(kind) if each.default is dataclasses.MISSING and each.init]
    return Arguments(tyro.MISSING, Recipe(tyro.MISSING, model=kind(**dict.fromkeys(required, tyro.MISSING))))
