"""Ways to cut images, and other tensors, into parts."""

import importlib
import math
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor

from probing.attribution.baselines import Samples
from probing.core.inputs import InputError
from probing.core.packages import PackageMissingError

_Array = np.ndarray[Any, np.dtype[Any]]


@runtime_checkable
class Segmentation(Protocol):
    """A frozen dataclass that labels each place of each input by the part that it belongs to."""

    def __call__(self, inputs: Float[Tensor, "n *shape"]) -> Int[Tensor, "n *places"]:
        """Return labels: whole numbers, with an axis of size one where all channels of a pixel go together."""
        ...


@dataclass(frozen=True)
class Slic:
    """Superpixels by k-means over colour and position (Achanta et al. 2012; windows as in Ren and Reid 2011).

    Each pixel joins one of the nine clusters that started nearest to it. Pieces smaller than a quarter of a cluster
    join the neighbour that they share the longest border with. Colours are those of the image stretched to 0…1,
    in CIELAB if it has three channels.

    Attributes:
        segments: about how many; fewer if they would get less than four pixels each.
        compactness: weight of position against colour.
        iterations: of k-means.
    """

    segments: int = 50
    compactness: float = 10.0
    iterations: int = 10

    def __call__(self, inputs: Float[Tensor, "n *shape"]) -> Int[Tensor, "n 1 h w"]:
        """Return labels.

        Raises:
            InputError: for inputs that are no images, or fewer than one segment.
        """
        _refuse_other_than_images(inputs, "Slic")
        if self.segments < 1 or self.iterations < 1:
            raise InputError(
                f"Slic needs at least one segment and one iteration, got {self.segments} and {self.iterations}."
            )
        labels = [torch.from_numpy(self._label(image)) for image in _pixels(inputs)]
        return torch.stack(labels)[:, None].to(inputs.device)

    def _label(self, image: _Array) -> _Array:
        height, width = image.shape[:2]
        step = max(2.0, (height * width / self.segments) ** 0.5)
        rows, columns = (max(1, round(size / step)) for size in (height, width))
        y, x = np.mgrid[:height, :width]
        row, column = (y * rows // height).ravel(), (x * columns // width).ravel()
        place = np.stack([y, x], -1) * (self.compactness / step)
        features = np.concatenate([_lab(image), place], -1).reshape(height * width, -1)
        cells = _neighbours(rows, columns)[row * columns + column]
        labels = row * columns + column
        for _ in range(self.iterations):
            centres = _means(features, labels, rows * columns)
            labels = _nearest(features, centres, cells)
        return _connected(labels.reshape(height, width), max(2.0, step * step / 4))


@dataclass(frozen=True)
class Quickshift:
    """Superpixels by mode seeking (Vedaldi and Soatto 2008), from scikit-image; defaults of the reference LIME.

    Attributes:
        kernel_size: width of the density estimate, in pixels.
        max_dist: cut-off of links; larger gives fewer superpixels.
        ratio: weight of colour against position, 0 to 1.
        seed: breaks ties.
    """

    kernel_size: float = 4.0
    max_dist: float = 200.0
    ratio: float = 0.2
    seed: int = 0

    def __call__(self, inputs: Float[Tensor, "n *shape"]) -> Int[Tensor, "n 1 h w"]:
        """Return labels.

        Raises:
            InputError: for inputs that are no images of three channels.
            PackageMissingError: if scikit-image is not installed.
        """
        _refuse_other_than_images(inputs, "Quickshift")
        if inputs.shape[1] != 3:
            raise InputError(f"Quickshift needs images of three channels, got {inputs.shape[1]}: use Slic or Grid.")
        quickshift = _scikit_image().quickshift
        settings = {"kernel_size": self.kernel_size, "max_dist": self.max_dist, "ratio": self.ratio}
        labels = [quickshift(image, rng=self.seed, **settings) for image in _pixels(inputs)]
        return torch.from_numpy(np.stack(labels).astype(np.int64))[:, None].to(inputs.device)


@dataclass(frozen=True)
class Grid:
    """Rectangles of equal size, up to a pixel.

    Attributes:
        rows: of rectangles.
        columns: of rectangles.
    """

    rows: int = 7
    columns: int = 7

    def __call__(self, inputs: Float[Tensor, "n *shape"]) -> Int[Tensor, "n 1 h w"]:
        """Return labels.

        Raises:
            InputError: for inputs that are no images, or have fewer pixels than the grid.
        """
        _refuse_other_than_images(inputs, "Grid")
        height, width = inputs.shape[2:]
        if not (1 <= self.rows <= height and 1 <= self.columns <= width):
            raise InputError(f"a grid of {self.rows} by {self.columns} does not fit {height} by {width} pixels.")
        row = torch.arange(height, device=inputs.device) * self.rows // height
        column = torch.arange(width, device=inputs.device) * self.columns // width
        labels = row[:, None] * self.columns + column
        return labels.expand(len(inputs), 1, height, width)


@dataclass(frozen=True)
class Given:
    """Labels made elsewhere, such as segmentation masks: any whole numbers. Make them with `Given.of`.

    Attributes:
        masks: the labels: one map for all inputs, or one for each.
    """

    masks: Samples

    @classmethod
    def of(cls, labels: Shaped[Tensor, "maps *places"]) -> "Given":
        """Return a segmentation by maps of labels `[maps, h, w]`, or `[maps, *shape]` for each value its own."""
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise InputError(f"labels must be whole numbers, got {labels.dtype}.")
        return cls(Samples.of(labels))

    def __call__(self, inputs: Float[Tensor, "n *shape"]) -> Int[Tensor, "n *places"]:
        """Return labels.

        Raises:
            InputError: for labels of another size or number than the inputs.
        """
        labels = self.masks.tensor.to(inputs.device)
        if labels.shape[1:] == inputs.shape[2:]:
            labels = labels[:, None]
        elif labels.shape[1:] != inputs.shape[1:]:
            raise InputError(
                f"labels have size {tuple(labels.shape[1:])}, inputs {tuple(inputs.shape[1:])}: "
                "give one label for each pixel, or each value."
            )
        if len(labels) not in {1, len(inputs)}:
            raise InputError(f"{len(labels)} maps of labels can't serve {len(inputs)} inputs: give one, or one each.")
        return labels.expand(len(inputs), *labels.shape[1:])


@dataclass(frozen=True)
class Each:
    """Every value is a part of its own: for inputs that are a few features."""

    def __call__(self, inputs: Float[Tensor, "n *shape"]) -> Int[Tensor, "n *shape"]:
        """Return labels."""
        labels = torch.arange(inputs[0].numel(), device=inputs.device)
        return labels.reshape(inputs.shape[1:]).expand(inputs.shape)


@dataclass(frozen=True)
class EachToken:
    """Every token is a part of its own: for what is looked up for token ids, `[n, tokens, features]`."""

    def __call__(self, inputs: Float[Tensor, "n tokens features"]) -> Int[Tensor, "n tokens features"]:
        """Return labels."""
        return torch.arange(inputs.shape[1], device=inputs.device)[:, None].expand(inputs.shape)


@dataclass(frozen=True)
class Blocks:
    """Parts of equal size, up to a place, along every axis of a series, an image or a volume `[n, c, *size]`.

    Attributes:
        segments: about how many; fewer if they would get less than two places along an axis.
    """

    segments: int = 50

    def __call__(self, inputs: Float[Tensor, "n channels *size"]) -> Int[Tensor, "n 1 *size"]:
        """Return labels.

        Raises:
            InputError: for inputs without places, or fewer than one segment.
        """
        size = inputs.shape[2:]
        if not size or self.segments < 1:
            raise InputError(
                f"Blocks needs inputs [n, c, *size] and one segment or more, got shape {tuple(inputs.shape)} and "
                f"{self.segments} segments: for features use Each()."
            )
        labels = torch.zeros(size, dtype=torch.long, device=inputs.device)
        for axis, length in enumerate(size):
            count = max(1, min(length // 2, round(self.segments ** (1 / len(size)))))
            along = torch.arange(length, device=inputs.device) * count // length
            labels = labels * count + along.view(-1, *[1] * (len(size) - axis - 1))
        return labels.expand(len(inputs), 1, *size)


@dataclass(frozen=True)
class Separate:
    """Each of several inputs, which lie one after the other in a row, is cut as it would be alone; no part has two of them.

    Attributes:
        shapes: of each input of one example.
        tokens: which of them are tokens `[tokens, features]`.
    """

    shapes: tuple[tuple[int, ...], ...]
    tokens: tuple[bool, ...]

    def __call__(self, inputs: Float[Tensor, "n points"]) -> Int[Tensor, "n points"]:
        """Return labels."""
        found, used = [], torch.zeros(len(inputs), 1, dtype=torch.long, device=inputs.device)
        end = 0
        for shape, tokens in zip(self.shapes, self.tokens, strict=True):
            start, end = end, end + math.prod(shape)
            own = inputs[:, start:end].reshape(-1, *shape)
            labels = usual_parts(own.ndim, tokens=tokens)(own).expand(own.shape).flatten(1) + used
            found.append(labels)
            used = labels.amax(1, keepdim=True) + 1
        return torch.cat(found, 1)


def usual_parts(axes: int, *, tokens: bool = False) -> Segmentation:
    """Return how inputs of so many axes are cut if nothing is said: images, tokens, features, or series and volumes."""
    known: dict[int, Segmentation] = {2: Each(), 4: Slic()}
    return EachToken() if tokens else known.get(axes, Blocks())


def _refuse_other_than_images(inputs: Shaped[Tensor, "n *shape"], name: str) -> None:
    if inputs.ndim != 4:
        raise InputError(
            f"{name} needs images [n, c, h, w], got shape {tuple(inputs.shape)}: "
            "for features use Each(), for tokens EachToken(), or Given.of(labels)."
        )


def _scikit_image() -> Any:
    try:
        return importlib.import_module("skimage.segmentation")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "skimage":
            raise
        raise PackageMissingError(
            "Quickshift needs the package 'scikit-image', which is not installed: "
            "pip install 'probing-concepts[superpixels]', or use Slic or Grid."
        ) from None


def _pixels(inputs: Float[Tensor, "n c h w"]) -> list[_Array]:
    """Return each image as `[h, w, c]`, stretched to 0…1 in double precision."""
    images = inputs.detach().cpu().double().permute(0, 2, 3, 1)
    low, high = (f(images, dim=(1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    return [i.numpy() for i in (images - low) / (high - low).clamp(min=1e-12)]


def _lab(image: _Array) -> _Array:
    """Return CIELAB colours (D65) of an sRGB image; of other images, the channels on the same scale."""
    if image.shape[2] != 3:
        return image * 100
    linear = np.where(image > 0.04045, ((image + 0.055) / 1.055) ** 2.4, image / 12.92)
    xyz = linear @ (_TO_XYZ / _WHITE[:, None]).T
    bent = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    lightness = 116 * bent[..., 1] - 16
    a, b = 500 * (bent[..., 0] - bent[..., 1]), 200 * (bent[..., 1] - bent[..., 2])
    return np.stack([lightness, a, b], -1)


# From linear sRGB to CIE XYZ, and the white point D65 (IEC 61966-2-1).
_TO_XYZ: Float64[np.ndarray, "3 3"] = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
_WHITE: Float64[np.ndarray, " 3"] = np.array([0.95047, 1.0, 1.08883])


def _neighbours(rows: int, columns: int) -> _Array:
    """Return, for each cell of a grid, the nine cells around it; at edges some stand twice."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    near = [
        np.clip(row + i, 0, rows - 1) * columns + np.clip(column + j, 0, columns - 1) for i in (-1, 0, 1) for j in (-1, 0, 1)
    ]
    return np.stack(near, -1)


def _means(features: _Array, labels: _Array, count: int) -> _Array:
    sizes = np.bincount(labels, minlength=count)
    sums = [np.bincount(labels, weights=column, minlength=count) for column in features.T]
    centres = np.stack(sums, -1) / np.maximum(sizes, 1)[:, None]
    centres[sizes == 0] = np.inf  # nothing joins a cluster that has lost all its pixels
    return cast("_Array", centres)


def _nearest(features: _Array, centres: _Array, cells: _Array) -> _Array:
    distances = np.stack([((features - centres[cells[:, i]]) ** 2).sum(1) for i in range(9)], 1)
    return cast("_Array", cells[np.arange(len(cells)), distances.argmin(1)])


def _connected(labels: _Array, smallest: float) -> _Array:
    """Make each connected piece a label of its own, and let pieces that are too small join a neighbour."""
    from scipy.sparse import csgraph

    number = np.arange(labels.size).reshape(labels.shape)
    pairs = np.concatenate(
        [
            np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()]),
            np.stack([number[:-1].ravel(), number[1:].ravel()]),
        ],
        axis=1,
    )
    start, end = pairs[:, labels.ravel()[pairs[0]] == labels.ravel()[pairs[1]]]
    pieces = csgraph.connected_components(_links(start, end, labels.size), directed=False)[1]
    while True:
        sizes = np.bincount(pieces)
        first, second = pieces[pairs]
        borders = _links(first[first != second], second[first != second], len(sizes))
        small = np.flatnonzero(sizes < smallest)
        if not len(small) or len(sizes) == 1:
            return cast("_Array", pieces.reshape(labels.shape).astype(np.int64))
        longest = np.asarray((borders + borders.T).tocsr()[small].argmax(1)).ravel()
        merged = _links(small, longest, len(sizes))
        pieces = csgraph.connected_components(merged, directed=False)[1][pieces]


def _links(start: _Array, end: _Array, count: int) -> Any:
    """Return a sparse matrix of how often each pair stands in two lists."""
    from scipy.sparse import coo_array

    return coo_array((np.ones(len(start)), (start, end)), shape=(count, count)).tocsr()
