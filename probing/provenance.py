"""Where a result came from, and results that can be saved, loaded and rebuilt."""

import dataclasses
import importlib
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from probing.fingerprint import model_id

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
T = TypeVar("T", bound="Result")

_PACKAGES = ("probing-concepts", "torch", "torchvision", "timm", "scikit-learn", "numpy", "Pillow", "datasets")


class SavedResultError(ValueError):
    """A folder holds no result of the kind asked for, or a damaged one."""


@dataclass(frozen=True)
class Provenance:
    """What made a result: the command, versions, machine, and the content ids of the model and the data."""

    created: str
    command: tuple[str, ...]
    versions: dict[str, str]
    machine: str
    model: str = ""
    examples: str = ""
    method: dict[str, Json] = field(default_factory=dict)

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
            model="" if model is None else model_id(model),
            examples=examples,
            method={} if method is None else describe(method),
        )


@dataclass(frozen=True)
class Result:
    """What a method returns: frozen, typed, with named axes as fields beside the tensors.

    Subclasses are frozen dataclasses whose fields are tensors, numbers, strings, tuples, mappings with string keys,
    or frozen dataclasses of these.
    """

    provenance: Provenance

    def save(self, folder: str | Path) -> Path:
        """Write `tensors.safetensors` and `result.json` into a folder, which is made if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        document = _encode(self, "", tensors)
        _replace(folder / "tensors.safetensors", lambda path: save_file(tensors, path))
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        _replace(folder / "result.json", lambda path: path.write_text(text, encoding="utf-8"))
        return folder

    @classmethod
    def load(cls: type[T], folder: str | Path) -> T:
        """Read a result back.

        Raises:
            SavedResultError: if the folder holds none of this class, or a damaged one.
        """
        folder = Path(folder)
        try:
            document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "tensors.safetensors")
            result = _decode(document, tensors)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise SavedResultError(f"{str(folder)!r} holds no readable result: {error}.") from None
        if not isinstance(result, cls):
            raise SavedResultError(f"{str(folder)!r} holds a {type(result).__name__}, expected a {cls.__name__}.")
        return result


def describe(value: object) -> dict[str, Json]:
    """Return a JSON description of a frozen dataclass without tensors, such as a method, for `rebuild`."""
    document = _encode(value, "", None)
    if not isinstance(document, dict) or "class" not in document:
        raise TypeError(f"only dataclasses can be described, got a {type(value).__name__}.")
    return document


def rebuild(description: Mapping[str, Json]) -> object:
    """Return the dataclass that `describe` described."""
    return _decode(dict(description), {})


def _encode(value: object, where: str, tensors: dict[str, Tensor] | None) -> Json:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Tensor) and tensors is not None:
        tensors[where] = value.detach().cpu().contiguous().clone()  # a clone: safetensors refuses shared memory
        return {"tensor": where}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, tuple | list):
        return [_encode(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        items = {str(key): _encode(item, f"{where}.{key}", tensors) for key, item in value.items()}
        return {"map": items}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: _encode(getattr(value, f.name), f"{where}.{f.name}".lstrip("."), tensors)
            for f in dataclasses.fields(value)
            if f.init
        }
        return {"class": f"{type(value).__module__}:{type(value).__qualname__}", "fields": fields}
    raise TypeError(f"a {type(value).__name__} at {where!r} can't be part of a saved result or description.")


def _decode(document: Json, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(document, list):
        return tuple(_decode(item, tensors) for item in document)
    if not isinstance(document, dict):
        return document
    if "class" in document:
        fields = cast("dict[str, Json]", document["fields"])
        return _class(str(document["class"]))(**{name: _decode(item, tensors) for name, item in fields.items()})
    if "map" in document:
        return {key: _decode(item, tensors) for key, item in cast("dict[str, Json]", document["map"]).items()}
    if "tensor" in document:
        return tensors[str(document["tensor"])]
    return Path(str(document["path"])) if "path" in document else float(str(document["float"]))


def _class(name: str) -> type:
    """Return a dataclass of these packages: saved results are data and must not choose what is imported."""
    module, _, qualname = name.partition(":")
    if module.split(".")[0] not in {"probing", "concepts"}:
        raise ValueError(f"{name!r} is not a class of this suite")
    found: object = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"{name!r} is no dataclass of this suite")
    return found


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
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
