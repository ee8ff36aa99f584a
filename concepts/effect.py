"""The effect of a concept in logits, its null by relabelling, and the measured effect of a swap.

A concept given as two sets moves a layer from the typical negative to the typical positive by
`delta = mean(positives) - mean(negatives)`, left in its natural length (the pattern CAV, Haufe et al. 2014). The effect
is what that move does to a score to first order, `mean over inputs of gradient · delta`: score units, comparable
between layers, and unlike a count of signs not saturated where gradients vary little.

An input never meets a delta that was fitted on its own cluster: for each input, delta comes from all other clusters.
This is cross-fitting with as many folds as clusters. It uses every example in every role, has no random split whose
luck would be part of the answer, and its variance is that of nearly the whole data; a single split into halves fits
and judges on half of them. (`split_clusters` is for the other kind of honesty: targets chosen by looking at results are
chosen on one part and judged on the other.)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concepts.statistics import (
    ClusteredMean,
    Correlation,
    Relabellings,
    TooFewError,
    bootstrap_counts,
    bootstrap_interval,
    clustered_mean,
    labels_held,
    holm,
    max_t,
    pearson,
    permutation_p,
    relabellings,
    same_sign,
)
from probing.examples import ExampleSet
from probing.passes import Pool
from probing.provenance import Provenance, Result
from probing.scores import Score
from probing.store import ActivationStore

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Clusters:
    """Which examples belong together (a role, a speaker, a matched pair), by name.

    Examples of one cluster are not independent. A name that stands among positives and negatives makes them matched;
    one that stands among the inputs too keeps delta away from them.
    """

    positive: Sequence[str]
    negative: Sequence[str]
    inputs: Sequence[str]

    @classmethod
    def pairs(cls, count: int, inputs: int) -> "Clusters":
        """Return the clusters of positives and negatives that are matched one by one, and of unrelated inputs."""
        names = [f"pair {i}" for i in range(count)]
        return cls(names, names, [f"input {i}" for i in range(inputs)])

    @classmethod
    def none(cls, positive: int, negative: int, inputs: int) -> "Clusters":
        """Return the clusters of examples that are all independent of each other."""
        return cls(
            [f"positive {i}" for i in range(positive)],
            [f"negative {i}" for i in range(negative)],
            [f"input {i}" for i in range(inputs)],
        )


def split_clusters(
    names: Sequence[str], share: float, seed: int
) -> tuple[frozenset[str], frozenset[str]]:
    """Split the distinct names into two parts at random, the first holding about `share` of them.

    Raises:
        TooFewError: if a part would be empty.
    """
    distinct = sorted(set(names))
    count = round(share * len(distinct))
    if not 0 < count < len(distinct):
        raise TooFewError(f"{len(distinct)} clusters can't be split with a share of {share}: a part would be empty.")
    order = np.random.default_rng(seed).permutation(len(distinct))
    first = frozenset(distinct[i] for i in order[:count])
    return first, frozenset(distinct) - first


@dataclass(frozen=True)
class Design:
    """How examples are grouped, relabelled and resampled: the same for all layers and targets.

    A unit is what no relabelling splits: the positives, or the negatives, of one cluster.
    """

    unit_of: Int[Tensor, " examples"]
    """The unit of each example, positives first."""
    positive: Bool[Tensor, " units"]
    input_unit_of: Int[Tensor, " inputs"]
    allowed: Bool[Tensor, "input_units units"]
    """Which units may serve to fit delta for which inputs: those of other clusters."""
    cluster_of_unit: Int[Tensor, " units"]
    relabelled: Relabellings
    unit_draws: Float[Tensor, "draws units"]
    input_draws: Float[Tensor, "draws input_units"]
    groups: int
    """Independent groups in the smallest sample that is resampled: clusters of both sets, or of the smaller one."""
    matched: bool

    @classmethod
    def of(cls, clusters: Clusters, *, draws: int, bootstraps: int, seed: int) -> "Design":
        """Plan an analysis with so many draws of the null and of the interval."""
        sides = [(f"{int(side)}{n}", n) for side, ns in ((1, clusters.positive), (0, clusters.negative)) for n in ns]
        units, unit_of = _index([key for key, _ in sides])
        names, cluster_of = _index([key[1:] for key in units] + list(clusters.inputs))
        positive = torch.tensor([key[0] == "1" for key in units])
        of_unit = cluster_of[: len(units)]
        of_input = cluster_of[len(units) :]
        used, input_unit_of = torch.unique(of_input, return_inverse=True)
        _, dense = torch.unique(of_unit, return_inverse=True)
        strata = _strata(positive, of_unit, len(names))
        counts = bootstrap_counts(strata, bootstraps, seed + 1)
        return cls(
            unit_of=unit_of,
            positive=positive,
            input_unit_of=input_unit_of,
            allowed=used[:, None] != of_unit,
            cluster_of_unit=dense,
            relabelled=relabellings(positive.long(), dense, draws, seed),
            unit_draws=counts[:, of_unit],
            input_draws=counts[:, used],
            groups=min(int((strata == kind).sum()) for kind in strata[of_unit].tolist()),
            matched=bool(labels_held(positive.long(), dense).all()),
        )


def _index(names: Sequence[str]) -> tuple[list[str], Int[Tensor, " n"]]:
    """Return the distinct names in order of appearance, and each name's number."""
    numbers: dict[str, int] = {}
    index = [numbers.setdefault(name, len(numbers)) for name in names]
    return list(numbers), torch.tensor(index)


def _strata(positive: Bool[Tensor, " units"], of_unit: Int[Tensor, " units"], clusters: int) -> Int[Tensor, " clusters"]:
    """Return what kind of examples each cluster holds: clusters are resampled among those of their kind."""
    kind = torch.zeros(clusters, dtype=torch.long)
    kind[of_unit[positive]] += 1
    kind[of_unit[~positive]] += 2
    return kind


@dataclass(frozen=True)
class LayerEffect:
    """The effect at one layer on all targets, with what the relabellings and the bootstrap gave."""

    effect: Float[Tensor, " targets"]
    null: Float[Tensor, "relabellings targets"]
    draws: Float[Tensor, "bootstraps targets"]

    def interval(self, groups: int, level: float) -> tuple[Float[Tensor, " targets"], Float[Tensor, " targets"]]:
        """Return the bounds of the bootstrap interval, for so many independent groups."""
        return bootstrap_interval(self.effect, self.draws, groups, level)


def layer_effect(
    features: Float[Tensor, "examples m"], gradients: Float[Tensor, "targets inputs m"], design: Design
) -> LayerEffect:
    """Return the effect in logits at one layer: features are met once, all draws are products of small matrices.

    Args:
        features: positives first, then negatives.
        gradients: of each target's score at the layer, in score units per unit of the features.

    Raises:
        TooFewError: if an input's cluster holds all positives, or all negatives.
    """
    sizes = torch.bincount(design.unit_of).double()
    sums = _sums(features.double() - features.double().mean(0), design.unit_of)
    slopes = torch.stack([_sums(g.double(), design.input_unit_of) for g in gradients])
    cross = slopes @ sums.mT
    weight = torch.bincount(design.input_unit_of).double()
    every = torch.ones(1, len(weight), dtype=torch.float64)
    sides = torch.stack([design.positive, ~design.positive]).double()
    effect = _effects(cross, weight, sizes, design.allowed, every, sides[:1], sides[1:])[0]
    if effect.isnan().any():
        raise TooFewError("an input's cluster holds all positives or all negatives: delta needs another cluster.")
    draws = _effects(
        cross, weight, sizes, design.allowed,
        design.input_draws, design.unit_draws * sides[0], design.unit_draws * sides[1],
    )  # fmt: skip
    # Inputs that may meet the same units need not be told apart once they are no longer resampled.
    patterns, group = torch.unique(design.allowed, dim=0, return_inverse=True)
    grouped = torch.stack([_sums(c, group) for c in cross])
    group_weight = torch.zeros(len(patterns), dtype=torch.float64).index_add_(0, group, weight)
    labels = design.relabelled.labels.double()
    ones = torch.ones(len(labels), len(patterns), dtype=torch.float64)
    null = _effects(grouped, group_weight, sizes, patterns, ones, labels, 1 - labels)
    return LayerEffect(effect, null, draws)


def _sums(rows: Float[Tensor, "n m"], group: Int[Tensor, " n"]) -> Float[Tensor, "groups m"]:
    return rows.new_zeros(int(group.max()) + 1, rows.shape[1]).index_add_(0, group, rows)


def _effects(
    cross: Float[Tensor, "targets inputs units"],
    weight: Float[Tensor, " inputs"],
    sizes: Float[Tensor, " units"],
    allowed: Bool[Tensor, "inputs units"],
    inputs: Float[Tensor, "draws inputs"],
    positives: Float[Tensor, "draws units"],
    negatives: Float[Tensor, "draws units"],
) -> Float[Tensor, "draws targets"]:
    """Return the effect for many weightings at once; NaN where a weighting leaves an input nothing to fit delta on.

    Args:
        cross: gradient times feature, summed over the inputs and the examples of a unit.
        weight: number of inputs in each unit of inputs; `sizes` likewise of examples.
        inputs: how often each unit of inputs counts; `positives` and `negatives` likewise.
    """
    mask = allowed.double()
    divisors = [(side * sizes) @ mask.mT for side in (positives, negatives)]
    found = torch.empty(len(inputs), len(cross), dtype=torch.float64)
    for target, products in enumerate(cross):
        masked = (products * mask).mT
        difference = (positives @ masked) / divisors[0] - (negatives @ masked) / divisors[1]
        counted = torch.where(inputs > 0, inputs * difference, 0.0)
        found[:, target] = counted.sum(1) / (inputs @ weight)
    return found


@dataclass(frozen=True)
class EffectResult(Result):
    """Predicted effects in logits, layer by layer, beside the measured effect of a swap."""

    layers: tuple[str, ...]
    targets: tuple[str, ...]
    effect: Float[Tensor, "layers targets"]
    """Score units: what moving the layer from the typical negative to the typical positive does, to first order."""
    low: Float[Tensor, "layers targets"]
    high: Float[Tensor, "layers targets"]
    """Joint bootstrap over clusters and inputs, at `level`."""
    p: Float[Tensor, "layers targets"]
    """Two-sided, by relabelling."""
    p_holm: Float[Tensor, "layers targets"]
    p_max_t: Float[Tensor, "layers targets"]
    """Corrected over layers and targets: Holm, and the step-down maximum over the same relabellings."""
    swap: Float[Tensor, " targets"]
    """Mean score of positives less that of their matched negatives, at the input; NaN without matched clusters."""
    swap_low: Float[Tensor, " targets"]
    swap_high: Float[Tensor, " targets"]
    swap_p: Float[Tensor, " targets"]
    """t over clusters."""
    agreement: Float[Tensor, "layers 3"]
    """Pearson's r of effect and swap over targets, and Fisher's interval, which takes targets as independent."""
    slope: Float[Tensor, " layers"]
    """Least-squares slope of swap on effect through the origin: 1 where the first order carries all the way."""
    signs_right: Int[Tensor, " layers"]
    """For how many targets effect and swap have the same sign."""
    groups: int
    """Independent groups: clusters of positives and negatives, or of the smaller of the two sets."""
    relabellings: int
    exact: bool
    """Whether the relabellings are all there are."""
    level: float

    def correlation(self, layer: str) -> Correlation:
        """Return the agreement at a layer."""
        r, low, high = self.agreement[self.layers.index(layer)].tolist()
        return Correlation(r, low, high, len(self.targets))

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per layer and target."""
        import pandas as pd

        columns = ("effect", "low", "high", "p", "p_holm", "p_max_t")
        rows = [
            {"layer": layer, "target": target}
            | {name: float(getattr(self, name)[i, k]) for name in columns}
            | {name: float(getattr(self, name)[k]) for name in ("swap", "swap_low", "swap_high", "swap_p")}
            for i, layer in enumerate(self.layers)
            for k, target in enumerate(self.targets)
        ]
        return pd.DataFrame(rows)

    def plot(self) -> "Figure":
        """Draw predicted effect against measured swap over all targets, one panel per layer."""
        from matplotlib.figure import Figure

        columns = min(4, len(self.layers))
        rows = math.ceil(len(self.layers) / columns)
        figure = Figure(figsize=(3.4 * columns, 3.4 * rows), layout="constrained")
        for i, layer in enumerate(self.layers):
            axes = figure.add_subplot(rows, columns, i + 1)
            x, y = self.effect[i], self.swap
            spread = [torch.stack([x - self.low[i], self.high[i] - x]), torch.stack([y - self.swap_low, self.swap_high - y])]
            axes.errorbar(x, y, xerr=spread[0].clamp(min=0), yerr=spread[1].clamp(min=0), fmt="o", ms=4, lw=0.7)
            reach = 1.1 * float(torch.cat([x.abs(), y.abs()]).nan_to_num().max())
            axes.plot([-reach, reach], [-reach, reach], color="0.7", lw=0.8, zorder=0)
            axes.set(title=f"{layer}\n{self.correlation(layer)}", xlabel="predicted effect (logits)")
            axes.set_ylabel("measured swap (logits)" if i % columns == 0 else "")
        return figure

    def _repr_html_(self) -> str:
        return str(self.to_pandas().to_html(float_format="{:.3f}".format, index=False))


@dataclass(frozen=True)
class LogitEffect:
    """The effect in logits of a concept given as two sets, on several targets and layers at once.

    Attributes:
        pool: `mean`: channels' spatial means, moved alike at every position; `none`: every activation.
        relabellings: draws of the null; with few clusters all 2^clusters swaps are used instead.
        bootstraps: draws of the interval.
        level: of the intervals (0-1).
    """

    pool: Pool = "mean"
    relabellings: int = 9999
    bootstraps: int = 1000
    level: float = 0.95
    seed: int = 0

    def __call__(
        self, store: ActivationStore, targets: Mapping[str, Score], layers: Sequence[str],
        positive: ExampleSet, negative: ExampleSet, inputs: ExampleSet, clusters: Clusters | None = None,
    ) -> EffectResult:  # fmt: skip
        """Return effects, their null and intervals, and the measured swap where positives and negatives are matched.

        Args:
            targets: scores of one model, by name.
            clusters: which examples belong together; None: none do, and nothing is matched.

        Raises:
            TooFewError: if there are too few examples or clusters.
            ValueError: if `clusters` names other numbers of examples, or matched clusters hold unequal numbers.
        """
        names = clusters or Clusters.none(len(positive), len(negative), len(inputs))
        _check(names, len(positive), len(negative), len(inputs))
        design = Design.of(names, draws=self.relabellings, bootstraps=self.bootstraps, seed=self.seed)
        model = next(iter(targets.values())).model
        sides = [store.activations(model, layers, side, pool=self.pool) for side in (positive, negative)]
        slopes = store.gradients_of(list(targets.values()), layers, inputs, pool=self.pool)
        found = [
            layer_effect(
                torch.cat([side[layer].flatten(1) for side in sides]),
                torch.stack([by_layer[layer].flatten(1) for by_layer in slopes]),
                design,
            )
            for layer in sides[0]
        ]
        swap = self._swap(store, targets, positive, negative, design) if design.matched else None
        provenance = Provenance.collect(model=model, method=self)
        return summarize(found, swap, tuple(sides[0]), tuple(targets), design, self.level, provenance)

    def _swap(
        self, store: ActivationStore, targets: Mapping[str, Score], positive: ExampleSet, negative: ExampleSet,
        design: Design,
    ) -> ClusteredMean:  # fmt: skip
        model = next(iter(targets.values())).model
        values = []
        for side in (positive, negative):
            output = store.activations(model, [""], side)[""]
            values.append(torch.stack([replace(score, output=None).read(output) for score in targets.values()], 1))
        return measured_swap(torch.cat(values), design, self.level)


def _check(names: Clusters, positive: int, negative: int, inputs: int) -> None:
    for what, given, count in (
        ("positive", names.positive, positive),
        ("negative", names.negative, negative),
        ("inputs", names.inputs, inputs),
    ):
        if len(given) != count:
            raise ValueError(f"clusters.{what} names {len(given)} examples, but there are {count}: give one name each.")
        if not count:
            raise TooFewError(f"{what} examples are empty: there is nothing to compare.")


def measured_swap(
    scores: Float[Tensor, "examples targets"], design: Design, level: float
) -> ClusteredMean:
    """Return the mean score of positives less the mean of the negatives of their own cluster: the truth at the input.

    Args:
        scores: of the positives, then the negatives.

    Raises:
        ValueError: if positives and negatives are not matched.
    """
    if not design.matched:
        raise ValueError("positives and negatives share no clusters: a swap needs matched examples.")
    cluster = design.cluster_of_unit[design.unit_of]
    positive = design.positive[design.unit_of]
    negatives = _sums(scores[~positive].double(), cluster[~positive])
    counts = torch.bincount(cluster[~positive]).unsqueeze(1)
    differences = scores[positive].double() - (negatives / counts)[cluster[positive]]
    return clustered_mean(differences, cluster[positive], level)


def summarize(
    found: Sequence[LayerEffect], swap: ClusteredMean | None, layers: tuple[str, ...], targets: tuple[str, ...],
    design: Design, level: float, provenance: Provenance,
) -> EffectResult:  # fmt: skip
    """Return the result of several layers' effects and, where it was measured, the swap."""
    effect = torch.stack([layer.effect for layer in found])
    null = torch.stack([layer.null for layer in found], 1).abs()
    low, high = (torch.stack(b) for b in zip(*(f.interval(design.groups, level) for f in found), strict=True))
    exact = design.relabelled.exact
    p = permutation_p(effect.abs(), null, exact=exact)
    unknown = torch.full((len(targets),), torch.nan, dtype=torch.float64)
    swap = swap or ClusteredMean(unknown, unknown, unknown, unknown, 0)
    agreement = [_agreement(row, swap.mean, level) for row in effect]
    return EffectResult(
        provenance=provenance,
        layers=layers,
        targets=targets,
        effect=effect,
        low=low,
        high=high,
        p=p,
        p_holm=holm(p),
        p_max_t=max_t(effect.abs(), null, exact=exact),
        swap=swap.mean,
        swap_low=swap.low,
        swap_high=swap.high,
        swap_p=swap.p,
        agreement=torch.tensor([[a.r, a.low, a.high] for a in agreement], dtype=torch.float64),
        slope=(effect * swap.mean).sum(1) / effect.square().sum(1),
        signs_right=torch.tensor([same_sign(row, swap.mean) for row in effect]),
        groups=design.groups,
        relabellings=len(design.relabelled.labels),
        exact=exact,
        level=level,
    )


def _agreement(effect: Float[Tensor, " targets"], swap: Float[Tensor, " targets"], level: float) -> Correlation:
    if len(effect) < 2 or swap.isnan().any():
        return Correlation(math.nan, -1.0, 1.0, len(effect))
    return pearson(effect, swap, level)
