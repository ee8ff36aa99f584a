"""Class activation maps: which places of a layer's map raise a score, by weights of its channels."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, fx

from probing.attribution.base import Attribution, Demand, Family, LocalMethod, attribution
from probing.attribution.cam.ablation import head_of
from probing.attribution.cam.layer_map import LayerMap, LayerReading, Weighed, places
from probing.attribution.gradient import GuidedBackprop
from probing.attribution.subnetwork import given, is_affine, rerun, tail_of
from probing.core.progress import Progress
from probing.models.model_cache import remembered, unchanged
from probing.models.precision import agree
from probing.models.scores import Score


@dataclass(frozen=True)
class GradCAM(LayerMap):
    """Channels weighed by their mean gradient (Selvaraju et al. 2017, eq. 1 and 2).

    `diagnostics["nothing_positive"]` marks maps that the ReLU leaves empty.

    Attributes:
        reduce: `sum` over channels as in the paper, or their `mean`.
        relu: keep only what raises the score.
        counterfactual: explain what lowers the score instead (sec. 3.3 there).
    """

    reduce: Literal["sum", "mean"] = "sum"
    relu: bool = True
    counterfactual: bool = False

    def _explain(self, reading: LayerReading) -> Weighed:
        value, maps, slopes = reading.maps_and_slopes()
        weights = reading.mean(slopes) * (-1 if self.counterfactual else 1)
        total = (weights * maps).sum(1) if self.reduce == "sum" else (weights * maps).mean(1)
        return Weighed(value, total.relu() if self.relu else total)


@dataclass(frozen=True)
class GradCAMPlusPlus(LayerMap):
    """Positive gradients weighed so that every object counts alike (Chattopadhay et al. 2018, eq. 10 and 19).

    The exponential of the score, a factor that all of a map has in common, is left out.
    """

    def _explain(self, reading: LayerReading) -> Weighed:
        value, maps, slopes = reading.maps_and_slopes()
        scale = 2 * slopes.square() + maps.sum(places(maps), keepdim=True) * slopes**3
        shares = torch.where(scale == 0, 0, slopes.square() / torch.where(scale == 0, 1, scale))
        weights = (shares * slopes.relu()).sum(places(maps), keepdim=True)
        return Weighed(value, (weights * maps).sum(1).relu())


@dataclass(frozen=True)
class LayerCAM(LayerMap):
    """Each place of each channel weighed by its own positive gradient (Jiang et al. 2021, eq. 5 and 6)."""

    def _explain(self, reading: LayerReading) -> Weighed:
        value, maps, slopes = reading.maps_and_slopes()
        return Weighed(value, (slopes.relu() * maps).sum(1).relu())


@dataclass(frozen=True)
class XGradCAM(LayerMap):
    """Channels weighed by their gradient, averaged over places by how strong they are there (Fu et al. 2020).

    Without the ReLU the map adds up to gradient times activation, and each channel's part to its own: in a network of
    rectifiers that is the logit minus what later biases give (the paper's axiom of conservation), and where what follows
    the layer is linear, what the score loses without the channel (sensitivity).

    Made for maps without negative values. Of others a channel may add up to nothing and so have no weight: it is left out,
    and `diagnostics["left_out"]` is what such channels would have added to the sum.

    Attributes:
        relu: keep only what raises the score.
    """

    relu: bool = True

    def _explain(self, reading: LayerReading) -> Weighed:
        value, maps, slopes = reading.maps_and_slopes()
        strength = maps.sum(places(maps), keepdim=True)
        shares = (slopes * maps).sum(places(maps), keepdim=True)
        size = maps.abs().sum(places(maps), keepdim=True)
        idle = strength.abs() <= torch.finfo(maps.dtype).eps * size  # nothing but rounding
        weights = torch.where(idle, 0, shares / torch.where(idle, 1, strength))
        left_out = torch.where(idle, shares, 0).flatten(1).sum(1)
        total = (weights * maps).sum(1)
        return Weighed(value, total.relu() if self.relu else total, {"left_out": left_out})


@dataclass(frozen=True)
class HiResCAM(LayerMap):
    """Gradient times activation at each place, added over channels (Draelos & Carin 2020, eq. 4).

    Where the layer feeds a global average and a linear layer, the map adds up to the logit minus its bias.
    """

    def _explain(self, reading: LayerReading) -> Weighed:
        value, maps, slopes = reading.maps_and_slopes()
        return Weighed(value, (slopes * maps).sum(1))


@dataclass(frozen=True)
class AblationCAM(LayerMap):
    """Channels weighed by how much the score falls without them (Desai & Ramaswamy 2020, eq. 3).

    Only what follows the layer runs again, for many channels at once; where that is affine, one gradient tells all.
    The fall is not divided by the score, which would only scale the map, and turn it over where the score is negative.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 3)
    demands: ClassVar[tuple[Demand, ...]] = ("layer",)

    def _explain(self, reading: LayerReading) -> Weighed:
        axis = reading.layout.axis
        tail = _traced(reading)
        if tail is None:  # gradients refuse a layer that the score does not depend on
            value, output, _ = reading.slopes()
            falls = _falls(reading, None, output, value, axis)
        else:
            value, output, classes = reading.outputs_and_classes()
            found = _falls_in_head(reading, tail, output, classes, axis)
            read = (value, output, classes)
            falls = _falls_in_tail(reading, tail, read, axis) if found is None else found
        maps = reading.maps(output)
        return Weighed(value, (falls.view(*falls.shape, *[1] * (maps.ndim - 2)) * maps).sum(1).relu())


@dataclass(frozen=True)
class GuidedGradCAM(LocalMethod):
    """Guided backpropagation times the upsampled Grad-CAM (Selvaraju et al. 2017, sec. 3.2); of the inputs' shape.

    Attributes:
        cam: where.
        backprop: what.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients", "layer", "rectifiers")

    cam: GradCAM = field(default_factory=GradCAM)
    backprop: GuidedBackprop = field(default_factory=GuidedBackprop)

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        with unchanged(score.model):
            where = self.cam.explain(score, inputs)
            what = self.backprop.explain(score, inputs)
            return attribution(
                self,
                score,
                inputs,
                what.values * where.upsampled(),
                what.score,
                n_forward=where.n_forward + what.n_forward,
                n_backward=where.n_backward + what.n_backward,
                diagnostics=where.diagnostics | what.diagnostics,
                layer=where.layer,
                layout=where.layout,
                prepared=what.prepared,
            )


def _traced(reading: LayerReading) -> fx.GraphModule | None:
    """Return what follows the layer, if tracing can tell; whether it is the same is still to be seen."""
    passes = reading.passes
    key = ("tail", reading.layer, passes.precision, passes.device)
    return remembered(passes.origin.model, key, lambda: tail_of(passes.score.model, reading.layer))


def _falls_in_head(
    reading: LayerReading, tail: fx.GraphModule, output: Tensor, classes: Tensor, axis: int
) -> Float[Tensor, "n channels"] | None:
    """Return what `_falls` does from what channels change in a head of dense layers; None for other tails."""
    passes = reading.passes
    head = head_of(tail) if axis == 1 and output.ndim == 4 and passes.score.output is None else None
    if head is None:
        return None
    with torch.no_grad():
        falls = head.falls(passes, output, torch.arange(len(output)), classes)
    return None if falls is None else falls.to(output)


def _falls_in_tail(
    reading: LayerReading, tail: fx.GraphModule, read: tuple[Tensor, Tensor, Tensor], axis: int
) -> Float[Tensor, "n channels"]:
    """Return what `_falls` does: by one gradient where the tail is affine, else by running it for each channel."""
    (value, output, classes), passes = read, reading.passes
    some = slice(0, passes.chunk)
    with torch.no_grad(), passes.precision.arithmetic(passes.device):
        alone = given(tail, passes.prepared.inputs(output[some]))
    same = alone is not None and agree(passes.score.whole(alone).to(classes), classes[some])
    if same and is_affine(tail) and passes.origin.column is not None:
        slope = reading.slopes()[2]
        return (slope * output).sum([a for a in range(1, output.ndim) if a != axis % output.ndim])
    return _falls(reading, tail if same else None, output, value, axis)


def _falls(
    reading: LayerReading, tail: fx.GraphModule | None, output: Tensor, value: Tensor, axis: int
) -> Float[Tensor, "n channels"]:
    """Return how much the score falls when a channel is set to zero, for each example and channel."""
    channels = output.shape[axis]
    passes = replace(
        reading.passes,
        call=rerun(reading.passes.score, reading.layer, tail, reading.inputs),
        # A row of the tail is smaller than one of the network, and keeps no graph.
        chunk=reading.passes.chunk if tail is None else 8 * reading.passes.chunk,
    )
    found = torch.empty(len(output), channels, dtype=value.dtype, device=value.device)
    with Progress(found.numel(), "Ablation-CAM", unit="channels left out") as meter:
        for part in passes.slices(found.numel()):
            row = torch.arange(part.start, part.stop, device=output.device)
            i, k = row // channels, row % channels
            points = output[i].movedim(axis, 1)  # a copy, so it may be written to
            points[torch.arange(len(row)), k] = 0
            found[i, k] = value[i] - passes.values(points.movedim(1, axis), i).to(value)
            meter.advance(len(row))
    reading.passes.n_forward = passes.n_forward
    return found
