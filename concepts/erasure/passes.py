"""What erasing and patching both do: scores of passes with layers changed, and a layer's rows and axis of features."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from concepts.erasure.eraser import ErasureError
from probing.core.inputs import Batch
from probing.data.examples import ExampleSet
from probing.models.calling import run
from probing.models.geometry import units_axis
from probing.models.gradients import frozen_parameters
from probing.models.hooks import Edit, capture, edit
from probing.models.precision import device_of
from probing.models.scores import Score
from probing.store.store import ActivationStore

ROWS = 32
"""Examples in one pass."""


def output_with(model: nn.Module, batch: Batch, changes: Mapping[str, Edit]) -> object:
    """Return the model's output for a batch with some layers' outputs changed."""
    with torch.no_grad(), frozen_parameters(model), edit(model, changes):
        return run(model, batch)


def read(scores: Mapping[str, Score], output: object) -> Float[Tensor, "n targets"]:
    """Return all scores of an output, in float64 on the CPU."""
    return torch.stack([score.read(output).cpu().double() for score in scores.values()], 1)


def outputs(
    model: nn.Module, scores: Mapping[str, Score], examples: ExampleSet, changes: Mapping[str, Edit]
) -> Float[Tensor, "n targets"]:
    """Return all scores of examples with some layers' outputs changed, in float64 on the CPU."""
    found = []
    for start in range(0, len(examples), ROWS):
        batch = examples.load(range(start, min(start + ROWS, len(examples)))).to(device_of(model))
        found.append(read(scores, output_with(model, batch, changes)))
    return torch.cat(found)


def activations(model: nn.Module, layer: str, batch: Batch) -> Float[Tensor, "n ..."]:
    """Return what a layer makes of a batch."""
    with torch.no_grad(), capture(model, [layer], rows=len(batch)) as kept:
        run(model, batch)
    return kept[layer]


def mean_rows(
    store: ActivationStore, model: nn.Module, layer: str, examples: ExampleSet
) -> tuple[Float[Tensor, "n m"], int]:
    """Return means over places of a layer's output, in float64 on the CPU, and the axis of its features.

    Raises:
        ErasureError: as `feature_axis`.
    """
    one = examples.load([0]).to(device_of(model))
    axis = feature_axis(model, one, layer, activations(model, layer, one).ndim)
    found = store.activations(model, [layer], examples, pool="mean")
    return next(iter(found.values())).cpu().double(), axis


def feature_axis(model: nn.Module, one: Batch, layer: str, axes: int) -> int:
    """Return which axis of a layer's output holds features, of as many axes as it has.

    Raises:
        ErasureError: for a layer whose axes don't tell.
    """
    known, axis = units_axis(model, one, layer)
    if known == axes and axis is None:
        raise ErasureError(
            f"layer {layer!r} returns {axes} axes, and which of them holds channels can't be told: name a layer behind its "
            "pooling."
        )
    return axis if known == axes and axis is not None else -1 if axes in {2, 3} else 1
