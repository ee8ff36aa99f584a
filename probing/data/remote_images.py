"""Encoded pictures that lie elsewhere: files at an address, members of WebDataset tar shards, streamed data sets.

Each is an `ImageSource` for `ImageExamples`, so ids are made of the pictures' bytes as everywhere: the same picture has
the same id on disk, in a bucket and in a tar.
"""

import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from probing.core.content_ids import bytes_id
from probing.core.storage import Address, Place, each, listed, located
from probing.data.examples import SUFFIXES, ExampleError
from probing.data.images import ImageError


@dataclass(frozen=True)
class PlacedImages:
    """Pictures in files of this machine or at addresses.

    Example:
        >>> ImageExamples(PlacedImages.under("s3://bucket/photos"), loaded.preprocess)
    """

    places: tuple[Place, ...]

    @classmethod
    def under(cls, where: str | Place, depth: int = 1) -> "PlacedImages":
        """Return the pictures in a folder, or in folders so deep inside it, sorted; other files are left out by suffix.

        Raises:
            ExampleError: if there is none.
        """
        folder = located(where)
        found = [p for p in listed(folder, "/".join("*" * depth)) if p.suffix.lower() in SUFFIXES]
        if not found:
            raise ExampleError(f"{str(folder)!r} holds no picture {depth} deep (suffixes {', '.join(SUFFIXES)}).")
        return cls(tuple(found))

    def name(self, index: int) -> str:
        return str(self.places[index])

    def read(self, index: int) -> bytes:
        return self.places[index].read_bytes()

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Member:
    """Where a file lies inside a tar: the shard's number, the first byte, and how many."""

    shard: int
    start: int
    size: int


@dataclass(frozen=True)
class TarImages:
    """Pictures in WebDataset shards: uncompressed tars in which the files of one sample have one name before the dot.

    The tars' headers are read once. Then each picture is read where it lies, so that shards are not unpacked and may be
    read in any order, at an address as on disk.

    Attributes:
        shards: the tars.
        keys: of the samples that have a picture, in order.
        members: of each sample, its files by extension.
        extension: of each sample's picture.

    Example:
        >>> tars = TarImages.of([f"s3://bucket/train-{i:04}.tar" for i in range(100)])
        >>> labels = [int(tars.text(i, "cls")) for i in range(len(tars))]
        >>> ImageExamples(tars, loaded.preprocess)
    """

    shards: tuple[Place, ...]
    keys: tuple[str, ...]
    members: tuple[Mapping[str, Member], ...]
    extension: tuple[str, ...]

    @classmethod
    def of(cls, shards: Sequence[str | Place]) -> "TarImages":
        """List the samples of some tars, in their order.

        Raises:
            ExampleError: for a tar that is compressed or none, a sample in two pieces, or no picture at all.
        """
        places = tuple(located(shard) for shard in shards)
        samples: dict[tuple[int, str], dict[str, Member]] = {}
        found = each(_members, places, places[0]) if places else []
        for number, members in enumerate(found):
            for path, start, size in members:
                key, extension = _split(path)
                own = samples.setdefault((number, key), {})
                if extension in own:
                    raise ExampleError(f"{str(places[number])!r} holds {path!r} twice.")
                own[extension] = Member(number, start, size)
        pictured = {
            k: next(e for e in m if f".{e}" in SUFFIXES) for k, m in samples.items() if any(f".{e}" in SUFFIXES for e in m)
        }
        if not pictured:
            raise ExampleError(f"the {len(places)} tars hold no picture ({', '.join(SUFFIXES)}).")
        return cls(
            places,
            tuple(key for _, key in pictured),
            tuple(samples[k] for k in pictured),
            tuple(pictured.values()),
        )

    def name(self, index: int) -> str:
        member = self.members[index][self.extension[index]]
        return f"{self.shards[member.shard]}: {self.keys[index]}.{self.extension[index]}"

    def read(self, index: int) -> bytes:
        return self.file(index, self.extension[index])

    def text(self, index: int, extension: str) -> str:
        """Return a sample's text file, such as its `cls` or `txt`."""
        return self.file(index, extension).decode()

    def json(self, index: int) -> Any:
        """Return what a sample's `json` says."""
        return json.loads(self.file(index, "json"))

    def file(self, index: int, extension: str) -> bytes:
        """Return one of a sample's files.

        Raises:
            ExampleError: if it has none of that extension.
        """
        if extension not in self.members[index]:
            raise ExampleError(f"sample {self.keys[index]!r} has no {extension!r}, but {sorted(self.members[index])}.")
        member = self.members[index][extension]
        data = _range(self.shards[member.shard], member.start, member.start + member.size)
        if len(data) != member.size:
            raise ImageError("its tar has been cut short since it was listed")
        return data

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class SpooledImages:
    """Pictures of a data set that streams, kept in a folder as they come by, since examples are read in any order.

    Attributes:
        folder: where they are kept, each under its content's id.
        ids: in the order of the stream.
    """

    folder: Path
    ids: tuple[str, ...]

    @classmethod
    def of(
        cls,
        dataset: Iterable[Mapping[str, Any]],
        folder: Path,
        *,
        column: str = "image",
        limit: int | None = None,
        budget_bytes: int = 10 << 30,
    ) -> "SpooledImages":
        """Take pictures off a stream.

        Args:
            dataset: as of `datasets.load_dataset(…, streaming=True)`.
            folder: where they are kept; pictures that are there already are not written again.
            column: the one that holds pictures.
            limit: most pictures; all by default.
            budget_bytes: most bytes; a stream does not say how many it has.

        Raises:
            ExampleError: if pictures do not fit the budget, a row has none, or there is no row.
        """
        cast = getattr(dataset, "cast_column", None)
        if cast is not None:
            from datasets import Image

            dataset = cast(column, Image(decode=False))
        folder.mkdir(parents=True, exist_ok=True)
        ids: list[str] = []
        size = 0
        for number, row in enumerate(islice(dataset, limit)):
            data = _bytes_of(row, column, number)
            size += len(data)
            if size > budget_bytes:
                raise ExampleError(
                    f"the first {number + 1} pictures of the stream have {size:,} bytes, and budget_bytes is"
                    f" {budget_bytes:,}: raise it, or set a limit."
                )
            ids.append(bytes_id(data))
            if not (folder / ids[-1]).exists():
                temporary = folder / f"{ids[-1]}.tmp"
                temporary.write_bytes(data)
                temporary.replace(folder / ids[-1])
        if not ids:
            raise ExampleError("the stream has no row.")
        return cls(folder, tuple(ids))

    def name(self, index: int) -> str:
        return f"row {index} of the stream"

    def read(self, index: int) -> bytes:
        return (self.folder / self.ids[index]).read_bytes()

    def __len__(self) -> int:
        return len(self.ids)


def _bytes_of(row: Mapping[str, Any], column: str, number: int) -> bytes:
    cell = row.get(column)
    if isinstance(cell, bytes):
        return cell
    data = cell.get("bytes") if isinstance(cell, Mapping) else None
    path = cell.get("path") if isinstance(cell, Mapping) else None
    if isinstance(data, bytes):
        return data
    if isinstance(path, str):
        return located(path).read_bytes()
    raise ExampleError(f"row {number} of the stream has no picture in column {column!r}; its columns: {sorted(row)}.")


def _members(place: Place) -> list[tuple[str, int, int]]:
    """Return path, first byte and size of each file in a tar."""
    try:
        with place.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    except tarfile.TarError as error:
        raise ExampleError(f"{str(place)!r} is no uncompressed tar ({error}): unpack compressed ones first.") from None


def _split(path: str) -> tuple[str, str]:
    """Return a sample's key and the file's extension, which begins at the first dot of the name."""
    pure = PurePosixPath(path)
    stem, _, extension = pure.name.partition(".")
    return str(pure.with_name(stem or pure.name)), extension.lower()


def _range(place: Place, start: int, stop: int) -> bytes:
    if isinstance(place, Address):
        return place.read_range(start, stop)
    with place.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)
