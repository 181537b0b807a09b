"""Let a trained model write as a stream, put it aside in the middle, and go on as if nothing had happened.

    python examples/stream_generation.py RUN

RUN is the folder of a run, such as runs/demo/1/lamemo or one from train_in_python.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from remanence import Session, load_run
from remanence.generation import Sampling


def main(folder: Path, prompt: str = "def read(self, size):\n", tokens: int = 200) -> None:
    run = load_run(folder)
    session = Session(run, sampling=Sampling(temperature=0.8, top_p=0.95), seed=1)

    # The prompt may be a whole book: it is read in segments, at the cost of the memory and not of its length.
    session.read(prompt)
    print(prompt, end="")
    for piece in session.stream(tokens // 2, finish=False):
        print(piece, end="", flush=True)

    with tempfile.TemporaryDirectory() as place:
        session.save(Path(place) / "later.safetensors")
        later = Session.load(Path(place) / "later.safetensors", run)

    # The session that was put aside and the one that was not write the same.
    here, there = "".join(session.stream(tokens // 2)), "".join(later.stream(tokens // 2))
    print(here)
    print("\nThe session from the file went on with the same text:", here == there)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
