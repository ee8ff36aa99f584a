"""TCAV (Kim et al. 2018): does a class depend on a concept at a layer, and more than on random directions?

Sets of examples become rows of one table; `concepts.draws` says which rows every CAV is fitted on; here CAVs are fitted
and read. A CAV is never formed: all that is needed of it is its products with the gradients.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from concepts.draws import Mode, NullDraws, Pairs, Relabelled, Rows, Runs, Sample, Sources, against, union
from concepts.effect import Clusters, Design, layer_effect
from concepts.statistics import (
    TooFewError,
    above_chance,
    bootstrap_counts,
    code_t_test,
    holm,
    max_t,
    paper_t_test,
    percentile_interval,
    permutation_p,
)
from probing.estimators import Estimator, Ridge
from probing.linear import PairFits, RowProducts, SharedRows, fit_pairs
from probing.passes import Pool
from probing.provenance import Provenance, Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LINEAR_TAIL = 1e-5
"""Gradients that differ between inputs by no more than this share of their length are one gradient."""
_CHUNK = 1 << 23  # products of CAVs and gradients held at a time


@dataclass(frozen=True)
class Table:
    """All sets of an analysis as rows of one table of examples, and the inputs of each target.

    Attributes:
        concepts: rows of each concept, by name.
        pool: rows of the random pool.
        controls: rows of coherent concepts that the targets do not depend on.
        clusters: the cluster of every row, by name; rows of one cluster are not independent.
        inputs: for each target, by name, the cluster of every input.
    """

    concepts: Mapping[str, Sequence[int]]
    inputs: Mapping[str, Sequence[str]]
    clusters: Sequence[str]
    pool: Sequence[int] = ()
    controls: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def sources(self, concept: str, mode: Mode) -> Sources:
        """Return where a concept's examples and their counterparts come from."""
        others = [self.pool] if mode == "random" else [r for name, r in self.concepts.items() if name != concept]
        if not others or not all(len(rows) for rows in others):
            missing = "a random pool" if mode == "random" else "a second concept"
            raise TooFewError(f"Tcav(mode={mode!r}) of {concept!r} needs {missing} to tell it from, got none.")
        return Sources(
            self._sample(self.concepts[concept]), tuple(self._sample(rows) for rows in others), mode, self._codes
        )

    def control(self, name: str, size: int, rng: np.random.Generator) -> Sample:
        """Return as many examples of a control as the concept has that it is compared with."""
        if len(self.controls[name]) < size:
            raise TooFewError(
                f"control {name!r} has {len(self.controls[name])} examples, fewer than the {size} of the concept it is "
                f"compared with: give it {size} or more."
            )
        return self._sample(self.controls[name]).some(size, rng)

    def design(self, concept: str, sources: Sources, target: str, method: "Tcav") -> tuple[Rows, Design]:
        """Return the rows and the plan of a concept's effect in logits on a target."""
        positive, negative = sources.concept.rows, union(sources.others).rows
        names = [[self.clusters[i] for i in rows] for rows in (positive, negative)]
        clusters = Clusters(names[0], names[1], list(self.inputs[target]))
        plan = Design.of(clusters, draws=method.relabellings, bootstraps=max(2, method.bootstraps), seed=method.seed)
        return np.concatenate([positive, negative]), plan

    def _sample(self, rows: Sequence[int]) -> Sample:
        return Sample.of(np.array(rows, dtype=np.int64), self._codes)

    @cached_property
    def _codes(self) -> Rows:
        return np.unique(np.array(self.clusters), return_inverse=True)[1].astype(np.int64)
