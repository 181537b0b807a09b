"""Training: one loop, exact resumption, and what a run leaves behind."""

from remanence.training.journal import Diverged
from remanence.training.result import Result
from remanence.training.run import Run, load_run
from remanence.training.trainer import Trainer

__all__ = ["Diverged", "Result", "Run", "Trainer", "load_run"]
