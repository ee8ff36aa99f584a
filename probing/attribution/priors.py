"""Attribution priors: training losses that say what explanations should look like (Erion et al. 2021)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probing.core.inputs import InputError
from probing.models.scores import Score

Prior = Callable[[Tensor], Tensor]
"""Attributions `[n, …]` of a batch → a loss."""


def attribution_prior(
    score: Score,
    inputs: Float[Tensor, "n *shape"],
    background: Float[Tensor, "m *as_inputs"],
    prior: Literal["total_variation", "gini"] | Prior,
    *,
    seed: int,
) -> Float[Tensor, ""]:
    """Return a loss on the expected gradients of a batch, differentiable by the model's parameters.

    One reference and one point on its path are drawn for each input. The model may be in training mode: it runs
    in evaluation mode here and is set back, so that BatchNorm's averages see no point between images.

    Args:
        score: of the model in training.
        inputs: a batch, in model space.
        background: references; the input itself is not drawn where there is another one.
        prior: `total_variation` of images (smooth maps), `gini` (few features; its negative is the loss), or
            a function of the attributions.
        seed: of the draws; give each training step another one.

    Example:
        >>> loss = cross_entropy(net(x), y) + 0.1 * attribution_prior(Score(net, y), x, x, "gini", seed=step)
    """
    if background.shape[1:] != inputs.shape[1:] or not len(background):
        raise InputError(
            f"the background has shape {tuple(background.shape)}, inputs {tuple(inputs.shape)}: "
            "all axes but the first must be the same, and there must be a row."
        )
    if isinstance(prior, str):
        prior = {"total_variation": total_variation, "gini": sparsity}[prior]
    generator = torch.Generator().manual_seed(seed)
    other = torch.stack([~(background == x).flatten(1).all(1) for x in inputs]).double()
    odds = torch.where(other.any(1, keepdim=True), other, torch.ones_like(other)).cpu()
    references = background[torch.multinomial(odds, 1, generator=generator)[:, 0].to(background.device)]
    alphas = torch.rand(len(inputs), generator=generator).to(inputs)
    way = (inputs - references).detach()
    points = references + alphas.reshape(-1, *[1] * (inputs.ndim - 1)) * way
    points = points.detach().requires_grad_()
    with _evaluating(score.model):
        value = score.named(inputs)(points)
        (slope,) = torch.autograd.grad(value.sum(), points, create_graph=True)
    return prior(way * slope)


def total_variation(values: Float[Tensor, "n *shape"]) -> Float[Tensor, ""]:
    """Return the absolute differences of neighbours along the last two axes, added up, as a mean over examples."""
    rows = values.diff(dim=-2).abs().flatten(1).sum(1)
    return (rows + values.diff(dim=-1).abs().flatten(1).sum(1)).mean()


def sparsity(values: Float[Tensor, "n *shape"]) -> Float[Tensor, ""]:
    """Return minus the Gini coefficient of the features' mean absolute attributions: -1 is one feature alone."""
    return -gini(values.abs().mean(0).flatten())


def gini(values: Float[Tensor, " features"]) -> Float[Tensor, ""]:
    """Return the Gini coefficient of values that are not negative: 0 if all are equal, 1 - 1/p for one of p."""
    p = len(values)
    ranks = 2 * torch.arange(1, p + 1, device=values.device, dtype=values.dtype) - p - 1
    return (ranks * values.sort().values).sum() / (p * values.sum()).clamp(min=1e-12)


def masked_energy(values: Float[Tensor, "n *shape"], mask: Float[Tensor, "*mask"]) -> Float[Tensor, ""]:
    """Return the squared attribution where a mask is one: right for the right reasons (Ross et al. 2017, eq. 1)."""
    return (values * mask).square().flatten(1).sum(1).mean()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
