"""Several SVG drawings in one page."""

import hashlib
import re
from xml.etree import ElementTree

from markupsafe import Markup

from takd.report.figures.style import DASHES, Look

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def scoped(svg: str, name: str = "") -> str:
    """Turn an SVG file into an element of a page, without a size of its own.

    Matplotlib numbers its groups from one in every file (`axes_1`) and names clip paths and markers by their shape. In
    one page the first of each would serve all drawings, and vanish from all when its own drawing is hidden. So all
    identifiers get a prefix derived from the drawing's bytes and a name, which tells equal drawings apart.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    prefix = f"f{hashlib.sha256(f'{name}{svg}'.encode()).hexdigest()[:10]}-"
    root = ElementTree.fromstring(svg)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("class", "figure")
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, prefix + value)
            elif key in ("href", f"{{{XLINK}}}href") and value.startswith("#"):
                element.set(key, f"#{prefix}{value[1:]}")
            elif "url(#" in value:
                element.set(key, _REFERENCE.sub(rf"url(#{prefix}\1)", value))
    return ElementTree.tostring(root, encoding="unicode")


_SHAPES = {
    "o": '<circle cx="18" cy="6" r="3.5"/>',
    "s": '<path d="M14.5 2.5h7v7h-7z"/>',
    "^": '<path d="M18 2l4 7.5h-8z"/>',
    "D": '<path d="M18 1.5l4.5 4.5-4.5 4.5-4.5-4.5z"/>',
    "v": '<path d="M18 10l4-7.5h-8z"/>',
    "P": '<path d="M16.5 2h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z"/>',
    "X": '<path d="M15 1.5l3 2.7 3-2.7 1.5 1.5-2.7 3 2.7 3-1.5 1.5-3-2.7-3 2.7-1.5-1.5 2.7-3-2.7-3z"/>',
}
_STROKES = dict(zip(DASHES, ("", "6 3", "7 2 1.5 2", "1.5 2", "10 4", "1.5 4"), strict=True))


def stroke(look: Look) -> Markup:
    """Sample of a line, small enough for running text."""
    return Markup(
        f'<svg class="stroke" viewBox="0 0 36 12" aria-hidden="true" fill="{look.colour}" stroke="{look.colour}">'
        f'<path d="M0 6h36" fill="none" stroke-width="2" stroke-dasharray="{_STROKES[look.dashes]}"/>'
        f'<g stroke="none">{_SHAPES[look.marker]}</g></svg>'
    )
