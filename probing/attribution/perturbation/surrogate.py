"""What parts contribute to a score: linear models of it over coalitions of kept parts, and Shapley values."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from probing.attribution.perturbation.regression import (
    Fit,
    Lasso,
    LeastSquares,
    Ridge,
    Selection,
    half_fit,
    select,
    split_half,
    weighted_r2,
)
from probing.core.inputs import InputError

Value = Callable[[Tensor], Tensor]
"""Scores `[k]` of coalitions `[k, parts]`, boolean: true where a part is kept."""

_MOST_ENUMERATED = 16  # parts: 65,536 coalitions
MOST_EXACT = 12  # parts: 4,096 coalitions
RIDGE = Ridge()


@dataclass(frozen=True)
class Contributions:
    """What each part contributes to the score of the whole, in score units.

    Attributes:
        coefficients: of the parts; zero for parts that were not selected.
        standard_error: by the draw of coalitions; zero where all were used, and for parts not selected.
        intercept: the model's score with nothing kept.
        r2: weighted share of the scores' variance over coalitions that the linear model explains; NaN where no coalition
            changes the score.
        prediction: the linear model's score of the whole.
        score: the score of the whole.
        condition: of the regression; infinite if coefficients are not determined.
        reliability: rank correlation of the coefficients from two halves of the sample, corrected to its full
            size (Spearman-Brown); one where all coalitions were used; NaN where there is nothing to rank, since no drawn
            coalition changes the score.
        samples: coalitions used.
    """

    coefficients: Float64[Tensor, " parts"]
    standard_error: Float64[Tensor, " parts"]
    intercept: float
    r2: float
    prediction: float
    score: float
    condition: float
    reliability: float
    samples: int


@runtime_checkable
class Surrogate(Protocol):
    """A frozen dataclass that learns from scores of coalitions what each part contributes."""

    def __call__(self, value: Value, count: int) -> Contributions:
        """Return the contributions of `count` parts."""
        ...


@dataclass(frozen=True)
class Local:
    """A sparse linear model, weighted by likeness to the whole (Ribeiro et al. 2016, alg. 1 and eq. 1).

    A coalition's weight is `exp(-D² / (2 · width²))`, D its cosine distance to the whole. Defaults are those of
    the reference implementation for images.

    Attributes:
        samples: coalitions, the first of which is the whole.
        coalitions: `half`: each part is kept with probability ½; `size`: the number of hidden parts is uniform
            from 1 to all, as for texts; `all`: every coalition once, for at most 16 parts.
        width: of the kernel; infinite for equal weights.
        features: most parts with a coefficient; None for all.
        selection: how they are chosen.
        regression: what the selected parts' coefficients are fitted by.
        stable: stop when `reliability` is at least this, which is asked after every tenth of the samples.
        seed: of the coalitions.
    """

    samples: int = 1000
    coalitions: Literal["half", "size", "all"] = "half"
    width: float = 0.25
    features: int | None = None
    selection: Selection = "auto"
    regression: Ridge | Lasso = RIDGE
    stable: float | None = None
    seed: int = 0

    def __call__(self, value: Value, count: int) -> Contributions:
        """Return the model's coefficients.

        Raises:
            InputError: for a single part, fewer than two samples, or more parts than can be enumerated.
        """
        self._check(count)
        masks = self._draw(count)
        scores = torch.empty(0, dtype=torch.float64)
        step = len(masks) if self.stable is None else max(50, -(-len(masks) // 10))
        reliability = 0.0
        while len(scores) < len(masks):
            part = masks[len(scores) : len(scores) + step]
            scores = torch.cat([scores, scores_of(value, part)])
            reliability = self._reliability(masks[: len(scores)], scores)
            if self.stable is not None and reliability >= self.stable:
                break
        found = self._fit(masks[: len(scores)], scores)
        if self.coalitions == "all":
            none = torch.zeros_like(found.standard_error)
            return replace(found, standard_error=none, reliability=1.0)
        return replace(found, reliability=math.nan if math.isnan(found.r2) else reliability)

    def _check(self, count: int) -> None:
        refuse_single(count)
        if self.samples < 2 or not self.width > 0:
            raise InputError(
                f"LIME needs at least 2 samples and a kernel width above 0, got {self.samples} and {self.width}."
            )
        if self.features is not None and self.features < 1:
            raise InputError(f"features must be None or at least 1, got {self.features}.")

    def _draw(self, count: int) -> Bool[Tensor, "k parts"]:
        if self.coalitions == "all":
            return every_coalition(count).flip(0)  # the whole first
        generator = torch.Generator().manual_seed(self.seed)
        random = torch.rand(self.samples, count, generator=generator)
        if self.coalitions == "half":
            masks = random < 0.5
        else:
            hidden = torch.randint(1, count + 1, (self.samples, 1), generator=generator)
            masks = random.argsort(1).argsort(1) >= hidden
        masks[0] = True
        return masks

    def _weights(self, masks: Bool[Tensor, "k parts"]) -> Float64[Tensor, " k"]:
        distance = 1 - masks.double().mean(1).sqrt()
        return (-distance.square() / (2 * self.width**2)).exp()

    def _reliability(self, masks: Bool[Tensor, "k parts"], scores: Float64[Tensor, " k"]) -> float:
        kept, weights = masks.double(), self._weights(masks)
        return split_half(len(scores), lambda rows: half_fit(kept[rows], scores[rows], weights[rows]))

    def _fit(self, masks: Bool[Tensor, "k parts"], scores: Float64[Tensor, " k"]) -> Contributions:
        kept, weights = masks.double(), self._weights(masks)
        chosen = select(kept, scores, weights, self.features, self.selection)
        fit = self.regression(kept[:, chosen], scores, weights)
        coefficients = torch.zeros(masks.shape[1], dtype=torch.float64)
        errors = torch.zeros_like(coefficients)
        coefficients[chosen], errors[chosen] = fit.coefficients, fit.standard_error
        return _contributions(coefficients, errors, fit, masks, scores)


@dataclass(frozen=True)
class KernelShap:
    """Shapley values by a linear model of coalitions (Lundberg and Lee 2017, theorem 2).

    Contributions add up exactly to the score of the whole minus that with nothing kept. Coalitions are drawn in pairs of
    complements, with sizes as often as the Shapley kernel weighs them; all are used, and the values exact, if they
    are not more than `samples`.

    Attributes:
        samples: coalitions besides none and all.
        seed: of the coalitions.
    """

    samples: int = 1000
    seed: int = 0

    def __call__(self, value: Value, count: int) -> Contributions:
        """Return Shapley values, or estimates.

        Raises:
            InputError: for a single part, or fewer samples than parts.
        """
        refuse_single(count)
        everything = count <= _MOST_ENUMERATED and 2**count - 2 <= self.samples
        if not everything and self.samples < 2 * count:
            raise InputError(f"KernelShap needs at least twice as many samples as parts, {2 * count}, got {self.samples}.")
        masks = every_coalition(count)[1:-1] if everything else self._draw(count)
        weights = shapley_kernel(masks) if everything else torch.ones(len(masks)).double()
        ends = torch.stack([torch.zeros(count), torch.ones(count)]).bool()
        scores = scores_of(value, torch.cat([ends, masks]))
        empty, whole = float(scores[0]), float(scores[1])
        found = _constrained(masks, scores[2:], weights, (empty, whole))
        if everything:
            none = torch.zeros_like(found.standard_error)
            return replace(found, standard_error=none, reliability=1.0)
        return replace(found, reliability=math.nan) if math.isnan(found.r2) else found

    def _draw(self, count: int) -> Bool[Tensor, "k parts"]:
        generator = torch.Generator().manual_seed(self.seed)
        sizes = torch.arange(1, count, dtype=torch.float64)
        often = 1 / (sizes * (count - sizes))
        pairs = self.samples // 2
        size = 1 + torch.multinomial(often, pairs, replacement=True, generator=generator)
        random = torch.rand(pairs, count, generator=generator)
        masks = random.argsort(1).argsort(1) < size[:, None]
        return torch.stack([masks, ~masks], 1).flatten(0, 1)


@dataclass(frozen=True)
class ExactShapley:
    """Shapley values from the scores of all coalitions (Shapley 1953), for at most 12 parts: 4,096 passes."""

    def __call__(self, value: Value, count: int) -> Contributions:
        """Return Shapley values.

        Raises:
            InputError: for more than 12 parts.
        """
        if count > MOST_EXACT:
            raise InputError(
                f"ExactShapley takes at most {MOST_EXACT} parts, got {count}: cut the input into fewer, or use "
                "ShapleySampling."
            )
        masks = every_coalition(count)
        scores = scores_of(value, masks)
        values = torch.stack([_marginal(masks, scores, part) for part in range(count)])
        none, empty = torch.zeros_like(values), float(scores[0])
        inner = masks[1:-1]
        r2 = weighted_r2(scores[1:-1], empty + inner.double() @ values, shapley_kernel(inner))
        score = float(scores[-1])
        return Contributions(values, none, empty, r2, score, score, 1.0, 1.0, len(masks))


@dataclass(frozen=True)
class ShapleySampling:
    """Shapley values by random orders in which parts are added (Castro et al. 2009), each followed by its reverse.

    They add up exactly to the score of the whole minus that with nothing kept, and are exact up to 12 parts. An order and
    its reverse (antithetic; Mitchell et al. 2022) even out what two parts do together: where no three parts interact, the
    values are exact too. Standard errors are those of the mean over pairs of orders, of which half as many are drawn.

    Attributes:
        permutations: orders, an even number; each takes a pass for each part but one.
        exact: most parts for which all coalitions are used instead, up to 12.
        seed: of the orders.
    """

    permutations: int = 20
    exact: int = MOST_EXACT
    seed: int = 0

    def __call__(self, value: Value, count: int) -> Contributions:
        """Return Shapley values, or estimates.

        Raises:
            InputError: for fewer than four permutations, an odd number of them, or more parts to be exact for than 12.
        """
        if self.permutations < 4 or self.permutations % 2 or not 0 <= self.exact <= MOST_EXACT:
            raise InputError(
                f"ShapleySampling needs an even number of permutations from 4, and exact from 0 to {MOST_EXACT}, "
                f"got {self.permutations} and {self.exact}."
            )
        if count <= max(1, self.exact):
            return ExactShapley()(value, count)
        pairs = self.permutations // 2
        generator = torch.Generator().manual_seed(self.seed)
        rank = torch.rand(pairs, count, generator=generator).argsort(1)
        return by_orders(value, rank)


def by_orders(value: Value, rank: Int[Tensor, "pairs parts"]) -> Contributions:
    """Return the mean gain of each part over orders of adding parts, each followed by its reverse.

    Args:
        value: scores of coalitions.
        rank: where each part stands in each order.
    """
    pairs, count = rank.shape
    rank = torch.stack([rank, count - 1 - rank], 1).flatten(0, 1)
    masks = (rank[:, None] < torch.arange(1, count)[:, None]).flatten(0, 1)
    ends = torch.stack([torch.zeros(count), torch.ones(count)]).bool()
    scores = scores_of(value, torch.cat([ends, masks]))
    empty, whole = scores[:1].expand(len(rank), 1), scores[1:2].expand(len(rank), 1)
    gains = torch.cat([empty, scores[2:].view(len(rank), -1), whole], 1).diff(dim=1)
    of_pairs = gains.gather(1, rank).view(pairs, 2, count).mean(1)
    values, error = of_pairs.mean(0), of_pairs.std(0) / pairs**0.5
    sizes = masks.sum(1)
    weights = 1 / (sizes * (count - sizes)).double()  # all sizes are drawn alike; this makes them the Shapley kernel
    r2 = weighted_r2(scores[2:], float(scores[0]) + masks.double() @ values, weights)
    reliability = math.nan if math.isnan(r2) else split_half(pairs, lambda rows: of_pairs[rows].mean(0))
    score = float(scores[1])
    return Contributions(values, error, float(scores[0]), r2, score, score, 1.0, reliability, len(scores))


def every_coalition(count: int) -> Bool[Tensor, "k parts"]:
    """Return all 2^count coalitions, from nothing kept to everything.

    Raises:
        InputError: for more than 16 parts.
    """
    if count > _MOST_ENUMERATED:
        raise InputError(
            f"{count} parts have 2^{count} coalitions, more than can be used all: draw them, or cut the input into fewer."
        )
    return (torch.arange(2**count)[:, None] >> torch.arange(count) & 1).bool()


def refuse_single(count: int) -> None:
    """Refuse an input of a single part.

    Raises:
        InputError: for it.
    """
    if count < 2:
        raise InputError(
            "the input is one single part, which leaves nothing to compare: cut it into more, or use "
            "ExactShapley, which gives the difference that hiding everything makes."
        )


def scores_of(value: Value, masks: Bool[Tensor, "k parts"]) -> Float64[Tensor, " k"]:
    """Return the score of each coalition, and ask once only for those that repeat."""
    count = masks.shape[1]
    if count > 62 or len(masks) < 2:  # codes must fit a whole number of 64 bits; long ones rarely repeat
        return value(masks).double().cpu()
    codes = (masks.long() << torch.arange(count)).sum(1)
    first, back = _first_of_each(codes)
    return value(masks[first]).double().cpu()[back]


def _first_of_each(codes: Int[Tensor, " k"]) -> tuple[Int[Tensor, " u"], Int[Tensor, " k"]]:
    """Return where each distinct code first stands, in that order, and which of these each one equals."""
    _, number = torch.unique(codes, return_inverse=True)
    first = torch.full((int(number.max()) + 1,), len(codes))
    first = first.scatter_reduce(0, number, torch.arange(len(codes)), "amin")
    order = first.argsort()
    return first[order], order.argsort()[number]


def shapley_kernel(masks: Bool[Tensor, "k parts"]) -> Float64[Tensor, " k"]:
    """Return the weight of each coalition in the regression whose coefficients are Shapley values; 0 of none and all."""
    count = masks.shape[1]
    by_size = [(count - 1) / (math.comb(count, s) * s * (count - s)) if 0 < s < count else 0.0 for s in range(count + 1)]
    return torch.tensor(by_size, dtype=torch.float64)[masks.sum(1)]


def _constrained(
    masks: Bool[Tensor, "k parts"],
    scores: Float64[Tensor, " k"],
    weights: Float64[Tensor, " k"],
    ends: tuple[float, float],
) -> Contributions:
    """Return the least squares fit that is exact for nothing kept and for everything."""
    kept, count, (empty, whole) = masks.double(), masks.shape[1], ends
    # Coefficients are an equal share each, plus directions that add up to zero.
    share = (whole - empty) / count
    span = _sum_free(count)
    root = weights.sqrt()
    design, targets = root[:, None] * (kept @ span), root * (scores - empty - kept.sum(1) * share)
    solution = LeastSquares.of(design)
    free = solution.operator @ targets
    coefficients = share + span @ free
    by_row = span @ (solution.operator * (targets - design @ free))
    by_pair = by_row[:, ::2] + by_row[:, 1::2]  # complements were drawn together
    pairs = by_pair.shape[1]
    scale = pairs / (pairs - count + 1) if pairs >= count else torch.inf
    errors = (by_pair.square().sum(1) * scale).sqrt()
    reliability = split_half(len(scores), lambda rows: span @ (LeastSquares.of(design[rows]).operator @ targets[rows]))
    r2 = weighted_r2(scores, empty + kept @ coefficients, weights)
    facts = (empty, r2, whole, whole, solution.condition, reliability, len(scores) + 2)
    return Contributions(coefficients, errors, *facts)


def _sum_free(count: int) -> Float64[Tensor, "parts free"]:
    """Return an orthonormal basis of the coefficients that add up to zero."""
    basis = torch.eye(count, dtype=torch.float64)
    basis[:, 0] = 1
    orthonormal: Tensor = torch.linalg.qr(basis)[0]
    return orthonormal[:, 1:]


def _marginal(masks: Bool[Tensor, "k parts"], scores: Float64[Tensor, " k"], part: int) -> Float64[Tensor, ""]:
    """Return the mean change that a part makes, over all orders in which parts are added."""
    count, without = masks.shape[1], (~masks[:, part]).nonzero().squeeze(1)
    orders = [1 / (count * math.comb(count - 1, s)) for s in range(count)]
    weights = torch.tensor(orders, dtype=torch.float64)[masks[without].sum(1)]
    return (weights * (scores[without + 2**part] - scores[without])).sum()


def _contributions(coefficients: Tensor, errors: Tensor, fit: Fit, masks: Tensor, scores: Tensor) -> Contributions:
    prediction = fit.intercept + float(coefficients.sum())
    score = float(scores[0])
    facts = (fit.intercept, fit.r2, prediction, score, fit.condition, 0.0, len(masks))
    return Contributions(coefficients, errors, *facts)
