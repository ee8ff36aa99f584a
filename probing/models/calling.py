"""Calling a model on a batch, whatever that is made of."""

from inspect import signature
from itertools import count

from torch import Tensor, nn

from probing.core.inputs import Batch, InputError, Inputs
from probing.models.hooks import Edit, edit
from probing.models.layers import split_call


def run(model: nn.Module, batch: Batch) -> object:
    """Return what a model makes of a batch: named tensors are given by name, and outputs of layers put in their places.

    Raises:
        InputError: for a model that has no arguments of these names, or others that must be given.
    """
    if isinstance(batch, Tensor):
        return model(batch)
    named = dict(batch.tensors)
    only = [named.pop("")] if "" in named else []  # token ids that came as one tensor
    if named:
        _refuse_other_names(model, batch)
    if not batch.put:
        return model(*only, **named)
    with edit(model, dict(_put(layer, tensor) for layer, tensor in batch.put.items())):
        return model(*only, **named)


def _refuse_other_names(model: nn.Module, batch: Inputs) -> None:
    try:
        taken = signature(model.forward)
    except (TypeError, ValueError):  # written in another language
        return
    try:
        taken.bind(**batch.tensors)
    except TypeError as error:
        raise InputError(
            f"inputs named {list(batch.tensors)} don't fit {type(model).__name__}, whose forward takes "
            f"{list(taken.parameters)} ({error}): give inputs by these names, or a single one as a tensor."
        ) from error


def _put(layer: str, tensor: Tensor) -> tuple[str, Edit]:
    """Return the edit that puts a tensor in the place of what a layer, or one call of it, returns."""
    path, wanted = split_call(layer)
    calls = count()
    return path, lambda module, before, output: tensor if next(calls) == wanted or wanted is None else output
