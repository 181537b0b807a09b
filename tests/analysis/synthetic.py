"""A made-up comparison with the shape of a real one, so that plots and pages can be tested without training."""

from __future__ import annotations

import math
import random

from remanence.analysis.comparison import (
    Comparison,
    CurvePoint,
    Difference,
    MemoryScore,
    ModelFindings,
    PositionScore,
    Sample,
    TextFacts,
)

_LAWS = {"transformer": (2.31, 0.031, 0.0), "transformer-xl": (2.02, 0.043, 1.0), "lamemo": (2.04, 0.071, 1.0)}


def make_model(architecture: str, steps: int = 1500, tokens_per_step: int = 2048) -> ModelFindings:
    final, step_seconds, memory = _LAWS[architecture]
    noise = random.Random(architecture)

    def bits(step: int) -> float:
        return final + 3.2 * math.exp(-step / 90) + 1.4 * math.exp(-step / 500)

    def point(step: int, spread: float) -> CurvePoint:
        return CurvePoint(step * tokens_per_step, step * step_seconds, bits(step) + noise.gauss(0, spread))

    lengths = (0, 32, 64, 128, 256) if memory else (0,)
    return ModelFindings(
        architecture=architecture,
        parameters=3_214_592 if memory else 3_150_000,
        steps=steps,
        tokens=steps * tokens_per_step,
        seconds=steps * step_seconds,
        training=tuple(point(step, 0.08) for step in range(10, steps + 1, 10)),
        validation=tuple(point(step, 0.005) for step in range(steps // 8, steps + 1, steps // 8)),
        by_memory=tuple(
            MemoryScore(length, final + memory * 0.3 * math.exp(-length / 40), 200_000, 4.1, held=length > 64)
            for length in lengths
        ),
        by_document_position=tuple(
            PositionScore(2**k, 2 ** (k + 1), final + 1.5 / (1 + min(2**k, 4096 if memory else 64) / 8), 5000 >> k)
            for k in range(13)
        ),
        by_segment_position=tuple(
            PositionScore(begin, begin + 4, final + (1 - 0.9 * memory) * 1.8 / (1 + begin / 4), 12_000)
            for begin in range(0, 64, 4)
        ),
        interpolation=tuple(
            tuple(min(0.99, 0.35 + 0.1 * layer + 0.5 * age / 64) for age in range(64)) for layer in range(4)
        )
        if architecture == "lamemo"
        else (),
    )


def make_comparison() -> Comparison:
    return Comparison(
        title="What memory buys on the Python standard library",
        unit="bits per byte",
        text=TextFacts(
            name="python-stdlib",
            source="the source files of the Python 3.11.2 standard library on this machine",
            parts={"train": 9_800_000, "validation": 520_000, "test": 530_000},
            fingerprint="4f" * 32,
        ),
        models=tuple(make_model(name) for name in _LAWS),
        segment_length=64,
        memory_length=64,
        protocol={"Scored": "Every byte of the test text but the first of each document, once."},
        settings={"Layers": "4", "Width": "256"},
        recipes={name: f'name = "demo"\n[model]\narchitecture = "{name}"\n' for name in _LAWS},
        machine={"Processor": "2 cores", "PyTorch": "2.13.0"},
        differences=(
            Difference("transformer", "transformer-xl", 0.31, 0.012, 64),
            Difference("transformer", "lamemo", 0.29, 0.011, 64),
            Difference("lamemo", "transformer-xl", 0.021, 0.004, 64),
        ),
        sample=Sample(
            architecture="lamemo",
            prompt="def read_lines(path):\n",
            text='    """Return <lines> & "more"."""\n    with open(path) as file:\n        return file.read()\n',
            settings="temperature 0.8, seed 1",
        ),
        seconds=287.0,
        date="2025-01-31 12:00",
        version="0.1.0",
        command="remanence demo --seed 1",
    )
