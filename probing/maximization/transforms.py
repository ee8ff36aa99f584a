"""Random views of images, so that what is drawn does not hang on single pixels: padded, shifted, turned.

Neighbouring shifts, zooms and turns are one resampling, each image with its own numbers. Outside the
canvas the image is mirrored: unlike zeros, this draws no black corners for a network to react to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from probing.core.errors import ProbingError
from probing.maximization.pixel_space import Space

Size = tuple[int, int]
Draws = Float[Tensor, "n k"]
Matrices = Float[Tensor, "n 3 3"]


class TransformError(ProbingError, ValueError):
    """A random view can't be taken as asked for."""


@runtime_checkable
class Resampling(Protocol):
    """A frozen dataclass that says where a view looks; `draws` is how many random numbers it uses."""

    draws: ClassVar[int]

    def matrices(self, draws: Draws, size: Size) -> Matrices | None:
        """Return, per image, where in the image a point of the view lies; None for no change at all.

        Args:
            draws: uniform in [0, 1).
            size: height and width; points are (x, y, 1) in pixels from the centre.
        """
        ...


@dataclass(frozen=True)
class Pad:
    """A margin of so many pixels: mid-grey, or (`fill="reflect"`) the image mirrored."""

    margin: int
    fill: str = "grey"

    def __post_init__(self) -> None:
        if self.fill not in {"grey", "reflect"} or self.margin < 0:
            raise TransformError(f"a margin must be grey or reflect and at least 0 wide, got {self.fill!r}, {self.margin}.")

    def padded(self, images: Tensor, space: Space) -> Tensor:
        """Return images in model space with the margin around them."""
        margin = [self.margin] * 4
        if self.fill == "reflect":
            return functional.pad(images, margin, mode="reflect")
        grey = space.encode(images.new_full((1, images.shape[1], 1, 1), 0.5))
        return functional.pad(images - grey, margin) + grey


@dataclass(frozen=True)
class Jitter:
    """A shift by whole pixels, `range + 1` of them in each direction, around none."""

    range: int
    draws: ClassVar[int] = 2

    def matrices(self, draws: Draws, size: Size) -> Matrices | None:
        """Return shifts."""
        if self.range == 0:
            return None
        return _matrices(shift=(draws * (self.range + 1)).floor() - self.range // 2)


@dataclass(frozen=True)
class Scale:
    """A zoom by one of some factors."""

    factors: tuple[float, ...]
    draws: ClassVar[int] = 1

    def matrices(self, draws: Draws, size: Size) -> Matrices | None:
        """Return zooms: a factor above 1 enlarges."""
        if set(self.factors) == {1.0}:
            return None
        return _matrices(zoom=1 / _chosen(self.factors, draws))


@dataclass(frozen=True)
class Rotate:
    """A turn by one of some angles, in degrees."""

    degrees: tuple[float, ...]
    draws: ClassVar[int] = 1

    def matrices(self, draws: Draws, size: Size) -> Matrices | None:
        """Return turns."""
        if set(self.degrees) == {0.0}:
            return None
        return _matrices(turn=_chosen(self.degrees, draws) * (math.pi / 180))


@dataclass(frozen=True)
class Crop:
    """A window whose side is a share of the image's, uniform between two bounds, enlarged to full size.

    Fel et al. 2023, sec. 3. The window lies within the image.
    """

    smallest: float
    largest: float
    draws: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= self.largest <= 1:
            raise TransformError(
                f"a crop's share must satisfy 0 < smallest <= largest <= 1, got {self.smallest} and {self.largest}."
            )

    def matrices(self, draws: Draws, size: Size) -> Matrices | None:
        """Return windows."""
        share = self.smallest + (self.largest - self.smallest) * draws[:, 2]
        room = (1 - share)[:, None] * draws.new_tensor([size[1], size[0]])
        return _matrices(zoom=share, shift=(draws[:, :2] - 0.5) * room)


Transform = Pad | Resampling

STANDARD: tuple[Transform, ...] = (
    Pad(12),
    Jitter(8),
    Scale(tuple(1 + (i - 5) / 50 for i in range(11))),
    Rotate((*(float(angle) for angle in range(-10, 11)), 0.0, 0.0, 0.0, 0.0, 0.0)),
    Jitter(4),
)
"""lucid's standard transforms (`optvis/transform.py`), without its black corners."""


def standard(side: int) -> tuple[Transform, ...]:
    """Return `STANDARD` for images of some pixels, with shorter shifts and margins where 12 pixels are much."""
    shifts = Jitter(min(8, side // 12)), Jitter(min(4, side // 24))
    return Pad(min(12, side // 10)), shifts[0], *STANDARD[2:4], shifts[1]


def growth(transforms: Sequence[Transform]) -> int:
    """Return by how many pixels views are larger than images."""
    return sum(2 * t.margin for t in transforms if isinstance(t, Pad))


def draw(transforms: Sequence[Transform], seeds: Sequence[int], steps: int) -> Float[Tensor, "steps n k"]:
    """Return all random numbers of a run, each image's from its own seed."""
    count = sum(t.draws for t in transforms if not isinstance(t, Pad))
    drawn = [torch.rand(steps, count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn, 1)


def viewed(
    images: Float[Tensor, "n c h w"],
    transforms: Sequence[Transform],
    draws: Float[Tensor, "n k"],
    space: Space,
) -> Float[Tensor, "n c h2 w2"]:
    """Return a view of each image, in model space."""
    pending: Tensor | None = None
    used = 0
    for transform in transforms:
        if isinstance(transform, Pad):
            images, pending = transform.padded(_resampled(images, pending), space), None
            continue
        size = (images.shape[2], images.shape[3])
        found = transform.matrices(draws[:, used : used + transform.draws], size)
        used += transform.draws
        if found is not None:
            pending = found if pending is None else pending @ found
    return _resampled(images, pending)


def _resampled(images: Tensor, matrices: Tensor | None) -> Tensor:
    if matrices is None:
        return images
    height, width = images.shape[2:]
    halves = matrices.new_tensor([width / 2, height / 2, 1.0])
    theta = (matrices * halves / halves[:, None])[:, :2].to(images)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _chosen(values: Sequence[float], draws: Draws) -> Float[Tensor, " n"]:
    return draws.new_tensor(values)[(draws[:, 0] * len(values)).long()]


def _matrices(
    *,
    zoom: Float[Tensor, " n"] | None = None,
    turn: Float[Tensor, " n"] | None = None,
    shift: Float[Tensor, "n 2"] | None = None,
) -> Matrices:
    like = next(x for x in (zoom, turn, shift) if x is not None)
    matrices = torch.eye(3).to(like).repeat(len(like), 1, 1)
    if turn is not None:
        cos, sin = turn.cos(), turn.sin()
        matrices[:, 0, 0], matrices[:, 0, 1] = cos, -sin
        matrices[:, 1, 0], matrices[:, 1, 1] = sin, cos
    if zoom is not None:
        matrices[:, :2, :2] *= zoom[:, None, None]
    if shift is not None:
        matrices[:, :2, 2] = shift
    return matrices
