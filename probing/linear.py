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
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.estimators import (
    TOLERANCE,
    ConvergenceError,
    Estimator,
    GramSystem,
    Hinge,
    Lda,
    Logistic,
    Pattern,
    Ridge,
    RowSystem,
)

ESTIMATORS: dict[str, type[Estimator]] = {
    "logistic": Logistic,
    "ridge": Ridge,
    "lda": Lda,
    "pattern": Pattern,
    "hinge": Hinge,
}
SMALLEST_SCALE = 1e-2
"""A feature's standard deviation counts as at least this share of the root mean square over features:
else a unit that is nearly dead over the rows would rule every normal, which carries its inverse."""
ROWS_PER_FEATURE = 1.5
"""Fits with more rows than this many times their features are solved in the space of features."""
BLOCK = 1 << 21
"""Elements of a working block: bounds memory, without effect on results but for rounding."""


class DegenerateRowsError(ValueError):
    """Rows that no classifier can be fitted to."""


@dataclass(frozen=True, eq=False)
class SharedRows:
    """Rows of features and the products of each with each, for any number of fits.

    Rows are centred and divided by a scale that all fits share. Products are made at first use and
    kept: an n by n float64 matrix for classifiers and another for the lengths of their normals.
    """

    features: Float[Tensor, "n m"]
    scaling: Literal["feature", "layer"] = "feature"
    """One scale per feature, its standard deviation over the rows; or one for the layer, the root
    mean square of those, with which a rotation of the features rotates every normal alike."""

    def __post_init__(self) -> None:
        finite = torch.cat([b.isfinite().all(1, keepdim=True) for b in self._columns()], 1).all(1)
        if not finite.all():
            rows = (~finite).nonzero().flatten().tolist()
            raise DegenerateRowsError(
                f"features must be finite, got NaN or infinity in {len(rows)} of {len(finite)} rows, "
                f"the first being {rows[:5]}: drop those examples."
            )

    @cached_property
    def center(self) -> Float[Tensor, " m"]:
        """Mean of each feature."""
        return torch.cat([block.mean(0) for block in self._columns()])

    @cached_property
    def scale(self) -> Float[Tensor, " m"]:
        """What each feature is divided by, in the feature's own units."""
        variance = torch.cat([(b - b.mean(0)).square_().mean(0) for b in self._columns()])
        overall = variance.mean().sqrt()
        if not (overall > 0 and overall.isfinite()):
            raise DegenerateRowsError(
                f"features must differ between rows, got {len(self.features)} rows with root mean "
                f"square deviation {float(overall)}: check that the layer's output varies."
            )
        if self.scaling == "layer":
            return overall.expand_as(variance)
        return variance.sqrt().clamp_min(SMALLEST_SCALE * overall)

    def gram(self, power: int) -> Float[Tensor, "n n"]:
        """Return the centred rows' products with each other, features weighted by scale**power."""
        if power not in self._grams:
            n = len(self.features)
            total = self.features.new_zeros(n, n, dtype=torch.float64)
            for _, block in self.blocks(power // 2):
                for start in range(0, n, 256):  # only the lower triangle: half the products
                    total[start:, start : start + 256] += (
                        block[start:] @ block[start : start + 256].mT
                    )
            self._grams[power] = total.tril() + total.tril(-1).mT
        return self._grams[power]

    def between(self, vectors: Float[Tensor, "k m"], power: int) -> Float[Tensor, "k n"]:
        """Return vectors' products with the centred rows, features weighted by scale**power."""
        total = self.features.new_zeros(len(vectors), len(self.features), dtype=torch.float64)
        for start, block in self.blocks(power):
            total += vectors[:, start : start + block.shape[1]].to(block) @ block.mT
        return total

    def blocks(self, power: int) -> Iterator[tuple[int, Float[Tensor, "n w"]]]:
        """Yield the centred rows times scale**power, some columns at a time, with the first's index."""
        start = 0
        for block in self._columns():
            stop = start + block.shape[1]
            yield start, (block - self.center[start:stop]).mul_(self.scale[start:stop] ** power)
            start = stop

    def lengths(self, power: int) -> Float[Tensor, " n"]:
        """Return the length of each centred row, features weighted by scale**power."""
        if self.wide:
            return self.gram(power).diagonal().clamp_min(0).sqrt()
        parts = [block.square().sum(1) for _, block in self.blocks(power // 2)]
        return torch.stack(parts).sum(0).sqrt()

    @property
    def wide(self) -> bool:
        """Whether features outnumber rows, so that products of rows are the smaller matrix."""
        return self.features.shape[1] > len(self.features)

    def cancelled(self, total: Tensor, bound: Tensor) -> Tensor:
        """Return sums of products with those set to 0 that are rounding, beside the sum of sizes."""
        return torch.where(total.abs() > 4 * torch.finfo(torch.float64).eps * bound, total, 0)

    @cached_property
    def _grams(self) -> dict[int, Tensor]:
        return {}

    def _columns(self) -> Iterator[Tensor]:
        width = max(64, BLOCK // len(self.features))
        for block in torch.split(self.features.detach(), width, 1):
            yield block.double()


@dataclass(frozen=True, eq=False)
class RowProducts:
    """Vectors in feature space, such as class gradients, seen through shared rows.

    Made once, they serve every `PairFits.project` on the same rows.
    """

    rows: SharedRows
    vectors: Float[Tensor, "k m"]

    def weighted(self, power: int) -> Float[Tensor, "k n"]:
        """Return the products with the centred rows, features weighted by scale**power."""
        if power not in self._known:
            products = self.rows.between(self.vectors, power)
            if not products.isfinite().all():
                raise ValueError(
                    "vectors must be finite, got NaN or infinity: check the gradients."
                )
            self._known[power] = products
        return self._known[power]

    @cached_property
    def _known(self) -> dict[int, Tensor]:
        return {}


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
        sizes = self.rows.lengths(2 * self.power)
        for weights in self._weights(torch.ones_like(self.intercepts)):
            square.append(self._square(weights))
            bound.append((weights.abs() @ sizes).square())
        return self.rows.cancelled(torch.cat(square), torch.cat(bound)).clamp_min(0).sqrt()

    def project(self, vectors: Float[Tensor, "k m"] | RowProducts) -> Float[Tensor, "fits k"]:
        """Return the products of vectors with the unit normals, which are never formed.

        In the vectors' units. A product that cancels to within rounding is 0.

        Raises:
            ValueError: if a vector is not finite.
        """
        products = vectors if isinstance(vectors, RowProducts) else RowProducts(self.rows, vectors)
        known = products.weighted(self.power)
        parts = [
            self.rows.cancelled(weights @ known.mT, weights.abs() @ known.mT.abs())
            for weights in self._unit_weights()
        ]
        return torch.cat(parts)

    def normals(self) -> Float[Tensor, "fits m"]:
        """Return the unit normals in the features' own space, as long as a row each."""
        weights = torch.cat(list(self._unit_weights()))
        parts = [weights.to(block) @ block for _, block in self.rows.blocks(self.power)]
        return torch.cat(parts, 1).to(self.rows.features.dtype)

    def decision(self, features: Float[Tensor, "k m"]) -> Float[Tensor, "fits k"]:
        """Return the decision values of new rows; above 0 means positive."""
        known = self.rows.between(features - self.rows.center.to(features), self.power)
        values = torch.cat([weights @ known.mT for weights in self._unit_weights()])
        return values * self.norms.unsqueeze(1) + self.intercepts.unsqueeze(1)

    def decision_at(self, index: Int[Tensor, "fits h"]) -> Float[Tensor, "fits h"]:
        """Return each fit's decision values at shared rows of its own; -1 holds the place of none."""
        parts = [
            (block @ self.coefficients[part].unsqueeze(-1)).squeeze(-1)
            for part, block in self._against(index, self.power)
        ]
        return torch.cat(parts) + self.intercepts.unsqueeze(1)

    def accuracy(
        self, positive: Int[Tensor, "fits p"], negative: Int[Tensor, "fits q"]
    ) -> tuple[Float[Tensor, " fits"], Float[Tensor, " fits"]]:
        """Return the share of positive and of negative rows on their side; on the border is half."""
        return self._share(positive, 1), self._share(negative, -1)

    def mean_cosine(self) -> float:
        """Return the mean cosine between the normals of two different fits."""
        total = torch.stack([part.sum(0) for part in self._unit_weights()]).sum(0)
        square = self._square(total.unsqueeze(0)).squeeze()
        fits = len(self.index)
        return float((square - (self.norms > 0).sum()) / (fits * (fits - 1))) if fits > 1 else nan

    def _share(self, index: Tensor, sign: int) -> Tensor:
        values, present = self.decision_at(index), (index >= 0).double()
        correct = (sign * values > 0).double() + (values == 0).double() / 2
        return (correct * present).sum(1) / present.sum(1)

    def _unit_weights(self) -> Iterator[Tensor]:
        return self._weights(torch.where(self.norms > 0, 1 / self.norms, 0))

    def _weights(self, factors: Tensor) -> Iterator[Tensor]:
        """Yield factor times normal as weights on all rows, some fits at a time."""
        n = len(self.rows.features)
        for part in _parts(len(self.index), n):
            known = self.coefficients[part] * factors[part].unsqueeze(1)
            empty = torch.zeros(len(known), n, dtype=known.dtype, device=known.device)
            yield empty.scatter_add_(1, self.index[part].clamp_min(0), known)

    def _square(self, weights: Tensor) -> Tensor:
        """Return the squared length of the weighted sums of rows, in the space of normals."""
        if self.rows.wide:
            return ((weights @ self.rows.gram(2 * self.power)) * weights).sum(1)
        parts = [(weights @ block).square().sum(1) for _, block in self.rows.blocks(self.power)]
        return torch.stack(parts).sum(0)

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
        _check_index(side, table, len(shared.features))
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


def _systems(
    rows: SharedRows, index: Tensor, signs: Tensor, power: int
) -> Iterator[GramSystem | RowSystem]:
    """Yield the problems in the smaller of the two forms, some fits at a time."""
    size, features = index.shape[1], rows.features.shape[1]
    present = signs.abs().unsqueeze(2)
    if size > ROWS_PER_FEATURE * features:
        known = torch.cat([block for _, block in rows.blocks(power // 2)], 1)
        for part in _parts(len(index), size * features):
            yield RowSystem(signs[part], known[index[part].clamp_min(0)] * present[part])
        return
    gram = rows.gram(power)
    for part in _parts(len(index), size * size):
        known, mask = index[part].clamp_min(0), present[part]
        block = gram[known.unsqueeze(2), known.unsqueeze(1)]
        yield GramSystem(signs[part], block * mask * mask.mT, features)


def _parts(total: int, elements: int) -> Iterator[slice]:
    """Yield slices of fits, each of about a block's elements."""
    step = max(1, min(100, BLOCK // elements))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def _check_index(side: str, table: Tensor, rows: int) -> None:
    if table.numel() and (int(table.min()) < -1 or int(table.max()) >= rows):
        raise IndexError(
            f"{side} rows must be indices from 0 to {rows - 1}, or -1 for none, got "
            f"{int(table.min())} to {int(table.max())}."
        )
    counts = (table >= 0).sum(1)
    if not len(table) or int(counts.min()) < 2:
        fit = int(counts.argmin()) if len(table) else 0
        raise ValueError(
            f"a classifier needs 2 {side} rows or more, got {int(counts.min()) if len(table) else 0}"
            f" in fit {fit}: add examples."
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
