"""The Broden data set as it is published with network dissection (Bau et al. 2017)."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from concepts.data.segmentation.labels import ImageLabels, LabelError, Scenes, Vocabulary
from concepts.data.segmentation.masks import read_mask
from probing.core.packages import path_under
from probing.data.examples import ImageExamples, ImageFiles, Transform

_MEASURES = ("ih", "iw", "sh", "sw")
_FIXED = ("image", "split", *_MEASURES)


@dataclass(frozen=True)
class _Row:
    """One line of `index.csv`: mask files and labels of the whole image, by category."""

    image: str
    size: tuple[int, int]
    masks: tuple[str, ...]
    whole: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Broden:
    """A folder with `index.csv`, `category.csv`, `label.csv`, `c_CATEGORY.csv` and `images/`.

    A mask's pixel is the label red + 256 · green, in one numbering for all categories; an image may have several
    masks in a category, and labels of the whole image as numbers, parted by `;`. A label that occurs in several
    categories belongs to the one that it covers most of, as in the original code. Images without any label are left
    out.

    Attributes:
        root: the folder.
        split: `train` or `val`; None is both.
        limit: the first so many images; None is all.

    Raises:
        LabelError: if a table is missing, or says what can't be.
        probing.core.packages.PathEscapeError: if a file lies outside the folder.

    Example:
        >>> scenes = Broden(Path("broden1_224"), limit=1000).scenes(loaded.preprocess)
    """

    root: Path
    split: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if not self._rows:
            raise LabelError(f"{str(self.root)!r} has no labelled image of the split {self.split!r}.")

        assert len(self.vocabulary) == self._numbering.max()  # read now, so that faults show at once

    def __len__(self) -> int:
        return len(self._rows)

    def scenes(self, preprocess: Transform, size: tuple[int, int] = (112, 112)) -> Scenes:
        """Return the images as a model's inputs, with their labels."""
        images = self.root / "images"
        files = tuple(path_under(images, row.image) for row in self._rows)
        return Scenes(ImageExamples(ImageFiles(files), preprocess), self, size)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        numbers = self._table("label.csv", "number", "name")
        coverage: dict[int, dict[str, float]] = {}
        for category in self._categories:
            for row in self._table(f"c_{category}.csv", "number", "coverage"):
                share = _number(row, "coverage", f"c_{category}.csv")
                coverage.setdefault(int(_number(row, "number", f"c_{category}.csv")), {})[category] = share
        kinds = []
        for row in numbers:
            number = int(_number(row, "number", "label.csv"))
            if number not in coverage:
                raise LabelError(f"label {number} ({row['name']!r}) of 'label.csv' is in no category's table 'c_*.csv'.")
            kinds.append(max(coverage[number], key=lambda c: (coverage[number][c], c)))
        return Vocabulary(tuple(row["name"] for row in numbers), tuple(kinds))

    def labels(self, index: int) -> ImageLabels:
        row = self._rows[index]
        masks = [self._mask(row, name) for name in row.masks]
        planes = np.stack(masks) if masks else np.zeros((0, *row.size), dtype=np.int64)
        return ImageLabels(planes, tuple(self._dense(n, row.image) for n in row.whole))

    def _mask(self, row: _Row, name: str) -> npt.NDArray[np.int64]:
        path = path_under(self.root / "images", name)
        numbers = read_mask(path)
        if numbers.shape != row.size:
            (h, w), (height, width) = numbers.shape, row.size
            raise LabelError(f"the mask {name!r} is {w} x {h} pixels, but 'index.csv' says {width} x {height}.")
        if numbers.max(initial=0) >= len(self._numbering) or ((self._numbering[numbers] == 0) & (numbers > 0)).any():
            unknown = sorted(set(np.unique(numbers)) - set(np.flatnonzero(self._numbering)) - {0})
            raise LabelError(f"the mask {name!r} holds {int(unknown[0])}, which is not in 'label.csv'.")
        return self._numbering[numbers]

    def _dense(self, number: int, image: str) -> int:
        if not 0 < number < len(self._numbering) or not self._numbering[number]:
            raise LabelError(f"'index.csv' gives {image!r} the label {number}, which is not in 'label.csv'.")
        return int(self._numbering[number])

    @cached_property
    def _numbering(self) -> npt.NDArray[np.int64]:
        """The label of this suite for each number of Broden's; 0 is none."""
        rows = self._table("label.csv", "number", "name")
        numbers = [int(_number(row, "number", "label.csv")) for row in rows]
        if len(set(numbers)) < len(numbers) or min(numbers) < 1:
            raise LabelError("the numbers in 'label.csv' must be 1 or more and each stand once.")
        table = np.zeros(max(numbers) + 1, dtype=np.int64)
        table[numbers] = np.arange(1, len(numbers) + 1)
        return table

    @cached_property
    def _categories(self) -> tuple[str, ...]:
        return tuple(row["name"] for row in self._table("category.csv", "name"))

    @cached_property
    def _rows(self) -> tuple[_Row, ...]:
        found = []
        for record in self._table("index.csv", *_FIXED, *self._categories):
            row = self._row(record)
            if (self.split is None or record["split"] == self.split) and (row.masks or row.whole):
                found.append(row)
            if self.limit is not None and len(found) == self.limit:
                break
        return tuple(found)

    def _row(self, record: Mapping[str, str]) -> _Row:
        cells = [cell for c in self._categories for cell in record[c].split(";") if cell]
        height, width = (int(_number(record, side, "index.csv")) for side in ("sh", "sw"))
        return _Row(
            record["image"],
            (height, width),
            tuple(cell for cell in cells if not cell.isdecimal()),
            tuple(dict.fromkeys(int(cell) for cell in cells if cell.isdecimal())),
        )

    def _table(self, name: str, *columns: str) -> Sequence[Mapping[str, str]]:
        try:
            with (self.root / name).open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file, strict=True))
        except FileNotFoundError:
            raise LabelError(f"{str(self.root)!r} has no {name!r}: is it Broden's folder?") from None
        except (csv.Error, UnicodeDecodeError) as error:
            raise LabelError(f"{name!r} of {str(self.root)!r} cannot be read ({error}).") from None
        absent = [c for c in columns if not rows or rows[0].get(c) is None]
        if absent or any(value is None or not isinstance(value, str) for row in rows for value in row.values()):
            what = f"no column {absent[0]!r}" if absent else "a row of another length than its header"
            raise LabelError(f"{name!r} of {str(self.root)!r} has {what}.")
        return rows


def _number(row: Mapping[str, str], column: str, table: str) -> float:
    if not re.fullmatch(r"\d+(\.\d*)?(e[+-]?\d+)?", row[column]):
        raise LabelError(f"{table!r} has {row[column]!r} in the column {column!r}, expected a number.")
    return float(row[column])
