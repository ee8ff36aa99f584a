"""TCAV (Kim et al. 2018): does a class depend on a concept at a layer, and more than on random directions?

Sets of examples become rows of one table; `concepts.draws` says which rows every CAV is fitted on; here CAVs are fitted
and read. A CAV is never formed: all that is needed of it is its products with the gradients.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from concepts.draws import Mode, NullDraws, Pairs, Relabelled, Sets
from concepts.effect import layer_effect
from concepts.plan import Plan
from concepts.sets import Concept, refuse_overlap
from concepts.statistics import (
    TooFewError,
    above_chance,
    code_t_test,
    holm,
    max_t,
    paper_t_test,
    percentile_interval,
    permutation_p,
)
from concepts.tcav_result import TcavResult
from probing.estimators import Estimator, Ridge
from probing.examples import ExampleSet, Subset
from probing.fingerprint import content_id
from probing.linear import PairFits, RowProducts, SharedRows, fit_pairs
from probing.passes import Pool
from probing.provenance import Provenance
from probing.scores import Score
from probing.store import ActivationStore

_CHUNK = 1 << 23  # products of CAVs and gradients held at a time


@dataclass(frozen=True)
class Tcav:
    """TCAV with a permutation test, intervals, and the effect in logits.

    A run fits one CAV, of the concept against one set of counterparts of its size, and counts for how many inputs the
    score rises along it. How unusual that is, is judged against pseudo-concepts that go through the same runs: a
    t-test over runs (as in paper and code) is wrong, since runs share the concept and the inputs.

    The smooth score is the mean over inputs of `Φ(sensitivity / (temperature · typical))`: each input votes with the
    probability that its sensitivity is larger than a random direction's, `typical` being the root mean square
    sensitivity along pseudo-concepts' CAVs. It has one CAV, fitted on all the concept's examples and all counterparts. It
    is ours, after the idea of α-TCAV (arXiv:2605.15688) to put a smooth function in place of the sign, whose variance
    need not fall with more examples, and all examples into one CAV, whose variance falls as one over their number
    (arXiv:2509.24058).

    Attributes:
        estimator: how CAVs are fitted. The default is one exact solve per CAV, where a null wants thousands, and is
            stable also with about as many features as examples.
        null: how pseudo-concepts are drawn; None: no test and no smooth score.
        runs: CAVs per concept.
        mode: what a concept is told from: random examples, all other concepts at once, or each in turn.
        pool: what is kept of activations; see `probing.passes.Pool`.
        holdout: share of each set that CAVs are tested on and not fitted on (0-1).
        scaling: features are divided by their own deviation over all rows of the table, or by one for the layer.
        bootstraps: draws of the intervals; 0: none.
        relabellings: draws of the null of the effect in logits.
        temperature: of the smooth score; towards 0 it becomes the sign score.
        level: of intervals and decisions (0-1).
    """

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
        self, store: ActivationStore, targets: Mapping[str, Score], layers: Sequence[str], concepts: Sequence[Concept],
        inputs: ExampleSet | Mapping[str, ExampleSet], random_pool: ExampleSet | None = None,
        controls: Sequence[Concept] = (), *, pool_clusters: Sequence[str] = (), input_clusters: Sequence[str] = (),
        allow_overlap: bool = False,
    ) -> TcavResult:  # fmt: skip
        """Return what TCAV finds for all concepts, layers and targets, from one pass over all distinct examples.

        Args:
            store: reads activations and gradients, and keeps them.
            targets: scores of one model, by name.
            layers: dotted paths or globs.
            concepts: sets of examples; in modes `ovr` and `pairwise` each is told from the others.
            inputs: what scores are differentiated at, for all targets or for each its own.
            random_pool: what concepts are told from in mode `random`; equal examples count once.
            controls: coherent concepts that no target should depend on, for the second null.
            pool_clusters: which examples of the pool belong together; none by default.
            input_clusters: the same for inputs, where all targets have the same.
            allow_overlap: accept concepts that share examples with the pool, the inputs or each other.

        Raises:
            OverlapError: if they do.
            TooFewError: if a set is too small for what is asked.

        Example:
            >>> result = Tcav()(store, {"zebra": Score(net, 340)}, ["layer3"], [striped], zebras, random_photos)
            >>> result.to_pandas()
        """
        by_target = dict(inputs) if isinstance(inputs, Mapping) else dict.fromkeys(targets, inputs)
        _check_inputs(targets, by_target, input_clusters)
        for i, concept in enumerate(concepts):
            others = (
                {c.name: c.examples for c in concepts[i + 1 :]} if self.mode != "random" else {}
            )
            pools = {"the random pool": random_pool} if random_pool is not None else {}
            about = {f"the inputs of {t}": x for t, x in by_target.items()}
            refuse_overlap(concept, {**pools, **others, **about}, allow_overlap=allow_overlap)
        parts, sets = _sets(
            concepts, controls, random_pool, by_target, pool_clusters, input_clusters
        )
        model = next(iter(targets.values())).model
        features = [store.activations(model, layers, part, pool=self.pool) for part in parts]
        gradients = _gradients(store, targets, layers, by_target, self.pool)
        ids = [list(part.ids) for part in [*parts, *by_target.values()]]
        return self.measure(
            {layer: torch.cat([f[layer].cpu() for f in features]) for layer in features[0]},
            {layer: [g[layer].cpu() for g in gradients] for layer in features[0]},
            sets,
            Provenance.collect(model=model, examples=content_id(ids), method=self),
        )

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
        plans = [
            Plan.of(
                sets, concept, null=self.null, runs=self.runs, mode=self.mode, holdout=self.holdout,
                bootstraps=self.bootstraps, relabellings=self.relabellings, seed=self.seed,
            )
            for concept in sets.concepts
        ]  # fmt: skip
        found = [
            _Layer.of(self, rows.flatten(1), [g.flatten(1) for g in gradients[layer]]).read(plans)
            for layer, rows in features.items()
        ]
        return _assemble(
            self, found, plans, tuple(features), sets, provenance or Provenance.collect(method=self)
        )


def _check_inputs(
    targets: Mapping[str, Score], inputs: Mapping[str, ExampleSet], clusters: Sequence[str]
) -> None:
    if list(inputs) != list(targets):
        raise ValueError(
            f"inputs are for {list(inputs)}, targets are {list(targets)}: give each target its inputs."
        )
    for name, examples in inputs.items():
        if not len(examples):
            raise TooFewError(f"target {name!r} has no inputs to differentiate its score at.")
        if clusters and len(clusters) != len(examples):
            raise ValueError(
                f"input_clusters has {len(clusters)} names for {len(examples)} inputs: give one each."
            )


def _sets(
    concepts: Sequence[Concept], controls: Sequence[Concept], pool: ExampleSet | None,
    inputs: Mapping[str, ExampleSet], pool_clusters: Sequence[str], input_clusters: Sequence[str],
) -> tuple[list[ExampleSet], Sets]:  # fmt: skip
    """Return the sets of examples whose rows make the table, and which rows are whose."""
    parts: list[ExampleSet] = [c.examples for c in (*concepts, *controls)]
    clusters = [name for c in (*concepts, *controls) for name in _names(c.clusters, c.name, len(c))]
    if pool is not None:
        if pool_clusters and len(pool_clusters) != len(pool):
            raise ValueError(
                f"pool_clusters has {len(pool_clusters)} names for {len(pool)} examples: give one each."
            )
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
    store: ActivationStore, targets: Mapping[str, Score], layers: Sequence[str], inputs: Mapping[str, ExampleSet],
    pool: Pool,
) -> list[dict[str, Tensor]]:  # fmt: skip
    sets = list(inputs.values())
    if all(examples is sets[0] for examples in sets):
        return store.gradients_of(list(targets.values()), layers, sets[0], pool=pool)
    return [
        store.gradients(score, layers, inputs[name], pool=pool) for name, score in targets.items()
    ]


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer's activations, and the gradients of all targets there."""

    method: Tcav
    rows: SharedRows
    products: RowProducts
    owner: Int[Tensor, " inputs"]
    """The target of each gradient."""
    share: Float[Tensor, "inputs targets"]
    """One over a target's number of inputs, at its own."""
    spread: Float[Tensor, " targets"]

    @classmethod
    def of(
        cls,
        method: Tcav,
        features: Float[Tensor, "rows m"],
        gradients: Sequence[Float[Tensor, "_ m"]],
    ) -> "_Layer":
        rows = SharedRows(features, method.scaling)
        sizes = torch.tensor([len(g) for g in gradients])
        owner = torch.repeat_interleave(sizes)
        share = torch.nn.functional.one_hot(owner, len(gradients)) / sizes.double()
        spread = torch.stack([_spread(g) for g in gradients])
        return cls(
            method, rows, RowProducts(rows, torch.cat(list(gradients))), owner, share, spread
        )

    def read(self, plans: Sequence[Plan]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return what is found for all concepts, stacked, and for each the null of its effect."""
        cells, nulls = zip(*(self._concept(plan) for plan in plans), strict=True)
        stacked = {name: torch.stack([cell[name] for cell in cells]) for name in cells[0]}
        return stacked | {"gradient_spread": self.spread}, list(nulls)

    def _concept(
        self, plan: Plan
    ) -> tuple[dict[str, Tensor], Float[Tensor, "relabellings targets"]]:
        runs = len(plan.fit)
        fits = self._fit(plan.fit)
        s = fits.project(self.products)
        positive, total = s.clamp(min=0).sum(0) @ self.share, s.abs().sum(0) @ self.share
        null, typical = self._votes(plan.null, runs)
        votes = _votes(s, self.share).mean(0)
        low, high = self._interval(plan.bootstrap, plan.input_weights, runs)
        scores = (s > 0).double() @ self.share
        accuracy = torch.stack(fits.accuracy(plan.held_out.positive, plan.held_out.negative)).mean(
            0
        )
        effect, effect_null = self._effect(plan)
        found = {
            "scores": scores.T,
            "mean": scores.mean(0),
            "low": low,
            "high": high,
            "ties": (s == 0).double().mean(0) @ self.share,
            "magnitude": s.mean(0) @ self.share,
            "positive_share": positive / total,
            "smooth": self._smooth(plan.whole, typical),
            "accuracy": accuracy,
            "accuracy_p": above_chance(accuracy.mean(), plan.trials),
            "stability": torch.tensor(fits.mean_cosine(), dtype=torch.float64),
        }
        tests = _tests(votes, scores, null, self._votes(plan.controls, runs)[0], self.method.level)
        return found | tests | effect, effect_null

    def _fit(self, pairs: Pairs) -> PairFits:
        return fit_pairs(self.rows, pairs.positive, pairs.negative, self.method.estimator)

    def _sensitivities(
        self, pairs: Pairs, runs: int
    ) -> Iterator[Float[Tensor, "sets runs inputs"]]:
        """Yield sensitivities of some sets at a time; with no sets, nothing."""
        step = runs * max(1, _CHUNK // (runs * len(self.owner)))
        for start in range(0, len(pairs), step):
            found = self._fit(pairs.part(start, start + step)).project(self.products)
            yield found.reshape(-1, runs, found.shape[1])

    def _votes(
        self, pairs: Pairs, runs: int
    ) -> tuple[Float[Tensor, "sets runs targets"], Float[Tensor, " targets"]]:
        """Return the votes of each set and run, and the root mean square sensitivity over all of them."""
        votes, squares = [], torch.zeros(self.share.shape[1], dtype=torch.float64)
        for s in self._sensitivities(pairs, runs):
            votes.append(_votes(s, self.share))
            squares += s.square().sum((0, 1)) @ self.share
        if not votes:
            return torch.zeros(0, runs, len(squares), dtype=torch.float64), torch.full_like(
                squares, torch.nan
            )
        return torch.cat(votes), (squares / len(pairs)).sqrt()

    def _interval(
        self, pairs: Pairs, weights: Float[Tensor, "draws inputs"], runs: int
    ) -> tuple[Float[Tensor, " targets"], Float[Tensor, " targets"]]:
        if not len(pairs):
            unknown = torch.full((self.share.shape[1],), torch.nan, dtype=torch.float64)
            return unknown, unknown
        rising = torch.cat([(s > 0).double().mean(1) for s in self._sensitivities(pairs, runs)])
        return percentile_interval(
            (rising * weights) @ (self.share > 0).double(), self.method.level
        )

    def _smooth(
        self, whole: Pairs, typical: Float[Tensor, " targets"]
    ) -> Float[Tensor, " targets"]:
        if typical.isnan().all():
            return typical
        s = self._fit(whole).project(self.products)[0]
        scale = (self.method.temperature * typical)[self.owner]
        return torch.where(s == 0, 0.5, torch.special.ndtr(s / scale)) @ self.share

    def _effect(
        self, plan: Plan
    ) -> tuple[dict[str, Tensor], Float[Tensor, "relabellings targets"]]:
        products = self.products.weighted(0)
        concept, others = plan.whole.positive[0], plan.whole.negative[0]
        rows = torch.cat([concept, others])
        bounds = self.share.new_empty(3, self.share.shape[1])
        null = self.share.new_empty(len(plan.designs[0][1].relabelled.labels), self.share.shape[1])
        for targets, design in plan.designs:
            own = torch.stack([products[self.owner == target][:, rows] for target in targets])
            found = layer_effect(own, design)
            bounds[:, targets] = torch.stack(
                [found.effect, *found.interval(design.groups, self.method.level)]
            )
            null[:, targets] = found.null
        slope = self.share.T @ products
        controls = [
            slope[:, torch.from_numpy(r)].mean(1) - slope[:, others].mean(1)
            for r in plan.control_rows
        ]
        names = ("effect", "effect_low", "effect_high")
        values = dict(zip(names, bounds, strict=True))
        return values | {"effect_p_controls": _rank(bounds[0], controls)}, null


def _rank(
    effect: Float[Tensor, " targets"], controls: Sequence[Float[Tensor, " targets"]]
) -> Float[Tensor, " targets"]:
    if not controls:
        return torch.full_like(effect, torch.nan)
    return permutation_p(effect.abs(), torch.stack(list(controls)).abs())


def _spread(gradients: Float[Tensor, "inputs m"]) -> Float[Tensor, ""]:
    mean = gradients.double().mean(0)
    farthest = torch.linalg.vector_norm(gradients - mean, dim=1).max()
    return torch.nan_to_num(farthest / torch.linalg.vector_norm(mean))


def _votes(
    s: Float[Tensor, "*runs inputs"], share: Float[Tensor, "inputs targets"]
) -> Float[Tensor, "*runs targets"]:
    """Return the share of inputs with positive sensitivity, ties counted half."""
    return (s.sign() @ share + 1) / 2


def _tests(
    votes: Float[Tensor, " targets"],
    scores: Float[Tensor, "runs targets"],
    null: Float[Tensor, "sets runs targets"],
    controls: Float[Tensor, "controls runs targets"],
    level: float,
) -> dict[str, Tensor]:
    unknown = torch.full_like(votes, torch.nan)
    several = len(scores) > 1
    found = {
        "p": unknown,
        "p_controls": unknown,
        "p_paper": paper_t_test(scores.T) if several else unknown,
        "p_code": unknown,
        "null_low": unknown,
        "null_high": unknown,
    }
    for name, sets in (("p", null), ("p_controls", controls)):
        if len(sets):
            found[name] = permutation_p((votes - 0.5).abs(), (sets.mean(1) - 0.5).abs())
    if len(null):
        # The original code compares R runs with R(R - 1) runs of random sets against the same R random sets.
        random = null[: len(scores) - 1].flatten(0, 1)
        found["p_code"] = (
            code_t_test(scores.T, random.T) if several and len(random) > 1 else unknown
        )
        found["null_low"], found["null_high"] = percentile_interval(null.mean(1), level)
    return found


def _assemble(
    method: Tcav, found: Sequence[tuple[dict[str, Tensor], list[Tensor]]], plans: Sequence[Plan],
    layers: tuple[str, ...], sets: Sets, provenance: Provenance,
) -> TcavResult:  # fmt: skip
    values = {name: torch.stack([layer[name] for layer, _ in found]) for name in found[0][0]}
    p, together = [], []
    for c, plan in enumerate(plans):
        size = values["effect"][:, c].abs()
        null = torch.stack([nulls[c] for _, nulls in found], 1).abs()
        exact = plan.designs[0][1].relabelled.exact
        p.append(permutation_p(size, null, exact=exact))
        together.append(max_t(size, null, exact=exact))
    effect_p = torch.stack(p, 1)
    return TcavResult(
        provenance=provenance,
        layers=layers,
        concepts=tuple(sets.concepts),
        targets=tuple(sets.inputs),
        controls=tuple(sets.controls),
        mode=method.mode,
        level=method.level,
        p_holm=holm(values["p"]),
        effect_p=effect_p,
        effect_p_holm=holm(effect_p),
        effect_p_max_t=(torch.stack(together, 1) * len(plans)).clamp(max=1),
        pseudo_concepts=min(len(plan.null) // len(plan.fit) for plan in plans),
        **values,
    )
