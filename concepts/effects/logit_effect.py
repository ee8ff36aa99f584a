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
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concepts.effects.result import EffectResult
from probing.core.content_ids import content_id
from probing.core.doubles import near
from probing.core.errors import ArgumentError
from probing.data.examples import Examples, ExampleSet, Subset, as_examples
from probing.models.runner import Pool
from probing.models.scores import Score
from probing.results.result import Provenance
from probing.statistics.hypothesis_tests import (
    ClusteredMean,
    Correlation,
    Relabellings,
    TooFewError,
    bootstrap_counts,
    bootstrap_interval,
    clustered_mean,
    exchangeable_cap,
    holm,
    labels_held,
    max_t,
    pearson,
    permutation_p,
    relabellings,
    same_sign,
)
from probing.statistics.linear_classifiers import SharedRows
from probing.statistics.rounding import beyond_rounding
from probing.statistics.row_products import grouped_products, sums
from probing.store.store import ActivationStore

_PART = 1000  # relabellings looked at together
_ROUNDING = 1e-12  # of an effect, as a share of the products that it is a difference of


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


def exchangeable(clusters: Clusters, seed: int) -> tuple[list[int], list[int]]:
    """Return which positives and which negatives to compare, so that relabelling whole clusters is exact.

    All of them where clusters have the same sizes on both sides, or matched ones as many positives as negatives; else
    fewer of the larger clusters, drawn at random, as `concepts.tcav.sampling.Sources.exchangeable` says.
    """
    sides = [Counter(names) for names in (clusters.positive, clusters.negative)]
    shared = sides[0].keys() & sides[1].keys()
    if not shared:
        sizes = [np.array(list(side.values()), dtype=np.int64) for side in sides]
        most = dict.fromkeys([*sides[0], *sides[1]], exchangeable_cap(sizes[0], sizes[1]))
    else:
        most = {name: min(sides[0][name], sides[1][name]) for name in shared}
    rng = np.random.default_rng([seed, 6])
    kept = []
    for names in (clusters.positive, clusters.negative):
        members: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            members.setdefault(name, []).append(i)
        chosen: list[int] = []
        for name, rows in members.items():
            n = most.get(name, len(rows))  # an unmatched one among matched is refused later
            chosen += rows if len(rows) <= n else rng.permutation(rows)[:n].tolist()
        kept.append(sorted(chosen))
    return kept[0], kept[1]


def split_clusters(names: Sequence[str], share: float, seed: int) -> tuple[frozenset[str], frozenset[str]]:
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
            relabelled=relabellings(positive.long(), dense, draws, seed, sizes=_sizes(unit_of, dense)),
            unit_draws=counts[:, of_unit],
            input_draws=counts[:, used],
            groups=min(int((strata == kind).sum()) for kind in strata[of_unit].tolist()),
            matched=bool(labels_held(positive.long(), dense).all()),
        )


def _sizes(unit_of: Int[Tensor, " examples"], cluster_of_unit: Int[Tensor, " units"]) -> Int[Tensor, " clusters"]:
    """Return how many examples each cluster has."""
    return torch.bincount(cluster_of_unit[unit_of])


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


def layer_effect(products: Float[Tensor, "targets inputs examples"], design: Design) -> LayerEffect:
    """Return the effect in logits at one layer; all draws are products of small matrices.

    Args:
        products: of each input's gradient of each target with each example's features, positives first; features may be
            shifted by a constant.
        design: of the examples and inputs.

    Raises:
        TooFewError: if an input's cluster holds all positives, or all negatives.
    """
    cross = torch.stack([sums(sums(p.double(), design.input_unit_of).mT, design.unit_of).mT for p in products])
    return effect_of(cross, design)


def effect_of(cross: Float[Tensor, "targets input_units units"], design: Design) -> LayerEffect:
    """Return the effect in logits at one layer from `grouped_products`; raises as `layer_effect`."""
    sizes = torch.bincount(design.unit_of).double()
    weight = torch.bincount(design.input_unit_of).double()
    sides = torch.stack([design.positive, ~design.positive]).double()
    every = torch.ones(1, len(weight), dtype=torch.float64)
    effect = _effects(cross, weight, sizes, design.allowed, every, sides[:1], sides[1:])[0]
    if effect.isnan().any():
        raise TooFewError("an input's cluster holds all positives or all negatives: delta needs another cluster.")
    draws = _effects(
        cross,
        weight,
        sizes,
        design.allowed,
        design.input_draws,
        design.unit_draws * sides[0],
        design.unit_draws * sides[1],
    )
    # Inputs that may meet the same units need not be told apart once they are no longer resampled.
    patterns, group = torch.unique(design.allowed, dim=0, return_inverse=True)
    grouped = torch.stack([sums(c, group) for c in cross])
    group_weight = torch.zeros(len(patterns), dtype=torch.float64).index_add_(0, group, weight)
    null = [
        _effects(
            grouped,
            group_weight,
            sizes,
            patterns,
            every.new_ones(len(part), len(patterns)),
            part,
            1 - part,
        )
        for part in map(Tensor.double, torch.split(design.relabelled.labels, _PART))
    ]
    # What cancels to within rounding is no effect, which relabellings of rounding would call one.
    least = _ROUNDING * cross.abs().sum((1, 2)) / (weight.sum() * sizes.sum())
    return LayerEffect(*(torch.where(e.abs() > least, e, 0.0) for e in (effect, torch.cat(null), draws)))


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
        weight: number of inputs in each unit of inputs.
        sizes: number of examples in each unit of these.
        allowed: which units may serve to fit delta for which inputs.
        inputs: how often each unit of inputs counts.
        positives: how often each unit counts as positive.
        negatives: how often as negative.
    """
    mask = allowed.double()
    divisors = [(side * sizes) @ mask.mT for side in (positives, negatives)]
    alike = (len(x) and (x == x[:1]).all() for x in (inputs, *divisors))
    if all(alike):  # relabellings that keep the numbers: a product of two small matrices
        counted = inputs[0] / (inputs[0] @ weight)
        shares = [torch.where(counted > 0, counted / d[0], 0.0) @ (cross * mask) for d in divisors]
        return positives @ shares[0].mT - negatives @ shares[1].mT
    found = torch.empty(len(inputs), len(cross), dtype=torch.float64)
    for target, products in enumerate(cross):
        masked = (products * mask).mT
        difference = (positives @ masked) / divisors[0] - (negatives @ masked) / divisors[1]
        counted = torch.where(inputs > 0, inputs * difference, 0.0)
        found[:, target] = counted.sum(1) / (inputs @ weight)
    return found


@dataclass(frozen=True)
class LogitEffect:
    """The effect in logits of a concept given as two sets, on several targets and layers at once.

    Attributes:
        pool: `mean`: channels' spatial means, moved alike at every position; `none`: every activation.
        relabellings: draws of the null; with few clusters all 2^clusters swaps are used instead.
            Where clusters of the two sides differ in size, fewer examples of the larger ones are used; see `exchangeable`.
        bootstraps: draws of the interval.
        level: of the intervals (0-1).
    """

    pool: Pool = "mean"
    relabellings: int = 9999
    bootstraps: int = 1000
    level: float = 0.95
    seed: int = 0

    def __call__(
        self,
        store: ActivationStore,
        targets: Mapping[str, Score],
        layers: Sequence[str],
        positive: Examples,
        negative: Examples,
        inputs: Examples,
        clusters: Clusters | None = None,
        swap: ClusteredMean | None = None,
    ) -> EffectResult:
        """Return effects, their null and intervals, and the measured swap where positives and negatives are matched.

        Args:
            store: reads activations, gradients and logits, and keeps them.
            targets: scores of one model, by name.
            layers: dotted paths or globs.
            positive: examples of the concept.
            negative: examples of its counterpart.
            inputs: what scores are differentiated at.
            clusters: which examples belong together; None: none do, and nothing is matched.
            swap: measured elsewhere, on other examples; by default on these, where they are matched.

        Raises:
            TooFewError: if there are too few examples or clusters.
            ValueError: if `clusters` names other numbers of examples, or only some are matched.
        """
        positive, negative, inputs = map(as_examples, (positive, negative, inputs))
        names = clusters or Clusters.none(len(positive), len(negative), len(inputs))
        _check(names, len(positive), len(negative), len(inputs))
        kept = exchangeable(names, self.seed)
        used = Clusters([names.positive[i] for i in kept[0]], [names.negative[i] for i in kept[1]], names.inputs)
        design = Design.of(used, draws=self.relabellings, bootstraps=self.bootstraps, seed=self.seed)
        model = next(iter(targets.values())).model
        sides = [
            store.activations(
                model,
                layers,
                side if len(part) == len(side) else Subset(side, part),
                pool=self.pool,
            )
            for side, part in zip((positive, negative), kept, strict=True)
        ]
        slopes = store.gradients_of(list(targets.values()), layers, inputs, pool=self.pool)
        found = []
        for layer in sides[0]:
            features = torch.cat([side[layer].flatten(1) for side in sides])
            rows = SharedRows(features.to(near(features.device)))
            gradients = [by_layer[layer].flatten(1).to(rows.features) for by_layer in slopes]
            found.append(effect_of(grouped_products(rows, gradients, design.unit_of, design.input_unit_of), design))
        if swap is None and design.matched:
            swap = measure_swap(store, targets, positive, negative, names.positive, names.negative, self.level)
        provenance = Provenance.collect(model=model, examples=_ids(positive, negative, inputs), method=self)
        result = summarize(found, swap, tuple(sides[0]), tuple(targets), design, self.level, provenance)
        return replace(result, units=tuple(score.unit for score in targets.values()))


def measure_swap(
    store: ActivationStore,
    targets: Mapping[str, Score],
    positive: ExampleSet,
    negative: ExampleSet,
    positive_clusters: Sequence[str],
    negative_clusters: Sequence[str],
    level: float,
) -> ClusteredMean:
    """Return how much higher positives score than matched negatives, for each target, with its interval and p.

    Raises:
        ValueError: if the two sets do not share their clusters.
    """
    _, index = _index([*positive_clusters, *negative_clusters])
    model = next(iter(targets.values())).model
    parts = {score.output: "" if score.output is None else f"[{score.output}]" for score in targets.values()}
    outputs = {
        part: torch.cat([store.activations(model, [address], side)[address] for side in (positive, negative)])
        for part, address in parts.items()
    }
    scores = [replace(score, output=None).read(outputs[score.output]).cpu() for score in targets.values()]
    table = torch.stack(scores, 1)
    return measured_swap(table, torch.arange(len(table)) < len(positive), index, level)


def measured_swap(
    scores: Float[Tensor, "examples targets"],
    positive: Bool[Tensor, " examples"],
    clusters: Int[Tensor, " examples"],
    level: float,
) -> ClusteredMean:
    """Return the mean score of positives less the mean of the negatives of their own cluster: the truth at the input.

    Raises:
        ValueError: if a cluster lacks positives or negatives.
    """
    if not labels_held(positive.long(), clusters).all():
        raise ArgumentError("a swap needs matched examples: every cluster must hold positives and negatives.")
    negatives = sums(scores[~positive].double(), clusters[~positive])
    counts = torch.bincount(clusters[~positive]).unsqueeze(1)
    differences = scores[positive].double() - (negatives / counts)[clusters[positive]]
    differences = beyond_rounding(differences, scores, scores.dtype)
    return clustered_mean(differences, clusters[positive], level)


def _ids(*sets: ExampleSet) -> str:
    return content_id([list(examples.ids) for examples in sets])


def _check(names: Clusters, positive: int, negative: int, inputs: int) -> None:
    for what, given, count in (
        ("positive", names.positive, positive),
        ("negative", names.negative, negative),
        ("inputs", names.inputs, inputs),
    ):
        if len(given) != count:
            raise ArgumentError(f"clusters.{what} names {len(given)} examples, but there are {count}: give one name each.")
        if not count:
            raise TooFewError(f"{what} examples are empty: there is nothing to compare.")


def summarize(
    found: Sequence[LayerEffect],
    swap: ClusteredMean | None,
    layers: tuple[str, ...],
    targets: tuple[str, ...],
    design: Design,
    level: float,
    provenance: Provenance,
) -> EffectResult:
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
