"""An atlas of one layer: its activations on a plane, and their means over the cells of a grid.

Carter et al. 2019 ("Activation Atlas") lay activations out by UMAP, average them cell by cell, and show each mean by
feature visualisation. Distances on the plane are not those between activations: how far neighbours are kept is
measured and stands beside every atlas.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from probing.core.content_ids import content_id
from probing.core.errors import ProbingError
from probing.data.examples import Examples, ExampleSet, as_examples, labels_of
from probing.models.geometry import channel_axis
from probing.models.layers import resolve, split_call
from probing.models.loading import Model, module_of
from probing.results.figures import FAINT, PAPER, look, new_figure, style
from probing.results.result import Provenance, Result
from probing.store.store import ActivationStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEIGHBOURS = 10
"""Of each point, by which it is judged how well the plane keeps neighbourhoods."""
_JUDGED = 2000
"""Points of which distances to all others are taken for that."""


_TILE = 64
"""Pixels of a picture on the plane."""


class AtlasError(ProbingError, ValueError):
    """Rows that make no atlas, or an atlas that is asked for what it does not hold."""


@runtime_checkable
class Projection(Protocol):
    """A way to lay rows out on a plane: hyperparameters that can be called."""

    def __call__(self, rows: Float[Tensor, "n m"]) -> Float[Tensor, "n 2"]:
        """Return each row's place."""


@runtime_checkable
class Pictures(Protocol):
    """Pictures of the examples of an atlas, by their numbers there."""

    @property
    def ids(self) -> "Sequence[str]":
        """Content ids of the examples."""

    def image(self, index: int) -> Image.Image:
        """Return the picture of an example."""


@dataclass(frozen=True)
class Pca:
    """The two directions of most variance; exact, and the same on every run.

    The sign of each direction is such that its largest entry is positive.
    """

    def __call__(self, rows: Float[Tensor, "n m"]) -> Float[Tensor, "n 2"]:
        wide = rows.double()
        wide = wide - wide.mean(0)
        if wide.shape[1] <= len(wide):
            directions = torch.linalg.eigh(wide.mT @ wide)[1][:, -2:].flip(1)
        else:
            values, turned = torch.linalg.eigh(wide @ wide.mT)
            directions = wide.mT @ turned[:, -2:].flip(1)
            directions = directions / values[-2:].flip(0).clamp_min(1e-300).sqrt()
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        points = (wide @ (directions * largest.sign())).float()
        return torch.nn.functional.pad(points, (0, 2 - points.shape[1]))


@dataclass(frozen=True)
class Umap:
    """UMAP (McInnes, Healy & Melville 2018), with a seed and one thread, so that it is the same on every run.

    Attributes:
        neighbours: of each point whose closeness is kept.
        spread: least distance on the plane, from 0 (clumps) to 1.
        metric: between rows, as umap-learn names it.
    """

    neighbours: int = 15
    spread: float = 0.1
    metric: str = "cosine"
    seed: int = 0

    def __call__(self, rows: Float[Tensor, "n m"]) -> Float[Tensor, "n 2"]:
        if len(rows) <= self.neighbours + 1:
            raise AtlasError(
                f"UMAP with {self.neighbours} neighbours needs {self.neighbours + 2} rows or more, got {len(rows)}: add "
                "examples, ask for fewer neighbours, or use Pca()."
            )
        from umap import UMAP

        model = UMAP(n_neighbors=self.neighbours, min_dist=self.spread, metric=self.metric, random_state=self.seed, n_jobs=1)
        threads = torch.get_num_threads()
        try:
            return torch.from_numpy(np.asarray(model.fit_transform(rows.float().numpy()))).float()
        finally:
            torch.set_num_threads(threads)  # numba sets the number for the whole process


@dataclass(frozen=True)
class AtlasResult(Result):
    """Places of a layer's activations on a plane, and mean activations over a grid of cells."""

    layer: str
    ids: tuple[str, ...]
    """Content ids of the examples."""
    names: tuple[str, ...]
    """Of the labels that points are coloured by; empty without."""
    labels: Int[Tensor, " n"]
    """Which of `names` each point has; -1 without."""
    points: Float[Tensor, "n 2"]
    """Across and up, in units that mean nothing by themselves."""
    cell: Int[Tensor, "n 2"]
    """Row from the bottom and column of each point's cell."""
    means: Float[Tensor, "grid grid features"]
    """Mean activation in each cell, row from the bottom and column; zeros where too few points lie."""
    counts: Int[Tensor, "grid grid"]
    least: int
    trustworthiness: float
    """Share (0-1) of neighbourhoods kept, by ranks (Venna & Kaski 2001); 1 if the plane invents no neighbour."""

    def filled(self) -> "Sequence[tuple[int, int]]":
        """Return row and column of cells with enough points, whose means feature visualisation can show."""
        return [(int(r), int(c)) for r, c in (self.counts >= self.least).nonzero().tolist()]

    def central(self) -> "Sequence[tuple[int, int, int]]":
        """Return row, column and the example nearest to the centre of each cell that holds any."""
        low, high = self._bounds()
        side = (high - low) / len(self.counts)
        found = []
        for row, column in (self.counts > 0).nonzero().tolist():
            inside = (self.cell == torch.tensor([row, column])).all(1).nonzero().squeeze(1)
            centre = low + side * (torch.tensor([column, row]) + 0.5)
            nearest = (self.points[inside] - centre).square().sum(1).argmin()
            found.append((int(row), int(column), int(inside[nearest])))
        return found

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per point."""
        import pandas as pd

        return pd.DataFrame(
            {
                "id": self.ids,
                "label": [self.names[k] if k >= 0 else "" for k in self.labels.tolist()],
                "across": self.points[:, 0].numpy(),
                "up": self.points[:, 1].numpy(),
                "row": self.cell[:, 0].numpy(),
                "column": self.cell[:, 1].numpy(),
            }
        )

    def plot(self, ax: "Axes | None" = None, pictures: Pictures | None = None) -> "Axes":
        """Draw the points, coloured by label; with pictures, the central example of each cell in its place.

        Args:
            ax: where to draw.
            pictures: the same examples.

        Raises:
            AtlasError: if the pictures are of other examples.
        """
        if ax is None:
            with style():
                return self.plot(new_figure(5.0, 4.2).add_subplot(), pictures)
        x, y = self.points[:, 0].numpy(), self.points[:, 1].numpy()
        if pictures is not None:
            self._thumbnails(ax, pictures)
        for k, name in enumerate(self.names or ("",)):
            mine = (self.labels == (k if self.names else -1)).numpy()
            colour, marker = look(k) if self.names else (FAINT, "o")
            size, edge = (12, 0.0) if pictures is None else (6, 0.3)
            if self.names or pictures is None:  # points that say nothing would only hide pictures
                ax.scatter(x[mine], y[mine], s=size, color=colour, marker=marker, lw=edge, ec=PAPER, label=name, zorder=3)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        ax.set_title(f"{self.layer}, trustworthiness {self.trustworthiness:.2f}", loc="left")
        if self.names:
            ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=1.5)
        return ax

    def figure(self, pictures: Pictures | None = None) -> "Figure":
        """Return the plot as a figure of its own."""
        with style():
            found = self.plot(None, pictures).figure
        assert found is not None
        return found  # type: ignore[return-value]

    def _thumbnails(self, ax: "Axes", pictures: Pictures) -> None:
        if tuple(pictures.ids) != self.ids:
            raise AtlasError(
                f"pictures must be of the {len(self.ids)} examples of the atlas, got {len(pictures.ids)} that differ: pass"
                " the same examples."
            )
        grid = len(self.counts)
        canvas = np.zeros((grid * _TILE, grid * _TILE, 4), dtype=np.uint8)
        for row, column, index in self.central():
            tile = pictures.image(index).convert("RGB").resize((_TILE - 2, _TILE - 2))
            top, left = (grid - 1 - row) * _TILE, column * _TILE
            canvas[top : top + _TILE - 2, left : left + _TILE - 2, :3] = np.asarray(tile)
            canvas[top : top + _TILE - 2, left : left + _TILE - 2, 3] = 255
        low, high = self._bounds()
        (left, bottom), (right, top) = low.tolist(), high.tolist()
        ax.imshow(canvas, extent=(left, right, bottom, top), aspect="auto")

    def _bounds(self) -> tuple[Tensor, Tensor]:
        return self.points.amin(0), self.points.amax(0)

    def sentences(self) -> tuple[str, ...]:
        """Return what the plane is of, and how far to trust it."""
        return (
            (
                f"Atlas of {self.layer}: {len(self.ids)} points, {len(self.filled())} filled cells, trustworthiness "
                f"{self.trustworthiness:.2f}."
            ),
        )

    def notebook_table(self) -> None:
        """Return nothing: a row per point says little."""


@dataclass(frozen=True)
class Atlas:
    """Lays a layer's activations out on a plane and averages them over a grid.

    Attributes:
        layer: a dotted path.
        projection: onto the plane.
        position: take each example's activation at one position drawn at random, as in the paper; else the mean over
            positions.
        grid: cells on a side.
        least: points in a cell for its mean to count.
        seed: of the positions.
        pool: over positions first (`mean`), or over all axes but the last, for layers that return channels last
            (`mean_last`); without effect with `position`.

    Example:
        >>> atlas = Atlas("layer4")(ActivationStore(), net, images, labels)
        >>> atlas.plot(pictures=images)
    """

    layer: str
    projection: Projection = field(default_factory=Umap)
    position: bool = False
    grid: int = 10
    least: int = 3
    seed: int = 0
    pool: Literal["mean", "mean_last"] = "mean"

    def __call__(
        self,
        store: ActivationStore,
        model: Model,
        examples: Examples,
        labels: "Sequence[object] | None" = None,
    ) -> AtlasResult:
        """Return the atlas of some examples.

        Args:
            store: reads activations and keeps them.
            model: in evaluation mode.
            examples: one point each.
            labels: classes, groups or concepts to colour points by; by default those that came with the examples.

        Raises:
            AtlasError: if there are fewer than three examples, or not as many labels, or all activations are equal.
        """
        model, examples = module_of(model), as_examples(examples)
        labels = labels_of(examples) if labels is None else labels
        if labels is not None and len(labels) != len(examples):
            raise AtlasError(f"there are {len(labels)} labels for {len(examples)} examples: give one to each.")
        if self.grid < 1:
            raise AtlasError(f"grid must be 1 or more, got {self.grid}.")
        if len(examples) < 3:
            raise AtlasError(f"an atlas needs 3 examples or more, got {len(examples)}.")
        rows = self._rows(store, model, examples)
        if bool((rows == rows[0]).all()):
            raise AtlasError(f"all {len(rows)} activations at {self.layer!r} are equal: there is nothing to lay out.")
        known = [] if labels is None else [str(label) for label in labels]
        names = tuple(sorted(set(known)))
        numbers = [names.index(label) for label in known] or [-1] * len(rows)
        points = self.projection(rows)
        cell = _cells(points, self.grid)
        means, counts = _means(rows, cell, self.grid, self.least)
        content = content_id([list(examples.ids), known])
        provenance = Provenance.collect(model=model, examples=content, method=self)
        trust = trustworthiness(rows, points, seed=self.seed)
        return AtlasResult(
            provenance,
            self.layer,
            tuple(examples.ids),
            names,
            torch.tensor(numbers),
            points,
            cell,
            means,
            counts,
            self.least,
            trust,
        )

    def _rows(self, store: ActivationStore, model: nn.Module, examples: ExampleSet) -> Float[Tensor, "n m"]:
        resolve(model, split_call(self.layer)[0])  # a glob may name several
        if not self.position:
            rows = store.activations(model, [self.layer], examples, pool=self.pool)[self.layer]
            return rows.cpu().flatten(1)
        drawn = torch.from_numpy(np.random.default_rng(self.seed).uniform(size=len(examples)))
        found: list[Tensor] = [torch.empty(0)] * len(examples)
        last = channel_axis(model, examples.load([0]), self.layer) == -1
        for positions, batch in store.batches(model, [self.layer], examples):
            outputs = batch[self.layer].cpu()
            if outputs.ndim not in {3, 4}:
                raise AtlasError(
                    f"position=True needs maps or tokens, got {tuple(outputs.shape[1:])} for each example at "
                    f"{self.layer!r}: leave it out."
                )
            outputs = outputs.movedim(-1, 1) if last else outputs
            places = outputs.flatten(2) if outputs.ndim == 4 else outputs.mT
            for i, values in zip(positions, places, strict=True):
                found[i] = values[:, int(drawn[i] * values.shape[1])]
        return torch.stack(found)


def trustworthiness(
    rows: Float[Tensor, "n m"],
    points: Float[Tensor, "n 2"],
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
) -> float:
    """Return how far points that lie close on the plane are close as rows (Venna & Kaski 2001, eq. 1), from 0 to 1.

    Rows are compared by Euclidean distance. Of many points a draw is judged, each against all others.
    """
    n = len(rows)
    k = min(neighbours, (n - 1) // 2)
    if k < 1:
        return math.nan
    drawn = torch.from_numpy(np.random.default_rng(seed).permutation(n)[:_JUDGED])
    lost = 0.0
    for part in torch.split(drawn, 256):
        ranks = _ranks(rows, part)
        close = _ranks(points, part) <= k
        lost += float((ranks - k).clamp_min(0)[close].sum())
    return 1 - 2 / (len(drawn) * k * (2 * n - 3 * k - 1)) * lost


def _ranks(rows: Tensor, of: Tensor) -> Tensor:
    """Return for some rows the rank of every row by distance: 0 itself, 1 the nearest."""
    distance = torch.cdist(rows[of].double(), rows.double())
    distance[torch.arange(len(of)), of] = -1
    return distance.argsort(dim=1, stable=True).argsort(dim=1).double()


def _cells(points: Tensor, grid: int) -> Tensor:
    low, high = points.amin(0), points.amax(0)
    share = (points - low) / (high - low).clamp_min(torch.finfo(points.dtype).tiny)
    return (share * grid).long().clamp(0, grid - 1).flip(1)


def _means(rows: Tensor, cell: Tensor, grid: int, least: int) -> tuple[Tensor, Tensor]:
    place = cell[:, 0] * grid + cell[:, 1]
    counts = place.bincount(minlength=grid * grid)
    total = torch.zeros(grid * grid, rows.shape[1], dtype=torch.float64)
    total.index_add_(0, place, rows.double())
    means = total / counts.clamp_min(1).unsqueeze(1)
    means[counts < least] = 0
    return means.float().view(grid, grid, -1), counts.view(grid, grid)
