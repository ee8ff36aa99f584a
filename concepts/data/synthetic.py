"""Concept images with known answers: textures and colours drawn from a seed, on varied backgrounds."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from probing.core.errors import ArgumentError, OutOfRangeError, ProbingError
from probing.data.examples import ImageExamples, Transform

Array = npt.NDArray[np.float64]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.95, 0.55, 0.10),
    "yellow": (0.95, 0.88, 0.15),
    "green": (0.15, 0.62, 0.20),
    "cyan": (0.15, 0.78, 0.82),
    "blue": (0.13, 0.25, 0.85),
    "purple": (0.50, 0.18, 0.65),
    "pink": (0.97, 0.60, 0.75),
    "brown": (0.45, 0.28, 0.14),
    "black": (0.08, 0.08, 0.08),
    "grey": (0.50, 0.50, 0.50),
    "white": (0.94, 0.94, 0.94),
}
"""Named colours as red, green and blue from 0 to 1; images of a colour are shades around it."""

# how far shades of a named colour go, in brightness and in hue: far less than named colours differ
_BRIGHTNESS, _HUE = 0.1, 0.03
_CONTRAST = 0.35  # least difference in luma of a texture and its background
_LUMA = np.array([0.299, 0.587, 0.114])


class PatternError(ProbingError, LookupError):
    """No pattern has the name."""


@dataclass(frozen=True)
class SyntheticImages:
    """Images of one pattern, drawn when they are read; an image depends on pattern, size, seed and its index alone.

    Textures (`stripes`, `dots`, `zigzags`, `checks`) vary in colour, scale, angle and position over backgrounds that
    vary in two random colours; `plain` is such a background alone, the control. A colour fills its images with
    shades of it. All carry a little noise.

    Attributes:
        pattern: one of `PATTERNS`.
        count: how many images.
        size: side in pixels.

    Raises:
        PatternError: if there is no such pattern.

    Example:
        >>> SyntheticImages("stripes", 30, seed=1).examples(loaded.preprocess).load([0]).shape
        torch.Size([1, 3, 224, 224])
    """

    pattern: str
    count: int
    size: int = 224
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            near = get_close_matches(self.pattern, PATTERNS, n=3, cutoff=0.4) or list(PATTERNS)
            raise PatternError(f"there is no pattern {self.pattern!r}. Close names: {near}.")
        if self.count < 1 or self.size < 8:
            raise ArgumentError(f"count must be 1 or more and size 8 or more, got {self.count} and {self.size}.")

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> Image.Image:
        """Return one image."""
        return Image.fromarray(self._pixels(index))

    def tensor(self) -> UInt8[Tensor, "count 3 size size"]:
        """Return all images."""
        return torch.from_numpy(np.stack([self._pixels(i) for i in range(self.count)])).permute(0, 3, 1, 2)

    def examples(self, preprocess: Transform) -> ImageExamples:
        """Return the images as a model's inputs."""
        return ImageExamples(self, preprocess)

    def name(self, index: int) -> str:
        return f"{self.pattern}[{index}]"

    def read(self, index: int) -> bytes:
        """Return an image as PPM, which is its pixels after a header: the same bytes with any library."""
        return f"P6 {self.size} {self.size} 255\n".encode() + self._pixels(index).tobytes()

    def _pixels(self, index: int) -> npt.NDArray[np.uint8]:
        if not 0 <= index < self.count:
            raise OutOfRangeError(f"index {index} is out of range for {self.count} images.")
        rng = np.random.default_rng([self.seed, zlib.crc32(self.pattern.encode()), index])
        if self.pattern in COLOURS:
            shades = np.array(COLOURS[self.pattern]) + rng.uniform(-_BRIGHTNESS, _BRIGHTNESS, (2, 1))
            shades = shades + rng.uniform(-_HUE, _HUE, (2, 3))
            picture = _blend(_clouds(self.size, rng), shades[0], shades[1])
        else:
            ground = rng.uniform(0, 1, (2, 3))
            picture = _blend(_clouds(self.size, rng), ground[0], ground[1])
            mask = _TEXTURES[self.pattern](*_turned(self.size, rng), self.size, rng)
            picture += mask[..., None] * (_ink(ground, rng) - picture)
        picture += rng.normal(0, 0.015, picture.shape)
        pixels: npt.NDArray[np.uint8] = np.rint(picture.clip(0, 1) * 255).astype(np.uint8)
        return pixels


def _stripes(x: Array, y: Array, size: int, rng: np.random.Generator) -> Array:
    return _bands(x, rng.uniform(size / 16, size / 6), rng.uniform(0.35, 0.65))


def _dots(x: Array, y: Array, size: int, rng: np.random.Generator) -> Array:
    step = rng.uniform(size / 12, size / 5)
    shifted = x + np.floor(y / step) % 2 * step / 2 * rng.integers(2)  # every other row between the dots, or not
    far = np.hypot(shifted % step - step / 2, y % step - step / 2)
    return _soft(rng.uniform(0.24, 0.38) * step - far)


def _zigzags(x: Array, y: Array, size: int, rng: np.random.Generator) -> Array:
    wave, slope = rng.uniform(size / 10, size / 4), rng.uniform(0.8, 1.4)
    height = np.abs(x % wave - wave / 2) * slope
    return _bands(y + height, rng.uniform(size / 9, size / 5), rng.uniform(0.35, 0.55))


def _checks(x: Array, y: Array, size: int, rng: np.random.Generator) -> Array:
    step = rng.uniform(size / 8, size / 3)
    across, down = _bands(x, step, 0.5), _bands(y, step, 0.5)
    return across * (1 - down) + down * (1 - across)


def _plain(x: Array, y: Array, size: int, rng: np.random.Generator) -> Array:
    return np.zeros_like(x)


_TEXTURES: dict[str, Callable[[Array, Array, int, np.random.Generator], Array]] = {
    "stripes": _stripes,
    "dots": _dots,
    "zigzags": _zigzags,
    "checks": _checks,
    "plain": _plain,
}
PATTERNS = (*_TEXTURES, *COLOURS)


def _bands(along: Array, period: float, duty: float) -> Array:
    """Return bands that fill a share `duty` of each period."""
    return _soft(duty * period / 2 - np.abs(along % period - period / 2))


def _soft(inside: Array) -> Array:
    """Return 1 inside, 0 outside, with an edge of one pixel; `inside` is the distance from the edge in pixels."""
    return (inside + 0.5).clip(0, 1)


def _turned(size: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return pixel coordinates, turned and shifted at random."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    angle, (dx, dy) = rng.uniform(0, np.pi), rng.uniform(0, size, 2)
    x, y = x + dx, y + dy
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _clouds(size: int, rng: np.random.Generator) -> Array:
    """Return a smooth random field from 0 to 1."""
    y, x = np.mgrid[:size, :size] / size
    field = np.zeros((size, size))
    for _ in range(4):
        (fx, fy), phase = rng.uniform(-2, 2, 2), rng.uniform(0, 2 * np.pi)
        field += np.sin(2 * np.pi * (fx * x + fy * y) + phase)
    low, high = field.min(), field.max()
    scaled: Array = (field - low) / max(high - low, 1e-9)
    return scaled


def _blend(weight: Array, first: Array, second: Array) -> Array:
    return first + weight[..., None] * (second - first)


def _ink(ground: Array, rng: np.random.Generator) -> Array:
    """Return a colour that stands out against both of the background's."""
    for _ in range(100):
        ink = rng.uniform(0, 1, 3)
        if np.abs((ground - ink) @ _LUMA).min() >= _CONTRAST:
            return ink
    return np.full(3, float((ground @ _LUMA).mean() < 0.5))
