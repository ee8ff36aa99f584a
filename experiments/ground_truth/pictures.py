"""Pictures with known answers: a drawn thing on a photograph, and a word beneath it.

What is drawn, on which photograph and above which word are given one by one, so that two sets of pictures can differ in
one of the three alone. Drawings (Twemoji, CC-BY 4.0) and parts of the photographs (scikit-learn's samples) are divided
into those for training, for concepts and for judging: none serves twice.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_image
from torch import Tensor

from concepts.data.manifest import Manifest

SIDE, STRIP = 48, 12
"""Pixels of a picture's side, and of the strip at its foot that holds the word."""
KINDS = ("animal", "food", "vehicle")
WORDS = (*KINDS, "rabbit", "window", "spoon")
"""The classes' names, and words that name none."""
PHOTOS = ("flower.jpg", "china.jpg")
PARTS = ("train", "concept", "judge")
NO_WORD = -1
_PREFIXES = {"animal": ("animal-",), "food": ("food-",), "vehicle": ("transport-",)}
_MANIFEST = Path(__file__).parents[2] / "data_manifests" / "twemoji_objects.yaml"
_ENDS = {"train": (0.0, 0.5), "concept": (0.5, 0.75), "judge": (0.75, 1.0)}
"""Which share of the drawings, in a drawn order, and of the photographs, from left to right, serves for what."""
_LEAST, _MOST = 24, 32  # pixels of a thing's side


@dataclass(frozen=True)
class Pictures:
    """Pictures in model space (-1 to 1), with what they show and where."""

    images: Float[Tensor, "n 3 48 48"]
    kinds: Int[Tensor, " n"]
    words: Int[Tensor, " n"]
    photos: Int[Tensor, " n"]
    things: Bool[Tensor, "n 48 48"]
    """Where the thing is."""
    drawings: tuple[str, ...]
    """Which drawing each picture shows."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def strips(self) -> Bool[Tensor, "n 48 48"]:
        """Where the word is: the whole strip."""
        rows = torch.arange(SIDE) >= SIDE - STRIP
        return rows[:, None].expand(len(self), SIDE, SIDE)


def draw(
    part: str,
    kinds: Sequence[int],
    words: Sequence[int],
    photos: Sequence[int],
    seed: int,
) -> Pictures:
    """Return pictures; with the same seed everything but what is asked for is the same.

    Args:
        part: one of `PARTS`.
        kinds: indices into `KINDS`.
        words: indices into `WORDS`; `NO_WORD` leaves the strip away.
        photos: indices into `PHOTOS`.
        seed: of drawings, their places and sizes, and the cuts of photographs.
    """
    found = [_picture(part, k, w, p, [seed, i]) for i, (k, w, p) in enumerate(zip(kinds, words, photos, strict=True))]
    pixels, masks, names = zip(*found, strict=True)
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Pictures(
        images.contiguous(),
        torch.tensor(kinds),
        torch.tensor(words),
        torch.tensor(photos),
        torch.from_numpy(np.stack(masks)),
        names,
    )


def _picture(
    part: str, kind: int, word: int, photo: int, seed: Sequence[int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], str]:
    rng = np.random.default_rng(seed)
    shares = rng.uniform(size=6)  # as many for every picture, whatever it shows
    picture = _cut(part, photo, shares[:2])
    name, thing = _drawings(part, KINDS[kind])[int(shares[2] * len(_drawings(part, KINDS[kind])))]
    side = _LEAST + int(shares[3] * (_MOST - _LEAST + 1))
    small = thing.resize((side, side), Image.Resampling.BOX)
    left = int(shares[4] * (SIDE - side + 1))
    top = int(shares[5] * (SIDE - STRIP - side + 1))
    picture.paste(small, (left, top), small)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top : top + side, left : left + side] = np.asarray(small)[..., 3] >= 128
    if word != NO_WORD:
        picture.paste(_strip(word), (0, SIDE - STRIP))
    return np.asarray(picture), mask, name


def _cut(part: str, photo: int, shares: npt.NDArray[np.float64]) -> Image.Image:
    """Return a square of a photograph, out of the columns that serve the part."""
    whole = _photo(photo)
    first, last = (round(end * whole.width) for end in _ENDS[part])
    left = first + int(shares[0] * (last - first - SIDE))
    top = int(shares[1] * (whole.height - SIDE))
    return whole.crop((left, top, left + SIDE, top + SIDE))


@cache
def _photo(index: int) -> Image.Image:
    photo = Image.fromarray(load_sample_image(PHOTOS[index]))
    return photo.reduce(2)  # 320 × 213: a cut shows something


@cache
def _strip(word: int) -> Image.Image:
    """Return a word in black on white, the same at every place it stands."""
    strip = Image.new("RGB", (SIDE, STRIP), "white")
    font = ImageFont.load_default_imagefont()
    pen = ImageDraw.Draw(strip)
    width = pen.textlength(WORDS[word], font)
    pen.text(((SIDE - width) // 2, 0), WORDS[word], "black", font)
    return strip


@cache
def _drawings(part: str, kind: str) -> tuple[tuple[str, Image.Image], ...]:
    manifest = _manifest()
    of_kind = [i for i, p in enumerate(manifest.attribute("part")) if p.startswith(_PREFIXES[kind])]
    order = np.random.default_rng(1).permutation(of_kind)
    first, last = (round(end * len(order)) for end in _ENDS[part])
    names = manifest.attribute("name")
    return tuple((names[i], _opened(manifest, int(i))) for i in order[first:last])


def _opened(manifest: Manifest, index: int) -> Image.Image:
    with Image.open(io.BytesIO(manifest.images.read(index))) as image:
        return image.convert("RGBA")


@cache
def _manifest() -> Manifest:
    return Manifest.load(_MANIFEST)
