"""LRP rules written as in their papers: one product z_ij at a time, in float64, on a layer given as a matrix."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Shares = tuple[Tensor, Tensor]
"""Relevance of the inputs [i], and of the bias []."""


def products(a: Tensor, w: Tensor) -> Tensor:
    """Return z_ij = a_i w_ji as [j, i], for one input [i] and weights [j, i]."""
    return w * a


def epsilon(a: Tensor, w: Tensor, b: Tensor, r: Tensor, size: float) -> Shares:
    """Bach et al. 2015, eq. 58."""
    z = products(a, w).sum(1) + b
    c = r / (z + size * sign(z))
    return (products(a, w) * c[:, None]).sum(0), (b * c).sum()


def gamma(a: Tensor, w: Tensor, b: Tensor, r: Tensor, size: float) -> Shares:
    """Products of the output's own sign count 1 + γ times."""
    result, biased = torch.zeros_like(a), torch.zeros(()).to(a)
    for j in range(len(w)):
        upward = float((w[j] * a).sum() + b[j]) >= 0
        grown = [grow(float(w[j, i] * a[i]), size, upward) for i in range(len(a))]
        own = grow(float(b[j]), size, upward)
        total = sum(grown) + own
        result += torch.tensor(grown, dtype=a.dtype) / total * r[j]
        biased += own / total * r[j]
    return result, biased


def grow(value: float, size: float, upward: bool) -> float:
    return value * (1 + size) if (value > 0) == upward and value != 0 else value


def alpha_beta(a: Tensor, w: Tensor, b: Tensor, r: Tensor, alpha: float, beta: float, fallback: bool) -> Shares:
    """Bach et al. 2015, eq. 60, with positive and negative products."""
    result, biased = torch.zeros_like(a), torch.zeros(()).to(a)
    for j in range(len(w)):
        z = [float(w[j, i] * a[i]) for i in range(len(a))]
        bias = float(b[j])
        plus = sum(v for v in [*z, bias] if v > 0)
        minus = sum(v for v in [*z, bias] if v < 0)
        up, down = (1.0, 0.0) if fallback and (plus == 0 or minus == 0) else (alpha, beta)

        def share(value: float, r_j: float = float(r[j]), s: tuple[float, ...] = (up, down, plus, minus)) -> float:
            return s[0] * value / s[2] * r_j if value > 0 else -s[1] * value / s[3] * r_j if value < 0 else 0.0

        result += torch.tensor([share(v) for v in z], dtype=a.dtype)
        biased += share(bias)
    return result, biased


def box(a: Tensor, w: Tensor, b: Tensor, r: Tensor, low: float, high: float) -> Shares:
    """Montavon et al. 2017, eq. 18."""
    terms = a * w - low * w.clamp(min=0) - high * w.clamp(max=0)
    return (terms / terms.sum(1, keepdim=True) * r[:, None]).sum(0), torch.zeros(()).to(a)


def squares(a: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Shares:
    """Montavon et al. 2017, eq. 12, with the bias as one more weight."""
    total = w.square().sum(1) + b.square()
    return (w.square() / total[:, None] * r[:, None]).sum(0), (b.square() / total * r).sum()


def flat(a: Tensor, w: Tensor, b: Tensor, r: Tensor, reached: Tensor) -> Shares:
    """Share equally among the inputs that an output reaches, `reached` [j, i]."""
    return (reached / reached.sum(1, keepdim=True) * r[:, None]).sum(0), torch.zeros(()).to(a)


def sign(z: Tensor) -> Tensor:
    return torch.where(z < 0, -1.0, 1.0).to(z)


def matrix(layer: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """Return a linear map on inputs of a shape as [outputs, inputs], by its answers to single ones."""
    size = torch.Size(shape).numel()
    ones = torch.eye(size, dtype=torch.float64).view(size, *shape)
    return layer(ones).flatten(1).T


def epsilon_net(net: nn.Sequential, x: Tensor, target: int, size: float) -> Tensor:
    """Explain a stack of dense layers and ReLUs by LRP-ε, layer by layer."""
    inputs = [x]
    for layer in net:
        inputs.append(layer(inputs[-1]))
    r = torch.zeros_like(inputs[-1])
    r[target] = inputs[-1][target]
    for layer, a in zip(reversed(net), reversed(inputs[:-1]), strict=True):
        if isinstance(layer, nn.Linear):
            r = epsilon(a, layer.weight.detach(), layer.bias.detach(), r, size)[0]
    return r
