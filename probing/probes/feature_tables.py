"""Rows of features as fits see them: standardised, in memory or passing by in batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.statistics.row_products import DegenerateRowsError

SMALLEST_SPREAD = 1e-6
"""What a standard deviation is raised by before features are divided by it."""
_BATCH = 4096
_NOISE = 8
"""Deviations below this many roundings of a feature's size are rounding: the feature is constant."""


@runtime_checkable
class Rows(Protocol):
    """Standardised rows, seen through products with them."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def features(self) -> int:
        """Length of a row."""

    def zeros(self, *shape: int) -> Tensor:
        """Return zeros of the rows' type, where they are."""

    def outputs(self, weights: Float[Tensor, "fits classes m"]) -> Float[Tensor, "fits classes n"]:
        """Return the products of weights with rows."""

    def pull(self, errors: Float[Tensor, "fits classes n"]) -> Float[Tensor, "fits classes m"]:
        """Return sums of rows weighted by errors."""

    def gram(self) -> Float[Tensor, "m m"]:
        """Return the features' products with each other, summed over rows."""

    def batches(self) -> Iterator[tuple[Int[Tensor, " k"], Float[Tensor, "k m"]]]:
        """Yield places among the rows, and the rows there; each once."""


@dataclass(frozen=True)
class Scaler:
    """Mean and standard deviation of each feature over the rows that are fitted."""

    center: Float[Tensor, " m"]
    scale: Float[Tensor, " m"]
    """What features are divided by; infinity for one that is constant, so that it counts for nothing."""

    @classmethod
    def of(cls, moments: "RowMoments") -> "Scaler":
        """Take the scale from training rows.

        Raises:
            DegenerateRowsError: if there is no row, a value is not finite, or no feature varies.
        """
        mean, deviation = moments.value()
        noise = _NOISE * torch.finfo(moments.dtype).eps * mean.abs()
        scale = torch.where(deviation > noise, deviation + SMALLEST_SPREAD, torch.inf)
        if bool(scale.isinf().all()):
            raise DegenerateRowsError(
                f"features must differ between rows, got {len(scale)} features that are all constant over "
                f"{moments.count} rows: check that the layer's output varies."
            )
        return cls(mean, scale)

    def __call__(self, features: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Return standardised rows, in the type of the features."""
        center, scale = self.center.to(features), self.scale.to(features)
        return (features - center).div_(scale)

    def unscaled(
        self, weights: Float[Tensor, "*fits m"], intercepts: Float[Tensor, "*fits"]
    ) -> tuple[Float[Tensor, "*fits m"], Float[Tensor, "*fits"]]:
        """Return weights and intercepts that act on features as they are."""
        own = weights.double() / self.scale
        return own, intercepts.double() - own @ self.center


class RowMoments:
    """Mean and standard deviation of each feature, from batches in float64 about the first batch's mean."""

    def __init__(self) -> None:
        self.count = 0
        self.dtype = torch.float32
        self._shift = self._total = self._square = torch.zeros(0, dtype=torch.float64)

    def add(self, batch: Float[Tensor, "n m"]) -> None:
        """Take in some rows.

        Raises:
            DegenerateRowsError: if a value is not finite.
        """
        wide = batch.double()
        if not torch.isfinite(wide.sum()) and not torch.isfinite(wide).all():
            bad = (~torch.isfinite(wide).all(1)).nonzero().flatten()
            raise DegenerateRowsError(
                f"features must be finite, got NaN or infinity in {len(bad)} of {len(batch)} rows, the first being "
                f"{bad[:5].tolist()}: drop those examples."
            )
        if not self.count:
            self.dtype, self._shift = batch.dtype, wide.mean(0)
            self._total, self._square = torch.zeros_like(self._shift), torch.zeros_like(self._shift)
        wide = wide - self._shift
        self.count += len(wide)
        self._total += wide.sum(0)
        self._square += wide.square_().sum(0)

    def value(self) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """Return mean and standard deviation."""
        if not self.count:
            raise DegenerateRowsError("features must have a row or more, got no rows.")
        mean = self._total / self.count
        variance = self._square / self.count - mean.square()
        return self._shift + mean, variance.clamp_min(0).sqrt()


@dataclass(frozen=True)
class TableRows:
    """Standardised rows in memory."""

    table: Float[Tensor, "n m"]

    @classmethod
    def of(cls, features: Float[Tensor, "n m"]) -> "TableRows":
        """Standardise features by their own statistics."""
        moments = RowMoments()
        moments.add(features)
        return cls(Scaler.of(moments)(features))

    @property
    def count(self) -> int:
        return len(self.table)

    @property
    def features(self) -> int:
        return self.table.shape[1]

    def zeros(self, *shape: int) -> Tensor:
        return self.table.new_zeros(shape)

    def outputs(self, weights: Float[Tensor, "fits classes m"]) -> Float[Tensor, "fits classes n"]:
        return (weights.flatten(0, 1) @ self.table.mT).view(*weights.shape[:2], -1)

    def pull(self, errors: Float[Tensor, "fits classes n"]) -> Float[Tensor, "fits classes m"]:
        return (errors.flatten(0, 1) @ self.table).view(*errors.shape[:2], -1)

    def gram(self) -> Float[Tensor, "m m"]:
        return self.table.mT @ self.table

    def batches(self) -> Iterator[tuple[Int[Tensor, " k"], Float[Tensor, "k m"]]]:
        places = torch.arange(self.count, device=self.table.device)
        for start in range(0, self.count, _BATCH):
            yield places[start : start + _BATCH], self.table[start : start + _BATCH]


Read = Callable[[], Iterator[tuple[Int[Tensor, " k"], Float[Tensor, "k m"]]]]
"""Passes over all examples once: positions in the example set, and features as they are."""


@dataclass(frozen=True)
class StreamedRows:
    """Standardised rows that are read anew for every product: in memory are only outputs and batches.

    Attributes:
        read: passes over the examples.
        scaler: of the rows that are fitted.
        places: for each example its place among these rows, -1 if it is none of them.
    """

    read: Read
    scaler: Scaler
    places: Int[Tensor, " examples"]

    @property
    def count(self) -> int:
        return int((self.places >= 0).sum())

    @property
    def features(self) -> int:
        return len(self.scaler.center)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape)

    def outputs(self, weights: Float[Tensor, "fits classes m"]) -> Float[Tensor, "fits classes n"]:
        result = self.zeros(*weights.shape[:2], self.count)
        for places, rows in self.batches():
            result[:, :, places] = TableRows(rows).outputs(weights)
        return result

    def pull(self, errors: Float[Tensor, "fits classes n"]) -> Float[Tensor, "fits classes m"]:
        result = self.zeros(*errors.shape[:2], self.features)
        for places, rows in self.batches():
            result += TableRows(rows).pull(errors[:, :, places])
        return result

    def gram(self) -> Float[Tensor, "m m"]:
        result = self.zeros(self.features, self.features)
        for _, rows in self.batches():
            result += TableRows(rows).gram()
        return result

    def batches(self) -> Iterator[tuple[Int[Tensor, " k"], Float[Tensor, "k m"]]]:
        for positions, features in self.read():
            places = self.places[positions]
            mine = places >= 0
            if mine.any():
                yield places[mine], self.scaler(features[mine].float())


@runtime_checkable
class Table(Protocol):
    """All examples' features at one layer."""

    def scaler(self, positions: Int[Tensor, " k"]) -> Scaler:
        """Return the statistics of some examples."""

    def rows(self, positions: Int[Tensor, " k"], scaler: Scaler) -> Rows:
        """Return some examples, standardised."""


@dataclass(frozen=True)
class MemoryTable:
    """Features in memory."""

    features: Float[Tensor, "n m"]

    def scaler(self, positions: Int[Tensor, " k"]) -> Scaler:
        moments = RowMoments()
        for start in range(0, len(positions), _BATCH):
            moments.add(self.features[positions[start : start + _BATCH]])
        return Scaler.of(moments)

    def rows(self, positions: Int[Tensor, " k"], scaler: Scaler) -> Rows:
        return TableRows(scaler(self.features[positions]))


@dataclass(frozen=True)
class StreamedTable:
    """Features that are read anew each time."""

    read: Read
    examples: int

    def scaler(self, positions: Int[Tensor, " k"]) -> Scaler:
        wanted = torch.zeros(self.examples, dtype=torch.bool)
        wanted[positions] = True
        moments = RowMoments()
        for where, features in self.read():
            if wanted[where].any():
                moments.add(features[wanted[where]].float())
        return Scaler.of(moments)

    def rows(self, positions: Int[Tensor, " k"], scaler: Scaler) -> Rows:
        places = torch.full((self.examples,), -1)
        places[positions] = torch.arange(len(positions))
        return StreamedRows(self.read, scaler, places)


@dataclass(frozen=True)
class RowSpace:
    """Rows fewer than their features, in coordinates of the space they span; lengths and products are the same.

    A penalised optimum lies in that space, so a fit there is the fit.
    """

    rows: TableRows
    basis: Float[Tensor, "m r"]

    @classmethod
    def of(cls, rows: TableRows) -> "RowSpace":
        """Find the space by the products of rows with rows."""
        wide = rows.table.double()
        squares, turned = torch.linalg.eigh(wide @ wide.mT)
        kept = squares > squares[-1] * len(squares) * torch.finfo(squares.dtype).eps
        lengths = squares[kept].sqrt()
        basis = wide.mT @ (turned[:, kept] / lengths)
        return cls(TableRows((turned[:, kept] * lengths).to(rows.table)), basis)

    def lifted(self, weights: Float[Tensor, "*fits r"]) -> Float[Tensor, "*fits m"]:
        """Return weights on the features."""
        return (weights.double() @ self.basis.mT).to(weights)
