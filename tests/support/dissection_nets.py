"""Networks whose units are given, and network dissection written out slowly."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from concepts.data.segmentation import Scenes, TensorLabels, Vocabulary
from probing.data.examples import TensorExamples
from probing.models.geometry import Geometry


def given_units(units: int) -> nn.Module:
    """Return a network whose layer `units` hands on its input: the images' channels are the units' maps."""
    net = nn.Sequential(
        OrderedDict(units=nn.Identity(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(units, 2))
    )
    return net.eval()


def scenes_of(
    maps: Tensor,
    planes: Tensor,
    vocabulary: Vocabulary,
    whole: Sequence[Sequence[int]] = (),
    size: tuple[int, int] | None = None,
) -> Scenes:
    """Return units' maps as images, with labels on a grid of the labels' own size if no other is named."""
    own = (planes.shape[2], planes.shape[3])
    return Scenes(TensorExamples(maps), TensorLabels(planes, vocabulary, whole), size or own, frame="input")


def named(count: int, kind: str = "object") -> Vocabulary:
    return Vocabulary(tuple(f"c{i}" for i in range(count)), (kind,) * count)


def slow_upsampled(maps: Tensor, geometry: Geometry, size: tuple[int, int]) -> np.ndarray:
    """Return maps between the centres of cells, place by place, constant outside the outermost ones."""
    units, height, width = maps.shape
    out = np.zeros((units, *size))
    for i in range(size[0]):
        for j in range(size[1]):
            y = ((i + 0.5) * geometry.size[0] / size[0] - 0.5 - geometry.start[0]) / geometry.stride[0]
            x = ((j + 0.5) * geometry.size[1] / size[1] - 0.5 - geometry.start[1]) / geometry.stride[1]
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            corners = maps[:, [top, top, bottom, bottom], [left, right, left, right]].double().numpy()
            dy, dx = y - top, x - left
            weights = np.array([(1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx])
            out[:, i, j] = corners @ weights
    return out


def slow_counts(masks: Sequence[np.ndarray], scenes: Scenes, union: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return shared cells, units' areas by concept, and labels' areas, image by image and label by label."""
    words = scenes.vocabulary
    units, concepts = len(masks[0]), len(words)
    shared, area = np.zeros((units, concepts), dtype=int), np.zeros((units, concepts), dtype=int)
    label_area = np.zeros(concepts, dtype=int)
    for index, mask in enumerate(masks):
        found = scenes.labels(index)
        regions = [(found.planes == c + 1).any(0) | (c + 1 in found.whole) for c in range(concepts)]
        for c in range(concepts):
            label_area[c] += regions[c].sum()
            alike = [d for d in range(concepts) if words.categories[d] == words.categories[c]]
            for u in range(units):
                shared[u, c] += (mask[u] & regions[c]).sum()
                counts = {
                    "all": True,
                    "category": any(regions[d].any() for d in alike),
                    "touched": any((regions[d] & mask[u]).any() for d in alike),
                }[union]
                area[u, c] += mask[u].sum() if counts else 0
    return shared, area, label_area


def blobs(n: int, units: int, size: int, seed: int) -> Tensor:
    """Return smooth random maps, as convolutional units have."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, units, size // 4 + 2, size // 4 + 2, generator=generator)
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
