"""How a CAV's sensitivities would vary over other examples of the same sets, in closed form, and scores made of that.

A CAV is fitted on a sample, so that every sensitivity has a standard error. With it the smooth score of α-TCAV (Schnoor et
al. 2026, arXiv:2605.15688) needs no temperature that is chosen by hand: each input votes with the probability, under a flat
prior, that its sensitivity along the CAV of all such examples is above 0. And what score another sample would give, and
how it would vary, follows without fitting a second CAV.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.core.errors import ArgumentError
from probing.statistics.estimators import Pattern, Ridge
from probing.statistics.hypothesis_tests import TooFewError
from probing.statistics.linear_classifiers import SharedRows, fit_pairs

_NODES = 48
"""Of the integral that correlates two votes; it is smooth."""


@dataclass(frozen=True, eq=False)
class Sensitivities:
    """Sensitivities along a CAV of natural length, and how they vary together over samples of the examples.

    Normal by the central limit theorem: exactly for the pattern CAV of Gaussian rows.
    """

    mean: Float[Tensor, " inputs"]
    """Along the CAV as fitted; score units for the pattern CAV, in which it is the effect of each input."""
    covariance: Float[Tensor, "inputs inputs"]

    @property
    def error(self) -> Float[Tensor, " inputs"]:
        """Standard error of each sensitivity."""
        return self.covariance.diagonal().clamp(min=0).sqrt()

    @property
    def calibrated(self) -> float:
        """Mean over inputs of the probability that the sensitivity is above 0 (0-1).

        It is what the sign score would be on average over other samples, if this sample's CAV were that of all examples.
        """
        return self.expected(0.0)

    def expected(self, temperature: float) -> float:
        """Return the mean, over samples, of the score with votes `Φ(sensitivity / temperature)`; at 0 of the sign score.

        Args:
            temperature: in units of the sensitivities.
        """
        return float(torch.special.ndtr(self._scaled(temperature)[0]).mean())

    def spread(self, temperature: float) -> float:
        """Return the standard deviation of that score over samples.

        At temperature 0 it need not fall with more examples where sensitivities are near 0: signs stay coins.
        """
        scaled, correlation = self._scaled(temperature)
        # Votes of two inputs are both positive with a bivariate normal probability, whose excess over the product is an
        # integral over the angle whose sine is the correlation (Plackett 1954).
        at, weights = np.polynomial.legendre.leggauss(_NODES)
        top = correlation.clamp(-1, 1).asin()
        first, second = scaled[:, None], scaled[None]
        total = torch.zeros_like(top)
        for node, weight in zip(at, weights, strict=True):
            angle = top * (node + 1) / 2
            power = (first.square() + second.square() - 2 * first * second * angle.sin()) / (2 * angle.cos().square())
            total += weight * (-power).exp()
        return math.sqrt(max(0.0, float((total * top / 2).mean()) / (2 * math.pi)))

    def _scaled(self, temperature: float) -> tuple[Float[Tensor, " inputs"], Float[Tensor, "inputs inputs"]]:
        """Return means in units of what they and the votes spread by, and the correlations at that scale."""
        if temperature < 0:
            raise ArgumentError(f"temperature must be 0 or more, got {temperature}.")
        width = (self.error.square() + temperature**2).sqrt()
        sure = width == 0  # a sensitivity that no sample changes votes with its sign
        wide = torch.where(sure, 1, width)
        scaled = torch.where(sure, self.mean.sign() * torch.inf, self.mean / wide).nan_to_num(0.0, 40.0, -40.0)
        return scaled, self.covariance / wide[:, None] / wide


def cav_sensitivities(
    rows: SharedRows | Float[Tensor, "n m"],
    positive: Int[Tensor, " p"],
    negative: Int[Tensor, " q"],
    gradients: Float[Tensor, "inputs m"],
    estimator: Pattern | Ridge,
) -> Sensitivities:
    """Return sensitivities along one CAV and their covariance over independent examples.

    The pattern CAV is a difference of means, whose covariance is the sum of the sides'. FastCAV (Schmalwasser et al. 2025)
    points the same way: the mean of the concept less that of all rows is the pattern times the counterparts' share, so that
    every score here is the same for both. The ridge CAV solves an estimating equation; its covariance is that of the
    equation's terms between two inverses (Huber 1967), right to first order, as where examples outnumber the directions
    that the penalty leaves free.

    Args:
        rows: of all examples; a matrix is centred and scaled over all its rows. The ridge CAV is that of scaled rows.
        positive: rows of the concept.
        negative: rows of its counterparts.
        gradients: of the score at each input, in the features' own units.
        estimator: `Pattern` or `Ridge`.

    Raises:
        TooFewError: for fewer than two rows on a side.

    Example:
        >>> found = cav_sensitivities(rows, striped, randoms, gradients, Pattern())
        >>> found.calibrated, found.spread(0.0)
    """
    for side, index in (("positive", positive), ("negative", negative)):
        if len(index) < 2:
            raise TooFewError(f"a standard error takes 2 {side} rows or more, got {len(index)}.")
    shared = rows if isinstance(rows, SharedRows) else SharedRows(rows)
    index = torch.cat([positive, negative])
    own = shared.features[index].double()
    sides = (slice(0, len(positive)), slice(len(positive), None))
    slopes = gradients.double()
    if isinstance(estimator, Pattern):
        terms = own @ slopes.mT
        mean = terms[sides[0]].mean(0) - terms[sides[1]].mean(0)
        parts = [_covariance(terms[side]) / len(terms[side]) for side in sides]
        return Sensitivities(mean, parts[0] + parts[1])
    fits = fit_pairs(shared, positive[None], negative[None], estimator)
    scale = shared.scale.double()
    centred = (own - own.mean(0)) / scale
    n = len(index)
    left = torch.where(torch.arange(n) < len(positive), 1.0, -1.0) - fits.decision_at(index[None])[0].cpu()
    mean = fits.project(gradients)[0] * fits.norms[0]
    solved = _solved(centred, slopes / scale, estimator.penalty)
    terms = left[:, None] * (centred @ solved)
    covariance = sum((_covariance(terms[side]) * len(terms[side]) for side in sides), torch.zeros(()))
    return Sensitivities(mean.double(), covariance / n**2)


def _covariance(terms: Float[Tensor, "n inputs"]) -> Float[Tensor, "inputs inputs"]:
    moved = terms - terms.mean(0)
    return moved.mT @ moved / (len(terms) - 1)


def _solved(centred: Float[Tensor, "n m"], slopes: Float[Tensor, "inputs m"], penalty: float) -> Float[Tensor, "m inputs"]:
    """Return the inverse of the rows' mean square plus the penalty, times slopes; on the side that is smaller."""
    n, m = centred.shape
    if m <= n:
        found: Tensor = torch.linalg.solve(centred.mT @ centred / n + penalty * torch.eye(m).double(), slopes.mT)
        return found
    inner: Tensor = torch.linalg.solve(centred @ centred.mT + n * penalty * torch.eye(n).double(), centred @ slopes.mT)
    return (slopes.mT - centred.mT @ inner) / penalty
