"""Kinds of linear probes: what is minimised, over a path of penalties."""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.core.errors import ArgumentError
from probing.probes.feature_tables import Rows, RowSpace, TableRows
from probing.probes.ridge import RidgeStatistics
from probing.probes.solvers import fit_softmax

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class PathFits:
    """Linear classifiers of standardised rows, for each set of labels at each penalty."""

    weights: Float[Tensor, "labellings penalties classes m"]
    intercepts: Float[Tensor, "labellings penalties classes"]
    certificate: Float[Tensor, "labellings penalties"]
    """Largest entry of the objective's gradient in size."""

    def outputs(self, rows: Rows) -> Float[Tensor, "labellings penalties classes n"]:
        """Return each classifier's scores of rows."""
        known = self.weights.flatten(0, 1).to(rows.zeros(1))
        scores = rows.outputs(known) + self.intercepts.flatten(0, 1).unsqueeze(2).to(known)
        return scores.view(*self.weights.shape[:2], *scores.shape[1:])

    def at(self, choice: Int[Tensor, " labellings"]) -> "PathFits":
        """Return for each set of labels the classifier at one penalty."""
        each = torch.arange(len(choice))
        parts = (self.weights, self.intercepts, self.certificate)
        return PathFits(*(part[each, choice].unsqueeze(1) for part in parts))


@runtime_checkable
class Probe(Protocol):
    """A linear classifier with a path of penalties: hyperparameters that can fit."""

    probabilistic: ClassVar[bool]
    """Whether its outputs are log-odds, so that cross-entropy and description length have a meaning."""

    @property
    def penalties(self) -> tuple[float, ...]:
        """All that are tried."""

    @property
    def tolerance(self) -> float:
        """Largest entry of the gradient that counts as an optimum."""

    def fit(self, rows: Rows, labels: Int[Tensor, "labellings n"], classes: int) -> PathFits:
        """Fit each set of labels at each penalty."""


@dataclass(frozen=True)
class SoftmaxProbe:
    """Multinomial logistic regression: mean cross-entropy plus `penalty/2 ‖W‖²`, intercepts free."""

    probabilistic: ClassVar[bool] = True
    penalties: tuple[float, ...] = PENALTIES
    tolerance: float = 1e-6
    max_steps: int = 1000

    def __post_init__(self) -> None:
        check_penalties(self.penalties)

    def fit(self, rows: Rows, labels: Int[Tensor, "labellings n"], classes: int) -> PathFits:
        if isinstance(rows, TableRows) and rows.features > rows.count:
            space = RowSpace.of(rows)
            inner = self.fit(space.rows, labels, classes)
            return PathFits(space.lifted(inner.weights), inner.intercepts, inner.certificate)
        fits = fit_softmax(rows, labels, classes, self.penalties, tolerance=self.tolerance, max_steps=self.max_steps)
        return PathFits(fits.weights, fits.intercepts, fits.certificate)


@dataclass(frozen=True)
class RidgeProbe:
    """Least squares on indicators of +1 and -1: mean squared error plus `penalty ‖W‖²`, intercepts free.

    All penalties come from one eigendecomposition. It gives no probabilities.
    """

    probabilistic: ClassVar[bool] = False
    penalties: tuple[float, ...] = tuple(10.0**power for power in range(-6, 3))
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        check_penalties(self.penalties)

    def fit(self, rows: Rows, labels: Int[Tensor, "labellings n"], classes: int) -> PathFits:
        if isinstance(rows, TableRows) and rows.features > rows.count:
            space = RowSpace.of(rows)
            inner = self.fit(space.rows, labels, classes)
            return PathFits(space.lifted(inner.weights), inner.intercepts, inner.certificate)
        statistics = RidgeStatistics(classes)
        for places, part in rows.batches():
            statistics.add(part, labels[:, places])
        fits = statistics.fit(self.penalties)
        return PathFits(fits.weights, fits.intercepts, fits.certificate)


def check_penalties(penalties: tuple[float, ...]) -> None:
    """Refuse a path that is empty or holds a penalty at which separable data have no optimum.

    Raises:
        ValueError: if it is.
    """
    if not penalties or not all(p > 0 and math.isfinite(p) for p in penalties):
        raise ArgumentError(
            f"penalties must be one or more finite numbers above 0, got {penalties}: without a penalty classes that can "
            "be separated have no best classifier."
        )
