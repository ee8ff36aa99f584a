"""Multinomial logistic regression for many labels and penalties at once, by preconditioned L-BFGS.

A problem has rows `z_i` (standardised features) with classes `y_i`, and looks for weights `W` and intercepts `b` that
minimise the mean of `-log softmax(W z_i + b)[y_i]` plus `penalty/2 ‖W‖²`; intercepts are free. It is convex, so the
length of the gradient certifies the answer.

What makes it fast: quasi-Newton steps start from the inverse of `a Cov + penalty I`, the Hessian at equal
probabilities, through one eigendecomposition of the rows' covariance that all fits share (whitening); outputs are
linear along a step, so a line search passes over no rows; and fits walk side by side, since a product of the rows with
a hundred columns costs little more than one with ten.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.probes.feature_tables import Rows

MEMORY = 12
"""Steps that L-BFGS remembers."""
WIDEST_WHITENED = 2048
"""With more features the decomposition of their covariance would cost more than the steps it saves."""
FLATTER = 0.2
"""A line search ends where the slope has fallen to this share of the first."""
SEARCHES = 20
_ABSENT = 1e-13
TOGETHER = 1 << 20
"""Outputs (rows times classes) of the fits that walk side by side: bounds memory."""


@dataclass(frozen=True)
class SoftmaxFits:
    """Fitted weights on standardised rows, for each set of labels at each penalty."""

    penalties: tuple[float, ...]
    weights: Float[Tensor, "labellings penalties classes features"]
    intercepts: Float[Tensor, "labellings penalties classes"]
    certificate: Float[Tensor, "labellings penalties"]
    """Largest entry of the objective's gradient in size; 0 at the optimum."""
    loss: Float[Tensor, "labellings penalties"]
    """Mean cross-entropy over the rows that were fitted, in nats, without the penalty."""
    steps: Int[Tensor, "labellings penalties"]


def fit_softmax(
    rows: Rows,
    labels: Int[Tensor, "labellings n"],
    classes: int,
    penalties: Sequence[float],
    *,
    tolerance: float = 1e-6,
    max_steps: int = 300,
) -> SoftmaxFits:
    """Fit each set of labels at each penalty.

    Fits that are too many to walk together go from the strongest penalty to the weakest and start where the stronger
    ones ended.

    Args:
        rows: what all fits share.
        labels: of the rows; classes from 0.
        classes: how many there are.
        penalties: on the mean loss.
        tolerance: largest entry of the gradient at which a fit ends.
        max_steps: of a fit; one that ends by it says so by its certificate.

    Example:
        >>> fits = fit_softmax(TableRows.of(features), labels[None], 10, [1e-3])
        >>> float(fits.certificate)
    """
    whitening = Whitening.of(rows)
    order = sorted(range(len(penalties)), key=lambda i: -penalties[i])
    side = max(1, TOGETHER // (labels.numel() * classes))
    start = _Point.origin(rows, labels, classes)
    found: dict[int, _Fitted] = {}
    for first in range(0, len(order), side):
        chunk = order[first : first + side]
        strengths = rows.zeros(len(labels), len(chunk)) + rows.zeros(1).new_tensor([penalties[i] for i in chunk])
        several = _Point(*(part.repeat_interleave(len(chunk), 0) for part in start))
        fitted = _minimise(rows, whitening, several, strengths.flatten(), tolerance, max_steps)
        shaped = _Fitted(*(part.view(*strengths.shape, *part.shape[1:]) for part in fitted))
        found |= {i: _Fitted(*(part[:, k] for part in shaped)) for k, i in enumerate(chunk)}
        last = found[chunk[-1]]
        start = _Point(labels, last.known, last.outputs)
    columns = [found[i] for i in range(len(penalties))]
    known, _, certificate, loss, steps = (torch.stack(p, 1) for p in zip(*columns, strict=True))
    weights, intercepts = known[..., :-1].contiguous(), known[..., -1].contiguous()
    return SoftmaxFits(tuple(penalties), weights, intercepts, certificate, loss, steps)


class _Point(NamedTuple):
    """Where a batch of fits stands."""

    labels: Tensor
    known: Tensor
    """Weights with intercepts in the last column, [fits, classes, features + 1]."""
    outputs: Tensor
    """[fits, classes, n]."""

    @classmethod
    def origin(cls, rows: Rows, labels: Tensor, classes: int) -> "_Point":
        """Start from the classes' shares; one that is absent gets no probability, and keeps none."""
        fits, n = labels.shape
        ones = rows.zeros(1, 1).add(1).expand(fits, n)
        counts = rows.zeros(fits, classes).scatter_add_(1, labels, ones)
        known = rows.zeros(fits, classes, rows.features + 1)
        known[:, :, -1] = (counts / n).clamp_min(_ABSENT).log()
        return cls(labels, known, rows.zeros(fits, classes, n) + known[:, :, -1:])

    def select(self, where: Tensor) -> "_Point":
        return _Point(*(part[where] for part in self))


class _Fitted(NamedTuple):
    known: Tensor
    outputs: Tensor
    certificate: Tensor
    loss: Tensor
    steps: Tensor


def _minimise(rows: Rows, whitening: "Whitening", point: _Point, penalty: Tensor, tolerance: float, limit: int) -> _Fitted:
    """Walk fits down together; those that have arrived stay behind."""
    ended = _Point(*(part.clone() for part in point))
    certificate = torch.full(penalty.shape, torch.inf, dtype=torch.float64, device=penalty.device)
    steps = torch.zeros_like(penalty, dtype=torch.long)
    going, history = torch.arange(len(penalty), device=penalty.device), _History()
    errors = _errors(point.outputs, point.labels)
    slope = _gradient(rows, point, errors, penalty)
    for step in range(limit + 1):
        size = slope.abs().amax((1, 2))
        steps[going], certificate[going] = step, size.double()
        stay = (size > tolerance) & size.isfinite() & (step < limit)
        if not stay.all():
            for whole, part in zip(ended, point.select(~stay), strict=True):
                whole[going[~stay]] = part
            if not stay.any():
                break
            point, slope, history = point.select(stay), slope[stay], history.select(stay)
            going, errors, penalty = going[stay], errors[stay], penalty[stay]
        direction = history.direction(slope, whitening.inverse(point, errors, penalty))
        change = rows.outputs(direction[:, :, :-1].contiguous()) + direction[:, :, -1:]
        length, errors = _search(point, change, direction, slope, penalty)
        factor = length[:, None, None]
        taken = factor * direction
        point = _Point(point.labels, point.known + taken, point.outputs.addcmul(factor, change))
        ahead = _gradient(rows, point, errors, penalty)
        history.add(taken, ahead - slope)
        slope = ahead
    loss = cross_entropy(ended.outputs, ended.labels)
    return _Fitted(ended.known, ended.outputs, certificate, loss, steps)


def cross_entropy(outputs: Float[Tensor, "fits classes n"], labels: Int[Tensor, "fits n"]) -> Float[Tensor, " fits"]:
    """Return the mean of `-log softmax(outputs)[label]`, in nats."""
    chosen = outputs.gather(1, labels.unsqueeze(1)).squeeze(1)
    return (outputs.logsumexp(1) - chosen).double().mean(1)


def _errors(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return probability less truth, [fits, classes, n]."""
    raised = (outputs - outputs.amax(1, keepdim=True)).exp_()
    raised /= raised.sum(1, keepdim=True)
    index = labels.unsqueeze(1)
    return raised.scatter_add_(1, index, raised.new_full((1, 1, 1), -1).expand_as(index))


def _gradient(rows: Rows, point: _Point, errors: Tensor, penalty: Tensor) -> Tensor:
    slope = point.known * penalty[:, None, None]
    slope[:, :, :-1] += rows.pull(errors).div_(rows.count)
    slope[:, :, -1] = errors.mean(2)
    return slope


def _search(point: _Point, change: Tensor, direction: Tensor, slope: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """Return step lengths at which the objective is nearly flat along its direction, and the errors there.

    A convex function's slope rises along a line: Newton steps on it, kept between lengths that are known to be too
    short and too long, find its zero.
    """
    n = change.shape[2]
    weights = direction[:, :, :-1]
    along = penalty * (point.known[:, :, :-1] * weights).sum((1, 2))
    square = penalty * weights.square().sum((1, 2))
    first = _dot(slope, direction)
    length = torch.ones_like(first)
    low, high = torch.zeros_like(first), torch.full_like(first, torch.inf)
    errors = change
    for _ in range(SEARCHES):
        errors = _errors(point.outputs.addcmul(length[:, None, None], change), point.labels)
        product = errors * change
        found = product.sum((1, 2)) / n + along + length * square
        far = found.abs() > FLATTER * first.abs()
        if not far.any():
            break
        low, high = torch.where(found < 0, length, low), torch.where(found > 0, length, high)
        bend = _variance(product, change, point.labels) / n + square
        newton = length - found / bend.clamp_min(torch.finfo(bend.dtype).tiny)
        middle = torch.where(high.isinf(), 4 * length, (low + high) / 2)
        inside = (newton > low) & (newton < high) & (newton < 10 * length)
        length = torch.where(far, torch.where(inside, newton, middle), length)
    return length, errors


def _variance(product: Tensor, change: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over rows of the variance of the change under the probabilities."""
    true = change.gather(1, labels.unsqueeze(1))
    mean = product.sum(1, keepdim=True) + true
    return (product * change).sum((1, 2)) + (true.square() - mean.square()).sum((1, 2))


@dataclass(frozen=True)
class Whitening:
    """The rows' covariance, as directions and the variance along each; None where it is not worth its cost."""

    directions: Float[Tensor, "m m"] | None
    variances: Float[Tensor, " m"] | None

    @classmethod
    def of(cls, rows: Rows) -> "Whitening":
        """Decompose the covariance of standardised rows."""
        if rows.features > WIDEST_WHITENED:
            return cls(None, None)
        variances, directions = torch.linalg.eigh(rows.gram() / rows.count)
        return cls(directions, variances.clamp_min(0))

    def inverse(self, point: _Point, errors: Tensor, penalty: Tensor) -> "_Inverse":
        """Return the inverse of `scale Cov + penalty I`, with the scale that fits' probabilities give to rows.

        It is the trace of `diag(p) - p pᵀ` over one less than the classes: 1/classes where all are equal.
        """
        true = errors.gather(1, point.labels.unsqueeze(1)).squeeze(1)
        squares = errors.square().sum(1) + 1 + 2 * true  # Σ p², p being the error plus the truth
        classes = errors.shape[1]
        scale = ((1 - squares).mean(1) / (classes - 1)).clamp_min(1e-3 / classes)
        if self.variances is None:
            return _Inverse(None, 1 / (scale + penalty)[:, None, None], 1 / scale)
        weight = 1 / (scale[:, None] * (self.variances + 1e-6) + penalty[:, None])
        return _Inverse(self.directions, weight.unsqueeze(1), 1 / scale)


class _Inverse(NamedTuple):
    directions: Tensor | None
    weight: Tensor
    for_intercepts: Tensor

    def __call__(self, known: Tensor) -> Tensor:
        result = known * self.for_intercepts[:, None, None]
        if self.directions is None:
            result[:, :, :-1] = self.weight * known[:, :, :-1]
        else:
            turned = known[:, :, :-1] @ self.directions
            result[:, :, :-1] = turned.mul_(self.weight) @ self.directions.mT
        return result


class _History:
    """Steps and changes of the gradient, from which L-BFGS makes directions (Nocedal & Wright 2006, alg. 7.4)."""

    def __init__(self) -> None:
        self._known: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)

    def add(self, step: Tensor, change: Tensor) -> None:
        bend = _dot(step, change)
        inverse = torch.where(bend > torch.finfo(bend.dtype).tiny, 1 / bend, 0)
        self._known.append((step, change, inverse))

    def select(self, where: Tensor) -> "_History":
        kept = _History()
        kept._known.extend((s[where], c[where], i[where]) for s, c, i in self._known)
        return kept

    def direction(self, slope: Tensor, inverse: _Inverse) -> Tensor:
        rest = slope.clone()
        shares = []
        for step, change, weight in reversed(self._known):
            shares.append(weight * _dot(step, rest))
            rest.addcmul_(shares[-1][:, None, None], change, value=-1)
        rest = inverse(rest)
        for step, change, weight in self._known:
            rest.addcmul_((shares.pop() - weight * _dot(change, rest))[:, None, None], step)
        return rest.neg_()


def _dot(left: Tensor, right: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(left.flatten(1), right.flatten(1))
    return product
