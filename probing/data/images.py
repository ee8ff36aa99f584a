"""From an encoded picture to model space: decoding that refuses what it cannot show faithfully, then preprocessing."""

import io
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from probing.core.errors import ProbingError

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)
MAX_FILE_BYTES = 1 << 30  # of an encoded picture


class ImageError(ProbingError, ValueError):
    """A picture cannot be read, or not without a choice only its owner can make."""


class PreprocessError(ProbingError, ValueError):
    """A preprocessing contradicts itself."""


@dataclass(frozen=True)
class Preprocess:
    """What turns a picture into a model's input: a float32 tensor, `[channels, size, size]`, in model space.

    The picture is flattened onto `background` where it is transparent, resized, cropped at the centre, scaled to
    `[0, maximum]` and normalised by `(x - mean) / std`. With the values of a timm or torchvision model it equals
    their evaluation transforms bit for bit.

    Attributes:
        size: side of the square the model sees, in pixels.
        resize: length of the shorter side before the centre crop; None squashes the picture to the square.
        mean: per channel, in the order of `channels` and in units of `maximum`.
        std: like `mean`.
        channels: `bgr` is the order of networks converted from Caffe, `grey` is one channel of luma.
        maximum: value of a full channel before normalising, 1 or 255 (Caffe).
        background: what shows through transparent pixels, as 8-bit red, green, blue.
    """

    size: int = 224
    resize: int | None = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: Literal["rgb", "bgr", "grey"] = "rgb"
    maximum: Literal[1, 255] = 1
    background: Colour = WHITE

    def __post_init__(self) -> None:
        count = 1 if self.channels == "grey" else 3
        if len(self.mean) != count or len(self.std) != count:
            raise PreprocessError(
                f"channels={self.channels!r} needs {count} values of mean and std, got {self.mean} and {self.std}."
            )
        if min(self.std) <= 0:
            raise PreprocessError(f"std must be positive, got {self.std}.")
        if self.size < 1 or (self.resize is not None and self.resize < self.size):
            raise PreprocessError(
                f"resize must be at least the crop's size, got resize={self.resize} and size={self.size}: "
                "use resize=None to squash the picture to the square."
            )

    def __call__(self, image: Image.Image) -> Float[Tensor, "channels size size"]:
        """Return one picture in model space."""
        return torch.from_numpy(self._normalised(self.crop(image)))

    def crop(self, image: Image.Image) -> Image.Image:
        """Return the square of the picture that the model sees, as 8-bit RGB."""
        self.check(*image.size)
        image = flatten(image, self.background)
        resample = Image.Resampling[self.interpolation.upper()]
        if self.resize is None:
            return image.resize((self.size, self.size), resample)
        (height, width), (top, left) = self._placed(image.height, image.width)
        if (width, height) != image.size:
            image = image.resize((width, height), resample)
        return image.crop((left, top, left + self.size, top + self.size))

    def check(self, width: int, height: int) -> None:
        """Raise `ImageError` for a picture so narrow that it would be huge once its shorter side is as asked for.

        Sides are those before EXIF rotation, or after: it makes no difference.
        """
        if self.resize is None:
            return
        high, wide = self._placed(height, width)[0]
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and high * wide > limit:
            raise ImageError(
                f"it has {width} x {height} pixels, which are {wide} x {high} with a shorter side of {self.resize}, over "
                f"the limit of {limit}: cut out the part you mean"
            )

    def window(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Return which part of a picture the model sees: top, left, bottom and right in shares of its sides."""
        if self.resize is None:
            return 0.0, 0.0, 1.0, 1.0
        (high, wide), (top, left) = self._placed(height, width)
        return top / high, left / wide, (top + self.size) / high, (left + self.size) / wide

    def _placed(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return a picture's sides after resizing, and the first row and column of the crop."""
        assert self.resize is not None
        short = min(height, width)
        resized = (self.resize * height // short, self.resize * width // short)
        return resized, (round((resized[0] - self.size) / 2), round((resized[1] - self.size) / 2))

    def _normalised(self, image: Image.Image) -> Float[np.ndarray, "channels size size"]:
        # NumPy here, not torch: several threads prepare pictures, each would start torch's own pool
        pixels = np.asarray(image.convert("L" if self.channels == "grey" else "RGB"), np.float32)
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        planes = np.ascontiguousarray(planes[::-1] if self.channels == "bgr" else planes)
        if self.maximum == 1:
            planes /= np.float32(255)
        shape = (-1, 1, 1)
        planes = planes - np.asarray(self.mean, np.float32).reshape(shape)
        return planes / np.asarray(self.std, np.float32).reshape(shape)


def decode(data: bytes) -> Image.Image:
    """Return the picture that encoded bytes hold, upright, in 8-bit grey, RGB or RGBA.

    EXIF rotation is applied, 16-bit grey is scaled to 8 bits, palettes and CMYK become RGB; transparency is kept.
    Colour profiles are not applied, as in timm and torchvision.

    Raises:
        ImageError: if the bytes are no whole picture of a known format, or hold several frames, pixels without a
            stated range, or more pixels than Pillow's limit (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    with _decoding():
        return upright(_open(data))


def upright(image: Image.Image) -> Image.Image:
    """Return an opened picture as `decode` returns it.

    Raises:
        ImageError: where `decode` would.
    """
    with _decoding():
        _refuse_unfit(image)
        image.load()
        return _eight_bit(ImageOps.exif_transpose(image))


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        ImageError: if they may have no end, or are more than any picture has.
        OSError: if it can't be read.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ImageError("it is a pipe or a device, not a file")
        if facts.st_size > MAX_FILE_BYTES:
            raise ImageError(f"it has {facts.st_size} bytes, over the limit of {MAX_FILE_BYTES}")
        return file.read()


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for its other end


def check_header(data: bytes) -> tuple[int, int]:
    """Return a picture's width and height; raise `ImageError` where `decode` would, as far as its header tells."""
    with _decoding():
        return _open(data).size


def flatten(image: Image.Image, background: Colour = WHITE) -> Image.Image:
    """Return the picture as RGB, laid on the background where it is transparent."""
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        under = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(under, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


# Pillow would hand some other formats to outside programs (EPS to Ghostscript), which untrusted files must not reach
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000")
# what Pillow's decoders raise on damaged files; MemoryError is none of them
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
    Warning,
)
_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_EIGHT_BIT = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"it is no picture of a known format ({', '.join(_FORMATS)})") from None
    except _DECODE_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(f"it cannot be decoded ({reason})") from None


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    _refuse_unfit(image)
    return image


def _refuse_unfit(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageError(f"it has {image.width} x {image.height} pixels, over the limit of {limit}: shrink it first")
    # an MPO is a JPEG with a second view or a preview behind the picture meant
    if getattr(image, "is_animated", False) and image.format != "MPO":
        # a TIFF is walked through to count them, in a time that grows with their square
        frames = "several" if image.format == "TIFF" else getattr(image, "n_frames", "several")
        raise ImageError(f"it holds {frames} frames: save the one you mean as a picture of its own")
    wide = image.mode == "I" and image.format == "PNG"  # how older Pillow opens 16-bit grey PNG
    if not (wide or image.mode in _SIXTEEN_BIT | _EIGHT_BIT):
        raise ImageError(f"its pixels are of mode {image.mode!r}, without a stated range: save it with 8 or 16 bits")


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode in {"L", "RGB", "RGBA"} and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        if "transparency" in image.info:
            raise ImageError("it marks one 16-bit grey as transparent: save it with an alpha channel")
        wide = np.asarray(image).astype(np.float32)
        return Image.fromarray(np.rint(wide / 257).astype(np.uint8))  # 65535 / 257 = 255
    clear = image.mode in {"LA", "La", "PA", "RGBa"} or "transparency" in image.info
    return image.convert("RGBA" if clear else "L" if image.mode == "1" else "RGB")
