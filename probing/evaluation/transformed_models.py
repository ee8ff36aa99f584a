"""Networks made from a network, of which axioms say what their maps must be."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from probing.evaluation.base import EvaluationError
from probing.models.scores import class_scores


class Narrow(nn.Module):
    """The network, reading only the first columns of its input."""

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model = model
        self.width = width

    def forward(self, x: Tensor) -> object:
        return self.model(x[..., : self.width])


class Combined(nn.Module):
    """The network with a last layer that weighs two of its classes into a single score."""

    def __init__(
        self,
        model: nn.Module,
        output: str | int | None,
        count: int,
        classes: tuple[int, int],
        weights: tuple[float, float],
    ) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.weigh = nn.Linear(count, 1, bias=False)
        with torch.no_grad():
            self.weigh.weight.zero_()
            for of, weight in zip(classes, weights, strict=True):
                self.weigh.weight[0, of] += weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.weigh(class_scores(self.model(x), self.output))
        return found


class Mirrored(nn.Module):
    """The network's scores of the input and of its mirror image, added."""

    def __init__(self, model: nn.Module, output: str | int | None) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        one, other = (class_scores(self.model(v), self.output) for v in (x, x.flip(-1)))
        return one + other


class Shifted(nn.Module):
    """The network after a constant was taken off its input."""

    def __init__(self, model: nn.Module, amount: float) -> None:
        super().__init__()
        self.model = model
        self.amount = amount

    def forward(self, x: Tensor) -> object:
        return self.model(x - self.amount)


def twins_of(model: nn.Module, inputs: Tensor) -> Iterator[nn.Module]:
    """Yield networks that compute the same: a pair of layers, without and with rectifiers between, stands before it."""
    for gate, share in ((nn.Identity(), 0.5), (nn.ReLU(), 1.0)):
        up, down = _pair(inputs, share)
        yield nn.Sequential(up, gate, down, model).eval()


def _pair(inputs: Tensor, share: float) -> tuple[nn.Module, nn.Module]:
    """Return layers that double channels, the second half with the sign changed, and subtract the halves."""
    if inputs.ndim not in {2, 4}:
        raise EvaluationError(
            f"twins are made for vectors and images, got inputs of shape {tuple(inputs.shape)}: give some."
        )
    width = inputs.shape[1]
    one = torch.eye(width)
    weights = torch.cat([one, -one]), share * torch.cat([one, -one], 1)
    layers: list[nn.Module] = []
    for weight in weights:
        out, into = weight.shape
        layer = nn.Linear(into, out, bias=False) if inputs.ndim == 2 else nn.Conv2d(into, out, 1, bias=False)
        with torch.no_grad():
            layer.weight.copy_(weight.view_as(layer.weight))
        layers.append(layer.to(inputs))
    return layers[0], layers[1]
