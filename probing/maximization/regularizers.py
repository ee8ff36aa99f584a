"""What keeps images from becoming noise: operators after each step, penalties within the objective.

The four operators of Yosinski et al. 2015 (sec. 3, fig. 4) work on pixels, in 8-bit levels relative to
the mean, and leave the gradient alone. Penalties work on any image, in model space.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from probing.maximization.pixel_space import Space

Levels = Float[Tensor, "n c h w"]


@runtime_checkable
class Operator(Protocol):
    """A frozen dataclass that changes images after each step but the last; only for `Pixels`."""

    def after(self, levels: Levels, gradient: Levels, step: int, space: Space) -> Levels:
        """Return the images changed.

        Args:
            levels: 8-bit levels relative to the mean, after the step.
            gradient: of the objective with respect to levels, from before the step.
            step: counts from 0.
            space: tells where black and white lie.
        """
        ...


@runtime_checkable
class Penalty(Protocol):
    """A frozen dataclass whose value is subtracted from the objective."""

    def amount(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """Return what each image, in model space, is penalised by."""
        ...


@dataclass(frozen=True)
class Decay:
    """L2 decay: images shrink toward the mean by a share (0-1) in each step."""

    share: float

    def after(self, levels: Levels, gradient: Levels, step: int, space: Space) -> Levels:
        """Return the shrunken images."""
        return levels * (1 - self.share)


@dataclass(frozen=True)
class Blur:
    """Gaussian blur of each channel, every so many steps, the first included.

    Attributes:
        width: standard deviation in pixels; below 0.3 a sampled Gaussian hardly blurs.
        every: steps from one blur to the next.
        edge: what lies outside: the image mirrored, or repeated.
    """

    width: float
    every: int = 1
    edge: Literal["reflect", "circular"] = "reflect"

    def after(self, levels: Levels, gradient: Levels, step: int, space: Space) -> Levels:
        """Return the images, blurred in steps that are multiples of `every`."""
        return levels if step % self.every else blurred(levels, self.width, self.edge)


def blurred(images: Levels, width: float, edge: Literal["reflect", "circular"]) -> Levels:
    """Return images blurred by a Gaussian cut at four standard deviations, its weights summing to 1."""
    for axis in (2, 3):
        radius = min(math.ceil(4 * width), images.shape[axis] - 1)
        at = torch.arange(-radius, radius + 1, dtype=torch.float64)
        weights = torch.exp(-at.square() / (2 * width * width))
        kernel = (weights / weights.sum()).to(images)
        margin = [radius, radius, 0, 0] if axis == 3 else [0, 0, radius, radius]
        flat = functional.pad(images, margin, mode=edge).flatten(0, 1).unsqueeze(1)
        kernel = kernel[None, None, None, :] if axis == 3 else kernel[None, None, :, None]
        images = functional.conv2d(flat, kernel).view(images.shape)
    return images


@dataclass(frozen=True)
class ClipSmallNorm:
    """Pixels whose norm over channels is below a percentile of the image's are set to the mean."""

    percent: float

    def after(self, levels: Levels, gradient: Levels, step: int, space: Space) -> Levels:
        """Return the images without small pixels."""
        return _kept(levels, levels.norm(dim=1, keepdim=True), self.percent)


@dataclass(frozen=True)
class ClipSmallContribution:
    """Pixels that contribute little are set to the mean: those with small `|Σ_c x_c g_c|`.

    The first-order change of the objective when a pixel is set to the mean; `g` is from before the step.
    A released code of the authors ranks the signed product, which removes the pixels that help most.
    """

    percent: float

    def after(self, levels: Levels, gradient: Levels, step: int, space: Space) -> Levels:
        """Return the images without pixels that contribute little."""
        benefit = (levels * gradient).sum(1, keepdim=True).abs()
        return _kept(levels, benefit, self.percent)


def _kept(levels: Levels, size: Float[Tensor, "n 1 h w"], percent: float) -> Levels:
    bound = size.flatten(1).quantile(percent / 100, dim=1)
    return levels.masked_fill(size < bound[:, None, None, None], 0)


@dataclass(frozen=True)
class Box:
    """Pixels are clipped to what a picture can hold, 0 to 255."""

    def after(self, levels: Levels, gradient: Levels, step: int, space: Space) -> Levels:
        """Return the images in range."""
        mean = levels.new_tensor(space.mean)[:, None, None] * (255 / space.maximum)
        return torch.minimum(torch.maximum(levels, -mean), 255 - mean)


@dataclass(frozen=True)
class Ball:
    """Images are projected onto an L2 ball around the mean, its radius in levels."""

    radius: float

    def after(self, levels: Levels, gradient: Levels, step: int, space: Space) -> Levels:
        """Return the images, those outside the ball moved to its surface."""
        norm: Tensor = levels.flatten(1).norm(dim=1)[:, None, None, None]
        return levels * (self.radius / norm.clamp(min=self.radius))


@dataclass(frozen=True)
class TotalVariation:
    """Sum of absolute differences between neighbouring pixels, rows and columns alike."""

    weight: float

    def amount(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """Return the weighted total variation, summed over channels."""
        rows, columns = images.diff(dim=2), images.diff(dim=3)
        return self.weight * (rows.abs().sum((1, 2, 3)) + columns.abs().sum((1, 2, 3)))


@dataclass(frozen=True)
class L1:
    """Sum of absolute values: distance from the preprocessing's mean."""

    weight: float

    def amount(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """Return the weighted norm."""
        return self.weight * images.abs().sum((1, 2, 3))


@dataclass(frozen=True)
class L2:
    """Sum of squares (Simonyan et al. 2013, eq. 2)."""

    weight: float

    def amount(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """Return the weighted square of the norm."""
        return self.weight * images.square().sum((1, 2, 3))
