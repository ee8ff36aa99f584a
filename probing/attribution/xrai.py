"""XRAI: regions of an image by how densely integrated gradients lie in them."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from probing.attribution.base import Attribution, Demand, Family, LocalMethod
from probing.attribution.baselines import Extremes
from probing.attribution.path import IntegratedGradients
from probing.attribution.perturbation.superpixels import Segmentation, Slic
from probing.core.inputs import InputError
from probing.models.scores import Score
from probing.results.result import describe

_DARK_AND_BRIGHT = IntegratedGradients(Extremes())


@dataclass(frozen=True)
class XRAI(LocalMethod):
    """Regions by how much each of their pixels contributes, from integrated gradients (Kapishnikov et al. 2019).

    The input is cut into regions several times, coarse and fine. Of all regions the one whose pixels have the largest mean
    of integrated gradients is taken first; then the one whose pixels that are not yet taken have; until all are. Each pixel
    gets the mean of what was taken with it, in score units per pixel, shared evenly among its channels. So the map adds up
    to what integrated gradients add up to: the score minus the mean of the baselines' scores, up to `completeness_gap`.

    In the diagnostics: `ig`, the map that regions are ranked by; `rank`, of the map's shape, as which piece a place was
    taken, from 0; and those of integrated gradients. Here regions are superpixels of this suite (by default k-means over
    colour and place); they are not widened past their borders, and none is left out for its size.

    Attributes:
        path: the integrated gradients. By default of two baselines, all that is darkest and all that is brightest in the
            input: black and white, `Constant.black` and `.white`, have other values for each model.
        cuts: ways to cut the input into regions; each labels every place, all channels together.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 8)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients",)

    path: IntegratedGradients = _DARK_AND_BRIGHT
    cuts: tuple[Segmentation, ...] = (Slic(15), Slic(40), Slic(100), Slic(250))

    def __post_init__(self) -> None:
        if not self.cuts:
            raise InputError("XRAI needs at least one way to cut the input, such as cuts=(Slic(50),).")

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            InputError: for inputs without places, which `Slic` says; for regions that part the channels of a place; and as
                integrated gradients.
        """
        if score.beside is not None and (len(score.beside.names) > 1 or score.beside.layers):
            raise InputError("XRAI cuts one image, series or volume into regions: use IntegratedGradients() for tokens.")
        cut = [each(inputs) for each in self.cuts]
        places = inputs.shape[2:]
        for labels in cut:
            if not places or labels.shape != (len(inputs), 1, *places):
                raise InputError(
                    f"XRAI takes regions with all channels of a place together, [n, 1, *places], got labels of shape "
                    f"{tuple(labels.shape)} for inputs of shape {tuple(inputs.shape)}."
                )
        found = self.path.explain(score, inputs)
        summed = found.values.double().sum(1).flatten(1).cpu()
        regions = torch.stack([labels.flatten(1).cpu() for labels in cut], 1)
        pieces = [_taken(gains, own) for gains, own in zip(summed, regions, strict=True)]
        values, ranks = (torch.stack(each).reshape(-1, 1, *places) for each in zip(*pieces, strict=True))
        channels = inputs.shape[1]
        return replace(
            found,
            values=(values / channels).expand(inputs.shape).to(found.values).contiguous(),
            diagnostics=found.diagnostics
            | {"ig": found.values, "rank": ranks.expand(inputs.shape).to(found.values).contiguous()},
            provenance=replace(found.provenance, method=describe(self)),
        )


def _taken(
    gains: Float64[Tensor, " places"], regions: Int[Tensor, "cuts places"]
) -> tuple[Float64[Tensor, " places"], Float64[Tensor, " places"]]:
    """Return the mean gain of the piece that each place was taken with, and which piece that was.

    Args:
        gains: what each place contributes.
        regions: the label of each place's region, by every way of cutting.
    """
    own, labels = gains.numpy(), _numbered(regions)
    count = int(labels.max()) + 1
    total, area = (np.bincount(labels.ravel(), np.tile(of, len(labels)), count) for of in (own, np.ones_like(own)))
    members = np.split(np.argsort(labels.ravel(), kind="stable") % len(own), np.cumsum(area[:-1]).astype(np.int64))
    left, means, ranks = np.ones(len(own), dtype=bool), np.zeros_like(own), np.zeros_like(own)
    rank = 0
    while left.any():
        density = np.where(area > 0.5, total / np.maximum(area, 1), -np.inf)
        piece = members[int(density.argmax())]
        piece = piece[left[piece]]
        means[piece], ranks[piece] = own[piece].mean(), rank
        left[piece] = False
        gone = labels[:, piece]
        total -= np.bincount(gone.ravel(), np.tile(own[piece], len(labels)), count)
        area -= np.bincount(gone.ravel(), minlength=count)
        rank += 1
    return torch.from_numpy(means), torch.from_numpy(ranks)


def _numbered(regions: Int[Tensor, "cuts places"]) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Return labels of which none stands for regions of two cuts, from 0 without a gap."""
    labels, most = np.empty(tuple(regions.shape), dtype=np.int64), 0
    for row, own in zip(labels, regions.numpy(), strict=True):
        names, places = np.unique(own, return_inverse=True)
        row[:] = places.ravel() + most
        most += len(names)
    return labels
