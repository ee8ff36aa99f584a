"""Means over examples that are not independent, shares with honest intervals, and corrected p-values.

Numbers are computed in float64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

_RELATIVE_TIE = 1e-9


def holm(p: Float[Tensor, "*cells"]) -> Float[Tensor, "*cells"]:
    """Return p-values corrected for testing all cells (Holm 1979); NaN marks a cell that was not tested."""
    flat = p.double().flatten()
    tested = ~flat.isnan()
    values, order = flat[tested].sort()
    factors = torch.arange(len(values), 0, -1, dtype=torch.float64)
    stepped = (values * factors).cummax(0).values.clamp(max=1) if len(values) else values
    corrected = torch.empty_like(values)
    corrected[order] = stepped
    result = flat.clone()
    result[tested] = corrected
    return result.reshape(p.shape)


@dataclass(frozen=True)
class ClusteredMean:
    """A mean over examples that come in clusters, its t interval over clusters, and its p against zero."""

    mean: Float[Tensor, "*cells"]
    low: Float[Tensor, "*cells"]
    high: Float[Tensor, "*cells"]
    p: Float[Tensor, "*cells"]
    clusters: int


def clustered_mean(values: Float[Tensor, "n *cells"], clusters: Int[Tensor, " n"], level: float) -> ClusteredMean:
    """Return the mean over examples with an interval that treats clusters, not examples, as independent.

    The standard error is the cluster-robust one (Liang & Zeger 1986) with `clusters - 1` degrees of freedom; with one
    example in each cluster, or equally many, it is the t interval over cluster means. With one cluster it is unknown
    (NaN).
    """
    values = values.double()
    size = int(clusters.max()) + 1
    mean = values.mean(0)
    residuals = torch.zeros(size, *mean.shape, dtype=torch.float64).index_add_(0, clusters, values - mean)
    if size < 2:
        unknown = torch.full_like(mean, torch.nan)
        return ClusteredMean(mean, unknown, unknown.clone(), unknown.clone(), size)
    error = (residuals.square().sum(0) * size / (size - 1)).sqrt() / len(values)
    half = error * float(stats.t.ppf((1 + level) / 2, size - 1))
    return ClusteredMean(mean, mean - half, mean + half, two_sided(mean, error, size - 1), size)


def two_sided(difference: Float[Tensor, "*cells"], error: Float[Tensor, "*cells"], freedom: int) -> Float[Tensor, "*cells"]:
    """Return p of a t statistic; a difference without any error is certain, and none without any is no evidence.

    NaN where difference or error is no finite number.
    """
    noise = _RELATIVE_TIE * difference.abs().clamp(max=1)
    t = torch.where(error > noise, difference / error, torch.where(difference.abs() > 1e-12, torch.inf, 0.0))
    t = torch.where(difference.isfinite() & error.isfinite(), t, torch.nan)
    return torch.as_tensor(2 * stats.t.sf(t.abs().numpy(), freedom), dtype=torch.float64).reshape(difference.shape)


@dataclass(frozen=True)
class ClusteredShare:
    """A share of examples with its score interval over clusters."""

    share: Float[Tensor, "*cells"]
    low: Float[Tensor, "*cells"]
    high: Float[Tensor, "*cells"]
    clusters: int


def clustered_share(hits: Float[Tensor, "n *cells"], clusters: Int[Tensor, " n"], level: float) -> ClusteredShare:
    """Return the share of examples that are hits, with Wilson's interval at the number of examples it is worth.

    That number is `share (1 - share)` over the squared cluster-robust error, at most the examples there are (Korn &
    Graubard 1998 for the Clopper-Pearson interval); where every example is a hit, or none, clusters are all that is
    known, and each counts once. Unlike `clustered_mean` it is no point there, and stays between 0 and 1.
    """
    found = clustered_mean(hits, clusters, level)
    share, n = found.mean, len(hits)
    if found.clusters < 2:
        return ClusteredShare(share, found.low, found.high, found.clusters)
    quantile = float(stats.t.ppf((1 + level) / 2, found.clusters - 1))
    error = (found.high - found.low) / (2 * quantile)
    worth = share * (1 - share) / error.square()
    worth = torch.where(worth.isfinite() & (worth > 0), worth.clamp(max=n), found.clusters)
    half = quantile * (share * (1 - share) / worth + quantile**2 / (4 * worth.square())).sqrt()
    shrunk, width = share + quantile**2 / (2 * worth), 1 + quantile**2 / worth
    low, high = (shrunk - half) / width, (shrunk + half) / width
    return ClusteredShare(share, low.clamp(0, 1), high.clamp(0, 1), found.clusters)
