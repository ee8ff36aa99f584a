"""One layer's units on their way through the images: thresholds first, then what they share with concepts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from concepts.data.segmentation.labels import ImageLabels, Vocabulary
from concepts.dissection.permutation_null import NullTally
from concepts.dissection.protocols import Protocol
from concepts.dissection.rotation import Rotation
from concepts.dissection.soft_scores import Moments
from concepts.dissection.tally import Tally
from concepts.dissection.unit_masks import Masks, Upsampling
from probing.models.geometry import Layout
from probing.statistics.streaming import Thresholds, UpperQuantile


@dataclass(frozen=True)
class Lens:
    """How a layer's output becomes units' maps, and these become label cells."""

    layer: str
    layout: Layout
    upsampling: Upsampling
    protocol: Protocol
    rotation: Rotation | None = None

    def maps(self, output: Float[Tensor, "n *axes"]) -> Float[Tensor, "n units h w"]:
        """Return the units' maps in float32, in the layer's basis or a rotated one.

        A series is one row; the slices of a volume lie below each other.
        """
        maps = self.layout.maps(output).float()
        maps = maps[:, :, None] if maps.ndim == 3 else maps.flatten(2, -2)
        if self.rotation is None:
            return maps
        basis = _basis(self.rotation, maps.shape[1]).to(maps)
        return (basis @ maps.flatten(2)).reshape(maps.shape)


@lru_cache(maxsize=4)
def _basis(rotation: Rotation, units: int) -> Float[Tensor, "units units"]:
    """Return a rotation's matrix, made once for all batches."""
    return rotation.matrix(units)


@dataclass
class Levels:
    """What the first pass finds of each unit: its threshold, range, and highest value in each image."""

    lens: Lens
    maxima: Float[Tensor, "images units"]
    quantile: UpperQuantile
    low: Float[Tensor, " units"]
    high: Float[Tensor, " units"]

    @classmethod
    def of(cls, lens: Lens, units: int, images: int) -> "Levels":
        """Prepare for so many images."""
        cells = math.prod(lens.layout.cells)
        if lens.protocol.threshold == "upsampled":
            cells = len(lens.upsampling.rows.cell) * len(lens.upsampling.columns.cell)
        return cls(
            lens,
            torch.full((images, units), torch.nan),
            UpperQuantile(lens.protocol.q, cells * images),
            torch.full((units,), torch.inf),
            torch.full((units,), -torch.inf),
        )

    def add(self, positions: Sequence[int], output: Tensor) -> None:
        """Take in the layer's output for some images."""
        maps = self.lens.maps(output)
        values = maps
        if self.lens.protocol.threshold == "upsampled":
            values = self.lens.upsampling.full(self.lens.upsampling.ready(maps))
        self.quantile.add(values)
        self.maxima[list(positions)] = maps.amax((2, 3)).cpu()
        self.low = torch.minimum(self.low, maps.amin((0, 2, 3)).cpu())
        self.high = torch.maximum(self.high, maps.amax((0, 2, 3)).cpu())

    def merge(self, other: "Levels") -> None:
        """Take in ranges and maxima of other images; the quantile is merged by itself."""
        self.maxima = torch.where(self.maxima.isnan(), other.maxima, self.maxima)
        self.low = torch.minimum(self.low, other.low)
        self.high = torch.maximum(self.high, other.high)

    @property
    def parts(self) -> dict[str, "Levels | UpperQuantile"]:
        """What is merged, by name."""
        return {f"{self.lens.layer}: range": self, f"{self.lens.layer}: quantile": self.quantile}


@dataclass
class Reading:
    """What the second pass finds: counts in two halves of the images, sums, and counts under shuffled images."""

    lens: Lens
    thresholds: Thresholds
    levels: Levels
    halves: tuple[Tally, Tally]
    moments: Moments
    null: NullTally
    extremes: Float[Tensor, " units"]
    """How many values are the unit's lowest or highest one."""
    block: dict[int, Masks] = field(default_factory=dict)

    @classmethod
    def of(cls, levels: Levels, vocabulary: Vocabulary, draws: int) -> "Reading":
        """Prepare from what the first pass found."""
        units, union = len(levels.low), levels.lens.protocol.union
        return cls(
            levels.lens,
            levels.quantile.value(),
            levels,
            (Tally(units, vocabulary, union), Tally(units, vocabulary, union)),
            Moments(units, vocabulary, levels.lens.upsampling),
            NullTally(units, vocabulary, union, draws),
            torch.zeros(units, dtype=torch.float64),
        )

    def add(
        self,
        places: Sequence[int],
        output: Tensor,
        labels: Sequence[ImageLabels],
        half: Sequence[int],
    ) -> None:
        """Take in some images of a block.

        Args:
            places: of the images in the block.
            output: of the layer.
            labels: of the images.
            half: which half each image belongs to.
        """
        maps = self.lens.maps(output)
        low, high = (v.to(maps)[:, None, None] for v in (self.levels.low, self.levels.high))
        self.extremes += ((maps == low) | (maps == high)).sum((0, 2, 3)).cpu()
        ready = self.lens.upsampling.ready(maps)
        self.moments.add(ready, labels)
        for place, one, found, which in zip(places, ready, labels, half, strict=True):
            masks = self.lens.upsampling.active(one, self.thresholds.threshold)
            self.halves[which].add(masks, found)
            self.block[place] = masks

    def merge(self, other: "Reading") -> None:
        """Take in how many extremes other images have; what has an accumulator of its own is merged by itself."""
        self.extremes += other.extremes

    @property
    def parts(self) -> "dict[str, Reading | Tally | Moments | NullTally]":
        """What is merged, by name."""
        found: dict[str, Reading | Tally | Moments | NullTally] = {
            "extremes": self,
            "moments": self.moments,
            "null": self.null,
            "half 0": self.halves[0],
            "half 1": self.halves[1],
        }
        return {f"{self.lens.layer}: {name}": part for name, part in found.items()}

    def shuffle(self, labels: Sequence[ImageLabels], orders: Tensor) -> None:
        """Close a block: count its masks with the labels of other images."""
        if len(orders):
            masks = [self.block[place] for place in range(len(labels))]
            self.null.add(masks, labels, orders.numpy())
        self.block.clear()
