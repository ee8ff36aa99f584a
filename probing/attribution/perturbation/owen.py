"""Owen values: what each part contributes where parts belong to groups that are added as a whole."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from probing.attribution.base import Attribution, Demand, Family, LocalMethod
from probing.attribution.perturbation.contribution_maps import contribution_map
from probing.attribution.perturbation.cutting import PART_MEAN, SUPERPIXELS
from probing.attribution.perturbation.parts import Hidden, TensorParts, contiguous
from probing.attribution.perturbation.regression import weighted_r2
from probing.attribution.perturbation.superpixels import Blocks, Segmentation, Slic
from probing.attribution.perturbation.surrogate import (
    Contributions,
    Value,
    by_orders,
    every_coalition,
    refuse_single,
    shapley_kernel,
)
from probing.attribution.score_passes import FLOAT32, BatchSize
from probing.core.errors import Mend
from probing.core.inputs import InputError
from probing.models.precision import Precision
from probing.models.scores import Score

_MOST_COALITIONS = 4096  # of exact values
_COARSE = 8  # groups, unless given


@dataclass(frozen=True)
class OwenSampling:
    """Owen values by random orders that keep each group together, each order followed by its reverse.

    They are exact where all coalitions that such orders pass through are at most 4,096. Standard errors are those of the
    mean over pairs of orders, of which half as many are drawn.

    Attributes:
        permutations: orders, an even number; each takes a pass for each part but one.
        exact: whether values are exact where they can be.
        seed: of the orders.
    """

    permutations: int = 20
    exact: bool = True
    seed: int = 0

    def __call__(self, value: Value, groups: Int[Tensor, "levels parts"]) -> Contributions:
        """Return what each part contributes.

        Args:
            value: scores of coalitions of parts.
            groups: which group each part belongs to, from the coarsest level to the finest; at each level, parts of one
                group are of one group at the levels before.

        Raises:
            InputError: for a single part, fewer than four permutations, an odd number of them, or groups that are not
                nested.
        """
        if self.permutations < 4 or self.permutations % 2:
            raise InputError(f"OwenSampling needs an even number of permutations from 4, got {self.permutations}.")
        count = groups.shape[1]
        refuse_single(count)
        levels = torch.cat([groups, torch.arange(count)[None]])
        for i, (coarse, fine) in enumerate(pairwise(levels)):
            both = set(zip(coarse.tolist(), fine.tolist(), strict=True))
            if len(both) > len(set(fine.tolist())):
                raise InputError(f"groups of level {i + 1} lie in several groups of level {i}: nest them.")
        if self.exact and _coalitions(levels) <= _MOST_COALITIONS:
            return _exact(value, levels)
        pairs = self.permutations // 2
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.arange(count).expand(pairs, count)
        for level in reversed(levels):  # stable, so that each coarser level keeps the order within its groups
            keys = torch.rand(pairs, int(level.max()) + 1, generator=generator)[:, level]
            order = order.gather(1, keys.gather(1, order).argsort(dim=1, stable=True))
        return by_orders(value, order.argsort(1))


@dataclass(frozen=True)
class Owen(LocalMethod):
    """Shapley values of parts that belong to groups (Owen 1977), which are added one group after another.

    Each part's mean gain over all orders in which no part stands between two of another group: so the values of a group's
    parts add up to what the group gets as a player of its own, however finely it is cut, and far fewer coalitions have to be
    looked at. With several levels of groups, each within one of the level before, as of a tree, all are kept together
    (Winter 1989). Over parts, not over values of the map, they add up to the score minus that with every part hidden.

    In the diagnostics: as for `LIME`, and `groups`, the coarsest group of each value.

    Attributes:
        parts: how inputs are cut, as for `LIME`.
        groups: how parts are grouped, from coarse to fine: each part belongs to the group that holds most of it. Unless
            given, eight superpixels of images, eight blocks of series and volumes.
        hidden: what shows where a part is hidden: the part's mean colour, or a baseline of one draw.
        by: how values are found.
        batch_size: variants of a pass.
        precision: how passes run; `fast` is fit for these (no gradients are taken).
    """

    family: ClassVar[Family] = "local"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 3, 8)
    demands: ClassVar[tuple[Demand, ...]] = ()

    parts: Segmentation = SUPERPIXELS
    groups: tuple[Segmentation, ...] = ()
    hidden: Hidden = PART_MEAN
    by: OwenSampling = OwenSampling()
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            InputError: if an input can't be cut, looks the same whatever is hidden, or has no groups unless they are given.
        """
        labels = [grouping(inputs).to(inputs.device) for grouping in self.groups or (_usual(score, inputs),)]
        trees: list[Tensor] = []

        def learner(row: int, parts: TensorParts) -> "_Grouped":
            trees.append(_nested(parts, [level[row] for level in labels]))
            return _Grouped(self.by, trees[-1])

        found = contribution_map(self, learner, score, inputs, (self.batch_size, self.precision), "Owen values")
        of_parts = found.diagnostics["parts"]
        coarsest = [tree[0].to(of_parts)[part.clamp(min=0)] for tree, part in zip(trees, of_parts, strict=True)]
        groups = torch.where(of_parts < 0, -1, torch.stack(coarsest))
        return replace(found, diagnostics=found.diagnostics | {"groups": groups})


@dataclass(frozen=True)
class _Grouped:
    """Owen values of one input's parts, as a surrogate."""

    by: OwenSampling
    groups: Int[Tensor, "levels parts"]

    def __call__(self, value: Value, count: int) -> Contributions:
        assert count == self.groups.shape[1]
        return self.by(value, self.groups)


def _usual(score: Score, inputs: Float[Tensor, "n *shape"]) -> Segmentation:
    """Return how places are grouped if nothing is said."""
    if inputs.ndim < 3 or (score.beside is not None and (score.beside.layers or len(score.beside.names) > 1)):
        raise InputError(
            "tokens, features and several inputs have no usual groups:",
            mends=[Mend("say which parts go together", "groups=…")],
        )
    return Slic(_COARSE) if inputs.ndim == 4 else Blocks(_COARSE)


def _nested(parts: TensorParts, levels: list[Tensor]) -> Int[Tensor, "levels parts"]:
    """Return for each part, at each level, the group that holds most of its places, within its group of the level before."""
    shape = parts.example.shape
    found: list[Tensor] = []
    own = parts.labels.expand(shape).flatten()
    for level in levels:
        held = torch.zeros(parts.count, int(level.max()) + 1, dtype=torch.long, device=own.device)
        group = level.to(own.device).expand(shape).flatten()
        one = torch.ones((), dtype=torch.long, device=own.device)
        held.index_put_((own[own >= 0], group[own >= 0]), one, accumulate=True)
        most = held.argmax(1).cpu()
        within = most if not found else found[-1] * (int(most.max()) + 1) + most
        found.append(contiguous(within))
    return torch.stack(found)


def _coalitions(levels: Int[Tensor, "levels parts"]) -> int:
    """Return at most how many coalitions precede a part, or follow with it, in orders that keep groups together."""
    return sum(2 ** (1 + sum(len(s) for s in _siblings(levels, part))) for part in range(levels.shape[1]))


def _siblings(levels: Int[Tensor, "levels parts"], part: int) -> list[Bool[Tensor, "siblings parts"]]:
    """Return at each level the other groups within the part's group of the level before, as sets of parts."""
    within, found = torch.ones_like(levels[0], dtype=torch.bool), []
    for level in levels:
        own = level == level[part]
        others = level[within & ~own].unique()
        found.append(level == others[:, None])
        within = own
    return found


def _exact(value: Value, levels: Int[Tensor, "levels parts"]) -> Contributions:
    """Return the mean gain of each part over all orders that keep groups together."""
    count = levels.shape[1]
    before, weights = zip(*(_before(levels, part) for part in range(count)), strict=True)
    after = [masks | (torch.arange(count) == part) for part, masks in enumerate(before)]
    ends = torch.stack([torch.zeros(count), torch.ones(count)]).bool()
    distinct, place = torch.unique(torch.cat([ends, *before, *after]), dim=0, return_inverse=True)
    of_distinct = value(distinct).double().cpu()
    scores = of_distinct[place]
    sizes = [len(masks) for masks in before]
    absent, present = (torch.split(part, sizes) for part in scores[2:].chunk(2))
    values = torch.stack([(w * (p - a)).sum() for w, p, a in zip(weights, present, absent, strict=True)])
    none, empty, score = torch.zeros_like(values), float(scores[0]), float(scores[1])
    inner = distinct.any(1) & ~distinct.all(1)
    fitted = empty + distinct[inner].double() @ values
    r2 = weighted_r2(of_distinct[inner], fitted, shapley_kernel(distinct[inner]))
    return Contributions(values, none, empty, r2, score, score, 1.0, 1.0, len(distinct))


def _before(levels: Int[Tensor, "levels parts"], part: int) -> tuple[Bool[Tensor, "k parts"], Float64[Tensor, " k"]]:
    """Return the coalitions that may precede a part, and how probable each is."""
    masks, weights = torch.zeros(1, levels.shape[1], dtype=torch.bool), torch.ones(1, dtype=torch.float64)
    for others in _siblings(levels, part):
        chosen, players = every_coalition(len(others)), len(others) + 1
        kept = (chosen.double() @ others.double()).bool()
        by_size = [1 / (players * math.comb(players - 1, size)) for size in range(players)]
        odds = torch.tensor(by_size, dtype=torch.float64)[chosen.sum(1)]
        masks, weights = (masks[:, None] | kept).flatten(0, 1), (weights[:, None] * odds).flatten()
    return masks, weights
