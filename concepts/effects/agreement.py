"""How far predicted effects follow measured swaps, when the two come from different clusters.

If effect and swap were taken from the same drawings, what is peculiar to those would move both, and they would agree
more than the model makes them. So clusters are divided at random into halves, the difference of means comes from one,
inputs and swaps from the other, and the correlation over targets is taken; many divisions take out the luck of one.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from probing.statistics.hypothesis_tests import pearson, percentile_interval

_MIDDLE = 0.95


@dataclass(frozen=True)
class Agreement:
    """Correlation of predicted effect and measured swap over targets: the median over divisions of the clusters.

    None where there are too few targets or clusters for it.
    """

    r: float | None = None
    low: float | None = None
    high: float | None = None
    """Fisher's interval, which takes targets as independent."""
    least: float | None = None
    most: float | None = None
    """The middle 95 % of the divisions."""


def agreement(
    effects: Float[Tensor, "targets clusters clusters"],
    swaps: Float[Tensor, "clusters targets"],
    divisions: int,
    level: float,
    seed: int,
) -> Agreement:
    """Return the agreement over random divisions of the clusters into halves.

    Args:
        effects: of the second cluster's difference of means at the inputs of the first; NaN where it has no inputs.
        swaps: measured on each cluster.
        divisions: how many.
        level: of the interval.
        seed: of the divisions.
    """
    count, targets = swaps.shape
    if count < 4 or targets < 4:
        return Agreement()
    rng, found = np.random.default_rng(seed), []
    for _ in range(divisions):
        order = torch.from_numpy(rng.permutation(count))
        fit, judge = order[: count // 2], order[count // 2 :]
        found.append(pearson(effects[:, judge][:, :, fit].nanmean((1, 2)), swaps[judge].mean(0)).r)
    values = torch.tensor(found, dtype=torch.float64)
    r = float(values.median())
    if math.isnan(r):
        return Agreement()
    low, high = _fisher(r, targets, level)
    least, most = (float(x) for x in percentile_interval(values, _MIDDLE))
    return Agreement(r, low, high, least, most)


def _fisher(r: float, n: int, level: float) -> tuple[float, float]:
    """Return the bounds of Fisher's z interval of a correlation over n pairs."""
    centre = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, r)))
    half = float(stats.norm.ppf((1 + level) / 2)) / math.sqrt(n - 3)
    return math.tanh(centre - half), math.tanh(centre + half)
