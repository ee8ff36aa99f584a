"""Small networks that command lines of tests name."""

import time

import nets
from torch import Tensor

from probing.images import Preprocess
from probing.models import LoadedModel

PLAIN = Preprocess(size=6, resize=None, mean=(0.5,), std=(0.5,), channels="grey")


class Slow(nets.ConvNet):
    """A network that takes its time, so that it can be interrupted."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(1.0)
        return super().forward(x)


def quick() -> LoadedModel:
    """Return a small network with preprocessing."""
    return LoadedModel(nets.seeded(nets.ConvNet()), transform=PLAIN, classes=("a", "b", "c"))


def slow() -> LoadedModel:
    """Return one that takes a second for each pass."""
    return LoadedModel(nets.seeded(Slow()), transform=PLAIN, classes=("a", "b", "c"))
