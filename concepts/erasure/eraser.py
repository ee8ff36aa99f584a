"""Linear erasure: the affine map after which no linear classifier reads an attribute off a layer's rows.

A linear classifier reads nothing exactly where the cross-covariance of rows and attribute is zero (Belrose et al. 2023,
arXiv:2306.03819, theorem 3.4). `leace` is the map that gets there with the least change in mean square (theorem 4.3);
`mean_projection` is the orthogonal projection that does, which is the same where rows are white. `random_eraser` removes
as many directions drawn at random: what any such loss costs a network.

Statistics are streamed: `CrossMoments` takes rows batch by batch and merges with those of other workers.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probing.core.errors import ProbingError

Kind = Literal["leace", "mean"]


class ErasureError(ProbingError, ValueError):
    """An attribute that can't be erased as asked for."""


@dataclass(frozen=True)
class CrossCovariance:
    """Means and covariances of rows and attribute, divided by the number of rows."""

    count: int
    mean: Float[Tensor, " m"]
    attribute_mean: Float[Tensor, " k"]
    rows: Float[Tensor, "m m"]
    cross: Float[Tensor, "m k"]


class CrossMoments:
    """Covariances of rows and of an attribute with them, in float64, by the pairwise update of Chan et al. (1983).

    Example:
        >>> moments = CrossMoments()
        >>> moments.add(torch.randn(20, 4), torch.randn(20, 1))
        >>> leace(moments.value()).rank
        1
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._products = torch.zeros(0, dtype=torch.float64)
        self._features = 0

    def add(self, rows: Float[Tensor, "n m"], attribute: Float[Tensor, "_ k"]) -> None:
        """Take in rows, and the attribute of each.

        Raises:
            ErasureError: for numbers that are not finite, or other numbers of rows, features or columns than before.
        """
        if len(rows) != len(attribute):
            raise ErasureError(f"{len(rows)} rows need as many values of the attribute, got {len(attribute)}.")
        both = torch.cat([rows.detach().double(), attribute.detach().double().to(rows.device)], 1)
        if not torch.isfinite(both).all():
            raise ErasureError("rows or attribute hold NaN or infinity: a covariance needs finite numbers.")
        if len(both):
            mean = both.mean(0)
            apart = both - mean
            self._absorb(len(both), mean, apart.mT @ apart, rows.shape[1])

    def merge(self, other: "CrossMoments") -> None:
        """Take in what another accumulator has seen; the other is left as it is."""
        if other._count:
            self._absorb(other._count, other._mean, other._products, other._features)

    def value(self) -> CrossCovariance:
        """Return the covariances so far; the accumulator can go on.

        Raises:
            ErasureError: before two rows were taken in.
        """
        if self._count < 2:
            raise ErasureError(f"a covariance needs 2 rows or more, got {self._count}.")
        m, products = self._features, self._products / self._count
        return CrossCovariance(self._count, self._mean[:m], self._mean[m:], products[:m, :m], products[:m, m:])

    def _absorb(self, count: int, mean: Tensor, products: Tensor, features: int) -> None:
        if not self._count:
            self._count, self._mean, self._products, self._features = count, mean.clone(), products.clone(), features
            return
        if mean.shape != self._mean.shape or features != self._features:
            raise ErasureError(
                f"rows of {features} features and {len(mean) - features} columns of the attribute follow rows of "
                f"{self._features} and {len(self._mean) - self._features}: keep to one layer and one attribute."
            )
        total = self._count + count
        step = mean - self._mean
        self._products = self._products + products + torch.outer(step, step) * (self._count * count / total)
        self._mean = self._mean + step * (count / total)
        self._count = total


@dataclass(frozen=True, eq=False)
class Eraser:
    """Removes directions from rows: `x - left (right (x - mean))`.

    Called on rows `[…, m]`, it returns rows of that shape. It is idempotent.
    """

    mean: Float[Tensor, " m"]
    left: Float[Tensor, "m rank"]
    right: Float[Tensor, "rank m"]

    @property
    def rank(self) -> int:
        """How many directions are removed."""
        return self.left.shape[1]

    def taken(self, rows: Float[Tensor, "*n m"]) -> Float[Tensor, "*n m"]:
        """Return what erasing takes from rows that are differences of others: their part in the directions removed."""
        left, right = (part.to(rows) for part in (self.left, self.right))
        return rows @ right.mT @ left.mT

    def __call__(self, rows: Float[Tensor, "*n m"]) -> Float[Tensor, "*n m"]:
        return rows - self.taken(rows - self.mean.to(rows))


def leace(found: CrossCovariance, *, shrink: bool = True) -> Eraser:
    """Return the least-squares eraser (Belrose et al. 2023, theorem 4.3).

    `left = W⁺Q` and `right = QᵀW` with `W` the whitening of the rows, `W⁺` its pseudo-inverse, and `Q` an orthonormal
    basis of the columns of `W · cross`. Whatever `W` is, the cross-covariance of these rows is gone.

    Args:
        found: of rows and attribute.
        shrink: whether the covariance of few rows is drawn towards a multiple of the identity (oracle approximating
            shrinkage, Chen et al. 2010): else directions in which few rows hardly vary are changed at will in others.
    """
    whiten, unwhiten = _whitening(found, shrink=shrink)
    basis = _basis(whiten @ found.cross, _noise(whiten, found))
    return Eraser(found.mean, unwhiten @ basis, basis.mT @ whiten)


def mean_projection(found: CrossCovariance) -> Eraser:
    """Return the orthogonal projection off the cross-covariance: for two groups, off the difference of their means."""
    basis = _basis(found.cross, _noise(torch.eye(len(found.mean), dtype=torch.float64), found))
    return Eraser(found.mean, basis, basis.mT)


def eraser_of(found: CrossCovariance, kind: Kind) -> Eraser:
    """Return the eraser of a kind: `leace`, or `mean` for `mean_projection`."""
    return leace(found) if kind == "leace" else mean_projection(found)


def random_eraser(found: CrossCovariance, rank: int, seed: int, *, whitened: bool = True, shrink: bool = True) -> Eraser:
    """Return an eraser of as many directions at random, uniformly among those of white rows, or of the rows as they are.

    In white rows these are the directions that labels give which have nothing to do with the rows.

    Raises:
        ErasureError: if rows have not that many directions.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(found.mean), rank, generator=generator, dtype=torch.float64).to(found.mean)
    if not whitened:
        basis: Tensor = torch.linalg.qr(drawn).Q
        return Eraser(found.mean, basis, basis.mT)
    whiten, unwhiten = _whitening(found, shrink=shrink)
    inside = _basis(whiten @ unwhiten @ drawn, 0.0)
    if inside.shape[1] < rank:
        raise ErasureError(f"{rank} directions are to be removed from rows that vary in {inside.shape[1]} only.")
    return Eraser(found.mean, unwhiten @ inside, inside.mT @ whiten)


def _whitening(found: CrossCovariance, *, shrink: bool) -> tuple[Tensor, Tensor]:
    """Return the matrix that makes rows white within the directions in which they vary, and its pseudo-inverse."""
    covariance = _shrunk(found) if shrink else found.rows
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values.max().clamp(min=0) * len(values) * torch.finfo(torch.float64).eps * 8
    values, vectors = values[kept], vectors[:, kept]
    return (vectors * values.rsqrt()) @ vectors.mT, (vectors * values.sqrt()) @ vectors.mT


def _shrunk(found: CrossCovariance) -> Float[Tensor, "m m"]:
    """Return the covariance shrunk towards its mean variance (Chen et al. 2010, eq. 23)."""
    m, n = len(found.mean), found.count
    trace, squares = float(found.rows.trace()), float(found.rows.square().sum())
    spread = (n + 1 - 2 / m) * (squares - trace**2 / m)
    share = min(1.0, ((1 - 2 / m) * squares + trace**2) / spread) if spread > 0 else 1.0
    whole = (1 - share) * found.rows
    whole.diagonal().add_(share * trace / m)
    return whole


def _noise(whiten: Tensor, found: CrossCovariance) -> float:
    """Return what rounding may leave of a cross-covariance that is zero, after the rows were made white."""
    spread = found.rows.diagonal().sum().sqrt() if len(found.mean) else torch.zeros(())
    return float(torch.linalg.matrix_norm(whiten, 2) * spread) * 1e-12


def _basis(columns: Float[Tensor, "m k"], noise: float) -> Float[Tensor, "m rank"]:
    """Return an orthonormal basis of the columns, those beneath the noise left out."""
    u, size, _ = torch.linalg.svd(columns, full_matrices=False)
    kept = size > max(noise, float(size.max() if len(size) else 0) * 1e-9)
    basis: Tensor = u[:, kept]
    return basis
