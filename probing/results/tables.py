"""Tables of raw numbers: a CSV file, and a place on a page for each of its lines."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, SupportsFloat

from probing.core.errors import ProbingError
from probing.results.csv_files import csv_text

if TYPE_CHECKING:
    import pandas as pd
    from _typeshed import DataclassInstance

Value = None | bool | int | float | str


class DataTableError(ProbingError, ValueError):
    """A table of raw numbers whose rows can't be told apart, or that lacks one."""


def anchor(table: str, index: int) -> str:
    """Return the id of a table's row: the table's name and the row's line in the CSV, whose first is the header."""
    return f"{table}-{index + 2}"


@dataclass(frozen=True)
class DataTable:
    """Raw numbers under names.

    Attributes:
        name: of the CSV file, without its ending.
        about: what a row is, in a line.
        columns: their names.
        keys: how many columns, from the left, name a row.
    """

    name: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    keys: int = 1

    @classmethod
    def of(
        cls,
        name: str,
        about: str,
        rows: Sequence["DataclassInstance"],
        more: Mapping[str, Sequence[Value]] | None = None,
        keys: int = 1,
    ) -> "DataTable":
        """Return a table of dataclasses, a column for each field and those of `more` after them."""
        extra = more or {}
        names = tuple(f.name for f in fields(rows[0])) if rows else ()
        values = tuple((*asdict(row).values(), *(column[i] for column in extra.values())) for i, row in enumerate(rows))
        return cls(name, about, (*names, *extra) if rows else (), values, keys)

    @classmethod
    def of_frame(cls, name: str, about: str, frame: "pd.DataFrame", keys: int = 1) -> "DataTable":
        """Return a table of a data frame; NaN becomes an empty cell."""
        rows = tuple(
            tuple(known(v) if isinstance(v, float) else v for v in row)
            for row in frame.astype(object).itertuples(index=False, name=None)
        )
        return cls(name, about, tuple(map(str, frame.columns)), rows, keys)

    @cached_property
    def _places(self) -> dict[tuple[Value, ...], str]:
        found = {row[: self.keys]: anchor(self.name, i) for i, row in enumerate(self.rows)}
        if len(found) < len(self.rows):
            raise DataTableError(f"the first {self.keys} columns of {self.name!r} do not tell its rows apart.")
        return found

    def at(self, *key: Value) -> str:
        """Return the id of the row that these first columns name.

        Raises:
            DataTableError: if there is none, or rows are not told apart by their first columns.
        """
        try:
            return self._places[key]
        except KeyError:
            raise DataTableError(f"the table {self.name!r} has no row {key!r}.") from None

    def csv(self) -> str:
        """Return the CSV file's text, numbers with all their digits."""
        return csv_text(self.columns, self.rows)

    def write(self, folder: Path) -> Path:
        """Write the CSV file into a folder and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.csv"
        path.write_text(self.csv(), encoding="utf-8", errors="backslashreplace", newline="")
        return path


def known(value: SupportsFloat) -> float | None:
    """Return a number, or None for NaN."""
    found = float(value)
    return None if math.isnan(found) else found
