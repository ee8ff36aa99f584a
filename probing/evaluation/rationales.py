"""Rationales of texts, as ERASER has them: are the tokens that a map values most enough, and is a score lost without?"""

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attribution.base import Attribution, checked
from probing.attribution.baselines import ZERO, Baseline
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.core.doubles import near
from probing.core.inputs import Batch
from probing.evaluation.base import Better, EvaluationError, Explained, Maps, Measurement, descending, keys_of, measurement
from probing.evaluation.removal import Shown, removal_scores, substrates
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score

BINS = (0.01, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class RationaleMetric(ABC):
    """What both metrics of rationales share: the mean, over shares of a text's tokens, of how far its score falls.

    A share of a text is that of its own tokens, rounded up to whole ones; padding counts as none, is never taken out, and
    changes nothing. What a begin or end token of the model's own gets counts as any other token's does. Tokens that are
    taken out show the baseline where they are looked up, and keep their place: in ERASER the text closes up, which only
    its own tokeniser could do. DeYoung et al. measure the probability of the class that the model gives: ask for it by
    `Score(model, unit="probability")`. Beside each value stands the mean of random orders, as `chance`: what any removal
    does.

    Attributes:
        shares: of a text's tokens that make up its rationale; the mean over them is taken (for continuous maps, DeYoung
            et al. 2020, sec. 4.2, whose formula divides by one share more, of no token).
        baseline: what shows where a token is taken out.
        random_orders: averaged for the chance; 0 to leave it out.
        seed: of random orders and of ties.
        batch_size: variants of a pass.
        precision: how passes run; `fast` is fit for these.
    """

    shares: tuple[float, ...] = BINS
    baseline: Baseline = ZERO
    random_orders: int = 5
    seed: int = 0
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32
    range: ClassVar[tuple[float, float]] = (float("-inf"), float("inf"))
    cost: ClassVar[str] = "shares + 1 forward passes for each draw of the baseline, and for each random order"
    better: ClassVar[Better]
    keeps: ClassVar[bool]
    """Whether the rationale is what is left, or what is taken out."""

    def __call__(self, explained: Explained, score: Score, inputs: Batch) -> Measurement:
        """Return each text's value, in units of the score; NaN for a text without tokens.

        Args:
            explained: a method, its attribution, or values `[n, tokens]` or `[n, tokens, features]`.
            score: of token ids.
            inputs: token ids `[n, tokens]`, or named inputs of which token ids are explained, with a mask of padding.

        Raises:
            EvaluationError: for what is no text, maps that don't lie over its tokens, or shares that are none.
        """
        score, points = checked(score, inputs)
        read = _read(score, points)
        if not self.shares or not all(0 < share <= 1 for share in self.shares) or self.random_orders < 0:
            raise EvaluationError(
                f"shares must lie between 0 and 1, at least one, and random_orders be at least 0, "
                f"got {self.shares} and {self.random_orders}."
            )
        maps = _token_maps(explained, score, points)
        passes = Passes.of(score, points, self.batch_size, self.precision)
        ordered = [keys_of(points[i : i + 1][:, r], int(r.sum()), self.seed) for i, r in enumerate(read)]
        values = [v[None, r] for v, r in zip(maps.values.cpu().double(), read, strict=True)]
        by_map = [descending(v, keys)[0] for v, keys in zip(values, ordered, strict=True)]
        with unchanged(score.model):
            found = self._falls(passes, points, read, by_map)
            chance = [
                self._falls(passes, points, read, _at_random(points, read, self.seed + 1 + i))
                for i in range(self.random_orders)
            ]
        average = torch.stack(chance).mean(0) if chance else None
        return measurement(self, score, found, maps, n_forward=passes.n_forward, chance=average)

    def _falls(
        self, passes: Passes, points: Tensor, read: Bool[Tensor, "n tokens"], orders: Sequence[Tensor]
    ) -> Float[Tensor, " n"]:
        """Return the mean fall over shares and draws of the baseline, given each text's tokens in order."""
        shares = sorted(self.shares)
        stages = _stages(read, orders, shares)
        ranks = stages.to(points.device)[..., None].expand(points.shape)
        held = read.to(points.device)[..., None]
        keeps, found = self.keeps, []
        for draw in substrates(self.baseline, points):
            empty = torch.where(held, draw, points)
            start, shown = (empty, points) if keeps else (points, empty)
            cuts = range(1, len(shares) + 2) if keeps else range(len(shares) + 1)
            scores = removal_scores(passes, start, [Shown(x) for x in shown], ranks, cuts)
            whole, others = (scores[:, -1:], scores[:, :-1]) if keeps else (scores[:, :1], scores[:, 1:])
            found.append((whole - others).mean(1))
        return torch.where(read.any(1), torch.stack(found).mean(0), torch.nan)


@dataclass(frozen=True)
class Comprehensiveness(RationaleMetric):
    """How far a text's score falls without the tokens that a map values most: high is good (DeYoung et al. 2020, eq. 1).

    Example:
        >>> found = Comprehensiveness()(method, Score(loaded, unit="probability"), texts)
        >>> print(found.mean, found.chance.mean())
    """

    better: ClassVar[Better] = "higher"
    keeps: ClassVar[bool] = False


@dataclass(frozen=True)
class Sufficiency(RationaleMetric):
    """How far a text's score falls if only the tokens that a map values most are left: low is good (ibid., eq. 2).

    Below zero where these alone score higher than the whole text.
    """

    better: ClassVar[Better] = "lower"
    keeps: ClassVar[bool] = True


def _read(score: Score, points: Tensor) -> Bool[Tensor, "n tokens"]:
    """Return which tokens of each text are read."""
    beside = score.beside
    if beside is None or len(beside.names) > 1 or not beside.layers or points.ndim != 3:
        raise EvaluationError(
            f"rationales are made of a text's tokens: give token ids [n, tokens], or name them as what is explained; "
            f"what is explained here has shape {tuple(points.shape)}."
        )
    mask = beside.read
    return torch.ones(points.shape[:2], dtype=torch.bool) if mask is None else mask[..., 0].cpu()


def _token_maps(explained: Explained, score: Score, points: Tensor) -> Maps:
    """Return one value for each token."""
    counts = (0, 0)
    if isinstance(explained, Tensor):
        values = explained.detach().to(near(explained.device))
    else:
        whole = explained if isinstance(explained, Attribution) else explained(score, points)
        values = whole.values
        counts = (0, 0) if explained is whole else (whole.n_forward, whole.n_backward)
    values = values.sum(2) if values.ndim == 3 else values
    if values.shape != points.shape[:2]:
        raise EvaluationError(
            f"maps of texts have a value for each of [n, tokens] {tuple(points.shape[:2])}, got {tuple(values.shape)}."
        )
    if not torch.isfinite(values).all():
        raise EvaluationError("a map holds NaN or infinity.")
    return Maps(values, None, *counts)


def _at_random(points: Tensor, read: Bool[Tensor, "n tokens"], seed: int) -> list[Tensor]:
    return [keys_of(points[i : i + 1][:, r], int(r.sum()), seed)[0] for i, r in enumerate(read)]


def _stages(read: Bool[Tensor, "n tokens"], orders: Sequence[Tensor], shares: Sequence[float]) -> Int[Tensor, "n tokens"]:
    """Return the first share that each token belongs to, by its number; beyond all shares for others, then for padding.

    Orders are of each text's own tokens, the first to be chosen first.
    """
    stages = torch.full(read.shape, len(shares) + 1)
    for stage, mask, order in zip(stages, read, orders, strict=True):
        length = len(order)
        counts = torch.tensor([math.ceil(share * length - 1e-9) for share in shares])
        own = torch.empty(length, dtype=torch.long)
        own[order] = torch.searchsorted(counts, torch.arange(length), right=True)
        stage[mask] = own
    return stages
