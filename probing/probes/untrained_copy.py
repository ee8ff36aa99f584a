"""The same architecture at random weights, the control for what a layer owes to training."""

import torch
from torch import nn

from probing.core.errors import ProbingError
from probing.core.inputs import Batch
from probing.models.copies import own_copy, prove_own_weights, refuse_held_parts
from probing.models.precision import device_of


class UntrainedError(ProbingError, TypeError):
    """A network whose initial state cannot be made again."""


def untrained_copy(model: nn.Module, seed: int = 0, *, example: Batch | None = None) -> nn.Module:
    """Return a copy of a model with every weight drawn anew, in evaluation mode; the model and the global RNG stay.

    Modules that know their own initialisation use it. Weights that no module initialises (a class token, position
    embeddings) are drawn from a normal distribution of mean 0 and their own deviation.

    Args:
        model: that is copied.
        seed: of the draw.
        example: one input in model space, whose pass proves that the copy computes by its own weights. Without one, only
            the functions that the model keeps are looked through.

    Raises:
        UntrainedError: if there is nothing to draw.
        SharedWeightsError: if the copy computes by other weights than its own.
    """
    clone = own_copy(model).eval()
    if not any(True for _ in clone.parameters()):
        raise UntrainedError(f"{type(model).__name__} has no weights: there is nothing to draw anew.")
    if example is None:
        refuse_held_parts(clone, model)
    else:
        prove_own_weights(clone, model, example)
    clone = clone.cpu()  # where the generator that is seeded and restored draws
    generator: torch.Generator = torch.default_generator
    with torch.random.fork_rng(devices=()), torch.no_grad():
        generator.manual_seed(seed)
        drawn: set[int] = set()
        for module in clone.modules():
            # `_reset_parameters` is what nn.MultiheadAttention and nn.Transformer call theirs.
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
                drawn |= {id(p) for p in module.parameters(recurse=False)}
        for parameter in clone.parameters():
            if id(parameter) not in drawn:
                spread = parameter.std(correction=0) if parameter.numel() > 1 else parameter.abs()
                parameter.normal_().mul_(spread)
    return clone.to(device_of(model))
