"""Weights from files: read as data, and refused unless every tensor finds its place."""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from probing.core.errors import ProbingError
from probing.core.packages import package_path

Keys = Literal["name", "order"]


class WeightsError(ProbingError, ValueError):
    """Weights cannot be had, or do not fit the model."""


def weights_file(weights: str | Path) -> Path:
    """Return the file that `weights` names: a path, or `package:NAME/path/inside`."""
    if isinstance(weights, str) and weights.startswith("package:"):
        package, _, inside = weights.removeprefix("package:").partition("/")
        return package_path(package, inside)
    if not Path(weights).is_file():
        raise WeightsError(f"there is no weights file {str(weights)!r}: give a file, package:NAME/path/inside, or 'random'.")
    return Path(weights)


def load_weights(model: nn.Module, file: Path, *, keys: Keys = "name") -> None:
    """Fill a model with the tensors of a file; nothing may be missing, left over or of another shape.

    Raises:
        WeightsError: if the file is no plain collection of tensors, or does not fit; the message lists names.
    """
    state = _read(file)
    own = model.state_dict()
    if keys == "order":
        state = _by_order(file, state, own)
    # the counter of BatchNorm's batches is absent from old files and unused in evaluation mode
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    reshaped = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    _refuse_kinds(file, state, own)
    if missing or extra or reshaped:
        hint = "" if keys == "order" or not _same_order(state, own) else _ORDER_HINT
        raise WeightsError(
            f"{file.name!r} does not fit {type(model).__name__}: {_listed(missing, 'missing')}, "
            f"{_listed(extra, 'unexpected')}, {_listed(reshaped, 'of another shape')}{hint}."
        )
    model.load_state_dict(state, strict=False)  # checked above, up to BatchNorm's counter


def _refuse_kinds(file: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise for tensors that would be converted in silence, or that hold no numbers."""
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise WeightsError(
                f"{name!r} of {file.name!r} is no plain tensor ({tensor.layout}, {tensor.device}, {tensor.dtype}): save it "
                "dense and with its numbers."
            )
        if name in own and _kind(tensor) != _kind(own[name]):
            raise WeightsError(
                f"{name!r} of {file.name!r} holds {tensor.dtype} where the model has {own[name].dtype}: save it as that."
            )


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


_ORDER_HINT = "; names apart, all agree in order, so keys='order' loads it if it is this very architecture"


def _by_order(file: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not _same_order(state, own):
        pairs = zip(state.items(), own.items(), strict=False)
        first = next(((a, b) for (a, x), (b, y) in pairs if not _alike(a, x, b, y)), None)
        where = f"{first[0]!r} stands where the model has {first[1]!r}" if first else "one holds more than the other"
        raise WeightsError(f"{file.name!r} does not fit in order ({len(state)} entries for {len(own)}): {where}.")
    return dict(zip(own, state.values(), strict=True))


def _same_order(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    pairs = zip(state.items(), own.items(), strict=False)
    return len(state) == len(own) and all(_alike(a, x, b, y) for (a, x), (b, y) in pairs)


def _alike(first: str, x: Tensor, second: str, y: Tensor) -> bool:
    return first.rpartition(".")[2] == second.rpartition(".")[2] and x.shape == y.shape


def _listed(names: Sequence[str], what: str) -> str:
    shown = f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""
    return f"{len(names)} {what}{shown}"


# What torch.load raises on damaged files, in one version or another; MemoryError is none of them.
_DAMAGE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    struct.error,
    zipfile.BadZipFile,
)


def _refuse_bomb(file: Path) -> None:
    """Raise for an archive that holds more than its own size: torch.save never compresses."""
    try:
        with zipfile.ZipFile(file) as archive:
            inside = sum(item.file_size for item in archive.infolist())
    except (zipfile.BadZipFile, ValueError, LookupError, struct.error, NotImplementedError):
        return  # no archive, or a damaged one
    if inside > file.stat().st_size:
        raise WeightsError(
            f"{str(file)!r} is compressed and would take {inside} bytes, which torch.save never does: save it anew."
        )


def _read(file: Path) -> Mapping[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (SafetensorError, KeyError, ValueError, RuntimeError, AttributeError) as error:
            raise WeightsError(f"{str(file)!r} is no readable safetensors file ({error}).") from None
    _refuse_bomb(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats
            state = torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{str(file)!r} holds more than tensors, or is damaged, and is not unpickled, since that could run code "
            f"({reason}): where you trust it, load it yourself and save its state_dict() as safetensors."
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        holds = list(state)[:6] if isinstance(state, Mapping) else type(state).__name__
        raise WeightsError(f"{str(file)!r} is no state dict but holds {holds}: save the model's state_dict() alone.")
    return cast("Mapping[str, Tensor]", state)
