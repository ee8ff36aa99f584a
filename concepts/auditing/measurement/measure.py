"""From an audit's images to its numbers: what is predicted, what a swap does, and how far the two agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from concepts.auditing.measurement.setup import ContrastSets, Material
from concepts.data.manifest import Pairs
from concepts.effects.agreement import Agreement, agreement
from concepts.effects.logit_effect import Clusters, LogitEffect
from concepts.effects.result import EffectResult
from concepts.tcav.result import TcavResult
from concepts.tcav.sampling import Relabelled, enough_draws
from concepts.tcav.sign_test import SignScore, SignTest
from concepts.tcav.tcav import Tcav
from probing.models.scores import Score
from probing.statistics.estimators import Ridge
from probing.statistics.hypothesis_tests import ClusteredMean, clustered_mean, codes
from probing.statistics.linear_classifiers import PairFits, fit_pairs
from probing.store.store import ActivationStore

_UNMATCHED_RELABELLINGS = 999  # of hundreds of images, where swaps of a few clusters are drawn more often

_AT_ONCE = 1024
"""Rows that are judged at once: bounds memory, without effect on results but for rounding."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of one contrast."""

    sets: ContrastSets
    predicted: EffectResult
    """From all clusters, for inputs of each from the others."""
    sign: SignScore
    swap: ClusteredMean
    """Of every class of the model, on all matched images."""
    by_cluster: Float[Tensor, "clusters targets"]
    """The same of the targets, in each cluster alone, in the order in which clusters first come."""
    fit_swap: ClusteredMean
    """Of every class, on images to fit on: to pick classes by."""
    judged_swap: ClusteredMean
    """Of every class, on images to judge on."""
    accuracy: dict[str, ClusteredMean]
    """By layer, less one half."""
    agreement: dict[str, Agreement]
    """By layer."""

    @property
    def name(self) -> str:
        """The contrast's name."""
        return self.sets.spec.name


@dataclass(frozen=True, eq=False)
class Meter:
    """Measures concepts on rows that the store holds."""

    material: Material
    store: ActivationStore
    features: Mapping[str, Float[Tensor, "rows _"]]
    """Activations of all images, by layer."""
    logits: Float[Tensor, "rows classes"]
    gradients: Mapping[str, Float[Tensor, "targets inputs _"]]
    """Of the targets' logits at all inputs, by layer."""

    @cached_property
    def scores(self) -> dict[str, Score]:
        """The targets' logits, by name."""
        model = self.material.loaded.model
        return {name: Score(model, index) for name, index in self.material.targets.items()}

    def contrast(self, sets: ContrastSets) -> Measured:
        """Measure one contrast."""
        swap = self._swap(sets.every)
        return Measured(
            sets=sets,
            predicted=self._predicted(sets.every, swap),
            sign=self._sign_score(sets),
            swap=swap,
            by_cluster=self._by_cluster(sets.every),
            fit_swap=self._swap(sets.fit),
            judged_swap=self._swap(sets.judge),
            accuracy={layer: self._accuracy(sets, layer) for layer in self.material.layers},
            agreement={layer: self._agreement(sets.every, layer) for layer in self.material.layers},
        )

    def concepts(self) -> TcavResult | None:
        """Measure the concepts given as one set, against random images or against each other."""
        m = self.material
        if not m.concepts:
            return None
        concepts = [m.concept(name, rows) for name, rows in m.concepts.items()]
        statistics = m.file.statistics
        return Tcav(
            null=Relabelled(statistics.pseudo_concepts if "pseudo_concepts" in statistics.model_fields_set else "auto"),
            runs=statistics.runs,
            mode="random" if m.pool else "ovr",
            pool=m.file.model.pool,
            relabellings=max(_UNMATCHED_RELABELLINGS, enough_draws(len(concepts), statistics.level)),
            level=statistics.level,
            seed=statistics.seed,
        )(
            self.store,
            self.scores,
            m.layers,
            concepts,
            m.subset(m.judged_inputs),
            m.subset(m.pool) if m.pool else None,
            input_clusters=m.clusters_of(m.judged_inputs),
        )

    def direction(self, layer: str, positive: Sequence[int], negative: Sequence[int]) -> PairFits:
        """Return the classifier of some images against others at a layer."""
        rows = self.features[layer][[*positive, *negative]]
        first = torch.arange(len(positive)).unsqueeze(0)
        second = len(positive) + torch.arange(len(negative)).unsqueeze(0)
        return fit_pairs(rows, first, second, Ridge())

    def _predicted(self, pairs: Pairs, swap: ClusteredMean) -> EffectResult:
        m, statistics = self.material, self.material.file.statistics
        i = list(m.targets.values())
        measured = ClusteredMean(swap.mean[i], swap.low[i], swap.high[i], swap.p[i], swap.clusters)
        return LogitEffect(
            pool=m.file.model.pool,
            relabellings=statistics.relabellings,
            bootstraps=statistics.bootstraps,
            level=statistics.level,
            seed=statistics.seed,
        )(
            self.store,
            self.scores,
            m.layers,
            m.subset(pairs.first),
            m.subset(pairs.second),
            m.subset(m.inputs),
            Clusters(pairs.cluster, pairs.cluster, m.clusters_of(m.inputs)),
            measured,
        )

    def _sign_score(self, sets: ContrastSets) -> SignScore:
        m, statistics = self.material, self.material.file.statistics
        rows = [*sets.fit.first, *sets.fit.second]
        judged = [m.inputs.index(row) for row in m.judged_inputs]
        return SignTest(
            estimator=Ridge(),
            relabellings=statistics.pseudo_concepts,
            bootstraps=statistics.pseudo_concepts,
            level=statistics.level,
            seed=statistics.seed,
        )(
            {layer: values[rows] for layer, values in self.features.items()},
            {layer: values[:, judged] for layer, values in self.gradients.items()},
            codes(sets.fit.cluster),
            codes(m.clusters_of(m.judged_inputs)),
        )

    def _swap(self, pairs: Pairs) -> ClusteredMean:
        change = self.logits[list(pairs.first)].double() - self.logits[list(pairs.second)].double()
        return clustered_mean(change, codes(pairs.cluster), self.material.file.statistics.level)

    def _accuracy(self, sets: ContrastSets, layer: str) -> ClusteredMean:
        """Return by how much the share of right answers on clusters never seen exceeds one half."""
        fits = self.direction(layer, sets.fit.first, sets.fit.second)
        right = torch.cat(
            [
                side * fits.decision(part)[0].sign()
                for side, rows in ((1, sets.judge.first), (-1, sets.judge.second))
                for part in torch.split(self.features[layer][list(rows)], _AT_ONCE)
            ]
        )
        clusters = codes([*sets.judge.cluster, *sets.judge.cluster])
        return clustered_mean(right / 2, clusters, self.material.file.statistics.level)

    def _agreement(self, pairs: Pairs, layer: str) -> Agreement:
        m, statistics = self.material, self.material.file.statistics
        names = list(dict.fromkeys(pairs.cluster))
        shown = [i for i, row in enumerate(m.inputs) if m.clusters[row] in names]
        at = torch.tensor([names.index(m.clusters[m.inputs[i]]) for i in shown])
        features, where = self.features[layer].double(), codes(pairs.cluster)
        delta = _means(features[list(pairs.first)] - features[list(pairs.second)], where, len(names))
        slopes = torch.stack([_means(g[shown].double(), at, len(names)) for g in self.gradients[layer]])
        return agreement(
            slopes @ delta.mT,
            self._by_cluster(pairs),
            statistics.divisions,
            statistics.level,
            statistics.seed,
        )

    def _by_cluster(self, pairs: Pairs) -> Float[Tensor, "clusters targets"]:
        logits = self.logits[:, list(self.material.targets.values())].double()
        change = logits[list(pairs.first)] - logits[list(pairs.second)]
        return _means(change, codes(pairs.cluster), len(set(pairs.cluster)))


def _means(rows: Float[Tensor, "n m"], group: Int[Tensor, " n"], count: int) -> Float[Tensor, "groups m"]:
    """Return each group's mean; NaN for an empty one."""
    total = rows.new_zeros(count, rows.shape[1]).index_add_(0, group, rows)
    return total / torch.bincount(group, minlength=count).unsqueeze(1)
