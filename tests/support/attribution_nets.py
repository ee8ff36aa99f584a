"""Functions whose attributions can be worked out by hand, as networks with one class, in double precision."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Formula(nn.Module):
    """One class whose logit is a formula of the input `[n, features]`, summed over what it returns."""

    def __init__(self, formula: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x).reshape(len(x), 1)


def lin() -> nn.Module:
    """s = w · x + 0.5, w = (4, 3, 2, 1)."""
    net = nn.Linear(4, 1).double().eval()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
        net.bias.fill_(0.5)
    return net


class ByHand(nn.Module):
    """w2 · ReLU(W1 x); at (1, 1) the pre-activation is (1, 2, -2), the score -1 and its gradient (-1, 0)."""

    def __init__(self, relu: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3, bias=False, dtype=torch.float64)
        self.relu = relu if relu is not None else nn.ReLU(inplace=True)
        self.second = nn.Linear(3, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[2.0, -1.0], [3.0, -1.0], [-1.0, -1.0]]))
            self.second.weight.copy_(torch.tensor([[1.0, -1.0, 1.0]]))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.relu(self.first(x)))


class TwoMaps(nn.Module):
    """Two maps, here the input's channels, averaged over all places; the class weighs them by (1, -1).

    The layer `maps` returns them; `relu` may follow in place, which changes nothing where they are positive.
    """

    def __init__(self, *, relu: nn.Module | None = None) -> None:
        super().__init__()
        self.maps = nn.Conv2d(2, 2, 1, bias=False)
        self.relu = relu or nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.maps.weight.copy_(torch.eye(2)[:, :, None, None])
            self.head.weight.copy_(torch.tensor([[1.0, -1.0]]))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.relu(self.maps(x))).flatten(1))


TWO_MAPS = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[4.0, 3.0], [2.0, 1.0]]]], dtype=torch.float64)


class Smooth(nn.Module):
    """conv → Softplus → conv → Softplus → flatten → linear, with no kink anywhere."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Softplus(), nn.Conv2d(3, 2, 3), nn.Softplus())
        self.head = nn.Linear(2 * 4 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class Homogeneous(nn.Module):
    """A ReLU and max-pooling network without biases: f(a x) = a f(x) for a above zero."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 3, 2, bias=False),
        )
        self.head = nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.body(x)).flatten(1))


class TokenNet(nn.Module):
    """A patch convolution, class tokens, a mixing layer, and a head that reads the first token or the patches' mean."""

    def __init__(self, *, prefixes: int = 1, pooled: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, stride=2)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)
        self.prefix = nn.Parameter(torch.zeros(1, prefixes, 8))
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], dim=1)
        normed = self.norm(tokens)
        tokens = self.last(tokens + self.mix(normed, normed, normed, need_weights=False)[0])
        return self.head(tokens[:, self.prefix.shape[1] :].mean(1) if self.pooled else tokens[:, 0])
