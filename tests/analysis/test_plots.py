"""Figures say what they show, in words and in colours that everybody can tell apart."""

import dataclasses
import itertools

import pytest

from remanence.analysis import CurvePoint

pytest.importorskip("matplotlib")

from tests.analysis.synthetic import make_comparison, make_model

from remanence.analysis import lines, palette, plots

FIGURES = [
    plots.curves_by_tokens,
    plots.curves_by_seconds,
    plots.bits_by_memory,
    plots.bits_by_document_position,
    plots.bits_by_segment_position,
    plots.summary,
]


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("draw", FIGURES)
def test_every_figure_names_its_lines_and_the_unit_of_its_axes(draw, tmp_path):
    figure = draw(make_comparison())
    figure.savefig(tmp_path / "figure.png")
    for name in ("No memory", "Transformer-XL", "LaMemo"):
        assert name in texts(figure)
    for axes in figure.axes:
        assert axes.get_xlabel() and axes.get_ylabel() == "bits per byte"


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize("architecture", ["transformer", "lamemo"])
def test_every_figure_can_be_drawn_for_one_model_alone(draw, architecture, tmp_path):
    comparison = dataclasses.replace(make_comparison(), models=(make_model(architecture),))
    draw(comparison).savefig(tmp_path / "figure.png")


@pytest.mark.parametrize("layers", [1, 4, 9])
def test_interpolation_has_a_line_for_every_layer(layers, tmp_path):
    weights = tuple(tuple(0.5 + age / 256 for age in range(100)) for _ in range(layers))
    figure = plots.interpolation_by_age(dataclasses.replace(make_model("lamemo"), interpolation=weights), 64)
    figure.savefig(tmp_path / "figure.png")
    assert "layer 1" in texts(figure) and f"layer {layers}" in texts(figure)
    assert "older than one segment" in texts(figure)


def test_labels_are_pushed_apart_keep_their_order_and_stay_inside():
    placed = lines.spread([0.0, 0.01, 0.5, 0.02, 1.0], 0.1)
    assert sorted(range(5), key=placed.__getitem__) == [0, 1, 3, 2, 4]
    ordered = sorted(placed)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert ordered[0] >= 0 and ordered[-1] <= 1
    assert placed[2] == 0.5


def test_labels_with_room_stay_where_they_are():
    assert lines.spread([0.2, 0.8, 0.5], 0.1) == [0.2, 0.8, 0.5]


def test_smoothing_keeps_the_mean():
    points = [CurvePoint(step, float(step), float(step % 7)) for step in range(120)]
    found = lines.smoothed(points, windows=60)
    assert len(found) == 60
    assert sum(point.value for point in found) / 60 == pytest.approx(sum(point.value for point in points) / 120)
    assert lines.smoothed([]) == []


def test_known_models_differ_in_colour_and_marker():
    names = ("transformer", "transformer-xl", "lamemo")
    assert (
        len({palette.model_colour(name) for name in names}) == len({palette.model_marker(name) for name in names}) == 3
    )
    assert palette.model_label("compressive") == "Compressive"
    assert palette.model_colour("compressive") == palette.model_colour("compressive")


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    "colour", [colour for colour in palette.ALL if colour is not palette.GRID], ids=lambda colour: colour.name
)
def test_colours_that_carry_text_are_readable_on_both_pages(colour):
    assert contrast(colour.light, "#ffffff") >= 4.4
    assert contrast(colour.dark, "#14171b") >= 4.5
