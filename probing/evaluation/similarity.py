"""How alike two maps of the same input are: rank correlation, structural similarity, oriented gradients, top places.

A similarity is undefined (NaN) where a map is constant; whoever averages leaves those out and says how many.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from probing.evaluation.base import EvaluationError

Array = npt.NDArray[np.float64]

TITLES = {
    "spearman": "rank correlation, signed",
    "spearman_abs": "rank correlation, absolute",
    "ssim": "structural similarity",
    "hog": "oriented gradients",
    "top_iou": "highest places, IoU",
}
"""Measures of similarity as figures name them."""


class Similarity(ABC):
    """A frozen dataclass that compares maps in pairs, by features that are taken of each map once."""

    range: ClassVar[tuple[float, float]]

    @abstractmethod
    def features(self, maps: Float[Tensor, "n *places"]) -> Float[Tensor, "n *features"]:
        """Return what is compared of each map; NaN where there is nothing to compare."""

    @abstractmethod
    def between(self, first: Float[Tensor, "n *features"], second: Float[Tensor, "n *features"]) -> Float[Tensor, " n"]:
        """Return the similarity of each pair of maps, given their features."""

    def __call__(self, first: Float[Tensor, "n *places"], second: Float[Tensor, "n *others"]) -> Float[Tensor, " n"]:
        """Return the similarity of each pair of maps, NaN where it is not defined.

        Raises:
            EvaluationError: for maps that can't be compared.
        """
        if first.shape != second.shape:
            raise EvaluationError(
                f"maps can be compared place by place only, got shapes {tuple(first.shape)} and {tuple(second.shape)}."
            )
        return self.between(self.features(first), self.features(second))


@dataclass(frozen=True)
class SignedSpearman(Similarity):
    """The rank correlation of values; independent maps have mean 0 and deviation `1/√(places - 1)`.

    The primary similarity: maps of opposite sign are opposite, as they should be.
    """

    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def features(self, maps: Float[Tensor, "n *places"]) -> Float[Tensor, "n *features"]:
        """Return ranks."""
        return _ranks(maps.detach().cpu().flatten(1))

    def between(self, first: Float[Tensor, "n *features"], second: Float[Tensor, "n *features"]) -> Float[Tensor, " n"]:
        """Return the correlation of ranks."""
        return correlation(first, second)


@dataclass(frozen=True)
class AbsoluteSpearman(SignedSpearman):
    """The rank correlation of absolute values (Adebayo et al. 2018, sec. 3.2).

    Where both maps are multiplied by the input it is high whatever the model does: for an independent Gaussian input
    and gradient the correlation of `|x|` and `|x g|` is 0.68.
    """

    def features(self, maps: Float[Tensor, "n *places"]) -> Float[Tensor, "n *features"]:
        """Return ranks of absolute values."""
        return super().features(maps.abs())


@dataclass(frozen=True)
class Ssim(Similarity):
    """Structural similarity (Wang et al. 2004, eq. 13) of maps that are each stretched to 0 to 1.

    The data's range is then 1; a library's default of 2 for floats would inflate it. Zero becomes another grey in
    each map: it says how alike maps look, not how alike they are.
    """

    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def features(self, maps: Float[Tensor, "n *places"]) -> Float[Tensor, "n *features"]:
        """Return maps from 0 to 1."""
        return _stretched(maps)

    def between(self, first: Float[Tensor, "n *features"], second: Float[Tensor, "n *features"]) -> Float[Tensor, " n"]:
        """Return the mean over windows."""
        return ssim(first, second)


def ssim(first: Float[Tensor, "n h w"], second: Float[Tensor, "n h w"], data_range: float = 1.0) -> Float[Tensor, " n"]:
    """Return the mean structural similarity over all windows that lie inside: Gaussian of σ = 1.5, 11 × 11.

    In smaller maps the window is the largest odd one that fits. `K = (0.01, 0.03)`, population variances.
    """
    side = min(11, *((s - 1) // 2 * 2 + 1 for s in first.shape[1:]))
    offsets = torch.arange(side, dtype=torch.float64) - side // 2
    line = (-0.5 * (offsets / 1.5) ** 2).exp()
    line = line / line.sum()

    def smooth(maps: Tensor) -> Tensor:
        rows = functional.conv2d(maps[:, None].double(), line.view(1, 1, -1, 1))
        return functional.conv2d(rows, line.view(1, 1, 1, -1))[:, 0]

    a, b = first.double(), second.double()
    mean_a, mean_b = smooth(a), smooth(b)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    variances = smooth(a * a) - mean_a.square() + smooth(b * b) - mean_b.square()
    covariance = smooth(a * b) - mean_a * mean_b
    means = mean_a.square() + mean_b.square()
    local = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((means + c1) * (variances + c2))
    return local.flatten(1).mean(1)


@dataclass(frozen=True)
class HogSimilarity(Similarity):
    """The correlation of histograms of oriented gradients (Dalal & Triggs 2005; Adebayo et al. 2018, sec. 3.2).

    Attributes:
        cell: pixels along a cell's side; 16, or 8 up to 64 pixels, or what gives three cells in a smaller map.
    """

    cell: int | None = None
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def features(self, maps: Float[Tensor, "n *places"]) -> Float[Tensor, "n *features"]:
        """Return histograms."""
        side = min(maps.shape[1:])
        cell = self.cell or (16 if side > 64 else min(8, max(1, side // 3)))
        stretched = _stretched(maps)
        constant = stretched[:, :1, 0].isnan()
        return hog(stretched.nan_to_num(0.0), cell).masked_fill(constant, torch.nan)

    def between(self, first: Float[Tensor, "n *features"], second: Float[Tensor, "n *features"]) -> Float[Tensor, " n"]:
        """Return the correlation of histograms."""
        return correlation(first, second)


def hog(maps: Float[Tensor, "n h w"], cell: int) -> Float[Tensor, "n features"]:
    """Return histograms of 9 unsigned orientations per cell, in blocks of 3 × 3 cells, each clipped at 0.2 of its norm.

    Raises:
        EvaluationError: for maps of fewer than three cells.
    """
    rows, columns = (s // cell for s in maps.shape[1:])
    if min(rows, columns) < 3:
        raise EvaluationError(f"oriented gradients need three cells of {cell} pixels, got maps of {tuple(maps.shape[1:])}.")
    maps = maps.double()
    down, across = torch.zeros_like(maps), torch.zeros_like(maps)
    down[:, 1:-1] = maps[:, 2:] - maps[:, :-2]
    across[:, :, 1:-1] = maps[:, :, 2:] - maps[:, :, :-2]
    size, angle = torch.hypot(down, across), torch.rad2deg(torch.atan2(down, across)) % 180
    bins = (angle / 20).long().clamp(max=8)
    spread = torch.zeros(len(maps), 9, *maps.shape[1:], dtype=torch.float64)
    spread.scatter_(1, bins[:, None], size[:, None])
    cells = functional.avg_pool2d(spread[..., : rows * cell, : columns * cell], cell)
    blocks = cells.unfold(2, 3, 1).unfold(3, 3, 1)  # n 9 rows columns 3 3
    blocks = blocks.permute(0, 2, 3, 4, 5, 1).flatten(3)
    blocks = (blocks / (blocks.square().sum(3, keepdim=True) + 1e-10).sqrt()).clamp(max=0.2)
    return (blocks / (blocks.square().sum(3, keepdim=True) + 1e-10).sqrt()).flatten(1)


@dataclass(frozen=True)
class TopIou(Similarity):
    """Shared places over places of either, among each map's highest ones; by chance `k / (2 - k)` for a share k.

    Attributes:
        share: of places that count as the highest; of equal values those that come first in both maps.
    """

    share: float = 0.1
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def features(self, maps: Float[Tensor, "n *places"]) -> Float[Tensor, "n *features"]:
        """Return 1 at each map's highest places, and 0 elsewhere."""
        if not 0 < self.share < 1:
            raise EvaluationError(f"share must lie between 0 and 1, got {self.share}.")
        values = maps.detach().cpu().flatten(1)
        count = max(1, round(self.share * values.shape[1]))
        top = values.argsort(dim=1, descending=True, stable=True)[:, :count]
        mask = torch.zeros(values.shape, dtype=torch.float64).scatter_(1, top, 1.0)
        return mask.masked_fill((values == values[:, :1]).all(1)[:, None], torch.nan)

    def between(self, first: Float[Tensor, "n *features"], second: Float[Tensor, "n *features"]) -> Float[Tensor, " n"]:
        """Return the share of the places of either map that both have."""
        shared = (first * second).sum(1)
        return shared / ((first + second).sum(1) - shared)


SIMILARITIES: dict[str, Similarity] = {
    "spearman": SignedSpearman(),
    "spearman_abs": AbsoluteSpearman(),
    "ssim": Ssim(),
    "hog": HogSimilarity(),
    "top_iou": TopIou(),
}
"""The names that results and the command line use."""


def correlation(first: Float[Tensor, "n places"], second: Float[Tensor, "n places"]) -> Float[Tensor, " n"]:
    """Return Pearson's correlation of each pair of rows, NaN where one is constant."""
    a, b = (m.double() - m.double().mean(1, keepdim=True) for m in (first, second))
    constant = (first == first[:, :1]).all(1) | (second == second[:, :1]).all(1)
    norm = (a.square().sum(1) * b.square().sum(1)).sqrt()
    found = ((a * b).sum(1) / norm).clamp(-1, 1)
    return torch.where(constant | (norm == 0), torch.nan, found)


def _ranks(maps: Float[Tensor, "n places"]) -> Float[Tensor, "n places"]:
    """Return ranks from 1, those of ties averaged; NaN for maps with NaN.

    NumPy sorts float32 by vector instructions: a fifth of the time of other sorts, which would take as long as a pass.
    """
    values = (maps if maps.dtype == torch.float32 else maps.double()).numpy()
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, 1)
    new = ordered[:, 1:] != ordered[:, :-1]
    places = np.broadcast_to(np.arange(1.0, values.shape[1] + 1), values.shape)
    if not new.all():
        places = np.stack([_averaged(*row) for row in zip(places, new, strict=True)])
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, places, 1)
    ranks[np.isnan(ordered[:, -1])] = np.nan  # sorted to the end
    return torch.from_numpy(ranks)


def _averaged(places: Array, new: npt.NDArray[np.bool_]) -> Array:
    """Return the mean place of each run of equal values; `new` says of all but the first whether a run begins there."""
    run = np.concatenate([[0], np.cumsum(new)])
    means: Array = np.bincount(run, places) / np.bincount(run)
    spread: Array = means[run]
    return spread


def _stretched(maps: Tensor) -> Tensor:
    """Return maps from 0 to 1; a constant map becomes NaN."""
    if maps.ndim != 3:
        raise EvaluationError(f"this similarity needs images' maps, got shape {tuple(maps.shape)}.")
    maps = maps.detach().cpu().double()
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, torch.nan)
