"""Class activation maps: which places of a layer's map raise a score, by weights of its channels."""

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, fx

from probing.attribution.base import (
    Attribution,
    Demand,
    Family,
    LocalMethod,
    attribution,
    in_chunks,
    with_places,
)
from probing.attribution.cam.ablation import head_of
from probing.attribution.cam_layer import cam_layer
from probing.attribution.gradient import GuidedBackprop
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.attribution.subnetwork import given, is_affine, rerun, tail_of
from probing.core.progress import Progress
from probing.models.geometry import Layout, text_tokens
from probing.models.gradients import score_gradients
from probing.models.hooks import capture
from probing.models.layers import resolve, split_call
from probing.models.model_cache import remembered, unchanged
from probing.models.precision import Precision, agree
from probing.models.scores import Score


@dataclass(frozen=True)
class _Reading:
    """A score, inputs, and the layer whose maps are weighed."""

    passes: Passes
    inputs: Tensor
    layer: str
    layout: Layout
    read: Bool[Tensor, "n tokens"] | None = None
    """Which tokens of texts are no padding; None where all are read."""

    def mean(self, maps: Float[Tensor, "n c *places"]) -> Float[Tensor, "n c *ones"]:
        """Return means of maps over places that are read; the others' values must be zero."""
        whole = maps.mean(_places(maps), keepdim=True)
        if self.read is None:
            return whole
        return whole / self.read.to(maps).mean(1)[:, None, None]

    @property
    def rows(self) -> Int[Tensor, " n"]:
        """Numbers of the inputs."""
        return torch.arange(len(self.inputs))

    def slopes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the score, the layer's output, and the score's gradient there."""
        parts = in_chunks(len(self.inputs), self.passes.chunk, self._slopes)
        score, output, slope = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        return score, output, slope

    def outputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the score, the layer's output, and what the score is read from, without gradients."""
        parts = in_chunks(len(self.inputs), self.passes.chunk, self._outputs)
        score, output, classes = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return score, output, classes

    def _outputs(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        passes, score = self.passes, self.passes.score.of(part)
        rows = len(self.inputs[part])
        with torch.no_grad(), capture(score.model, [self.layer], rows=rows) as kept:
            output = passes.output(self.inputs[part], self.rows[part])
        found = (score.read(output), kept[self.layer], score.whole(output))
        return cast("tuple[Tensor, Tensor, Tensor]", tuple(t.to(self.inputs) for t in found))

    def _slopes(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        passes = self.passes
        with torch.inference_mode(False), torch.enable_grad():
            score = passes.score.of(part)
            rows = len(self.inputs[part])
            with capture(score.model, [self.layer], graph=True, rows=rows) as kept:
                output = passes.output(self.inputs[part], self.rows[part])
            with passes.precision.gradients.arithmetic(passes.device):
                [[slope]] = score_gradients([score], output, [kept[self.layer]], [self.layer])
        passes.n_backward += len(slope)
        found = (score.read(output), kept[self.layer], slope)
        return cast("tuple[Tensor, Tensor, Tensor]", tuple(t.detach().to(self.inputs) for t in found))


@dataclass(frozen=True)
class _LayerMap(LocalMethod):
    """What all maps of a layer have in common.

    Attributes:
        layer: a dotted path; by default the end of the last stage, as `probing.attribution.cam_layer` finds it. The
            result names it and tells how it was read.
        grid: rows and columns of patches, for tokens whose number does not tell; class tokens before them are
            left out.
        channels_last: whether the layer returns `[n, h, w, c]`, where that can't be inferred or measured.
        batch_size: examples of a pass.
        precision: how passes run.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients", "layer")

    layer: str | None = None
    grid: tuple[int, ...] | None = None
    channels_last: bool | None = None
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return maps `[n, 1, h, w]` of the layer's resolution; `.upsampled()` gives the input's.

        Of series `[n, c, t]` they are `[n, 1, t]`, of volumes `[n, c, d, h, w]` `[n, 1, d, h, w]`, of texts `[n, tokens, 1]`
        with zero for padding.

        Raises:
            RefusedError: if there is no layer to read a map at, or its tokens' grid can't be told.
            ZeroPathError: if the score does not depend on the layer.
        """
        inputs = with_places(inputs)
        with unchanged(score.model):
            layer = cam_layer(score, inputs) if self.layer is None else self.layer
            resolve(score.model, split_call(layer)[0])
            passes = Passes.of(score, inputs, self.batch_size, self.precision, [layer])
            whole = score.given(inputs)
            layout = Layout.of(score.model, whole, layer, self.grid, channels_last=self.channels_last)
            read, text = (None, False) if isinstance(whole, Tensor) else (whole.read, text_tokens(whole) is not None)
            value, maps = self._explain(_Reading(passes, inputs, layer, layout, read if text else None))
            dark = (maps <= 0).flatten(1).all(1)
            return passes.attribution(
                self,
                inputs,
                maps.unsqueeze(-1 if text else 1).contiguous(),
                value,
                layer=layer,
                layout=str(layout),
                geometry=None if text else layout.geometry,
                diagnostics={"nothing_positive": dark},
            )

    @abstractmethod
    def _explain(self, reading: _Reading) -> tuple[Float[Tensor, " n"], Float[Tensor, "n *places"]]:
        """Return the scores and the maps."""


@dataclass(frozen=True)
class GradCAM(_LayerMap):
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

    def _explain(self, reading: _Reading) -> tuple[Tensor, Tensor]:
        value, maps, slopes = _maps(reading)
        weights = reading.mean(slopes) * (-1 if self.counterfactual else 1)
        total = (weights * maps).sum(1) if self.reduce == "sum" else (weights * maps).mean(1)
        return value, total.relu() if self.relu else total


@dataclass(frozen=True)
class GradCAMPlusPlus(_LayerMap):
    """Positive gradients weighed so that every object counts alike (Chattopadhay et al. 2018, eq. 10 and 19).

    The exponential of the score, a factor that all of a map has in common, is left out.
    """

    def _explain(self, reading: _Reading) -> tuple[Tensor, Tensor]:
        value, maps, slopes = _maps(reading)
        scale = 2 * slopes.square() + maps.sum(_places(maps), keepdim=True) * slopes**3
        shares = torch.where(scale == 0, 0, slopes.square() / torch.where(scale == 0, 1, scale))
        weights = (shares * slopes.relu()).sum(_places(maps), keepdim=True)
        return value, (weights * maps).sum(1).relu()


@dataclass(frozen=True)
class LayerCAM(_LayerMap):
    """Each place of each channel weighed by its own positive gradient (Jiang et al. 2021, eq. 5 and 6)."""

    def _explain(self, reading: _Reading) -> tuple[Tensor, Tensor]:
        value, maps, slopes = _maps(reading)
        return value, (slopes.relu() * maps).sum(1).relu()


@dataclass(frozen=True)
class HiResCAM(_LayerMap):
    """Gradient times activation at each place, added over channels (Draelos & Carin 2020, eq. 4).

    Where the layer feeds a global average and a linear layer, the map adds up to the logit minus its bias.
    """

    def _explain(self, reading: _Reading) -> tuple[Tensor, Tensor]:
        value, maps, slopes = _maps(reading)
        return value, (slopes * maps).sum(1)


@dataclass(frozen=True)
class AblationCAM(_LayerMap):
    """Channels weighed by how much the score falls without them (Desai & Ramaswamy 2020, eq. 3).

    Only what follows the layer runs again, for many channels at once; where that is affine, one gradient tells all.
    The fall is not divided by the score, which would only scale the map, and turn it over where the score is negative.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 3)
    demands: ClassVar[tuple[Demand, ...]] = ("layer",)

    def _explain(self, reading: _Reading) -> tuple[Tensor, Tensor]:
        axis = reading.layout.axis
        tail = _traced(reading)
        if tail is None:  # gradients refuse a layer that the score does not depend on
            value, output, _ = reading.slopes()
            falls = _falls(reading, None, output, value, axis)
        else:
            value, output, classes = reading.outputs()
            found = _falls_in_head(reading, tail, output, classes, axis)
            read = (value, output, classes)
            falls = _falls_in_tail(reading, tail, read, axis) if found is None else found
        maps = _read(reading, output)
        return value, (falls.view(*falls.shape, *[1] * (maps.ndim - 2)) * maps).sum(1).relu()


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


def _places(maps: Tensor) -> tuple[int, ...]:
    """Return the axes of places."""
    return tuple(range(2, maps.ndim))


def _maps(reading: _Reading) -> tuple[Tensor, Tensor, Tensor]:
    value, output, slope = reading.slopes()
    return value, _read(reading, output), _read(reading, slope)


def _read(reading: _Reading, output: Tensor) -> Tensor:
    """Return an output as maps, padding of texts as zero."""
    maps = reading.layout.maps(output)
    return maps if reading.read is None else maps.masked_fill(~reading.read[:, None].to(maps.device), 0)


def _traced(reading: _Reading) -> fx.GraphModule | None:
    """Return what follows the layer, if tracing can tell; whether it is the same is still to be seen."""
    passes = reading.passes
    key = ("tail", reading.layer, passes.precision, passes.device)
    return remembered(passes.origin.model, key, lambda: tail_of(passes.score.model, reading.layer))


def _falls_in_head(
    reading: _Reading, tail: fx.GraphModule, output: Tensor, classes: Tensor, axis: int
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
    reading: _Reading, tail: fx.GraphModule, read: tuple[Tensor, Tensor, Tensor], axis: int
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
    reading: _Reading, tail: fx.GraphModule | None, output: Tensor, value: Tensor, axis: int
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
