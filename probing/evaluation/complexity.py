"""How much of an explanation there is to read."""

import io
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

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


@dataclass(frozen=True)
class EffectivePlaces:
    """The number of places that a map is spread over: `exp(H)` of its sizes' shares (Bhatt et al. 2020, sec. 3.3).

    One for a map with a single place, all for a flat one; NaN for a map of zeros.

    Attributes:
        channels: how the maps' channels become one value.
        share: whether of all places, so that maps of different sizes compare.
    """

    channels: Channels = "sum"
    share: bool = False
    better: ClassVar[Better] = "lower"
    range: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    cost: ClassVar[str] = "none"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"]) -> Measurement:
        """Return each map's number, or share."""
        maps = maps_of(explained, score, inputs)
        sizes = _sizes(maps.values, self.channels)
        shares = sizes / sizes.sum(1, keepdim=True)
        entropy = -torch.special.xlogy(shares, shares).sum(1)
        values = entropy.exp() / (sizes.shape[1] if self.share else 1)
        return measurement(self, score, values, maps)


@dataclass(frozen=True)
class ExplanationLength:
    """The fewest places that hold a share of a map's sizes.

    Attributes:
        share: that they hold.
        channels: how the maps' channels become one value.
    """

    share: float = 0.8
    channels: Channels = "sum"
    better: ClassVar[Better] = "lower"
    range: ClassVar[tuple[float, float]] = (1.0, float("inf"))
    cost: ClassVar[str] = "none"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"]) -> Measurement:
        """Return each map's number of places; NaN for a map of zeros."""
        if not 0 < self.share < 1:
            raise EvaluationError(f"share must lie between 0 and 1, got {self.share}.")
        maps = maps_of(explained, score, inputs)
        sizes = _sizes(maps.values, self.channels).sort(1, descending=True).values
        held = sizes.cumsum(1) / sizes.sum(1, keepdim=True)
        values = 1 + (held < self.share - 1e-12).sum(1).double()
        values = torch.where(sizes.sum(1) > 0, values, torch.nan)
        return measurement(self, score, values, maps)


@dataclass(frozen=True)
class Gini:
    """How unequal a map's sizes are: 0 for a flat one, towards 1 for a single place (Chalasani et al. 2020, eq. 1).

    Attributes:
        channels: how the maps' channels become one value.
    """

    channels: Channels = "sum"
    better: ClassVar[Better] = "higher"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    cost: ClassVar[str] = "none"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"]) -> Measurement:
        """Return each map's index; NaN for a map of zeros."""
        maps = maps_of(explained, score, inputs)
        sizes = _sizes(maps.values, self.channels).sort(1).values
        places = sizes.shape[1]
        weights = (places - torch.arange(1, places + 1, dtype=torch.float64) + 0.5) / places
        values = 1 - 2 * (sizes * weights).sum(1) / sizes.sum(1)
        return measurement(self, score, values, maps)


def histogram_entropy(values: Float[Tensor, "n *places"], bins: int = 100) -> Float[Tensor, " n"]:
    """Return the entropy, in nats, of each map's values in bins of equal width from its smallest to its largest one.

    0 for a map of one value; the same for a map times a factor.
    """
    flat = values.detach().cpu().double().flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    width = torch.where(high > low, high - low, 1.0)
    number = ((flat - low) / width * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(len(flat), bins, dtype=torch.float64).scatter_add_(1, number, torch.ones_like(flat))
    shares = counts / flat.shape[1]
    entropy: Tensor = -torch.special.xlogy(shares, shares).sum(1)
    return entropy


@dataclass(frozen=True)
class PictureBytes:
    """The size of the map as a PNG of 8 bits: how much there is to see; NaN for a map of zeros, which shows nothing.

    Attributes:
        channels: how the maps' channels become one value.
    """

    channels: Channels = "sum"
    better: ClassVar[Better] = "lower"
    range: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    cost: ClassVar[str] = "none"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n c h w"]) -> Measurement:
        """Return each map's number of bytes."""
        maps = maps_of(explained, score, inputs)
        shown = pixels(maps.values, self.channels).double().cpu()
        top = shown.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        grey = ((shown / top + 1) * 127.5).round().to(torch.uint8)
        sizes = torch.tensor([_png_bytes(g) for g in grey], dtype=torch.float64)
        empty = ~shown.flatten(1).any(1)
        return measurement(self, score, sizes.masked_fill(empty, torch.nan), maps)


def _png_bytes(grey: Tensor) -> float:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(grey.numpy()).save(buffer, "PNG", optimize=True)
    return float(buffer.tell())


def _sizes(maps: Tensor, channels: Channels) -> Float[Tensor, "n places"]:
    return pixels(maps, channels).detach().cpu().double().abs().flatten(1)
