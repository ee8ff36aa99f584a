"""Estimators of binary linear classifiers, each solving many small problems at once.

A problem has rows `z_i` (centred and scaled features) with signs `t_i` of +1 or -1, and looks for a
direction `w` and an intercept `b` such that `w·z_i + b` has the sign `t_i`. Every direction here is a
combination of rows, `w = Σ a_i z_i`, so an estimator needs only products of rows with each other: it
is given a `PairSystem` and returns the `a_i`. Losses are means over rows, penalties `penalty/2 ‖w‖²`,
intercepts unpenalised; all arithmetic is float64.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probing.core.errors import ArgumentError
from probing.statistics.pair_systems import PairSystem, less_class_mean

MAX_STEPS = 100
TOLERANCE = 1e-9
AFFORDABLE_ROWS = 1500


@dataclass(frozen=True)
class PairSolution:
    """Directions `Σ a_i z_i` with their intercepts."""

    coefficients: Float[Tensor, "fits s"]
    """The `a_i`."""
    intercepts: Float[Tensor, " fits"]
    certificate: Float[Tensor, " fits"]
    """Distance from the optimum, at least 0 and relative: see the estimator."""


@runtime_checkable
class Estimator(Protocol):
    """A way to tell two sets of rows apart by a direction: hyperparameters that can be called."""

    power: ClassVar[int]
    """Rows enter as features times (standard deviation) ** (power / 2)."""

    def __call__(self, system: PairSystem) -> PairSolution:
        """Solve every problem of the batch."""


@dataclass(frozen=True)
class Logistic:
    """L2-penalised logistic regression, by damped Newton steps.

    The certificate is the length of the objective's gradient over the root mean square length of a
    row. scikit-learn's `LogisticRegression(C=1 / (penalty * rows))` has the same optimum.
    """

    power: ClassVar[int] = -2
    penalty: float = 1e-2

    def __post_init__(self) -> None:
        _check_penalty(self.penalty)

    def __call__(self, system: PairSystem) -> PairSolution:
        count = system.signs.abs().sum(1, keepdim=True)
        size = (1 + _sum(system.lengths()) / count).sqrt()
        alpha, output = torch.zeros_like(system.signs), torch.zeros_like(system.signs)
        intercept, certificate = torch.zeros_like(count), torch.full_like(count, torch.inf)
        for _ in range(MAX_STEPS):
            miss = system.signs * torch.sigmoid(-system.signs * output) / count
            # The gradient is penalty · Σ pull_i z_i along w and -Σ miss_i along b.
            pull = alpha - miss / self.penalty
            pulled = system.times(pull)
            slope = self.penalty**2 * _dot(pull, pulled).clamp_min(0) + _sum(miss).square()
            before, certificate = certificate, slope.sqrt() / size
            # Beyond the tolerance, Newton steps go on for as long as rounding lets them gain.
            gaining = (certificate > TOLERANCE * 1e-4) & (certificate < before / 2)
            active = gaining | (certificate > TOLERANCE)
            if not active.any():
                break
            step, shift = self._newton(system, alpha, output, pull, pulled)
            moved = system.times(step)
            length = active * self._length(system.signs, (alpha, output - intercept, intercept), (step, moved, shift))
            alpha, intercept = alpha + length * step, intercept + length * shift
            output = output + length * (moved + shift)
        return PairSolution(alpha, intercept.squeeze(1), certificate.squeeze(1))

    def _newton(
        self, system: PairSystem, alpha: Tensor, output: Tensor, pull: Tensor, pulled: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the Newton step in `alpha` and in the intercept; it makes `alpha` sum to 0."""
        present = system.signs.abs()
        miss = torch.sigmoid(-system.signs * output)
        weights = miss * (1 - miss) * present / (self.penalty * _sum(present))
        solved = system.inverse(weights)(torch.stack([pulled, present], -1))
        along, flat = solved.unbind(-1)
        along = pull - along
        shift = (_sum(alpha) - _sum(along)) / _sum(flat)
        return -along - shift * flat, shift

    def _length(
        self,
        signs: Tensor,
        point: tuple[Tensor, Tensor, Tensor],
        step: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        """Halve each step until it lowers the objective; points are (alpha, K alpha, intercept)."""
        count = _sum(signs.abs())

        def objective(length: Tensor) -> Tensor:
            alpha, output, intercept = (a + length * d for a, d in zip(point, step, strict=True))
            margin = signs * (output + intercept)
            loss = torch.logaddexp(torch.zeros_like(margin), -margin) * signs.abs()
            return _sum(loss) / count + self.penalty / 2 * _dot(alpha, output)

        length = torch.ones_like(count)
        # Rounding of the objective must not stop the last steps, hence the slack.
        bound = objective(torch.zeros_like(count)) * (1 + 1e-12)
        for _ in range(MAX_STEPS):
            worse = ~(objective(length) <= bound)
            if not worse.any():
                break
            length = torch.where(worse, length / 2, length)
        return length


@dataclass(frozen=True)
class Ridge:
    """Least squares on the signs with an L2 penalty, half the mean square being the loss.

    The certificate is the length of the objective's gradient over the root mean square length of a
    row. scikit-learn's `Ridge(alpha=penalty * rows)` has the same optimum.
    """

    power: ClassVar[int] = -2
    penalty: float = 1e-2

    def __post_init__(self) -> None:
        _check_penalty(self.penalty)

    def __call__(self, system: PairSystem) -> PairSolution:
        present = system.signs.abs()
        count = _sum(present)
        inverse = system.inverse(present / (self.penalty * count))
        full, flat = inverse(torch.stack([system.signs, present], -1)).unbind(-1)
        intercept = _sum(full) / _sum(flat)
        alpha = full - intercept * flat
        left = (system.times(alpha) + intercept - system.signs) * present / count
        pull = left + self.penalty * alpha
        slope = _dot(pull, system.times(pull)).clamp_min(0) + _sum(left).square()
        certificate = slope.sqrt() / (1 + _sum(system.lengths()) / count).sqrt()
        return PairSolution(alpha, intercept.squeeze(1), certificate.squeeze(1))


@dataclass(frozen=True)
class Lda:
    """Linear discriminant analysis, the within-class covariance shrunk to a multiple of the identity.

    `"auto"` is the shrinkage of Ledoit & Wolf (2004, lemma 3.2) of the covariance pooled over both
    classes, where scikit-learn's `LinearDiscriminantAnalysis` shrinks each class on its own; a number
    means the same there. The certificate is the residual of the normal equations, relative to the
    difference of the class means.
    """

    power: ClassVar[int] = -2
    shrinkage: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not (self.shrinkage == "auto" or 0 < self.shrinkage <= 1):
            raise ArgumentError(f"shrinkage must be 'auto' or above 0 and at most 1, got {self.shrinkage!r}.")

    def __call__(self, system: PairSystem) -> PairSolution:
        signs, present = system.signs, system.signs.abs()
        count, within = _sum(present), system.within()
        scatter = _sum(within.lengths())
        shrinkage = self._shrinkage(within, scatter, count)
        floor = shrinkage * scatter / (count * system.features)
        contrast = _contrast(signs)
        inverse = within.inverse(present * (1 - shrinkage) / (floor * count))
        alpha, left = torch.zeros_like(signs), contrast
        for _ in range(2):  # the second round restores the digits that cancelled in the first
            target = less_class_mean(system.times(left).unsqueeze(-1), signs)
            alpha = alpha + (left - inverse(target).squeeze(-1)) / floor
            output = system.times(alpha)
            spread = less_class_mean(output.unsqueeze(-1), signs).squeeze(-1)
            left = contrast - floor * alpha - (1 - shrinkage) / count * spread
        # Equal means make no difference to be relative to, hence the share of a row's own square.
        least = 1e-12 * _sum(system.lengths()) / count
        size = _dot(contrast, system.times(contrast)).clamp_min(0) + least
        certificate = (_dot(left, system.times(left)).clamp_min(0) / size).sqrt()
        odds = _sum((signs > 0).double()) / _sum((signs < 0).double())
        intercept = odds.log() - _dot(output, contrast.abs()) / 2
        return PairSolution(alpha, intercept.squeeze(1), certificate.squeeze(1))

    def _shrinkage(self, within: PairSystem, scatter: Tensor, count: Tensor) -> Tensor:
        if self.shrinkage != "auto":
            return torch.full_like(count, self.shrinkage)
        features = within.features
        fourth = _sum(within.lengths().square()) / count
        square = within.frobenius().unsqueeze(-1) / count**2
        noise = (fourth - square) / (features * count)
        distance = square / features - (scatter / (count * features)).square()
        return (noise / distance).clamp(torch.finfo(noise.dtype).eps, 1)


@dataclass(frozen=True)
class Pattern:
    """Difference of the class means in the features' own units: the direction the concept moves them.

    A classifier's direction also cancels what distracts from the concept; the pattern does not (Haufe
    et al. 2014). The intercept lies half way between the means; the certificate is 0.
    """

    power: ClassVar[int] = 0

    def __call__(self, system: PairSystem) -> PairSolution:
        contrast = _contrast(system.signs)
        middle = -_dot(system.times(contrast), contrast.abs()).squeeze(1) / 2
        return PairSolution(contrast, middle, torch.zeros_like(middle))


@dataclass(frozen=True)
class Hinge:
    """Linear support vector machine: the objective of the original TCAV code, solved to its optimum.

    Kim et al. descend it with `SGDClassifier(alpha=penalty)`, whose answer changes with the seed; here
    it is a predictor-corrector interior-point method on the dual (Mehrotra 1992). The certificate is
    the duality gap over the primal objective. scikit-learn's `SVC(kernel="linear",
    C=1 / (penalty * rows))` has the same optimum.
    """

    power: ClassVar[int] = -2
    penalty: float = 1e-2

    def __post_init__(self) -> None:
        _check_penalty(self.penalty)

    def __call__(self, system: PairSystem) -> PairSolution:
        # Near the optimum weights on rows range over twenty decades, too many for products of
        # features: as long as products of rows can be afforded, those are used.
        if system.signs.shape[1] <= AFFORDABLE_ROWS:
            system = system.squared()
        signs = system.signs
        limit = 1 / (self.penalty * _sum(signs.abs()))
        point = _start(system, limit)
        certificate = torch.full_like(limit, torch.inf)
        for _ in range(MAX_STEPS):
            output = limit * system.times(signs * point.weight)
            certificate = _gap(signs, point, output)
            active = certificate > TOLERANCE
            if not active.any():
                break
            point = _advance(system, point, output, limit, active)
        alpha = limit * signs * point.weight
        return PairSolution(alpha, point.intercept.squeeze(1), certificate.squeeze(1))


@dataclass(frozen=True)
class _Interior:
    """A point of the hinge's dual, or a step from one: rows' weights lie between 0 and 1."""

    weight: Tensor
    room: Tensor
    lower: Tensor
    upper: Tensor
    intercept: Tensor

    def moved(self, step: "_Interior", length: Tensor) -> "_Interior":
        return _Interior(*(a + length * d for a, d in zip(self._all(), step._all(), strict=True)))

    def reach(self, step: "_Interior") -> Tensor:
        """Return the longest step, at most 1, that leaves weights and multipliers at least 0."""
        ratios = [
            torch.where(d < 0, -a / d, torch.inf).amin(1, keepdim=True)
            for a, d in zip(self._all()[:4], step._all()[:4], strict=True)
        ]
        return torch.cat(ratios, 1).amin(1, keepdim=True).clamp_max(1)

    def barrier(self, present: Tensor) -> Tensor:
        """Return the mean product of a weight and its multiplier."""
        products = self.lower * self.weight + self.upper * self.room
        return _sum(present * products) / (2 * _sum(present))

    def _all(self) -> tuple[Tensor, ...]:
        return self.weight, self.room, self.lower, self.upper, self.intercept


def _start(system: PairSystem, limit: Tensor) -> _Interior:
    """Return a feasible point at which no output is much above 1."""
    signs, contrast = system.signs, _contrast(system.signs).abs()
    weight = contrast / contrast.amax(1, keepdim=True) / 2
    margin = limit * signs * system.times(signs * weight)
    shrink = 1 / (1 + margin.abs().amax(1, keepdim=True))
    weight = torch.where(signs == 0, 0.5, weight * shrink)
    excess = margin * shrink - 1
    lower, upper = excess.clamp_min(0) + 1, (-excess).clamp_min(0) + 1
    return _Interior(weight, 1 - weight, lower, upper, torch.zeros_like(limit))


def _gap(signs: Tensor, point: _Interior, output: Tensor) -> Tensor:
    """Return the duality gap over the primal objective."""
    misses = (1 - signs * (output + point.intercept)).clamp_min(0) * signs.abs()
    square = _dot(signs * point.weight, output)
    primal = _sum(misses) + square / 2
    return (_sum(misses) + square - _dot(signs.abs(), point.weight)).clamp_min(0) / primal


def _advance(system: PairSystem, point: _Interior, output: Tensor, limit: Tensor, active: Tensor) -> _Interior:
    """Take one predictor-corrector step in the active problems."""
    signs, present = system.signs, system.signs.abs()
    miss = 1 - signs * (output + point.intercept)
    stiffness = point.lower / point.weight + point.upper / point.room
    inverse = system.inverse(present * limit / stiffness)
    flat = inverse(present.unsqueeze(-1)).squeeze(-1)
    drift = limit * _dot(signs, point.weight)

    def towards(low: Tensor, high: Tensor) -> _Interior:
        """Return the step to weight times multiplier equal to `low` below and `high` above."""
        right = signs * (miss + low / point.weight - high / point.room)
        full = inverse(right.unsqueeze(-1)).squeeze(-1)
        shift = (_sum(full) + drift) / _sum(flat)
        weight = signs * (full - shift * flat) / limit
        lower = (low - point.lower * weight) / point.weight - point.lower
        upper = (high + point.upper * weight) / point.room - point.upper
        return _Interior(weight, -weight, present * lower, present * upper, shift)

    zero = torch.zeros_like(signs)
    guess = towards(zero, zero)
    now = point.barrier(present)
    ahead = point.moved(guess, point.reach(guess)).barrier(present)
    goal = now * (ahead / now) ** 3
    step = towards(goal - guess.weight * guess.lower, goal + guess.weight * guess.upper)
    return point.moved(step, active * (0.99 * point.reach(step)))


def _check_penalty(penalty: float) -> None:
    if not (penalty > 0 and math.isfinite(penalty)):
        raise ArgumentError(f"penalty must be a finite number above 0, got {penalty!r}.")


def _contrast(signs: Tensor) -> Tensor:
    """Return the weights whose sum over rows is the difference of the class means."""
    positive, negative = (signs > 0).to(signs), (signs < 0).to(signs)
    return positive / _sum(positive) - negative / _sum(negative)


def _sum(values: Tensor) -> Tensor:
    return values.sum(1, keepdim=True)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(1, keepdim=True)
