"""Where a result came from, and results that can be saved, loaded and rebuilt."""

import dataclasses
import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors, save as save_tensors
from torch import Tensor, nn

from probing.core.content_ids import bytes_id
from probing.core.errors import ProbingError
from probing.core.model_identity import identity
from probing.results.saved_names import SavedNameError, class_of, name_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = None | bool | int | float | str | tuple[object, ...] | list[object] | dict[str, object]
"""What a JSON file holds; sequences are tuples here and lists after parsing."""
T = TypeVar("T", bound="Result")

_PACKAGES = (
    "probing-concepts",
    "torch",
    "torchvision",
    "timm",
    "scikit-learn",
    "numpy",
    "Pillow",
    "datasets",
    "resvg-py",
)


class UnsavableError(ProbingError, TypeError):
    """A value can be no part of a saved result or of a description."""


class SavedResultError(ProbingError, ValueError):
    """A folder holds no result of the kind asked for, or a damaged one."""


@dataclass(frozen=True)
class Provenance:
    """What made a result: command, versions, machine, and content ids of the model and the data."""

    created: str
    command: tuple[str, ...]
    versions: dict[str, str]
    machine: str
    model: str = ""
    examples: str = ""
    method: dict[str, object] = field(default_factory=dict)

    @classmethod
    def collect(cls, *, model: nn.Module | None = None, examples: str = "", method: object = None) -> "Provenance":
        """Describe this process and what it works on.

        Args:
            model: named by the content id of its weights and structure.
            examples: the content id of the data.
            method: a frozen dataclass of hyperparameters, seeds included.
        """
        return cls(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=(Path(sys.argv[0]).name, *sys.argv[1:]),
            versions={"python": platform.python_version()} | _versions(),
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {_accelerator()}",
            model="" if model is None else identity(model),
            examples=examples,
            method={} if method is None else describe(method, functions=True),
        )


@dataclass(frozen=True)
class Result:
    """What a method returns: frozen, typed, with named axes as fields beside the tensors.

    Subclasses are frozen dataclasses whose fields are tensors, numbers, strings, paths, tuples,
    mappings with string keys, or frozen dataclasses of these; one of yours is saved under the name that
    `probing.results.saved_names.saved_as` gives it. Each draws itself by `plot()`, and a notebook shows it:
    the plot, the first rows of `to_pandas()` where it is a table, and `sentences()`. As text it is a few lines.
    """

    provenance: Provenance

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):  # dataclasses would give each its own, a screenful
            cls.__repr__ = Result.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        from probing.results.notebook import in_short

        method = str(self.provenance.method.get("class", "")).rpartition(":")[2]
        return in_short(self, f"{type(self).__name__} by {method}" if method else type(self).__name__)

    def sentences(self) -> tuple[str, ...]:
        """Return what must be said beside the numbers, in plain words."""
        return ()

    def notebook_table(self) -> "pd.DataFrame | None":
        """Return the table that a notebook shows the first rows of: `to_pandas()`, or its most telling columns."""
        return self.to_pandas() if isinstance(self, _Table) else None

    def _repr_html_(self) -> str:
        from probing.results.notebook import page

        drawn = self.plot() if isinstance(self, _Drawn) else None
        return page(type(self).__name__, drawn=drawn, table=self.notebook_table(), sentences=self.sentences())

    def save(self, folder: str | Path) -> Path:
        """Write `tensors.safetensors` and `result.json` into a folder, which is made if missing.

        An earlier result there stays readable until the new one is complete.

        Raises:
            UnsavableError: if a part of it can't be saved, or is of a class that has no name in saved files.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        document = _encode(self, "", tensors)
        assert isinstance(document, dict)
        data = save_tensors(tensors)
        text = json.dumps(document | {"tensors": bytes_id(data)}, indent=1, ensure_ascii=False, allow_nan=False)
        _replace(folder / _NEW, data)
        _replace(folder / _DOCUMENT, text.encode(errors="surrogatepass"))  # now the new one counts
        (folder / _NEW).replace(folder / _TENSORS)
        return folder

    @classmethod
    def load(cls: type[T], folder: str | Path) -> T:
        """Read a result back.

        Raises:
            SavedResultError: if the folder holds none of this class, or a damaged one.
        """
        folder = Path(folder)
        try:
            text = (folder / _DOCUMENT).read_bytes().decode(errors="surrogatepass")
            document = json.loads(text)
            result = _decode(document, _tensors_of(folder, document["tensors"]))
        except _DAMAGE as error:
            raise SavedResultError(f"{str(folder)!r} holds no readable result: {error}.") from None
        if not isinstance(result, cls):
            raise SavedResultError(f"{str(folder)!r} holds a {type(result).__name__}, expected a {cls.__name__}.")
        return result


@runtime_checkable
class _Table(Protocol):
    def to_pandas(self) -> "pd.DataFrame": ...


@runtime_checkable
class _Drawn(Protocol):
    def plot(self) -> "Axes | Figure": ...


_DOCUMENT, _TENSORS, _NEW = "result.json", "tensors.safetensors", "tensors.new.safetensors"
# What reading a damaged document can raise: it may be any JSON, nested as deep as it likes.
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    RecursionError,
    SafetensorError,
    SavedNameError,
)


def _tensors_of(folder: Path, checksum: str) -> dict[str, Tensor]:
    """Return the tensors that a document was saved with, be it by a save that was cut short."""
    for name in (_TENSORS, _NEW):
        data = (folder / name).read_bytes() if (folder / name).exists() else b""
        if data and bytes_id(data) == checksum:
            return load_tensors(data)
    raise SavedResultError(f"{_TENSORS!r} is missing, damaged, or not of the same save as {_DOCUMENT!r}")


def describe(value: object, *, functions: bool = False) -> dict[str, object]:
    """Return a description in JSON terms of a frozen dataclass without tensors, for `rebuild`.

    Args:
        value: the dataclass.
        functions: whether the user's functions in it, such as a tokeniser, are named. Their content is not told, so that
            such a description can be read, but neither rebuilt nor used as a name of what was computed.
    """
    document = _encode(value, "", None, functions)
    if not isinstance(document, dict) or "class" not in document:
        raise UnsavableError(f"only frozen dataclasses can be described, got a {type(value).__name__}.")
    return document


def rebuild(description: Mapping[str, object]) -> object:
    """Return the dataclass that `describe` described.

    Raises:
        SavedResultError: if the description is damaged, or names a class that has no name in saved files.
    """
    try:
        return _decode(dict(description), {})
    except _DAMAGE as error:
        raise SavedResultError(f"the description can't be rebuilt: {error}.") from None


def _encode(value: object, where: str, tensors: dict[str, Tensor] | None, functions: bool = False) -> Json:
    if isinstance(value, Tensor) and tensors is not None:
        while where in tensors:  # keys with dots may make one path of two
            where += "#"
        # A clone, since safetensors refuses shared memory.
        tensors[where] = value.detach().cpu().contiguous().clone()
        return {"tensor": where}
    if isinstance(value, tuple | list):
        return tuple(_encode(item, f"{where}.{i}", tensors, functions) for i, item in enumerate(value))
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise UnsavableError(f"a mapping at {where!r} has the key {odd[0]!r}; only strings can be saved as keys.")
        items = value.items()
        return {"map": {k: _encode(v, f"{where}.{k}", tensors, functions) for k, v in items}}
    if dataclasses.is_dataclass(value) and _is_frozen(type(value)):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        below = {k: _encode(v, f"{where}.{k}".lstrip("."), tensors, functions) for k, v in fields.items()}
        return {"class": _name(type(value), saved=tensors is not None), "fields": below}
    if functions and callable(value) and not isinstance(value, type):
        named = value if hasattr(value, "__qualname__") else type(value)
        return {"function": f"{named.__module__}:{named.__qualname__}"}
    return _encode_scalar(value, where)


def _encode_scalar(value: object, where: str) -> Json:
    if isinstance(value, np.number):  # such as a unit that argmax found
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Path):
        return {"path": str(value)}
    raise UnsavableError(f"a {type(value).__name__} at {where!r} can't be part of a saved result or description.")


def _decode(document: object, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(document, list | tuple):
        return tuple(_decode(item, tensors) for item in document)
    if not isinstance(document, dict):
        return document
    if "class" in document:
        fields = cast("dict[str, object]", document["fields"])
        values = {name: _decode(item, tensors) for name, item in fields.items()}
        return class_of(str(document["class"]))(**values)
    if "map" in document:
        items = cast("dict[str, object]", document["map"])
        return {key: _decode(item, tensors) for key, item in items.items()}
    if "function" in document:
        raise SavedResultError(f"it names the function {document['function']}, which is not part of it")
    if "tensor" in document:
        return tensors[str(document["tensor"])]
    return Path(str(document["path"])) if "path" in document else float(str(document["float"]))


def _name(cls: type, *, saved: bool) -> str:
    """Return what a document calls a class; one that is described, not saved, may be of the user's."""
    name = name_of(cls)
    place = f"{cls.__module__}:{cls.__qualname__}"
    if name is None and (saved or cls.__module__.split(".")[0] in {"probing", "concepts"}):
        raise UnsavableError(
            f"{place} has no name in saved files: give it one by @saved_as('mylab.{cls.__name__}') of "
            "probing.results.saved_names."
        )
    return name or place


def _is_frozen(cls: type) -> bool:
    return bool(getattr(getattr(cls, "__dataclass_params__", None), "frozen", False))


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _accelerator() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"
