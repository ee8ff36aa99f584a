"""What a network is made of, and how often each layer runs, from one pass over a private copy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probing.core.errors import ProbingError
from probing.core.inputs import Batch, batch_of, described, kind_of, like
from probing.models.calling import run
from probing.models.hooks import parts_of, watch
from probing.models.layers import Calls
from probing.models.loading import Model, module_of
from probing.models.model_cache import remembered
from probing.models.precision import AS_GIVEN, device_of, frozen_copy


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        path: what names it, as in `model.named_modules()`; `""` is the model. What a layer returns in parts has a row for
            each tensor, such as `lstm[0]`.
        kind: its class.
        calls: how often it runs in a pass; one that runs once can be read by its plain path.
        output: what its last call returns: a shape without the batch axis, or the name of another type. Of a part, whose
            first axis need not be that of the batch, the shape without the first.
        parameters: weights in it and in the layers inside it, each tensor counted once.
        weight_bytes: memory of these.
    """

    path: str
    kind: str
    calls: int
    output: tuple[int, ...] | str
    parameters: int
    weight_bytes: int


class SummaryError(ProbingError, RuntimeError):
    """A network does not take the input it was tried on."""


def summarize(model: Model, inputs: Batch | Mapping[str, Tensor]) -> list[LayerRow]:
    """Return a row for each layer, in the model's own order.

    The pass runs on a copy that shares the weights: the model is left as it is.

    Raises:
        InputError: for inputs that are neither one tensor nor named ones.
        SummaryError: if the model fails on these inputs.
    """
    model = module_of(model)
    inputs = batch_of(inputs)
    seen: dict[str, list[tuple[int, ...] | str]] = {}
    parts: dict[str, dict[str, None]] = {}

    def ended(path: str, output: object) -> None:
        if not isinstance(output, Tensor):
            seen.setdefault(path, []).append(type(output).__name__)
        for part, tensor in parts_of(output):
            parts.setdefault(path, {})[part] = None
            seen.setdefault(path + part, []).append(tuple(tensor.shape[1:]))

    given = AS_GIVEN.prepare(model, (), device_of(model), inputs)
    _pass(model, given.model.eval(), given.inputs(inputs), ended)
    found = []
    for path, module in model.named_modules():
        found.append(_row(path, module, seen.get(path, [])))
        inside = [part for part in parts.get(path, ()) if part]
        found += [LayerRow(path + p, f"of {type(module).__name__}", *_last(seen[path + p]), 0, 0) for p in inside]
    return found


def calls(model: nn.Module, one: Batch) -> Calls:
    """Return how often each layer returns a tensor with a row per example in a pass, in the order in which they end.

    Worked out once per model and input shape, on tensors without values where the model allows it.

    Args:
        model: in evaluation mode.
        one: an example, `[1, …]`.

    Raises:
        SummaryError: if the model fails on it.
    """
    key = ("calls", kind_of(one))
    return remembered(model, key, lambda: _calls(model, one))


def _calls(model: nn.Module, one: Batch) -> Calls:
    two = one[[0, 0]]  # a table that layers share has no row per example
    try:
        return _counted(model, frozen_copy(model).to("meta"), like(two, lambda t: torch.empty_like(t, device="meta")))
    except Exception:  # whatever a model can't do without values it may do with them
        prepared = AS_GIVEN.prepare(model, (), device_of(model), one)
        return _counted(model, prepared.model, prepared.inputs(two))


def _counted(model: nn.Module, clone: nn.Module, two: Batch) -> Calls:
    found: dict[str, int] = {}
    other: set[str] = set()

    def ended(path: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim and len(output) == len(two):
            found[path] = found.pop(path, 0) + 1
        else:
            other.add(path)

    _pass(model, clone, two, ended)
    return {path: count for path, count in found.items() if path and path not in other}


def _pass(model: nn.Module, clone: nn.Module, inputs: Batch, ended: Callable[[str, object], None]) -> None:
    try:
        with torch.no_grad(), watch(clone, ended):
            run(clone, inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise SummaryError(f"{type(model).__name__} fails on an input of {described(inputs)}: {reason}") from error


def _last(outputs: list[tuple[int, ...] | str]) -> tuple[int, tuple[int, ...] | str]:
    return len(outputs), outputs[-1]


def _row(path: str, module: nn.Module, outputs: list[tuple[int, ...] | str]) -> LayerRow:
    weights = list(module.parameters())
    return LayerRow(
        path=path,
        kind=type(module).__name__,
        calls=len(outputs),
        output=outputs[-1] if outputs else "",
        parameters=sum(w.numel() for w in weights),
        weight_bytes=sum(w.numel() * w.element_size() for w in weights),
    )
