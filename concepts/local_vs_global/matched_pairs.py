"""Concepts as matched pairs of inputs, and what is read of such pairs one by one."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from concepts.effects.logit_effect import split_clusters
from probing.attribution.base import Attribution
from probing.core.errors import ProbingError
from probing.core.inputs import one_tensor
from probing.data.examples import ExampleSet, as_examples
from probing.models.geometry import channel_axis
from probing.models.gradients import frozen_parameters
from probing.models.hooks import edit
from probing.models.scores import Score
from probing.results.heatmaps import reduce_channels

_DIFFERS = 0.1
_ROWS = 32


class ComparisonError(ProbingError, ValueError):
    """Concepts that can't be compared as asked for."""


@dataclass(frozen=True, eq=False)
class MatchedConcept:
    """A concept as pairs of inputs that differ in it alone.

    Attributes:
        positive: inputs with the concept.
        negative: for each, the input without it.
        clusters: what each pair belongs to; every pair is its own by default.
        masks: where the concept is in each positive; by default the pixels in which a pair differs by more than a
            tenth of its largest difference.
        units: channels of the layer that dissection calls detectors of it.

    Raises:
        ComparisonError: if parts do not fit each other.
    """

    name: str
    positive: ExampleSet
    negative: ExampleSet
    clusters: tuple[str, ...] = ()
    masks: Bool[Tensor, "n h w"] | None = None
    units: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for side in ("positive", "negative"):
            object.__setattr__(self, side, as_examples(getattr(self, side)))
        n = len(self.positive)
        for what, count in (
            ("negatives", len(self.negative)),
            ("clusters", len(self.clusters) or n),
            ("masks", n if self.masks is None else len(self.masks)),
        ):
            if count != n:
                raise ComparisonError(f"the concept {self.name!r} has {n} positives and {count} {what}: give one each.")

    @property
    def names(self) -> tuple[str, ...]:
        """The cluster of each pair."""
        return self.clusters or tuple(f"{self.name} {i}" for i in range(len(self.positive)))

    def pixels(self, pairs: Sequence[int]) -> Bool[Tensor, "n h w"]:
        """Return the concept's pixels in some positives."""
        if self.masks is not None:
            return self.masks[list(pairs)]
        difference = (one_tensor(self.positive.load(pairs)) - one_tensor(self.negative.load(pairs))).abs().sum(1)
        return difference > _DIFFERS * difference.amax((1, 2), keepdim=True)


@dataclass(frozen=True, eq=False)
class Sides:
    """A concept's pairs: training and held-out ones."""

    concept: MatchedConcept
    fit: tuple[int, ...]
    judge: tuple[int, ...]

    @classmethod
    def of(cls, concept: MatchedConcept, fitted_on: Collection[str] | None, share: float, seed: int) -> "Sides":
        """Divide a concept's pairs by their clusters: those named are fitted on, or a share drawn at random."""
        if fitted_on is None:
            fitted_on, _ = split_clusters(concept.names, share, seed)
        fit, judge = (tuple(i for i, n in enumerate(concept.names) if (n in fitted_on) == side) for side in (True, False))
        if not fit or not judge:
            raise ComparisonError(
                f"the concept {concept.name!r} has {len(fit)} training pairs and {len(judge)} held-out ones: give both."
            )
        return cls(concept, fit, judge)

    def clusters(self, pairs: Sequence[int]) -> list[str]:
        """Return the clusters of some pairs."""
        return [self.concept.names[i] for i in pairs]

    def some(self, most: int) -> list[int]:
        """Return places in `judge` of a few pairs: one of each cluster, then a second of each, and so on."""
        seen: dict[str, int] = {}
        rank = []
        for name in self.clusters(self.judge):
            rank.append(seen.get(name, 0))
            seen[name] = rank[-1] + 1
        order = sorted(range(len(rank)), key=lambda i: (rank[i], i))
        return sorted(order[:most])


def evidence(found: Attribution, masks: Bool[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """Return a map's evidence inside masks, as a share of the sizes of all its values, beyond what their area gives.

    1 at most: all values are positive and inside a mask without area. A map that is the same everywhere gives 0, as does
    one of zeros.
    """
    maps = reduce_channels(found.upsampled(), "sum").double()
    if maps.shape[1:] != masks.shape[1:]:
        maps = functional.interpolate(maps[:, None], masks.shape[1:], mode="nearest-exact")[:, 0]
    whole, inside = maps.sum((1, 2)), (maps * masks).sum((1, 2))
    sizes = maps.abs().sum((1, 2))
    excess = inside - masks.double().mean((1, 2)) * whole
    return torch.where(sizes > 0, excess / sizes, 0.0)


def silenced(
    score: Score,
    layer: str,
    inputs: Float[Tensor, "n *shape"],
    units: Sequence[int],
    *,
    channels_last: bool | None = None,
) -> Float[Tensor, " n"]:
    """Return scores where some channels of a layer (features of its tokens) are 0 at every place."""
    score = score.named(inputs)
    index = torch.tensor(list(units), dtype=torch.long)
    last = channels_last
    if last is None and inputs.ndim == 4:
        last = channel_axis(score.model, inputs, layer) == -1

    def silence(module: object, before: Tensor, output: Tensor) -> Tensor:
        axis = -1 if output.ndim == 3 or last else 1
        return output.index_fill(axis, index.to(output.device), 0)

    with torch.no_grad(), frozen_parameters(score.model), edit(score.model, {layer: silence}):
        parts = [score(inputs[i : i + _ROWS]) for i in range(0, len(inputs), _ROWS)]
    return torch.cat(parts).double()
