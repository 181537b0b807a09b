"""The page stands alone, escapes what it is given, and can be read without seeing it."""

import dataclasses
import itertools
import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("matplotlib")

from tests.analysis.synthetic import make_comparison

from remanence.analysis import Sample, report

VOID = {"meta", "link", "br", "img", "hr"}


class Page(HTMLParser):
    """Checks that elements close in order, and collects what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def html() -> str:
    return report.render(make_comparison())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_the_page_loads_nothing_from_anywhere(html, page):
    assert not re.search(r"https?://|//[a-z]|@import|url\((?!#)", html)
    assert not page.all("script") and not page.all("img") and not page.all("iframe")
    assert all(link["href"] == "data:," for link in page.all("link"))
    assert "default-src 'none'" in html


def test_nothing_is_left_of_the_template(html):
    assert not re.search(r"\$[a-z{]", html)


def test_every_plot_is_named_and_has_its_numbers_in_a_table(page):
    assert len(page.all("figure")) == len(page.all("svg")) == 6
    for svg in page.all("svg"):
        assert svg["role"] == "img" and len(svg["aria-label"]) > 30
    assert len(page.all("details")) >= 6 and len(page.all("table")) >= 9


def test_ids_are_unique_and_every_reference_finds_its_target(html, page):
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {attributes["href"][1:] for attributes in page.all("use")} | set(re.findall(r"url\(#([^)]*)\)", html))
    wanted |= {attributes["aria-labelledby"] for attributes in page.all("section")}
    assert wanted <= set(ids)


def test_headings_go_down_one_level_at_a_time(page):
    levels = [int(tag[1]) for tag, _ in page.found if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels[1:]))


def test_everything_from_outside_is_escaped():
    nasty = '<script>alert("x")</script>&'
    comparison = make_comparison()
    html = report.render(
        dataclasses.replace(
            comparison,
            title=nasty,
            text=dataclasses.replace(comparison.text, source=nasty),
            protocol={nasty: nasty},
            settings={nasty: nasty},
            recipes={"lamemo": nasty},
            machine={nasty: nasty},
            sample=Sample("lamemo", nasty, nasty, nasty),
            command=nasty,
            notes=(nasty,),
        )
    )
    assert "<script" not in html and "&lt;script&gt;" in html
    assert Page(html).text.count(nasty) >= 12


def test_the_scores_are_on_the_page(page):
    for value in ("2.310", "2.081", "2.101", "3.07 million"):
        assert value in page.text


def test_text_in_plots_is_text_and_their_colours_follow_the_page(html):
    assert html.count("<text") > 60
    svg = html[html.index("<svg") :]
    assert "var(--lamemo" in svg and not re.search(r"fill: #(?!ffffff)[0-9a-f]{6}", svg[: svg.rindex("</svg>")])


def test_a_page_without_sample_curves_and_merging_models_is_whole():
    comparison = make_comparison()
    bare = tuple(
        dataclasses.replace(model, training=(), validation=(), interpolation=()) for model in comparison.models
    )
    page = Page(report.render(dataclasses.replace(comparison, models=bare, sample=None, differences=())))
    assert len(page.all("figure")) == 3


def test_the_same_comparison_gives_the_same_page(html):
    assert report.render(make_comparison()) == html
