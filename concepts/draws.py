"""Which examples every CAV of an analysis is fitted on: runs, pseudo-concepts, bootstrap draws.

Examples are rows of one table that holds all sets. What is drawn depends on seeds and sizes only, never on
activations, so one plan serves all layers and targets.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from concepts.statistics import TooFewError, relabellings

Rows = npt.NDArray[np.int64]
Pair = tuple[Rows, Rows]


@dataclass(frozen=True, eq=False)
class Sample:
    """A set of examples as groups of rows: the rows of a cluster, or a single row, are what is drawn."""

    groups: tuple[Rows, ...]

    @classmethod
    def of(cls, rows: Rows, clusters: Rows) -> "Sample":
        """Return the sample of some rows, given the cluster of every row of the table."""
        own = clusters[rows]
        order = np.argsort(own, kind="stable")
        cuts = np.flatnonzero(np.diff(own[order])) + 1
        return cls(tuple(np.split(rows[order], cuts)))

    @property
    def rows(self) -> Rows:
        return np.concatenate(self.groups)

    def some(self, count: int, rng: np.random.Generator) -> "Sample":
        """Return whole groups in random order until there are `count` rows; the last group is cut."""
        picked: list[Rows] = []
        for i in rng.permutation(len(self.groups)):
            if count <= 0:
                break
            picked.append(self.groups[i][:count])
            count -= len(picked[-1])
        return Sample(tuple(picked))

    def again(self, rng: np.random.Generator) -> "Sample":
        """Return as many groups, drawn with replacement."""
        return Sample(
            tuple(self.groups[i] for i in rng.integers(0, len(self.groups), len(self.groups)))
        )

    def parts(self, share: float, rng: np.random.Generator) -> Pair:
        """Return rows to fit on and rows held out, no group in both."""
        out = max(1, round(share * len(self.groups)))
        order = rng.permutation(len(self.groups))
        fit, held_out = ([self.groups[i] for i in part] for part in (order[out:], order[:out]))
        return np.concatenate(fit), np.concatenate(held_out)


def union(samples: Iterable[Sample]) -> Sample:
    """Return one sample of all groups."""
    return Sample(tuple(group for sample in samples for group in sample.groups))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Positive and negative rows of many fits; -1 fills up where fits differ in size."""

    positive: Int[Tensor, "fits p"]
    negative: Int[Tensor, "fits q"]

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "Pairs":
        return cls(_table([p for p, _ in pairs]), _table([q for _, q in pairs]))

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
class Runs:
    """A concept, or what stands in for it, against its random counterparts or competitors."""

    positive: Sample
    negatives: tuple[Sample, ...]

    def parts(self, share: float, rng: np.random.Generator) -> tuple[list[Pair], list[Pair]]:
        """Return, for each run, positives and negatives to fit on, and those held out."""
        halves = [(self.positive.parts(share, rng), n.parts(share, rng)) for n in self.negatives]
        return [(p[0], n[0]) for p, n in halves], [(p[1], n[1]) for p, n in halves]

    def again(self, rng: np.random.Generator) -> "Runs":
        """Return a bootstrap draw of all sets."""
        return Runs(self.positive.again(rng), tuple(n.again(rng) for n in self.negatives))


Mode = Literal["random", "ovr", "pairwise"]
"""What a concept is told apart from: random images; all competing concepts together; each of them in turn."""


@dataclass(frozen=True, eq=False)
class Sources:
    """Where a concept's examples and their counterparts come from."""

    concept: Sample
    others: tuple[Sample, ...]
    """The random pool alone, or each competing concept."""
    mode: Mode
    clusters: Rows
    """The cluster of every row of the table."""


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
        """Return where a concept's examples and their counterparts come from."""
        others = (
            [self.pool]
            if mode == "random"
            else [r for name, r in self.concepts.items() if name != concept]
        )
        if not others or not all(len(rows) for rows in others):
            missing = "a random pool" if mode == "random" else "another concept"
            raise TooFewError(
                f"in mode {mode!r}, concept {concept!r} needs {missing} to be told from, got none."
            )
        own = self._sample(self.concepts[concept])
        return Sources(own, tuple(self._sample(rows) for rows in others), mode, self._codes)

    def control(self, name: str, size: int, rng: np.random.Generator) -> Sample:
        """Return as many examples of a control as the concept has that it is compared with."""
        if len(self.controls[name]) < size:
            raise TooFewError(
                f"control {name!r} has {len(self.controls[name])} examples, fewer than the {size} of the concept it is "
                f"compared with: give it {size} or more."
            )
        return self._sample(self.controls[name]).some(size, rng)

    def _sample(self, rows: Sequence[int]) -> Sample:
        return Sample.of(np.array(rows, dtype=np.int64), self._codes)

    @cached_property
    def _codes(self) -> Rows:
        return np.unique(np.array(self.clusters), return_inverse=True)[1].astype(np.int64)


@runtime_checkable
class NullDraws(Protocol):
    """A way to draw pseudo-concepts."""

    def __call__(
        self, sources: Sources, runs: int, rng: np.random.Generator
    ) -> tuple[Runs, tuple[Runs, ...]]:
        """Return the concept's runs and those of each pseudo-concept."""


@dataclass(frozen=True)
class Relabelled:
    """Pseudo-concepts are other ways to pick the concept's examples among its own and its counterparts'.

    Each is told from random sets of the examples it leaves, as the concept is from sets of its counterparts, so under the
    null all are exchangeable and the test is exact. Drawing pseudo-concepts from the pool alone would make them vary
    too little: a random concept would stand out more often than it should, unless the pool is far larger than the
    concept. And with negatives set aside for all, what pseudo-concepts hold of the concept would pull every one of them
    its way and cost power; here it is on both sides and cancels.

    Attributes:
        sets: pseudo-concepts; p is at least `1 / (sets + 1)`.
    """

    sets: int = 199

    def __call__(self, sources: Sources, runs: int, rng: np.random.Generator) -> tuple[Runs, tuple[Runs, ...]]:
        samples = [s.rows for s in (sources.concept, *sources.others)]
        rows = np.concatenate(samples)
        labels = torch.repeat_interleave(torch.tensor([len(s) for s in samples]))
        clusters = torch.from_numpy(np.unique(sources.clusters[rows], return_inverse=True)[1])
        ways = relabellings(labels, clusters, self.sets, int(rng.integers(2**31)))

        def of(way: Rows) -> Runs:
            groups = [Sample.of(rows[way == k], sources.clusters) for k in range(len(samples))]
            return against(replace(sources, concept=groups[0], others=tuple(groups[1:])), runs, rng)

        return of(labels.numpy()), tuple(of(way) for way in ways.labels.numpy())


@dataclass(frozen=True)
class LeaveOneOut:
    """Each random set in turn plays the concept, against all others and the concept itself.

    The pool is cut into as many disjoint sets as there are runs, so p is at least `1 / (runs + 1)`. It needs far fewer
    fits than `Relabelled`, and a pool of `runs` times the concept's size. Only for counterparts from a random pool.
    """

    def __call__(
        self, sources: Sources, runs: int, rng: np.random.Generator
    ) -> tuple[Runs, tuple[Runs, ...]]:
        if sources.mode != "random":
            raise ValueError(
                "LeaveOneOut needs random counterparts: use Relabelled for competing concepts."
            )
        sets = [
            sources.concept,
            *_disjoint(sources.others[0], len(sources.concept.rows), runs, rng),
        ]
        every = [Runs(s, tuple(other for other in sets if other is not s)) for s in sets]
        return every[0], tuple(every[1:])


def against(sources: Sources, runs: int, rng: np.random.Generator) -> Runs:
    """Return runs against random subsets, of the concept's size, of the others: all together, or each in turn."""
    size = len(sources.concept.rows)
    pools = sources.others if sources.mode == "pairwise" else (union(sources.others),)
    return Runs(sources.concept, tuple(pools[r % len(pools)].some(size, rng) for r in range(runs)))


def _disjoint(pool: Sample, size: int, count: int, rng: np.random.Generator) -> list[Sample]:
    order, start = rng.permutation(len(pool.groups)), 0
    sets: list[Sample] = []
    for _ in range(count):
        stop, held = start, 0
        while stop < len(order) and held < size:
            held += len(pool.groups[order[stop]])
            stop += 1
        if held < size:
            raise TooFewError(
                f"a pool of {len(pool.rows)} examples holds {len(sets)} disjoint sets of {size}, but {count} runs need as "
                "many: enlarge the pool, or use Relabelled."
            )
        sets.append(Sample(tuple(pool.groups[i] for i in order[start:stop])))
        start = stop
    return sets
