"""Scores on a CUDA GPU. Skipped where there is none."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from remanence.data import Split
from remanence.evaluation import InterpolationByAge, LossByPosition, Protocol, evaluate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("starts", ["published", "document"])
@pytest.mark.parametrize("architecture", ["transformer", "transformer-xl", "lamemo"])
def test_a_gpu_gives_the_score_of_the_cpu(make_model: Callable, text: Split, architecture: str, starts: str) -> None:
    scores = []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(make_model(architecture)).to(device)
        protocol = Protocol(starts=starts, lanes=3)  # pyright: ignore[reportArgumentType]
        scores.append(
            evaluate(
                model, text, protocol, trained=model.distances(), measurements=[LossByPosition(), InterpolationByAge()]
            )
        )
    assert scores[1].nats == pytest.approx(scores[0].nats, rel=1e-10)
    assert scores[1].protocol.device == torch.cuda.get_device_name()
