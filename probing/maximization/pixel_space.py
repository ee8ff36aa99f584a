"""How pixels become a network's input: found by showing its own preprocessing flat colours."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from probing.core.errors import ProbingError
from probing.data.examples import Transform
from probing.data.images import Preprocess
from probing.models.loading import LoadedModel

Order = Literal["rgb", "bgr", "grey"]


class SpaceError(ProbingError, ValueError):
    """How a network's inputs are made of pixels is not known, or is no scaling of each channel."""


@dataclass(frozen=True)
class Space:
    """Model space, as seen from pixels: `(maximum · pixel - mean) / std`, pixels in [0, 1].

    Attributes:
        mean: per channel, in the order of `order` and in units of `maximum`.
        std: like `mean`.
        order: of the network's channels; pixels are red, green, blue, or one grey.
        maximum: value of a full channel before normalising, 1 or 255 (Caffe).
        size: side of the square the network was made for, in pixels; None where it is not known.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    order: Order = "rgb"
    maximum: int = 1
    size: int | None = None

    def __post_init__(self) -> None:
        count = 1 if self.order == "grey" else 3
        if len(self.mean) != count or len(self.std) != count or min(self.std) <= 0:
            raise SpaceError(
                f"order={self.order!r} needs {count} means and {count} positive standard deviations, "
                f"got {self.mean} and {self.std}."
            )

    @classmethod
    def plain(cls, order: Order = "rgb", *, maximum: int = 1, size: int | None = None) -> "Space":
        """Return the space of networks that take pixels as they are, from 0 to `maximum`."""
        count = 1 if order == "grey" else 3
        return cls((0.0,) * count, (1.0,) * count, order, maximum, size)

    @classmethod
    def of(cls, source: LoadedModel | Transform) -> "Space":
        """Return the space that a model's own preprocessing leads to.

        A preprocessing of another library is shown flat pictures: black and red tell scale, mean and
        order of the channels, grey whether it is a scaling at all.

        Raises:
            SpaceError: if it is none; the message says what it did.
            PreprocessingUnknownError: if a loaded model came without one.
        """
        transform = source.preprocess if isinstance(source, LoadedModel) else source
        if isinstance(transform, Preprocess):
            p = transform
            return cls(p.mean, p.std, p.channels, p.maximum, p.size)
        return _observed(transform)

    @property
    def channels(self) -> int:
        """How many channels images have, 1 or 3."""
        return len(self.mean)

    def encode(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return pixels in [0, 1], red first, as the network takes them."""
        mean, std = self._columns(pixels)
        return (self._ordered(pixels) * self.maximum - mean) / std

    def decode(self, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the pixels of what a network takes, red first; outside [0, 1] where no picture is."""
        mean, std = self._columns(inputs)
        return self._ordered((inputs * std + mean) / self.maximum)

    def levels(self, like: Tensor) -> Float[Tensor, "c 1 1"]:
        """Return how much of model space one 8-bit level is, per channel of the network."""
        _, std = self._columns(like)
        return self.maximum / 255 / std

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (like.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return mean, std

    def _ordered(self, images: Tensor) -> Tensor:
        return images.flip(1) if self.order == "bgr" else images


def picture(pixels: Float[Tensor, "c h w"]) -> Image.Image:
    """Return pixels in [0, 1] as an 8-bit RGB picture; what lies outside is clipped."""
    eight = (pixels.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(eight.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _observed(transform: Transform) -> Space:
    def shown(*colour: int) -> Tensor:
        values = np.full((512, 512, 3), colour, np.uint8)
        output = transform(Image.fromarray(values))
        flat = output.ndim == 3 and output.shape[1] == output.shape[2]
        if not (flat and float((output - output[:, :1, :1]).abs().max()) <= 1e-4):
            raise SpaceError(
                f"the preprocessing turns a flat picture into {tuple(output.shape)}, not flat or not "
                "square: pass space=Space(mean, std, …)."
            )
        sizes.add(output.shape[1])
        return output[:, 0, 0].double()

    sizes: set[int] = set()
    black, grey, white, red = shown(0, 0, 0), shown(51, 51, 51), shown(255, 255, 255), shown(255, 0, 0)
    std = 1 / (white - black)
    linear = torch.allclose((grey - black) * std, torch.full_like(std, 0.2), atol=2e-3)
    reds = ((red - black) * std).round(decimals=2).tolist()
    orders: dict[tuple[float, ...], Order] = {(1, 0, 0): "rgb", (0, 0, 1): "bgr"}
    order = "grey" if len(reds) == 1 else orders.get(tuple(reds))
    if not linear or order is None:
        raise SpaceError(
            f"the preprocessing is no scaling of each channel: red becomes {red.tolist()}, grey "
            f"{grey.tolist()}, black {black.tolist()}; pass space=Space(mean, std, …)."
        )
    mean = -black * std
    rounded = [tuple(round(v, 6) for v in values.tolist()) for values in (mean, std)]
    return Space(rounded[0], rounded[1], order, 1, sizes.pop())
