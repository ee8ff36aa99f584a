"""Eigen-CAM: the first principal component of a layer's maps, which no class is asked for."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probing.attribution.base import Demand, Family
from probing.attribution.cam.layer_map import LayerMap, LayerReading, Weighed


@dataclass(frozen=True)
class EigenCAM(LayerMap):
    """A layer's places projected on the first right singular vector of its maps (Muhammad & Yeasin 2020).

    It shows where the layer's strongest pattern lies and is the same for every class: the score has no part in it. The
    matrix `[places, channels]` is not centred, as in the paper.

    A singular vector has no sign of its own. Here it is the one with which the map adds up to more than zero; of maps
    without negative values, as after a ReLU, that makes every value of the map non-negative. How far to trust it, in
    `diagnostics`: `one_sided`, the size of the map's sum as a share of its absolute sum, near 0 where the sign is arbitrary;
    `first_share`, the squared first singular value as a share of all; `lead`, by what share the second is smaller than
    the first, near 0 where the vector is arbitrary.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (2,)
    demands: ClassVar[tuple[Demand, ...]] = ("layer",)

    def _explain(self, reading: LayerReading) -> Weighed:
        value, output = reading.outputs()
        maps = reading.maps(output)
        rows = maps.flatten(2).transpose(1, 2).double()
        left, sizes, _ = torch.linalg.svd(rows, full_matrices=False)
        projected = left[:, :, 0] * sizes[:, :1]
        total = projected.sum(1, keepdim=True)
        projected = torch.where(total < 0, -projected, projected)
        second = sizes[:, 1] if sizes.shape[1] > 1 else torch.zeros_like(sizes[:, 0])
        diagnostics = {
            "one_sided": _share(total[:, 0].abs(), projected.abs().sum(1)),
            "first_share": _share(sizes[:, 0].square(), sizes.square().sum(1)),
            "lead": _share(sizes[:, 0] - second, sizes[:, 0]),
        }
        found = projected.reshape(len(maps), *maps.shape[2:]).to(maps)
        return Weighed(value, found, {k: d.to(maps) for k, d in diagnostics.items()}, {"signed": False})


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return a share; none of nothing, as where a map is zero everywhere."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1), torch.nan)
