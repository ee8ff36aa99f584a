"""Sorted effects with their intervals below what they are effects of: the figure of a report's first screen."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from probing.core.errors import ArgumentError
from probing.results.figures import COLUMN_WIDTH, FAINT, INK, PALETTE, RULE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 20
"""Effects that are drawn: the largest of any panel."""
_LETTERS = 24
"""Of a name beside a row."""
_ARROW = "\N{RIGHTWARDS ARROW} "
_PICTURES, _LINE, _ROW = 0.62, 0.15, 0.135
"""Inches of pictures, of a line of text, and of a row."""


@dataclass(frozen=True)
class Effect:
    """One effect with its interval, if it has one.

    Attributes:
        sure: whether it is beyond chance after correction, which fills its dot.
    """

    value: float
    low: float | None
    high: float | None
    sure: bool


@dataclass(frozen=True)
class EffectPanel:
    """The effects of one swap or concept.

    Attributes:
        title: the swap or concept.
        effects: by name of what is changed.
        pictures: examples above the panel, with an arrow between two.
        band: the interval in which most effects lie that nobody asked about.
    """

    title: str
    effects: dict[str, Effect]
    pictures: tuple[Image.Image, ...] = ()
    band: tuple[float, float] | None = None


def shown_rows(panels: Sequence[EffectPanel]) -> list[str]:
    """Return the names that are drawn, from the largest rise in the first panel to the largest fall.

    All of them, or the `MOST_ROWS` whose effect is largest in size in any panel.
    """
    first = panels[0].effects
    largest = sorted(first, key=lambda name: -max(abs(p.effects[name].value) for p in panels))[:MOST_ROWS]
    return sorted(largest, key=lambda name: -first[name].value)


def draw_effects(panels: Sequence[EffectPanel], unit: str, sentences: Sequence[str] = ()) -> "Figure":
    """Return a figure as wide as a journal's column, with a panel for each swap or concept.

    Args:
        panels: on one axis, with the same names.
        unit: what the axis is in.
        sentences: examples in words, above all panels.

    Raises:
        ArgumentError: if there is no panel, or they have not the same names.
    """
    if len({frozenset(panel.effects) for panel in panels}) != 1:
        raise ArgumentError(f"panels must be of the same names, got {[sorted(panel.effects) for panel in panels]}.")
    names = shown_rows(panels)
    lines = [line for sentence in sentences for line in fill(sentence, 62).split("\n")]
    pictured = any(panel.pictures for panel in panels)
    titles = [_broken(panel.title, 62 // (len(panels) + 1)) for panel in panels]
    titled = max(t.count("\n") + bool(t) for t in titles)
    heights = [_LINE * titled + _PICTURES * pictured + 0.02, _ROW * len(names) + 0.1]
    with style():
        figure = new_figure(COLUMN_WIDTH, sum(heights) + 0.45 + _LINE * (len(lines) + bool(lines)))
        if lines:
            figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=7)
        grid = figure.subplots(2, len(panels), squeeze=False, height_ratios=heights, sharex="row", sharey="row")
        for head, axes, title, panel in zip(*grid, titles, panels, strict=True):
            _head(head, title, panel.pictures, pictured=pictured)
            _rows(axes, panel, names)
        grid[1, 0].set_yticks(range(len(names)), [_cut(name, _LETTERS) for name in names])
        figure.supxlabel(unit, fontsize=7)
    return figure


def _cut(text: str, letters: int) -> str:
    """Return a text, its end left out if it is longer than so many letters."""
    return text if len(text) <= letters else f"{text[: letters - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"


def _broken(title: str, width: int) -> str:
    """Return a title in lines no wider than so many letters, broken behind its arrow if it has one."""
    if len(title) <= width:
        return title
    return "\n".join(fill(_cut(part, 2 * width), width) for part in title.replace(_ARROW, f"{_ARROW}\n").split("\n"))


def _head(axes: "Axes", title: str, pictures: Sequence[Image.Image], *, pictured: bool) -> None:
    axes.set_axis_off()
    axes.set(xlim=(0, 2.6), ylim=(0, 1), aspect="equal" if pictured else "auto", anchor="S")  # titles side by side
    axes.set_title(title, fontsize=7, fontweight="bold", pad=2)
    for k, picture in enumerate(pictures):
        left = 0.8 if len(pictures) == 1 else 1.6 * k
        axes.imshow(
            np.asarray(picture.convert("RGBA")), extent=(left, left + 1, 0, 1), aspect="equal", interpolation="antialiased"
        )
    if len(pictures) == 2:
        axes.annotate("", (1.52, 0.5), (1.08, 0.5), arrowprops={"arrowstyle": "->", "color": INK, "lw": 1})
    axes.set(xlim=(0, 2.6), ylim=(0, 1))


def _rows(axes: "Axes", panel: EffectPanel, names: Sequence[str]) -> None:
    if panel.band is not None:
        axes.axvspan(*panel.band, color=RULE, alpha=0.45, lw=0, zorder=0)
    axes.axvline(0, color=FAINT, lw=0.6, zorder=1)
    for y, effect in enumerate(panel.effects[name] for name in names):
        colour = PALETTE[effect.value > 0] if effect.sure else FAINT  # orange up, blue down, as in the page's heat maps
        if effect.low is not None and effect.high is not None:
            axes.plot([effect.low, effect.high], [y, y], color=colour, lw=1, zorder=2)
        face = colour if effect.sure else "white"
        axes.plot(effect.value, y, "o", ms=3.5, mew=0.7, color=colour, mfc=face, zorder=3)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=5)
