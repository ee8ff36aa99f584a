"""Label maps of several planes, and where they lie in what a model sees."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from concepts.data.segmentation.colours import COLOUR_NAMES, colour_labels
from probing.core.errors import ProbingError
from probing.data.examples import ExampleSet, ImageExamples, PicturedExamples, as_examples
from probing.data.images import Preprocess

Planes = Int[np.ndarray, "planes *size"]


class LabelError(ProbingError, ValueError):
    """Labels that contradict themselves, their table or the images they belong to."""


@dataclass(frozen=True)
class Vocabulary:
    """The concepts that labels speak of: in a label map, `i + 1` is the concept of index `i`, and 0 none.

    Attributes:
        names: of the concepts.
        categories: of each concept, such as `object`, `part`, `scene`, `material`, `texture`, `colour`.

    Raises:
        LabelError: if there is no concept, or one stands there twice.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names or len(self.names) != len(self.categories):
            raise LabelError(
                f"a vocabulary needs one category for each of at least one concept, got {len(self.names)} names and "
                f"{len(self.categories)} categories."
            )
        if repeats := [pair for pair, n in Counter(zip(self.names, self.categories, strict=True)).items() if n > 1]:
            raise LabelError(
                f"the concept {repeats[0][0]!r} stands twice in the category {repeats[0][1]!r}: name each once."
            )

    def __len__(self) -> int:
        return len(self.names)

    def label(self, name: str, category: str) -> int:
        """Return the number that stands for a concept in a label map.

        Raises:
            LabelError: if there is no such concept.
        """
        if (name, category) not in self._labels:
            near = get_close_matches(name, self.names, n=3) or list(self.names[:3])
            raise LabelError(f"there is no {category} {name!r}. Close names: {near}.")
        return self._labels[name, category]

    @cached_property
    def _labels(self) -> dict[tuple[str, str], int]:
        return {pair: i + 1 for i, pair in enumerate(zip(self.names, self.categories, strict=True))}

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The categories, each once."""
        return tuple(dict.fromkeys(self.categories))

    @cached_property
    def kind_of(self) -> Int[np.ndarray, " concepts"]:
        """Which of `kinds` each concept is of."""
        places = {kind: i for i, kind in enumerate(self.kinds)}
        return np.array([places[c] for c in self.categories], dtype=np.int64)


@dataclass(frozen=True)
class ImageLabels:
    """What one image shows.

    Attributes:
        planes: label maps; a pixel may have a label in each. 0 is none.
        whole: labels of the whole image, such as its scene.
    """

    planes: Planes
    whole: tuple[int, ...] = ()


@runtime_checkable
class LabelSource(Protocol):
    """Where labels come from, image by image, in the frame of the picture or of the model's input."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What the numbers in the labels mean."""

    def labels(self, index: int) -> ImageLabels:
        """Return the labels of an image."""

    def __len__(self) -> int: ...


class TensorLabels:
    """Labels in memory.

    Args:
        planes: label maps of all images; of series and texts `[n, planes, t]`, of volumes `[n, planes, d, h, w]`.
        vocabulary: what the numbers mean.
        whole: labels of whole images, one tuple per image; none by default.
    """

    def __init__(
        self,
        planes: Int[Tensor, "n planes *size"],
        vocabulary: Vocabulary,
        whole: Sequence[Sequence[int]] = (),
    ) -> None:
        if whole and len(whole) != len(planes):
            raise LabelError(f"{len(planes)} images need as many labels of whole images, got {len(whole)}.")
        self.vocabulary = vocabulary
        self._planes = planes.cpu().numpy().copy()
        self._whole = tuple(tuple(labels) for labels in whole) or ((),) * len(planes)

    def labels(self, index: int) -> ImageLabels:
        return ImageLabels(self._planes[index], self._whole[index])

    def __len__(self) -> int:
        return len(self._planes)


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images with their labels, on a grid of label cells that covers what the model sees.

    Labels go through the same resizing and cropping as the picture, without interpolation: a cell has the labels of
    the place at its centre.

    Attributes:
        examples: the images.
        source: their labels, in the same order.
        size: rows and columns of label cells; half the input's size is customary (Bau et al. 2017). Of series, texts and
            volumes one number or three, the labels' own, which then cover the `input`.
        frame: whether labels cover the whole `picture`, or the model's `input` as it is.
        colours: adds a plane of the category `colour`, computed from the pixels.

    Raises:
        LabelError: if labels and images are not equally many, or the frame can't be followed.

    Example:
        >>> scenes = EmojiScenes(500).scenes(loaded.preprocess)
        >>> scenes.labels(0).planes.shape
        (3, 112, 112)
    """

    examples: ExampleSet
    source: LabelSource
    size: tuple[int, ...] = (112, 112)
    frame: Literal["picture", "input"] = "picture"
    colours: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", as_examples(self.examples))
        if min(self.size) < 1:
            raise LabelError(f"size must be at least 1 by 1 label cells, got {self.size}.")
        count = len(self.source)
        skipped = len(self.examples.skipped) if isinstance(self.examples, ImageExamples) else 0
        if len(self.examples) + skipped != count:
            raise LabelError(f"{len(self.examples)} images have labels for {count}: give one each.")
        if len(self.size) != 2 and (self.frame == "picture" or self.colours or len(self.size) not in {1, 3}):
            raise LabelError(
                f"size {self.size} is no grid of rows and columns, and so none of pictures: give series, texts and volumes "
                "frame='input' and no colours."
            )
        if self.frame == "picture" and self._preprocess is None:
            raise LabelError(
                "labels of the picture can follow its resizing and cropping only with a Preprocess of ImageExamples: "
                "give labels of what the model sees, with frame='input'."
            )
        if self.colours and self._preprocess is None:
            raise LabelError("colours are read from pictures: use ImageExamples with a Preprocess.")

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The concepts of the labels, colours included."""
        own = self.source.vocabulary
        if not self.colours:
            return own
        kinds = ("colour",) * len(COLOUR_NAMES)
        return Vocabulary((*own.names, *COLOUR_NAMES), (*own.categories, *kinds))

    def labels(self, index: int) -> ImageLabels:
        """Return an image's labels on the grid; no cell has a label twice.

        Those of a series are one row, the slices of a volume lie below each other.

        Raises:
            LabelError: for labels that are not in the table, or of another shape than the image.
        """
        own = self.source.labels(self._source_index(index))
        if len(self.size) != 2:
            self._check(index, own, None)
            planes = own.planes.reshape(len(own.planes), -1, self.size[-1]).astype(np.int32)
            return ImageLabels(_once_each(planes, own.whole), own.whole)
        shape = self._shape(index)
        self._check(index, own, shape)
        rows, columns = self._places(shape, own.planes.shape[1:])
        planes = own.planes[:, rows[:, None], columns]
        if self.colours:
            colours = colour_labels(self._sampled(index))
            offset = len(self.source.vocabulary)
            planes = np.concatenate([planes, (colours + offset)[None]])
        return ImageLabels(_once_each(planes.astype(np.int32), own.whole), own.whole)

    def picture(self, index: int) -> Image.Image:
        """Return what the model sees of an image, for people."""
        if isinstance(self.examples, ImageExamples):
            return self.examples.seen(index)
        if not isinstance(self.examples, PicturedExamples):
            raise LabelError(f"{type(self.examples).__name__} has no pictures to show.")
        return self.examples.image(index)

    @property
    def _preprocess(self) -> Preprocess | None:
        kind = self.examples.preprocess if isinstance(self.examples, ImageExamples) else None
        return kind if isinstance(kind, Preprocess) else None

    def _source_index(self, index: int) -> int:
        return self.examples.kept[index] if isinstance(self.examples, ImageExamples) else index

    def _check(self, index: int, labels: ImageLabels, shape: tuple[int, int] | None) -> None:
        count, name = len(self.source.vocabulary), f"image {index}"
        if isinstance(self.examples, ImageExamples):
            name = repr(self.examples.name(index))
        used = [int(labels.planes.min(initial=0)), int(labels.planes.max(initial=0)), *labels.whole]
        if unknown := [label for label in used if not 0 <= label <= count]:
            raise LabelError(
                f"the labels of {name} hold {unknown[0]}, which is not in the table of {count} concepts (0 is none)."
            )
        if 0 in labels.whole:
            raise LabelError(f"the labels of {name} as a whole hold 0, which stands for none.")
        if shape is None:
            if labels.planes.size and labels.planes.shape[1:] != self.size:
                raise LabelError(f"the labels of {name} have shape {labels.planes.shape[1:]}, and the grid is {self.size}.")
            return
        if labels.planes.size and not _same_shape(labels.planes.shape[1:], shape):
            (h, w), (height, width) = labels.planes.shape[1:], shape
            raise LabelError(
                f"the masks of {name} are {w} x {h} pixels for an image of {width} x {height}: give masks of the "
                "image's proportions."
            )

    def _shape(self, index: int) -> tuple[int, int]:
        """Return height and width of what the labels cover."""
        if self.frame == "picture":
            assert isinstance(self.examples, ImageExamples)
            width, height = self.examples.extent(index)
            return height, width
        return self._input

    @cached_property
    def _input(self) -> tuple[int, int]:
        height, width = self.examples.load([0]).shape[-2:]
        return int(height), int(width)

    def _places(self, picture: tuple[int, int], labels: Sequence[int]) -> list[npt.NDArray[np.int64]]:
        """Return which rows and columns of a label map the cells of the grid read."""
        top, left, bottom, right = 0.0, 0.0, 1.0, 1.0
        if self.frame == "picture" and self._preprocess is not None:
            top, left, bottom, right = self._preprocess.window(*picture)
        ranges = ((top, bottom, self.size[0], labels[0]), (left, right, self.size[1], labels[1]))
        return [_nearest(start, stop, cells, pixels) for start, stop, cells, pixels in ranges]

    def _sampled(self, index: int) -> npt.NDArray[np.uint8]:
        """Return the pixel at each cell's centre of what the model sees."""
        pixels = np.asarray(self.picture(index).convert("RGB"))
        rows, columns = (_nearest(0.0, 1.0, self.size[i], pixels.shape[i]) for i in range(2))
        return pixels[rows[:, None], columns]


def present(labels: ImageLabels, concepts: int) -> Bool[np.ndarray, " concepts"]:
    """Return which concepts an image shows anywhere."""
    found = np.zeros(concepts + 1, dtype=bool)
    found[labels.planes.ravel()] = True
    found[list(labels.whole)] = True
    return found[1:]


def labels_in(planes: Planes) -> list[int]:
    """Return the labels that occur in planes, in order."""
    counts = np.bincount(planes.ravel(), minlength=1)
    return [int(label) for label in np.flatnonzero(counts[1:]) + 1]


def _nearest(start: float, stop: float, cells: int, pixels: int) -> npt.NDArray[np.int64]:
    """Return the pixels at the centres of `cells` equal parts of a stretch, which is given in shares of them all."""
    centres = start + (np.arange(cells) + 0.5) / cells * (stop - start)
    places: npt.NDArray[np.int64] = np.floor(centres * pixels).astype(np.int64)
    return places.clip(0, pixels - 1)


def _once_each(planes: npt.NDArray[np.int32], whole: Sequence[int]) -> npt.NDArray[np.int32]:
    """Return planes in which no cell has a label twice, nor one that the whole image has."""
    if whole:
        planes[np.isin(planes, whole)] = 0
    for i in range(1, len(planes)):
        planes[i][(planes[:i] == planes[i]).any(0)] = 0
    return planes


def _same_shape(labels: Sequence[int], image: Sequence[int]) -> bool:
    """Whether two rectangles have the same proportions, up to rounding either to whole pixels."""
    (h, w), (height, width) = labels, image
    return abs(h * width - w * height) <= max(height, width, h, w)
