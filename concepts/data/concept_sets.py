"""Concepts as sets of examples, and their random counterparts drawn from a pool."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probing.core.errors import Mend, ProbingError
from probing.data.examples import Examples, ExampleSet, as_examples

MINIMUM = 9
"""Examples that a concept needs. With a third held out of it and as many counterparts, 3 + 3 decisions remain; six
right ones of six have p = 1/64 by chance. With fewer than nine at most 2 + 2 remain, and four of four (p = 1/16)
would not show at the 5 % level that the concept can be separated from random examples at all."""


class ConceptError(ProbingError, ValueError):
    """A set of examples is no sound concept."""


class OverlapError(ProbingError, ValueError):
    """A concept shares examples with what it is compared with."""


class PoolTooSmallError(ProbingError, ValueError):
    """A pool holds too few examples for the random sets asked for."""


@dataclass(frozen=True, init=False)
class Concept:
    """Examples of what people have a name for.

    Attributes:
        examples: given as such, or as whatever `as_examples` makes them of.
        clusters: one label per example; examples of one cluster are not independent. Empty: all are.

    Raises:
        ConceptError: if there are fewer than `MINIMUM` examples, one stands there twice (it could be fitted on and
            judged on at once), or labels are missing.
    """

    name: str
    examples: ExampleSet
    clusters: tuple[str, ...]

    def __init__(self, name: str, examples: Examples, clusters: Sequence[str] = ()) -> None:
        given = {"name": name, "examples": as_examples(examples), "clusters": tuple(clusters)}
        for field, value in given.items():
            object.__setattr__(self, field, value)
        ids = self.examples.ids
        if len(ids) < MINIMUM:
            raise ConceptError(
                f"the concept {self.name!r} has {len(ids)} examples: {MINIMUM} or more are needed to tell a direction "
                "from chance on those held out."
            )
        if repeats := len(ids) - len(set(ids)):
            raise ConceptError(
                f"the concept {self.name!r} holds {repeats} of its {len(ids)} examples more than once: drop the repeats."
            )
        if self.clusters and len(self.clusters) != len(ids):
            raise ConceptError(
                f"the concept {self.name!r} has {len(self.clusters)} cluster labels for {len(ids)} examples: "
                "give one each, or none."
            )

    def __len__(self) -> int:
        return len(self.examples)


def refuse_overlap(concept: Concept, others: Mapping[str, ExampleSet], *, allow_overlap: bool = False) -> int:
    """Return how many of a concept's examples, by content, are also among the others.

    Args:
        concept: whose examples are looked for.
        others: what it is compared with, such as the random pool and the class's images, by name.
        allow_overlap: count only.

    Raises:
        OverlapError: if there are any; the message names the set.
    """
    own = set(concept.examples.ids)
    for name, other in others.items():
        if (shared := len(own & set(other.ids))) and not allow_overlap:
            raise OverlapError(
                f"the concept {concept.name!r} shares {shared} of its {len(own)} examples with {name!r}: leave them out "
                "of one of the two",
                mends=[Mend("allow it, if it is meant,", "allow_overlap=True")],
            )
    return len(own & {i for other in others.values() for i in other.ids})


def random_sets(
    pool: Examples,
    size: int,
    count: int,
    *,
    seed: int,
    exclude: Collection[str] = (),
    disjoint: bool = False,
) -> tuple[tuple[int, ...], ...]:
    """Return random sets of examples of a pool, as indices into it; equal content counts once.

    Args:
        pool: what is drawn from.
        size: examples in a set.
        count: sets.
        seed: of the draw.
        exclude: content ids that are not drawn, such as a concept's and the class's images.
        disjoint: whether no example is in two sets; otherwise each set is drawn from the whole pool, so that
            sets share examples and cost no more than the pool.

    Raises:
        PoolTooSmallError: if the pool does not suffice; the message has the numbers.

    Example:
        >>> random_sets(pool, size=50, count=20, seed=0, exclude=concept.examples.ids)
    """
    pool = as_examples(pool)
    first = {id_: i for i, id_ in reversed(list(enumerate(pool.ids)))}
    free = np.array(sorted(i for id_, i in first.items() if id_ not in set(exclude)), dtype=np.int64)
    needed = size * count if disjoint else size
    if len(free) < needed:
        what = f"{count} sets of {size} without a shared example" if disjoint else f"a set of {size}"
        raise PoolTooSmallError(
            f"the pool has {len(pool)} examples, of which {len(free)} are distinct and not excluded, but {what} needs "
            f"{needed}: enlarge the pool or ask for less."
        )
    rng = np.random.default_rng(seed)
    if disjoint:
        drawn = rng.permutation(free)[:needed].reshape(count, size)
    else:
        drawn = np.stack([rng.permutation(free)[:size] for _ in range(count)]) if count else np.empty((0, size))
    return tuple(tuple(int(i) for i in row) for row in drawn)
