"""Gradients of a score: with respect to the input, and to the outputs of layers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probing.core.errors import ProbingError
from probing.models.hooks import capture
from probing.models.layers import several
from probing.models.scores import Score, refuse_training


class ZeroPathError(ProbingError, RuntimeError):
    """A score does not depend on what it is differentiated by."""


def input_gradient(
    score: Score, inputs: Float[Tensor, "n *shape"], rows: Int[Tensor, " n"] | None = None
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n *shape"]]:
    """Return each input's score and the score's gradient there, in score units per unit of input.

    Simonyan et al. 2013, sec. 3. Parameters get no gradients and are left as they are.

    Raises:
        ZeroPathError: if the score does not depend on the inputs.
    """
    with _graph_of(score.model):
        x = inputs.detach().clone().requires_grad_()
        value = score(x.clone(), rows)  # a copy, for models that begin in place
        if not value.requires_grad:
            raise ZeroPathError(_no_path(["the input"]))
        (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
    if gradient is None:
        raise ZeroPathError(_no_path(["the input"]))
    return value.detach(), gradient


def layer_gradients(
    score: Score, inputs: Float[Tensor, "n *shape"], layers: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each layer's output and the score's gradient there.

    The gradient is in score units per unit of activation. Grad-CAM (Selvaraju et al. 2017, eq. 1)
    and TCAV (Kim et al. 2018, sec. 3.3) both start from it.

    Args:
        score: differentiated; its target has one class, one per input, or none for the top class of each.
        inputs: in model space.
        layers: dotted paths; each must run once per forward pass, or be addressed as `"name:call"`.

    Raises:
        LayerNotFoundError: if a path names no submodule.
        LayerCallError: if a layer runs twice, or returns no tensor.
        ModelModeError: if the model, or a part of it, is in training mode.
        ZeroPathError: if the score does not depend on a layer.

    Example:
        >>> activation, gradient = layer_gradients(Score(net, 3), images, "layer4")["layer4"]
    """
    refuse_training(score.model)
    score, layers = score.named(inputs), several(layers)
    with _graph_of(score.model):
        with capture(score.model, layers, graph=True, rows=len(inputs)) as outputs:
            output = score.model(inputs.detach().clone())
        [gradients] = score_gradients([score], output, [outputs[layer] for layer in layers], layers)
    return {layer: (outputs[layer].detach(), g) for layer, g in zip(layers, gradients, strict=True)}


def score_gradients(
    scores: Sequence[Score], output: object, at: Sequence[Tensor], names: Sequence[str]
) -> list[tuple[Tensor, ...]]:
    """Return, per score, its gradients at tensors of one forward pass that kept its graph."""
    found = []
    for i, score in enumerate(scores):
        total = score.read(output).sum()
        if not total.requires_grad:
            raise ZeroPathError(_no_path(names))
        more = i + 1 < len(scores)
        gradients = torch.autograd.grad(total, at, retain_graph=more, allow_unused=True)
        if unused := [name for name, g in zip(names, gradients, strict=True) if g is None]:
            raise ZeroPathError(_no_path(unused))
        found.append(gradients)
    return found


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Switch off weight gradients inside the block: with them, graphs would start at the input."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def _graph_of(model: nn.Module) -> Iterator[None]:
    """Record a graph whatever mode the caller is in, but none of the weights."""
    with frozen_parameters(model), torch.inference_mode(False), torch.enable_grad():
        yield


def _no_path(names: Sequence[str]) -> str:
    return f"the score does not depend on {list(names)}: no path leads from there to the output."
