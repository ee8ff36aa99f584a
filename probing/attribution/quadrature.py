"""Integrals of gradients along straight paths: fixed rules, random points, and intervals halved where needed."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.attribution.score_passes import Passes
from probing.core.inputs import InputError
from probing.core.progress import Progress

Quadrature = Literal["left", "right", "midpoint", "trapezoid", "gauss_legendre", "mc"]

_FIRST_STEPS, _MOST_STEPS = 25, 1600


@dataclass(frozen=True)
class PathSum:
    """A weighted mean over points of (end - start) · gradient, and its standard error, in float64."""

    mean: Float[Tensor, "n *shape"]
    error: Float[Tensor, "n *shape"]
    """Of each value, if points were drawn at random."""
    sum_error: Float[Tensor, " n"]
    """Of the sum over an example's values."""


def path_sum(
    passes: Passes,
    ends: Float[Tensor, "n *shape"],
    pool: Float[Tensor, "pool *shape"],
    index: Int[Tensor, "n k"],
    alphas: Float[Tensor, "n k"],
    weights: Float[Tensor, "n k"],
    rows: Int[Tensor, " n"],
) -> PathSum:
    """Return the mean over k points on paths from rows of a pool, chunk by chunk over all n × k.

    Args:
        passes: of the score.
        ends: where paths end.
        pool: where they start.
        index: the row of the pool of each point.
        alphas: how far along the path each point lies, from 0 to 1.
        weights: of the points; they add up to one for each example.
        rows: which example each path belongs to.
    """
    n, k = index.shape
    mean = torch.zeros(ends.shape, dtype=torch.float64, device=ends.device)
    squares = torch.zeros_like(mean)
    sums = torch.zeros(n, k, dtype=torch.float64, device=ends.device)
    extra = [1] * (ends.ndim - 1)
    with Progress(n * k, "gradients along paths", unit="passes") as meter:
        for part in passes.slices(n * k):
            point = torch.arange(part.start, part.stop, device=ends.device)
            i, j = point // k, point % k
            start = pool[index[i, j]]
            way = ends[i] - start
            _, slope = passes.gradient(start + alphas[i, j].to(way).reshape(-1, *extra) * way, rows[i])
            term = way * slope
            sums[i, j] = term.flatten(1).sum(1, dtype=torch.float64)
            term = term.double()
            weighted = term * weights[i, j].reshape(-1, *extra)
            mean.index_add_(0, i, weighted)
            squares.index_add_(0, i, weighted * term)
            meter.advance(part.stop - part.start)
    drawn = (weights > 0).sum(1).clamp(min=2)
    error = ((squares - mean.square()).clamp(min=0) / (drawn - 1).reshape(-1, *extra)).sqrt()
    total = (weights * sums).sum(1)
    variance = ((weights * sums.square()).sum(1) - total.square()).clamp(min=0)
    return PathSum(mean, error, (variance / (drawn - 1)).sqrt())


def nodes(rule: Quadrature, steps: int, seed: int = 0) -> tuple[Float[Tensor, " steps"], Float[Tensor, " steps"]]:
    """Return a quadrature rule's points on [0, 1] and their weights, which add up to one.

    Raises:
        InputError: for too few steps.
    """
    least = 2 if rule in {"trapezoid", "mc"} else 1
    if steps < least:
        raise InputError(f"the {rule} rule needs at least {least} steps, got {steps}.")
    k = torch.arange(steps, dtype=torch.float64)
    equal = torch.full((steps,), 1 / steps, dtype=torch.float64)
    if rule == "mc":
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(steps, generator=generator, dtype=torch.float64), equal
    if rule == "trapezoid":
        weights = torch.full((steps,), 1 / (steps - 1), dtype=torch.float64)
        weights[[0, -1]] /= 2
        return k / (steps - 1), weights
    if rule == "gauss_legendre":
        points, weights_ = np.polynomial.legendre.leggauss(steps)
        return torch.from_numpy((points + 1) / 2), torch.from_numpy(weights_ / 2)
    shift = {"left": 0.0, "right": 1.0, "midpoint": 0.5}[rule]
    return (k + shift) / steps, equal


def adaptive_sum(
    passes: Passes, ends: Tensor, start: Tensor, scores: Tensor, rule: Quadrature, tolerance: float
) -> tuple[PathSum, Int[Tensor, " n"]]:
    """Return the path integral over intervals that are halved until they show the change of the score.

    Halved are those that miss most of their own change of it, until what all miss together is small enough.

    Args:
        passes: of the score.
        ends: where paths end.
        start: where they start.
        scores: of starts and ends, `[2, n]`.
        rule: used in each interval.
        tolerance: what may be missing, as a share of the difference of scores.

    Returns:
        The integral, and the number of points that it used for each example.
    """
    mean = torch.zeros(ends.shape, dtype=torch.float64, device=ends.device)
    used = torch.zeros(len(ends), dtype=torch.long, device=ends.device)
    settled = torch.zeros(2, len(ends), dtype=torch.float64, device=ends.device)
    wanted = tolerance * (scores[1] - scores[0]).double().abs()
    todo = _Intervals.first(passes, ends, start, scores)
    while len(todo.example):
        # Intervals may all miss to the same side, and there will be more of them.
        sums, gaps, coarse = todo.integrate(rule, passes, ends, start, wanted / (4 * _FIRST_STEPS))
        facts = torch.stack([gaps, gaps.square(), torch.ones_like(gaps)])
        fine, rough = (todo.tally(facts * of, len(ends)) for of in (~coarse, coarse))
        k = todo.points(rule).shape[1]
        used += k * (fine + rough)[2].long()
        settled += fine[:2]
        # Kinks make intervals miss to either side: all will do if neither the sum of what they miss nor its size,
        # which cancels nothing, is too large.
        total, squares = settled + rough[:2]
        done = (total.abs() <= wanted) & (squares.sqrt() <= wanted)
        done |= used + 2 * k * rough[2].long() > _MOST_STEPS
        mean += sums[0] + sums[1] * done.reshape(-1, *[1] * (ends.ndim - 1))
        todo = todo.halved(coarse & ~done[todo.example], passes, ends, start)
    zero = torch.zeros(len(ends), dtype=torch.float64, device=ends.device)
    return PathSum(mean, torch.zeros_like(mean), zero), used


@dataclass(frozen=True)
class _Intervals:
    """Pieces of paths: of which example, from where to where (0 to 1), and the scores there."""

    example: Int[Tensor, " m"]
    low: Float[Tensor, " m"]
    high: Float[Tensor, " m"]
    scores: Float[Tensor, "2 m"]

    @classmethod
    def first(cls, passes: Passes, ends: Tensor, start: Tensor, scores: Tensor) -> "_Intervals":
        n, k, device = len(ends), _FIRST_STEPS, ends.device
        marks = torch.arange(1, k, dtype=torch.float64, device=device) / k
        example = torch.arange(n, device=device).repeat_interleave(k - 1)
        inner = _scores_at(passes, ends, start, example, marks.repeat(n)).reshape(n, k - 1)
        at = torch.cat([scores[0].double()[:, None], inner, scores[1].double()[:, None]], dim=1)
        low = torch.arange(k, dtype=torch.float64, device=device).repeat(n) / k
        between = torch.stack([at[:, :-1].flatten(), at[:, 1:].flatten()])
        return cls(torch.arange(n, device=device).repeat_interleave(k), low, low + 1 / k, between)

    def points(self, rule: Quadrature) -> Float[Tensor, "2 k"]:
        """Return the rule's points and weights in an interval from 0 to 1."""
        return torch.stack(nodes(rule, 2 if rule in {"trapezoid", "gauss_legendre"} else 1))

    def tally(self, facts: Float[Tensor, "kinds m"], n: int) -> Float[Tensor, "kinds n"]:
        """Return sums over the intervals of each example."""
        total = torch.zeros(len(facts), n, dtype=facts.dtype, device=facts.device)
        return total.index_add_(1, self.example, facts)

    def integrate(
        self, rule: Quadrature, passes: Passes, ends: Tensor, start: Tensor, allowed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return two sums for each example, over fine and over coarse intervals; what each misses; which are coarse.

        An interval is coarse if what it misses of its own change of the score is more than is allowed.
        """
        at, weights = self.points(rule).to(ends.device)
        n, k, extra = len(ends), len(at), [1] * (ends.ndim - 1)
        sums = torch.zeros(2 * n, *ends.shape[1:], dtype=torch.float64, device=ends.device)
        gaps = torch.zeros_like(self.low)
        at_once = max(1, passes.chunk // k)
        pieces = [slice(b, b + at_once) for b in range(0, len(self.low), at_once)]
        with Progress(len(self.low), "gradients along paths", unit="intervals") as meter:
            for piece in pieces:
                i, low, width = self.example[piece], self.low[piece], (self.high - self.low)[piece]
                alphas = (low[:, None] + width[:, None] * at).flatten()
                rows = i.repeat_interleave(k)
                way = ends[rows] - start[rows]
                points = start[rows] + alphas.to(way).reshape(-1, *extra) * way
                term = (way * passes.gradient(points, rows)[1]).double()
                term = term * (width[:, None] * weights).flatten().reshape(-1, *extra)
                total = term.flatten(1).sum(1).reshape(-1, k).sum(1)
                gaps[piece] = total - (self.scores[1] - self.scores[0])[piece]
                coarse = gaps[piece].abs() > allowed[i]
                sums.index_add_(0, rows + n * coarse.repeat_interleave(k), term)
                meter.advance(len(i))
        return sums.reshape(2, *ends.shape), gaps, gaps.abs() > allowed[self.example]

    def halved(self, chosen: Tensor, passes: Passes, ends: Tensor, start: Tensor) -> "_Intervals":
        """Return both halves of the chosen intervals."""
        i, low, high = self.example[chosen], self.low[chosen], self.high[chosen]
        middle = (low + high) / 2
        if not len(i):
            return _Intervals(i, low, high, self.scores[:, chosen])
        here = _scores_at(passes, ends, start, i, middle)
        first, last = self.scores[:, chosen]
        scores = torch.stack([torch.cat([first, here]), torch.cat([here, last])])
        return _Intervals(i.repeat(2), torch.cat([low, middle]), torch.cat([middle, high]), scores)


def _scores_at(passes: Passes, ends: Tensor, start: Tensor, example: Tensor, alphas: Tensor) -> Float[Tensor, " m"]:
    found = []
    for part in passes.slices(len(example)):
        i = example[part]
        way = ends[i] - start[i]
        points = start[i] + alphas[part].to(way).reshape(-1, *[1] * (ends.ndim - 1)) * way
        found.append(passes.values(points, i).double())
    return torch.cat(found)
