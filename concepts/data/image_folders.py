"""Pictures that someone wants to audit a model with: a folder of folders, or a labelled data set, looked through once."""

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from concepts.data.sources import DatasetSource, open_dataset, some, texts
from probing.core.errors import ProbingError
from probing.core.packages import path_under
from probing.data.examples import SUFFIXES, DatasetImages, ImageFiles, ImageSource
from probing.data.images import ImageError, decode

RANDOM = "random"
"""The folder of pictures of nothing in particular, beside those of concepts."""
MOST_RANDOM = 240
_THREADS = 4


class PicturesError(ProbingError, ValueError):
    """Pictures that no audit can be made of."""


@dataclass(frozen=True)
class Picture:
    """A picture and what it shows.

    Attributes:
        index: its place in the source.
        name: its path below the root, or its row in a data set.
        group: which pictures belong together; "" if this one stands alone.
        sha256: "" before it was read.
    """

    index: int
    name: str
    concept: str
    group: str = ""
    sha256: str = ""

    @property
    def item(self) -> str:
        """What the picture is called in its concept's folder, without a suffix."""
        path = PurePosixPath(self.name)
        return PurePosixPath(*path.parts[1:]).with_suffix("").as_posix()


@dataclass(frozen=True)
class Pictures:
    """Pictures of several concepts.

    Attributes:
        root: where their names start, or the data set lies.
        left_out: what was not taken, and why, in sentences.
        dataset: where they come from, if not from files.
        column: of the data set, what names concepts.
    """

    root: Path
    source: ImageSource
    pictures: tuple[Picture, ...]
    left_out: tuple[str, ...] = ()
    dataset: DatasetSource | None = None
    column: str = "concept"

    @property
    def concepts(self) -> dict[str, int]:
        """How many pictures each concept has, in the order of names."""
        return dict(sorted(Counter(p.concept for p in self.pictures).items()))

    def of(self, *concepts: str) -> "Pictures":
        """Return the pictures of some concepts."""
        return replace(self, pictures=tuple(p for p in self.pictures if p.concept in concepts))

    def without(self, contents: Collection[str]) -> "Pictures":
        """Return the pictures other than some, given by their checksums."""
        return replace(self, pictures=tuple(p for p in self.pictures if p.sha256 not in contents))

    @property
    def clusters(self) -> tuple[str, ...]:
        """What each picture belongs to: its group, or itself."""
        return tuple(p.group or p.name for p in self.pictures)


@dataclass(frozen=True)
class Choice:
    """Which pictures are taken.

    Attributes:
        most: of one concept; more are drawn from at random.
        grouped: folders below a concept's hold pictures that belong together.
        skip_unreadable: leave out pictures that cannot be decoded.
    """

    most: int = 100
    grouped: bool = False
    skip_unreadable: bool = False
    seed: int = 0

    def folders(self, root: Path) -> Pictures:
        """Return the pictures in the folders below a folder: each is a concept.

        Raises:
            PicturesError: if there is no such folder, picture or concept, or folders lie deeper than said.
            probing.data.images.ImageError: if a picture cannot be decoded.
        """
        if not root.is_dir():
            raise PicturesError(f"{str(root)!r} is no folder: name one that holds a folder of pictures for each concept.")
        found, said = _walk(root, grouped=self.grouped)
        files = ImageFiles(tuple(root / p.name for p in found))
        return self._taken(Pictures(root, files, tuple(found), tuple(said)))

    def flat(self, root: Path) -> Pictures:
        """Return all pictures below a folder as random ones.

        Raises:
            probing.data.examples.ExampleError: if there is no such folder, or no picture.
            probing.data.images.ImageError: if a picture cannot be decoded.
        """
        files = ImageFiles.in_folder(root)
        names = [path.relative_to(root).as_posix() for path in files.paths]
        found = [Picture(i, _checked(root, name), RANDOM) for i, name in enumerate(names)]
        return self._taken(Pictures(root, files, tuple(found)))

    def dataset(self, root: Path, source: DatasetSource) -> Pictures:
        """Return the pictures of a labelled data set: each value of one column is a concept.

        Args:
            root: where its path starts.
            source: with the label column as its only attribute, or none to find it.

        Raises:
            PicturesError: if it has no one column of pictures or of labels.
            concepts.data.sources.ManifestError: if it cannot be read.
            probing.data.images.ImageError: if a picture cannot be decoded.
        """
        data = open_dataset(source, root)
        label = source.attributes[0] if source.attributes else _only(data, "ClassLabel", source.path)
        if label not in data.features:
            raise PicturesError(f"the data set {source.path!r} has no column {label!r}; it has {data.column_names}.")
        images = DatasetImages(data, source.column)
        found = [Picture(i, images.name(i), name) for i, name in enumerate(texts(data, label))]
        taken = self._taken(Pictures(root, images, tuple(found), column=label))
        rows = [p.index for p in taken.pictures]
        chosen = {"attributes": [label], "rows": None if len(rows) == len(found) else rows}
        return replace(taken, dataset=source.model_copy(update=chosen))

    def _taken(self, whole: Pictures) -> Pictures:
        """Return some pictures of each concept, each looked into, none twice."""
        if not whole.pictures:
            raise PicturesError(f"{str(whole.root)!r} holds no picture: {_LAYOUT}")
        some_of, said = self._draw(whole.pictures)
        read, unreadable = self._read(whole.source, some_of)
        kept, twice = _distinct(read)
        return replace(whole, pictures=tuple(kept), left_out=(*whole.left_out, *said, *unreadable, *twice))

    def _draw(self, pictures: Sequence[Picture]) -> tuple[list[Picture], list[str]]:
        by_concept: dict[str, list[Picture]] = {}
        for picture in pictures:
            by_concept.setdefault(picture.concept, []).append(picture)
        chosen, said = [], []
        for name, own in by_concept.items():
            most = max(self.most, MOST_RANDOM) if name == RANDOM else self.most
            drawn = np.random.default_rng(self.seed).permutation(len(own))[:most]
            chosen += [own[i] for i in sorted(drawn)]
            if len(own) > most:
                said.append(f"Took {most} of the {len(own)} pictures of {name!r}, drawn at random; --most takes more.")
        return chosen, said

    def _read(self, source: ImageSource, pictures: Sequence[Picture]) -> tuple[list[Picture], list[str]]:
        """Return pictures with their checksums, each decoded once, and which were left out."""
        with ThreadPoolExecutor(_THREADS) as pool:  # decoding leaves the interpreter lock
            found = list(pool.map(lambda p: _examined(source, p), pictures))
        bad = [f for f in found if isinstance(f, str)]
        if bad and not self.skip_unreadable:
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise ImageError(f"{bad[0]}{more}; mend or remove it, or leave such out by --skip-unreadable.")
        return [f for f in found if isinstance(f, Picture)], [f"Left out {b}." for b in bad]


_LAYOUT = "put those of each concept into a folder of its own, as in striped/1.jpg and dotted/1.jpg."


def _walk(root: Path, *, grouped: bool) -> tuple[list[Picture], list[str]]:
    """Return the pictures in the folders below a folder, and what else lies there, in sentences."""
    found: list[Picture] = []
    loose, other = [], Counter[str]()
    for parts in _files(root):
        name, suffix = "/".join(parts), Path(parts[-1]).suffix.lower()
        if suffix not in SUFFIXES:
            other[suffix or parts[-1]] += 1
        elif len(parts) == 1:
            loose.append(name)
        else:
            group = _group(root, parts, grouped=grouped)
            found.append(Picture(len(found), _checked(root, name), parts[0], group))
    if loose and not found:
        raise PicturesError(f"{str(root)!r} holds pictures, but not in folders: {_LAYOUT}")
    said = []
    if loose:
        said.append(f"Left out what lies in no concept's folder: {some(loose)}.")
    if other:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in other.most_common(5))
        said.append(f"Left out files that are not of a known kind ({kinds}): known are {', '.join(SUFFIXES)}.")
    return found, said


def _files(root: Path) -> Iterator[tuple[str, ...]]:
    """Yield the files below a folder as parts of their paths, in order, without hidden ones."""

    def refuse(error: OSError) -> None:
        raise error

    hidden = (".", "__MACOSX")
    for folder, inside, files in os.walk(root, onerror=refuse):
        inside[:] = sorted(name for name in inside if not name.startswith(hidden))
        for name in sorted(name for name in files if not name.startswith(".")):
            yield (Path(folder) / name).relative_to(root).parts


def _group(root: Path, parts: Sequence[str], *, grouped: bool) -> str:
    if len(parts) == 2:
        return ""
    if not grouped:
        raise PicturesError(
            f"{'/'.join(parts[:2])!r} is a folder inside the folder of a concept. If its pictures belong together, as of one"
            f" person or one day, give --grouped; if {parts[1]!r} is a concept, give --images {str(root / parts[0])!r}."
        )
    return parts[1]


def _checked(root: Path, name: str) -> str:
    if "\\" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise PicturesError(f"the name {name!r} holds signs that a manifest can't: rename the file.")
    path_under(root, name)
    return name


def _examined(source: ImageSource, picture: Picture) -> Picture | str:
    try:
        data = source.read(picture.index)
        decode(data)
    except ImageError as error:
        return f"{picture.name!r}: {error}"
    return replace(picture, sha256=hashlib.sha256(data).hexdigest())


def _distinct(pictures: Sequence[Picture]) -> tuple[list[Picture], list[str]]:
    """Return pictures without repeats inside a concept, or of one among the random ones.

    Raises:
        PicturesError: if a picture shows two concepts.
    """
    first: dict[str, Picture] = {}
    said = []
    for picture in sorted(pictures, key=lambda p: p.concept == RANDOM):
        same = first.setdefault(picture.sha256, picture)
        if same is picture:
            continue
        if picture.concept not in {same.concept, RANDOM}:
            raise PicturesError(
                f"{same.name!r} of {same.concept!r} and {picture.name!r} of {picture.concept!r} are the same picture: keep "
                "it in one of the two."
            )
        said.append(f"Left out {picture.name!r}: the same picture as {same.name!r}.")
    kept = set(map(id, first.values()))
    return [p for p in pictures if id(p) in kept], said


def _only(data: object, kind: str, path: str) -> str:
    features: dict[str, object] = getattr(data, "features", {})
    names = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if len(names) != 1:
        raise PicturesError(
            f"the data set {path!r} has {len(names)} columns of class labels ({some(names)}) among {list(features)}: "
            "say which names the concepts by --column."
        )
    return names[0]
