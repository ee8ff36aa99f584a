"""Which layer a class activation map is read at."""

import math
from collections import Counter
from collections.abc import Sequence

from torch import nn

from probing.geometry import MOST_PREFIXES, Ran, RefusedError
from probing.layers import resolve


def cam_layer(ran: Sequence[Ran], model: nn.Module) -> tuple[str, tuple[str, ...]]:
    """Return the layer that a class activation map is read at, and token layers that may serve instead.

    That is the last layer whose map has the resolution of the last convolution, its non-linearity and
    residual sum included. Where layers of tokens at that resolution follow, as in a vision transformer,
    they are named too, last first: the caller takes the first one whose patches the score depends on.

    Raises:
        RefusedError: if no convolution returns a map.
    """
    calls = Counter(r.layer for r in ran)
    maps = [r for r in ran if r.layer and calls[r.layer] == 1]
    convolutions = [
        i
        for i, r in enumerate(maps)
        if isinstance(resolve(model, r.layer), nn.Conv2d)
        and len(r.shape) == 4
        and math.prod(r.shape[2:]) > 1
    ]
    if not convolutions:
        raise RefusedError(
            f"{type(model).__name__} has no convolution that returns a map and runs once: name a layer."
        )
    last = maps[convolutions[-1]]
    after = maps[convolutions[-1] :]
    same = [r.layer for r in after if len(r.shape) == 4 and r.shape[2:] == last.shape[2:]]
    cells, width = math.prod(last.shape[2:]), last.shape[1]
    tokens = [
        r.layer
        for r in after
        if len(r.shape) == 3 and r.shape[2] == width and 0 <= r.shape[1] - cells <= MOST_PREFIXES
    ]
    return same[-1], tuple(reversed(tokens))
