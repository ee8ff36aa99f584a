"""Statistics of rows that arrive in batches: `add` a batch, `merge` another worker's part, read `value()`.

Each statistic equals the one of all rows at once, whatever the batches and whatever the order of merging:
counts, thresholds, top examples and IoUs exactly, moments to float64 rounding. Memory never grows with the number
of rows. Rows that hold NaN are refused.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.core.errors import ProbingError
from probing.statistics.kernels import exceeding


class StreamError(ProbingError, ValueError):
    """A batch or another accumulator does not fit what was accumulated, or there is nothing to report yet."""


@dataclass(frozen=True)
class MeanVariance:
    """Mean and variance of each feature, in float64."""

    count: int
    mean: Float[Tensor, "*features"]
    variance: Float[Tensor, "*features"]
    """The population's: squared deviations are divided by `count`."""


class Moments:
    """Mean and variance per feature, by the pairwise update of Chan, Golub & LeVeque (1983), eq. 2.1.

    Example:
        >>> moments = Moments()
        >>> for batch in batches:  # [n, *features]
        ...     moments.add(batch)
        >>> moments.value().variance
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())

    def add(self, batch: Float[Tensor, "n *features"]) -> None:
        """Take in rows.

        Raises:
            StreamError: if a row holds NaN or infinity, or has another shape than the rows before.
        """
        if not torch.isfinite(batch).all():
            raise StreamError(f"batch holds {_count_bad(batch)} values that are not finite; a mean needs finite ones.")
        rows = batch.detach().double()
        if len(rows):
            mean = rows.mean(0)
            self._absorb(len(rows), mean, (rows - mean).square().sum(0))

    def merge(self, other: "Moments") -> None:
        """Take in what another accumulator has seen; the other is left as it is."""
        if other._count:
            self._absorb(other._count, other._mean, other._squares)

    def value(self) -> MeanVariance:
        """Return the moments so far; the accumulator can go on."""
        _require_rows(self._count)
        return MeanVariance(self._count, self._mean.clone(), self._squares / self._count)

    def _absorb(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if not self._count:
            self._count, self._mean, self._squares = count, mean.clone(), squares.clone()
            return
        _require_same("features", tuple(self._mean.shape), tuple(mean.shape))
        total = self._count + count
        step = mean.to(self._mean.device) - self._mean
        self._mean = self._mean + step * (count / total)
        between = step.square() * (self._count * count / total)
        self._squares = self._squares + squares.to(step.device) + between
        self._count = total


@dataclass(frozen=True)
class Thresholds:
    """Upper quantile of each unit.

    `threshold` is the ⌈(1−q)N⌉-th smallest of the N values (Bau et al. 2017, sec. 2.2), so that at most ⌊qN⌋ values
    lie above it, and exactly so many if there are no ties.
    """

    total: int
    threshold: Float[Tensor, " units"]
    above: Int[Tensor, " units"]


def values_above(q: float | Fraction, total: int) -> int:
    """Return ⌊q·total⌋, with `q` read as the decimal number that was written.

    In floating point, 0.29 · 100 is 28.999…

    Raises:
        StreamError: if `q` is not between 0 and 1, or there are no values.
    """
    if not 0 < q < 1:
        raise StreamError(f"q must lie strictly between 0 and 1, got {q}.")
    if total < 1:
        raise StreamError(f"total must be at least one value per unit, got {total}.")
    exact = q if isinstance(q, Fraction) else Fraction(repr(q))
    return exact.numerator * total // exact.denominator


class UpperQuantile:
    """Exact upper quantile per unit when the number of values is known beforehand.

    Keeps the ⌊qN⌋ + 1 largest values of each unit, and up to as many again that exceed all but those until it
    sorts them in. For large N, 16-bit values need less memory in `CountedQuantile`.

    Args:
        q: share of values above the threshold, between 0 and 1.
        total: N, how many values each unit will have: examples × positions.

    Example:
        >>> quantile = UpperQuantile(0.005, total=len(examples) * 14 * 14)
    """

    def __init__(self, q: float | Fraction, total: int) -> None:
        self._keep = values_above(q, total) + 1
        self._q, self._total, self._seen = q, total, 0
        self._top = torch.zeros(0, 0)
        self._waiting: list[Tensor] = []

    def add(self, batch: Float[Tensor, "n units *positions"]) -> None:
        """Take in values; every position of every row counts as one value of its unit.

        Raises:
            StreamError: if a value is NaN, the units differ from those before, or more than `total` values come.
        """
        _refuse_nan(batch)
        positions = math.prod(batch.shape[2:])
        values = batch.detach().reshape(*batch.shape[:2], positions)
        count = len(values) * positions
        if self._seen and self._top.shape[1] == self._keep:
            _require_same("units", len(self._top), values.shape[1])
            values = exceeding(values.to(self._top), self._top.amin(1))
        else:
            values = _by_unit(values)
        self._absorb(values, count)

    def merge(self, other: "UpperQuantile") -> None:
        """Take in what another accumulator of the same `q` and `total` has seen."""
        _require_same("(q, total)", (self._q, self._total), (other._q, other._total))
        if other._seen:
            self._absorb(torch.cat([other._top, *other._waiting], 1), other._seen)

    def value(self) -> Thresholds:
        """Return the thresholds.

        Raises:
            StreamError: if fewer than `total` values have been seen.
        """
        if self._seen != self._total:
            raise StreamError(
                f"{self._seen} of {self._total} values per unit seen; add the rest, or build with their true number."
            )
        self._sort_in()
        threshold = self._top.amin(1)
        return Thresholds(self._total, threshold, (self._top > threshold[:, None]).sum(1))

    def _absorb(self, values: Tensor, count: int) -> None:
        seen = self._seen + count
        if seen > self._total:
            raise StreamError(f"more than total={self._total} values per unit: got {seen}.")
        if self._seen:
            _require_same("units", len(self._top), len(values))
            values = values.to(self._top)
        else:
            self._top = values[:, :0]
        self._waiting.append(values)
        self._seen = seen
        if sum(part.shape[1] for part in self._waiting) >= self._keep:
            self._sort_in()

    def _sort_in(self) -> None:
        values = torch.cat([self._top, *self._waiting], 1)
        self._top = values.topk(min(self._keep, values.shape[1]), 1, sorted=False).values
        self._waiting = []


_LEVELS = 1 << 16
_INT32_MAX = (1 << 31) - 1
_SIXTEEN_BIT = (torch.bfloat16, torch.float16)


class CountedQuantile:
    """Exact upper quantile per unit of 16-bit values, whose number need not be known.

    Counts how often each of the 65,536 values occurs: 262 kB a unit (twice that past 2³¹ values), whatever `q`.

    Args:
        q: share of values above the threshold, between 0 and 1.
        dtype: `torch.bfloat16` or `torch.float16`. Wider tensors are taken if all their values fit it exactly.

    Example:
        >>> quantile = CountedQuantile(0.005)
        >>> quantile.add(activations.to(torch.bfloat16))
    """

    def __init__(self, q: float | Fraction, dtype: torch.dtype = torch.bfloat16) -> None:
        values_above(q, 1)
        if dtype not in _SIXTEEN_BIT:
            raise StreamError(f"dtype must be torch.bfloat16 or torch.float16, got {dtype}; or use UpperQuantile.")
        self._q, self._dtype, self._seen = q, dtype, 0
        self._counts = torch.zeros(0, _LEVELS, dtype=torch.int32)

    def add(self, batch: Float[Tensor, "n units *positions"]) -> None:
        """Take in values; every position of every row counts as one value of its unit.

        Raises:
            StreamError: if a value is NaN or needs more than 16 bits, or the units differ from those before.
        """
        _refuse_nan(batch)
        narrow = batch.detach().to(self._dtype)
        if not torch.equal(narrow.to(batch.dtype), batch):
            raise StreamError(
                f"values do not fit {self._dtype} exactly: round them with .to({self._dtype}), or use UpperQuantile."
            )
        values = _by_unit(narrow)
        self._grow(len(values), values.shape[1], values.device)
        ranks = _rank(values)
        self._counts.scatter_add_(1, ranks, torch.ones_like(ranks, dtype=self._counts.dtype))

    def merge(self, other: "CountedQuantile") -> None:
        """Take in what another accumulator of the same `q` and `dtype` has seen."""
        _require_same("(q, dtype)", (self._q, self._dtype), (other._q, other._dtype))
        if other._seen:
            self._grow(len(other._counts), other._seen, other._counts.device)
            self._counts += other._counts.to(self._counts)

    def value(self) -> Thresholds:
        """Return the thresholds of the values so far, in the accumulator's dtype."""
        _require_rows(self._seen)
        rank = values_above(self._q, self._seen) + 1
        at_least = self._counts.flip(1).cumsum(1, dtype=torch.int64)
        level = (at_least < rank).sum(1, keepdim=True)
        at_level = self._counts.flip(1).gather(1, level)
        above = at_least.gather(1, level) - at_level
        return Thresholds(self._seen, _unrank(_LEVELS - 1 - level[:, 0], self._dtype), above[:, 0])

    def _grow(self, units: int, count: int, device: torch.device) -> None:
        if not self._seen:
            self._counts = torch.zeros(units, _LEVELS, dtype=torch.int32, device=device)
        _require_same("units", len(self._counts), units)
        self._seen += count
        if self._seen > _INT32_MAX:
            self._counts = self._counts.long()


def _rank(values: Tensor) -> Tensor:
    """Return the place of 16-bit floats in their own order, −0 with +0; sign and magnitude read as an integer."""
    bits = values.contiguous().view(torch.int16)
    sign = bits >> 15  # −1 for negative values: x ^ −1 is −x − 1
    return (((bits & 0x7FFF) ^ sign) - sign).long().add_(_LEVELS // 2)


def _unrank(ranks: Tensor, dtype: torch.dtype) -> Tensor:
    signed = ranks - _LEVELS // 2
    magnitude = signed.abs().to(torch.int16).view(dtype)
    return torch.where(signed < 0, -magnitude, magnitude)


@dataclass(frozen=True)
class TopExamples:
    """The examples on which each unit is highest, best first."""

    values: Float[Tensor, "k units"]
    indices: Int[Tensor, "k units"]
    """Of equal values the smaller index comes first."""


class TopK:
    """The `k` highest examples of each unit; fewer if fewer were seen.

    Example:
        >>> top = TopK(9)
        >>> top.add(activations.amax((2, 3)), torch.tensor(indices))
    """

    def __init__(self, k: int) -> None:
        if k < 1:
            raise StreamError(f"k must be at least 1, got {k}.")
        self._k = k
        self._values = torch.zeros(0, 0)
        self._indices = torch.zeros(0, 0, dtype=torch.int64)

    def add(self, batch: Float[Tensor, "n units"], indices: Int[Tensor, " n"]) -> None:
        """Take in one value per unit for the examples named by `indices`; each example once.

        Raises:
            StreamError: if a value is NaN, an index is repeated, or the units differ from those before.
        """
        _refuse_nan(batch)
        order = indices.to(batch.device, torch.int64).argsort()
        ordered = indices.to(batch.device, torch.int64)[order]
        if (ordered[1:] == ordered[:-1]).any():
            raise StreamError("a batch names an example twice; give each example once.")
        values, places = batch.detach()[order].sort(dim=0, descending=True, stable=True)
        self._absorb(values[: self._k], ordered[places[: self._k]])

    def merge(self, other: "TopK") -> None:
        """Take in what another accumulator of the same `k` has seen of other examples."""
        _require_same("k", self._k, other._k)
        self._absorb(other._values, other._indices)

    def value(self) -> TopExamples:
        """Return the highest examples so far; the accumulator can go on."""
        _require_rows(len(self._values))
        return TopExamples(self._values.clone(), self._indices.clone())

    def _absorb(self, values: Tensor, indices: Tensor) -> None:
        if not len(values):
            return
        if len(self._values):
            _require_same("units", self._values.shape[1], values.shape[1])
            values = torch.cat([self._values, values.to(self._values)])
            indices = torch.cat([self._indices, indices.to(self._indices)])
        indices, by_index = indices.sort(dim=0)
        if (repeats := indices[1:][indices[1:] == indices[:-1]]).numel():
            raise StreamError(f"example {int(repeats[0])} was added twice; give each example once.")
        values, by_value = values.gather(0, by_index).sort(dim=0, descending=True, stable=True)
        self._values = values[: self._k].clone()
        self._indices = indices.gather(0, by_value)[: self._k].clone()


@dataclass(frozen=True)
class IouTable:
    """How far units' masks and labels' masks cover the same pixels, over all images."""

    iou: Float[Tensor, "units labels"]
    """Shared pixels over pixels of either, from 0 to 1; 0 where neither has any."""
    shared: Int[Tensor, "units labels"]
    unit_area: Int[Tensor, "units labels"]
    """Pixels of the unit in the images that count for the label."""
    label_area: Int[Tensor, " labels"]


_EXACT_IN_FLOAT32 = 1 << 24


class PairwiseIou:
    """Intersection over union of each unit with each label (Bau et al. 2017, sec. 2.3), from integer tallies.

    Example:
        >>> pairs = PairwiseIou()
        >>> pairs.add(upsampled > thresholds[:, None, None], masks)
        >>> pairs.value().iou
    """

    def __init__(self) -> None:
        self._shared = torch.zeros(0, 0, dtype=torch.int64)
        self._unit_area = torch.zeros(0, 0, dtype=torch.int64)
        self._label_area = torch.zeros(0, dtype=torch.int64)

    def add(
        self,
        units: Bool[Tensor, "n units *positions"],
        labels: Bool[Tensor, "n labels *positions"],
        counted: Bool[Tensor, "n labels"] | None = None,
    ) -> None:
        """Take in the masks of some images.

        Args:
            units: where each unit is active.
            labels: where each label lies; labels may overlap.
            counted: which images count for which label, as those labelled in the label's category; all by default.

        Raises:
            StreamError: if units or labels are not as many as before.
        """
        unit_pixels, label_pixels = units.flatten(2), labels.flatten(2)
        if counted is None:
            counted = torch.ones(labels.shape[:2], dtype=torch.bool, device=labels.device)
        label_pixels = label_pixels & counted[:, :, None]
        # A sum of zeros and ones is exact in floating point as long as it stays below the mantissa's range.
        dtype = torch.float32 if unit_pixels.shape[2] <= _EXACT_IN_FLOAT32 else torch.float64
        shared = torch.bmm(unit_pixels.to(dtype), label_pixels.to(dtype).mT).long().sum(0)
        area = unit_pixels.sum(2).double().mT @ counted.double()
        self._absorb(shared, area.long(), label_pixels.sum((0, 2)))

    def merge(self, other: "PairwiseIou") -> None:
        """Take in the tallies of other images."""
        if other._shared.numel():
            self._absorb(other._shared, other._unit_area, other._label_area)

    def value(self) -> IouTable:
        """Return the table so far; the accumulator can go on."""
        _require_rows(self._shared.numel())
        union = self._unit_area + self._label_area - self._shared
        iou = self._shared.double() / union.clamp(min=1)
        return IouTable(iou, self._shared.clone(), self._unit_area.clone(), self._label_area.clone())

    def _absorb(self, shared: Tensor, unit_area: Tensor, label_area: Tensor) -> None:
        if not self._shared.numel():
            self._shared, self._unit_area, self._label_area = (
                shared.clone(),
                unit_area.clone(),
                label_area.clone(),
            )
            return
        _require_same("(units, labels)", tuple(self._shared.shape), tuple(shared.shape))
        self._shared += shared.to(self._shared)
        self._unit_area += unit_area.to(self._unit_area)
        self._label_area += label_area.to(self._label_area)


def _by_unit(batch: Tensor) -> Tensor:
    """Return [units, values]: rows and positions together, per unit."""
    return batch.transpose(0, 1).flatten(1)


def _refuse_nan(batch: Tensor) -> None:
    # NaN survives summation: only a sum that is NaN is looked into.
    if batch.sum().isnan() and batch.isnan().any():
        raise StreamError(f"batch of shape {list(batch.shape)} holds {int(batch.isnan().sum())} NaN; NaN has no rank.")


def _count_bad(batch: Tensor) -> int:
    return int((~torch.isfinite(batch)).sum())


def _require_same(what: str, before: object, now: object) -> None:
    if before != now:
        raise StreamError(f"{what} must stay the same, got {now} after {before}.")


def _require_rows(count: int) -> None:
    if not count:
        raise StreamError("nothing was added yet; call add() with at least one row first.")
