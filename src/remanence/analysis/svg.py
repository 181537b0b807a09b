"""Figures as SVG that lives inside a page: it follows the page's width, font and colours, and needs nothing else."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree as ET

from matplotlib import rc_context
from matplotlib.figure import Figure

from remanence.analysis import palette

_SVG = "{http://www.w3.org/2000/svg}"
# A <style> here would reach the whole page; the page says the same for its figures.
_LEFT_OUT = {f"{_SVG}metadata", f"{_SVG}style"}
_HREF = "{http://www.w3.org/1999/xlink}href"
_FONT_FAMILY = re.compile(r"font-family: [^;]*;? ?")


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as one `<svg>` element for an HTML page.

    `name` makes the element's ids unique within the page; `description` is read aloud in place of the picture. Colours
    of the palette become CSS variables that fall back to the light colour, texts stay texts in the page's own font,
    and everything that points outside (metadata, doctype, namespaces) is left out.
    """
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in _LEFT_OUT:
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = {key: value for key, value in map(_attribute(name), element.attrib.items()) if key}
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", description)
    return ET.tostring(root, encoding="unicode")


def _attribute(name: str):
    def convert(item: tuple[str, str]) -> tuple[str, str]:
        key, value = item
        if key == "id":
            return key, f"{name}-{value}"
        if key == _HREF:
            return "href", f"#{name}-{value.removeprefix('#')}"
        value = value.replace("url(#", f"url(#{name}-")
        if key == "style":
            value = _FONT_FAMILY.sub("", value)
            for colour in palette.ALL:
                value = value.replace(colour.light, f"var(--{colour.name}, {colour.light})")
        return key, value

    return convert
