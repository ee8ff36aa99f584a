"""LIME for tables: which columns of a row a class's score depends on, for any function of rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsIndex

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from probing.attribution.base import r2_in_words
from probing.attribution.perturbation.contribution_maps import FACTS
from probing.attribution.perturbation.function_scores import CoalitionScores, class_scores, named_class
from probing.attribution.perturbation.surrogate import Local, Surrogate
from probing.attribution.perturbation.table_parts import Table, TableParts
from probing.core.inputs import InputError
from probing.models.readings import OutputError
from probing.models.scores import refuse_training
from probing.results.figures import new_figure, style
from probing.results.result import Provenance, Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PredictRows = Callable[[Table], object]
"""From rows, as they were given, to their class scores `[n, classes]`, as a tensor, an array or nested lists."""
LOCAL = Local()
_ROUNDING = 1e-5
"""Share of the score by which the same row may differ from itself in another batch."""


@dataclass(frozen=True)
class TableAttribution(Result):
    """What each column of a row, or group of them, contributes to a class's score; positive values raise it."""

    names: tuple[str, ...]
    """Of the columns, one for each part; of a group all its columns'."""
    shown: tuple[str, ...]
    """What the row holds there, as text."""
    target: int
    """The class whose score is explained."""
    score: float
    """Of the row."""
    values: Float64[Tensor, " names"]
    """Coefficients in score units, zero for parts that were not selected."""
    standard_error: Float64[Tensor, " names"]
    """By the draw of coalitions; zero where none are drawn, and for parts not selected."""
    n_forward: int
    """Rows that the function was given."""
    diagnostics: dict[str, float]
    """`r2` (weighted), `intercept`, `prediction`, `condition`, `reliability` and `coalitions`, as for `LIME`;
    `unhidden_parts`, which all background rows hold as the row does."""

    def to_pandas(self) -> "pd.DataFrame":
        """Return a table of the parts, the largest contributions first."""
        import pandas as pd

        columns = {
            "column": self.names,
            "value": self.shown,
            "contribution": self.values.tolist(),
            "standard_error": self.standard_error.tolist(),
        }
        order = self.values.abs().argsort(descending=True, stable=True).tolist()
        return pd.DataFrame(columns).iloc[order].reset_index(drop=True)

    def plot(self) -> "Figure":
        """Return a figure of the contributions, the largest first, with two standard errors to each side."""
        table = self.to_pandas()
        with style():
            figure = new_figure(5.0, 0.9 + 0.24 * len(table))
            axes = figure.subplots()
            errors = 2 * table["standard_error"]
            axes.barh(range(len(table)), table["contribution"], xerr=errors if bool((errors > 0).any()) else None)
            named = zip(table["column"], table["value"], strict=True)
            axes.set_yticks(range(len(table)), [f"{name} = {value}".replace("$", r"\$") for name, value in named])
            axes.invert_yaxis()
            axes.axvline(0, color="black", lw=0.5)
            axes.set_xlabel(f"contribution to the score of class {self.target}")
        return figure

    def sentences(self) -> tuple[str, ...]:
        """Return how far the contributions describe the function, in plain words."""
        facts = self.diagnostics
        fit = f"{facts['prediction']:.3g}, {r2_in_words(facts['r2'])}"
        return (f"Class {self.target}, score {self.score:.3g}; the linear model gives {fit}.",)


@dataclass(frozen=True)
class TableLIME:
    """LIME for tables: which columns a class's score depends on, for any function from rows to class scores.

    Columns may be numbers, categories, words or anything that the function reads; the rows that it gets are of the type
    that was given, so pipelines of scikit-learn get data frames, and networks tensors. Hidden columns show what the
    background rows hold there, all from the same one, and the score is the mean over these: unlike Ribeiro et al.'s code,
    no column is cut into bins or taken for normally distributed. What another background would change is not in the
    standard error.

    With `surrogate=ShapleySampling()` contributions are Shapley values against the background.

    Attributes:
        surrogate: how coalitions are drawn and coefficients fitted.
        groups: columns that are hidden together, such as those that code one category.
        batch_size: rows of a call.

    Example:
        >>> found = TableLIME()(pipeline.predict_proba, people.iloc[:1], people[:50])
    """

    surrogate: Surrogate = LOCAL
    groups: tuple[tuple[str | int, ...], ...] = ()
    batch_size: int = 8192

    def __call__(
        self, predict: PredictRows, row: object, background: Table, target: SupportsIndex | None = None
    ) -> TableAttribution:
        """Return the contributions of a row's columns.

        Args:
            predict: from rows to class scores `[n, classes]`: a function, or a network in evaluation mode.
            row: what is explained: a table of one row, or of a data frame a series or mapping, of others a vector.
            background: rows that stand for the data, each of which is passed for each coalition: some 20 to 100.
            target: a class; the one with the highest score unless given.

        Raises:
            InputError: for a row unlike the background, a single column, or columns that change nothing.
            ModelModeError: for a network in training mode.
            OutputError: if the function does not return one row of finite class scores for each, or not the same again.
            TargetError: if the target is no class.
        """
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}.")
        if isinstance(predict, nn.Module):
            refuse_training(predict)
        parts = TableParts.of(row, background, self.groups)
        with torch.no_grad():
            alone = parts.render(torch.ones(1, parts.count, dtype=torch.bool))[:1]
            own = class_scores(predict(alone), 1, "row")[0]
            chosen = named_class(target, own)
            scored = CoalitionScores(lambda kept: predict(parts.render(kept)), chosen, "row", self.batch_size, parts.rows)
            found = self.surrogate(scored, parts.count)
        scored.extent.refuse_constant(chosen, "columns show other rows: does the function read them")
        score = float(own[chosen])
        if abs(found.score - score) > _ROUNDING * max(abs(score), scored.extent.high - scored.extent.low):
            raise OutputError(
                f"the function gives the row {score:.6g} alone and {found.score:.6g} among others: scores must not hang on "
                "chance or on other rows."
            )
        diagnostics = {name: float(getattr(found, name)) for name in FACTS}
        return TableAttribution(
            Provenance.collect(method=self),
            parts.names,
            parts.shown,
            chosen,
            score,
            found.coefficients,
            found.standard_error,
            scored.count + 1,
            diagnostics | {"coalitions": float(found.samples), "unhidden_parts": float(parts.unhidden)},
        )
