"""Discovery: a dictionary of a layer's activations, learned of some examples and judged on held-out ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from concepts.data.manifest import Pairs
from concepts.discovery.dictionary import Dictionary, chunks
from concepts.discovery.importance import score_parts, shuffled_p, sobol_indices
from concepts.discovery.learners import Learner, SemiNmf
from concepts.discovery.matching import Agreement, agreement, matched_cosine, partners
from concepts.discovery.naming import Strengths, name_atoms
from concepts.discovery.replacement import Replacement, replaced
from concepts.discovery.result import DiscoveryError, DiscoveryResult, Importance, TwinReading
from concepts.discovery.rows import LayerRows, Places, read_rows
from concepts.dissection.unit_contrasts import UnitContrasts, UnitShifts
from concepts.effects.logit_effect import split_clusters
from concepts.local_vs_global.matched_pairs import MatchedConcept
from probing.core.content_ids import content_id
from probing.core.inputs import one_tensor
from probing.data.examples import Examples, ExampleSet, Subset, as_examples, concat
from probing.models.loading import Model, module_of
from probing.models.readings import OutputError
from probing.models.scores import Score
from probing.probes.untrained_copy import untrained_copy
from probing.results.result import Provenance
from probing.statistics.hypothesis_tests import clustered_mean, codes as numbers
from probing.store.store import ActivationStore


@dataclass(frozen=True)
class Discovery:
    """Finds directions in a layer that nobody named, and asks of each whether it is more than chance.

    Clusters of examples are divided at random: atoms are learned of one part, and all that is said of them is measured on
    the other.

    - Reconstruction, and what the network loses with it in the layer's place.
    - Stability: the same learner on the other part, and from other seeds on the same part, matched one to one; beside
      unrelated dictionaries (`concepts.discovery.matching.agreement`).
    - Importance for scores (`concepts.discovery.importance`), tested against atoms whose numbers stand at other units:
      exact for what reads units in an order that does not matter beforehand, as a head of independent weights does.
    - Matched images: does swapping an attribute move an atom? Sides are swapped within whole clusters, p corrected for
      all atoms and attributes (`concepts.dissection.unit_contrasts`).
    - The untrained twin: a random network yields dictionaries too (arXiv:2501.17727).
    - Names, where strengths of names are given (`concepts.discovery.naming`).

    Attributes:
        layer: a dotted path.
        learner: how atoms are learned; `Nmf` for layers without negative values, `SemiNmf` for any.
        places: rows are places of maps and tokens, or means over them. Means can't be put back into maps, so that
            there is neither replacement nor importance.
        share: of the clusters, that atoms are learned of (0-1).
        refits: other seeds.
        draws: unrelated dictionaries, shuffled atoms and shuffled names; p is at least `1 / (draws + 1)`.
        relabellings: of matched images.
        explained: held-out examples that importance is measured on, spread evenly.
        masks: pairs of masks of Sobol indices, for each of these examples; 0: none.
        twin: whether the untrained network is read, too.
        grid: rows and columns of patches, where the number of tokens does not tell.
        level: of intervals and decisions (0-1).
        seed: of the division and all draws.

    Raises:
        DiscoveryError: for too few examples or clusters.
        DictionaryError: for rows that the learner does not take.
        RowsError: for layers whose outputs make no rows.

    Example:
        >>> result = Discovery("layer4", Nmf(8))(store, net, images, {"zebra": Score(net, 340)})
        >>> result.to_pandas()[["atom", "stability", "part of zebra"]]
    """

    layer: str
    learner: Learner = field(default_factory=lambda: SemiNmf(16))
    places: Places = "each"
    share: float = 0.5
    refits: int = 3
    draws: int = 199
    relabellings: int = 9999
    explained: int = 32
    masks: int = 0
    twin: bool = True
    grid: tuple[int, int] | None = None
    level: float = 0.95
    seed: int = 0

    def __call__(
        self,
        store: ActivationStore,
        model: Model,
        examples: Examples,
        targets: Mapping[str, Score] | None = None,
        *,
        clusters: Sequence[str] = (),
        matched: Sequence[MatchedConcept] = (),
        strengths: Strengths | None = None,
    ) -> DiscoveryResult:
        """Return the atoms and what is to be said of them.

        Args:
            store: reads activations and keeps them.
            model: in evaluation mode.
            examples: to discover in.
            targets: scores of the model with one class each, by name.
            clusters: which examples belong together; by default each is its own. Examples of equal content are together.
            matched: attributes as pairs of inputs that differ in them alone; a pair of which an image, or the cluster, is
                among those that atoms are learned of is not judged on.
            strengths: of names in the examples.
        """
        model, examples, targets = module_of(model), as_examples(examples), dict(targets or {})
        if self.draws < 19:
            raise DiscoveryError(f"with {self.draws} draws p is never below 0.05: take 19 or more.")
        names = _clusters(examples, clusters)
        if len(set(names)) < 4:
            raise DiscoveryError(f"a discovery takes 4 clusters of examples or more, got {len(set(names))}.")
        found_on, _ = split_clusters(names, self.share, self.seed)
        held_out = torch.tensor([name not in found_on for name in names])
        order = torch.cat([(~held_out).nonzero(), held_out.nonzero()])[:, 0]
        here = _Half.both(self, store, model, Subset(examples, order.tolist()), int((~held_out).sum()))
        dictionary = here.found
        back = order.argsort()
        codes, peaks = (x[back] for x in (here.codes, here.peaks))
        others = Subset(examples, held_out.nonzero()[:, 0].tolist())
        shown = [names[i] for i in others.indices]
        return DiscoveryResult(
            provenance=Provenance.collect(model=model, examples=content_id([list(examples.ids), names]), method=self),
            layer=self.layer,
            kind=type(self.learner).__name__,
            places=self.places,
            dictionary=dictionary,
            ids=tuple(examples.ids),
            held_out=held_out,
            clusters=names,
            codes=codes,
            peaks=peaks,
            active=here.active,
            unexplained=dictionary.unexplained(here.second),
            unexplained_training=dictionary.unexplained(here.first),
            agreement=here.agreement(),
            seeds=torch.cat(
                [torch.empty(0, len(dictionary)).double(), *(matched_cosine(dictionary, d)[None] for d in here.refits())]
            ),
            replacement=self._replacement(model, here, others, targets),
            importance=self._importance(here, others, shown, targets) if targets and here.rows.cells else None,
            attributes=tuple(m.name for m in matched),
            shifts=self._shifts(store, model, dictionary, matched, {examples.ids[i] for i in order[: here.cut]}, found_on)
            if matched
            else None,
            twin=self._twin(store, model, Subset(examples, order.tolist()), here) if self.twin else None,
            naming=None
            if strengths is None
            else name_atoms(
                codes[held_out],
                Strengths(strengths.names, strengths.values[held_out]),
                shown,
                draws=max(self.draws, 999),
                level=self.level,
                seed=self.seed,
            ),
            level=self.level,
        )

    def _replacement(
        self, model: nn.Module, here: "_Half", others: ExampleSet, targets: Mapping[str, Score]
    ) -> Replacement | None:
        if here.rows.cells is None:
            return None
        mean = torch.stack([part.double().sum(0) for part in chunks(here.first)]).sum(0) / len(here.first)
        part = next((score.output for score in targets.values()), None)
        try:
            return replaced(model, self.layer, here.rows.cells, here.found, mean.to(here.first), others, part)
        except OutputError:  # no class scores, whatever the targets read
            return None

    def _importance(
        self, here: "_Half", others: ExampleSet, clusters: Sequence[str], targets: Mapping[str, Score]
    ) -> Importance:
        cells, dictionary = here.rows.cells, here.found
        assert cells is not None
        count = min(self.explained, len(others))
        chosen = np.linspace(0, len(others) - 1, count).round().astype(int).tolist()
        inputs, group = one_tensor(others.load(chosen)), numbers([clusters[i] for i in chosen])
        parts = [score_parts(score, self.layer, cells, dictionary, inputs) for score in targets.values()]
        means = [clustered_mean(p.atoms, group, self.level) for p in parts]
        pulls = torch.stack([p.pulls.mean(0) for p in parts])
        part = torch.stack([m.mean for m in means])
        unknown = torch.full_like(part, torch.nan)
        sobol = [
            sobol_indices(score, self.layer, cells, dictionary, inputs, self.masks, self.seed)
            for score in targets.values()
            if self.masks
        ]
        return Importance(
            targets=tuple(targets),
            part=part,
            low=torch.stack([m.low for m in means]),
            high=torch.stack([m.high for m in means]),
            p=shuffled_p(pulls, dictionary.atoms, self.draws, self.seed),
            rest=torch.stack([p.rest.mean() for p in parts]),
            gap=torch.stack([p.gap.mean() for p in parts]),
            change=torch.stack([p.change.mean() for p in parts]),
            exact=torch.tensor([p.exact for p in parts]),
            sobol=torch.stack([s.total for s in sobol]) if sobol else unknown,
            sobol_error=torch.stack([s.error for s in sobol]) if sobol else unknown,
            examples=count,
        )

    def _shifts(
        self,
        store: ActivationStore,
        model: nn.Module,
        dictionary: Dictionary,
        matched: Sequence[MatchedConcept],
        found_ids: set[str],
        found_on: frozenset[str],
    ) -> UnitShifts:
        """Return by how much attributes move atoms, on pairs that have nothing to do with what they were learned of."""
        rows: list[Tensor] = []
        fit: list[Pairs] = []
        judge: list[Pairs] = []
        start = 0
        for concept in matched:
            pair = concat(concept.positive, concept.negative)
            read = read_rows(store, model, self.layer, pair, self.places, grid=self.grid)
            rows.append(pooled(dictionary, read).means)
            n = len(concept.positive)
            old = [
                not found_ids.isdisjoint({pair.ids[i], pair.ids[n + i]}) or concept.names[i] in found_on for i in range(n)
            ]
            if sum(not o for o in old) < 2:
                raise DiscoveryError(
                    f"the attribute {concept.name!r} has {sum(not o for o in old)} pairs that atoms were not learned of, "
                    "2 are needed: give more, or more clusters."
                )
            for side, group in ((True, fit), (False, judge)):
                own = [i for i in range(n) if old[i] == side]
                firsts, seconds = tuple(start + i for i in own), tuple(start + n + i for i in own)
                group.append(Pairs(firsts, seconds, tuple(concept.names[i] for i in own)))
            start += 2 * n
        contrasts = UnitContrasts(self.relabellings, self.level, self.seed)
        return contrasts(torch.cat(rows), fit, judge)

    def _twin(self, store: ActivationStore, model: nn.Module, examples: ExampleSet, here: "_Half") -> TwinReading:
        blank = untrained_copy(model, self.seed, example=examples.load([0]))
        there = _Half.both(self, store, blank, examples, here.cut)
        own, other = (_standard(half.codes[half.cut :].double()) for half in (here, there))
        correlation = own.mT @ other / len(own)
        correlation = correlation.abs() if here.found.signed else correlation
        return TwinReading(
            unexplained=there.found.unexplained(there.second),
            agreement=there.agreement(),
            counterpart=correlation.gather(1, partners(correlation)[:, None])[:, 0],
        )


@dataclass(frozen=True, eq=False)
class PooledCodes:
    """Codes of examples: their mean and peak over places, and how often each atom is used at all."""

    means: Float[Tensor, "n atoms"]
    peaks: Float[Tensor, "n atoms"]
    active: Float[Tensor, "n atoms"]


def pooled(dictionary: Dictionary, rows: LayerRows) -> PooledCodes:
    """Return codes over the places of each example, some examples at a time."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    step = max(1, 4096 // rows.places)
    for start in range(0, rows.examples, step):
        part = rows.values[start * rows.places : (start + step) * rows.places]
        codes = dictionary.codes(part).reshape(-1, rows.places, len(dictionary))
        largest = codes.gather(1, codes.abs().argmax(1, keepdim=True))[:, 0]
        found.append((codes.mean(1), largest, (codes != 0).float().mean(1)))
    return PooledCodes(*(torch.cat(parts) for parts in zip(*found, strict=True)))


@dataclass(frozen=True, eq=False)
class _Half:
    """A network's rows, those that atoms are learned of first, with the dictionary."""

    method: Discovery
    rows: LayerRows
    cut: int
    found: Dictionary
    codes: Float[Tensor, "n atoms"]
    peaks: Float[Tensor, "n atoms"]
    active: Float[Tensor, " atoms"]

    @classmethod
    def both(cls, method: Discovery, store: ActivationStore, model: nn.Module, examples: ExampleSet, cut: int) -> "_Half":
        rows = read_rows(store, model, method.layer, examples, method.places, grid=method.grid)
        found = method.learner(rows.values[: cut * rows.places])
        codes = pooled(found, rows)
        return cls(method, rows, cut, found, codes.means, codes.peaks, codes.active[cut:].mean(0))

    @property
    def first(self) -> Float[Tensor, "rows m"]:
        """Rows that atoms are learned of."""
        return self.rows.values[: self.cut * self.rows.places]

    @property
    def second(self) -> Float[Tensor, "rows m"]:
        """Rows to judge on."""
        return self.rows.values[self.cut * self.rows.places :]

    def agreement(self) -> Agreement:
        """Return how far the other half gives the same atoms."""
        again = self.method.learner(self.second)
        return agreement(self.found, again, self.rows.values, self.method.draws, self.method.seed)

    def refits(self) -> list[Dictionary]:
        """Return dictionaries of the same half from other seeds; one for a learner without a seed is the same."""
        learner = self.method.learner
        if not any(f.name == "seed" for f in fields(learner)):  # type: ignore[arg-type]  # a frozen dataclass
            return []
        start: int = learner.seed  # type: ignore[attr-defined]  # the same
        return [replace(learner, seed=start + i + 1)(self.first) for i in range(self.method.refits)]  # type: ignore[type-var]


def _clusters(examples: ExampleSet, clusters: Sequence[str]) -> tuple[str, ...]:
    """Return the cluster of each example; those of equal content are in the first one's."""
    if clusters and len(clusters) != len(examples):
        raise DiscoveryError(f"{len(examples)} examples have {len(clusters)} clusters: give one each, or none.")
    first: dict[str, str] = {}
    return tuple(first.setdefault(id_, clusters[i] if clusters else f"example {i}") for i, id_ in enumerate(examples.ids))


def _standard(values: Tensor) -> Tensor:
    moved = values - values.mean(0)
    spread = moved.std(0, correction=0)
    return moved / torch.where(spread > 0, spread, torch.inf)
