"""A figure in the report and beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from probing.results.figures import inline_svg, save_figure
from probing.results.html_report import Plate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[], "Figure"]


def plate(folder: Path, stem: str, draw: Draw, label: str, caption: str, data: str = "") -> Plate:
    """Draw a figure, save it for print under `figures/`, and return it for the page.

    Args:
        folder: of the audit's results.
        stem: name of the files.
        draw: the figure.
        label: what it shows, in a few words, for readers that do not see it.
        caption: what it shows, and how to read it.
        data: name of the table that holds its numbers.
    """
    figure = draw()
    save_figure(figure, folder / "figures" / stem)
    return Plate(inline_svg(figure, label), caption, f"figures/{stem}", data)
