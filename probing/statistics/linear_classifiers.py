"""Linear classifiers of two sets of rows, hundreds in one call.

Concept activation vectors need many classifiers on subsets of the same few thousand rows, of which
each may have a hundred thousand features. What they need of the rows is their products with each
other, so those are computed once (`SharedRows`); a classifier is then a set of weights on rows
(`PairFits`), and directions as long as a row are formed only when asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import inf, nan

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.core.errors import ArgumentError, OutOfRangeError, ProbingError
from probing.statistics.estimators import TOLERANCE, Estimator, Hinge, Lda, Logistic, Pattern, Ridge
from probing.statistics.pair_systems import GramSystem, RowSystem
from probing.statistics.row_products import BLOCK, DegenerateRowsError, RowProducts, SharedRows

__all__ = [
    "ESTIMATORS",
    "ConvergenceError",
    "DegenerateRowsError",
    "Estimator",
    "Hinge",
    "Lda",
    "Logistic",
    "PairFits",
    "Pattern",
    "Ridge",
    "RowProducts",
    "SharedRows",
    "fit_pairs",
]

ESTIMATORS: dict[str, type[Estimator]] = {
    "logistic": Logistic,
    "ridge": Ridge,
    "lda": Lda,
    "pattern": Pattern,
    "hinge": Hinge,
}
ROWS_PER_FEATURE = 1.5
"""Fits with more rows than this many times their features are solved in the space of features."""


class ConvergenceError(ProbingError, RuntimeError):
    """A classifier's optimum was not reached."""


@dataclass(frozen=True, eq=False)
class PairFits:
    """Fitted classifiers, each pointing to its positive rows, as weights on shared rows.

    A classifier whose two sides are equal has no direction: its normal and projections are zero.
    """

    rows: SharedRows
    index: Int[Tensor, "fits s"]
    """Rows of each fit, positives first; -1 where there is none."""
    coefficients: Float[Tensor, "fits s"]
    intercepts: Float[Tensor, " fits"]
    certificate: Float[Tensor, " fits"]
    """How far each fit is from its optimum; see the estimator."""
    power: int
    """The normal is the weighted sum of centred rows, features times scale**power."""

    @cached_property
    def norms(self) -> Float[Tensor, " fits"]:
        """Length of each normal: decision per unit along it, or the length of a mean difference."""
        square, bound = [], []
        for part, weights in self._weights(torch.ones_like(self.intercepts)):
            length, sizes = self._squares(weights)
            terms = self.coefficients[part].abs() * sizes.sqrt()[self.index[part].clamp_min(0)]
            square.append(length)
            bound.append(terms.sum(1).square())
        return _cancelled(torch.cat(square), torch.cat(bound)).clamp_min(0).sqrt()

    def project(self, vectors: Float[Tensor, "k m"] | RowProducts) -> Float[Tensor, "fits k"]:
        """Return the products of vectors with the unit normals, which are never formed.

        In the vectors' units. A product that cancels to within rounding is 0.

        Raises:
            ValueError: if a vector is not finite.
        """
        products = vectors if isinstance(vectors, RowProducts) else RowProducts(self.rows, vectors)
        if products.rows is not self.rows:
            raise ArgumentError(
                "products must be with the rows that were fitted, got those with other rows: use "
                "RowProducts(fits.rows, vectors)."
            )
        known = products.weighted(self.power)
        found = known.new_empty(len(self.index), len(known))
        for part, weights in self._unit_weights():
            found[part] = _cancelled(weights @ known.mT, weights.abs() @ known.mT.abs())
        return found

    def normals(self) -> Float[Tensor, "fits m"]:
        """Return the unit normals in the features' own space, as long as a row each."""
        weights = torch.cat([weights for _, weights in self._unit_weights()])
        parts = [weights.to(block) @ block for _, block in self.rows.blocks(self.power)]
        return torch.cat(parts, 1).to(self.rows.features.dtype)

    def decision(self, features: Float[Tensor, "k m"]) -> Float[Tensor, "fits k"]:
        """Return the decision values of new rows; above 0 means positive."""
        known = self.rows.times(features - self.rows.center, self.power)
        found = known.new_empty(len(self.index), len(known))
        for part, weights in self._unit_weights():
            found[part] = weights @ known.mT
        return found.mul_(self.norms.unsqueeze(1)).add_(self.intercepts.unsqueeze(1))

    def decision_at(self, index: Int[Tensor, "fits h"]) -> Float[Tensor, "fits h"]:
        """Return each fit's decision values at shared rows of its own; -1 holds the place of none."""
        parts = [
            (block @ self.coefficients[part].unsqueeze(-1)).squeeze(-1) for part, block in self._against(index, self.power)
        ]
        return torch.cat(parts) + self.intercepts.unsqueeze(1)

    def accuracy(
        self, positive: Int[Tensor, "fits p"], negative: Int[Tensor, "fits q"]
    ) -> tuple[Float[Tensor, " fits"], Float[Tensor, " fits"]]:
        """Return the share of positive and of negative rows on their side; on the border is half."""
        return self._share(positive, 1), self._share(negative, -1)

    def mean_cosine(self) -> float:
        """Return the mean cosine between the normals of two different fits."""
        total = torch.stack([weights.sum(0) for _, weights in self._unit_weights()]).sum(0)
        square = self._squares(total.unsqueeze(0))[0].squeeze()
        fits = len(self.index)
        return float((square - (self.norms > 0).sum()) / (fits * (fits - 1))) if fits > 1 else nan

    def _share(self, index: Tensor, sign: int) -> Tensor:
        values, present = self.decision_at(index), (index >= 0).double()
        correct = (sign * values > 0).double() + (values == 0).double() / 2
        return (correct * present).sum(1) / present.sum(1)

    def _unit_weights(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield unit normals as weights on all rows, some fits at a time."""
        return self._weights(torch.where(self.norms > 0, 1 / self.norms, 0))

    def _weights(self, factors: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield factor times normal as weights on all rows, some fits at a time."""
        n = len(self.rows)
        for part in _parts(len(self.index), n):
            known = self.coefficients[part] * factors[part].unsqueeze(1)
            empty = torch.zeros(len(known), n, dtype=known.dtype, device=known.device)
            yield part, empty.scatter_add_(1, self.index[part].clamp_min(0), known)

    def _squares(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared lengths, in the space of normals, of weighted sums of rows and of rows."""
        if self.rows.wide:
            gram = self.rows.gram(2 * self.power)
            return ((weights @ gram) * weights).sum(1), gram.diagonal().clamp_min(0)
        sums, rows = torch.zeros_like(weights[:, 0]), torch.zeros_like(weights[0])
        for _, block in self.rows.blocks(self.power):
            sums += (weights @ block).square().sum(1)
            rows += block.square().sum(1)
        return sums, rows

    def _against(self, index: Tensor, power: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the products of given rows with the fits' own, some fits at a time."""
        gram = self.rows.gram(power)
        for part in _parts(len(index), index.shape[1] * self.index.shape[1]):
            left, right = index[part].clamp_min(0), self.index[part].clamp_min(0)
            yield part, gram[left.unsqueeze(2), right.unsqueeze(1)]


def fit_pairs(
    rows: SharedRows | Float[Tensor, "n m"],
    positive: Int[Tensor, "fits p"],
    negative: Int[Tensor, "fits q"],
    estimator: Estimator,
) -> PairFits:
    """Fit a classifier of positive against negative rows in each line of two tables of indices.

    Args:
        rows: a matrix is centred and scaled over all its rows; pass `SharedRows` to fit more than once.
        positive: row indices; -1 holds a place where fits differ in size.
        negative: likewise.
        estimator: one of `ESTIMATORS`.

    Raises:
        DegenerateRowsError: if features are not finite or do not vary.
        ValueError: if a fit has fewer than two rows on a side.
        IndexError: if an index names no row.
        ConvergenceError: if an optimum is not reached.

    Example:
        >>> fits = fit_pairs(SharedRows(activations), concept, randoms, Logistic(penalty=1e-2))
        >>> sensitivity = fits.project(gradients)
    """
    shared = rows if isinstance(rows, SharedRows) else SharedRows(rows)
    for side, table in (("positive", positive), ("negative", negative)):
        _check_index(side, table, len(shared))
    index = torch.cat([positive, negative], 1).long().to(shared.features.device)
    signs = torch.ones_like(index, dtype=torch.float64)
    signs[:, positive.shape[1] :] = -1
    signs[index < 0] = 0
    solutions = [estimator(s) for s in _systems(shared, index, signs, estimator.power)]
    coefficients = torch.cat([s.coefficients for s in solutions])
    intercepts = torch.cat([s.intercepts for s in solutions])
    certificate = torch.cat([s.certificate for s in solutions])
    _check_optimum(estimator, coefficients, certificate)
    return PairFits(shared, index, coefficients, intercepts, certificate, estimator.power)


def _systems(rows: SharedRows, index: Tensor, signs: Tensor, power: int) -> Iterator[GramSystem | RowSystem]:
    """Yield the problems in the smaller of the two forms, some fits at a time."""
    size, features = index.shape[1], rows.features.shape[1]
    present = signs.abs().unsqueeze(2)
    if size > ROWS_PER_FEATURE * features:
        known = torch.cat([block for _, block in rows.blocks(power // 2)], 1)
        for part in _parts(len(index), size * features):
            yield RowSystem(signs[part], known[index[part].clamp_min(0)] * present[part])
        return
    gram = rows.gram(power, *([2 * power] if rows.wide else []))  # both are needed in the end
    for part in _parts(len(index), size * size):
        known, mask = index[part].clamp_min(0), present[part]
        block = gram[known.unsqueeze(2), known.unsqueeze(1)]
        yield GramSystem(signs[part], block * mask * mask.mT, features)


def _cancelled(total: Tensor, bound: Tensor) -> Tensor:
    """Set to 0 the sums that are no more than rounding beside the sum of their terms' sizes."""
    return torch.where(total.abs() > 4 * torch.finfo(torch.float64).eps * bound, total, 0)


def _parts(total: int, elements: int) -> Iterator[slice]:
    """Yield slices of fits, each of about a block's elements."""
    step = max(1, BLOCK // elements)
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def _check_index(side: str, table: Tensor, rows: int) -> None:
    if table.numel() and (int(table.min()) < -1 or int(table.max()) >= rows):
        raise OutOfRangeError(
            f"{side} rows must be indices from 0 to {rows - 1}, or -1 for none, got "
            f"{int(table.min())} to {int(table.max())}."
        )
    if not len(table):
        raise ArgumentError(f"a classifier needs 2 {side} rows or more, got none: give it a line of indices.")
    counts = (table >= 0).sum(1)
    if int(counts.min()) < 2:
        raise ArgumentError(
            f"a classifier needs 2 {side} rows or more, got {int(counts.min())} in fit {int(counts.argmin())}: add examples."
        )


def _check_optimum(estimator: Estimator, coefficients: Tensor, certificate: Tensor) -> None:
    failed = ~(certificate <= TOLERANCE) | ~coefficients.isfinite().all(1)
    if failed.any():
        worst = int(certificate.nan_to_num(inf).argmax())
        raise ConvergenceError(
            f"{int(failed.sum())} of {len(failed)} fits of {estimator} stopped short of the optimum, "
            f"fit {worst} at {float(certificate[worst]):.1e} of an allowed {TOLERANCE:.0e}: raise its "
            f"penalty or shrinkage, or look for rows that repeat."
        )
