"""A layer is a dotted path, as in `model.named_modules()`; several may be asked for by globs.

What returns several tensors is addressed by part: `"lstm[0]"` is the first of a tuple, `"encoder[last_hidden_state]"` what a
mapping calls so, `"lstm[1][0]"` the first of the second, and `"block:1[0]"` a part of the second call.

A glob is matched with the whole dotted path of every module, whether or not there are layers inside it: `?` stands for
one character, `[12]` for one of these, and `*` for any number, dots included. So `"layer?"` names the four stages of a
ResNet, `"layer4.*"` all that is inside the last, and `"*"` everything. Of what it matches, a glob names those layers
that can be read by their path, which run once in a pass and return a tensor with a row per example, in the order in
which they end; `"*.relu:1"` names the second call of each. It never names the model itself, and what is a path is no
glob. All that takes layers takes globs in this meaning, and one string where there is but one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from probing.core.errors import ProbingError

Calls = Mapping[str, int]
"""How often each layer returns a tensor with a row per example in a pass, in the order in which they end."""


class LayerNotFoundError(ProbingError, LookupError):
    """A path names no submodule of the model, or a glob none that can be read."""


def resolve(model: nn.Module, layer: str) -> nn.Module:
    """Return the submodule at a dotted path, which may end in a part; the empty path is the model itself.

    Raises:
        LayerNotFoundError: if there is none; the message lists paths close to it.

    Example:
        >>> resolve(torchvision.models.resnet18(), "layer4.1.conv2")
    """
    try:
        parts = parts_in(model, layer)
        return model.get_submodule(split_parts(layer)[0] if parts else layer)
    except AttributeError:
        raise LayerNotFoundError(_not_found(model, layer)) from None


def is_glob(model: nn.Module, pattern: str) -> bool:
    """Whether a pattern is a glob, and no path of the model's, which may hold any characters."""
    known, name = dict(_modules(model)), split_call(pattern)[0]
    if not any(c in pattern for c in "*?[") or name in known:
        return False
    path = split_parts(name)[0]
    return path not in known or (not path and any(matches(other, name) for other in known))  # "[01]" is no part of the model


def several(layers: str | Sequence[str]) -> list[str]:
    """Return layers as a list: one string is one layer, not its letters."""
    return [layers] if isinstance(layers, str) else list(layers)


def matches(path: str, pattern: str) -> bool:
    """Whether a path, or another dotted name, fits a glob as a whole; upper and lower case differ everywhere."""
    return fnmatchcase(path, pattern)


def matching(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of all modules that paths or globs match, each once, whether or not they can be read.

    Raises:
        LayerNotFoundError: if a path or a glob matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in several(patterns):
        if is_glob(model, pattern):
            found.update(dict.fromkeys(_matched(model, pattern)))
        else:
            resolve(model, split_call(pattern)[0])
            found[pattern] = None
    return tuple(found)


def expand(model: nn.Module, patterns: Sequence[str], calls: Callable[[], Calls]) -> tuple[str, ...]:
    """Return the layers that paths or globs name, each once, in the order given.

    Args:
        model: whose layers they are.
        patterns: paths, which are taken as they are, or globs. `"name:2"` is the third call of a layer.
        calls: tells what can be read, as `probing.models.summary.calls` does; asked only if there is a glob.

    Raises:
        LayerNotFoundError: if a path or a glob matches nothing, or nothing that can be read.

    Example:
        >>> expand(net, ["layer?"], lambda: calls(net, images[:1]))
        ('layer1', 'layer2', 'layer3', 'layer4')
    """
    found: dict[str, None] = {}
    for pattern in several(patterns):
        if is_glob(model, pattern):
            found.update(dict.fromkeys(_readable(model, pattern, calls())))
        else:
            resolve(model, split_call(pattern)[0])
            found[pattern] = None
    return tuple(found)


def split_call(address: str) -> tuple[str, int | None]:
    """Return the path, with its part, and the call in an address such as `"relu:1"`; None if no call is named."""
    path, _ = split_parts(address)
    name, colon, call = path.rpartition(":")
    return (name + address[len(path) :], int(call)) if colon and call.isdecimal() else (address, None)


def split_parts(address: str) -> tuple[str, tuple[str, ...]]:
    """Return what stands before the parts in an address such as `"lstm[1][0]"`, and these, in their order."""
    found = _PARTS.search(address)
    assert found is not None
    return address[: found.start()], tuple(_PART.findall(found.group()))


def parts_in(model: nn.Module, name: str) -> tuple[str, ...]:
    """Return the parts that an address without a call names, of a model whose paths may hold any characters."""
    return () if name in dict(_modules(model)) else split_parts(name)[1]


_PART = re.compile(r"\[(\w+)\]")
_PARTS = re.compile(r"(\[\w+\])*$")


def _readable(model: nn.Module, pattern: str, calls: Calls) -> list[str]:
    call = split_call(pattern)[1]
    paths = {id(model.get_submodule(path)): path for path in _matched(model, pattern)}
    found = [
        path if call is None else f"{path}:{call}"
        for layer, count in calls.items()
        if (path := paths.get(id(model.get_submodule(layer)))) and (count == 1 if call is None else count > call)
    ]
    if not found:
        how = "runs once" if call is None else f"runs {call + 1} times"
        raise LayerNotFoundError(
            f"of the layers that {pattern!r} matches, none {how} in a pass and returns a tensor with a row per example: "
            "name layers one by one; 'probing layers' lists them."
        )
    return found


def _matched(model: nn.Module, pattern: str) -> list[str]:
    """Return the paths that a glob matches, in the model's order; of several paths of one module the first."""
    glob = split_call(pattern)[0]
    first: dict[int, str] = {}
    for path, module in _modules(model):
        if path and matches(path, glob):
            first.setdefault(id(module), path)
    if not first:
        raise LayerNotFoundError(_not_found(model, pattern))
    return list(first.values())


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules(remove_duplicate=False))


def _not_found(model: nn.Module, layer: str) -> str:
    names = [n for n, _ in model.named_modules() if n]
    near = get_close_matches(layer, names, n=4, cutoff=0.4) or names[:4]
    return f"{type(model).__name__} has no layer {layer!r}. Close names: {near}."
