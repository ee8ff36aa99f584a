"""Counts of label cells that units and concepts share, from which IoU follows; exact, in any order."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from concepts.data.segmentation.labels import ImageLabels, Vocabulary
from concepts.dissection.kernels import count_shared
from concepts.dissection.protocols import Union
from concepts.dissection.unit_masks import Masks
from probing.statistics.kernels import compiled

Counts64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Cells, summed over images."""

    shared: Int[Tensor, "units concepts"]
    """Active and labelled."""
    unit_area: Int[Tensor, "units concepts"]
    """Active, in the images that count for the concept."""
    label_area: Int[Tensor, " concepts"]
    """Labelled."""
    cells: Int[Tensor, " concepts"]
    """All cells of the images that count for the concept."""

    def plus(self, other: "Counts") -> "Counts":
        """Return the counts of these images and others."""
        return Counts(
            self.shared + other.shared,
            self.unit_area + other.unit_area,
            self.label_area + other.label_area,
            self.cells + other.cells,
        )

    @property
    def iou(self) -> Float[Tensor, "units concepts"]:
        """Shared cells over cells of either (Bau et al. 2017, sec. 2.3); 0 where neither has any."""
        union = self.unit_area + self.label_area - self.shared
        return self.shared.double() / union.clamp(min=1)


class Tally:
    """Counts of one layer's units.

    Args:
        units: how many.
        vocabulary: the concepts.
        union: in which images a unit's area counts; see `Protocol`.

    Example:
        >>> tally = Tally(512, scenes.vocabulary, "category")
        >>> tally.add(upsampling.active(maps[0], thresholds), scenes.labels(0))
        >>> tally.value().iou
    """

    def __init__(self, units: int, vocabulary: Vocabulary, union: Union) -> None:
        self._vocabulary, self._union = vocabulary, union
        kinds, concepts = len(vocabulary.kinds), len(vocabulary)
        self.shared: Counts64 = np.zeros((units, concepts + 1), dtype=np.int64)
        self.unit_area: Counts64 = np.zeros((units, kinds), dtype=np.int64)
        self.label_area: Counts64 = np.zeros(concepts + 1, dtype=np.int64)
        self.cells: Counts64 = np.zeros(kinds, dtype=np.int64)

    def add(self, masks: Masks, labels: ImageLabels) -> None:
        """Take in one image."""
        planes = labels.planes.reshape(len(labels.planes), -1)
        size = labels.planes.shape[1] * labels.planes.shape[2]
        kind_of = kinds_with_none(self._vocabulary)
        touched = np.zeros(self.unit_area.shape, dtype=np.bool_)
        compiled(count_shared)(masks.starts, masks.cells, planes, kind_of, self.shared, touched)
        counts = np.bincount(planes.ravel(), minlength=len(self.label_area))
        counts[0] = 0
        whole = list(labels.whole)
        self.shared[:, whole] += masks.area[:, None]
        touched[:, kind_of[whole]] = True
        counts[whole] += size
        self.label_area += counts
        labelled = np.zeros(len(self.cells), dtype=np.bool_)
        labelled[kind_of[np.flatnonzero(counts)]] = True
        if self._union == "all":
            labelled[:] = True
        self.cells += size * labelled
        counted = touched if self._union == "touched" else labelled[None]
        self.unit_area += masks.area[:, None] * counted

    def merge(self, other: "Tally") -> None:
        """Take in the counts of other images."""
        self.shared += other.shared
        self.unit_area += other.unit_area
        self.label_area += other.label_area
        self.cells += other.cells

    def value(self) -> Counts:
        """Return the counts so far; the tally can go on."""
        kind_of = self._vocabulary.kind_of
        return Counts(
            torch.from_numpy(self.shared[:, 1:].copy()),
            torch.from_numpy(self.unit_area[:, kind_of]),
            torch.from_numpy(self.label_area[1:].copy()),
            torch.from_numpy(self.cells[kind_of]),
        )


def kinds_with_none(vocabulary: Vocabulary) -> Counts64:
    """Return the category of each label; that of 0, none, is never asked for."""
    return np.concatenate([np.zeros(1, dtype=np.int64), vocabulary.kind_of])
