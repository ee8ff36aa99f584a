"""Removal of whole segments of an image, the most valued first."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.attribution.base import checked
from probing.attribution.baselines import ZERO, Baseline
from probing.attribution.perturbation.superpixels import Segmentation, Slic
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.evaluation.base import (
    Better,
    EvaluationError,
    Explained,
    Measurement,
    descending,
    keys_of,
    maps_of,
    measurement,
    pixels,
)
from probing.evaluation.removal import Shown, removal_scores, substrates
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score
from probing.results.heatmaps import Channels

_SEGMENTS = Slic()


@dataclass(frozen=True)
class Irof:
    """The area over the curve of a class's probability as segments go, the most valued first (Rieger & Hansen 2020).

    The curve starts at 1, the whole image's probability, and runs over the share of segments that are gone, so that
    images of different numbers of segments compare; the paper's sum is that times their number. High is good: up to 1
    where the first segment takes all. As removal shows the network images that are none, read it beside `chance`, the
    mean of random orders over the same segments. Segments come from the image alone, and so no method is nearer to them
    than another.

    Attributes:
        parts: how images are cut.
        baseline: what shows where a segment is gone; zero is the mean colour where a model normalises, as in the paper.
        channels: how the maps' channels become one value, whose mean over a segment is what the segment is worth.
        random_orders: averaged for the chance; 0 to leave it out.
        seed: of random orders and of ties.
        batch_size: variants of a pass.
        precision: how passes run; `fast` is fit for these.
    """

    parts: Segmentation = _SEGMENTS
    baseline: Baseline = ZERO
    channels: Channels = "sum"
    random_orders: int = 5
    seed: int = 0
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32
    better: ClassVar[Better] = "higher"
    range: ClassVar[tuple[float, float]] = (float("-inf"), 1.0)
    cost: ClassVar[str] = "segments + 1 forward passes for each draw of the baseline, and for each random order"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"]) -> Measurement:
        """Return each image's area; NaN where its class has no probability to lose, or it is a single segment.

        Raises:
            EvaluationError: for a score that is no probability, whose ratios would mean nothing, or what can't be cut.
        """
        score, inputs = checked(score, inputs)
        if score.unit != "probability":
            raise EvaluationError(
                f"IROF is made of ratios of probabilities: give a score with unit='probability', got {score.unit!r}."
            )
        if inputs.ndim not in {2, 4}:
            raise EvaluationError(f"IROF is of images, or of features, got inputs of shape {tuple(inputs.shape)}.")
        maps = maps_of(explained, score, inputs)
        labels = _places(self.parts(inputs), inputs)
        segments = [_Segments.of(one) for one in labels]
        flat = pixels(maps.values, self.channels).flatten(1).cpu().double()
        worth = [own.means(row) for own, row in zip(segments, flat, strict=True)]
        passes = Passes.of(score, inputs, self.batch_size, self.precision)
        ties = _orders(inputs, segments, self.seed)
        by_map = [descending(w[None], key[None])[0] for w, key in zip(worth, ties, strict=True)]
        with unchanged(score.model):
            found = self._areas(passes, inputs, segments, by_map)
            chance = [
                self._areas(passes, inputs, segments, _orders(inputs, segments, self.seed + 1 + i))
                for i in range(self.random_orders)
            ]
        average = torch.stack(chance).mean(0) if chance else None
        return measurement(self, score, found, maps, n_forward=passes.n_forward, chance=average)

    def _areas(
        self, passes: Passes, inputs: Tensor, segments: list["_Segments"], orders: list[Tensor]
    ) -> Float[Tensor, " n"]:
        ranks = torch.stack([own.ranks(order) for own, order in zip(segments, orders, strict=True)])
        ranks = ranks.view(len(inputs), *(inputs.shape[2:] if inputs.ndim == 4 else inputs.shape[1:]))
        most = max(own.count for own in segments)
        found = []
        for draw in substrates(self.baseline, inputs):
            scores = removal_scores(passes, inputs, [Shown(x) for x in draw], ranks, range(most + 1))
            found.append(torch.stack([_over(row[: own.count + 1]) for row, own in zip(scores, segments, strict=True)]))
        return torch.stack(found).mean(0)


@dataclass(frozen=True)
class _Segments:
    """Of one image: the number of each place's segment, from 0."""

    labels: Int[Tensor, " places"]
    count: int

    @classmethod
    def of(cls, labels: Int[Tensor, "*places"]) -> "_Segments":
        known, numbers = torch.unique(labels.flatten().cpu(), return_inverse=True)
        return cls(numbers, len(known))

    def means(self, values: Float[Tensor, " places"]) -> Float[Tensor, " segments"]:
        total = values.new_zeros(self.count).index_add_(0, self.labels, values)
        return total / torch.bincount(self.labels, minlength=self.count)

    def ranks(self, order: Int[Tensor, " segments"]) -> Int[Tensor, " places"]:
        """Return when each place goes."""
        return order.argsort()[self.labels]


def _places(labels: Int[Tensor, "n *axes"], inputs: Tensor) -> Int[Tensor, "n *places"]:
    """Return labels of places, over which the channels of an image go together."""
    if inputs.ndim == 2:
        return labels
    if labels.ndim != 4 or labels.shape[1] != 1:
        raise EvaluationError(f"segments of images hold all channels of a pixel, got labels of shape {tuple(labels.shape)}.")
    return labels[:, 0]


def _orders(inputs: Tensor, segments: list[_Segments], seed: int) -> list[Tensor]:
    return [keys_of(inputs[i : i + 1], own.count, seed)[0] for i, own in enumerate(segments)]


def _over(scores: Float[Tensor, " steps"]) -> Float[Tensor, ""]:
    """Return the area over a curve as a share of where it starts."""
    if len(scores) < 3 or not float(scores[0]) > 0:
        return scores.new_tensor(torch.nan)
    return 1 - torch.trapezoid(scores / scores[0]) / (len(scores) - 1)
