"""Monotonicity, in both meanings that are published: of a score as places are put in, and of sizes against true effects."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from probing.attribution.base import checked
from probing.attribution.baselines import ZERO, Baseline, Uniform
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.evaluation.base import (
    Better,
    EvaluationError,
    Explained,
    Measurement,
    descending,
    keys_of,
    maps_of,
    measurement,
    pixels,
)
from probing.evaluation.removal import Shown, Units, cuts_of, removal_scores, scores_without_each, substrates
from probing.evaluation.similarity import SignedSpearman
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score
from probing.results.heatmaps import Channels
from probing.statistics.rounding import beyond_rounding, of_weights

_NOISE = Uniform((-1.0,), (1.0,))


@dataclass(frozen=True)
class Monotonicity:
    """Whether the score never falls as places are put into a baseline, the least valued first (Luss et al. 2019).

    The value is the share of steps at which it does not fall, beyond rounding; what Luss et al. (arXiv:1905.12698) and
    Arya et al. (2019, arXiv:1909.03012) report is whether it is 1. A share of half is what noise gets. It asks little of
    the order: where every place raises the score, each order gets 1. The other metric of this name is
    `MonotonicityCorrelation`.

    Attributes:
        baseline: into which places are put; several draws are averaged.
        steps: equal portions that go in one after the other; fewer if there are fewer places.
        channels: how the maps' channels become one value; by default the sign counts, and what speaks against the
            score goes in first.
        patch: side of what goes in at once, in pixels.
        seed: of ties.
        batch_size: variants of a pass.
        precision: how passes run; `fast` is fit for these.
    """

    baseline: Baseline = ZERO
    steps: int = 100
    channels: Channels = "sum"
    patch: int = 1
    seed: int = 0
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32
    better: ClassVar[Better] = "higher"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    cost: ClassVar[str] = "steps + 1 forward passes for each draw of the baseline"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"]) -> Measurement:
        """Return each input's share of steps; NaN where the score is the same at all of them."""
        score, inputs = checked(score, inputs)
        maps = maps_of(explained, score, inputs)
        units = Units.of(inputs, self.patch)
        cuts = cuts_of(units.count, self.steps)
        values = units.values(pixels(maps.values, self.channels))
        ranks = units.ranks(descending(values, keys_of(inputs, units.count, self.seed)))
        passes = Passes.of(score, inputs, self.batch_size, self.precision)
        shown, found = [Shown(x) for x in inputs], []
        with unchanged(score.model):
            for start in substrates(self.baseline, inputs):
                scores = removal_scores(passes, start, shown, ranks, cuts, least=True).T
                steps = beyond_rounding(scores.diff(dim=0), scores, of_weights(score.model))
                share = (steps >= 0).double().mean(0)
                found.append(torch.where((steps == 0).all(0), torch.nan, share))
        return measurement(self, score, torch.stack(found).mean(0), maps, n_forward=passes.n_forward)


@dataclass(frozen=True)
class MonotonicityCorrelation:
    """The rank correlation of a map's sizes with what replacing each place alone does (Nguyen & Martinez 2020).

    Of a place i the effect is the expected square of the score's change, `E[(s(x) - s(x with i drawn anew))²]`: the
    expected loss of arXiv:2007.07584, for a score. Both are sizes, and so it tells nothing of signs. The other metric
    of this name is `Monotonicity`.

    Attributes:
        baseline: draws of what a place is replaced by; the values that it could have.
        patch: side of a unit, in pixels, whose values are added up.
        batch_size: variants of a pass.
        precision: how passes run; `fast` is fit for these.
    """

    baseline: Baseline = _NOISE
    patch: int = 1
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32
    better: ClassVar[Better] = "higher"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    cost: ClassVar[str] = "a forward pass for each place and draw of the baseline"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"]) -> Measurement:
        """Return each input's correlation; NaN where all places are worth the same, or replacing none does anything."""
        score, inputs = checked(score, inputs)
        maps = maps_of(explained, score, inputs)
        units = Units.of(inputs, self.patch)
        if units.count < 2:
            raise EvaluationError(f"a correlation over places needs two or more, got {units.count}: take a smaller patch.")
        passes = Passes.of(score, inputs, self.batch_size, self.precision)
        with unchanged(score.model):
            whole, without = scores_without_each(passes, inputs, units, substrates(self.baseline, inputs))
        effects = (whole[:, None] - without).square().mean(0)
        sizes = (units.values(pixels(maps.values)) * torch.bincount(units.labels.flatten())).abs()
        return measurement(self, score, SignedSpearman()(sizes, effects), maps, n_forward=passes.n_forward)
