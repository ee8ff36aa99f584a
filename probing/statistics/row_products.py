"""Rows of features and their products, computed once for any number of classifiers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.core.errors import ArgumentError, ProbingError

SMALLEST_SCALE = 1e-2
"""A feature's standard deviation counts as at least this share of the root mean square over features:
else a unit that is nearly dead over the rows would rule every normal, which carries its inverse."""
_DENSE = 1 << 20  # elements of a table of who belongs to which group
BLOCK = 1 << 19
"""Elements of a working block: bounds memory, without effect on results but for rounding."""


class DegenerateRowsError(ProbingError, ValueError):
    """Rows that no classifier can be fitted to."""


@dataclass(frozen=True, eq=False)
class SharedRows:
    """Rows of features and the products of each with each, for any number of fits.

    Rows are centred and divided by a scale that all fits share. Products are made in float64 at first
    use and kept: an n by n matrix for classifiers and another for the lengths of their normals.
    """

    features: Float[Tensor, "n m"]
    scaling: Literal["feature", "layer"] = "feature"
    """One scale per feature, its standard deviation over the rows; or one for the layer, the root
    mean square of those, with which a rotation of the features rotates every normal alike."""

    def __post_init__(self) -> None:
        if not len(self.features):
            raise DegenerateRowsError("features must have a row or more, got no rows.")
        if not self.center.isfinite().all():
            rows = (~self.features.isfinite().all(1)).nonzero().flatten().tolist()
            raise DegenerateRowsError(
                f"features must be finite, got NaN or infinity in {len(rows)} of "
                f"{len(self.features)} rows, the first being {rows[:5]}: drop those examples."
            )

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def center(self) -> Float[Tensor, " m"]:
        """Mean of each feature."""
        return self.features.detach().mean(0, dtype=_at_least_float32(self.features))

    @cached_property
    def scale(self) -> Float[Tensor, " m"]:
        """What each feature is divided by, in the feature's own units."""
        variance = torch.cat([_variance(block) for _, block in self._columns()]).double()
        overall = variance.mean().sqrt()
        if not (overall > 0 and overall.isfinite()):
            raise DegenerateRowsError(
                f"features must differ between rows, got {len(self)} rows with root mean square "
                f"deviation {float(overall)}: check that the layer's output varies."
            )
        if self.scaling == "layer":
            return overall.expand_as(variance)
        return variance.sqrt().clamp_min(SMALLEST_SCALE * overall)

    @property
    def wide(self) -> bool:
        """Whether features outnumber rows, so that products of rows are the smaller matrix."""
        return self.features.shape[1] > len(self)

    def gram(self, power: int, *more: int) -> Float[Tensor, "n n"]:
        """Return the centred rows' products with each other, features weighted by scale**power.

        Args:
            power: of the scale.
            more: powers whose products will be asked for too: made in the same sweep over the features.
        """
        if lacking := dict.fromkeys(p for p in (power, *more) if p not in self._grams):
            if self.scaling == "layer":
                if 0 not in self._grams:
                    self._grams[0] = self._products([0])[0]
                self._grams.update({p: self._grams[0] * self.scale[0] ** p for p in lacking})
            else:
                self._grams.update(zip(lacking, self._products(list(lacking)), strict=True))
        return self._grams[power]

    def blocks(self, power: int) -> Iterator[tuple[int, Float[Tensor, "n w"]]]:
        """Yield the centred rows times scale**power, some columns at a time, with the first's index."""
        for start, block in self._columns():
            stop = start + block.shape[1]
            rows = block.to(torch.float64, copy=True).sub_(self.center[start:stop])
            yield start, rows.mul_(self.scale[start:stop] ** power) if power else rows

    def times(self, vectors: Float[Tensor, "k m"], power: int) -> Float[Tensor, "k n"]:
        """Return vectors' products with the centred rows, features weighted by scale**power."""
        parts = (vectors[:, start : start + block.shape[1]].double() @ block.mT for start, block in self.blocks(power))
        return sum(parts, torch.zeros((), dtype=torch.float64, device=vectors.device))

    def _products(self, powers: Sequence[int]) -> list[Tensor]:
        totals = [self.center.new_zeros(len(self), len(self), dtype=torch.float64) for _ in powers]
        for first, block in self.blocks(0):
            scale, reached = self.scale[first : first + block.shape[1]], 0
            for total, power in zip(totals, powers, strict=True):
                if power != reached:
                    block.mul_(scale ** (power // 2 - reached // 2))
                    reached = power
                for start in range(0, len(self), 128):  # only the lower triangle: half the work
                    stop = min(start + 128, len(self))
                    total[start:stop, :stop].addmm_(block[start:stop], block[:stop].mT)
        return [total.tril() + total.tril(-1).mT for total in totals]

    def _columns(self) -> Iterator[tuple[int, Tensor]]:
        width = max(64, BLOCK // len(self))
        for start in range(0, self.features.shape[1], width):
            yield start, self.features.detach()[:, start : start + width]

    @cached_property
    def _grams(self) -> dict[int, Tensor]:
        return {}


@dataclass(frozen=True, eq=False)
class RowProducts:
    """Vectors in feature space, such as class gradients, seen through shared rows.

    Made once, they serve every `PairFits.project` on the same rows.
    """

    rows: SharedRows
    vectors: Float[Tensor, "k m"]

    def weighted(self, power: int) -> Float[Tensor, "k n"]:
        """Return the products with the centred rows, features weighted by scale**power.

        Raises:
            ValueError: if a vector is not finite.
        """
        if power not in self._known:
            made = self.rows.times(self.vectors, power)
            if not made.isfinite().all():
                raise ArgumentError("vectors must be finite, got NaN or infinity: check the gradients.")
            self._known[power] = made
        return self._known[power]

    @cached_property
    def _known(self) -> dict[int, Tensor]:
        return {}


def grouped_products(
    rows: SharedRows,
    vectors: Sequence[Float[Tensor, "k m"]],
    groups: Int[Tensor, " n"],
    vector_groups: Int[Tensor, " k"],
) -> Float[Tensor, "sets vector_groups groups"]:
    """Return sets of vectors' products with the centred rows, summed over groups of vectors and of rows.

    Both are summed before they are multiplied, so that memory grows with the number of groups, not of rows.

    Raises:
        ValueError: if a vector is not finite.
    """
    shape = (len(vectors), int(vector_groups.max()) + 1, int(groups.max()) + 1)
    total = torch.zeros(shape, dtype=torch.float64, device=rows.features.device)
    for start, block in rows.blocks(0):
        features = sums(block, groups)
        for one, own in zip(total, vectors, strict=True):
            part = own[:, start : start + block.shape[1]].double()
            one.addmm_(sums(part, vector_groups), features.mT)
    if not total.isfinite().all():
        raise ArgumentError("vectors must be finite, got NaN or infinity: check the gradients.")
    return total


def sums(rows: Float[Tensor, "n m"], group: Int[Tensor, " n"]) -> Float[Tensor, "groups m"]:
    """Return the sums of rows over groups, which are numbered from 0."""
    groups = int(group.max()) + 1
    if groups * len(group) > _DENSE:
        return rows.new_zeros(groups, rows.shape[1]).index_add_(0, group, rows)
    # A product of matrices is several times faster than adding row by row.
    return torch.nn.functional.one_hot(group, groups).to(rows.dtype).T @ rows


def _at_least_float32(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)


def _variance(block: Tensor) -> Tensor:
    block = block.to(_at_least_float32(block))
    return (block - block.mean(0)).square_().mean(0)
