"""What a network is made of: a row per layer, from one pass over a private copy."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probing.errors import ProbingError
from probing.precision import frozen_copy


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        path: what names it, as in `model.named_modules()`; `""` is the model.
        kind: its class.
        calls: how often it runs in a pass; one that runs once can be read by its plain path.
        output: what its last call returns: a shape without the batch axis, or the name of another type.
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


def summarize(model: nn.Module, inputs: Tensor) -> list[LayerRow]:
    """Return a row for each layer, in the model's own order.

    The pass runs on a copy that shares the weights: the model is left as it is.

    Raises:
        SummaryError: if the model fails on these inputs.
    """
    clone = frozen_copy(model).eval()
    seen: dict[str, list[tuple[int, ...] | str]] = {}
    for path, module in clone.named_modules():
        # The copy's own attribute hides the class's method; a hook would have to be taken off again.
        module.__dict__["forward"] = _recording(module.forward, seen.setdefault(path, []))
    try:
        with torch.no_grad():
            clone(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape, reason = tuple(inputs.shape), " ".join(str(error).split())
        raise SummaryError(
            f"{type(model).__name__} fails on an input of shape {shape}: {reason}"
        ) from error
    return [_row(path, module, seen[path]) for path, module in model.named_modules()]


def _recording(
    forward: Callable[..., object], outputs: list[tuple[int, ...] | str]
) -> Callable[..., object]:
    def run(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        outputs.append(
            tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
        )
        return output

    return run


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
