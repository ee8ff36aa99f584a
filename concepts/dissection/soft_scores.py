"""How far a unit's activation follows a concept without a threshold: correlation, and average precision."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from concepts.data.segmentation.labels import ImageLabels, Vocabulary, labels_in
from concepts.dissection.kernels import add_precisions, project, sum_squares
from concepts.dissection.unit_masks import Upsampling
from probing.statistics.kernels import compiled


class Moments:
    """Sums from which the correlation of upsampled maps with label masks follows, over the images that count.

    No map is upsampled: labels are brought down to the layer's cells by the transpose of upsampling, which gives the
    same sums. An image counts for a concept if it has a label of the concept's category.
    """

    def __init__(self, units: int, vocabulary: Vocabulary, upsampling: Upsampling) -> None:
        self._vocabulary, self._upsampling = vocabulary, upsampling
        kinds, concepts = len(vocabulary.kinds), len(vocabulary)
        self._total, self._squares = (torch.zeros(units, kinds, dtype=torch.float64) for _ in range(2))
        self._cells = torch.zeros(kinds, dtype=torch.int64)
        self.product = torch.zeros(units, concepts, dtype=torch.float64)
        rows, columns = upsampling.rows.matrix(), upsampling.columns.matrix()
        self._sums = torch.outer(rows.sum(0), columns.sum(0))
        self._rows, self._columns = rows.T @ rows, columns.T @ columns

    def add(self, ready: Float[Tensor, "n units h w"], labels: Sequence[ImageLabels]) -> None:
        """Take in some images."""
        ready = ready.cpu()
        maps = ready.double().flatten(2)
        sums = maps @ self._sums.flatten()
        squares = torch.empty(sums.shape, dtype=torch.float64)
        bands = (m.diagonal(k).numpy() for m in (self._rows, self._columns) for k in (0, 1))
        compiled(sum_squares)(ready.numpy(), *bands, squares.numpy())
        for values, total, square, found in zip(maps, sums, squares, labels, strict=True):
            shown, areas = self._projected(found)
            kinds = np.unique(self._vocabulary.kind_of[[label - 1 for label in shown]])
            self._total[:, kinds] += total[:, None]
            self._squares[:, kinds] += square[:, None]
            self._cells[kinds] += found.planes.shape[1] * found.planes.shape[2]
            if shown:
                columns = torch.tensor(shown) - 1
                self.product[:, columns] += values @ torch.from_numpy(areas).flatten(1).T

    def _projected(self, labels: ImageLabels) -> tuple[list[int], npt.NDArray[np.float64]]:
        """Return the labels of an image, and their masks on the layer's cells."""
        rows, columns = self._upsampling.rows, self._upsampling.columns
        in_planes = labels_in(labels.planes)
        place = np.full(len(self._vocabulary) + 1, -1, dtype=np.int64)
        place[in_planes] = np.arange(len(in_planes))
        shape = (len(in_planes) + len(labels.whole), rows.cells, columns.cells)
        projected = np.zeros(shape, dtype=np.float64)
        at = (rows.cell, rows.weight, columns.cell, columns.weight)
        compiled(project)(labels.planes, place, *at, projected)
        projected[len(in_planes) :] = self._sums.numpy()
        return [*in_planes, *labels.whole], projected

    def merge(self, other: "Moments") -> None:
        """Take in the sums of other images."""
        self._total += other._total
        self._squares += other._squares
        self._cells += other._cells
        self.product += other.product

    @property
    def total(self) -> Float[Tensor, "units concepts"]:
        """Sum of activations over the images that count for each concept."""
        return self._total[:, torch.from_numpy(self._vocabulary.kind_of)]

    @property
    def squares(self) -> Float[Tensor, "units concepts"]:
        """Sum of their squares."""
        return self._squares[:, torch.from_numpy(self._vocabulary.kind_of)]

    @property
    def cells(self) -> Int[Tensor, " concepts"]:
        """Label cells of the images that count for each concept."""
        return self._cells[torch.from_numpy(self._vocabulary.kind_of)]


def correlation(
    product: Float[Tensor, "*cells"],
    total: Float[Tensor, "*cells"],
    squares: Float[Tensor, "*cells"],
    area: Shaped[Tensor, "*#cells"],
    count: Shaped[Tensor, "*#cells"],
) -> Float[Tensor, "*cells"]:
    """Return Pearson's correlation of activations with a mask, from sums; NaN where either is constant.

    Args:
        product: sum of activations on the mask.
        total: sum of all activations.
        squares: sum of their squares.
        area: cells of the mask.
        count: all cells.
    """
    count, area = count.double(), area.double()
    covariance = product / count - total / count * (area / count)
    spread = (squares / count - (total / count).square()).clamp(min=0)
    spread = torch.where(spread > 1e-12 * squares / count, spread, torch.nan)  # rounding of a constant
    share = area / count
    deviation = (spread * share * (1 - share)).sqrt()
    return torch.where(deviation > 0, covariance / deviation, torch.nan).clamp(-1, 1)


def average_precision(
    scores: Float[Tensor, "n units"], shown: Bool[Tensor, "n concepts"]
) -> Float[Tensor, "units concepts"]:
    """Return the area under the precision-recall curve of finding the images that show a concept by a unit's score.

    It is the sum of precisions weighted by steps of recall, equal scores in one step, as scikit-learn's
    `average_precision_score`. NaN for a concept that no image shows.
    """
    images, concepts = shown.nonzero(as_tuple=True)
    starts = torch.searchsorted(images, torch.arange(len(scores) + 1))
    positives = torch.bincount(concepts, minlength=shown.shape[1])
    found = torch.zeros(scores.shape[1], shown.shape[1], dtype=torch.float64)
    for unit in range(scores.shape[1]):
        values, order = scores[:, unit].sort(stable=True, descending=True)
        last = torch.searchsorted(-values, -values, right=True) - 1  # of those with an equal score
        hits = torch.zeros_like(positives)
        arrays = (order, last, starts, concepts, hits, found[unit])
        compiled(add_precisions)(*(array.numpy() for array in arrays))
    return torch.where(positives > 0, found / positives, torch.nan)
