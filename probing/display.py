"""What a notebook shows of a result: a figure, the first rows of a table, and what must be said beside them."""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

from probing.figures import figure_of, shown_png

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS, MOST_SENTENCES = 12, 8
"""That are shown; the rest is counted."""


def page(
    title: str,
    *,
    drawn: "Axes | Figure | None" = None,
    table: "pd.DataFrame | None" = None,
    sentences: Sequence[str] = (),
) -> str:
    """Return an HTML element that holds all it shows and fetches nothing.

    Args:
        title: names what is shown.
        drawn: a figure, or any of its axes.
        table: of which the first rows are shown.
        sentences: what must be read beside the numbers.
    """
    from markupsafe import escape

    parts = [f"<p><b>{escape(title)}</b></p>"]
    if drawn is not None:
        parts.append(picture_html(figure_of(drawn), title))
    if table is not None:
        parts.append(table_html(table))
    if sentences:
        listed = "".join(f"<li>{escape(s)}</li>" for s in sentences[:MOST_SENTENCES])
        more = len(sentences) - MOST_SENTENCES
        rest = f"<li>and {more} more: see <code>sentences()</code></li>" if more > 0 else ""
        parts.append(f"<ul>{listed}{rest}</ul>")
    return f"<div>{''.join(parts)}</div>"


def table_html(table: "pd.DataFrame") -> str:
    """Return the first rows of a table, and how many more there are; an index of plain counting is left out."""
    import pandas as pd

    named = not isinstance(table.index, pd.RangeIndex)
    text = table.head(MOST_ROWS).to_html(float_format="{:.3g}".format, index=named, na_rep="")
    more = len(table) - MOST_ROWS
    rest = f"<p>and {more} more rows: see <code>to_pandas()</code></p>" if more > 0 else ""
    return f"{text}{rest}"


def picture_html(figure: "Figure", label: str) -> str:
    """Return a figure as an `img` element that holds its own pixels."""
    from markupsafe import escape

    data, size = shown_png(figure)
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f'<img width="{size["width"]}" alt="{escape(label)}" src="{source}">'
