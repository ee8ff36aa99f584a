"""Examples have content ids: what is read is named by what it is, never by a path or a name someone chose."""

import os
import random
from collections.abc import Callable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from numbers import Number
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple, Protocol, TypeGuard, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    default_collate,
)

from probing.core.content_ids import bytes_id, content_id, tensor_id
from probing.core.errors import Mend, OutOfRangeError, ProbingError
from probing.core.inputs import Batch, InputError, Inputs, joined, not_one_tensor, padded, row_ids, tokens_of
from probing.data.images import (
    ImageError,
    Preprocess,
    check_header,
    decode,
    flatten,
    read_file,
    upright,
)

Transform = Callable[[Image.Image], Tensor]
"""From an upright picture to model space: a `Preprocess`, or a callable that gets 8-bit RGB, white where transparent."""

Prepare = Callable[[Any], Tensor | Mapping[str, Tensor]]
"""From an item of data to model space: from a picture, as a `Transform` does, from a text, or from whatever it is; to one
tensor, or to named ones, as a tokeniser or processor of transformers gives."""

T = TypeVar("T")
OnError = Literal["raise", "skip"]
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm")
LABELS = ("label", "labels")
"""What mappings and tables call the label of an example."""
_THUMBNAIL = 256  # pixels: enough for a montage
_READ_TWICE = 8  # items of a data set, at once; the others when they are loaded


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

    def load(self, indices: Sequence[int]) -> Batch:
        """Return examples as one batch in model space, in the order asked for: one tensor, or named ones."""

    def __len__(self) -> int: ...


Examples = ExampleSet | Sized
"""An `ExampleSet`, or what `as_examples` makes one of: a tensor, an array, a list, a data set, a `DataLoader` …"""


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

    Args:
        tensor: one example per row.
        labels: of each, where known.

    Example:
        >>> TensorExamples(torch.randn(8, 3, 32, 32)).load([0, 5]).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, tensor: Shaped[Tensor, "n *shape"], *, labels: Sequence[object] | None = None) -> None:
        if not isinstance(tensor, Tensor):
            raise ExampleError(f"a tensor is needed, got {type(tensor).__name__}: as_examples(…) takes that too.")
        self._tensor = tensor.detach().clone()  # an edit in place would leave the ids behind
        self.ids: tuple[str, ...] = tuple(tensor_id(row) for row in self._tensor)
        self.labels = _one_each(labels, len(self.ids))

    def load(self, indices: Sequence[int]) -> Shaped[Tensor, "n *shape"]:
        return self._tensor[torch.tensor(indices, dtype=torch.long, device=self._tensor.device)]

    def image(self, index: int) -> Image.Image:
        """Return an example of one or three channels, stretched to the range between its extremes."""
        return _stretched(self._tensor[index])

    def __len__(self) -> int:
        return len(self.ids)


class NamedExamples:
    """Examples of named tensors in model space, with a row of each per example, of which a copy is kept.

    Args:
        inputs: the tensors, as `Inputs` or a mapping.
        labels: of each example, where known.

    Example:
        >>> examples({"input_ids": ids, "attention_mask": mask}).load([0, 5]).tensors["input_ids"].shape
        torch.Size([2, 12])
    """

    def __init__(self, inputs: Inputs | Mapping[str, Any], *, labels: Sequence[object] | None = None) -> None:
        given = inputs if isinstance(inputs, Inputs) else Inputs(inputs)
        self._inputs = given.map(lambda tensor: tensor.detach().clone())
        self.ids: tuple[str, ...] = tuple(row_ids(self._inputs))
        self.labels = _one_each(labels, len(self.ids))
        self.tokens = tokens_of(self._inputs)

    def load(self, indices: Sequence[int]) -> Inputs:
        return self._inputs[torch.tensor(indices, dtype=torch.long)]

    def image(self, index: int) -> Image.Image:
        """Return the picture among an example's inputs, stretched to the range between its extremes."""
        return _stretched(self._inputs[[index]].main[0])

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
        paths = sorted(p for p in Path(folder).glob(pattern) if p.suffix.lower() in SUFFIXES and p.is_file())
        if not paths:
            what = "holds no picture" if Path(folder).is_dir() else "is no folder"
            raise ExampleError(f"{str(folder)!r} {what} (pattern {pattern!r}, suffixes {', '.join(SUFFIXES)}).")
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

    def __init__(self, dataset: Any, column: str = "image", root: Path | None = None) -> None:  # datasets ships no types
        features = getattr(dataset, "features", None)
        if features is None or not hasattr(dataset, "select_columns") or not hasattr(dataset, "__len__"):
            raise ExampleError(
                f"a data set of one split with random access is needed, got {type(dataset).__name__}: "
                "choose a split, and keep one that streams by probing.data.remote_images.SpooledImages."
            )
        images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        if column not in images:
            raise ExampleError(f"the data set has no image column {column!r}; image columns: {images}.")
        from datasets import Image as ImageFeature

        self.column, self._root = column, root
        self._rows = dataset.select_columns([column]).cast_column(column, ImageFeature(decode=False))

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
        preprocess: any callable whose code and settings are its content. One that draws at random, or counts its calls,
            is refused when the first picture is loaded.
        on_error: `skip` leaves out pictures that cannot be decoded, listed in `skipped`, and for that decodes
            all once; `raise` refuses at once what the headers show, and the rest when it is loaded.
        labels: of each picture given, where known; those of pictures left out are left out.

    Raises:
        ImageError: for a picture that cannot be read, by name.
        ExampleError: if there is no picture at all.
        ChangedExampleError: on loading, for a picture that is not what it was, or is prepared otherwise each time.

    Example:
        >>> examples = ImageExamples(sorted(Path("zebras").glob("*.jpg")), Preprocess())
        >>> examples.load(range(4)).shape
        torch.Size([4, 3, 224, 224])
    """

    def __init__(
        self,
        files: ImageSource | Sequence[Path | str],
        preprocess: Prepare,
        *,
        on_error: OnError = "raise",
        labels: Sequence[object] | None = None,
    ) -> None:
        if isinstance(files, str | Path):
            raise ExampleError(f"a list of files is needed, got {str(files)!r}: use ImageFiles.in_folder for a folder.")
        self._source = files if isinstance(files, ImageSource) else ImageFiles(tuple(Path(f) for f in files))
        self.preprocess = preprocess
        self._settings = content_id(preprocess)
        verdicts = _in_threads(lambda i: self._examine(i, whole=on_error == "skip"), range(len(self._source)))
        bad = [v for v in verdicts if isinstance(v, Skipped)]
        if bad and on_error == "raise":
            raise _unusable(bad)
        self.skipped: tuple[Skipped, ...] = tuple(bad)
        self.kept: tuple[int, ...] = tuple(i for i, v in enumerate(verdicts) if isinstance(v, str))
        self.ids: tuple[str, ...] = tuple(v for v in verdicts if isinstance(v, str))
        if not self.ids:
            raise ExampleError(f"there is no readable picture among the {len(self._source)} given.")
        given = _one_each(labels, len(self._source))
        self.labels = None if given is None else tuple(given[i] for i in self.kept)

    def load(self, indices: Sequence[int]) -> Batch:
        for index in indices[:1]:
            if not isinstance(self.preprocess, Preprocess):
                _refuse_random(self._settings, repr(self.name(index)), partial(self._prepared, index))
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

    def _prepared(self, index: int) -> Batch:
        image = self._decoded(index)
        row = self.preprocess(image if isinstance(self.preprocess, Preprocess) else flatten(image))
        return _as_row(row, "what the preprocessing gives") if isinstance(row, Mapping) else row

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
                raise ChangedExampleError(f"{self.name(index)!r} has changed since it was first read: list the files anew.")
            return decode(data)
        except ImageError as error:
            raise _unusable([Skipped(self.name(index), str(error))]) from None


class TextExamples:
    """Texts, each turned into token ids.

    Args:
        texts: one example each.
        tokenize: from one text to a tensor, padded or cut to a fixed length; or to named tensors with an
            `attention_mask`, as a tokeniser of transformers gives, which are padded here to the longest text.
        labels: of each, where known.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenize: Prepare,
        *,
        labels: Sequence[object] | None = None,
    ) -> None:
        self.texts: tuple[str, ...] = tuple(texts)
        self._tokenize = tokenize
        self._settings = content_id(tokenize)
        self.ids: tuple[str, ...] = tuple(
            bytes_id(f"{bytes_id(t.encode(errors='surrogatepass'))}{self._settings}".encode()) for t in self.texts
        )
        self.labels = _one_each(labels, len(self.ids))
        self._named = self._encoded()
        if self._named is not None:
            self.ids, self.tokens = self._named.ids, self._named.tokens

    def load(self, indices: Sequence[int]) -> Batch:
        for i in indices[:1]:
            name = f"text {i} ({shorten(self.texts[i], 40)!r})"
            _refuse_random(self._settings, name, partial(self._tokenize, self.texts[i]))
        if self._named is not None:
            return self._named.load(indices)
        return _stack([self._row(i) for i in indices], "tokenize")

    def _row(self, index: int) -> Batch:
        return _as_row(self._tokenize(self.texts[index]), "what tokenize gives")

    def _encoded(self) -> NamedExamples | None:
        """Return the texts as named tensors, if the tokeniser makes these: one length of all tells their padding."""
        if not self.texts or isinstance(self._tokenize(self.texts[0]), Tensor):
            return None
        rows = [self._row(i) for i in range(len(self.texts))]
        named = _stack(rows, "tokenize", getattr(self._tokenize, "pad_token_id", 0))
        return NamedExamples(named) if isinstance(named, Inputs) else None

    def __len__(self) -> int:
        return len(self.texts)


class DatasetExamples:
    """Examples of a map-style data set, or of a list: whatever has a length and gives an item for an index.

    An item is an example, or a pair of an example and its label, or a mapping of both. Its id is the hash of what the
    model sees. Items are read once for it and again when they are loaded, and must then still be the same: what draws
    at random, as an augmenting transform does, is refused.

    Args:
        items: a `torch.utils.data.Dataset`, `torchvision.datasets.ImageFolder`, `datasets.Dataset`, a list …
        preprocess: from an item's picture, text or whatever it is to a tensor in model space; None where items are
            tensors already. A picture is upright and in 8-bit RGB, as for `ImageExamples`.

    Raises:
        ExampleError: for items that no examples can be made of; the message says how they could be.
        ChangedExampleError: for items that differ when they are read again.
    """

    def __init__(self, items: Any, preprocess: Prepare | None = None) -> None:
        self._items, self.preprocess = items, preprocess
        ids, labels, lengths = [], [], []
        for index in range(len(items)):
            example, label = self._read(index)
            row = self._prepared(example, index)
            ids.append(_row_id(row))
            lengths.append(tokens_of(row) or 0)
            labels.append(label)
        self.tokens = max(lengths, default=0)
        whole = any(length != self.tokens for length in lengths)
        # What the model sees of a text is padded to the longest of the set.
        self._padded = tuple(ids)
        self.ids: tuple[str, ...] = (
            tuple(bytes_id(f"{i} of {self.tokens} tokens".encode()) for i in ids) if whole else self._padded
        )
        self.labels = tuple(labels) if any(label is not None for label in labels) else None
        # What draws at random shows by now, before rows are computed of it
        for index in range(0, len(ids), max(1, len(ids) // _READ_TWICE))[:_READ_TWICE]:
            self.load([index])

    def load(self, indices: Sequence[int]) -> Batch:
        rows = []
        for index in indices:
            row = self._prepared(self._read(index)[0], index)
            if _row_id(row) != self._padded[index]:
                raise ChangedExampleError(
                    f"{self.name(index)} is not what it was when it was first read: give data without random transforms, "
                    "such as augmentation, or list what has changed anew."
                )
            rows.append(row)
        return _stack(rows, "the data set", getattr(self.preprocess, "pad_token_id", 0), self.tokens)

    def name(self, index: int) -> str:
        """Return where an example came from."""
        return f"item {index} of the {type(self._items).__name__}"

    def image(self, index: int) -> Image.Image:
        """Return the whole picture, upright and small, or what a tensor looks like."""
        example = self._read(index)[0]
        picture = _opened(example)
        if picture is None:
            row = self._prepared(example, index)
            return _stretched(row if isinstance(row, Tensor) else row.main[0])
        return _thumbnail(flatten(picture))

    def __len__(self) -> int:
        return len(self.ids)

    def _read(self, index: int) -> tuple[object, object]:
        """Return an item's example and its label, or None for one without."""
        item = self._items[index]
        if isinstance(item, Mapping):
            return _of_mapping(item, self.name(index))
        if isinstance(item, tuple) and item and not isinstance(item[0], Number):
            return _of_pair(item, self.name(index))
        if isinstance(item, list) and item and isinstance(item[0], Tensor | np.ndarray | Image.Image):
            return _of_pair(item, self.name(index))
        return item, None  # a row of numbers, or words

    def _prepared(self, example: object, index: int) -> Batch:
        if self.preprocess is not None:
            try:
                given = _opened(example)
                if given is not None and not isinstance(self.preprocess, Preprocess):
                    given = flatten(given)
            except ImageError as error:
                raise _unusable([Skipped(self.name(index), str(error))]) from None
            if given is None and isinstance(self.preprocess, Preprocess):
                raise ExampleError(
                    f"{self.name(index)} is a {type(example).__name__}, and preprocess is for pictures: leave it out for "
                    "data that are in model space."
                )
            example = self.preprocess(example if given is None else given)
        return _as_row(example, self.name(index))


class Subset:
    """Some examples of another set, in the order of `indices`."""

    def __init__(self, examples: ExampleSet, indices: Sequence[int]) -> None:
        outside = [i for i in indices if not 0 <= i < len(examples)]
        if outside:
            raise OutOfRangeError(f"index {outside[0]} is out of range for {len(examples)} examples.")
        self.examples = examples
        self.indices: tuple[int, ...] = tuple(indices)
        self.ids: tuple[str, ...] = tuple(examples.ids[i] for i in self.indices)
        known = labels_of(examples)
        self.labels = None if known is None else tuple(known[i] for i in self.indices)

    def load(self, indices: Sequence[int]) -> Batch:
        return self.examples.load([self.indices[i] for i in indices])

    def image(self, index: int) -> Image.Image:
        return _picture(self.examples, self.indices[index])

    def __len__(self) -> int:
        return len(self.indices)


class Concatenation:
    """Several sets one after the other."""

    def __init__(self, parts: Sequence[ExampleSet]) -> None:
        self.parts: tuple[ExampleSet, ...] = tuple(_of_one_length(parts))
        self._places = [(p, i) for p, part in enumerate(self.parts) for i in range(len(part))]
        self.ids: tuple[str, ...] = tuple(i for part in self.parts for i in part.ids)
        known = [label for part in self.parts for label in labels_of(part) or ()]
        self.labels = tuple(known) if known and len(known) == len(self.ids) else None

    def load(self, indices: Sequence[int]) -> Batch:
        places = [self._places[i] for i in indices]
        rows: dict[int, Batch] = {}
        for part in sorted({p for p, _ in places}):
            slots = [slot for slot, (p, _) in enumerate(places) if p == part]
            rows.update(zip(slots, self.parts[part].load([places[s][1] for s in slots]), strict=True))
        return _stack([rows[slot] for slot in range(len(places))], "joining sets")

    def image(self, index: int) -> Image.Image:
        part, inner = self._places[index]
        return _picture(self.parts[part], inner)

    def __len__(self) -> int:
        return len(self._places)


def _of_one_length(parts: Sequence[ExampleSet]) -> Sequence[ExampleSet]:
    """Return sets whose texts are padded to the longest of all; they are other examples then, with other ids."""
    lengths = [_tokens_in(part) for part in parts]
    known = [length for length in lengths if length is not None]
    if len(set(known)) < 2:
        return parts
    longest, found = max(known), []
    for part, length in zip(parts, lengths, strict=True):
        batch = part.load(range(len(part))) if length not in {None, longest} else None
        wide = None if batch is None or isinstance(batch, Tensor) else padded(batch, longest)
        found.append(part if wide is None else NamedExamples(wide, labels=labels_of(part)))
    return found


def _tokens_in(examples: ExampleSet) -> int | None:
    """Return how many tokens the texts of a set have, if it pads them to one length."""
    if isinstance(examples, Subset):
        return _tokens_in(examples.examples)
    if isinstance(examples, Concatenation):
        return next(iter(filter(None, map(_tokens_in, examples.parts))), None)
    return getattr(examples, "tokens", None)


def concat(*parts: ExampleSet) -> Concatenation:
    """Return the examples of several sets as one."""
    return Concatenation(parts)


def as_examples(data: object, preprocess: Prepare | None = None) -> ExampleSet:
    """Return whatever holds examples as an `ExampleSet`, whose ids are made of the content.

    Labels that come with the data, as the second of a pair or under the name `label`, are kept: see `labels_of`. Whatever
    takes examples calls this itself; call it to name the preprocessing, and once for data that are used several times,
    since all of them are read for their ids.

    Args:
        data: a tensor or array with one example per row; a mapping of named ones, or `Inputs`; a list of tensors, arrays,
            pictures, files or texts; a folder of pictures; a PyTorch or Hugging Face data set; a `DataLoader` that neither
            shuffles nor collates in its own way; a table of pandas, with numbers or one column of files or texts; an
            `ImageSource`; an `ExampleSet`.
        preprocess: from a picture to model space, such as `loaded.preprocess`, or from a text to its tokens; None for data
            in model space.

    Raises:
        ExampleError: for what holds no examples, or can be read once only; the message says how to go on.
        ChangedExampleError: for data that differ when they are read again, as augmented ones do.

    Example:
        >>> as_examples(torchvision.datasets.ImageFolder("photos"), loaded.preprocess).load([0]).shape
        torch.Size([1, 3, 224, 224])
    """
    if isinstance(data, DataLoader):
        data = _dataset_of(data)
    if isinstance(data, str | Path):
        data = [data]
    if isinstance(data, ExampleSet):
        return data
    splits = _is_a(data, "datasets", "DatasetDict")
    if isinstance(data, Inputs) or (isinstance(data, Mapping) and preprocess is None and not splits):
        return _named(data)
    if isinstance(data, ImageSource):
        return ImageExamples(data, _needed(preprocess, "pictures"))
    if isinstance(data, Tensor | np.ndarray) and data.ndim == 0:
        raise ExampleError("a single number holds no examples: give one example per row.")
    if isinstance(data, Tensor | np.ndarray) and preprocess is None:
        return TensorExamples(_as_tensor(data, "the array"))
    if isinstance(data, list | tuple) and data and all(isinstance(x, str | Path) for x in data):
        return _of_files(data, preprocess)
    found = _of_library(data, preprocess)
    return DatasetExamples(_with_items(data), preprocess) if found is None else found


examples = as_examples  # as the package names it: there, no argument is called so


def refuse_random(examples: ExampleSet) -> None:
    """Refuse a set of somebody's own that gives one example otherwise each time; the suite's sets do so on loading.

    Raises:
        ChangedExampleError: naming the example.
    """
    if isinstance(examples, Subset):
        refuse_random(examples.examples)
    elif isinstance(examples, Concatenation):
        for part in examples.parts:
            refuse_random(part)
    elif len(examples) and not isinstance(
        examples, TensorExamples | NamedExamples | ImageExamples | TextExamples | DatasetExamples
    ):
        name = f"example 0 of the {type(examples).__name__}"
        _refuse_random(f"{type(examples)} {examples.ids[0]}", name, lambda: examples.load([0]))


_STEADY: set[str] = set()
"""Content ids of preprocessings that were seen to give the same again, in this process."""
_LOADS, _MORE_LOADS = 4, 16


def _refuse_random(settings: str, name: str, load: Callable[[], object]) -> None:
    """Load one example several times, once a process for each preprocessing, and refuse what differs.

    More often where numbers were drawn, since a flip of one in two shows in every other load only.
    """
    if settings in _STEADY:
        return
    before = _generators()
    first = load()
    drawn = _generators() != before
    if own := _content(first):  # anything else is refused by whoever stacks it
        for _ in range(_MORE_LOADS if drawn else _LOADS - 1):
            if _content(load()) != own:
                raise ChangedExampleError(
                    f"{name} becomes another input each time it is loaded, so that rows of it would be of none: give a "
                    "preprocessing that draws nothing at random and keeps nothing from call to call, such as the one that "
                    "the model was validated with."
                )
    _STEADY.add(settings)


def _content(loaded: object) -> str:
    """Return the id of what a preprocessing gives; empty for what it should not give."""
    if isinstance(loaded, Tensor):
        return tensor_id(loaded)
    if isinstance(loaded, Inputs):
        return _row_id(loaded)
    if isinstance(loaded, Mapping):
        return content_id({str(name): value for name, value in loaded.items() if isinstance(value, Tensor)})
    return ""


def _generators() -> tuple[object, ...]:
    """Return the states of the global random generators."""
    kind, keys, *place = np.random.get_state(legacy=True)  # noqa: NPY002 (it is others' generator that is watched)
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        kind,
        np.asarray(keys).tobytes(),
        *place,
    )


def labels_of(examples: ExampleSet) -> tuple[object, ...] | None:
    """Return the labels that came with examples, or None where none did."""
    return cast("tuple[object, ...] | None", getattr(examples, "labels", None))


def _picture(examples: ExampleSet, index: int) -> Image.Image:
    if not isinstance(examples, PicturedExamples):
        raise NoPictureError(f"{type(examples).__name__} has no pictures to show.")
    return examples.image(index)


def _dataset_of(loader: "DataLoader[Any]") -> object:
    """Return what a loader reads, where it hands that on in its order and as it is."""
    data: Any = loader.dataset
    if isinstance(data, IterableDataset):
        return data
    if not isinstance(loader.sampler, SequentialSampler):
        raise ExampleError(
            f"the DataLoader draws by {type(loader.sampler).__name__}, so that labels in its order would belong to other "
            "examples: give loader.dataset, or a DataLoader with shuffle=False."
        )
    own = {
        "a batch_sampler": type(loader.batch_sampler) not in {BatchSampler, type(None)},
        "a collate_fn": loader.collate_fn is not default_collate,
        "drop_last=True": loader.drop_last and len(data) % (loader.batch_size or 1),
    }
    if differs := [what for what, is_so in own.items() if is_so]:
        raise ExampleError(
            f"the DataLoader has {differs[0]} of its own, so that what it gives is not what its data set holds: give "
            "loader.dataset, or a list of the examples that it gives."
        )
    return data


def _of_files(names: Sequence[str | Path], preprocess: Prepare | None, labels: Sequence[object] | None = None) -> ExampleSet:
    """Return the examples of picture files, or of one folder of them; other strings are texts."""
    if len(names) == 1 and _is_folder(names[0]):
        return ImageExamples(ImageFiles.in_folder(names[0]), _needed(preprocess, "pictures"))
    if all(isinstance(name, Path) or _names_picture(name) for name in names):
        return ImageExamples(names, _needed(preprocess, "pictures"), labels=labels)
    return TextExamples([str(n) for n in names], _needed(preprocess, "texts"), labels=labels)


def _is_folder(name: str | Path) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # a text that is too long for a name, or holds what none may hold
        return False


def _names_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _of_library(data: Any, preprocess: Prepare | None) -> ExampleSet | None:
    """Return the examples of what pandas and Hugging Face make, or None for anything else."""
    if _is_a(data, "pandas", "DataFrame"):
        return _of_table(data, preprocess)
    if _is_a(data, "pandas", "Series"):
        return _of_table(data.to_frame(), preprocess)
    if _is_a(data, "datasets", "DatasetDict"):
        raise ExampleError(f"the data set has splits: choose one, as in data[{next(iter(data))!r}].")
    if not _is_a(data, "datasets", "Dataset") or preprocess is None or data.format["type"]:
        return None
    rest = [column for column in data.column_names if column not in LABELS]
    if len(rest) != 1 or type(data.features[rest[0]]).__name__ != "Image":
        return None
    # Encoded pictures are read as they are, several at once
    labels = [data[column] for column in data.column_names if column in LABELS]
    return ImageExamples(DatasetImages(data, rest[0]), preprocess, labels=labels[0] if labels else None)


def _of_table(table: Any, preprocess: Prepare | None) -> ExampleSet:
    """Return the rows of a pandas table, whose column `label`, if there is one, holds labels."""
    named = [column for column in table.columns if column in LABELS]
    rest = table.drop(columns=named)
    labels = table[named[0]].tolist() if named else None
    if len(rest.columns) and all(kind.kind in "biuf" for kind in rest.dtypes):
        return TensorExamples(torch.from_numpy(np.array(rest.to_numpy())), labels=labels)
    if len(rest.columns) != 1:
        raise ExampleError(
            f"the columns {[str(c) for c in rest.columns]} are not all numbers: leave columns of numbers, or one of files "
            "or texts, as in table[['file', 'label']]."
        )
    items = rest.iloc[:, 0].tolist()
    if all(isinstance(item, str | Path) for item in items):
        return _of_files(items, preprocess, labels)
    pairs = items if labels is None else list(zip(items, labels, strict=True))
    return DatasetExamples(pairs, preprocess)


def _named(data: Inputs | Mapping[Any, Any]) -> NamedExamples:
    """Return the examples of named tensors, of which one may be the labels."""
    if isinstance(data, Inputs):
        return NamedExamples(data)
    labels = [value for name, value in data.items() if name in LABELS]
    rest = {name: value for name, value in data.items() if name not in LABELS}
    known = labels[0].tolist() if labels and isinstance(labels[0], Tensor | np.ndarray) else labels[0] if labels else None
    try:
        return NamedExamples(rest, labels=known)
    except InputError as error:
        raise ExampleError(f"examples can't be made of {[str(name) for name in data]}: {error}") from error


def _with_items(data: object) -> Any:
    """Return data that have a length and items, or say why they are no examples."""
    if isinstance(data, Mapping):
        raise ExampleError(
            f"a preprocessing takes one item at a time, and a mapping of {[str(key) for key in data]} is all at once: give "
            "a list of items, or tensors without a preprocessing."
        )
    if isinstance(data, tuple):
        raise ExampleError(
            f"a tuple of {len(data)} can be examples, or several inputs, or inputs and labels: give a list of examples, "
            "or torch.utils.data.TensorDataset(inputs, labels)."
        )
    once = isinstance(data, IterableDataset) or not isinstance(data, Sized)
    if once or not hasattr(data, "__getitem__"):
        raise ExampleError(
            f"no examples can be made of a {type(data).__name__}, whose items can't be read again in any order: give a list "
            "of them, or keep pictures that stream by probing.data.remote_images.SpooledImages."
        )
    return data


def _needed(preprocess: Prepare | None, what: str) -> Prepare:
    if preprocess is None:
        how = "loaded.preprocess" if what == "pictures" else "a tokeniser to a fixed length"
        raise ExampleError(f"{what} need a preprocessing to model space: give as_examples(…, preprocess), such as {how}.")
    return preprocess


def _of_mapping(item: Mapping[Any, object], name: str) -> tuple[object, object]:
    labels = [key for key in item if key in LABELS]
    rest = [key for key in item if key not in LABELS]
    named = len(rest) > 1 and all(isinstance(item[key], Tensor | np.ndarray) for key in rest)
    if (len(rest) != 1 and not named) or len(labels) > 1:
        raise ExampleError(
            f"{name} holds {[str(key) for key in item]}, of which one must be the example and one may be its 'label': leave "
            "out the others, as by select_columns of a Hugging Face data set."
        )
    whole = item if not labels else {key: item[key] for key in rest}
    example = whole if named else item[rest[0]]
    return example, _label(item[labels[0]]) if labels else None


def _of_pair(item: Sequence[object], name: str) -> tuple[object, object]:
    label = _label(item[1]) if len(item) == 2 else None
    if len(item) > 2 or (len(item) == 2 and label is None):
        kinds = ", ".join(type(part).__name__ for part in item)
        raise ExampleError(
            f"{name} holds ({kinds}), where an example and its label are expected: leave out the rest, as in "
            "as_examples([item[0] for item in data])."
        )
    return item[0], label


def _label(value: object) -> object:
    """Return a label as Python's own, or None for what is no label: a mask, or boxes."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.item() if value.ndim == 0 else None
    return value if isinstance(value, str | int | float) else None


def _opened(example: object) -> Image.Image | None:
    """Return a picture upright, if an example is one, in memory or in a file."""
    if isinstance(example, Path) or (isinstance(example, str) and _names_picture(example)):
        return decode(read_file(Path(example)))
    if isinstance(example, Image.Image):
        return upright(example)
    return Image.fromarray(example) if _has_pixels(example) else None


def _has_pixels(example: object) -> TypeGuard["np.ndarray[Any, Any]"]:
    if not isinstance(example, np.ndarray) or example.dtype != np.uint8:
        return False
    return example.ndim == 2 or (example.ndim == 3 and example.shape[2] in {3, 4})


def _as_tensor(example: object, name: str) -> Tensor:
    if isinstance(example, Tensor):
        return example.detach().as_subclass(Tensor)
    if isinstance(example, Image.Image | Path | str):
        _needed(None, "texts" if isinstance(example, str) else "pictures")
    if isinstance(example, Mapping):
        raise ExampleError(not_one_tensor(example, name))
    try:  # numbers of Python's own are of torch's default precision
        array = isinstance(example, np.ndarray | np.generic)
        return torch.from_numpy(np.array(example)) if array else torch.tensor(example)
    except (TypeError, ValueError, RuntimeError):
        raise ExampleError(
            f"{name} is a {type(example).__name__}, which no tensor can be made of: give numbers of one shape."
        ) from None


def _as_row(example: object, name: str) -> Batch:
    """Return an example as a tensor, or, of named tensors, as a batch of one."""
    if isinstance(example, Inputs):
        return example
    if not isinstance(example, Mapping):
        return _as_tensor(example, name)
    parts = {str(key): _as_tensor(value, f"{key!r} of {name}") for key, value in example.items() if key not in LABELS}
    # A tokeniser or processor of transformers that was asked for tensors gives batches of one.
    batched = _is_a(example, "transformers", "BatchEncoding") or _is_a(example, "transformers", "BatchFeature")
    alone = batched and all(part.ndim and len(part) == 1 for part in parts.values())
    return Inputs({key: part if alone else part[None] for key, part in parts.items()})


def _row_id(row: Batch) -> str:
    return tensor_id(row) if isinstance(row, Tensor) else row_ids(row)[0]


def _is_a(value: object, library: str, name: str) -> bool:
    """Whether a value is of a library's class, without importing the library."""
    return any(base.__name__ == name and base.__module__.split(".")[0] == library for base in type(value).__mro__)


def _one_each(labels: Sequence[object] | None, count: int) -> tuple[object, ...] | None:
    if labels is not None and len(labels) != count:
        raise ExampleError(f"there are {len(labels)} labels for {count} examples: give one each.")
    return None if labels is None else tuple(labels)


def _stretched(row: Tensor) -> Image.Image:
    row = row.detach().cpu().float()
    if row.ndim != 3 or row.shape[0] not in {1, 3}:
        raise NoPictureError(f"an example of shape {tuple(row.shape)} is no picture: [1 or 3, h, w] is needed.")
    low, high = row.amin(), row.amax()
    grey = ((row - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)
    return _thumbnail(Image.fromarray(grey.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()))


def _thumbnail(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return small


def _stack(rows: Sequence[Batch], maker: str, fill: int = 0, tokens: int = 0) -> Batch:
    """Return rows as one batch; texts, of which a mask is known, are padded to the longest, or to so many tokens."""
    if rows and all(isinstance(row, Inputs) for row in rows):
        named = [row for row in rows if isinstance(row, Inputs)]
        longest = max(tokens, *(tokens_of(row) or 0 for row in rows), 0)
        named = [padded(row, longest, fill) for row in named]
        kinds = {tuple((n, tuple(t.shape[1:]), t.dtype) for n, t in row.tensors.items()) for row in named}
        if len(kinds) > 1:
            raise ExampleError(
                f"{maker} gives named inputs of several shapes, {sorted(map(str, kinds))[:2]}: bring them to one shape, or "
                "have an attention_mask among them, by which texts are padded."
            )
        return joined(named)
    if other := [row for row in rows if not isinstance(row, Tensor)]:
        raise ExampleError(not_one_tensor(other[0], f"what {maker} gives"))
    tensors = [row for row in rows if isinstance(row, Tensor)]
    shapes = sorted({tuple(row.shape) for row in tensors})
    if len(shapes) > 1:
        raise ExampleError(f"{maker} gives examples of several shapes, {shapes}: bring them to one shape.")
    return torch.stack(tensors)


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
    with ThreadPoolExecutor(workers) as pool:  # decoding leaves the interpreter lock; map keeps the order
        return list(pool.map(work, indices))
