"""Does a map change little with the input, and say what happens when the input changes?"""

from dataclasses import dataclass, replace
from itertools import combinations
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from probing.attribution.base import AttributionMethod, checked
from probing.attribution.baselines import ZERO, Baseline
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.core.inputs import one_tensor
from probing.evaluation.base import (
    Better,
    EvaluationError,
    Explained,
    Maps,
    Measurement,
    drawn_noise,
    keys_of,
    maps_of,
    measurement,
)
from probing.evaluation.removal import Units, substrates
from probing.evaluation.similarity import SignedSpearman, correlation
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score


@dataclass(frozen=True)
class MaxSensitivity:
    """The largest relative change of a map as its input is moved a little (Yeh et al. 2019, def. 2): low is good.

    `max ‖A(x + δ) - A(x)‖ / ‖A(x)‖` over draws of δ, uniform in a box; a lower bound of the true maximum. A constant
    map scores best: read it beside fidelity.

    Attributes:
        radius: of the box, as a share of each input's range.
        draws: of δ.
        seed: of the draws.
    """

    radius: float = 0.02
    draws: int = 10
    seed: int = 0
    better: ClassVar[Better] = "lower"
    range: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    cost: ClassVar[str] = "as many maps as draws"

    def __call__(self, method: AttributionMethod, score: Score, inputs: Float[Tensor, "n *shape"]) -> Measurement:
        """Return each input's largest relative change; NaN for maps of zeros and inputs of one value, which don't move."""
        score, inputs = checked(score, inputs)
        if self.draws < 1 or self.radius <= 0:
            raise EvaluationError(f"draws must be at least 1 and radius above 0, got {self.draws} and {self.radius}.")
        with unchanged(score.model):
            clean = method(score, inputs)
            forward, backward = clean.n_forward, clean.n_backward
            size = clean.values.double().flatten(1).norm(dim=1)
            largest = torch.zeros_like(size)
            flat = inputs.flatten(1)
            width = self.radius * (flat.amax(1) - flat.amin(1))
            width = width.view(-1, *[1] * (inputs.ndim - 1))
            for noise in drawn_noise(inputs, self.draws, self.seed, "uniform"):
                moved = method(score, inputs + width * noise)
                change = (moved.values - clean.values).double().flatten(1).norm(dim=1)
                largest = torch.maximum(largest, change / size)
                forward, backward = forward + moved.n_forward, backward + moved.n_backward
        return measurement(
            self,
            score,
            torch.where((size > 0) & (width.flatten() > 0), largest, torch.nan),
            Maps(clean.values, None, forward, backward),
        )


@dataclass(frozen=True)
class Infidelity:
    """How far a map is from saying what perturbations do to the score (Yeh et al. 2019, def. 1): low is good.

    `E[(I·A - (s(x) - s(x - I)))²]` for Gaussian I. With `scaled`, A is first multiplied by the factor that fits
    best, and the value is the share of the score changes' size that is left, from 0 to 1: maps without units, such
    as those of guided backprop, can be compared so. Without, the value is in squared score units. Either is meant for
    maps per unit of input, as gradients are; for maps that are multiplied by the input ask `SensitivityN`.

    Attributes:
        noise: standard deviation of I, as a share of each input's range.
        draws: of I.
        scaled: see above.
        seed: of the draws.
        batch_size: perturbed inputs of a pass.
        precision: how passes run.
    """

    noise: float = 0.2
    draws: int = 100
    scaled: bool = True
    seed: int = 0
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32
    better: ClassVar[Better] = "lower"
    range: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    cost: ClassVar[str] = "as many forward passes as draws"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"]) -> Measurement:
        """Return each input's infidelity; NaN where scaled and the score never changed."""
        score, inputs = checked(score, inputs)
        maps = maps_of(explained, score, inputs)
        passes = Passes.of(score, inputs, self.batch_size, self.precision)
        rows = torch.arange(len(inputs))
        flat = inputs.flatten(1)
        width = self.noise * (flat.amax(1) - flat.amin(1))
        width = width.view(-1, *[1] * (inputs.ndim - 1))
        whole = passes.values(inputs, rows).double()
        told, true = [], []
        for drawn in drawn_noise(inputs, self.draws, self.seed, "normal"):
            step = width * drawn
            told.append((step * maps.values).double().flatten(1).sum(1))
            true.append(whole - passes.values(inputs - step, rows).double())
        a, b = torch.stack(told), torch.stack(true)
        if self.scaled:
            power = b.square().sum(0)
            best = (a * b).sum(0) / a.square().sum(0).clamp(min=torch.finfo(torch.float64).tiny)
            left = (best * a - b).square().sum(0) / power
            values = torch.where(power > 0, left, torch.nan)
        else:
            values = (a - b).square().mean(0)
        return measurement(self, score, values, maps, n_forward=passes.n_forward)


@dataclass(frozen=True)
class SensitivityN:
    """Whether the sum of a map over places tells the fall of the score without them (Ancona et al. 2018, def. 1).

    The correlation, over random sets of `share` of the units, of `Σ A` and `s(x) - s(x without them)`.

    Attributes:
        share: of units that are removed at once.
        draws: sets.
        baseline: what shows where a unit is removed; of one draw.
        patch: side of a unit, in pixels.
        seed: of the sets.
        batch_size: variants of a pass.
        precision: how passes run.
    """

    share: float = 0.2
    draws: int = 100
    baseline: Baseline = ZERO
    patch: int = 1
    seed: int = 0
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32
    better: ClassVar[Better] = "higher"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    cost: ClassVar[str] = "as many forward passes as draws"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"]) -> Measurement:
        """Return each input's correlation; NaN where the sums or the falls are constant."""
        score, inputs = checked(score, inputs)
        if self.draws < 3 or not 0 < self.share < 1:
            raise EvaluationError(f"draws must be at least 3 and share within 0 to 1, got {self.draws} and {self.share}.")
        maps = maps_of(explained, score, inputs)
        units = Units.of(inputs, self.patch)
        total = (maps.values.sum(1) if inputs.ndim == 4 else maps.values).double()
        substrate = substrates(self.baseline, inputs)[0]
        count = min(units.count - 1, max(1, round(self.share * units.count)))
        passes = Passes.of(score, inputs, self.batch_size, self.precision)
        rows = torch.arange(len(inputs))
        whole = passes.values(inputs, rows).double()
        told, true = [], []
        for draw in range(self.draws):
            order = keys_of(inputs, units.count, self.seed + draw)
            gone = (units.ranks(order) < count).to(inputs.device)
            told.append((total * gone).flatten(1).sum(1))
            shown = torch.where(gone[:, None] if inputs.ndim == 4 else gone, substrate, inputs)
            true.append(whole - passes.values(shown, rows).double())
        values = correlation(torch.stack(told, 1).cpu(), torch.stack(true, 1).cpu())
        return measurement(self, score, values, maps, n_forward=passes.n_forward)


@dataclass(frozen=True)
class SeedStability:
    """How alike a random method's maps are from one seed to the next; 1 for a method without a seed.

    The mean of the rank correlations of all pairs of reruns.

    Attributes:
        reruns: seeds.
    """

    reruns: int = 3
    better: ClassVar[Better] = "higher"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    cost: ClassVar[str] = "as many maps as reruns; none for a method without a seed"

    def __call__(self, method: AttributionMethod, score: Score, inputs: Float[Tensor, "n *shape"]) -> Measurement:
        """Return each input's mean rank correlation."""
        if self.reruns < 2:
            raise EvaluationError(f"reruns must be at least 2, got {self.reruns}.")
        seeded = [with_seed(method, seed) for seed in range(self.reruns)]
        one = torch.ones(len(one_tensor(inputs)), dtype=torch.float64)
        forward = backward = 0
        if seeded[0] is not None:
            found = [m(score, inputs) for m in seeded if m is not None]
            forward, backward = sum(f.n_forward for f in found), sum(f.n_backward for f in found)
            alike = SignedSpearman()
            pairs = combinations([f.values for f in found], 2)
            one = torch.stack([alike(a, b) for a, b in pairs]).mean(0)
        return measurement(self, score, one, Maps(inputs, None, forward, backward))


def with_seed(method: AttributionMethod, seed: int) -> AttributionMethod | None:
    """Return a method with another seed, its own or that of what it is made of; None if it has none."""
    if hasattr(method, "seed"):
        return replace(method, seed=seed)  # type: ignore[type-var]
    surrogate = getattr(method, "surrogate", None)
    if surrogate is not None and hasattr(surrogate, "seed"):
        return replace(method, surrogate=replace(surrogate, seed=seed))  # type: ignore[type-var]
    return None
