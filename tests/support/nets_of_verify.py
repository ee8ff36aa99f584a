"""Small networks that command lines of tests name."""

import time

import nets
from torch import Tensor

from probing.data.images import Preprocess
from probing.models.loading import LoadedModel

PLAIN = Preprocess(size=6, resize=None, mean=(0.5,), std=(0.5,), channels="grey")


class Slow(nets.ConvNet):
    """A network that takes its time, so that it can be interrupted."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(1.0)
        return super().forward(x)


class Stuck(nets.ConvNet):
    """A network that comes to no end with more than two examples at once."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            time.sleep(600)
        return super().forward(x)


def stuck() -> LoadedModel:
    """Return one that is still in a pass whenever it is interrupted."""
    return LoadedModel(nets.seeded(Stuck()), transform=PLAIN, classes=("a", "b", "c"))


def quick() -> LoadedModel:
    """Return a small network with preprocessing."""
    return LoadedModel(nets.seeded(nets.ConvNet()), transform=PLAIN, classes=("a", "b", "c"))


def slow() -> LoadedModel:
    """Return one that takes a second for each pass."""
    return LoadedModel(nets.seeded(Slow()), transform=PLAIN, classes=("a", "b", "c"))
