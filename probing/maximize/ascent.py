"""How parameters are moved along the gradient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Move = Callable[[Sequence[Tensor]], None]
"""Changes parameters in place, given the gradient of the objective with respect to each."""


@runtime_checkable
class Ascent(Protocol):
    """A frozen dataclass that moves parameters uphill."""

    def begin(self, parameters: Sequence[Tensor]) -> Move:
        """Return what moves these parameters; it keeps what it has seen of their gradients."""
        ...


@dataclass(frozen=True)
class Plain:
    """`x + rate · gradient`."""

    rate: float = 1.0

    def begin(self, parameters: Sequence[Tensor]) -> Move:
        """Return gradient ascent."""

        def move(gradients: Sequence[Tensor]) -> None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient, alpha=self.rate)

        return move


@dataclass(frozen=True)
class Normalized:
    """A step of fixed length along each image's gradient, whatever its scale.

    Attributes:
        rate: root mean square of the change of a parameter in one step.
    """

    rate: float = 1.0

    def begin(self, parameters: Sequence[Tensor]) -> Move:
        """Return normalised gradient ascent."""

        def move(gradients: Sequence[Tensor]) -> None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                mean = _rows(gradient.square()).mean(1).sqrt()
                parameter.addcmul_(gradient, _like(self.rate / mean.clamp(min=1e-30), gradient))

        return move


@dataclass(frozen=True)
class Progress:
    """Each step is as long as a linear objective needs to rise by `gain`, up to a largest rate.

    `η = min(max_rate, gain / ‖g‖²)`, a policy of the toolbox of Yosinski et al. 2015.
    """

    gain: float
    max_rate: float = float("inf")

    def begin(self, parameters: Sequence[Tensor]) -> Move:
        """Return ascent by equal gains."""

        def move(gradients: Sequence[Tensor]) -> None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                square = _rows(gradient.square()).sum(1)
                rate = (self.gain / square.clamp(min=1e-30)).clamp(max=self.max_rate)
                parameter.addcmul_(gradient, _like(rate, gradient))

        return move


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015), without weight decay."""

    rate: float = 0.05

    def begin(self, parameters: Sequence[Tensor]) -> Move:
        """Return Adam, each parameter with moments of its own."""
        fused = all(p.device.type in {"cpu", "cuda"} for p in parameters)
        adam = torch.optim.Adam(list(parameters), lr=self.rate, maximize=True, fused=fused)

        def move(gradients: Sequence[Tensor]) -> None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            adam.step()
            adam.zero_grad()

        return move


def _rows(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1)


def _like(rates: Tensor, gradient: Tensor) -> Tensor:
    return rates.reshape(-1, *[1] * (gradient.ndim - 1))
