"""Colours and names, the same in every plot, table and page.

The first three model colours are Okabe and Ito's, which people with any common colour vision tell apart; with more
that no longer holds for every pair, but a marker and a label beside each line say the same without colour. Every
colour has a twin for dark pages: plots are drawn with the light one, and `remanence.analysis.svg` turns it into a CSS
variable that the page sets for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Colour(NamedTuple):
    """A CSS variable name with its value on light and on dark pages."""

    name: str
    light: str
    dark: str


INK = Colour("ink", "#1d2126", "#e7e9ec")
MUTED = Colour("muted", "#5b6470", "#a3abb5")
GRID = Colour("grid", "#dfe3e8", "#343a42")

_MODELS = {
    "transformer": (Colour("transformer", "#6f7780", "#a9b1ba"), "s", "No memory"),
    "transformer-xl": (Colour("transformer-xl", "#0072b2", "#56a8e0"), "o", "Transformer-XL"),
    "lamemo": (Colour("lamemo", "#c94f00", "#f58a3c"), "^", "LaMemo"),
    "compressive": (Colour("compressive", "#00805c", "#34c79a"), "D", "Compressive"),
    "infinite-former": (Colour("infinite-former", "#a8487f", "#e58fbd"), "v", "∞-former"),
    "memformer": (Colour("memformer", "#8a6d00", "#d9b82e"), "P", "Memformer"),
    "rmt": (Colour("rmt", "#6a4fb3", "#b59cf0"), "X", "RMT"),
}
_OTHERS = (
    (Colour("other-1", "#007587", "#3cc3d6"), "h"),
    (Colour("other-2", "#8c4a2f", "#d99a78"), "*"),
    (Colour("other-3", "#4d6b00", "#a8c94a"), "p"),
)

# Layers are ordered, so their colours are: dark to light on white, light to dark on black.
LAYERS = (
    Colour("layer-1", "#46237a", "#cdb4f6"),
    Colour("layer-2", "#2f4b9c", "#9fb6ff"),
    Colour("layer-3", "#1b74a8", "#6fc3ea"),
    Colour("layer-4", "#0d7d77", "#57d1c4"),
    Colour("layer-5", "#47801f", "#9bd67a"),
    Colour("layer-6", "#7d6f00", "#e0d25a"),
)

ALL = (INK, MUTED, GRID, *(entry[0] for entry in _MODELS.values()), *(entry[0] for entry in _OTHERS), *LAYERS)


def model_colour(architecture: str) -> Colour:
    return _MODELS[architecture][0] if architecture in _MODELS else _other(architecture)[0]


def model_marker(architecture: str) -> str:
    return _MODELS[architecture][1] if architecture in _MODELS else _other(architecture)[1]


def model_label(architecture: str) -> str:
    """What people call the architecture: "lamemo" -> "LaMemo", "transformer" -> "No memory"."""
    return _MODELS[architecture][2] if architecture in _MODELS else architecture.replace("-", " ").capitalize()


def _other(architecture: str) -> tuple[Colour, str]:
    # The name alone decides, so that a model keeps its colour whatever it is drawn beside.
    return _OTHERS[sum(architecture.encode()) % len(_OTHERS)]


class Look(NamedTuple):
    """How one of several recipes is named and drawn."""

    label: str
    colour: Colour
    marker: str


def looks(recipes: Mapping[str, str]) -> dict[str, Look]:
    """The look of each recipe, by its name; `recipes` gives its architecture.

    A recipe is called what its architecture is called, unless another one has the same architecture, and looks like it,
    unless an earlier one does.
    """
    shared = list(recipes.values())
    free = [*_OTHERS, *(entry[:2] for entry in _MODELS.values())]
    found: dict[str, Look] = {}
    for name, architecture in recipes.items():
        wanted = (model_colour(architecture), model_marker(architecture))
        taken = [(look.colour, look.marker) for look in found.values()]
        kept = [_MODELS[other][:2] for other in shared if other in _MODELS and other != architecture]
        if wanted in taken:
            wanted = next((each for each in free if each not in taken and each not in kept), wanted)
        label = model_label(architecture) if shared.count(architecture) == 1 else name
        found[name] = Look(label, *wanted)
    return found
