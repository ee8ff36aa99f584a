"""Tables as CSV that a spreadsheet takes for what they are: text never becomes a formula, numbers stay numbers."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "\N{FULLWIDTH EQUALS SIGN}",
    "\N{FULLWIDTH PLUS SIGN}",
    "\N{FULLWIDTH HYPHEN-MINUS}",
    "\N{FULLWIDTH COMMERCIAL AT}",
)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as text.

    Names of classes, concepts and files come from elsewhere, and a spreadsheet would run one that begins like a
    formula. Such text gets an apostrophe before it, which shows it as it is (OWASP, CSV injection); a number in words
    or a sign alone is left as it is. None is an empty cell; a table without columns is an empty text.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    if header:
        writer.writerow([cell(name) for name in header])
    writer.writerows([cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a table as `csv_text` gives it, in UTF-8, and return its path."""
    text = csv_text(header, rows)
    path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    return path


def write_frame(path: Path, frame: "pd.DataFrame") -> Path:
    """Write a data frame without its index, NaN as an empty cell, and return the path."""
    known = frame.astype(object).where(frame.notna(), None)
    return write_csv(path, list(frame), known.itertuples(index=False, name=None))


def cell(value: object) -> object:
    """Return what is written for a value."""
    if isinstance(value, str):
        value = value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        if len(value) > 1 and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value):
            return f"'{value}"
    return value
