"""Units that separate an attribute's values: matched images differ in them, by a sign found on other clusters."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concepts.data.manifest import Pairs
from probing.core.threads import one_thread
from probing.statistics.hypothesis_tests import clustered_mean, max_t, relabellings

_HELD = 1 << 24
"""Numbers that are held at once for the test, which limits relabellings where there are very many units."""
_ROUNDING = 1e-5

PerUnit = Float[Tensor, "contrasts units"]


@dataclass(frozen=True)
class UnitShifts:
    """By how much contrasts move units, in standard deviations of each unit over all images."""

    fitted: PerUnit
    """Mean difference of matched images, on training clusters."""
    shift: PerUnit
    """The same on held-out clusters, which `fitted` has not seen."""
    low: PerUnit
    high: PerUnit
    """Interval of the shift over clusters, not corrected for the number of units."""
    same_way: PerUnit
    """Share of held-out pairs that move the unit the way `fitted` says (0-1); ties count half."""
    p: PerUnit
    """Of the shift, corrected for all units and contrasts."""
    draws: int
    """Ways to swap clusters that the shift is compared with."""
    exact: bool
    """Whether they are all there are, up to swapping every cluster, which leaves sizes as they are."""

    @property
    def least_p(self) -> float:
        """The smallest p that this number of swaps can give."""
        return 1 / self.draws if self.exact else 1 / (self.draws + 1)

    def significant(self, alpha: float) -> Bool[Tensor, "contrasts units"]:
        """Return where a shift is significant, and goes the way it did on training clusters."""
        return (self.p < alpha) & (self.fitted * self.shift > 0)


@dataclass(frozen=True)
class UnitContrasts:
    """Tests for every unit whether matched images differ in it.

    The test swaps the two sides of all pairs of a cluster at once, the same clusters for all units and contrasts, and
    corrects by the step-down maximum (Westfall & Young 1993, alg. 4.1): a share `alpha` of data in which labels mean
    nothing gives one false unit or more, however many units there are and however alike they are. Holm's correction,
    which does not use their dependence, could find no unit among hundreds with a dozen clusters.

    Attributes:
        relabellings: of clusters; with few clusters all there are, with very many units fewer.
        level: of intervals.
        seed: of the relabellings.
    """

    relabellings: int = 9999
    level: float = 0.95
    seed: int = 0

    def __call__(self, rows: Float[Tensor, "n units"], fit: Sequence[Pairs], judge: Sequence[Pairs]) -> UnitShifts:
        """Compare units over the pairs of contrasts.

        Args:
            rows: each image's units, averaged over positions.
            fit: pairs of each contrast, of training clusters.
            judge: pairs of each contrast, of other clusters.
        """
        with one_thread():
            return self._shifts(rows.double(), fit, judge)

    def _shifts(self, rows: Float[Tensor, "n units"], fit: Sequence[Pairs], judge: Sequence[Pairs]) -> UnitShifts:
        spread = rows.std(0, correction=0)
        # A unit that varies by rounding alone is dead.
        spread = torch.where(spread > _ROUNDING * rows.abs().amax(0), spread, torch.inf)
        names = list(dict.fromkeys(name for pairs in judge for name in pairs.cluster))
        found = [_differences(rows, pairs) / spread for pairs in judge]
        fitted = torch.stack([(_differences(rows, pairs) / spread).mean(0) for pairs in fit])
        where = [torch.tensor([names.index(c) for c in pairs.cluster]) for pairs in judge]
        means = [
            clustered_mean(d, torch.unique(at, return_inverse=True)[1], self.level)
            for d, at in zip(found, where, strict=True)
        ]
        shift = torch.stack([m.mean for m in means])
        swaps = self._swaps(len(names), shift.numel())
        null = [_swapped(d, at, swaps.signs) for d, at in zip(found, where, strict=True)]
        agreeing = [d * way for d, way in zip(found, fitted, strict=True)]
        return UnitShifts(
            fitted=fitted,
            shift=shift,
            low=torch.stack([m.low for m in means]),
            high=torch.stack([m.high for m in means]),
            same_way=torch.stack([((a.sign() + 1) / 2).mean(0) for a in agreeing]),
            p=max_t(shift.abs(), torch.stack(null, 1).abs(), exact=swaps.exact),
            draws=len(swaps.signs),
            exact=swaps.exact,
        )

    def _swaps(self, clusters: int, cells: int) -> "_Swaps":
        count = min(self.relabellings, max(99, _HELD // cells))
        sides, each = torch.arange(2).repeat_interleave(clusters), torch.arange(clusters).repeat(2)
        drawn = relabellings(sides, each, count, self.seed)
        signs = 1 - 2 * drawn.labels[:, :clusters].double()
        # Of all there are, half are the others' opposites, which give shifts of the same size.
        return _Swaps(signs[signs[:, 0] > 0] if drawn.exact else signs, drawn.exact)


@dataclass(frozen=True)
class _Swaps:
    signs: Float[Tensor, "draws clusters"]
    exact: bool


def _differences(rows: Float[Tensor, "n units"], pairs: Pairs) -> Float[Tensor, "pairs units"]:
    return rows[list(pairs.first)] - rows[list(pairs.second)]


def _swapped(
    differences: Float[Tensor, "pairs units"],
    cluster: Int[Tensor, " pairs"],
    signs: Float[Tensor, "draws clusters"],
) -> Float[Tensor, "draws units"]:
    """Return the mean difference under each swap of clusters."""
    total = differences.new_zeros(signs.shape[1], differences.shape[1])
    return signs @ total.index_add_(0, cluster, differences) / len(differences)
