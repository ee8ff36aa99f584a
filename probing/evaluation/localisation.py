"""Does a map point to the object? Chance levels stand beside each number, since a large object is easily hit.

Localisation takes it that the model uses the object: a map that points beside it may be right about a model that
does. Explain correctly classified inputs, and pair these numbers with data whose answer is known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional

from probing.core.inputs import one_tensor
from probing.evaluation.base import (
    Better,
    EvaluationError,
    Explained,
    Measurement,
    maps_of,
    measurement,
    pixels,
)
from probing.models.scores import Score
from probing.results.heatmaps import Channels

Masks = Bool[Tensor, "n h w"]


@dataclass(frozen=True)
class PointingGame:
    """Whether a map's maximum lies on the object (Zhang et al. 2018, sec. 4.2).

    Where several places share the maximum, the value is the share of them that lie on the object, not the first
    one's luck. A map without a positive value points nowhere: a miss. Chance is the area of the enlarged object.

    Attributes:
        tolerance: pixels by which the maximum may lie beside the object, as a share of the map's side (15 pixels at 224).
        channels: how the maps' channels become one value.
    """

    tolerance: float = 15 / 224
    channels: Channels = "sum"
    better: ClassVar[Better] = "higher"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    cost: ClassVar[str] = "none"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"], masks: Masks) -> Measurement:
        """Return 1 for a hit and 0 for a miss of each input."""
        large = dilated(masks, round(self.tolerance * min(masks.shape[1:])))

        def value(maps: Tensor) -> Tensor:
            top = maps.amax((1, 2), keepdim=True)
            at_top = (maps == top) & (top > 0)
            hits = (at_top & large).sum((1, 2)).double()
            return hits / at_top.sum((1, 2)).clamp(min=1)

        return _measured(self, value, explained, score, inputs, masks, large)


@dataclass(frozen=True)
class EnergyShare:
    """How much of a map's positive values lies on the object (Wang et al. 2020, sec. 4.3; relevance mass).

    Undefined for a map without positive values, which is counted. Chance is the object's area.

    Attributes:
        channels: how the maps' channels become one value.
    """

    channels: Channels = "sum"
    better: ClassVar[Better] = "higher"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    cost: ClassVar[str] = "none"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"], masks: Masks) -> Measurement:
        """Return each input's share."""

        def value(maps: Tensor) -> Tensor:
            positive = maps.clamp(min=0)
            whole = positive.sum((1, 2))
            share = (positive * masks).sum((1, 2)) / whole
            return torch.where(whole > 0, share, torch.nan)

        return _measured(self, value, explained, score, inputs, masks, masks)


@dataclass(frozen=True)
class RelevanceRank:
    """The share of the highest places, as many as the object has, that lie on it (Arras et al. 2022, eq. 2).

    Places that tie at the threshold count by the share of them that still has room. Undefined for a constant map.

    Attributes:
        channels: how the maps' channels become one value.
    """

    channels: Channels = "sum"
    better: ClassVar[Better] = "higher"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    cost: ClassVar[str] = "none"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"], masks: Masks) -> Measurement:
        """Return each input's share."""
        return _measured(self, lambda m: _top_inside(m, masks), explained, score, inputs, masks, masks)


@dataclass(frozen=True)
class MaskIou:
    """Intersection over union of the object and as many of the map's highest places.

    It follows from `RelevanceRank` r: `r / (2 - r)`.

    Attributes:
        channels: how the maps' channels become one value.
    """

    channels: Channels = "sum"
    better: ClassVar[Better] = "higher"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    cost: ClassVar[str] = "none"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"], masks: Masks) -> Measurement:
        """Return each input's IoU."""

        def value(maps: Tensor) -> Tensor:
            rank = _top_inside(maps, masks)
            return rank / (2 - rank)

        area = masks.flatten(1).double().mean(1)
        return _measured(self, value, explained, score, inputs, masks, area / (2 - area))


@dataclass(frozen=True)
class InsideAuroc:
    """The map as a classifier of pixels: how often one on the object is above one beside it, ties counted half.

    Attributes:
        channels: how the maps' channels become one value.
    """

    channels: Channels = "sum"
    better: ClassVar[Better] = "higher"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    cost: ClassVar[str] = "none"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"], masks: Masks) -> Measurement:
        """Return each input's area under the curve."""

        def value(maps: Tensor) -> Tensor:
            ranks = torch.from_numpy(rankdata(maps.flatten(1).numpy(), axis=1))
            inside = masks.flatten(1)
            ones = inside.sum(1).double()
            others = inside.shape[1] - ones
            return ((ranks * inside).sum(1) - ones * (ones + 1) / 2) / (ones * others)

        half = torch.full((len(masks),), 0.5, dtype=torch.float64)
        return _measured(self, value, explained, score, inputs, masks, half)


@dataclass(frozen=True)
class WeakLocalisation:
    """Whether a box around the largest piece of the map fits the object's box: IoU of at least a half (Zhou et al. 2016).

    Attributes:
        threshold: share of the maximum from which a place belongs to a piece; 0.2 for class activation maps.
        channels: how the maps' channels become one value.
    """

    threshold: float = 0.2
    channels: Channels = "sum"
    better: ClassVar[Better] = "higher"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    cost: ClassVar[str] = "none"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"], masks: Masks) -> Measurement:
        """Return 1 for each input whose box fits."""

        def value(maps: Tensor) -> Tensor:
            fits = [self._fits(m, mask) for m, mask in zip(maps, masks, strict=True)]
            return torch.tensor(fits, dtype=torch.float64)

        return _measured(self, value, explained, score, inputs, masks, None)

    def _fits(self, map_: Tensor, mask: Tensor) -> float:
        from scipy.ndimage import label

        if not bool((map_ > 0).any()):
            return 0.0
        pieces, count = label((map_ >= self.threshold * map_.max()).numpy())
        found = torch.from_numpy(pieces)
        sizes = torch.bincount(found.flatten(), minlength=count + 1)[1:]
        a, b = _box(found == int(sizes.argmax()) + 1), _box(mask)
        shared = [max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in range(2)]
        inside = shared[0] * shared[1]
        either = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - inside
        return float(inside / either >= 0.5)


def dilated(masks: Masks, by: int) -> Masks:
    """Return masks enlarged by so many pixels in all directions, corners included."""
    if by < 1:
        return masks
    wide = functional.max_pool2d(masks[:, None].float(), 2 * by + 1, stride=1, padding=by)
    return wide[:, 0] > 0


def _box(mask: Tensor) -> tuple[int, int, int, int]:
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _top_inside(maps: Float[Tensor, "n h w"], masks: Masks) -> Float[Tensor, " n"]:
    """Return the share of each map's highest places that lie inside; ties at the threshold count in part."""
    flat, inside = maps.flatten(1), masks.flatten(1)
    found = []
    for row, mask in zip(flat, inside, strict=True):
        size = int(mask.sum())
        limit = row.topk(size).values[-1]
        above, at = row > limit, row == limit
        room = (size - int(above.sum())) / int(at.sum())
        found.append((int((above & mask).sum()) + room * int((at & mask).sum())) / size)
    values = torch.tensor(found, dtype=torch.float64)
    return torch.where((flat == flat[:, :1]).all(1), torch.nan, values)


def _measured(
    metric: PointingGame | EnergyShare | RelevanceRank | MaskIou | InsideAuroc | WeakLocalisation,
    value: Callable[[Tensor], Tensor],
    explained: Explained,
    score: Score,
    inputs: Tensor,
    masks: Tensor,
    chance: Tensor | None,
) -> Measurement:
    """Return a value of each map; chance is the share of places that a mask covers, or given."""
    covered = masks.flatten(1).double().mean(1)
    if masks.shape != (len(one_tensor(inputs)), *inputs.shape[2:]) or not bool(((covered > 0) & (covered < 1)).all()):
        raise EvaluationError(
            f"each input needs a mask of its size that covers a part of it, got {tuple(masks.shape)} for inputs of "
            f"{tuple(inputs.shape)}, covering {float(covered.min()):.3g} to {float(covered.max()):.3g}."
        )
    maps = maps_of(explained, score, inputs)
    if chance is not None and chance.ndim > 1:
        chance = chance.flatten(1).double().mean(1)
    return measurement(
        metric,
        score,
        value(pixels(maps.values, metric.channels).double().cpu()),
        maps,
        chance=chance,
    )
