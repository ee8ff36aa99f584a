"""The TCAV score of a contrast: one direction from matched sets, read at inputs of clusters it has not seen.

What the score would be if the labels meant nothing is found by swapping the two labels within whole clusters and
fitting again. All layers and targets share the swaps, so that their scores can be corrected together by the step-down
maximum, which keeps power where Holm's correction of as many tests as cells would leave none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from concepts.tcav.result import LINEAR_TAIL
from concepts.tcav.sampling import Pairs, Rows
from probing.statistics.estimators import Estimator
from probing.statistics.hypothesis_tests import (
    bootstrap_counts,
    max_t,
    percentile_interval,
    permutation_p,
    relabellings,
)
from probing.statistics.linear_classifiers import RowProducts, SharedRows, fit_pairs

Cells = Float[Tensor, "layers targets"]

_PRODUCTS = 1 << 20
"""Products of gradients with rows that are made at once: memory grows with neither number."""


@dataclass(frozen=True, eq=False)
class SignScore:
    """TCAV scores of a contrast, by layer and target."""

    score: Cells
    """Share of inputs whose logit rises along the direction (0-1); one that does not move does not count."""
    low: Cells
    high: Cells
    """Percentiles of a bootstrap of the matched clusters and the inputs' clusters."""
    ties: Cells
    """Share of inputs whose logit does not move."""
    p: Cells
    p_max_t: Cells
    """Test of |score - 1/2|, ties counted half; corrected over layers and targets."""
    cosine: Float[Tensor, " layers"]
    """Mean between the bootstrap's directions."""
    linear_tail: tuple[bool, ...]
    """By layer, whether some target has one gradient at all inputs, so that the score is 0 or 1 by construction."""


@dataclass(frozen=True)
class SignTest:
    """How the TCAV score of a contrast is found and tested.

    Attributes:
        estimator: of the direction.
        relabellings: ways to swap labels.
        bootstraps: draws of the interval.
        level: of the interval.
    """

    estimator: Estimator
    relabellings: int = 199
    bootstraps: int = 200
    level: float = 0.95
    seed: int = 0

    def __call__(
        self,
        features: Mapping[str, Float[Tensor, "examples _"]],
        gradients: Mapping[str, Float[Tensor, "targets inputs _"]],
        clusters: Int[Tensor, " pairs"],
        input_clusters: Int[Tensor, " inputs"],
    ) -> SignScore:
        """Return the scores.

        Args:
            features: by layer, of the positives and then of their matched negatives.
            gradients: by layer, of each target's logit at the inputs.
            clusters: of each matched pair, as consecutive integers from 0.
            input_clusters: of each input, likewise.
        """
        own, swapped, drawn = self._fits(clusters)
        one_kind = torch.zeros(int(input_clusters.max()) + 1, dtype=torch.long)
        weights = bootstrap_counts(one_kind, self.bootstraps, self.seed)[:, input_clusters]
        weights /= weights.sum(1, keepdim=True)
        found = [self._layer(features[layer], slopes, [own, swapped, drawn], weights) for layer, slopes in gradients.items()]
        votes, null = (torch.stack([f[name] for f in found], d) for name, d in (("votes", 0), ("null", 1)))
        return SignScore(
            **{name: torch.stack([f[name] for f in found]) for name in ("score", "low", "high", "ties", "cosine")},
            p=permutation_p((votes - 0.5).abs(), (null - 0.5).abs()),
            p_max_t=max_t((votes - 0.5).abs(), (null - 0.5).abs()),
            linear_tail=tuple(_has_one_gradient(slopes) for slopes in gradients.values()),
        )

    def _fits(self, clusters: Int[Tensor, " pairs"]) -> tuple[Pairs, Pairs, Pairs]:
        """Return the rows of the contrast itself, of relabelled ones, and of bootstrap draws."""
        n = len(clusters)
        pairs = np.arange(n)
        labels = torch.repeat_interleave(torch.tensor([0, 1]), n)
        ways = relabellings(labels, clusters.repeat(2), self.relabellings, self.seed).labels.numpy()
        swapped = [(np.flatnonzero(way == 0), np.flatnonzero(way == 1)) for way in ways]
        rng = np.random.default_rng(self.seed)
        members = [np.flatnonzero(clusters.numpy() == k) for k in range(int(clusters.max()) + 1)]
        drawn = []
        for _ in range(self.bootstraps):
            rows: Rows = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
            drawn.append((rows, rows + n))
        return Pairs.of([(pairs, pairs + n)]), Pairs.of(swapped), Pairs.of(drawn)

    def _layer(
        self,
        features: Float[Tensor, "examples m"],
        slopes: Float[Tensor, "targets inputs m"],
        plans: Sequence[Pairs],
        weights: Float[Tensor, "draws inputs"],
    ) -> dict[str, Tensor]:
        rows = SharedRows(features)
        fits = [fit_pairs(rows, plan.positive, plan.negative, self.estimator) for plan in plans]
        flat, step = slopes.flatten(0, 1), max(1, _PRODUCTS // len(rows))
        signs = [flat.new_empty(len(f.index), len(flat), dtype=torch.float64) for f in fits]
        for start in range(0, len(flat), step):
            products = RowProducts(rows, flat[start : start + step])
            for of_one, fit in zip(signs, fits, strict=True):
                of_one[:, start : start + step] = fit.project(products).sign()
        own, null, drawn = (of_one.reshape(-1, *slopes.shape[:2]) for of_one in signs)
        rising = ((drawn > 0).double() * weights.unsqueeze(1)).sum(2)
        low, high = percentile_interval(rising, self.level)
        return {
            "score": (own[0] > 0).double().mean(1),
            "ties": (own[0] == 0).double().mean(1),
            "votes": (own[0].mean(1) + 1) / 2,
            "null": (null.mean(2) + 1) / 2,
            "low": low,
            "high": high,
            "cosine": torch.tensor(fits[2].mean_cosine(), dtype=torch.float64),
        }


def _has_one_gradient(slopes: Float[Tensor, "targets inputs m"]) -> bool:
    mean = slopes.double().mean(1, keepdim=True)
    farthest = torch.linalg.vector_norm(slopes - mean, dim=2).amax(1)
    return bool((farthest <= LINEAR_TAIL * torch.linalg.vector_norm(mean, dim=2).squeeze(1)).any())
