"""What is shown of a result: a few lines as text; in a notebook a figure, rows of a table, and what must be said."""

import base64
import dataclasses
import reprlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probing.results.figures import figure_of, shown_png

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS, MOST_SENTENCES = 12, 8
"""That are shown; the rest is counted."""

_LINES, _WIDTH, _INDENT = 6, 100, "    "
_FEW = 6
"""Numbers that are shown one by one."""


def in_short(result: object, heading: str) -> str:
    """Return a few lines on a dataclass: its fields with their shapes and ranges; what is empty is left out.

    Args:
        result: the dataclass.
        heading: its first words, such as its name.
    """
    said = [
        f"{field.name} {_in_short(value)}"
        for field in dataclasses.fields(result)  # type: ignore[arg-type]  # a dataclass
        if field.name != "provenance" and not _is_empty(value := getattr(result, field.name))
    ]
    lines = textwrap.wrap(", ".join(said), _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], f"{_INDENT}…"]
    return "\n".join([f"{heading}:", *lines] if lines else [heading])


def _in_short(value: object) -> str:
    if isinstance(value, Tensor):
        return _tensor_in_short(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"a {type(value).__name__}"
    if isinstance(value, Mapping):
        names = ", ".join(map(str, list(value)[:_FEW]))
        return f"of {len(value)} ({names}{', …' if len(value) > _FEW else ''})"
    if isinstance(value, tuple | list) and any(
        dataclasses.is_dataclass(item) or isinstance(item, Tensor | tuple | list) for item in value
    ):
        return f"of {len(value)}"
    return _SHORT.repr(value)


def _tensor_in_short(value: Tensor) -> str:
    if value.device.type == "meta" or value.layout != torch.strided or value.is_complex():
        return f"{list(value.shape)}"
    if value.numel() <= _FEW and value.ndim < 2:
        numbers = value.tolist()
        return f"{numbers:.4g}" if isinstance(numbers, float) else _numbers(numbers)
    if value.dtype == torch.bool:
        return f"{list(value.shape)}, {int(value.sum())} true"
    known = value[~value.isnan()]
    if not known.numel():
        return f"{list(value.shape)} of NaN"
    return f"{list(value.shape)} from {float(known.min()):.4g} to {float(known.max()):.4g}"


def _numbers(values: object) -> str:
    if not isinstance(values, list):
        return str(values)
    return f"[{', '.join(f'{v:.4g}' if isinstance(v, float) else str(v) for v in values)}]"


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | tuple | list | Mapping) and not value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 40


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
