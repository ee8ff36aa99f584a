"""Do local explanations show what network-level tests find? Both, and the truth of a swap, for the same concepts.

A concept is given as matched pairs of inputs, with it and without it, so that what it does to a score can be measured.
Directions are fitted on some clusters of pairs, and everything is measured on the others; the effect in logits is
cross-fitted over all clusters instead, each input's from the others.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from concepts.effects.concept_attribution import ConceptGradients, refuse_alike
from concepts.effects.logit_effect import Clusters, LogitEffect
from concepts.local_vs_global.matched_pairs import MatchedConcept, Sides, evidence, silenced
from concepts.local_vs_global.result import (
    ABLATED,
    EFFECT,
    OWN,
    SWAP,
    TCAV,
    WEIGHT,
    Comparison,
    padded,
)
from concepts.tcav.cav import mean_difference
from concepts.tcav.sign_test import SignTest
from probing.attribution.base import AttributionMethod
from probing.attribution.cam.grad_cam import GradCAM
from probing.attribution.path import IntegratedGradients
from probing.core.content_ids import content_id
from probing.core.inputs import one_tensor
from probing.data.examples import Examples, ExampleSet, Subset, as_examples, concat
from probing.models.runner import Pool
from probing.models.scores import Score
from probing.results.result import Provenance
from probing.statistics.estimators import Ridge
from probing.statistics.hypothesis_tests import clustered_mean, codes, holm
from probing.store.store import ActivationStore

_ROUNDING = 1e-5


def _maps() -> dict[str, AttributionMethod]:
    return {"ig": IntegratedGradients(steps=16), "gradcam": GradCAM()}


@dataclass(frozen=True)
class Compare:
    """Compares heat maps, concept attribution, TCAV, the effect in logits, units and the measured swap.

    A heat map's reading is the evidence in the concept's pixels, as a share of the sizes of all its values, beyond what
    their area gives. The share of a map says nothing else: where the concept is on an object that the class is recognised
    by, it may be large without the concept being used. Units are read by what of the swap their change carries to first
    order, and by what of it is gone where they are silent, each less the same for as many random units.

    Attributes:
        layer: where concepts are read, a dotted path.
        heat_maps: local methods by name.
        steps: of the integral at the layer that concept attribution is taken of.
        fit_share: share of the clusters that directions are fitted on, where none are named.
        explained: pairs per concept for which maps are made, from as many clusters as there are.
        relabellings: of the test of the effect.
        pseudo_concepts: relabellings of the test of the TCAV score, and draws of its interval.
        draws: sets of random units.
        level: of intervals and decisions (0-1).
        seed: of divisions and draws.
        channels_last: whether maps are `[n, h, w, c]`, where that can't be inferred or measured.

    Example:
        >>> found = Compare("layer3")(store, {"zebra": Score(net, 340)}, [stripes, grass])
        >>> found.agreement("tcav", "swap"), found.sentences()
    """

    layer: str
    heat_maps: Mapping[str, AttributionMethod] = field(default_factory=_maps)
    steps: int = 32
    fit_share: float = 0.5
    explained: int = 24
    relabellings: int = 9999
    pseudo_concepts: int = 199
    draws: int = 5
    level: float = 0.95
    seed: int = 0
    channels_last: bool | None = None

    @property
    def pool(self) -> Pool:
        """How the layer's rows are pooled."""
        return "mean_last" if self.channels_last else "mean"

    def __call__(
        self,
        store: ActivationStore,
        targets: Mapping[str, Score],
        concepts: Sequence[MatchedConcept],
        inputs: Examples | None = None,
        *,
        input_clusters: Sequence[str] = (),
        fitted_on: Collection[str] | None = None,
    ) -> Comparison:
        """Return all measures of all concepts for all targets.

        Args:
            store: reads activations and gradients, and keeps them.
            targets: scores of one model, by name.
            concepts: their directions share each change of the layer, so leave none out that plays a part.
            inputs: what TCAV and effect differentiate scores at; by default both sides of the held-out pairs.
            input_clusters: of the inputs.
            fitted_on: clusters that directions are fitted on; by default a share drawn at random.

        Raises:
            ComparisonError: if a concept has no clusters on one side of the division.
            DirectionError: if one concept's direction is a combination of the others'.
        """
        own = None if inputs is None else as_examples(inputs)
        parts = [Sides.of(c, fitted_on, self.fit_share, self.seed) for c in concepts]
        readers = [_Reader(self, store, targets, side, own, tuple(input_clusters)) for side in parts]
        directions = torch.stack([reader.direction() for reader in readers])
        names = tuple(c.name for c in concepts)
        refuse_alike(directions, names)  # before the maps, which take long
        found = [reader.read(directions, names, c) for c, reader in enumerate(readers)]
        measures = (SWAP, OWN, TCAV, EFFECT, WEIGHT, ABLATED, *self.heat_maps)
        width = max(len(side.judge) for side in parts)
        cells = {
            name: torch.stack([torch.stack([f.cells[m][name] for f in found]) for m in measures])
            for name in ("value", "low", "high", "p")
        }
        pairs = torch.stack([torch.stack([_widened(f.by_pair[m], width) for f in found]) for m in measures])
        rest = {name: torch.stack([_widened(f.rest[name], width) for f in found]) for name in ("remainder", "gap", "others")}
        null = torch.tensor([0.5 if m == TCAV else 0.0 for m in measures], dtype=torch.float64)
        return Comparison(
            provenance=Provenance.collect(
                model=next(iter(targets.values())).model,
                examples=content_id([[*c.positive.ids, *c.negative.ids] for c in concepts]),
                method=self,
            ),
            layer=self.layer,
            measures=measures,
            heat_maps=tuple(self.heat_maps),
            concepts=names,
            targets=tuple(targets),
            level=self.level,
            value=cells["value"],
            low=cells["low"],
            high=cells["high"],
            null=null,
            p_corrected=_corrected(cells["p"], measures),
            by_pair=pairs,
            pairs=tuple(side.judge for side in parts),
            area=torch.stack([f.area for f in found]),
            **rest,
        )


@dataclass(frozen=True, eq=False)
class _Found:
    """One concept's measures for all targets."""

    cells: dict[str, dict[str, Tensor]]
    by_pair: dict[str, Float[Tensor, "targets pairs"]]
    rest: dict[str, Float[Tensor, "targets pairs"]]
    area: Float[Tensor, ""]


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads one concept."""

    method: Compare
    store: ActivationStore
    targets: Mapping[str, Score]
    sides: Sides
    inputs: ExampleSet | None
    input_clusters: tuple[str, ...]

    def direction(self) -> Float[Tensor, " m"]:
        """Return the difference of the layer's means over the training pairs."""
        rows = self._features(self.sides.fit)
        n = len(self.sides.fit)
        return mean_difference(rows, torch.arange(n), torch.arange(n, 2 * n)).double()

    def read(self, directions: Float[Tensor, "concepts m"], names: tuple[str, ...], own: int) -> _Found:
        """Return all measures."""
        places = self.sides.some(self.method.explained)
        chosen = [self.sides.judge[i] for i in places]
        index = torch.tensor(places)
        width = len(self.sides.judge)
        concept = self.sides.concept
        positive, negative = (one_tensor(s.load(chosen)) for s in (concept.positive, concept.negative))
        masks = concept.pixels(chosen)
        by_pair = {SWAP: self._swap()}
        values, rest = self._attributed(positive, negative, directions, names)
        by_pair[OWN] = padded(values[:, :, own], index, width)
        rest["others"] = values.sum(2) - values[:, :, own]
        for name, heat_map in self.method.heat_maps.items():
            shares = [evidence(heat_map(s, positive), masks) for s in self.targets.values()]
            by_pair[name] = padded(torch.stack(shares), index, width)
        weight, ablated = self._units(positive, negative)
        by_pair[WEIGHT], by_pair[ABLATED] = (padded(v, index, width) for v in (weight, ablated))
        scale = by_pair[SWAP].abs().max()
        for name in (OWN, WEIGHT, ABLATED):  # what is left of a part that is none is rounding
            rows = by_pair[name]
            by_pair[name] = torch.where(rows.abs() < _ROUNDING * scale, 0.0, rows)
        cells = {name: self._mean(rows) for name, rows in by_pair.items()} | self._tested()
        unknown = torch.full((len(self.targets), width), torch.nan, dtype=torch.float64)
        by_pair |= {TCAV: unknown, EFFECT: unknown}
        spread = {name: padded(rows, index, width) for name, rows in rest.items()}
        return _Found(cells, by_pair, spread, masks.double().mean())

    @property
    def _integral(self) -> ConceptGradients:
        return ConceptGradients(self.method.layer, steps=self.method.steps, channels_last=self.method.channels_last)

    def _features(self, pairs: Sequence[int]) -> Float[Tensor, "rows m"]:
        """Return the layer's channels of positives, then of their negatives."""
        both = self._both(pairs)
        model = next(iter(self.targets.values())).model
        layer = self.method.layer
        rows = self.store.activations(model, [layer], both, pool=self.method.pool)[layer]
        return rows.flatten(1).cpu()

    def _both(self, pairs: Sequence[int]) -> ExampleSet:
        concept = self.sides.concept
        return concat(Subset(concept.positive, pairs), Subset(concept.negative, pairs))

    def _swap(self) -> Float[Tensor, "targets pairs"]:
        both = self._both(self.sides.judge)
        model = next(iter(self.targets.values())).model
        output = self.store.activations(model, [""], both)[""]
        scores = torch.stack([s.read(output).cpu().double() for s in self.targets.values()])
        n = len(self.sides.judge)
        return scores[:, :n] - scores[:, n:]

    def _attributed(
        self, positive: Tensor, negative: Tensor, directions: Tensor, names: tuple[str, ...]
    ) -> tuple[Float[Tensor, "targets pairs concepts"], dict[str, Tensor]]:
        found = [self._integral(score, positive, directions, names, negative) for score in self.targets.values()]
        rest = {name: torch.stack([getattr(f, name) for f in found]) for name in ("remainder", "gap")}
        return torch.stack([f.values for f in found]), rest

    def _units(
        self, positive: Tensor, negative: Tensor
    ) -> tuple[Float[Tensor, "targets pairs"], Float[Tensor, "targets pairs"]]:
        """Return what of the swap the concept's units carry and what is gone without them, beyond random units."""
        unknown = torch.full((len(self.targets), len(positive)), torch.nan, dtype=torch.float64)
        units = self.sides.concept.units
        if not units:
            return unknown, unknown
        rng = np.random.default_rng(self.method.seed)
        channels = self._features(self.sides.fit[:1]).shape[1]
        sets = [list(units)] + [rng.permutation(channels)[: len(units)].tolist() for _ in range(self.method.draws)]
        weights, gone = [], []
        for score in self.targets.values():
            parts = self._integral.path(score, positive, negative).by_unit
            swap = self._change(score, positive, negative, [])
            lost = [swap - self._change(score, positive, negative, chosen) for chosen in sets]
            carried_by = [parts[:, chosen].sum(1) for chosen in sets]
            weights.append(carried_by[0] - torch.stack(carried_by[1:]).mean(0))
            gone.append(lost[0] - torch.stack(lost[1:]).mean(0))
        return torch.stack(weights), torch.stack(gone)

    def _change(self, score: Score, positive: Tensor, negative: Tensor, units: Sequence[int]) -> Float[Tensor, " pairs"]:
        both = [
            silenced(score, self.method.layer, x, units, channels_last=self.method.channels_last)
            for x in (positive, negative)
        ]
        return both[0] - both[1]

    def _mean(self, rows: Float[Tensor, "targets pairs"]) -> dict[str, Float[Tensor, " targets"]]:
        """Return means over pairs with intervals over clusters, for those pairs that have a value."""
        known = ~rows.isnan().all(0)
        unknown = torch.full((len(rows),), torch.nan, dtype=torch.float64)
        if not known.any():
            return dict.fromkeys(("value", "low", "high", "p"), unknown)
        names = [n for n, k in zip(self.sides.clusters(self.sides.judge), known, strict=True) if k]
        found = clustered_mean(rows[:, known].T.nan_to_num(0.0), codes(names), self.method.level)
        return {"value": found.mean, "low": found.low, "high": found.high, "p": found.p}

    def _tested(self) -> dict[str, dict[str, Float[Tensor, " targets"]]]:
        """Return TCAV and the effect in logits, with p corrected over the targets."""
        inputs = self.inputs if self.inputs is not None else self._both(self.sides.judge)
        own = self.input_clusters
        if self.inputs is None:
            own = tuple(self.sides.clusters(self.sides.judge) * 2)
        own = own or tuple(f"input {i}" for i in range(len(inputs)))
        layer, method, fit = self.method.layer, self.method, self.sides.fit
        slopes = self.store.gradients_of(list(self.targets.values()), [layer], inputs, pool=self.method.pool)
        names = self.sides.clusters(fit)
        sign = SignTest(Ridge(), method.pseudo_concepts, method.pseudo_concepts, method.level, method.seed)(
            {layer: self._features(fit)},
            {layer: torch.stack([g[layer].flatten(1).cpu() for g in slopes])},
            codes(names),
            codes(own),
        )
        concept = self.sides.concept
        effect = LogitEffect(method.pool, relabellings=method.relabellings, level=method.level, seed=method.seed)(
            self.store,
            self.targets,
            [layer],
            concept.positive,
            concept.negative,
            inputs,
            Clusters(concept.names, concept.names, own),
        )
        return {
            TCAV: {"value": sign.score[0], "low": sign.low[0], "high": sign.high[0], "p": sign.p_max_t[0]},
            EFFECT: {"value": effect.effect[0], "low": effect.low[0], "high": effect.high[0], "p": effect.p_max_t[0]},
        }


def _widened(rows: Float[Tensor, "targets n"], width: int) -> Float[Tensor, "targets width"]:
    return padded(rows, torch.arange(rows.shape[1]), width)


def _corrected(
    p: Float[Tensor, "measures concepts targets"], measures: Sequence[str]
) -> Float[Tensor, "measures concepts targets"]:
    """Return p corrected over concepts and targets; those of TCAV and effect are corrected over targets already."""
    concepts = p.shape[1]
    return torch.stack(
        [
            (row * concepts).clamp(max=1) if name in {TCAV, EFFECT} else holm(row)
            for name, row in zip(measures, p, strict=True)
        ]
    )
