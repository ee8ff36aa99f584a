"""Concept editing: move a layer along a concept's direction and see what the score does."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probing.core.errors import ArgumentError
from probing.models.geometry import channel_axis
from probing.models.gradients import frozen_parameters
from probing.models.hooks import edit
from probing.models.scores import Score


def edit_along(
    score: Score,
    layer: str,
    direction: Float[Tensor, "*features"],
    inputs: Float[Tensor, "n ..."],
    steps: Float[Tensor, " steps"],
) -> Float[Tensor, "steps n"]:
    """Return how much each input's score changes when `step · direction` is added to a layer's output.

    Near 0 the change is the step times the sensitivity that TCAV counts the sign of; farther out it shows how far that
    first order carries.

    Args:
        score: what changes.
        layer: a dotted path.
        direction: a CAV or a difference of means: as large as the layer's output of one input, or one number per
            channel (of a map) or feature (of tokens), which is then added at every position.
        inputs: in model space.
        steps: in units of the direction's length.

    Raises:
        ValueError: if the direction does not fit the layer's output.
    """
    score = score.named(inputs)
    axis = (channel_axis(score.model, inputs, layer) if inputs.ndim == 4 else None) or 1
    with torch.no_grad(), frozen_parameters(score.model):
        before = score(inputs)
        changes = []
        for step in steps.tolist():

            def moved(module: nn.Module, x: Tensor, y: Tensor, step: float = step) -> Tensor:
                return y + step * _broadcast(direction.to(y), y, layer, axis)

            with edit(score.model, {layer: moved}):
                changes.append(score(inputs) - before)
    return torch.stack(changes)


def _broadcast(direction: Tensor, output: Tensor, layer: str, axis: int) -> Tensor:
    """Return the direction in a shape that adds to the output of one input; maps have channels along an axis."""
    shape = output.shape[1:]
    if direction.numel() == shape.numel():
        return direction.reshape(shape)
    if direction.ndim == 1 and len(direction) == shape[0] and len(shape) > 2 and axis == 1:
        return direction.reshape(-1, *[1] * (len(shape) - 1))
    if direction.ndim == 1 and len(direction) == shape[-1]:
        return direction
    raise ArgumentError(
        f"a direction of shape {tuple(direction.shape)} does not fit layer {layer!r}, which returns {tuple(shape)} per "
        "input: give as many numbers as that, or one per channel."
    )
