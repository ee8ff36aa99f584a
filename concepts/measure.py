"""From an audit's images to its numbers: what is predicted, what a swap does, and how far the two agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from concepts.draws import Relabelled
from concepts.effect import Clusters, LogitEffect
from concepts.effect_result import EffectResult
from concepts.material import ContrastSets, Material
from concepts.statistics import ClusteredMean, clustered_mean
from concepts.tcav import Tcav
from concepts.tcav_result import TcavResult
from probing.estimators import Ridge
from probing.linear import PairFits, fit_pairs
from probing.scores import Score
from probing.store import ActivationStore

_UNMATCHED_RELABELLINGS = (
    999  # of hundreds of images, where the swap of a few clusters is drawn more often
)


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of one contrast."""

    sets: ContrastSets
    predicted: EffectResult
    tcav: TcavResult
    swap: ClusteredMean
    """Of every class of the model, on images to judge on."""
    fit_swap: Float[Tensor, " classes"]
    """Of every class, on images to fit on: to pick classes by."""
    accuracy: dict[str, ClusteredMean]
    """By layer, less one half."""

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

    @cached_property
    def scores(self) -> dict[str, Score]:
        """The targets' logits, by name."""
        model = self.material.loaded.model
        return {name: Score(model, index) for name, index in self.material.targets.items()}

    def contrast(self, sets: ContrastSets) -> Measured:
        """Measure one contrast."""
        m, statistics = self.material, self.material.file.statistics
        swap = self._swap(sets.judge.first, sets.judge.second, sets.judge.cluster)
        i = list(m.targets.values())
        of_targets = ClusteredMean(
            swap.mean[i], swap.low[i], swap.high[i], swap.p[i], swap.clusters
        )
        names = Clusters(sets.fit.cluster, sets.fit.cluster, m.clusters_of(m.inputs))
        first, second = m.subset(sets.fit.first), m.subset(sets.fit.second)
        predicted = LogitEffect(
            pool=m.file.model.pool,
            relabellings=statistics.relabellings,
            bootstraps=statistics.bootstraps,
            level=statistics.level,
            seed=statistics.seed,
        )(self.store, self.scores, m.layers, first, second, m.subset(m.inputs), names, of_targets)
        return Measured(
            sets=sets,
            predicted=predicted,
            tcav=self._relative(sets),
            swap=swap,
            fit_swap=self._swap(sets.fit.first, sets.fit.second, sets.fit.cluster).mean,
            accuracy={layer: self._accuracy(sets, layer) for layer in m.layers},
        )

    def concepts(self) -> TcavResult | None:
        """Measure the concepts given as one set, against random images."""
        m = self.material
        if not m.concepts:
            return None
        concepts = [m.concept(name, rows) for name, rows in m.concepts.items()]
        return self._tcav(relabellings=_UNMATCHED_RELABELLINGS)(
            self.store, self.scores, m.layers, concepts, m.subset(m.inputs), m.subset(m.pool),
            input_clusters=m.clusters_of(m.inputs),
        )  # fmt: skip

    def direction(self, layer: str, positive: Sequence[int], negative: Sequence[int]) -> PairFits:
        """Return the classifier of some images against others at a layer."""
        rows = self.features[layer][[*positive, *negative]]
        first = torch.arange(len(positive)).unsqueeze(0)
        second = len(positive) + torch.arange(len(negative)).unsqueeze(0)
        return fit_pairs(rows, first, second, Ridge())

    def _relative(self, sets: ContrastSets) -> TcavResult:
        m = self.material
        sides = {sets.spec.positive: sets.fit.first, sets.spec.negative: sets.fit.second}
        concepts = [m.concept(name, rows) for name, rows in sides.items()]
        return self._tcav(mode="ovr", relabellings=_UNMATCHED_RELABELLINGS)(
            self.store, self.scores, m.layers, concepts, m.subset(m.inputs), input_clusters=m.clusters_of(m.inputs)
        )  # fmt: skip

    def _tcav(self, **settings: object) -> Tcav:
        statistics = self.material.file.statistics
        return Tcav(
            null=Relabelled(statistics.pseudo_concepts),
            runs=statistics.runs,
            pool=self.material.file.model.pool,
            level=statistics.level,
            seed=statistics.seed,
            **settings,  # type: ignore[arg-type]  # names of its fields
        )

    def _swap(
        self, after: Sequence[int], before: Sequence[int], clusters: Sequence[str]
    ) -> ClusteredMean:
        difference = self.logits[list(after)].double() - self.logits[list(before)].double()
        return clustered_mean(difference, codes(clusters), self.material.file.statistics.level)

    def _accuracy(self, sets: ContrastSets, layer: str) -> ClusteredMean:
        """Return by how much the share of right answers on clusters never seen exceeds one half."""
        fits = self.direction(layer, sets.fit.first, sets.fit.second)
        right = torch.cat([
            side * fits.decision(self.features[layer][list(rows)])[0].sign()
            for side, rows in ((1, sets.judge.first), (-1, sets.judge.second))
        ])  # fmt: skip
        clusters = codes([*sets.judge.cluster, *sets.judge.cluster])
        return clustered_mean(right / 2, clusters, self.material.file.statistics.level)


def codes(names: Sequence[str]) -> Tensor:
    """Return each name's number."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names])
