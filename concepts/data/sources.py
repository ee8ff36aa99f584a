"""Where a manifest's images come from: folders, lists of files, installed packages, Hugging Face data sets."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from concepts.data.yaml_schema import Schema
from probing.core.errors import ProbingError
from probing.core.packages import PathEscapeError, package_path, package_version, path_under
from probing.data.examples import DatasetImages, ImageFiles, ImageSource
from probing.data.svg_images import VectorFiles


class ManifestError(ProbingError, ValueError):
    """A manifest contradicts itself, or does not fit the images it speaks of."""


class FolderImages(Schema):
    """All pictures below a folder; the attribute `folder` is where a picture lies, relative to `root`."""

    kind: Literal["folder"]
    root: str = "."
    pattern: str = "**/*"


class Table(Schema):
    """Pictures one by one: `columns` names what a row holds, `file`, `sha256` and attributes.

    Attributes:
        render: sides in pixels that SVG drawings are drawn at; checksums are of the drawings themselves.
    """

    columns: list[str]
    rows: list[list[str]]
    render: Annotated[int, Field(ge=8, le=4096)] | None = None


class ListedImages(Table):
    """Pictures below a folder, listed with their checksums."""

    kind: Literal["files"]
    root: str = "."


class PackageImages(Table):
    """Pictures inside an installed package, listed with their checksums."""

    kind: Literal["package"]
    package: str
    version: str
    root: str


class DatasetSource(Schema):
    """An image column of a Hugging Face data set; other columns become attributes.

    Attributes:
        path: below the manifest's folder; for `hub`, the data set's name.
        revision: which state of a hub's data set.
        rows: which of its rows, counted from 0; by default all.
    """

    kind: Literal["dataset"]
    format: Literal["imagefolder", "parquet", "arrow", "hub"]
    path: str
    split: str = "train"
    column: str = "image"
    attributes: list[str] = Field(default_factory=list)
    revision: str | None = None
    rows: list[Annotated[int, Field(ge=0)]] | None = None


class MaskSource(Schema):
    """Which attributes of the images name masks and labels; `;` parts several.

    Attributes:
        planes: by category, the attribute that names PNG masks.
        labels: by category, the number in the masks of each concept.
        whole: by category, the attribute that names concepts of the whole image.
        root: where masks lie, below the manifest's folder.
        colours: adds the colours of pixels as concepts.
    """

    planes: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, dict[str, int]] = Field(default_factory=dict)
    whole: dict[str, str] = Field(default_factory=dict)
    root: str = "."
    colours: bool = False


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        name: its path below the root, or its row in a data set.
        sha256: None where the source has no checksums.
    """

    name: str
    attributes: Mapping[str, str]
    sha256: str | None = None


class Found(NamedTuple):
    """Images that were found.

    Attributes:
        version: of the package that they come from.
    """

    items: tuple[Item, ...]
    images: ImageSource
    version: str | None = None


@dataclass(frozen=True)
class ChosenImages:
    """Some pictures of a source."""

    source: ImageSource
    indices: tuple[int, ...]

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])

    def read(self, index: int) -> bytes:
        return self.source.read(self.indices[index])

    def __len__(self) -> int:
        return len(self.indices)


def find(source: FolderImages | ListedImages | PackageImages | DatasetSource, root: Path) -> Found:
    """Return the images that a source names, without looking into them.

    Args:
        source: one of the four kinds.
        root: where relative paths start.

    Raises:
        ManifestError: if the source contradicts itself, or a data set cannot be read.
        probing.data.examples.ExampleError: if a folder holds no picture, or a data set no such column.
        probing.core.packages.PathEscapeError: if a path leaves its root.
        probing.core.packages.PackageMissingError: if a package is not installed.
    """
    match source:
        case FolderImages():
            found = _folder(source, path_under(root, source.root))
        case ListedImages():
            found = _table(source, path_under(root, source.root))
        case PackageImages():
            found = _table(source, package_path(source.package, source.root))
            found = found._replace(version=package_version(source.package))
        case DatasetSource():
            found = _dataset(source, root)
    if not found.items:
        raise ManifestError(f"the images of kind {source.kind!r} are none at all.")
    return found


def some(names: Sequence[str]) -> str:
    """Return the first few names, for an error message."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _folder(source: FolderImages, root: Path) -> Found:
    if ".." in PurePosixPath(source.pattern).parts or PurePosixPath(source.pattern).is_absolute():
        raise PathEscapeError(f"the pattern {source.pattern!r} leaves its root: give one without '..'.")
    images = ImageFiles.in_folder(root, source.pattern)
    names = [path.relative_to(root).as_posix() for path in images.paths]
    for name in names:
        path_under(root, name)
    return Found(tuple(Item(n, {"folder": PurePosixPath(n).parent.as_posix()}) for n in names), images)


def _table(source: Table, root: Path) -> Found:
    columns = source.columns
    if len(set(columns)) < len(columns) or not {"file", "sha256"} <= set(columns):
        raise ManifestError(f"'columns' must name 'file' and 'sha256' and each attribute once, got {columns}.")
    items = [_item(dict(zip(columns, row, strict=False)), row, columns) for row in source.rows]
    names = [item.name for item in items]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ManifestError(f"'rows' lists some files twice: {some(twice)}.")
    paths = tuple(path_under(root, name) for name in names)
    vector = [name for name in names if name.lower().endswith(".svg")]
    if source.render is None and vector:
        raise ManifestError(f"{vector[0]!r} is a drawing without a size: give 'render', in pixels.")
    if source.render is not None and len(vector) < len(names):
        plain = next(n for n in names if n not in vector)
        raise ManifestError(f"'render' is for SVG drawings, and {plain!r} is none.")
    return Found(tuple(items), VectorFiles(paths, source.render) if source.render else ImageFiles(paths))


def _item(record: dict[str, str], row: Sequence[str], columns: Sequence[str]) -> Item:
    if len(row) != len(columns):
        raise ManifestError(f"the row {list(row)} has {len(row)} values for the columns {list(columns)}.")
    name, sha256 = record.pop("file"), record.pop("sha256")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ManifestError(f"the sha256 of {name!r} must be 64 hexadecimal characters in lower case, got {sha256!r}.")
    return Item(name, record, sha256)


def open_dataset(source: DatasetSource, root: Path) -> Any:  # datasets ships no types
    """Return one split of a Hugging Face data set.

    Raises:
        ManifestError: if it cannot be read.
        probing.core.packages.PathEscapeError: if its path leaves the root.
    """
    try:
        return _opened(source, root)
    except PathEscapeError:
        raise
    except Exception as error:  # the library and its file readers have many types for this
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ManifestError(f"the data set {source.path!r} cannot be read as {source.format} ({reason}).") from error


def _dataset(source: DatasetSource, root: Path) -> Found:
    data = open_dataset(source, root)
    images = DatasetImages(data, source.column, None if source.format == "hub" else root)
    absent = [name for name in source.attributes if name not in data.column_names]
    if absent:
        raise ManifestError(f"the data set {source.path!r} has no column {absent[0]!r}; it has {data.column_names}.")
    columns = {name: texts(data, name) for name in source.attributes}
    rows = range(len(images)) if source.rows is None else source.rows
    if outside := [i for i in rows if i >= len(images)]:
        raise ManifestError(f"the data set {source.path!r} has no row {outside[0]}: it has {len(images)}, counted from 0.")
    items = (Item(images.name(i), {name: values[i] for name, values in columns.items()}) for i in rows)
    chosen = images if source.rows is None else ChosenImages(images, tuple(rows))
    return Found(tuple(items), chosen)


def _opened(source: DatasetSource, root: Path) -> Any:
    import datasets

    if source.format == "hub":
        return datasets.load_dataset(source.path, split=source.split, revision=source.revision)
    path = path_under(root, source.path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {str(path)!r}")
    if source.format == "arrow":
        data = datasets.load_from_disk(str(path))
        return data[source.split] if isinstance(data, datasets.DatasetDict) else data
    if source.format == "imagefolder":
        return datasets.load_dataset("imagefolder", data_dir=str(path), split=source.split)
    files = sorted(map(str, path.glob("**/*.parquet"))) if path.is_dir() else [str(path)]
    return datasets.load_dataset("parquet", data_files={source.split: files}, split=source.split)


def texts(data: Any, column: str) -> list[str]:
    """Return a column as text, classes by their names."""
    names = getattr(data.features[column], "names", None)
    return [names[v] if names else str(v) for v in data[column]]
