"""Weighted linear regression of scores on which parts are kept, with standard errors and a choice of parts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64, Int
from torch import Tensor

Selection = Literal["auto", "forward", "highest", "lasso_path"]
"""How parts are chosen: `forward` adds the one that raises R² most, again and again; `highest` keeps the largest
coefficients of a ridge fit of all; `lasso_path` follows the lasso until more would enter; `auto` is `forward` up to
6 parts, else `highest`."""


@dataclass(frozen=True)
class Fit:
    """A linear model of scores.

    Attributes:
        coefficients: change of the score when a part is kept.
        standard_error: of the coefficients, by the draw of rows (White 1980, with its small-sample factor); it
            holds whatever the linear model misses, and is infinite with too few rows.
        intercept: score with nothing kept.
        r2: weighted share of the variance that is explained; NaN where scores don't vary.
        condition: ratio of the largest to the smallest eigenvalue of the normal equations.
    """

    coefficients: Float64[Tensor, " parts"]
    standard_error: Float64[Tensor, " parts"]
    intercept: float
    r2: float
    condition: float


@dataclass(frozen=True)
class Ridge:
    """Least squares with a squared penalty on coefficients; the intercept is free.

    Attributes:
        alpha: weight of the penalty, against the sum over weighted rows.
    """

    alpha: float = 1.0

    def __call__(
        self,
        kept: Float64[Tensor, "k parts"],
        scores: Float64[Tensor, " k"],
        weights: Float64[Tensor, " k"],
    ) -> Fit:
        """Fit scores of weighted rows."""
        return _fit(kept, scores, weights, self.alpha, None)


@dataclass(frozen=True)
class Lasso:
    """Least squares with an absolute penalty on coefficients, which leaves many at zero; the intercept is free.

    Standard errors are those of least squares on the parts that are left.

    Attributes:
        alpha: weight of the penalty, against half the mean over weighted rows.
    """

    alpha: float = 0.01

    def __call__(
        self,
        kept: Float64[Tensor, "k parts"],
        scores: Float64[Tensor, " k"],
        weights: Float64[Tensor, " k"],
    ) -> Fit:
        """Fit scores of weighted rows."""
        from sklearn import linear_model

        model = linear_model.Lasso(alpha=self.alpha)
        model.fit(kept.numpy(), scores.numpy(), sample_weight=weights.numpy())
        return _fit(kept, scores, weights, 0.0, torch.from_numpy(model.coef_))


@dataclass(frozen=True)
class LeastSquares:
    """The solution of a ridge problem as a linear map from scores to coefficients.

    Attributes:
        operator: that map.
        condition: of the normal equations; infinite if they don't determine the coefficients.
        freedom: effective number of coefficients.
    """

    operator: Float64[Tensor, "parts k"]
    condition: float
    freedom: float

    @classmethod
    def of(cls, design: Float64[Tensor, "k parts"], alpha: float = 0.0) -> "LeastSquares":
        """Solve by the smaller of the two Gram matrices; what is not determined gets the least coefficients."""
        wide = design.shape[1] > design.shape[0]
        values, vectors = torch.linalg.eigh(design @ design.T if wide else design.T @ design)
        top = float(values.max()) if len(values) else 0.0
        values = torch.where(values > 1e-12 * top, values, 0.0)
        inverse = torch.where(values + alpha > 0, 1 / (values + alpha), 0.0)
        solved = (vectors * inverse) @ vectors.T
        lowest = 0.0 if wide else float(values.min()) if len(values) else 0.0
        condition = (top + alpha) / (lowest + alpha) if lowest + alpha > 0 else float("inf")
        operator = design.T @ solved if wide else solved @ design.T
        return cls(operator, condition, float((values * inverse).sum()))


def select(
    kept: Float64[Tensor, "k parts"],
    scores: Float64[Tensor, " k"],
    weights: Float64[Tensor, " k"],
    features: int | None,
    how: Selection,
) -> Int[Tensor, " chosen"]:
    """Return which parts get a coefficient, in ascending order."""
    count = kept.shape[1]
    if features is None or features >= count:
        return torch.arange(count)
    design, targets = _centred(kept, scores, weights)
    if how == "forward" or (how == "auto" and features <= 6):
        chosen = _forward(design, targets, features)
    elif how == "lasso_path":
        chosen = _lasso_path(design, targets, features)
    else:
        coefficients = LeastSquares.of(design, alpha=0.01).operator @ targets
        chosen = coefficients.abs().argsort(descending=True, stable=True)[:features]
    return chosen.sort()[0]


def split_half(rows: int, fit: Callable[[Int[Tensor, " half"]], Tensor]) -> float:
    """Return how reliably coefficients are ranked: from two halves of the rows, corrected to all of them.

    The rank correlation of the halves (Spearman), raised to that of samples twice as large (Spearman-Brown).

    Args:
        rows: how many there are; neighbours, 2i and 2i + 1, go into the same half.
        fit: from the numbers of rows to coefficients.
    """
    if rows < 4:
        return 0.0
    index = torch.arange(rows)
    first, second = (fit(index[index // 2 % 2 == half]) for half in (0, 1))
    ranks = [c.argsort(stable=True).argsort().double() for c in (first, second)]
    a, b = (r - r.mean() for r in ranks)
    correlation = float((a * b).sum() / (a.norm() * b.norm()))
    return 2 * correlation / (1 + correlation) if correlation > 0 else correlation


def half_fit(
    kept: Float64[Tensor, "k parts"],
    scores: Float64[Tensor, " k"],
    weights: Float64[Tensor, " k"],
) -> Float64[Tensor, " parts"]:
    """Return coefficients of all parts, hardly penalised."""
    design, targets = _centred(kept, scores, weights)
    return LeastSquares.of(design, alpha=0.01).operator @ targets


def weighted_r2(scores: Float64[Tensor, " k"], predicted: Float64[Tensor, " k"], weights: Float64[Tensor, " k"]) -> float:
    """Return the weighted share of the scores' variance that is explained; NaN if there is none to explain.

    An R² of nothing is no R²: one would say that all is well where nothing was measured.
    """
    mean = (weights * scores).sum() / weights.sum()
    total = float((weights * (scores - mean).square()).sum())
    if total <= 1e-28 * float((weights * scores.square()).sum()):
        return float("nan")
    return 1 - float((weights * (scores - predicted).square()).sum()) / total


def _fit(kept: Tensor, scores: Tensor, weights: Tensor, alpha: float, coefficients: Tensor | None) -> Fit:
    """Return the fit with given coefficients, or those of ridge regression."""
    design, targets = _centred(kept, scores, weights)
    active = torch.arange(kept.shape[1]) if coefficients is None else coefficients.nonzero()[:, 0]
    solution = LeastSquares.of(design[:, active], alpha)
    if coefficients is None:
        coefficients = solution.operator @ targets
    error = torch.zeros_like(coefficients)
    spare = len(scores) - solution.freedom - 1
    misses = targets - design @ coefficients
    variance = (solution.operator * misses).square().sum(1)
    error[active] = (variance * len(scores) / spare).sqrt() if spare > 1e-6 else torch.inf
    weight = weights / weights.sum()
    intercept = weight @ scores - (weight @ kept) @ coefficients
    r2 = weighted_r2(scores, intercept + kept @ coefficients, weights)
    return Fit(coefficients, error, float(intercept), r2, solution.condition)


def _centred(kept: Tensor, scores: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows about their weighted mean, times the root of their weights: this frees the intercept."""
    weight, root = weights / weights.sum(), weights.sqrt()
    return root[:, None] * (kept - weight @ kept), root * (scores - weight @ scores)


def _forward(design: Tensor, targets: Tensor, features: int) -> Tensor:
    """Add parts one by one, by what they explain beyond those before (least squares, by sweeping the Gram matrix)."""
    gram, moment = design.T @ design, design.T @ targets
    size, chosen = gram.diagonal().clone(), list[int]()
    for _ in range(features):
        left = gram.diagonal()
        gain = torch.where(left > 1e-9 * size, moment.square() / left, -1.0)
        gain[chosen] = -torch.inf
        best = int(gain.argmax())
        chosen.append(best)
        if left[best] > 1e-9 * size[best]:
            column = gram[:, best].clone()
            moment = moment - column * (moment[best] / column[best])
            gram = gram - column[:, None] * (column / column[best])
    return torch.tensor(chosen)


def _lasso_path(design: Tensor, targets: Tensor, features: int) -> Tensor:
    from sklearn.linear_model import lars_path

    _, _, path = lars_path(design.numpy(), targets.numpy(), method="lasso")
    entered = (path != 0).sum(0)
    last = int((entered <= features).nonzero()[0].max())
    return torch.from_numpy(path[:, last]).nonzero()[:, 0]
