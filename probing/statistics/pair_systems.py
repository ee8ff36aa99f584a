"""Batches of small problems with two classes of rows, seen through products of rows.

Two forms of the same linear algebra, of which `probing.statistics.linear_classifiers` takes the smaller: the matrix `K` of
products of rows, or the rows themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class PairSystem(Protocol):
    """A batch of problems, seen through the matrix `K` of products of their rows."""

    @property
    def signs(self) -> Float[Tensor, "fits s"]:
        """+1 or -1 for each row, 0 for a place that holds no row."""

    @property
    def features(self) -> int:
        """Number of features of a row."""

    def times(self, vectors: Float[Tensor, "fits s"]) -> Float[Tensor, "fits s"]:
        """Return `K v`."""

    def inverse(self, weights: Float[Tensor, "fits s"]) -> Callable[[Float[Tensor, "fits s k"]], Float[Tensor, "fits s k"]]:
        """Factor `(K + diag(1/weights))⁻¹`, weights of at least 0, and return it as a function."""

    def lengths(self) -> Float[Tensor, "fits s"]:
        """Return the squared length of each row."""

    def frobenius(self) -> Float[Tensor, " fits"]:
        """Return the sum of the squares of `K`."""

    def within(self) -> "PairSystem":
        """Return the same problems with each row's class mean taken off."""

    def squared(self) -> "GramSystem":
        """Return the same problems with `K` at hand."""


@dataclass(frozen=True)
class GramSystem:
    """Problems with fewer rows than features: `K` itself is at hand."""

    signs: Float[Tensor, "fits s"]
    gram: Float[Tensor, "fits s s"]
    features: int

    def times(self, vectors: Float[Tensor, "fits s"]) -> Float[Tensor, "fits s"]:
        return (self.gram @ vectors.unsqueeze(-1)).squeeze(-1)

    def inverse(self, weights: Float[Tensor, "fits s"]) -> Callable[[Float[Tensor, "fits s k"]], Float[Tensor, "fits s k"]]:
        # I + √D K √D has no eigenvalue below 1, however small or large the weights D
        # (Rasmussen & Williams 2006, algorithm 3.1).
        root = weights.sqrt().unsqueeze(-1)
        matrix = (self.gram * root).mul_(root.mT)
        matrix.diagonal(dim1=-2, dim2=-1).add_(1)
        factor = torch.linalg.cholesky_ex(matrix).L
        return lambda right: root * torch.cholesky_solve(root * right, factor)

    def lengths(self) -> Float[Tensor, "fits s"]:
        return self.gram.diagonal(dim1=-2, dim2=-1)

    def frobenius(self) -> Float[Tensor, " fits"]:
        return self.gram.square().sum((1, 2))

    def within(self) -> "GramSystem":
        half = less_class_mean(self.gram, self.signs)
        return GramSystem(self.signs, less_class_mean(half.mT, self.signs), self.features)

    def squared(self) -> "GramSystem":
        return self


@dataclass(frozen=True)
class RowSystem:
    """Problems with more rows than features: matrices of features by features are smaller than `K`."""

    signs: Float[Tensor, "fits s"]
    rows: Float[Tensor, "fits s m"]

    @property
    def features(self) -> int:
        return self.rows.shape[2]

    def times(self, vectors: Float[Tensor, "fits s"]) -> Float[Tensor, "fits s"]:
        return (self.rows @ (self.rows.mT @ vectors.unsqueeze(-1))).squeeze(-1)

    def inverse(self, weights: Float[Tensor, "fits s"]) -> Callable[[Float[Tensor, "fits s k"]], Float[Tensor, "fits s k"]]:
        weights = weights.unsqueeze(-1)
        weighted = weights * self.rows
        matrix = self.rows.mT @ weighted
        matrix.diagonal(dim1=-2, dim2=-1).add_(1)
        factor = torch.linalg.cholesky_ex(matrix).L

        def solve(right: Tensor) -> Tensor:
            inner = torch.cholesky_solve(weighted.mT @ right, factor)
            return weights * (right - self.rows @ inner)

        def refined(right: Tensor) -> Tensor:
            # What is left of `right` shrinks by cancellation: a second round restores its digits.
            first = solve(right)
            spread = torch.where(weights > 0, first / weights, right)
            return first + solve(right - self.rows @ (self.rows.mT @ first) - spread)

        return refined

    def lengths(self) -> Float[Tensor, "fits s"]:
        return self.rows.square().sum(2)

    def frobenius(self) -> Float[Tensor, " fits"]:
        return (self.rows.mT @ self.rows).square().sum((1, 2))

    def within(self) -> "RowSystem":
        return RowSystem(self.signs, less_class_mean(self.rows, self.signs))

    def squared(self) -> GramSystem:
        return GramSystem(self.signs, self.rows @ self.rows.mT, self.features)


def less_class_mean(matrix: Tensor, signs: Tensor) -> Tensor:
    """Take each class's mean over axis 1 off its rows."""
    for side in (signs > 0, signs < 0):
        member = side.to(signs).unsqueeze(-1)
        matrix = matrix - member * ((member.mT @ matrix) / member.sum(1, keepdim=True))
    return matrix
