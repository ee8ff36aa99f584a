"""Words of a text in the colours of what they contribute, as HTML and as a figure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

from probing.errors import ProbingError
from probing.figures import FAINT, INK, PAPER, new_figure, style

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
        raise HighlightError(
            f"there are {len(spans)} parts and {len(values)} values: give one each."
        )
    places = sorted(
        (*span, float(v)) for part, v in zip(spans, values, strict=True) for span in part
    )
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
        f'<div style="font-size:.8em;color:{FAINT}">{line}</div>'
        for line in (str(escape(caption)), _key(scale))
        if line
    )
    look = "font-family:system-ui,sans-serif;line-height:1.9;white-space:pre-wrap;max-width:44em"
    return f'<div style="{look}"><div>{marked}</div>{below}</div>'


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


def highlight_figure(
    text: str, spans: Spans, values: Sequence[float], *, caption: str = "", width: float = 5.0
) -> "Figure":
    """Return a figure of the text, as `highlight_html` shows it.

    Args:
        text: lines are broken between words.
        spans: of the parts.
        values: of the parts.
        caption: beneath the text.
        width: of the figure, in inches.
    """
    scale = max(map(abs, values), default=0.0)
    with style():
        lines = list(_lines(pieces(text, spans, values), _measure(), width - 2 * _MARGIN))
        letters = int((width - 2 * _MARGIN) / _SMALL_LETTER)
        below = [line for text in (caption, _key(scale)) for line in wrap(text, letters)]
        height = _LINE * len(lines) + 0.16 * len(below) + 2 * _MARGIN
        figure = new_figure(width, height, fitted=False)
        axes = figure.add_axes((0, 0, 1, 1))
        for i, line in enumerate(lines):
            y = height - _MARGIN - (i + 0.5) * _LINE
            for piece, x, wide in line:
                if _shown(piece, scale):
                    _mark(figure, (x + _MARGIN, y), wide, piece.value or 0.0, scale)
                axes.text(x + _MARGIN, y, piece.text, fontsize=_SIZE, va="center_baseline")
        for i, line_below in enumerate(reversed(below)):
            axes.text(_MARGIN, _MARGIN + 0.16 * i, line_below, fontsize=6.5, color=FAINT)
        axes.set(xlim=(0, width), ylim=(0, height))
        axes.set_axis_off()
    return figure


_SIZE, _LINE, _MARGIN = 9, 0.25, 0.08
"""Points of the letters; inches of a line and around all."""
_SMALL_LETTER = 0.053
"""Inches of a letter of what is said beneath."""


def _mark(
    figure: "Figure", at: tuple[float, float], wide: float, value: float, scale: float
) -> None:
    """Colour the ground of a word, and draw a line beneath it."""
    from matplotlib.patches import Rectangle

    (x, y), axes = at, figure.axes[0]
    ground = Rectangle((x, y - 0.085), wide, 0.175, color=tone(value, scale), linewidth=0, zorder=0)
    axes.add_patch(ground)
    dashes = "-" if value > 0 else (0, (1, 1.5))
    axes.plot([x, x + wide], [y - 0.085] * 2, color=INK, lw=0.7, ls=dashes, zorder=1)


def _measure() -> Callable[[str], float]:
    """Return what gives the width of a word in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=["DejaVu Sans"], size=_SIZE)

    def width(word: str) -> float:
        sides: tuple[float, float, float] = text_to_path.get_text_width_height_descent(
            word, font, ismath=False
        )
        return sides[0] / 72

    return width


def _lines(
    parts: Sequence[Piece], measure: Callable[[str], float], width: float
) -> Iterator[list[tuple[Piece, float, float]]]:
    """Yield lines of pieces, each with its place and width; lines break at white space only, and where the text does."""
    space, x, line = measure("a a") - measure("aa"), 0.0, list[tuple[Piece, float, float]]()
    for word in _words(parts):
        wide = sum(measure(p.text) for p in word if not p.text.isspace())
        if word[0].text == "\n" or (line and x + wide > width and not word[0].text.isspace()):
            yield line
            x, line = 0.0, []
        for piece in word:
            if piece.text.isspace():
                x += space if line and piece.text != "\n" else 0.0
                continue
            line.append((piece, x, measure(piece.text)))
            x += line[-1][2]
    yield line


def _words(parts: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Yield what must stay on one line: pieces without white space between them, or white space alone."""
    import re

    word: list[Piece] = []
    for piece in parts:
        for text in re.findall(r"\n|[^\S\n]+|\S+", piece.text):
            if text.isspace():
                if word:
                    yield word
                yield [Piece(text)]
                word = []
            else:
                word.append(Piece(text, piece.value))
    if word:
        yield word
