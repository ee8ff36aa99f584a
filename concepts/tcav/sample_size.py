"""How many pictures show which effect: a closed form for the effect in logits, and simulation for both tests.

The model, stated: pictures of the concept are pictures like the random ones whose activations are moved by one and the same
step, the shortest one in units of how random pictures vary that changes the score by the effect, to first order at the
inputs. What a picture moves the score by then differs between concept and counterparts as in a t-test of two samples.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from concepts.tcav.sampling import Relabelled, Sets
from concepts.tcav.tcav import Tcav
from probing.core.errors import ArgumentError
from probing.results.result import Provenance
from probing.statistics.hypothesis_tests import TooFewError


@dataclass(frozen=True)
class SampleSize:
    """What a number of pictures shows."""

    size: int
    """Pictures of the concept, and as many counterparts."""
    effect: float
    """Score units: the effect that its test finds with the power asked for."""
    deviations: float
    """The same, in standard deviations of what one random picture moves the score by."""
    found: float
    """Share of simulated analyses with this effect in which its test rejects (0-1)."""
    found_by_sign: float
    """The same of the sign score's test."""
    draws: int


@dataclass(frozen=True)
class SampleSizes:
    """Plans an analysis: which effects, in a given layer and for a given score, would be found.

    Attributes:
        method: the analysis planned, of which estimator, runs, scaling and level count.
        power: probability to find the effect (0-1).
        tests: cells of the table planned, layers times concepts times targets; each is tested at level / tests, which a
            correction by the step-down maximum is at most as strict as.
        draws: simulated analyses.
        seed: of the simulation.
    """

    method: Tcav = field(default_factory=Tcav)
    power: float = 0.8
    tests: int = 1
    draws: int = 100
    seed: int = 0

    def __call__(
        self, rows: Float[Tensor, "n m"], gradients: Float[Tensor, "inputs m"], sizes: Sequence[int]
    ) -> Iterator[SampleSize]:
        """Yield what each size shows, as it is found.

        Args:
            rows: a layer's activations at random pictures, which analyses are drawn from again and again.
            gradients: of the score there, at the inputs.
            sizes: pictures of the concept.

        Raises:
            TooFewError: for fewer than two rows, or no gradients.
            ArgumentError: if the score depends on nothing that varies at this layer, or for a power that makes no sense.
        """
        alpha = (1 - self.method.level) / self.tests
        if not alpha < self.power < 1:
            raise ArgumentError(f"power must lie between the level of a test, {alpha:.3g}, and 1, got {self.power}.")
        if len(rows) < 2 or not len(gradients):
            raise TooFewError(f"a plan takes 2 random pictures and an input or more, got {len(rows)} and {len(gradients)}.")
        known, slopes = rows.double(), gradients.double()
        moved = known - known.mean(0)
        single = moved @ slopes.mean(0)
        spread = float(single.std())
        if not spread > 0:
            raise ArgumentError("no random picture moves the score at this layer: choose another layer.")
        step = moved.mT @ single / (len(known) - 1) / spread  # that moves the score by one standard deviation
        sets = max(39, round(2 / alpha) - 1)
        method = replace(self.method, null=Relabelled(sets), bootstraps=0, relabellings=max(199, sets))
        for size in sizes:
            deviations = detectable(size, self.power, alpha)
            hits = [
                self._analysed(replace(method, seed=self.seed + draw), known, slopes, deviations * step, size, alpha)
                for draw in range(self.draws)
            ]
            effect, sign = (float(np.mean(one)) for one in zip(*hits, strict=True))
            yield SampleSize(size, deviations * spread, deviations, effect, sign, self.draws)

    def _analysed(
        self, method: Tcav, rows: Tensor, gradients: Tensor, step: Tensor, size: int, alpha: float
    ) -> tuple[bool, bool]:
        """Return whether each test rejects in one analysis of drawn pictures."""
        chosen = torch.from_numpy(np.random.default_rng([method.seed, size]).integers(0, len(rows), 2 * size))
        drawn = rows[chosen]
        drawn[:size] += step
        inputs = {"score": [f"input {i}" for i in range(len(gradients))]}
        sets = Sets({"concept": range(size)}, inputs, [str(i) for i in range(2 * size)], range(size, 2 * size))
        found = method.measure({"layer": drawn}, {"layer": [gradients]}, sets, Provenance.collect())
        return float(found.effect_p) <= alpha, float(found.p) <= alpha


@cache
def detectable(size: int, power: float, alpha: float) -> float:
    """Return the difference, in standard deviations, that a t-test of two samples of a size finds with some power.

    Two-sided, by the noncentral t distribution; a test that relabels examples has about the same power.
    """
    from scipy import optimize, stats

    if size < 2:
        raise TooFewError(f"a test takes 2 pictures of each side or more, got {size}.")
    freedom = 2 * size - 2
    critical = stats.t.isf(alpha / 2, freedom)

    def missing(difference: float) -> float:
        shifted = stats.nct(freedom, difference * math.sqrt(size / 2))
        return float(shifted.sf(critical) + shifted.cdf(-critical)) - power

    most = 1.0
    while missing(most) < 0:
        most *= 2
    return float(optimize.brentq(missing, 0, most))
