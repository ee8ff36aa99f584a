"""Score-CAM: a layer's channels weighed by the score of the input that each of them leaves visible."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.attribution.base import Demand, Family
from probing.attribution.cam.layer_map import LayerMap, LayerReading, Weighed, places
from probing.core.progress import Progress


@dataclass(frozen=True)
class ScoreCAM(LayerMap):
    """Channels weighed by the score of the input seen through them, without gradients (Wang et al. 2020, algorithm 1).

    Each channel's map, stretched to 0–1 and to the input's resolution, is multiplied with the input; the weights are the
    softmax over channels of the scores that this gives. The score of an empty input, which the paper takes off first,
    would cancel in the softmax and is not computed. The softmax is taken in the score's own unit: of logits that are far
    apart nearly all weight is one channel's, and `diagnostics["channels"]` tells how many share it (the exponential of its
    entropy); the probability's weights are nearly equal.

    What a mask hides becomes zero in model space, for most preprocessings the mean colour. A channel with the same value at
    all places masks nothing: it is left out. One pass forward for each other channel.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2)
    demands: ClassVar[tuple[Demand, ...]] = ("layer",)

    def _explain(self, reading: LayerReading) -> Weighed:
        value, output = reading.outputs()
        maps = reading.maps(output)
        masks, moves = _stretched(reading, maps)
        scores = torch.full(moves.shape, -torch.inf, dtype=value.dtype, device=value.device)
        example, channel = moves.cpu().nonzero(as_tuple=True)  # one read for all
        with Progress(len(example), "Score-CAM", unit="channels shown alone") as meter:
            for part in reading.passes.slices(len(example)):
                i, k = example[part], channel[part]
                scores[i, k] = reading.passes.values(_seen(reading, masks, i, k), i).to(value)
                meter.advance(len(i))
        weights = torch.where(moves.any(1, keepdim=True), scores, 0).softmax(1).masked_fill(~moves, 0)
        total = (weights.view(*weights.shape, *[1] * (maps.ndim - 2)) * maps).sum(1)
        entropy = torch.special.entr(weights).sum(1)
        return Weighed(value, total.relu(), {"channels": entropy.exp()})


def _stretched(reading: LayerReading, maps: Float[Tensor, "n c *places"]) -> tuple[Tensor, Tensor]:
    """Return maps from 0 to 1 over the places that are read, and which of them are not the same everywhere."""
    low, high = maps, maps
    if reading.read is not None:
        padding = ~reading.read[:, None].to(maps.device)
        low, high = maps.masked_fill(padding, torch.inf), maps.masked_fill(padding, -torch.inf)
    low, high = low.amin(places(maps), keepdim=True), high.amax(places(maps), keepdim=True)
    moves = high > low
    masks = torch.where(moves, (maps - low) / torch.where(moves, high - low, 1), 0)
    return masks, moves.flatten(1)


def _seen(
    reading: LayerReading, masks: Float[Tensor, "n c *places"], i: Int[Tensor, " m"], k: Int[Tensor, " m"]
) -> Float[Tensor, "m *shape"]:
    """Return inputs as some channels show them."""
    mask = masks[i, k][:, None]
    if reading.text:  # a value for each token, whose features it scales alike
        return reading.inputs[i] * mask.movedim(1, -1)
    return reading.inputs[i] * reading.layout.geometry.spread(mask)
