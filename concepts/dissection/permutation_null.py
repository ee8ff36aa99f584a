"""What units score when they look at other images than the labels do: the null distribution of dissection."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concepts.data.segmentation.labels import ImageLabels, Vocabulary, labels_in
from concepts.dissection.kernels import count_permuted
from concepts.dissection.protocols import DissectionError, Union
from concepts.dissection.tally import Counts, kinds_with_none
from concepts.dissection.unit_masks import Masks
from probing.statistics.kernels import compiled


def shuffles(images: int, draws: int, seed: int, block: int) -> list[Int[np.ndarray, "draws block"]]:
    """Return orders in which units get the labels of other images of the same block, which bounds memory.

    Shuffling inside blocks is as valid as shuffling all: under the null, images are exchangeable within any set.

    Args:
        images: how many.
        draws: how many orders.
        seed: of the orders.
        block: most images of a block.
    """
    rng = np.random.default_rng(seed)
    sizes = [len(part) for part in blocks_of(images, block)]
    return [
        np.stack([rng.permutation(size) for _ in range(draws)]) if draws else np.empty((0, size), np.int64) for size in sizes
    ]


def blocks_of(images: int, block: int) -> list[list[int]]:
    """Return consecutive blocks of about equal size, so that none is too small to be shuffled."""
    return [part.tolist() for part in np.array_split(np.arange(images), -(-images // block))]


class NullTally:
    """Counts under shuffled images, one set per draw; exact integers as in `Tally`.

    Args:
        units: how many.
        vocabulary: the concepts.
        union: in which images a unit's area counts.
        draws: how many shuffles.

    Raises:
        DissectionError: past 2³¹ label cells, which the counts have no room for: 170,000 images of 112 × 112.
    """

    def __init__(self, units: int, vocabulary: Vocabulary, union: Union, draws: int) -> None:
        self._vocabulary, self._union = vocabulary, union
        kinds, concepts = len(vocabulary.kinds), len(vocabulary)
        self._shared = np.zeros((draws, units, concepts + 1), dtype=np.int32)
        self._area = np.zeros((draws, units, kinds), dtype=np.int64)
        self._cells = 0

    def add(
        self,
        masks: Sequence[Masks],
        labels: Sequence[ImageLabels],
        orders: Int[np.ndarray, "draws images"],
    ) -> None:
        """Take in a block of images.

        Args:
            masks: of the units in each image.
            labels: of each image.
            orders: whose labels each image gets, by draw.
        """
        self._count_cells(sum(found.planes.shape[1] * found.planes.shape[2] for found in labels))
        packed = _Packed.of(masks, labels, self._vocabulary)
        touched = np.zeros_like(self._area[0])
        for draw, order in enumerate(orders):
            area = self._area[draw] if self._union == "touched" else touched
            compiled(count_permuted)(
                packed.offsets,
                packed.starts,
                packed.cells,
                packed.planes,
                packed.whole,
                packed.kind_of,
                order,
                self._shared[draw],
                area,
            )
            if self._union != "touched":
                counted = packed.labelled if self._union == "category" else packed.labelled | True
                self._area[draw] += _product(packed.areas, counted[order])

    def merge(self, other: "NullTally") -> None:
        """Take in the counts of other images.

        Raises:
            DissectionError: past 2³¹ label cells.
        """
        self._count_cells(other._cells)
        self._shared += other._shared
        self._area += other._area

    def _count_cells(self, cells: int) -> None:
        self._cells += cells
        if self._cells > np.iinfo(np.int32).max:
            raise DissectionError(
                f"{self._cells} label cells are too many to shuffle: leave draws at 0, or take fewer images."
            )

    def best(self, counts: Counts) -> tuple[Float[Tensor, "draws units"], Int[Tensor, "draws units"]]:
        """Return each unit's best IoU and its concept, by draw.

        Args:
            counts: of the same images, unshuffled: labels' areas are the same.
        """
        values = torch.zeros(self._shared.shape[:2], dtype=torch.float64)
        concepts = torch.zeros(self._shared.shape[:2], dtype=torch.int64)
        kind_of = torch.from_numpy(self._vocabulary.kind_of)
        for draw, (shared, area) in enumerate(zip(self._shared, self._area, strict=True)):
            both = torch.from_numpy(shared[:, 1:])
            union = torch.from_numpy(area)[:, kind_of] + counts.label_area - both
            values[draw], concepts[draw] = (both.double() / union.clamp(min=1)).max(1)
        return values, concepts


@dataclass(frozen=True)
class _Packed:
    """A block's masks and labels as arrays, as `count_permuted` takes them."""

    offsets: Int[np.ndarray, " images"]
    starts: Int[np.ndarray, "images units_and_one"]
    cells: Int[np.ndarray, " active"]
    planes: Int[np.ndarray, "images planes cells"]
    whole: Int[np.ndarray, "images most"]
    kind_of: Int[np.ndarray, " labels"]
    areas: Int[np.ndarray, "units images"]
    labelled: Bool[np.ndarray, "images kinds"]

    @classmethod
    def of(cls, masks: Sequence[Masks], labels: Sequence[ImageLabels], vocabulary: Vocabulary) -> "_Packed":
        sizes = [len(mask.cells) for mask in masks]
        height, width = labels[0].planes.shape[1:]
        depth = max(len(found.planes) for found in labels)
        planes = np.zeros((len(labels), depth, height * width), dtype=np.int32)
        most = max(len(found.whole) for found in labels)
        whole = np.zeros((len(labels), most), dtype=np.int64)
        labelled = np.zeros((len(labels), len(vocabulary.kinds)), dtype=np.bool_)
        kind_of = kinds_with_none(vocabulary)
        for i, found in enumerate(labels):
            planes[i, : len(found.planes)] = found.planes.reshape(len(found.planes), -1)
            whole[i, : len(found.whole)] = found.whole
            labelled[i, kind_of[[*labels_in(found.planes), *found.whole]]] = True
        return cls(
            offsets=np.cumsum([0, *sizes[:-1]]),
            starts=np.stack([mask.starts for mask in masks]),
            cells=np.concatenate([mask.cells for mask in masks]),
            planes=planes,
            whole=whole,
            kind_of=kind_of,
            areas=np.stack([mask.area for mask in masks], 1),
            labelled=labelled,
        )


def _product(areas: npt.NDArray[np.int64], counted: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the units' areas summed over the images that count, by category; float64 holds such sums exactly."""
    total: npt.NDArray[np.int64] = (areas.astype(np.float64) @ counted).astype(np.int64)
    return total
