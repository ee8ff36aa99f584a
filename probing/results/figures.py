"""The one look of all figures: style, palette, montages of images, and saving for paper and page.

A figure is drawn once, in ink on nothing. Saved, it is a PNG and a vector PDF on white for a paper; in a report it is
an inline SVG whose ink, rules and paper follow the page, light or dark.
"""

import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from probing.core.content_ids import bytes_id
from probing.core.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1a1a1a"
FAINT = "#7f7f7f"
RULE = "#d4d4d4"
PAPER = "#ffffff"
ON_LIGHT, ON_DARK = "#111111", "#fefefe"
"""Words on a coloured cell, whose colour does not follow the page either."""
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart with every common colour vision (Okabe & Ito 2008), and on white as on black."""
DIVERGING = "RdBu_r"
MARKERS = ("o", "s", "^", "D", "v", "P")
"""Groups differ in shape besides colour, so that a figure survives a grey printer."""
COLUMN_WIDTH = 3.3
FULL_WIDTH = 6.9
"""Inches of one and of both columns of a journal's page: every figure for print is as wide as one of them."""
PNG_DPI = 200

_FOLLOWS_PAGE = {
    INK: "currentColor",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    PALETTE[0]: "var(--first)",
    PALETTE[1]: "var(--second)",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw and save in the house style inside the block."""
    import matplotlib as mpl

    with mpl.rc_context(_settings()):
        yield


def _settings() -> dict[Any, Any]:
    return {
        "font.family": [_FONT],
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "text.color": INK,
        "text.parse_math": False,  # a class may be called "$x$"
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "lines.linewidth": 0.9,
        "lines.markersize": 4,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "pdf.fonttype": 42,  # whole TrueType fonts: journals refuse Type 3, and text stays editable
        "svg.fonttype": "none",
        "svg.hashsalt": "probing",  # the same figure is the same bytes
    }


def new_figure(width: float, height: float, *, fitted: bool = True) -> "Figure":
    """Return an empty figure of so many inches that belongs to no window; draw inside `style`.

    A notebook shows it where it is the last value of a cell, whatever backend is in use.

    Args:
        width: of the figure; `FULL_WIDTH` fills a page.
        height: of the figure.
        fitted: parts are laid out so that nothing overlaps; else they stand where they are put.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if fitted else None)
    figure.__dict__["_repr_png_"] = partial(shown_png, figure)
    return figure


def shown_png(figure: "Figure") -> tuple[bytes, dict[str, int]]:
    """Return a figure's pixels, on white, and how wide they are to be shown."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, dpi=PNG_DPI, facecolor=PAPER, metadata={"Software": None})
    return buffer.getvalue(), {"width": round(figure.get_figwidth() * 100)}


def logarithmic(axes: "Axes") -> None:
    """Make the horizontal axis logarithmic, with a few labels in plain digits."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def for_print(figure: "Figure", width: float) -> "Figure":
    """Return a figure made as wide as a column, without its title, which belongs in the caption.

    Titles that tell panels apart stay. What is put in inches instead of laid out keeps its size, with space at its right.

    Raises:
        ValueError: if that is wider already, or for a width that is not one of a journal's.
    """
    if width not in {COLUMN_WIDTH, FULL_WIDTH}:
        raise ArgumentError(f"figures are {COLUMN_WIDTH} or {FULL_WIDTH} inches wide, got {width}.")
    if figure.get_layout_engine() is None:
        _widen(figure, width)
    figure.set_figwidth(width)
    if figure.get_suptitle():
        figure.suptitle("")
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    if len(panels) == 1:
        for place in ("left", "center", "right"):
            panels[0].set_title("", loc=place)
    return figure


def _widen(figure: "Figure", width: float) -> None:
    """Add space at the right of a figure whose one panel is measured in inches."""
    has = figure.get_figwidth()
    if width < has - 1e-6:
        raise ArgumentError(f"the figure is {has:.2f} inches wide and can't be laid out anew: draw it {width} wide.")
    [axes] = figure.axes
    axes.set_xlim(0, axes.get_xlim()[1] * width / has)


def figure_of(drawn: "Axes | Figure") -> "Figure":
    """Return the figure that axes are part of; a figure itself."""
    figure = drawn.get_figure(root=True)
    assert figure is not None  # what is drawn is drawn in a figure
    return figure


def save_figure(figure: "Figure", stem: Path) -> tuple[Path, Path]:
    """Write `stem.png` and `stem.pdf`, on white and with fonts embedded, and return their paths.

    Equal figures give equal bytes.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = (stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf"))
    with style():
        _settle(figure)
        figure.savefig(png, dpi=PNG_DPI, facecolor=PAPER, metadata={"Software": None})
        figure.savefig(pdf, dpi=PNG_DPI, facecolor=PAPER, metadata={"CreationDate": None})
    return png, pdf


def _settle(figure: "Figure") -> None:
    """Lay a figure out once: every format would do it again. What no font can draw is replaced."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if (drawn := drawable(text.get_text())) != text.get_text():
            text.set_text(drawn)
        if text.get_fontfamily() == [_FONT] and len(fonts := fonts_of(drawn)[0]) > 1:
            text.set_fontfamily(fonts)
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def drawable(text: str) -> str:
    """Return a text without characters that only steer, and with a sign for each that is none or half of one."""
    kinds = [(c, unicodedata.category(c)) for c in text]
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if kind in {"Cc", "Cs", "Co", "Cn"} and c != "\n" else c
        for c, kind in kinds
        if kind != "Cf" or c in _JOINERS
    )


def fonts_of(text: str) -> tuple[list[str], frozenset[str]]:
    """Return the fonts that a text is drawn in, and the characters that no installed font has.

    The suite's own font draws what it can, and installed ones what it lacks.
    """
    missing = {c for c in text if not c.isspace()} - _letters_of(_own_font())
    fonts = [_FONT]
    for name, path in _installed_fonts() if missing else ():
        if found := missing & _letters_of(path):
            fonts.append(name)
            missing -= found
    return fonts, frozenset(missing)


_FONT = "DejaVu Sans"


def _own_font() -> str:
    from matplotlib.font_manager import findfont

    return findfont(_FONT)


@cache
def _installed_fonts() -> tuple[tuple[str, str], ...]:
    """Return name and path of each upright font of usual weight, without those of TeX, whose letters lie elsewhere."""
    import matplotlib as mpl
    from matplotlib.font_manager import fontManager

    return tuple(
        sorted(
            (font.name, font.fname)
            for font in fontManager.ttflist
            if font.style == "normal"
            and font.weight in {400, "normal", "regular"}
            and not font.fname.startswith(mpl.get_data_path())
        )
    )


@cache
def _letters_of(path: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(path).get_charmap()))


_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


def inline_svg(figure: "Figure", label: str) -> str:
    """Return a figure as an `svg` element of an HTML page, with nothing fetched from elsewhere.

    Args:
        figure: drawn in ink, rules and paper of this module, which then follow the page.
        label: what it shows, for readers that do not see it.
    """
    from markupsafe import escape

    buffer = io.StringIO()
    with style():
        _settle(figure)
        figure.savefig(
            buffer,
            format="svg",
            dpi=PNG_DPI,  # of the images in it
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = buffer.getvalue()
    head, body = text[text.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<style type="text/css">.*?</style>', "", body, flags=re.DOTALL)
    body = _own_ids(body, label).replace("'DejaVu Sans'", "var(--figure-font)")
    for ink, name in _FOLLOWS_PAGE.items():
        body = body.replace(ink, name)
    share = min(1.0, figure.get_figwidth() / FULL_WIDTH)
    box_and_size = f'{box[0] if box else ""} style="max-width: {share:.0%}"'
    return f'<svg {box_and_size} role="img" aria-label="{escape(label)}">{body.strip()}'


def _own_ids(body: str, label: str) -> str:
    """Return the inside of an `svg` element with ids that no other figure of a page has, and only those referred to."""
    own = bytes_id((label + body).encode())[:8]
    referred = set(re.findall(r'(?:href="|url\()#([^")]+)', body))

    def named(match: re.Match[str]) -> str:
        return f' id="{own}-{match[1]}"' if match[1] in referred else ""

    body = re.sub(r' id="([^"]*)"', named, body)
    return re.sub(r'(href="|url\()#', rf"\1#{own}-", body)


def look(number: int) -> tuple[str, str]:
    """Return colour and marker of a group; more groups than colours still differ in one of the two."""
    turn = number // len(PALETTE)
    return PALETTE[number % len(PALETTE)], MARKERS[(number + turn) % len(MARKERS)]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return positions moved as little as needed to stand `gap` apart, in their order, within `low` to `high`.

    Labels beside points that lie close are placed by it. If there is no room the gap shrinks.
    """
    n = len(positions)
    if n < 2:
        return [min(max(p, low), high) for p in positions]
    gap = min(gap, (high - low) / (n - 1))
    order = np.argsort(positions, kind="stable")
    # Positions less their rank times the gap must not decrease: a monotone least-squares fit by pooling.
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([positions[i] - rank * gap, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n_a), (b, n_b) = pools[-2:]
            pools[-2:] = [[(a * n_a + b * n_b) / (n_a + n_b), n_a + n_b]]
    level = np.repeat([p[0] for p in pools], [int(p[1]) for p in pools]).clip(low, high - (n - 1) * gap)
    placed = np.empty(n)
    placed[order] = level + gap * np.arange(n)
    return placed.tolist()


@dataclass(frozen=True)
class Strip:
    """One row of a montage: what it shows, and its images with a caption each."""

    title: str
    images: Sequence[Image.Image]
    captions: Sequence[str]


def montage(strips: Sequence[Strip], *, columns: int = 10, width: float = FULL_WIDTH) -> "Figure":
    """Return rows of images with captions, longer strips broken into lines of `columns`.

    Raises:
        ValueError: if there is no image, or a strip has not one caption per image.
    """
    for strip in strips:
        if len(strip.images) != len(strip.captions):
            raise ArgumentError(f"{strip.title!r} has {len(strip.images)} images and {len(strip.captions)} captions.")
    lines = [
        (strip, range(start, min(start + columns, len(strip.images))))
        for strip in strips
        for start in range(0, len(strip.images), columns)
    ]
    if not lines:
        raise ArgumentError("a montage needs at least one image, got none.")
    cell = width / columns
    height = sum(_line(s) * cell + _TITLE * (shown[0] == 0) for s, shown in lines)
    with style():
        figure = new_figure(width, height, fitted=False)
        axes = figure.add_axes((0, 0, 1, 1))  # one for all: each would cost as much as a plot
        top = height
        for strip, shown in lines:
            if shown[0] == 0:
                axes.text(0.05 * cell, top - 0.6 * _TITLE, strip.title, fontweight="bold", va="center")
                top -= _TITLE
            for column, i in enumerate(shown):
                _cell(axes, strip.images[i], (column + 0.5) * cell, top - 0.5 * cell, 0.9 * cell)
                at = ((column + 0.5) * cell, top - 1.0 * cell)
                axes.text(*at, strip.captions[i], fontsize=6, ha="center", va="top")
            top -= _line(strip) * cell
        axes.set(xlim=(0, width), ylim=(0, height))
        axes.set_axis_off()
    return figure


_LINE, _BARE = 1.46, 1.06
"""Height of an image with its caption and without one, as a share of its width."""
_TITLE = 0.28
"""Inches above a strip."""


def _line(strip: Strip) -> float:
    return _LINE if any(strip.captions) else _BARE


def _cell(axes: "Axes", image: Image.Image, x: float, y: float, size: float) -> None:
    """Put an image into a square around a point, in inches."""
    half = [0.5 * size * side / max(image.size) for side in image.size]
    extent = (x - half[0], x + half[0], y - half[1], y + half[1])
    pixels = np.asarray(image.convert("RGBA"))
    axes.imshow(pixels, extent=extent, aspect="auto", interpolation="antialiased")
