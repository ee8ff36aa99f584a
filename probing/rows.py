"""Rows of features and their products, computed once for any number of classifiers."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_SCALE = 1e-2
"""A feature's standard deviation counts as at least this share of the root mean square over features:
else a unit that is nearly dead over the rows would rule every normal, which carries its inverse."""
BLOCK = 1 << 19
"""Elements of a working block: bounds memory, without effect on results but for rounding."""


class DegenerateRowsError(ValueError):
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
    base: "SharedRows | None" = None
    """Rows that come before these and lend them centre, scale and products; see `extended`."""

    def __post_init__(self) -> None:
        if self.base is not None and self.base.features.shape[1] != self.features.shape[1]:
            raise ValueError(
                f"rows to add must have {self.base.features.shape[1]} features, got "
                f"{self.features.shape[1]}: read them at the same layer."
            )
        if not len(self.features):
            raise DegenerateRowsError("features must have a row or more, got no rows.")
        if not self._mean.isfinite().all():
            rows = (~self.features.isfinite().all(1)).nonzero().flatten().tolist()
            raise DegenerateRowsError(
                f"features must be finite, got NaN or infinity in {len(rows)} of "
                f"{len(self.features)} rows, the first being {rows[:5]}: drop those examples."
            )

    def __len__(self) -> int:
        return len(self.features) + (0 if self.base is None else len(self.base))

    def extended(self, features: Float[Tensor, "k m"]) -> "SharedRows":
        """Return these rows followed by others, on the centre and scale of these.

        Only products with the new rows remain to be made: a concept added to a pool costs little.
        """
        return SharedRows(features, self.scaling, self)

    @cached_property
    def center(self) -> Float[Tensor, " m"]:
        """Mean of each feature."""
        return self._mean if self.base is None else self.base.center

    @cached_property
    def scale(self) -> Float[Tensor, " m"]:
        """What each feature is divided by, in the feature's own units."""
        if self.base is not None:
            return self.base.scale
        variance = torch.cat([_variance(block) for block in self._columns(own=True)]).double()
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

    def gram(self, power: int) -> Float[Tensor, "n n"]:
        """Return the centred rows' products with each other, features weighted by scale**power."""
        if power not in self._grams:
            if self.scaling == "layer" and power != 0:
                self._grams[power] = self.gram(0) * self.scale[0] ** power
            else:
                self._grams[power] = self._products(power)
        return self._grams[power]

    def blocks(
        self, power: int, *, own: bool = False
    ) -> Iterator[tuple[int, Float[Tensor, "n w"]]]:
        """Yield the centred rows times scale**power, some columns at a time, with the first's index.

        Args:
            power: of the scale.
            own: leave out the rows of the base.
        """
        start = 0
        for block in self._columns(own):
            stop = start + block.shape[1]
            rows = block.to(torch.float64, copy=True).sub_(self.center[start:stop])
            yield start, rows.mul_(self.scale[start:stop] ** power)
            start = stop

    def times(
        self, vectors: Float[Tensor, "k m"], power: int, *, own: bool = False
    ) -> Float[Tensor, "k n"]:
        """Return vectors' products with the centred rows, features weighted by scale**power."""
        parts = (
            vectors[:, start : start + block.shape[1]].double() @ block.mT
            for start, block in self.blocks(power, own=own)
        )
        return sum(parts, torch.zeros((), dtype=torch.float64, device=vectors.device))

    def _products(self, power: int) -> Tensor:
        first = 0 if self.base is None else len(self.base)
        total = self.center.new_zeros(len(self), len(self), dtype=torch.float64)
        for _, block in self.blocks(power // 2):
            for start in range(first, len(self), 128):  # only the lower triangle: half the work
                stop = min(start + 128, len(self))
                total[start:stop, :stop].addmm_(block[start:stop], block[:stop].mT)
        if self.base is not None:
            total[:first, :first] = self.base.gram(power)
        return total.tril() + total.tril(-1).mT

    def _columns(self, own: bool) -> Iterator[Tensor]:
        members = [self.features.detach()] if own else self._members
        width = max(64, BLOCK // sum(map(len, members)))
        for start in range(0, self.features.shape[1], width):
            parts = [member[:, start : start + width] for member in members]
            yield parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def _members(self) -> list[Tensor]:
        return [*([] if self.base is None else self.base._members), self.features.detach()]

    @cached_property
    def _mean(self) -> Tensor:
        return self.features.detach().mean(0, dtype=_at_least_float32(self.features))

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
    base: "RowProducts | None" = None
    """The products with the rows that `rows` extends."""

    def extended(self, rows: SharedRows) -> "RowProducts":
        """Return the products with `rows`, an extension of these; only those with new rows are made."""
        return RowProducts(rows, self.vectors, self if rows.base is self.rows else None)

    def weighted(self, power: int) -> Float[Tensor, "k n"]:
        """Return the products with the centred rows, features weighted by scale**power.

        Raises:
            ValueError: if a vector is not finite.
        """
        if power not in self._known:
            known = [] if self.base is None else [self.base.weighted(power)]
            made = self.rows.times(self.vectors, power, own=self.base is not None)
            if not made.isfinite().all():
                raise ValueError(
                    "vectors must be finite, got NaN or infinity: check the gradients."
                )
            self._known[power] = torch.cat([*known, made], 1)
        return self._known[power]

    @cached_property
    def _known(self) -> dict[int, Tensor]:
        return {}


def _at_least_float32(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)


def _variance(block: Tensor) -> Tensor:
    block = block.to(_at_least_float32(block))
    return (block - block.mean(0)).square_().mean(0)
