"""What a TCAV analysis fits for one concept, drawn once and used at every layer."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from concepts.effects.logit_effect import Clusters, Design
from concepts.tcav.sampling import Mode, NullDraws, Pairs, Sets, Sources, fitted, union
from probing.statistics.hypothesis_tests import TooFewError, bootstrap_counts


@dataclass(frozen=True, eq=False)
class Plan:
    """What is fitted for one concept, the same at all layers."""

    fit: Pairs
    held_out: Pairs
    trials: int
    """Independent decisions: examples, or clusters, of the concept that some run held out, and as many counterparts."""
    whole: Pairs
    null: Pairs
    bootstrap: Pairs
    controls: Pairs
    input_weights: Float[Tensor, "draws inputs"]
    """Share of each input among its target's, in each bootstrap draw."""
    control_rows: tuple[Int[Tensor, " _"], ...]
    designs: tuple[tuple[tuple[int, ...], Design], ...]
    """Of the effect in logits: targets that have the same inputs, and how those are used."""

    @property
    def relabellings(self) -> int:
        """Draws of the null of the effect."""
        return len(self.designs[0][1].relabelled.labels)

    @property
    def exact(self) -> bool:
        """Whether these are all there are."""
        return self.designs[0][1].relabelled.exact

    @classmethod
    def of(
        cls,
        sets: Sets,
        concept: str,
        *,
        null: NullDraws | None,
        runs: int,
        mode: Mode,
        holdout: float,
        bootstraps: int,
        relabellings: int,
        seed: int,
    ) -> "Plan":
        """Draw everything. Concepts share the seeds, so that no plan depends on which others are made."""
        rng = [np.random.default_rng([seed, stage]) for stage in range(6)]
        sources = sets.sources(concept, mode).exchangeable(np.random.default_rng([seed, 6]))
        _check_size(concept, len(sources.concept), holdout)
        own, pseudo = (sources, ()) if null is None else null(sources, runs, rng[0])
        fit, held_out = own.runs(runs, holdout, rng[1])
        judged = [len(np.unique(own.clusters[np.concatenate(s)])) for s in zip(*held_out, strict=True)]
        controls = [sets.control(name, len(own.concept.rows), rng[2]) for name in sets.controls]
        others = [replace(own, concept=control) for control in controls]
        again = [own.again(rng[4]) for _ in range(bootstraps)]
        return cls(
            fit=Pairs.of(fit),
            held_out=Pairs.of(held_out),
            trials=2 * min(judged),
            whole=Pairs.of([(sources.concept.rows, union(sources.others).rows)]),
            null=fitted(pseudo, runs, holdout, rng[3]),
            bootstrap=fitted(again, runs, holdout, rng[4]),
            controls=fitted(others, runs, holdout, rng[5]),
            input_weights=_input_weights(sets, bootstraps, seed),
            control_rows=tuple(torch.from_numpy(control.rows) for control in controls),
            designs=_designs(sets, sources, relabellings, bootstraps, seed),
        )


def _check_size(concept: str, groups: int, holdout: float) -> None:
    if groups - max(1, round(holdout * groups)) < 2:
        raise TooFewError(
            f"concept {concept!r} has {groups} independent examples: with {holdout:.0%} held out fewer than 2 are left "
            "to fit a CAV on."
        )


def _input_weights(sets: Sets, draws: int, seed: int) -> Float[Tensor, "draws inputs"]:
    weights = []
    for names in sets.inputs.values():
        codes = torch.from_numpy(np.unique(np.array(names), return_inverse=True)[1])
        one_kind = torch.zeros(int(codes.max()) + 1, dtype=torch.long)
        counts = bootstrap_counts(one_kind, draws, seed)[:, codes]
        weights.append(counts / counts.sum(1, keepdim=True))
    return torch.cat(weights, 1)


def _designs(
    sets: Sets, sources: Sources, relabellings: int, bootstraps: int, seed: int
) -> tuple[tuple[tuple[int, ...], Design], ...]:
    positive, negative = ([sets.clusters[i] for i in s.rows] for s in (sources.concept, union(sources.others)))
    inputs: dict[tuple[str, ...], list[int]] = {}
    for target, names in enumerate(sets.inputs.values()):
        inputs.setdefault(tuple(names), []).append(target)
    return tuple(
        (
            tuple(targets),
            Design.of(
                Clusters(positive, negative, names),
                draws=relabellings,
                bootstraps=bootstraps,
                seed=seed,
            ),
        )
        for names, targets in inputs.items()
    )
