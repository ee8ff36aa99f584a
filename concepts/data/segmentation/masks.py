"""Masks in files, and manifests that name them."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from concepts.data.manifest import Manifest
from concepts.data.segmentation.labels import ImageLabels, LabelError, Scenes, Vocabulary
from concepts.data.sources import MaskSource
from probing.core.packages import path_under
from probing.data.examples import Transform


def read_mask(path: Path) -> npt.NDArray[np.int64]:
    """Return the number at each pixel of a PNG: grey, a palette's index, or red + 256 · green.

    Raises:
        LabelError: if it is no PNG that can be read so.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=("PNG",)) as image:
            mode, pixels = image.mode, np.asarray(image).astype(np.int64)
    except FileNotFoundError:
        raise LabelError(f"there is no mask {str(path)!r}.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise LabelError(f"the mask {str(path)!r} cannot be read as PNG ({error}).") from None
    if mode in {"RGB", "RGBA"}:
        return pixels[..., 0] + 256 * pixels[..., 1]
    if pixels.ndim != 2:
        raise LabelError(f"the mask {str(path)!r} is of mode {mode!r}: use grey, a palette or RGB.")
    return pixels


@dataclass(frozen=True, eq=False)
class MaskedManifest:
    """The labels of a manifest that names masks.

    Raises:
        LabelError: if it names none, or numbers that stand for two concepts.

    Example:
        >>> scenes = MaskedManifest(Manifest.load("street.yaml")).scenes(loaded.preprocess)
    """

    manifest: Manifest

    def __post_init__(self) -> None:
        columns = [*self._masks.planes.values(), *self._masks.whole.values()]
        for column in columns:
            self.manifest.attribute(column)
        for category, names in self._masks.labels.items():
            if len(set(names.values())) < len(names) or min(names.values(), default=1) < 1:
                raise LabelError(
                    f"the numbers of the category {category!r} must be 1 or more and each stand for one concept."
                )

    def __len__(self) -> int:
        return len(self.manifest)

    def scenes(self, preprocess: Transform, size: tuple[int, int] = (112, 112)) -> Scenes:
        """Return the images as a model's inputs, with their labels, and colours if the manifest asks for them."""
        examples = self.manifest.examples(preprocess)
        return Scenes(examples, self, size, colours=self._masks.colours)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        pairs = [(name, category) for category, names in self._masks.labels.items() for name in names]
        for category, column in self._masks.whole.items():
            cells = {name for cell in self.manifest.attribute(column) for name in _parts(cell)}
            pairs += [(name, category) for name in sorted(cells)]
        return Vocabulary(tuple(name for name, _ in pairs), tuple(kind for _, kind in pairs))

    def labels(self, index: int) -> ImageLabels:
        attributes = self.manifest.items[index].attributes
        planes = [
            self._plane(category, name)
            for category, column in self._masks.planes.items()
            for name in _parts(attributes[column])
        ]
        if len({plane.shape for plane in planes}) > 1:
            sizes = sorted({plane.shape for plane in planes})
            raise LabelError(f"the masks of {self.manifest.items[index].name!r} differ in size: {sizes}.")
        whole = [
            self.vocabulary.label(name, category)
            for category, column in self._masks.whole.items()
            for name in _parts(attributes[column])
        ]
        empty = np.zeros((0, 1, 1), dtype=np.int64)
        return ImageLabels(np.stack(planes) if planes else empty, tuple(dict.fromkeys(whole)))

    def _plane(self, category: str, name: str) -> npt.NDArray[np.int64]:
        numbers = read_mask(path_under(self.manifest.path.parent / self._masks.root, name))
        table = self._numbering[category]
        known = np.isin(numbers, np.flatnonzero(table)) | (numbers == 0)
        if not known.all():
            raise LabelError(f"the mask {name!r} holds {int(numbers[~known][0])}, which is no {category} of the manifest.")
        return table[numbers]

    @cached_property
    def _numbering(self) -> Mapping[str, npt.NDArray[np.int64]]:
        found = {}
        for category in self._masks.planes:
            names = self._masks.labels.get(category, {})
            table = np.zeros(max(names.values(), default=0) + 1, dtype=np.int64)
            for name, number in names.items():
                table[number] = self.vocabulary.label(name, category)
            found[category] = table
        return found

    @property
    def _masks(self) -> MaskSource:
        if self.manifest.file.masks is None:
            raise LabelError(
                f"the manifest {str(self.manifest.path)!r} names no masks: add 'masks' with 'planes' or 'whole'."
            )
        return self.manifest.file.masks


def _parts(cell: str) -> list[str]:
    return [part for part in cell.split(";") if part]
