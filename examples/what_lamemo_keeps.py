"""Look into LaMemo's memory: how much of what a slot holds is kept when it reads again, by its age and layer.

    python examples/what_lamemo_keeps.py RUN PICTURE.svg

RUN is the folder of a LaMemo run, such as runs/demo/1/lamemo; its prepared text must still be there. Needs matplotlib.
"""

from __future__ import annotations

import sys
from pathlib import Path

from remanence import Corpus, Protocol, evaluate, load_run
from remanence.analysis.comparison import ModelFindings
from remanence.analysis.plots import interpolation_by_age
from remanence.evaluation import InterpolationByAge


def main(folder: Path, picture: Path) -> None:
    run = load_run(folder)
    text = Corpus.open(run.recipe.data.corpus).split("validation")
    # Every measurement looks at the same pass over the text; InterpolationByAge asks the model for its weights.
    protocol = Protocol(lanes=4, memory_length=2 * run.model.config.memory_length)
    score = evaluate(run.model, text, protocol, trained=run.distances, measurements=[InterpolationByAge()])
    layers = score.measurements["interpolation"]
    for number, weights in enumerate(layers, 1):
        print(f"layer {number}: the newest slot keeps {weights[0]:.0%}, the oldest {weights[-1]:.0%}")
    findings = ModelFindings(
        "lamemo", parameters=0, steps=run.step, tokens=0, seconds=0.0, interpolation=tuple(map(tuple, layers))
    )
    interpolation_by_age(findings, run.model.config.segment_length).savefig(picture)
    print(f"{score.headline}; the picture is in {picture}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
