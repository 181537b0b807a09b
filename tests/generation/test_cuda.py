"""Sessions on a CUDA GPU. Skipped where there is none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from remanence.data.tokenizers.byte import ByteTokenizer
from remanence.generation import Sampling, Session

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("architecture", ["transformer", "transformer-xl", "lamemo"])
def test_a_session_on_a_gpu_draws_the_tokens_of_the_cpu_through_a_pause(
    make_model: Callable, tokenizer: ByteTokenizer, tmp_path: Path, architecture: str
) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(make_model(architecture)).double().to(device)
        session = Session(model, tokenizer, samples=2, sampling=Sampling(top_k=40), seed=3)
        session.read("What was written before")
        steps = list(session.steps(10))
        session.save(tmp_path / device)
        found.append(steps + list(Session.load(tmp_path / device, model, tokenizer).steps(10)))
    assert found[0] == found[1]
