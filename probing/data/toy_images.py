"""Small images with known answers, drawn from a seed: shapes, and figures made of parts.

Pixels are nominally from 0 to 1; noise is not clipped. The same seed gives the same images on every platform.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Array = npt.NDArray[np.float64]
SHAPES = ("disc", "square", "diamond", "cross")
NOISE = 0.15


@dataclass(frozen=True)
class Shapes:
    """Grey images of one shape each, with its class and where it is."""

    images: Float[Tensor, "n 1 size size"]
    labels: Int[Tensor, " n"]
    masks: Bool[Tensor, "n size size"]


def shapes(n: int, seed: int, size: int = 32) -> Shapes:
    """Draw a disc, square, diamond or cross in each image, of varied place, size and brightness, under noise.

    Example:
        >>> train = shapes(2000, seed=0)
        >>> train.images.shape
        torch.Size([2000, 1, 32, 32])
    """
    rng = np.random.default_rng([seed, size])
    unit = size / 32
    labels = rng.integers(0, len(SHAPES), n)
    radius = rng.integers(5, 9, n)[:, None, None] * unit
    centre = rng.integers(9, 23, (2, n))[:, :, None, None] * unit
    y, x = np.mgrid[:size, :size]
    down, across = np.abs(y - centre[0]), np.abs(x - centre[1])
    far, near = np.maximum(down, across), np.minimum(down, across)
    inside = np.stack(
        [
            down**2 + across**2 <= radius**2,
            far <= 0.85 * radius,
            down + across <= 1.2 * radius,
            (near <= 0.3 * radius) & (far <= radius),
        ]
    )
    masks = inside[labels, np.arange(n)]
    brightness = rng.uniform(0.5, 1, (n, 1, 1))
    pixels = masks * brightness + rng.normal(0, NOISE, (n, size, size))
    images = torch.from_numpy(pixels.astype(np.float32)).unsqueeze(1)
    return Shapes(images, torch.from_numpy(labels), torch.from_numpy(masks))


PARTS = ("head", "body", "left leg", "right leg")


@dataclass(frozen=True)
class Figures:
    """Grey images of figures made of parts (1), and of the same parts out of order (0)."""

    images: Float[Tensor, "n 1 size size"]
    labels: Int[Tensor, " n"]
    parts: Bool[Tensor, "n parts size size"]
    """Where each of `PARTS` is, in images of either class."""
    landmarks: Float[Tensor, "n parts 2"]
    """Row and column of each part's middle, in pixels."""


def figures(n: int, seed: int, size: int = 32) -> Figures:
    """Draw a head (disc), a body (ellipse) and two legs (bars) with jitter of pose; in half the images shuffled.

    Example:
        >>> figures(200, seed=0).parts.shape
        torch.Size([200, 4, 32, 32])
    """
    rng = np.random.default_rng([seed, size, len(PARTS)])
    unit = size / 32
    labels = rng.integers(0, 2, n)
    places = np.array([[-8.0, 0.0], [0.0, 0.0], [8.0, -3.0], [8.0, 3.0]])
    orders = [p for p in permutations(range(4)) if p[:2] != (0, 1)]  # legs that trade places do not count
    drawn = [orders[i] for i in rng.integers(0, len(orders), n)]
    offsets = np.stack([places if k else places[list(p)] for k, p in zip(labels, drawn, strict=True)])
    middle = 15.5 + rng.uniform(-4, 4, (n, 1, 2))
    landmarks = (middle + offsets + rng.uniform(-0.7, 0.7, (n, 4, 2))) * unit
    half = np.array([[3.0, 3.0], [4.5, 3.2], [3.8, 1.2], [3.8, 1.2]]) * unit
    half = half * rng.uniform(0.9, 1.1, (n, 4, 1))
    y, x = np.mgrid[:size, :size]
    down = (y - landmarks[:, :, :1, None]) / half[:, :, :1, None]
    across = (x - landmarks[:, :, 1:, None]) / half[:, :, 1:, None]
    masks = down**2 + across**2 <= 1
    masks[:, 2:] = np.maximum(np.abs(down), np.abs(across))[:, 2:] <= 1
    brightness = rng.uniform(0.6, 1, (n, 4, 1, 1))
    pixels = (masks * brightness).max(1) + rng.normal(0, NOISE / 2, (n, size, size))
    return Figures(
        torch.from_numpy(pixels.astype(np.float32)).unsqueeze(1),
        torch.from_numpy(labels),
        torch.from_numpy(masks),
        torch.from_numpy(landmarks.astype(np.float32)),
    )
