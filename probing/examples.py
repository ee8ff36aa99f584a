"""Examples have content ids: what is read is named by what it is, never by a path or a name someone chose."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from probing.errors import Mend, OutOfRangeError, ProbingError
from probing.fingerprint import bytes_id, content_id, tensor_id
from probing.images import ImageError, Preprocess, check_header, decode, flatten, read_file

Transform = Callable[[Image.Image], Tensor]
"""From an upright picture to model space: a `Preprocess`, or a callable that gets 8-bit RGB, white where transparent."""

T = TypeVar("T")
OnError = Literal["raise", "skip"]
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm")
_THUMBNAIL = 256  # pixels: enough for a montage


class ExampleError(ProbingError, ValueError):
    """Examples cannot be made of what was given."""


class ChangedExampleError(ProbingError, RuntimeError):
    """An example is no longer what its id says."""


class NoPictureError(ProbingError, TypeError):
    """Examples that are no pictures cannot be shown as such."""


@runtime_checkable
class ExampleSet(Protocol):
    """Inputs of a model, each with an id made from its content and its preprocessing."""

    @property
    def ids(self) -> Sequence[str]:
        """One content id per example; equal content has equal ids, in any set."""

    def load(self, indices: Sequence[int]) -> Shaped[Tensor, "n *shape"]:
        """Return examples as one batch in model space, in the order asked for."""

    def __len__(self) -> int: ...


@runtime_checkable
class PicturedExamples(ExampleSet, Protocol):
    """Examples that can be shown."""

    def image(self, index: int) -> Image.Image:
        """Return a small RGB picture of an example, for a montage."""


@runtime_checkable
class ImageSource(Protocol):
    """Where encoded pictures come from."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Say which picture this is, for error messages."""

    def read(self, index: int) -> bytes:
        """Return the picture's encoded bytes."""


class TensorExamples:
    """Examples that are in model space already: the rows of a tensor, of which a copy is kept.

    Example:
        >>> TensorExamples(torch.randn(8, 3, 32, 32)).load([0, 5]).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, tensor: Shaped[Tensor, "n *shape"]) -> None:
        self._tensor = tensor.detach().clone()  # an edit in place would leave the ids behind
        self.ids: tuple[str, ...] = tuple(tensor_id(row) for row in self._tensor)

    def load(self, indices: Sequence[int]) -> Shaped[Tensor, "n *shape"]:
        return self._tensor[torch.tensor(indices, dtype=torch.long, device=self._tensor.device)]

    def image(self, index: int) -> Image.Image:
        """Return an example of one or three channels, stretched to the range between its extremes."""
        row = self._tensor[index].detach().cpu().float()
        if row.ndim != 3 or row.shape[0] not in {1, 3}:
            raise NoPictureError(
                f"an example of shape {tuple(row.shape)} is no picture: [1 or 3, h, w] is needed."
            )
        low, high = row.amin(), row.amax()
        grey = ((row - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)
        return _thumbnail(
            Image.fromarray(grey.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
        )

    def __len__(self) -> int:
        return len(self.ids)


class Skipped(NamedTuple):
    """A picture that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ImageFiles:
    """Pictures in files."""

    paths: tuple[Path, ...]

    @classmethod
    def in_folder(cls, folder: Path | str, pattern: str = "**/*") -> "ImageFiles":
        """Return a folder's pictures, sorted by path; other files are left out by their suffix.

        Raises:
            ExampleError: if there is no picture, or no folder.
        """
        paths = sorted(
            p for p in Path(folder).glob(pattern) if p.suffix.lower() in SUFFIXES and p.is_file()
        )
        if not paths:
            what = "holds no picture" if Path(folder).is_dir() else "is no folder"
            raise ExampleError(
                f"{str(folder)!r} {what} (pattern {pattern!r}, suffixes {', '.join(SUFFIXES)})."
            )
        return cls(tuple(paths))

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def read(self, index: int) -> bytes:
        return read_file(self.paths[index])

    def __len__(self) -> int:
        return len(self.paths)


class DatasetImages:
    """Pictures in an image column of a Hugging Face data set: imagefolder, parquet, arrow or from the hub.

    The pictures' own bytes are read; the data set's fingerprint goes stale when an image behind a path changes.

    Args:
        dataset: a `datasets.Dataset`, one split with random access.
        column: the one that holds pictures.
        root: the folder that files named by the data set must lie in; None for one whose maker is trusted.
    """

    def __init__(
        self, dataset: Any, column: str = "image", root: Path | None = None
    ) -> None:  # datasets ships no types
        features = getattr(dataset, "features", None)
        if (
            features is None
            or not hasattr(dataset, "select_columns")
            or not hasattr(dataset, "__len__")
        ):
            raise ExampleError(
                f"a data set of one split with random access is needed, got {type(dataset).__name__}: "
                "choose a split, and keep one that streams by probing.gathered.SpooledImages."
            )
        images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        if column not in images:
            raise ExampleError(
                f"the data set has no image column {column!r}; image columns: {images}."
            )
        from datasets import Image as ImageFeature

        self.column, self._root = column, root
        self._rows = dataset.select_columns([column]).cast_column(
            column, ImageFeature(decode=False)
        )

    def name(self, index: int) -> str:
        return f"{self.column}[{index}]"

    def read(self, index: int) -> bytes:
        record = self._rows[index][self.column]
        if not record:
            raise ImageError("it is an empty cell")
        data: bytes | None = record["bytes"]
        if data is not None:
            return data
        path = Path(record["path"])
        if self._root is not None and not path.resolve().is_relative_to(self._root.resolve()):
            raise ImageError(f"it is the file {str(path)!r}, outside of the data set's folder")
        return read_file(path)

    def __len__(self) -> int:
        return len(self._rows)


class ImageExamples:
    """Encoded pictures, decoded and preprocessed when they are loaded.

    An id is the hash of the picture's bytes and of the preprocessing. Bytes are read once for it and again when
    they are loaded, and must then still be the same.

    Args:
        files: paths, or a source such as `DatasetImages`.
        preprocess: any callable whose code and settings are its content; a random one has no place here.
        on_error: `skip` leaves out pictures that cannot be decoded, listed in `skipped`, and for that decodes
            all once; `raise` refuses at once what the headers show, and the rest when it is loaded.

    Raises:
        ImageError: for a picture that cannot be read, by name.
        ExampleError: if there is no picture at all.

    Example:
        >>> examples = ImageExamples(sorted(Path("zebras").glob("*.jpg")), Preprocess())
        >>> examples.load(range(4)).shape
        torch.Size([4, 3, 224, 224])
    """

    def __init__(
        self,
        files: ImageSource | Sequence[Path | str],
        preprocess: Transform,
        *,
        on_error: OnError = "raise",
    ) -> None:
        if isinstance(files, str | Path):
            raise ExampleError(
                f"a list of files is needed, got {str(files)!r}: use ImageFiles.in_folder for a folder."
            )
        self._source = (
            files if isinstance(files, ImageSource) else ImageFiles(tuple(Path(f) for f in files))
        )
        self.preprocess = preprocess
        self._settings = content_id(preprocess)
        verdicts = _in_threads(
            lambda i: self._examine(i, whole=on_error == "skip"), range(len(self._source))
        )
        bad = [v for v in verdicts if isinstance(v, Skipped)]
        if bad and on_error == "raise":
            raise _unusable(bad)
        self.skipped: tuple[Skipped, ...] = tuple(bad)
        self.kept: tuple[int, ...] = tuple(i for i, v in enumerate(verdicts) if isinstance(v, str))
        self.ids: tuple[str, ...] = tuple(v for v in verdicts if isinstance(v, str))
        if not self.ids:
            raise ExampleError(f"there is no readable picture among the {len(self._source)} given.")

    def load(self, indices: Sequence[int]) -> Shaped[Tensor, "n *shape"]:
        return _stack(_in_threads(self._prepared, indices), "the preprocessing")

    def name(self, index: int) -> str:
        """Return where an example came from: a path, or a row of a data set."""
        return self._source.name(self.kept[index])

    def image(self, index: int) -> Image.Image:
        """Return the whole picture, upright and small, on white where it is transparent."""
        return _thumbnail(flatten(self._decoded(index)))

    def seen(self, index: int) -> Image.Image:
        """Return what a `Preprocess` lets the model see, as 8-bit RGB; with another callable the whole picture."""
        image = self._decoded(index)
        preprocess = self.preprocess
        return preprocess.crop(image) if isinstance(preprocess, Preprocess) else flatten(image)

    def extent(self, index: int) -> tuple[int, int]:
        """Return width and height of the upright picture, in pixels."""
        return self._decoded(index).size

    def __len__(self) -> int:
        return len(self.ids)

    def _prepared(self, index: int) -> Tensor:
        image = self._decoded(index)
        return self.preprocess(image if isinstance(self.preprocess, Preprocess) else flatten(image))

    def _examine(self, position: int, *, whole: bool) -> str | Skipped:
        try:
            data = self._source.read(position)
            size = decode(data).size if whole else check_header(data)
            if isinstance(self.preprocess, Preprocess):
                self.preprocess.check(*size)
        except ImageError as error:
            return Skipped(self._source.name(position), str(error))
        return self._id(data)

    def _id(self, data: bytes) -> str:
        return bytes_id(f"{bytes_id(data)}{self._settings}".encode())

    def _decoded(self, index: int) -> Image.Image:
        try:
            data = self._source.read(self.kept[index])
            if self._id(data) != self.ids[index]:
                raise ChangedExampleError(
                    f"{self.name(index)!r} has changed since it was first read: list the files anew."
                )
            return decode(data)
        except ImageError as error:
            raise _unusable([Skipped(self.name(index), str(error))]) from None


class TextExamples:
    """Texts, each turned into token ids of one length.

    Args:
        texts: one example each.
        tokenize: from one text to a tensor; it must pad or cut to a fixed length, so that a text's tensor
            does not depend on its neighbours.
    """

    def __init__(self, texts: Sequence[str], tokenize: Callable[[str], Tensor]) -> None:
        self.texts: tuple[str, ...] = tuple(texts)
        self._tokenize = tokenize
        settings = content_id(tokenize)
        self.ids: tuple[str, ...] = tuple(
            bytes_id(f"{bytes_id(t.encode(errors='surrogatepass'))}{settings}".encode())
            for t in self.texts
        )

    def load(self, indices: Sequence[int]) -> Shaped[Tensor, "n *shape"]:
        return _stack([self._tokenize(self.texts[i]) for i in indices], "tokenize")

    def __len__(self) -> int:
        return len(self.texts)


class Subset:
    """Some examples of another set, in the order of `indices`."""

    def __init__(self, examples: ExampleSet, indices: Sequence[int]) -> None:
        outside = [i for i in indices if not 0 <= i < len(examples)]
        if outside:
            raise OutOfRangeError(
                f"index {outside[0]} is out of range for {len(examples)} examples."
            )
        self.examples = examples
        self.indices: tuple[int, ...] = tuple(indices)
        self.ids: tuple[str, ...] = tuple(examples.ids[i] for i in self.indices)

    def load(self, indices: Sequence[int]) -> Shaped[Tensor, "n *shape"]:
        return self.examples.load([self.indices[i] for i in indices])

    def image(self, index: int) -> Image.Image:
        return _picture(self.examples, self.indices[index])

    def __len__(self) -> int:
        return len(self.indices)


class Concatenation:
    """Several sets one after the other."""

    def __init__(self, parts: Sequence[ExampleSet]) -> None:
        self.parts: tuple[ExampleSet, ...] = tuple(parts)
        self._places = [(p, i) for p, part in enumerate(self.parts) for i in range(len(part))]
        self.ids: tuple[str, ...] = tuple(i for part in self.parts for i in part.ids)

    def load(self, indices: Sequence[int]) -> Shaped[Tensor, "n *shape"]:
        places = [self._places[i] for i in indices]
        rows: dict[int, Tensor] = {}
        for part in sorted({p for p, _ in places}):
            slots = [slot for slot, (p, _) in enumerate(places) if p == part]
            rows.update(
                zip(slots, self.parts[part].load([places[s][1] for s in slots]), strict=True)
            )
        return _stack([rows[slot] for slot in range(len(places))], "joining sets")

    def image(self, index: int) -> Image.Image:
        part, inner = self._places[index]
        return _picture(self.parts[part], inner)

    def __len__(self) -> int:
        return len(self._places)


def concat(*parts: ExampleSet) -> Concatenation:
    """Return the examples of several sets as one."""
    return Concatenation(parts)


def _picture(examples: ExampleSet, index: int) -> Image.Image:
    if not isinstance(examples, PicturedExamples):
        raise NoPictureError(f"{type(examples).__name__} has no pictures to show.")
    return examples.image(index)


def _thumbnail(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return small


def _stack(rows: Sequence[Tensor], maker: str) -> Tensor:
    shapes = sorted({tuple(row.shape) for row in rows})
    if len(shapes) > 1:
        raise ExampleError(
            f"{maker} gives examples of several shapes, {shapes}: bring them to one shape."
        )
    return torch.stack(list(rows))


def _unusable(bad: Sequence[Skipped]) -> ImageError:
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return ImageError(
        f"{bad[0].name!r}{more}: {bad[0].reason}; mend or remove it",
        mends=[Mend("leave such out", "on_error='skip'")],
    )


def _in_threads(work: Callable[[int], T], indices: Sequence[int]) -> list[T]:
    workers = min(4, os.cpu_count() or 1, len(indices))
    if workers < 2:
        return [work(i) for i in indices]
    with ThreadPoolExecutor(
        workers
    ) as pool:  # decoding leaves the interpreter lock; map keeps the order
        return list(pool.map(work, indices))
