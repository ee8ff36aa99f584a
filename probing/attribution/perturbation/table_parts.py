"""A row of a table cut into its columns; hidden ones show what background rows hold there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probing.core.inputs import InputError

Table = Any
"""Rows and columns: a data frame of any types, an array, or a tensor."""
Groups = Sequence[Sequence[str | int]]


@dataclass(frozen=True, eq=False)
class TableParts:
    """Columns of a row, alone or in groups; those hidden together show the same background row. Made by `TableParts.of`.

    Attributes:
        pool: the background rows, and last the row itself.
        names: of the parts.
        shown: what the row holds there, as text.
        labels: the part of each column.
        unhidden: parts that all background rows hold as the row does.
    """

    pool: Table
    names: tuple[str, ...]
    shown: tuple[str, ...]
    labels: Int[Tensor, " columns"]
    unhidden: int

    @classmethod
    def of(cls, row: object, background: Table, groups: Groups) -> "TableParts":
        """Cut a row.

        Args:
            row: a table of one row like the background, or of a data frame a series or mapping, of others a vector.
            background: rows that stand for the data.
            groups: columns that are one part; all others are parts alone.

        Raises:
            InputError: for a row unlike the background, a group of other columns, or a row that all others equal.
        """
        columns, pool = _pooled(row, background)
        places = {column: i for i, column in enumerate(columns)}
        grouped = [column for group in groups for column in group]
        if len(places) != len(columns) or len(set(grouped)) != len(grouped) or not set(grouped) <= set(places):
            raise InputError(f"groups must hold columns of the table once each, of {list(columns)!r}, got {groups!r}.")
        parts = [tuple(group) for group in groups if group] + [(c,) for c in columns if c not in grouped]
        parts.sort(key=lambda part: min(places[c] for c in part))
        labels = torch.empty(len(columns), dtype=torch.long)
        for number, part in enumerate(parts):
            labels[[places[c] for c in part]] = number
        same = [all(_same(pool, places[c]) for c in part) for part in parts]
        if all(same):
            raise InputError("all background rows equal the row, so hiding its columns changes nothing: give other rows.")
        shown = tuple(", ".join(_cell(pool, places[c]) for c in part) for part in parts)
        return cls(pool, tuple(", ".join(map(str, part)) for part in parts), shown, labels, sum(same))

    @property
    def count(self) -> int:
        """Number of parts."""
        return len(self.names)

    @property
    def rows(self) -> int:
        """Background rows."""
        return len(self.pool) - 1

    def render(self, kept: Bool[Tensor, "k parts"]) -> Table:
        """Return k times as many rows as the background has: the row, with columns of each where they are hidden."""
        own, others = self.rows, torch.arange(self.rows)
        at = torch.where(kept.cpu()[:, None, self.labels], own, others[None, :, None]).flatten(0, 1)
        if isinstance(self.pool, Tensor):
            return self.pool.gather(0, at.to(self.pool.device))
        if isinstance(self.pool, np.ndarray):
            return np.take_along_axis(self.pool, at.numpy(), 0)
        columns = {name: self.pool.iloc[:, i].array.take(at[:, i].numpy()) for i, name in enumerate(self.pool.columns)}
        return type(self.pool)(columns)


def _pooled(row: object, background: Table) -> tuple[list[Any], Table]:
    """Return the columns, and the background with the row as its last one."""
    if isinstance(background, Tensor):
        tensor = torch.as_tensor(row).to(background.device)
        tensor = tensor[None] if tensor.ndim == 1 else tensor
        _refuse_unlike(tensor, background)
        return list(range(background.shape[1])), torch.cat([background, tensor])
    if isinstance(background, np.ndarray):
        array = np.atleast_2d(np.asarray(row))
        _refuse_unlike(array, background)
        return list(range(background.shape[1])), np.concatenate([background, array])
    import pandas as pd

    if not isinstance(background, pd.DataFrame) or not len(background):
        raise InputError(
            f"the background must be a data frame, an array or a tensor with rows, got {type(background).__name__}."
        )
    return list(background.columns), _joined(row, background)


def _refuse_unlike(own: Any, background: Any) -> None:
    if background.ndim != 2 or not len(background) or own.shape != (1, background.shape[1]) or own.dtype != background.dtype:
        raise InputError(
            f"the row must be one like the background's, got {type(own).__name__}s of shapes {tuple(own.shape)} and "
            f"{tuple(background.shape)}, of {own.dtype} and {background.dtype}."
        )


def _joined(row: object, background: Any) -> Any:
    """Return a data frame with a row below it, each column of the type that it had."""
    import pandas as pd

    own = row.to_frame().T if isinstance(row, pd.Series) else pd.DataFrame([row]) if isinstance(row, Mapping) else row
    if not isinstance(own, pd.DataFrame) or len(own) != 1 or list(own.columns) != list(background.columns):
        raise InputError(f"the row must be one with the background's columns, {list(background.columns)!r}, got {row!r}.")
    columns = {}
    for i, name in enumerate(background.columns):
        column, value = background.iloc[:, i], own.iloc[0, i]
        alone = pd.Series([value]).astype(column.dtype) if _fits(value, column.dtype) else None
        if alone is None or not _equal(alone.iloc[0], value):
            raise InputError(
                f"column {name!r} of the row holds {value!r}, which is no {column.dtype}, as the background's are."
            )
        columns[name] = pd.concat([column, alone], ignore_index=True)
    return pd.DataFrame(columns)


def _fits(value: Any, dtype: Any) -> bool:
    import pandas as pd

    if isinstance(dtype, pd.CategoricalDtype):
        return bool(pd.isna(value)) or value in dtype.categories
    try:
        pd.Series([value]).astype(dtype)
    except (TypeError, ValueError):
        return False
    return True


def _equal(a: Any, b: Any) -> bool:
    """Whether two cells hold the same; cells that hold nothing do."""
    import pandas as pd

    empty = bool(pd.isna(a)), bool(pd.isna(b))
    return all(empty) if any(empty) else bool(a == b)


def _same(pool: Table, column: int) -> bool:
    """Whether all rows hold the same in a column."""
    if isinstance(pool, Tensor | np.ndarray):
        values = np.asarray(pool[:, column].detach().cpu() if isinstance(pool, Tensor) else pool[:, column])
        return bool(((values == values[-1]) | ((values != values) & (values[-1] != values[-1]))).all())  # noqa: PLR0124 (NaN)
    values = pool.iloc[:, column]
    return all(_equal(value, values.iloc[-1]) for value in values)


def _cell(pool: Table, column: int) -> str:
    value = pool.iloc[-1, column] if hasattr(pool, "iloc") else pool[-1, column]
    value = value.item() if hasattr(value, "item") else value
    return f"{value:.4g}" if isinstance(value, float) else str(value)
