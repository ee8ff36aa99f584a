"""The linear maps that LRP rules are written for: convolutions of any dimension, and dense layers."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)


@runtime_checkable
class LinearMap(Protocol):
    """A layer's geometry, apart from its weights, so that a rule can run it with weights of its own."""

    def __call__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output."""
        ...

    def transpose(self, shares: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """Return `Wᵀ shares`, of the shape of the inputs `like`."""
        ...

    def by_unit(self, shares: Tensor) -> Float[Tensor, "rows units"]:
        """Return the sum over positions."""
        ...

    def scaled(self, weight: Tensor, scale: Float[Tensor, " units"]) -> Tensor:
        """Return the weights of the layer followed by a factor per unit."""
        ...


@dataclass(frozen=True)
class Convolution:
    """A convolution, or its transpose, in one to three dimensions."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int

    def __call__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(inputs, weight, bias, *self._geometry)

    def transpose(self, shares: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        wanted = [True, False, False]  # no gradient of the weights or the bias
        backward = torch.ops.aten.convolution_backward
        result: Tensor = backward(shares, like, weight, None, *self._geometry, wanted)[0]
        return result

    def by_unit(self, shares: Tensor) -> Float[Tensor, "rows units"]:
        return shares.sum(tuple(range(2, shares.ndim)))

    def scaled(self, weight: Tensor, scale: Float[Tensor, " units"]) -> Tensor:
        if not self.transposed:
            return weight * scale.view(-1, *[1] * (weight.ndim - 1))
        groups = weight.view(self.groups, -1, *weight.shape[1:])  # [groups, in, units of the group, …]
        factors = scale.view(self.groups, 1, -1, *[1] * (weight.ndim - 2))
        return (groups * factors).view_as(weight)

    @property
    def _geometry(self) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
        inner = (self.stride, self.padding, self.dilation)
        return *inner, self.transposed, self.output_padding, self.groups


@dataclass(frozen=True)
class Dense:
    """`x Wᵀ + b` on rows."""

    def __call__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(inputs, weight, bias)

    def transpose(self, shares: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        return (shares @ weight).view_as(like)

    def by_unit(self, shares: Tensor) -> Float[Tensor, "rows units"]:
        return shares

    def scaled(self, weight: Tensor, scale: Float[Tensor, " units"]) -> Tensor:
        return weight * scale.unsqueeze(1)
