"""TCAV (Kim et al. 2018): does a class depend on a concept at a layer, and more than on random directions?

Sets of examples become rows of one table; `concepts.tcav.sampling` says which rows every CAV is fitted on, and
`concepts.tcav.sensitivity` fits and reads them, layer by layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from concepts.data.concept_sets import Concept, OverlapError, refuse_overlap
from concepts.tcav.plan import Plan
from concepts.tcav.result import TcavResult
from concepts.tcav.sampling import Mode, NullDraws, Relabelled, Sets
from concepts.tcav.sensitivity import LayerReader, Reading
from probing.attribution.base import Demand
from probing.core.content_ids import content_id
from probing.core.errors import ArgumentError, Mend
from probing.core.progress import Progress
from probing.data.examples import Examples, ExampleSet, Subset, as_examples
from probing.models.runner import Pool
from probing.models.scores import Score
from probing.results.result import Provenance
from probing.statistics.estimators import Estimator, Ridge
from probing.statistics.hypothesis_tests import TooFewError, holm, max_t, permutation_p
from probing.store.store import ActivationStore


@dataclass(frozen=True)
class Tcav:
    """TCAV with a permutation test, intervals, and the effect in logits.

    A run fits one CAV, of the concept against one set of counterparts of its size, and counts for how many inputs the
    score rises along it. How unusual that is, is judged against pseudo-concepts that go through the same runs: a
    t-test over runs (as in paper and code) is wrong, since runs share the concept and the inputs.

    Pseudo-concepts are made of whole clusters, which change places only with clusters of their size. Where the concept's
    and its counterparts' differ in size, fewer examples of the larger ones are used, for everything that is reported:
    one of each cluster if one side has single examples only; see `concepts.tcav.sampling.Sources.exchangeable`.

    The smooth score is the mean over inputs of `Φ(sensitivity / (temperature · typical))`: each input votes with about
    the probability that its sensitivity is larger than a random direction's, `typical` being the root mean square
    sensitivity along pseudo-concepts' CAVs. It has one CAV, fitted on all the concept's examples and all counterparts. It
    is ours, after the idea of α-TCAV (arXiv:2605.15688) to put a smooth function in place of the sign, whose variance
    need not fall with more examples, and all examples into one CAV, whose variance falls as one over their number
    (arXiv:2509.24058).

    Attributes:
        estimator: how CAVs are fitted. The default is one exact solve per CAV, where a null wants thousands, and is
            stable also with about as many features as examples.
        null: how pseudo-concepts are drawn; None: no test and no smooth score.
        runs: CAVs per concept.
        mode: what a concept is compared with: random examples, all other concepts at once, or each in turn.
        pool: what is kept of activations; see `probing.models.runner.Pool`.
        holdout: share of each set that CAVs are tested on and not fitted on (0-1).
        scaling: features are divided by their own deviation over all rows of the table, or by one for the layer.
        bootstraps: draws of the intervals; 0: none.
        relabellings: draws of the null of the effect in logits.
        temperature: of the smooth score; towards 0 it becomes the sign score.
        level: of intervals and decisions (0-1).
    """

    answers: ClassVar[tuple[int, ...]] = (5, 6, 7, 8)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients", "layer")

    estimator: Estimator = field(default_factory=lambda: Ridge(penalty=1.0))
    null: NullDraws | None = field(default_factory=Relabelled)
    runs: int = 20
    mode: Mode = "random"
    pool: Pool = "mean"
    holdout: float = 1 / 3
    scaling: Literal["feature", "layer"] = "feature"
    bootstraps: int = 100
    relabellings: int = 9999
    temperature: float = 1.0
    level: float = 0.95
    seed: int = 0

    def __call__(
        self,
        store: ActivationStore,
        targets: Mapping[str, Score],
        layers: Sequence[str],
        concepts: Sequence[Concept],
        inputs: Examples | Mapping[str, Examples],
        random_pool: Examples | None = None,
        controls: Sequence[Concept] = (),
        *,
        pool_clusters: Sequence[str] = (),
        input_clusters: Sequence[str] = (),
        allow_overlap: bool = False,
    ) -> TcavResult:
        """Return what TCAV finds for all concepts, layers and targets; every distinct example is passed once.

        Args:
            store: reads activations and gradients, and keeps them.
            targets: scores of one model, by name.
            layers: dotted paths or globs.
            concepts: sets of examples; in modes `ovr` and `pairwise` each is compared with the others.
            inputs: what scores are differentiated at, for all targets or for each its own.
            random_pool: what concepts are compared with in mode `random`; equal examples count once.
            controls: coherent concepts that no target should depend on, for the second null.
            pool_clusters: which examples of the pool belong together; none by default.
            input_clusters: the same for inputs, where all targets have the same.
            allow_overlap: accept concepts that share examples with the pool, the inputs or each other.

        Raises:
            OverlapError: if they do, or the pool and the inputs do.
            TooFewError: if a set is too small for what is asked.

        Example:
            >>> result = Tcav()(store, {"zebra": Score(net, 340)}, ["layer3"], [striped], zebras, random_photos)
            >>> result.to_pandas()
        """
        by_target = (
            {target: as_examples(own) for target, own in inputs.items()}
            if isinstance(inputs, Mapping)
            else dict.fromkeys(targets, as_examples(inputs))
        )
        pool = None if random_pool is None else as_examples(random_pool)
        _check_inputs(targets, by_target, input_clusters)
        if not allow_overlap:
            _refuse_overlaps((*concepts, *controls), by_target, pool, relative=self.mode != "random")
        parts, sets = _sets(concepts, controls, pool, by_target, pool_clusters, input_clusters)
        model = next(iter(targets.values())).model
        features = [store.activations(model, layers, part, pool=self.pool) for part in parts]
        gradients = _gradients(store, targets, layers, by_target, self.pool)
        ids = [list(part.ids) for part in [*parts, *by_target.values()]]
        found = self.measure(
            {layer: torch.cat([f[layer].cpu() for f in features]) for layer in features[0]},
            {layer: [g[layer].cpu() for g in gradients] for layer in features[0]},
            sets,
            Provenance.collect(model=model, examples=content_id(ids), method=self),
        )
        return replace(found, units=tuple(score.unit for score in targets.values()))

    def measure(
        self,
        features: Mapping[str, Float[Tensor, "_ ..."]],
        gradients: Mapping[str, Sequence[Float[Tensor, "_ ..."]]],
        sets: Sets,
        provenance: Provenance | None = None,
    ) -> TcavResult:
        """Return what TCAV finds in activations and gradients that are there already.

        Args:
            features: activations of the table's rows, by layer.
            gradients: by layer, for each target in the order of `sets.inputs`, its gradients at the layer.
            sets: which rows make which set.
            provenance: of the data; this process's by default.

        Raises:
            TooFewError: if a set is too small for what is asked.
        """
        null, tests = self.null, len(sets.concepts)
        if isinstance(null, Relabelled):
            null = null.enough(tests, self.level)
        plans = [
            Plan.of(
                sets,
                concept,
                null=null,
                runs=self.runs,
                mode=self.mode,
                holdout=self.holdout,
                bootstraps=self.bootstraps,
                relabellings=self.relabellings,
                seed=self.seed,
            )
            for concept in sets.concepts
        ]
        readers = [
            LayerReader.of(
                rows.flatten(1),
                [g.flatten(1) for g in gradients[layer]],
                self.scaling,
                self.estimator,
                self.temperature,
                self.level,
            )
            for layer, rows in features.items()
        ]
        readings: list[list[Reading]] = []
        with Progress(len(readers) * len(plans), "TCAV", unit="concepts at layers") as meter:
            for reader in readers:
                readings.append([])
                for plan in plans:
                    readings[-1].append(reader.read(plan))
                    meter.advance(1)
        values = {
            name: torch.stack([torch.stack([r.values[name] for r in row]) for row in readings])
            for name in readings[0][0].values
        }
        p, p_max_t = _tests(readings, "distance", plans)
        effect_p, effect_p_max_t = _tests(readings, "effect", plans)
        return TcavResult(
            provenance=provenance or Provenance.collect(method=self),
            layers=tuple(features),
            concepts=tuple(sets.concepts),
            targets=tuple(sets.inputs),
            controls=tuple(sets.controls),
            mode=self.mode,
            level=self.level,
            p=p,
            p_holm=holm(p),
            p_max_t=p_max_t,
            effect_p=effect_p,
            effect_p_holm=holm(effect_p),
            effect_p_max_t=effect_p_max_t,
            gradient_spread=torch.stack([reader.gradient_spread for reader in readers]),
            pseudo_concepts=min(len(plan.null) // len(plan.fit) for plan in plans),
            units=(),
            **values,
        )


def _check_inputs(targets: Mapping[str, Score], inputs: Mapping[str, ExampleSet], clusters: Sequence[str]) -> None:
    if list(inputs) != list(targets):
        raise ArgumentError(f"inputs are for {list(inputs)}, targets are {list(targets)}: give each target its inputs.")
    for name, examples in inputs.items():
        if not len(examples):
            raise TooFewError(f"target {name!r} has no inputs to differentiate its score at.")
        if clusters and len(clusters) != len(examples):
            raise ArgumentError(f"input_clusters has {len(clusters)} names for {len(examples)} inputs: give one each.")


def _refuse_overlaps(
    concepts: Sequence[Concept],
    inputs: Mapping[str, ExampleSet],
    pool: ExampleSet | None,
    *,
    relative: bool,
) -> None:
    about = {f"the inputs of {target}": examples for target, examples in inputs.items()}
    pools = {} if pool is None else {"the random pool": pool}
    for i, concept in enumerate(concepts):
        others = {c.name: c.examples for c in concepts[i + 1 :]} if relative else {}
        refuse_overlap(concept, {**pools, **others, **about})
    for name, examples in about.items():
        if pool is not None and (shared := len(set(pool.ids) & set(examples.ids))):
            raise OverlapError(
                f"the random pool shares {shared} examples with {name}: leave them out of one of the two",
                mends=[Mend("allow it, if it is meant,", "allow_overlap=True")],
            )


def _sets(
    concepts: Sequence[Concept],
    controls: Sequence[Concept],
    pool: ExampleSet | None,
    inputs: Mapping[str, ExampleSet],
    pool_clusters: Sequence[str],
    input_clusters: Sequence[str],
) -> tuple[list[ExampleSet], Sets]:
    """Return the sets of examples whose rows make the table, and which rows are whose."""
    parts: list[ExampleSet] = [c.examples for c in (*concepts, *controls)]
    clusters = [name for c in (*concepts, *controls) for name in _names(c.clusters, c.name, len(c))]
    if pool is not None:
        if pool_clusters and len(pool_clusters) != len(pool):
            raise ArgumentError(f"pool_clusters has {len(pool_clusters)} names for {len(pool)} examples: give one each.")
        first = sorted({id_: i for i, id_ in reversed(list(enumerate(pool.ids)))}.values())
        names = _names(pool_clusters, "pool", len(pool))
        parts.append(Subset(pool, first))
        clusters += [names[i] for i in first]
    ends = np.cumsum([0, *map(len, parts)])
    rows = [range(a, b) for a, b in pairwise(ends.tolist())]
    named = [c.name for c in concepts]
    return parts, Sets(
        concepts=dict(zip(named, rows, strict=False)),
        controls=dict(zip([c.name for c in controls], rows[len(named) :], strict=False)),
        pool=rows[-1] if pool is not None else (),
        clusters=clusters,
        inputs={t: _names(input_clusters, "input", len(x)) for t, x in inputs.items()},
    )


def _names(clusters: Sequence[str], kind: str, count: int) -> Sequence[str]:
    """Return clusters as given, or each example as its own."""
    return clusters or [f"{kind} {i}" for i in range(count)]


def _gradients(
    store: ActivationStore,
    targets: Mapping[str, Score],
    layers: Sequence[str],
    inputs: Mapping[str, ExampleSet],
    pool: Pool,
) -> list[dict[str, Tensor]]:
    sets = list(inputs.values())
    one_each = any(score.is_open or score.count is not None for score in targets.values())  # a class or box of each input
    if all(examples is sets[0] for examples in sets) and not one_each:
        return store.gradients_of(list(targets.values()), layers, sets[0], pool=pool)
    return [store.gradients(score, layers, inputs[name], pool=pool) for name, score in targets.items()]


def _tests(
    readings: Sequence[Sequence[Reading]],
    what: Literal["distance", "effect"],
    plans: Sequence[Plan],
) -> tuple[Float[Tensor, "layers concepts targets"], Float[Tensor, "layers concepts targets"]]:
    """Return p in each cell, and corrected over layers and targets by max-t, over concepts by Bonferroni."""
    found = []
    for c, plan in enumerate(plans):
        cells = [row[c] for row in readings]
        if what == "effect":
            size = torch.stack([cell.values["effect"] for cell in cells]).abs()
            null, exact = torch.stack([cell.effect_null for cell in cells], 1).abs(), plan.exact
        else:
            size = torch.stack([cell.distance for cell in cells])
            null, exact = torch.stack([cell.distance_null for cell in cells], 1), False
        unknown = torch.full_like(size, torch.nan)
        tests = [test(size, null, exact=exact) if len(null) else unknown for test in (permutation_p, max_t)]
        found.append(torch.stack(tests))
    p, together = torch.stack(found, 2)
    return p, (together * len(plans)).clamp(max=1)
