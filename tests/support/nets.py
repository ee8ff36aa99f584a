"""Tiny networks whose answers can be worked out by hand; all in evaluation mode."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from probing.data.images import Preprocess
from probing.models.loading import LoadedModel


def seeded(net: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a network's parameters from a seed, leave the global random state alone, and set evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return net.eval()


def images(n: int = 4, channels: int = 1, size: int = 6, seed: int = 0) -> Tensor:
    """Return [n, channels, size, size] standard normal pixels."""
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


class ConvNet(nn.Module):
    """conv → ReLU (in place by default) → conv → ReLU → spatial mean → linear."""

    def __init__(self, *, inplace: bool = True, classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(inplace=inplace),
            nn.Conv2d(4, 5, 3, padding=1),
            nn.ReLU(inplace=inplace),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


class HandNet(nn.Module):
    """Two pixels' features with weights set by hand.

    `features` copies the input's two channels and adds their negatives; `relu` (in place) keeps the positive parts;
    `pool` takes the spatial mean; `head` scores class 0 by [1, 0, −1, 0] and class 1 by [0, 2, 0, −2]. So class 0
    rises with the mean of channel 0 and class 1 with twice the mean of channel 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(2, 4, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            signs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
            self.features.weight.copy_(signs[:, :, None, None])
            self.head.weight.copy_(torch.tensor([[1.0, 0.0, -1.0, 0.0], [0.0, 2.0, 0.0, -2.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.relu(self.features(x))).flatten(1))


class SharedReluNet(nn.Module):
    """One ReLU module that runs twice in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.relu = nn.ReLU()
        self.second = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))))


class LinearTailNet(nn.Module):
    """After `body` all is linear: every image has the same gradient there, the class's row of `head` over 36."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.body(x)).flatten(1))


class BatchNormNet(nn.Module):
    """conv → BatchNorm with statistics that are not the identity → ReLU in place → mean → linear, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)
        assert self.bn1.running_mean is not None
        assert self.bn1.running_var is not None
        self.bn1.running_mean.copy_(torch.tensor([0.5, -0.25, 0.0, 1.0]))
        self.bn1.running_var.copy_(torch.tensor([1.0, 0.25, 4.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.relu(self.bn1(self.conv1(x))).mean((2, 3))))


class AsksForTensors(BatchNormNet):
    """On real data, though not when it is traced, what lies between convolution and norm is read once more."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv1(x)
        normed = self.bn1(maps)
        if isinstance(x, Tensor):
            type(self).passes += 1
            normed = normed + 2 * maps
        return self.head(self.relu(normed).mean((2, 3)))


class TupleNet(nn.Module):
    """A layer, `split`, that returns a tuple, in a network that returns a tensor."""

    class Split(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:, :2], x[:, 2:]

    def __init__(self) -> None:
        super().__init__()
        self.split = self.Split()
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.split(x)
        return self.head(left * right)


class TwoHeadNet(nn.Module):
    """A network that itself returns a tuple: logits and features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).relu()
        return self.head(features), features


def red_net() -> LoadedModel:
    """A network for pictures of 8 pixels a side: class "red" is the mean of red, class "other" that of the rest."""
    conv, head = nn.Conv2d(3, 3, 1, bias=False), nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(3)[:, :, None, None])
        head.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]))
    layers = OrderedDict(conv=conv, relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=head)
    transform = Preprocess(size=8, resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return LoadedModel(nn.Sequential(layers), transform, classes=("red", "other"))
