"""What erasing and patching both do: scores of a pass with layers changed, and which axis of a layer holds its features."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from concepts.erasure.eraser import ErasureError
from probing.core.inputs import Batch
from probing.models.calling import run
from probing.models.geometry import channel_axis
from probing.models.gradients import frozen_parameters
from probing.models.hooks import Edit, edit
from probing.models.scores import Score


def output_with(model: nn.Module, batch: Batch, changes: Mapping[str, Edit]) -> object:
    """Return the model's output for a batch with some layers' outputs changed."""
    with torch.no_grad(), frozen_parameters(model), edit(model, changes):
        return run(model, batch)


def read(scores: Mapping[str, Score], output: object) -> Float[Tensor, "n targets"]:
    """Return all scores of an output, in float64 on the CPU."""
    return torch.stack([score.read(output).cpu().double() for score in scores.values()], 1)


def feature_axis(model: nn.Module, one: Batch, layer: str, axes: int) -> int:
    """Return which axis of a layer's output holds features, of as many axes as it has.

    Raises:
        ErasureError: for a layer of a series, of which it is not known whether channels come before time.
    """
    if axes == 3 and one.ndim == 3 and one.is_floating_point():
        raise ErasureError(
            f"layer {layer!r} returns three axes for a series, and which of them holds channels is not known here: name a "
            "layer behind its pooling."
        )
    last = one.ndim == 4 and channel_axis(model, one, layer) == -1
    return -1 if last or axes in {2, 3} else 1
