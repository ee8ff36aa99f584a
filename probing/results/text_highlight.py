"""Words of a text in the colours of what they contribute, as HTML and as a figure."""

import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence, Set as AbstractSet
from dataclasses import dataclass
from itertools import accumulate, groupby
from textwrap import wrap
from typing import TYPE_CHECKING, Literal

from probing.core.errors import ProbingError
from probing.results.figures import FAINT, INK, PAPER, fonts_of, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RAISES, LOWERS = "#d6604d", "#4393c3"
"""Full colours: ink stands out on both, and they are told apart with every common colour vision; lines beneath the words,
whole or dotted, tell them apart in grey."""
Spans = Sequence[Sequence[tuple[int, int]]]
"""Where each part's words begin and end in the text, in characters."""


class HighlightError(ProbingError, ValueError):
    """Parts don't lie in the text as they are said to."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text; `value` is what its part contributes, None for text that is no part."""

    text: str
    value: float | None = None


def pieces(text: str, spans: Spans, values: Sequence[float]) -> list[Piece]:
    """Return a text cut where parts begin and end.

    Raises:
        HighlightError: if spans overlap or lie outside of the text, or their number is not that of the values.
    """
    if len(spans) != len(values):
        raise HighlightError(f"there are {len(spans)} parts and {len(values)} values: give one each.")
    places = sorted((*span, float(v)) for part, v in zip(spans, values, strict=True) for span in part)
    found, end = [], 0
    for start, stop, value in places:
        if start < end or stop < start or stop > len(text):
            raise HighlightError(
                f"the span {start} to {stop} overlaps another, or leaves the text of {len(text)} characters."
            )
        if start > end:
            found.append(Piece(text[end:start]))
        found.append(Piece(text[start:stop], value))
        end = stop
    if end < len(text):
        found.append(Piece(text[end:]))
    return found


def tone(value: float, scale: float) -> str:
    """Return the colour of a value: white at zero, full at the scale and beyond."""
    share = min(1.0, abs(value) / scale) if scale > 0 else 0.0
    full = RAISES if value > 0 else LOWERS
    channels = [(int(PAPER[i : i + 2], 16), int(full[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in channels)


def highlight_html(text: str, spans: Spans, values: Sequence[float], *, caption: str = "") -> str:
    """Return a `div` element in which words have the colour of their part's value, shown when pointed at.

    Nothing is fetched, no script runs, and the text is escaped.
    """
    from markupsafe import escape

    scale = max(map(abs, values), default=0.0)
    marked = "".join(
        f'<span title="{piece.value:+.3g}" style="{_css(piece.value or 0.0, scale)}">{escape(piece.text)}</span>'
        if _shown(piece, scale)
        else str(escape(piece.text))
        for piece in pieces(text, spans, values)
    )
    below = "".join(
        f'<div style="font-size:.8em;color:{FAINT}">{line}</div>' for line in (str(escape(caption)), _key(scale)) if line
    )
    look = "font-family:system-ui,sans-serif;line-height:1.9;white-space:pre-wrap;max-width:44em"
    runs = "unicode-bidi:plaintext;text-align:start"  # each paragraph from where its own script begins
    return f'<div style="{look}"><div dir="auto" style="{runs}">{marked}</div>{below}</div>'


def _shown(piece: Piece, scale: float) -> bool:
    """Whether a piece is coloured: what contributes a hundredth of the most is as good as white."""
    return piece.value is not None and abs(piece.value) > 0.01 * scale


def _css(value: float, scale: float) -> str:
    line = "solid" if value > 0 else "dotted"
    look = f"background:{tone(value, scale)};color:{INK};border-radius:.2em;padding:.1em .15em"
    return f"{look};text-decoration:underline {line} {INK};text-underline-offset:.2em"


def _key(scale: float) -> str:
    if scale == 0:
        return "No word contributes."
    return (
        f"Red, underlined: raises the score. Blue, dotted: lowers it. Full colour: {scale:.3g}; "
        "plain: under a hundredth of that."
    )


def highlight_figure(text: str, spans: Spans, values: Sequence[float], *, caption: str = "", width: float = 5.0) -> "Figure":
    """Return a figure of the text, as `highlight_html` shows it.

    Args:
        text: lines are broken between words.
        spans: of the parts.
        values: of the parts.
        caption: beneath the text.
        width: of the figure, in inches.
    """
    scale = max(map(abs, values), default=0.0)
    fonts, missing = fonts_of(text)
    unseen = _unseen(missing)
    with style():
        lines = list(_lines(pieces(text, spans, values), _measure(fonts), width - 2 * _MARGIN))
        letters = int((width - 2 * _MARGIN) / _SMALL_LETTER)
        below = [line for said in (caption, _key(scale), unseen) for line in wrap(said, letters)]
        height = _LINE * len(lines) + 0.16 * len(below) + 2 * _MARGIN
        figure = new_figure(width, height, fitted=False)
        axes = figure.add_axes((0, 0, 1, 1))
        for i, line in enumerate(lines):
            y = height - _MARGIN - (i + 0.5) * _LINE
            for piece, x, wide in line:
                if _shown(piece, scale):
                    _mark(figure, (x + _MARGIN, y), wide, piece.value or 0.0, scale)
                axes.text(x + _MARGIN, y, piece.text, fontsize=_SIZE, va="center_baseline", family=fonts)
        for i, line_below in enumerate(reversed(below)):
            axes.text(_MARGIN, _MARGIN + 0.16 * i, line_below, fontsize=6.5, color=FAINT)
        axes.set(xlim=(0, width), ylim=(0, height))
        axes.set_axis_off()
    return figure


_SIZE, _LINE, _MARGIN = 9, 0.25, 0.08
"""Points of the letters; inches of a line and around all."""
_SMALL_LETTER = 0.053
"""Inches of a letter of what is said beneath."""


def _mark(figure: "Figure", at: tuple[float, float], wide: float, value: float, scale: float) -> None:
    """Colour the ground of a word, and draw a line beneath it."""
    from matplotlib.patches import Rectangle

    (x, y), axes = at, figure.axes[0]
    ground = Rectangle((x, y - 0.085), wide, 0.175, color=tone(value, scale), linewidth=0, zorder=0)
    axes.add_patch(ground)
    dashes = "-" if value > 0 else (0, (1, 1.5))
    axes.plot([x, x + wide], [y - 0.085] * 2, color=INK, lw=0.7, ls=dashes, zorder=1)


def _unseen(missing: AbstractSet[str]) -> str:
    """Return that no font has some letters, by the name of their script."""
    if not missing:
        return ""
    names = {unicodedata.name(c, "unknown").split()[0] for c in missing}
    scripts = sorted(name if name == "CJK" else name.capitalize() for name in names)
    return f"No installed font has the letters of: {', '.join(scripts)}."


def _measure(fonts: list[str]) -> Callable[[str], float]:
    """Return what gives the width of a word in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=fonts, size=_SIZE)

    def width(word: str) -> float:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # which is said beneath
            sides: tuple[float, float, float] = text_to_path.get_text_width_height_descent(word, font, ismath=False)
        return sides[0] / 72

    return width


def _lines(
    parts: Sequence[Piece], measure: Callable[[str], float], width: float
) -> Iterator[list[tuple[Piece, float, float]]]:
    """Yield lines of pieces, each with its place and width; lines break at white space only, and where the text does.

    Lines of a paragraph that begins from the right are set from there.
    """
    space = Piece(" ")
    blank = measure("a a") - measure("aa")

    def laid_out(line: list[Piece], right: bool) -> list[tuple[Piece, float, float]]:
        shown = in_sight(line, right=right)
        wide = [blank if piece is space else measure(piece.text) for piece in shown]
        ends = list(accumulate(wide, initial=width - sum(wide) if right else 0.0))
        placed = zip(shown, ends[:-1], wide, strict=True)
        return [at for at in placed if at[0] is not space]

    for paragraph in _paragraphs(parts):
        right = _is_right(paragraph)
        line, x = list[Piece](), 0.0
        for word in _words(paragraph):
            if word[0].text.isspace():
                line += [space] if line else []
                x += blank if line else 0.0
                continue
            wide = sum(measure(piece.text) for piece in word)
            if line and x + wide > width:
                yield laid_out(_stripped(line, space), right)
                line, x = [], 0.0
            line += word
            x += wide
        yield laid_out(_stripped(line, space), right)


def _stripped(line: list[Piece], space: Piece) -> list[Piece]:
    return line[:-1] if line and line[-1] is space else line


def _paragraphs(parts: Sequence[Piece]) -> Iterator[list[Piece]]:
    paragraph = list[Piece]()
    for piece in parts:
        first, *others = piece.text.split("\n")
        paragraph.append(Piece(first, piece.value))
        for text in others:
            yield paragraph
            paragraph = [Piece(text, piece.value)]
    yield paragraph


def _is_right(pieces: Sequence[Piece]) -> bool:
    """Whether the first letter of a direction runs from the right (UAX #9, P2 and P3)."""
    ways = (_way(piece.text) for piece in pieces)
    return next((way == "R" for way in ways if way in {"L", "R"}), False)


def _way(text: str) -> Literal["L", "R", "number", ""]:
    """Return the direction of a text's first letter, or that it is a number, or neither."""
    kinds = [unicodedata.bidirectional(c) for c in text]
    for kind in kinds:
        if kind in {"L", "R", "AL"}:
            return "L" if kind == "L" else "R"
    return "number" if {"EN", "AN"}.intersection(kinds) else ""


def in_sight(line: Sequence[Piece], *, right: bool) -> list[Piece]:
    """Return a line's pieces from left to right, as a reader sees them.

    Unicode's bidirectional algorithm (UAX #9) with whole pieces for characters, which the letters of a piece follow
    when it is drawn: numbers run from the left, and what has no direction goes the way of its neighbours, or of the
    paragraph where these differ.

    Args:
        line: pieces in the order they are read.
        right: whether the paragraph runs from the right.
    """
    base: Literal["L", "R"] = "R" if right else "L"
    ways, last = list[str](), base
    for piece in line:
        own = _way(piece.text)
        if own in {"L", "R"}:
            last = "R" if own == "R" else "L"
        ways.append("L" if own == "number" and last == "L" else own)
    levels = []
    for i, way in enumerate(ways):
        before = next((w for w in reversed(ways[:i]) if w), base).replace("number", "R")
        after = next((w for w in ways[i + 1 :] if w), base).replace("number", "R")
        between: str = before if before == after else base
        levels.append({"L": 2 * right, "R": 1, "number": 2}[way or between])
    placed = [
        (Piece(_mirrored(piece.text), piece.value) if level == 1 and not way and not piece.text.isspace() else piece, level)
        for piece, level, way in zip(line, levels, ways, strict=True)
    ]
    for level in range(max(levels, default=0), 0, -1):
        runs = [list(run) for _, run in groupby(placed, lambda at: at[1] >= level)]  # noqa: B023
        placed = [at for run in runs for at in (run[::-1] if run[0][1] >= level else run)]
    return [piece for piece, _ in placed]


def _mirrored(text: str) -> str:
    """Return signs without a direction as they look in text that runs from the right."""
    import regex

    return "".join(reversed(regex.findall(r"\X", text))).translate(_MIRROR)


_MIRROR = str.maketrans("()[]{}<>\u00ab\u00bb\u2039\u203a", ")(][}{><\u00bb\u00ab\u203a\u2039")


def _words(parts: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Yield what must stay on one line: pieces without white space between them, or white space alone."""
    import re

    word: list[Piece] = []
    for piece in parts:
        for text in re.findall(r"\s+|\S+", piece.text):
            if text.isspace():
                if word:
                    yield word
                yield [Piece(text)]
                word = []
            else:
                word.append(Piece(text, piece.value))
    if word:
        yield word
