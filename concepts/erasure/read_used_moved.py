"""Read, used, moved: what probes, patching, erasure, effects and swaps say of the same attributes on the same pairs.

Each is another question, and they part: an attribute that is read off a layer need not be used there (Elazar et al. 2021),
what is predicted to first order need not happen, and what happens need not go through the directions that probes find.
All numbers of the table but the error of the probe are in score units and of the swap from negatives to positives, so
that they can be held against each other; in a network that is linear behind a layer, they are the same.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from concepts.effects.logit_effect import Clusters, LogitEffect
from concepts.effects.result import EffectResult
from concepts.erasure.eraser import CrossMoments, ErasureError, Kind, eraser_of
from concepts.erasure.erasure import more, signed
from concepts.erasure.passes import mean_rows
from concepts.erasure.patching import Removed, carried_of, lost_of, swap_of
from concepts.erasure.table import ReadUsedMovedResult
from concepts.local_vs_global.matched_pairs import MatchedConcept, Sides
from probing.core.content_ids import content_id
from probing.core.seeds import seed_of
from probing.data.examples import Examples, Subset, as_examples, concat
from probing.models.layers import several
from probing.models.scores import Score, refuse_training
from probing.results.result import Provenance
from probing.statistics.clustered import ClusteredMean, ClusteredShare, clustered_mean, clustered_share, holm
from probing.statistics.estimators import Ridge
from probing.statistics.hypothesis_tests import codes, max_t, relabellings
from probing.statistics.linear_classifiers import fit_pairs
from probing.store.requests import model_of
from probing.store.store import ActivationStore


@dataclass(frozen=True)
class ReadUsedMoved:
    """Measures for attributes and layers whether an attribute is read, used and moves scores, and where these part.

    Clusters of pairs are divided into those to fit on and those to judge on. At each layer, of rows that are means over
    places:

    - read: a ridge classifier of positives against negatives errs less than by chance;
    - carried: what the fitted eraser takes away, put over from positives into negatives' passes, changes a score, more
      than random directions do (`Patching`);
    - needed: with it erased, the score differs less between positives and negatives, by more than with random directions
      removed (`Erasure`);
    - predicted: the score's gradient times the mean difference of all clusters but the input's own (`LogitEffect`);
    - moved: positives score otherwise than their negatives.

    Attributes:
        layers: dotted paths.
        kind: of the eraser, as `Erasure` takes it.
        controls: draws of as many random directions as the eraser removes.
        relabellings: of the tests of reading and of the predicted effect.
        bootstraps: of the interval of the predicted effect.
        share: of the clusters, that are fitted on (0-1).
        level: of intervals; a corrected p below 1 - level is called evidence.
        seed: of the division and the draws.

    Raises:
        ErasureError: for attributes without names of their own, or without controls.
        ComparisonError: for an attribute whose pairs all lie on one side of the division.

    Example:
        >>> found = ReadUsedMoved(("layer3", "layer4"))(store, {"zebra": Score(net, 3)}, [concept])
        >>> found.to_pandas()[["attribute", "layer", "error", "carried", "needed", "predicted", "moved", "says"]]
    """

    layers: str | tuple[str, ...]
    kind: Kind = "leace"
    controls: int = 10
    relabellings: int = 9999
    bootstraps: int = 1000
    share: float = 0.5
    level: float = 0.95
    seed: int = 0

    def __call__(
        self,
        store: ActivationStore,
        scores: Mapping[str, Score],
        concepts: Sequence[MatchedConcept],
        *,
        inputs: Examples | None = None,
        input_clusters: Sequence[str] = (),
        fitted_on: Collection[str] | None = None,
    ) -> ReadUsedMovedResult:
        """Return the table.

        Args:
            store: reads activations and gradients, and keeps them.
            scores: by name, of one model, with one class each.
            concepts: the attributes, each as matched inputs.
            inputs: what scores are differentiated at for the predicted effect; by default each concept's negatives.
            input_clusters: what each of these belongs to.
            fitted_on: the clusters that are fitted on; by default `share` of them, drawn at random.
        """
        model = model_of(list(scores.values()))
        refuse_training(model)
        names = [concept.name for concept in concepts]
        if not names or len(set(names)) < len(names):
            raise ErasureError(f"a table needs attributes of different names, got {names}.")
        if self.controls < 1:
            raise ErasureError(f"controls must be at least 1, got {self.controls}: else nothing has a measure.")
        given = None if inputs is None else as_examples(inputs)
        run = _Run(self, store, scores, given, tuple(input_clusters))
        rows = [run.attribute(Sides.of(c, fitted_on, self.share, self.seed)) for c in concepts]
        read_p, predicted_p = (
            (len(rows) * torch.stack(p)).clamp(max=1)
            for p in ([row.read_p for row in rows], [row.predicted.p_max_t for row in rows])
        )
        swap = [row.swap for row in rows]
        return ReadUsedMovedResult(
            provenance=Provenance.collect(
                model=model,
                examples=content_id([[*c.negative.ids, *c.positive.ids, *c.names] for c in concepts]),
                method=self,
            ),
            attributes=tuple(names),
            layers=tuple(several(self.layers)),
            targets=tuple(scores),
            error=1 - torch.stack([row.read.share for row in rows]),
            error_low=1 - torch.stack([row.read.high for row in rows]),
            error_high=1 - torch.stack([row.read.low for row in rows]),
            read_p=read_p,
            carried=torch.stack([row.carried.mean for row in rows]),
            carried_low=torch.stack([row.carried.low for row in rows]),
            carried_high=torch.stack([row.carried.high for row in rows]),
            carried_control=torch.stack([row.carried_control for row in rows]),
            carried_p=holm(torch.stack([row.carried_p for row in rows])),
            needed=torch.stack([row.needed.mean for row in rows]),
            needed_low=torch.stack([row.needed.low for row in rows]),
            needed_high=torch.stack([row.needed.high for row in rows]),
            needed_control=torch.stack([row.needed_control for row in rows]),
            needed_p=holm(torch.stack([row.needed_p for row in rows])),
            predicted=torch.stack([row.predicted.effect for row in rows]),
            predicted_low=torch.stack([row.predicted.low for row in rows]),
            predicted_high=torch.stack([row.predicted.high for row in rows]),
            predicted_p=predicted_p,
            moved=torch.stack([s.mean for s in swap]),
            moved_low=torch.stack([s.low for s in swap]),
            moved_high=torch.stack([s.high for s in swap]),
            moved_p=holm(torch.stack([s.p for s in swap])),
            fitted=tuple(row.fitted for row in rows),
            judged=tuple(row.swap.clusters for row in rows),
            controls=self.controls,
            level=self.level,
        )


@dataclass(frozen=True, eq=False)
class _Row:
    """What is found of one attribute."""

    read: ClusteredShare
    read_p: Float[Tensor, " layers"]
    carried: ClusteredMean
    carried_control: Float[Tensor, "layers targets"]
    carried_p: Float[Tensor, "layers targets"]
    needed: ClusteredMean
    needed_control: Float[Tensor, "layers targets"]
    needed_p: Float[Tensor, "layers targets"]
    predicted: EffectResult
    swap: ClusteredMean
    fitted: int


@dataclass(frozen=True, eq=False)
class _Run:
    """One table: its scores, and the inputs that they are differentiated at."""

    how: ReadUsedMoved
    store: ActivationStore
    scores: Mapping[str, Score]
    inputs: Examples | None
    input_clusters: tuple[str, ...]

    def attribute(self, sides: Sides) -> _Row:
        how, concept, layers = self.how, sides.concept, several(self.how.layers)
        judged = _part(concept, sides.judge)
        clusters = codes(judged.names)
        swap = clustered_mean(swap_of(self.scores, judged), clusters, how.level)
        sign = swap.mean.sign().expand(len(layers), -1)
        right, changes = [], []
        for layer in layers:
            rows, removed = self._fitted(layer, sides)
            right.append(_right(rows, sides))
            seeds = [seed_of(how.seed, layer, k) for k in range(how.controls)]
            put = carried_of(self.scores, judged, layer, removed, seeds)
            parts = [removed, *(removed.at_random(rows.shape[1], seed) for seed in seeds)]
            own, *others = lost_of(self.scores, judged, layer, [part.eraser for part in parts])
            changes.append((*put, own, torch.stack(others).mean(0)))
        carried, put_control, erased, control = (torch.stack(c, 1) for c in zip(*changes, strict=True))
        # Carried and needed are parts of a swap, and more of it than at random: both must be shown.
        more_carried, more_needed = (
            torch.maximum(more(signed(clustered_mean(beyond, clusters, how.level), sign)), swap.p.expand_as(sign))
            for beyond in (carried - put_control, erased - control)
        )
        return _Row(
            read=clustered_share(torch.stack(right, 1), clusters.repeat(2), how.level),
            read_p=self._read_p(torch.stack(right, 1) - 0.5, clusters),
            carried=clustered_mean(carried, clusters, how.level),
            carried_control=put_control.mean(0),
            carried_p=more_carried,
            needed=clustered_mean(erased, clusters, how.level),
            needed_control=control.mean(0),
            needed_p=more_needed,
            predicted=self._predicted(concept, swap),
            swap=swap,
            fitted=len({concept.names[i] for i in sides.fit}),
        )

    def _fitted(self, layer: str, sides: Sides) -> tuple[Float[Tensor, "both m"], Removed]:
        """Return all rows, positives first, and what an eraser takes that is fitted to those of some clusters."""
        concept, n = sides.concept, len(sides.concept.positive)
        model = model_of(list(self.scores.values()))
        rows, _ = mean_rows(self.store, model, layer, concat(concept.positive, concept.negative))
        fit = [*sides.fit, *(n + i for i in sides.fit)]
        moments = CrossMoments()
        moments.add(rows[fit], (torch.tensor(fit) < n).double()[:, None])
        found = moments.value()
        return rows, Removed(eraser_of(found, self.how.kind), found, self.how.kind == "leace")

    def _read_p(self, excess: Float[Tensor, "both layers"], clusters: Int[Tensor, " pairs"]) -> Float[Tensor, " layers"]:
        """Return p of reading no better than by chance, by swapping the sides of whole clusters; corrected over layers."""
        count = int(clusters.max()) + 1
        total = torch.zeros(count, excess.shape[1], dtype=torch.float64).index_add_(0, clusters.repeat(2), excess)
        sides, each = torch.arange(2).repeat_interleave(count), torch.arange(count).repeat(2)
        drawn = relabellings(sides, each, self.how.relabellings, self.how.seed)
        return max_t(total.sum(0), (1 - 2 * drawn.labels[:, :count].double()) @ total, exact=drawn.exact)

    def _predicted(self, concept: MatchedConcept, swap: ClusteredMean) -> EffectResult:
        how = self.how
        inputs = concept.negative if self.inputs is None else as_examples(self.inputs)
        names = concept.names if self.inputs is None else self.input_clusters or tuple(inputs.ids)
        method = LogitEffect("mean", how.relabellings, how.bootstraps, how.level, how.seed)
        clusters = Clusters(concept.names, concept.names, names)
        return method(
            self.store, self.scores, several(how.layers), concept.positive, concept.negative, inputs, clusters, swap
        )


def _part(concept: MatchedConcept, pairs: Sequence[int]) -> MatchedConcept:
    """Return some of a concept's pairs."""
    names = tuple(concept.names[i] for i in pairs)
    return MatchedConcept(concept.name, Subset(concept.positive, pairs), Subset(concept.negative, pairs), names)


def _right(rows: Float[Tensor, "both m"], sides: Sides) -> Float[Tensor, "judged"]:
    """Return whether held-out rows are on their side of a ridge classifier of the others, positives first; 1/2 on it."""
    n = len(rows) // 2
    fit, judge = (torch.tensor(part) for part in (sides.fit, sides.judge))
    classifier = fit_pairs(rows, fit[None], n + fit[None], Ridge())
    said = classifier.decision(torch.cat([rows[judge], rows[n + judge]]))[0]
    return (1 + said.sign() * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(len(judge))) / 2
