"""Concept activation vectors (Kim et al. 2018): directions in activation space that point to a concept.

A concept is given as rows of a layer's activations, and so is what it is compared with: random
examples, or other concepts. A run fits one CAV and judges it on rows it has not seen. `concepts.tcav.tcav`
does this for whole analyses; here are single concepts, and the sorting of examples by a concept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from concepts.tcav.sampling import Pair, Pairs, Rows
from probing.core.errors import ArgumentError, OutOfRangeError
from probing.statistics.hypothesis_tests import TooFewError, above_chance, rank_sum
from probing.statistics.linear_classifiers import Estimator, PairFits, SharedRows, fit_pairs

LEVEL = 0.05
"""CAVs as accurate as theirs come about by chance with at most this probability, or they mean nothing."""


@dataclass(frozen=True, eq=False)
class Cavs:
    """The CAVs of one concept, one per run, and how well they do on rows held out."""

    fits: PairFits
    """The classifiers; `fits.project` gives the products of gradients with the unit CAVs."""
    held_out: Pairs
    """Rows each run was judged on."""
    trials: int
    """Independent decisions among them: rows or groups, twice those of the side that has fewer."""
    concept_accuracy: Float[Tensor, " runs"]
    """Share of held-out concept rows on the concept's side."""
    other_accuracy: Float[Tensor, " runs"]
    """Share of the other held-out rows on theirs."""

    @property
    def accuracy(self) -> Float[Tensor, " runs"]:
        """Mean of the accuracies of both sides: 0.5 by chance, whatever their sizes."""
        return (self.concept_accuracy + self.other_accuracy) / 2

    @property
    def p_value(self) -> float:
        """Probability that guessing reaches the mean accuracy of the runs, by the binomial test."""
        return float(above_chance(self.accuracy.mean().cpu(), self.trials))

    @property
    def above_chance(self) -> bool:
        """Whether the concept can be separated at all; else its CAVs mean nothing."""
        return self.p_value < LEVEL

    @cached_property
    def stability(self) -> float:
        """Mean cosine between two runs' CAVs; below 0.2 the rows do not identify a direction."""
        return self.fits.mean_cosine()


def fit_cavs(
    rows: SharedRows,
    concept: Int[Tensor, " p"],
    others: Int[Tensor, "runs q"],
    estimator: Estimator,
    *,
    seed: int,
    holdout: float = 1 / 3,
    groups: Sequence[str] = (),
) -> Cavs:
    """Fit a CAV of a concept against each set of other rows, and judge it on rows held out.

    As in the original code a CAV is fitted on two thirds of the rows and judged on the rest. Unlike
    there, the larger set is cut to the size of the smaller by a draw, not to its first rows, and what
    is held out is held out of both sides: a row in both sets is never fitted on and judged on.

    Args:
        rows: activations of all examples.
        concept: row indices of the concept.
        others: row indices of what it is compared with in each run; -1 holds the place of none.
        estimator: one of `probing.statistics.linear_classifiers.ESTIMATORS`.
        seed: of the draws and splits.
        holdout: share of rows, or of groups, to judge on (0-1).
        groups: a label for each row of the table, such as who is depicted: rows with equal labels are
            held out together. Each row is its own group by default.

    Raises:
        TooFewError: if a side has too few rows or groups to fit and to judge.
        IndexError: if an index names no row.

    Example:
        >>> cavs = fit_cavs(SharedRows(activations), striped, randoms, Logistic(), seed=0)
        >>> cavs.above_chance, cavs.stability
    """
    if not 0 < holdout < 1:
        raise ArgumentError(f"holdout must lie between 0 and 1, got {holdout}.")
    labels = _labels(groups, len(rows))
    rng = np.random.default_rng(seed)
    positive = _rows(concept, len(rows))
    runs = [_split(positive, negative[negative >= 0], labels, holdout, rng) for negative in _rows(others, len(rows))]
    fit, held_out = Pairs.of([run[0] for run in runs]), Pairs.of([run[1] for run in runs])
    fits = fit_pairs(rows, fit.positive, fit.negative, estimator)
    judged = (np.concatenate(side) for side in zip(*(run[1] for run in runs), strict=True))
    trials = 2 * min(len(np.unique(labels[side])) for side in judged)
    accuracy = fits.accuracy(held_out.positive, held_out.negative)
    return Cavs(fits, held_out, trials, *accuracy)


def fit_pool_cav(rows: SharedRows, concept: Int[Tensor, " p"], pool: Int[Tensor, " q"], estimator: Estimator) -> PairFits:
    """Fit one CAV on all of a concept and all of a pool, whose variance falls with the pool's size.

    It has no accuracy: nothing is held out, and the sides differ in size.
    """
    return fit_pairs(rows, concept.unsqueeze(0), pool.unsqueeze(0), estimator)


def against_union(competitors: Sequence[Int[Tensor, " _"]], runs: int) -> Int[Tensor, "runs q"]:
    """Return what a relative CAV one-versus-rest is compared with: all rows of all competitors.

    Runs differ by what `fit_cavs` draws of them.
    """
    rows = np.unique(torch.cat(list(competitors)).cpu().numpy())
    return torch.from_numpy(rows).expand(runs, -1)


def against_each(competitors: Sequence[Int[Tensor, " _"]]) -> Int[Tensor, "runs q"]:
    """Return what pairwise relative CAVs are compared with: a competing concept in each run."""
    return torch.nn.utils.rnn.pad_sequence(list(competitors), batch_first=True, padding_value=-1)


def mean_difference(
    features: Float[Tensor, "n m"], positive: Int[Tensor, " p"], negative: Int[Tensor, " q"]
) -> Float[Tensor, " m"]:
    """Return the mean of the positive less that of the negative rows, in the features' units.

    The pattern CAV in its natural length: what to add to a typical negative for a typical positive.
    """
    for side, index in (("positive", positive), ("negative", negative)):
        if not len(index):
            raise TooFewError(f"a mean needs a {side} row or more, got none.")
    sides = [features[index].mean(0, dtype=torch.float64) for index in (positive, negative)]
    return (sides[0] - sides[1]).to(features.dtype)


@dataclass(frozen=True, eq=False)
class Sorting:
    """Examples by their similarity to a concept."""

    order: Int[Tensor, " k"]
    """The examples, most similar first."""
    cosine: Float[Tensor, " k"]
    """Cosine of each example's activations with the CAV, the mean over runs (-1 to 1)."""
    distance: Float[Tensor, " k"]
    """Distance from the CAV's border, in units of activation, above 0 on the concept's side; likewise."""
    agreement: float
    """Kendall's W of the runs' rankings by cosine (0-1); NaN for one run."""
    auroc: float
    """Probability that an example of the concept ranks above one without; NaN without labels."""


def sort_by_concept(
    features: Float[Tensor, "k m"],
    cavs: Cavs | PairFits,
    labels: Bool[Tensor, " k"] | None = None,
) -> Sorting:
    """Rank examples by the cosine of their activations with a concept's CAVs (Kim et al. 2018, sec. 4.2.1).

    Args:
        features: activations of the examples, in the layer the CAVs are of.
        cavs: of one concept.
        labels: which examples show the concept, to judge the ranking by.

    Raises:
        TooFewError: if labels are given and all alike.

    Example:
        >>> sorting = sort_by_concept(activations, cavs)
        >>> most, least = sorting.order[:5], sorting.order[-5:]
    """
    fits = cavs.fits if isinstance(cavs, Cavs) else cavs
    cosine, distance = similarity(features, fits)
    mean = cosine.mean(0)
    return Sorting(
        order=mean.argsort(descending=True, stable=True),
        cosine=mean,
        distance=distance.mean(0),
        agreement=kendall_w(cosine) if len(cosine) > 1 else nan,
        auroc=nan if labels is None else rank_sum(mean[labels], mean[~labels]).superiority,
    )


def similarity(features: Float[Tensor, "k m"], fits: PairFits) -> tuple[Float[Tensor, "fits k"], Float[Tensor, "fits k"]]:
    """Return cosines of activations with each CAV, and distances from its border.

    Activations without length have cosine 0, as has everything with a CAV that has no direction.
    """
    lengths = torch.linalg.vector_norm(features, dim=1, dtype=torch.float64)
    cosine = fits.project(features) / torch.where(lengths > 0, lengths, 1)
    norms = torch.where(fits.norms > 0, fits.norms, torch.inf).unsqueeze(1)
    return cosine, fits.decision(features) / norms


def kendall_w(scores: Float[Tensor, "raters k"]) -> float:
    """Return Kendall's coefficient of concordance with tied ranks averaged (Kendall & Smith 1939).

    1 if all rankings are the same, about 1 / raters if they are unrelated; NaN if each is one tie.

    Raises:
        TooFewError: if there are fewer than two raters or items.
    """
    raters, items = scores.shape
    if raters < 2 or items < 2:
        raise TooFewError(f"agreement needs 2 rankings of 2 examples or more, got {raters} of {items}.")
    ranks = stats.rankdata(scores.cpu().numpy(), axis=1) - (items + 1) / 2
    spread = float(np.square(ranks).sum())
    return float(np.square(ranks.sum(0)).sum()) / (raters * spread) if spread else nan


def _labels(groups: Sequence[str], count: int) -> Rows:
    if not groups:
        return np.arange(count)
    if len(groups) != count:
        raise ArgumentError(f"groups must label each of the {count} rows, got {len(groups)} labels.")
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def _rows(index: Tensor, count: int) -> Rows:
    rows: Rows = index.cpu().numpy()
    if rows.size and not (rows.min() >= -1 and rows.max() < count):
        raise OutOfRangeError(f"rows must be indices from 0 to {count - 1}, got {rows.min()} to {rows.max()}.")
    return rows


def _split(concept: Rows, others: Rows, labels: Rows, holdout: float, rng: np.random.Generator) -> tuple[Pair, Pair]:
    """Draw as many rows of each side; return those to fit on and those held out, by whole groups."""
    size = min(len(concept), len(others))
    sides = [np.sort(rng.permutation(side)[:size]) for side in (concept, others)]
    own, theirs = (np.unique(labels[side]) for side in sides)
    both = np.intersect1d(own, theirs)
    strata = (both, np.setdiff1d(own, both), np.setdiff1d(theirs, both))
    held = np.concatenate([rng.permutation(s)[: round(holdout * len(s))] for s in strata])
    out = [np.isin(labels[side], held) for side in sides]
    for name, mask in zip(("the concept", "the other side"), out, strict=True):
        if mask.sum() < 1 or (~mask).sum() < 2:
            raise TooFewError(
                f"a CAV is fitted on 2 rows or more of a side and judged on others, got {(~mask).sum()} "
                f"and {mask.sum()} of {name}: give more rows or groups."
            )
    fit, judge = ([s[m == flag] for s, m in zip(sides, out, strict=True)] for flag in (False, True))
    return (fit[0], fit[1]), (judge[0], judge[1])
