"""The colour of a pixel in words: the eleven basic colour terms of English (Berlin & Kay 1969)."""

from functools import cache

import numpy as np
import numpy.typing as npt
from jaxtyping import Int, UInt8

_FOCAL: dict[str, tuple[str, ...]] = {
    "black": ("000000", "1a1a1a", "14140f"),
    "blue": ("0000ff", "1f3fbf", "3b7dd8", "87b5e8", "102060"),
    "brown": ("8b4513", "5c3a1e", "a0703c", "3d2412"),
    "grey": ("808080", "a6a6a6", "5a5a5a"),
    "green": ("008000", "00c030", "6b8e23", "90d070", "0d4020"),
    "orange": ("ff8c00", "f06a1a", "ffa840"),
    "pink": ("ffc0cb", "ff69b4", "f08fa8"),
    "purple": ("800080", "7b3fb5", "b070d0", "401050"),
    "red": ("ff0000", "c01020", "8b0000"),
    "white": ("ffffff", "f2f2f2", "faf6ee"),
    "yellow": ("ffff00", "ffd700", "f0e060"),
}
COLOUR_NAMES = tuple(_FOCAL)
_STEP = 8  # colours are looked up in a table of 32 x 32 x 32


def colour_labels(pixels: UInt8[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w"]:
    """Return the colour of each pixel as 1 + its place in `COLOUR_NAMES`.

    A pixel has the name of the nearest of a few typical colours in CIELAB. Broden's colours come from names that
    people gave in photographs (van de Weijer et al. 2009), a table that is not reproduced here: the two differ at
    the borders between names.
    """
    red, green, blue = (pixels[..., i] // _STEP for i in range(3))
    labels: npt.NDArray[np.int64] = _table()[red, green, blue]
    return labels


@cache
def _table() -> npt.NDArray[np.int64]:
    names = [i for i, shades in enumerate(_FOCAL.values()) for _ in shades]
    typical = [tuple(bytes.fromhex(shade)) for shades in _FOCAL.values() for shade in shades]
    focal = _lab(np.array(typical, dtype=np.float64))
    axis = np.arange(0, 256, _STEP) + (_STEP - 1) / 2
    grid = _lab(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1))
    nearest = np.square(grid[..., None, :] - focal).sum(-1).argmin(-1)
    table: npt.NDArray[np.int64] = np.array(names)[nearest] + 1
    return table


def _lab(rgb: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return sRGB from 0 to 255 in CIELAB under D65 (IEC 61966-2-1; CIE 15)."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.moveaxis(linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089]), -1, 0)
    fx, fy, fz = (np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29) for t in (x, y, z))
    lab: npt.NDArray[np.float64] = np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], -1)
    return lab
