"""Where units are active, on the grid of label cells."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from concepts.dissection.kernels import find_active
from concepts.dissection.protocols import DissectionError, Protocol
from probing.core.doubles import near
from probing.models.geometry import Geometry, Layout
from probing.statistics.kernels import compiled

_FIRST_SHARE = 0.02  # of all cells: what room is made for at first


@dataclass(frozen=True)
class Axis:
    """How label cells lie between the cells of a map, along one axis."""

    cell: Int[np.ndarray, " labels"]
    """The map's cell before each label cell."""
    weight: Float[np.ndarray, " labels"]
    """The share of the next one."""
    cells: int

    @classmethod
    def of(cls, geometry: Geometry, axis: int, cells: int, labels: int, *, faded: bool) -> "Axis":
        """Work out one axis.

        Args:
            geometry: of the map.
            axis: 0 for rows, 1 for columns.
            cells: of the map.
            labels: cells of the label grid.
            faded: a ring of zeros lies around the map.
        """
        at = geometry.at(axis, labels)
        if faded:
            at, cells = at + 1, cells + 2
        at = at.clamp(0, cells - 1)
        cell = at.floor().long()
        return cls(cell.numpy(), (at - cell).numpy(), cells)

    def repeated(self, times: int) -> "Axis":
        """Return the axis of so many maps, one after the other, between which nothing is interpolated."""
        cell = np.concatenate([self.cell + k * self.cells for k in range(times)])
        return Axis(cell, np.tile(self.weight, times), self.cells * times)

    @cached_property
    def first(self) -> Int[np.ndarray, " cells_and_one"]:
        """The first label cell that lies between each cell of the map and the next."""
        return np.searchsorted(self.cell, np.arange(self.cells + 1)).astype(np.int64)

    def matrix(self) -> Float[Tensor, "labels cells"]:
        """Return the weights by which the map's cells make up label cells."""
        weights = torch.zeros(len(self.cell), self.cells, dtype=torch.float64)
        rows, cell = torch.arange(len(self.cell)), torch.from_numpy(self.cell)
        share = torch.from_numpy(self.weight)
        weights[rows, cell] += 1 - share
        weights[rows, (cell + 1).clamp(max=self.cells - 1)] += share
        return weights


@dataclass(frozen=True)
class Masks:
    """Active label cells of each unit in one image: `cells[starts[u]:starts[u + 1]]`, row by row."""

    starts: Int[np.ndarray, " units_and_one"]
    cells: Int[np.ndarray, " active"]

    @property
    def area(self) -> Int[np.ndarray, " units"]:
        """How many cells each unit is active in."""
        return np.diff(self.starts)


@dataclass(frozen=True)
class Upsampling:
    """From a layer's maps to the grid of label cells; a series is one row, the slices of a volume lie below each other."""

    rows: Axis
    columns: Axis
    faded: bool
    slices: Axis | None = None

    @classmethod
    def of(cls, layout: Layout, size: tuple[int, ...], protocol: Protocol) -> "Upsampling":
        """Return the upsampling of a layer to a label grid.

        Raises:
            DissectionError: if the grid has other axes than the layer's places, or a series or volume is to fade.
        """
        geometry, cells, faded = layout.geometry, layout.cells, protocol.border == "zero"
        if len(size) != len(cells):
            raise DissectionError(
                f"labels lie on a grid of {' x '.join(map(str, size))} cells, a unit's places on one of "
                f"{' x '.join(map(str, cells))}: give labels with as many axes."
            )
        if faded and len(cells) != 2:
            raise DissectionError("a border that falls to zero is one of images: take a protocol with border='edge'.")
        if protocol.anchors == "tiles":
            geometry = Geometry.tiles(cells, geometry.size)
        axes = [Axis.of(geometry, axis, cells[axis], size[axis], faded=faded) for axis in range(len(cells))]
        if len(axes) == 1:
            return cls(Axis(np.zeros(1, np.int64), np.zeros(1), 1), axes[0], faded)
        if len(axes) == 3:
            return cls(axes[1].repeated(size[0]), axes[2], faded, axes[0])
        return cls(axes[0], axes[1], faded)

    def ready(self, maps: Float[Tensor, "n units h w"]) -> Float[Tensor, "n units h2 w2"]:
        """Return maps in float32, with the ring of zeros if there is one."""
        maps = maps.float().contiguous().to(near(maps.device))
        if self.slices is not None:
            volumes = maps.view(*maps.shape[:2], self.slices.cells, -1, maps.shape[3])
            between = self.slices.matrix().to(maps)
            return torch.einsum("ds,nushw->nudhw", between, volumes).flatten(2, 3)
        return functional.pad(maps, (1, 1, 1, 1)) if self.faded else maps

    def full(self, ready: Float[Tensor, "n units h w"]) -> Float[Tensor, "n units rows columns"]:
        """Return whole upsampled maps in float64, by the same arithmetic as `active`."""
        values = ready.double()
        for axis, dim in ((self.rows, 2), (self.columns, 3)):
            cell = torch.from_numpy(axis.cell).to(values.device)
            a = values.index_select(dim, cell)
            b = values.index_select(dim, (cell + 1).clamp(max=axis.cells - 1))
            weight = torch.from_numpy(axis.weight).to(values.device)
            values = a + (weight[:, None] if dim == 2 else weight) * (b - a)
        return values

    def active(self, ready: Float[Tensor, "units h w"], thresholds: Float[Tensor, " units"]) -> Masks:
        """Return where upsampled maps of one image exceed the thresholds."""
        if ready.device.type != "cpu":
            return self._active_on_device(ready, thresholds)
        maps, starts = ready.numpy(), np.empty(len(ready) + 1, dtype=np.int64)
        at = (self.rows.cell, self.rows.weight, self.columns.weight, self.columns.first)
        limits = thresholds.cpu().double().numpy()
        room = max(1024, int(_FIRST_SHARE * len(ready) * len(self.rows.cell) * len(self.columns.cell)))
        while True:
            cells = np.empty(room, dtype=np.int32)
            found = compiled(find_active)(maps, limits, *at, starts, cells)
            if found <= room:
                return Masks(starts, cells[:found].copy())
            room = found

    def _active_on_device(self, ready: Tensor, thresholds: Tensor) -> Masks:
        exceeds = self.full(ready[None])[0] > thresholds.to(ready.device).double()[:, None, None]
        units, cells = exceeds.flatten(1).nonzero(as_tuple=True)
        counts = torch.bincount(units, minlength=len(ready)).cumsum(0).cpu()
        starts = torch.cat([counts.new_zeros(1), counts])
        return Masks(starts.numpy(), cells.to(torch.int32).cpu().numpy())
