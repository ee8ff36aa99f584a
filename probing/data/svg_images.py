"""Vector drawings as pictures: SVG files drawn at one size, the same bytes on every machine."""

import re
from dataclasses import dataclass
from pathlib import Path
from xml.parsers.expat import ExpatError, ParserCreate

from probing.core.packages import require
from probing.data.images import ImageError, read_file

_REFERS = re.compile(rb"""(?:href\s*=\s*["'](?!\s*\#)|url\(\s*["']?(?!\s*["']?\#)|<!ENTITY|@import)""", re.I)
_TEXT = re.compile(rb"<(?:\w+:)?(?:text|tspan)\b", re.I)
_MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class VectorFiles:
    """SVG drawings in files, read as PNG.

    Drawings that hold text are refused, since fonts differ between machines, and those that refer to other files are,
    since what they show is not in them alone.

    Attributes:
        paths: of the files.
        size: sides of the picture, in pixels.
    """

    paths: tuple[Path, ...]
    size: int

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def original(self, index: int) -> bytes:
        """Return the drawing itself."""
        return read_file(self.paths[index])

    def read(self, index: int) -> bytes:
        return rendered(self.original(index), self.size)

    def __len__(self) -> int:
        return len(self.paths)


def rendered(svg: bytes, size: int) -> bytes:
    """Return a drawing as a PNG of `size` by `size` pixels, transparent where it is empty.

    Raises:
        ImageError: if it is no SVG, holds text, refers to other files, or is too large.
        probing.core.packages.PackageMissingError: without resvg-py.
    """
    if len(svg) > _MOST_BYTES:
        raise ImageError(f"it is a drawing of {len(svg)} bytes, over the limit of {_MOST_BYTES}")
    if _REFERS.search(svg):
        raise ImageError("it is a drawing that refers to other files: put everything into it")
    if _TEXT.search(svg):
        raise ImageError("it is a drawing with text, whose fonts differ by machine: make paths of it")
    _refuse_traps(svg)
    draw = require("resvg_py").svg_to_bytes
    try:
        text = svg.decode()
        return bytes(draw(svg_string=text, width=size, height=size, skip_system_fonts=True))
    except ValueError as error:  # not text, or no SVG
        raise ImageError(f"it cannot be drawn ({str(error).splitlines()[0]})") from None


def _refuse_traps(svg: bytes) -> None:
    """Raise for a drawing that would take any time, as filters may, or that is nested so deep that drawing it crashes."""
    depth = 0

    def begin(name: str, _: object) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise ImageError(f"it is a drawing nested deeper than {_MAX_DEPTH} levels")
        if name.rpartition(":")[2] == "filter":
            raise ImageError("it is a drawing with filters, which may take any time: make paths of it")

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    parser = ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    try:
        parser.Parse(svg, True)
    except ExpatError as error:
        raise ImageError(f"it cannot be drawn ({error})") from None


_MAX_DEPTH = 100
