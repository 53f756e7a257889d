"""Several SVG drawings in one page."""

import hashlib
import re
from xml.etree import ElementTree

from markupsafe import Markup

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def inline(svg: str, name: str = "") -> Markup:
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
    return Markup(ElementTree.tostring(root, encoding="unicode"))
