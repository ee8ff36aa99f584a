"""Which examples every CAV of an analysis is fitted on: runs, pseudo-concepts, bootstrap draws.

Examples are rows of one table that holds all sets. What is drawn depends on seeds and sizes only, never on
activations, so one plan serves all layers and targets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from probing.core.errors import ArgumentError
from probing.statistics.hypothesis_tests import TooFewError, exchangeable_cap, relabellings

Rows = npt.NDArray[np.int64]
Pair = tuple[Rows, Rows]
"""Positive and negative rows of a fit."""
Mode = Literal["random", "ovr", "pairwise"]
"""What a concept is compared with: random images; all competing concepts together; each of them in turn."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A set of examples in groups: what is drawn is all rows of a cluster, or a single row."""

    rows: Rows
    """Group by group."""
    ends: Rows
    """Where each group ends."""
    clusters: Rows
    """The cluster that each group is."""

    @classmethod
    def of(cls, rows: Rows, clusters: Rows) -> "Sample":
        """Return the sample of some rows, given the cluster of every row of the table."""
        order = np.argsort(clusters[rows], kind="stable")
        own = clusters[rows][order]
        ends = np.append(np.flatnonzero(np.diff(own)) + 1, len(rows))
        return cls(rows[order], ends, own[ends - 1])

    @classmethod
    def joined(cls, groups: Sequence[Rows], clusters: Rows) -> "Sample":
        """Return the sample of some groups and their clusters."""
        return cls(np.concatenate(groups), np.cumsum([len(g) for g in groups]), clusters)

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def groups(self) -> list[Rows]:
        """The rows of each group."""
        return np.split(self.rows, self.ends[:-1])

    @property
    def single(self) -> bool:
        """Whether each row is its own group."""
        return len(self.rows) == len(self.ends)

    def cut(self, size: int, rng: np.random.Generator) -> "Sample":
        """Return groups drawn without replacement until there are `size` rows, the last one cut."""
        order = rng.permutation(len(self))
        drawn: list[Rows] = []
        for i in order:
            drawn.append(self.groups[i][:size])
            size -= len(drawn[-1])
            if size <= 0:
                break
        return Sample.joined(drawn, self.clusters[order[: len(drawn)]])

    def of_clusters(self, clusters: Rows) -> "Sample":
        """Return the groups of the clusters that are in the sample, as often as they are asked for."""
        place = {cluster: i for i, cluster in enumerate(self.clusters.tolist())}
        which = [place[c] for c in clusters.tolist() if c in place]
        return Sample.joined([self.groups[i] for i in which], self.clusters[which])

    def splits(self, size: int, share: float, count: int, rng: np.random.Generator) -> tuple[list[Rows], list[Rows]]:
        """Return, `count` times, `size` rows (or all) in two parts by whole groups: to fit on, and a share held out.

        Groups come in random order until there are `size` rows, the last one cut.
        """
        if self.single:
            drawn = rng.permuted(np.tile(self.rows, (count, 1)), axis=1)[:, :size]
            out = _held_out(drawn.shape[1], share)
            return list(drawn[:, out:]), list(drawn[:, :out])
        order = rng.permuted(np.tile(np.arange(len(self)), (count, 1)), axis=1)
        before = self.sizes[order].cumsum(1) - self.sizes[order]
        taken = (before < size).sum(1)
        held = np.maximum(1, np.rint(share * taken))
        place = np.repeat(np.arange(len(self)), self._padded.shape[1])
        table = self._padded[order].reshape(count, -1)
        known = (table >= 0) & ((table >= 0).cumsum(1) <= size)
        outside = place < held[:, None]
        return tuple(  # type: ignore[return-value]  # a tuple of two
            [row[which] for row, which in zip(table, known & part, strict=True)] for part in (~outside, outside)
        )

    @cached_property
    def sizes(self) -> Rows:
        """How many rows each group has."""
        return np.diff(self.ends, prepend=0)

    @cached_property
    def _padded(self) -> Rows:
        """The rows of each group, -1 where it has fewer than the largest."""
        table = np.full((len(self), int(self.sizes.max())), -1)
        table[np.arange(table.shape[1]) < self.sizes[:, None]] = self.rows
        return table

    def capped(self, most: Rows, rng: np.random.Generator) -> "Sample":
        """Return the sample with at most so many rows of each group, drawn at random."""
        return Sample.joined(
            [g if len(g) <= n else np.sort(rng.permutation(g)[:n]) for g, n in zip(self.groups, most.tolist(), strict=True)],
            self.clusters,
        )


def _held_out(groups: int, share: float) -> int:
    return max(1, round(share * groups))


def union(samples: Sequence[Sample]) -> Sample:
    """Return one sample of all groups."""
    if len(samples) == 1:
        return samples[0]
    return Sample.joined([g for s in samples for g in s.groups], np.concatenate([s.clusters for s in samples]))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Positive and negative rows of many fits; -1 fills up where fits differ in size."""

    positive: Int[Tensor, "fits p"]
    negative: Int[Tensor, "fits q"]

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "Pairs":
        return cls(_table([p for p, _ in pairs]), _table([n for _, n in pairs]))

    def __len__(self) -> int:
        return len(self.positive)

    def part(self, start: int, stop: int) -> "Pairs":
        return Pairs(self.positive[start:stop], self.negative[start:stop])


def _table(lists: Sequence[Rows]) -> Int[Tensor, "fits rows"]:
    table = np.full((len(lists), max(map(len, lists), default=0)), -1)
    for line, rows in zip(table, lists, strict=True):
        line[: len(rows)] = rows
    return torch.from_numpy(table)


@dataclass(frozen=True, eq=False)
class Sources:
    """A concept, or what stands in for it, and where its counterparts come from."""

    concept: Sample
    others: tuple[Sample, ...]
    """The random pool alone, or each competing concept."""
    mode: Mode
    clusters: Rows
    """The cluster of every row of the table."""

    def runs(self, count: int, share: float, rng: np.random.Generator) -> tuple[list[Pair], list[Pair]]:
        """Return what each run fits on, and what it is judged on.

        A run takes the concept and as many random counterparts; of each side, `share` is held out. A cluster that is on
        both sides is held out of both.
        """
        pools = self.others if self.mode == "pairwise" else (union(self.others),)
        turns = [pools[run % len(pools)] for run in range(count)]
        if self._entangled(pools):
            split = [_split(self.concept, p.cut(len(self.concept.rows), rng), share, rng) for p in turns]
            return [fit for fit, _ in split], [out for _, out in split]
        size = len(self.concept.rows)
        positive = self.concept.splits(size, share, count, rng)
        drawn = [pool.splits(size, share, -(-count // len(pools)), rng) for pool in pools]
        places = [(run % len(pools), run // len(pools)) for run in range(count)]
        fit, held_out = ([drawn[pool][part][i] for pool, i in places] for part in (0, 1))
        return list(zip(positive[0], fit, strict=True)), list(zip(positive[1], held_out, strict=True))

    def _entangled(self, pools: Sequence[Sample]) -> bool:
        """Return whether clusters must be held out of both sides at once."""
        if all(s.single for s in (self.concept, *pools)):
            return False
        own = set(self.concept.clusters.tolist())
        return any(not own.isdisjoint(pool.clusters.tolist()) for pool in pools)

    def exchangeable(self, rng: np.random.Generator) -> "Sources":
        """Return the sources with so many rows of each cluster that relabelling whole clusters is exact.

        Clusters may change places only with clusters of their size: three rows of one cluster vary otherwise than three
        clusters' rows, or one. So clusters of competing sides that hold several labels keep as many rows of each label,
        and clusters of one label are cut to at most `cap` rows. The cap is the one under which relabelling moves most
        rows of the concept: all rows are kept where both sides have clusters of the same sizes, one of each cluster
        where one side has single examples only. Which rows are kept is drawn, so that those kept of two sides have the
        same distribution whenever all rows have.
        """
        samples = (self.concept, *self.others)
        if all(s.single for s in samples):
            return self
        names, count = np.unique(np.concatenate([s.clusters for s in samples]), return_counts=True)
        if (count == len(samples)).all():
            least = dict.fromkeys(names.tolist(), len(self.clusters))
            for s in samples:
                for name, size in zip(s.clusters.tolist(), s.sizes.tolist(), strict=True):
                    least[name] = min(least[name], size)
            most = [np.array([least[c] for c in s.clusters.tolist()]) for s in samples]
        elif (count > 1).any():
            return self  # only some clusters are matched: nothing can be relabelled
        else:
            cap = exchangeable_cap(self.concept.sizes, np.concatenate([s.sizes for s in self.others]))
            most = [np.minimum(s.sizes, cap) for s in samples]
        cut = [s.capped(m, rng) for s, m in zip(samples, most, strict=True)]
        return replace(self, concept=cut[0], others=tuple(cut[1:]))

    def again(self, rng: np.random.Generator) -> "Sources":
        """Return a bootstrap draw of all sets; clusters that several sets share are drawn for all of them at once."""
        samples = (self.concept, *self.others)
        names = np.unique(np.concatenate([s.clusters for s in samples]))
        kinds = np.array([np.isin(names, s.clusters) for s in samples]).T
        drawn = []
        for kind in np.unique(kinds, axis=0):
            alike = names[(kinds == kind).all(1)]
            drawn.append(alike[rng.integers(0, len(alike), len(alike))])
        found = [s.of_clusters(np.concatenate(drawn)) for s in samples]
        return replace(self, concept=found[0], others=tuple(found[1:]))


def _split(positive: Sample, negative: Sample, share: float, rng: np.random.Generator) -> tuple[Pair, Pair]:
    """Return what to fit on and what is held out, by whole clusters."""
    both = np.intersect1d(positive.clusters, negative.clusters)
    held = [rng.permutation(both)[: _held_out(len(both), share) if len(both) else 0]]
    for side in (positive, negative):
        own = np.setdiff1d(side.clusters, both)
        if len(own):
            held.append(rng.permutation(own)[: _held_out(len(own), share)])
    out = np.concatenate(held)
    masks = [np.repeat(np.isin(s.clusters, out), np.diff(s.ends, prepend=0)) for s in (positive, negative)]
    fit, judged = ((positive.rows[masks[0] == m], negative.rows[masks[1] == m]) for m in (False, True))
    return fit, judged


def fitted(many: Sequence[Sources], runs: int, share: float, rng: np.random.Generator) -> Pairs:
    """Return what the runs of many concepts fit on, concept by concept."""
    return Pairs.of([pair for sources in many for pair in sources.runs(runs, share, rng)[0]])


@runtime_checkable
class NullDraws(Protocol):
    """A way to draw pseudo-concepts."""

    def __call__(self, sources: Sources, runs: int, rng: np.random.Generator) -> tuple[Sources, tuple[Sources, ...]]:
        """Return the concept with the counterparts to use, and pseudo-concepts with theirs."""


LEAST_SETS = 199
"""Pseudo-concepts of one concept by default."""


def enough_draws(tests: int, level: float) -> int:
    """Return 199, or how many draws it takes that the smallest p times `tests` is a quarter of `1 - level` or less."""
    return max(LEAST_SETS, math.ceil(4 * tests / (1 - level) - 1e-6) - 1)


@dataclass(frozen=True)
class Relabelled:
    """Pseudo-concepts are other ways to pick the concept's examples among its own and its counterparts'.

    Each is compared with random sets of the examples it leaves, as the concept is with sets of its counterparts, so under
    the null all are exchangeable and the test is exact. Drawing pseudo-concepts from the pool alone would make them vary
    too little: a random concept would stand out more often than it should, unless the pool is far larger than the
    concept. And with negatives set aside for all, what pseudo-concepts hold of the concept would pull every one of them
    its way and cost power; here it is on both sides and cancels.

    Attributes:
        sets: pseudo-concepts; p is at least `1 / (sets + 1)`. `auto`: 199, or as many as the number of concepts needs,
            so that the smallest corrected p is a quarter of `1 - level` or less. Where there are fewer ways to
            relabel, all are used once each.
    """

    sets: int | Literal["auto"] = "auto"

    def enough(self, tests: int, level: float) -> "Relabelled":
        """Return the same with a number of pseudo-concepts, which suffices for so many tests if it is `auto`.

        The smallest possible p times `tests` is a quarter of `1 - level` or less.
        """
        if self.sets != "auto":
            return self
        return Relabelled(enough_draws(tests, level))

    def __call__(self, sources: Sources, runs: int, rng: np.random.Generator) -> tuple[Sources, tuple[Sources, ...]]:
        samples = [s.rows for s in (sources.concept, *sources.others)]
        rows = np.concatenate(samples)
        labels = torch.repeat_interleave(torch.tensor([len(s) for s in samples]))
        clusters = torch.from_numpy(np.unique(sources.clusters[rows], return_inverse=True)[1])
        count = self.enough(1, 0.95).sets
        assert isinstance(count, int)
        drawn = relabellings(labels, clusters, count + 1, int(rng.integers(2**31)))
        # Of all ways there are, the concept's own is not its null's.
        ways = drawn.labels[(drawn.labels != labels).any(1)] if drawn.exact else drawn.labels[:count]

        def of(way: Rows) -> Sources:
            groups = [Sample.of(rows[way == k], sources.clusters) for k in range(len(samples))]
            return replace(sources, concept=groups[0], others=tuple(groups[1:]))

        return sources, tuple(of(way) for way in ways.long().numpy())


@dataclass(frozen=True)
class LeaveOneOut:
    """Each random set in turn plays the concept, against all others and the concept itself.

    The pool is cut into as many disjoint sets as there are runs, so p is at least `1 / (runs + 1)`. It needs far fewer
    fits than `Relabelled`, and a pool of `runs` times the concept's size. Only for counterparts from a random pool.
    """

    def __call__(self, sources: Sources, runs: int, rng: np.random.Generator) -> tuple[Sources, tuple[Sources, ...]]:
        if sources.mode != "random":
            raise ArgumentError("LeaveOneOut needs random counterparts: use Relabelled for competing concepts.")
        # Disjoint sets of a size have clusters of the concept's sizes only if all clusters have one size.
        samples = (sources.concept, *sources.others)
        least = min(int(s.sizes.min()) for s in samples)
        own, *others = (s.capped(np.full(len(s), least), rng) for s in samples)
        sources = replace(sources, concept=own, others=tuple(others))
        sets = [sources.concept, *self._disjoint(sources, runs, rng)]

        def of(chosen: int) -> Sources:
            others = tuple(s for i, s in enumerate(sets) if i != chosen)
            return replace(sources, concept=sets[chosen], others=others, mode="pairwise")

        return of(0), tuple(of(i) for i in range(1, len(sets)))

    def _disjoint(self, sources: Sources, count: int, rng: np.random.Generator) -> list[Sample]:
        size, pool = len(sources.concept.rows), sources.others[0]
        sets: list[Sample] = []
        held: list[Rows] = []
        names: list[int] = []
        for i in rng.permutation(len(pool)):
            held.append(pool.groups[i])
            names.append(int(pool.clusters[i]))
            if sum(map(len, held)) >= size:
                sets.append(Sample.joined(held, np.array(names)))
                held, names = [], []
        if len(sets) < count:
            raise TooFewError(
                f"a pool of {len(pool.rows)} examples holds {len(sets)} disjoint sets of {size}, but {count} runs "
                "need as many: enlarge the pool, or use Relabelled."
            )
        return sets[:count]


@dataclass(frozen=True)
class Sets:
    """All sets of an analysis, as rows of one table of examples, and the inputs of each target.

    Attributes:
        concepts: rows of each concept, by name.
        inputs: for each target, by name, the cluster of every input.
        clusters: the cluster of every row, by name; rows of one cluster are not independent.
        pool: rows of the random pool.
        controls: rows of coherent concepts that the targets should not depend on.
    """

    concepts: Mapping[str, Sequence[int]]
    inputs: Mapping[str, Sequence[str]]
    clusters: Sequence[str]
    pool: Sequence[int] = ()
    controls: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def sources(self, concept: str, mode: Mode) -> Sources:
        """Return a concept and where its counterparts come from."""
        others = [self.pool] if mode == "random" else [r for name, r in self.concepts.items() if name != concept]
        if not others or not all(len(rows) for rows in others):
            missing = "a random pool" if mode == "random" else "another concept"
            raise TooFewError(f"in mode {mode!r}, concept {concept!r} needs {missing} to be compared with, got none.")
        own = self._sample(self.concepts[concept])
        return Sources(own, tuple(self._sample(rows) for rows in others), mode, self._codes)

    def control(self, name: str, size: int, rng: np.random.Generator) -> Sample:
        """Return as many examples of a control as the concept has that it is compared with."""
        if len(self.controls[name]) < size:
            raise TooFewError(
                f"control {name!r} has {len(self.controls[name])} examples, fewer than the {size} of the concept it is "
                f"compared with: give it {size} or more."
            )
        return self._sample(self.controls[name]).cut(size, rng)

    def _sample(self, rows: Sequence[int]) -> Sample:
        return Sample.of(np.array(rows, dtype=np.int64), self._codes)

    @cached_property
    def _codes(self) -> Rows:
        return np.unique(np.array(self.clusters), return_inverse=True)[1].astype(np.int64)
