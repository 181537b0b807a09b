"""Images that a run on pixels draws, whole and gone on with, and how they are laid out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.commands.test_tasks import decoded

from remanence.data.tokenizers.number import PixelTokenizer, SymbolTokenizer
from remanence.errors import InputError
from remanence.generation import Sampling, Session
from remanence.generation.pictures import GAP, PAPER, SCALE, complete_images, grid, sample_images, write_png
from remanence.memory import Distances
from remanence.models import build, config_class

LEVELS, ROWS, COLUMNS = 4, 6, 5
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {},
    "transformer-xl": {"memory_length": 9},
    "lamemo": {"memory_length": 9},
    "memformer": {"num_slots": 3, "alignment": "bos"},
}


@dataclass
class Run:
    """What pictures need of a run."""

    model: Any
    tokenizer: Any
    folder: Path = Path("runs/images")
    fingerprint: str = "0"
    distances: Distances = field(default_factory=lambda: Distances(back=99, ahead=99))


def run_of(architecture: str) -> Run:
    config = config_class(architecture)(
        vocab_size=LEVELS + 1,
        segment_length=7,
        num_layers=2,
        model_width=12,
        num_heads=2,
        head_width=6,
        feed_forward_width=16,
        **MODELS[architecture],
    )
    model = build(config, seed=3).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(9 if parameter.dim() > 1 else 1)
    return Run(model, PixelTokenizer(LEVELS, ROWS, COLUMNS))


def greedy_alone(run: Run, known: list[int]) -> list[int]:
    """All pixels of an image, each from the whole text before it, read anew."""
    ids = list(known)
    while len(ids) < ROWS * COLUMNS:
        text = [*([LEVELS] if run.model.shift else []), *ids, *([] if run.model.shift else [0])]
        memory = run.model.init_memory(lanes=1)
        with torch.no_grad():
            for begin in range(0, len(text), 7):
                piece = torch.tensor([text[begin : begin + 7]])
                hidden, memory, _ = run.model(piece, memory)
        ids.append(int(run.model.head.logits(hidden)[0, -1, :LEVELS].argmax()))
    return ids


@pytest.mark.parametrize("architecture", MODELS)
def test_an_image_is_what_the_model_says_pixel_by_pixel(architecture: str) -> None:
    run = run_of(architecture)
    (image,) = sample_images(run, 1, sampling=Sampling(temperature=0))
    expected = np.array(greedy_alone(run, []), np.uint8).reshape(ROWS, COLUMNS)
    assert np.array_equal(image, expected * (255 // (LEVELS - 1)))


@pytest.mark.parametrize("architecture", MODELS)
def test_each_image_is_gone_on_with_from_its_own_upper_half(architecture: str) -> None:
    run = run_of(architecture)
    given = np.random.default_rng(1).integers(0, LEVELS, (3, ROWS * COLUMNS))
    images = complete_images(run, given, sampling=Sampling(temperature=0))
    for image, ids in zip(images, given, strict=True):
        expected = np.array(greedy_alone(run, ids[: 3 * COLUMNS].tolist()), np.uint8).reshape(ROWS, COLUMNS)
        assert np.array_equal(image, expected * 85)


def test_an_image_depends_on_its_seed_alone() -> None:
    run = run_of("transformer-xl")
    few, many = sample_images(run, 2, seed=4), sample_images(run, 5, seed=3)
    assert np.array_equal(few, many[1:3])
    assert not np.array_equal(many[0], many[1])


def test_the_start_token_is_never_drawn() -> None:
    run = run_of("transformer")
    with torch.no_grad():
        run.model.head.bias[LEVELS] = 1e6
    assert sample_images(run, 2).max() <= 255
    session = Session(run, samples=2)
    assert all(token != LEVELS for step in session.steps(40) for token in step.ids)


def test_samples_may_read_different_texts_of_one_length() -> None:
    run = run_of("transformer-xl")
    together = Session(run, samples=2, sampling=Sampling(temperature=0))
    rows = np.random.default_rng(2).integers(0, LEVELS, (2, 11))
    together.read_each(rows[:, :3])
    together.read_each(rows[:, 3:])
    drawn = [step.ids for step in together.steps(9)]
    for sample, row in enumerate(rows):
        alone = Session(run, sampling=Sampling(temperature=0))
        alone.read_ids(row)
        assert [step.ids[0] for step in alone.steps(9)] == [ids[sample] for ids in drawn]
    with pytest.raises(InputError, match=r"shape \(3, 2\) were given to 2 samples"):
        together.read_each(np.zeros((3, 2), np.int64))


@pytest.mark.parametrize("cut", range(9))
def test_numbers_may_be_cut_anywhere_in_a_prompt(cut: int) -> None:
    run = run_of("transformer-xl")
    run.tokenizer = SymbolTokenizer(5)
    text, whole, parts = "3 1 4\n2 0", *(Session(run, sampling=Sampling(temperature=0)) for _ in range(2))
    whole.read_ids([3, 1, 4, 2, 0])
    parts.read(text[:cut])
    parts.read(text[cut:])
    drawn = parts.generate(4)
    assert whole.generate(4) == drawn and len(drawn[0].split()) == 4 and drawn[0].startswith(" ")


def test_a_grid_holds_every_image_once(tmp_path: Path) -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 4), np.uint8) + 10
    picture = grid([images, images + 100], across=2)
    side, band = 4 * SCALE + GAP, 2 * SCALE + GAP
    assert picture.shape == ((2 * band + GAP) * 2 + GAP, 2 * side + GAP)
    assert (picture[GAP : GAP + 2 * SCALE, GAP + side : GAP + side + 4 * SCALE] == 11).all()
    assert (picture[GAP + band : GAP + band + 2 * SCALE, GAP : GAP + 4 * SCALE] == 110).all()
    assert (picture == 12).sum() == (picture == 112).sum() == 8 * SCALE**2
    assert picture[0, 0] == picture[-1, -1] == PAPER
    write_png(tmp_path / "a.png", picture)
    assert np.array_equal(decoded((tmp_path / "a.png").read_bytes()), picture)


def test_what_cannot_be_drawn_is_refused() -> None:
    run = run_of("transformer")
    with pytest.raises(InputError, match="fewer than 6"):
        complete_images(run, np.zeros((1, ROWS * COLUMNS)), rows=6)
    with pytest.raises(InputError, match="0 images"):
        sample_images(run, 0)
    run.tokenizer = SymbolTokenizer(5)
    with pytest.raises(InputError, match="a run of symbols"):
        sample_images(run, 1)
