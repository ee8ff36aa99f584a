"""A layer is a dotted path, as in `model.named_modules()`; several may be asked for by globs."""

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from probing.errors import ProbingError


class LayerNotFoundError(ProbingError, LookupError):
    """A path names no submodule of the model."""


def resolve(model: nn.Module, layer: str) -> nn.Module:
    """Return the submodule at a dotted path; the empty path is the model itself.

    Raises:
        LayerNotFoundError: if there is none; the message lists paths close to it.

    Example:
        >>> resolve(torchvision.models.resnet18(), "layer4.1.conv2")
    """
    try:
        return model.get_submodule(layer)
    except AttributeError:
        raise LayerNotFoundError(_not_found(model, layer)) from None


def expand(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the paths that paths or globs (`"features.*"`) name, each once, in the order given.

    A glob's matches come in the model's own order and never include the model itself. A `*`
    matches dots too, as in a shell pattern applied to the whole path. `"name:2"` is the third call
    of a layer.

    Raises:
        LayerNotFoundError: if a path or a glob matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if any(c in pattern for c in "*?["):
            names = [n for n, _ in model.named_modules() if n and fnmatchcase(n, pattern)]
            if not names:
                raise LayerNotFoundError(_not_found(model, pattern))
        else:
            resolve(model, split_call(pattern)[0])
            names = [pattern]
        found.update(dict.fromkeys(names))
    return tuple(found)


def split_call(address: str) -> tuple[str, int | None]:
    """Return the path and the call in an address such as `"relu:1"`; None if no call is named."""
    name, colon, call = address.rpartition(":")
    return (name, int(call)) if colon and call.isdecimal() else (address, None)


def _not_found(model: nn.Module, layer: str) -> str:
    names = [n for n, _ in model.named_modules() if n]
    near = get_close_matches(layer, names, n=4, cutoff=0.4) or names[:4]
    return f"{type(model).__name__} has no layer {layer!r}. Close names: {near}."
