"""A figure in the report and beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from probing.figures import inline_svg, save_figure
from probing.report import Plate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[], "Figure"]


def plate(folder: Path, stem: str, draw: Draw, label: str, caption: str) -> Plate:
    """Draw a figure, save it for print under `figures/`, and return it for the page."""
    figure = draw()
    save_figure(figure, folder / "figures" / stem)
    return Plate(inline_svg(figure, label), caption, f"figures/{stem}")
