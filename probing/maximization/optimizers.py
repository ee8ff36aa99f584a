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
    """Adam (Kingma & Ba 2015, alg. 1), with moments for each image by itself.

    Its ε is relative to the root mean square of an image's gradients: an absolute one would drive
    parameters without a gradient by rounding errors, and images would depend on their batch-mates.

    Attributes:
        rate: length of a step of each parameter, while its gradient keeps its sign.
        decay: of the means of gradients and of their squares.
        epsilon: share of the root mean square below which gradients count less.
    """

    rate: float = 0.05
    decay: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-3

    def begin(self, parameters: Sequence[Tensor]) -> Move:
        """Return Adam, its moments at zero."""
        first = [torch.zeros_like(p) for p in parameters]
        second = [torch.zeros_like(p) for p in parameters]
        (beta1, beta2), count = self.decay, 0

        def move(gradients: Sequence[Tensor]) -> None:
            nonlocal count
            count += 1
            scale = (1 - beta2**count) ** 0.5 / (1 - beta1**count)
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m.lerp_(g, 1 - beta1)
                v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
                small = self.epsilon * _rows(v).mean(1).sqrt()
                p.addcdiv_(m, v.sqrt().add_(_like(small.clamp(min=1e-30), v)), value=self.rate * scale)

        return move


def _rows(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1)


def _like(rates: Tensor, gradient: Tensor) -> Tensor:
    return rates.reshape(-1, *[1] * (gradient.ndim - 1))
