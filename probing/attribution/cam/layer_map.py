"""What class activation maps share: a layer's maps, the score's gradient there, and how they become a result."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attribution.base import Attribution, Demand, Family, LocalMethod, in_chunks, with_places
from probing.attribution.cam_layer import cam_layer
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.models.geometry import Layout, text_tokens
from probing.models.gradients import score_gradients
from probing.models.hooks import capture
from probing.models.layers import resolve, split_call
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score


@dataclass(frozen=True)
class LayerReading:
    """A score, inputs, and the layer whose maps are weighed."""

    passes: Passes
    inputs: Tensor
    layer: str
    layout: Layout
    read: Bool[Tensor, "n tokens"] | None = None
    """Which tokens of texts are no padding; None where all are read."""
    text: bool = False
    """Whether inputs are what is looked up for tokens, `[n, tokens, features]`."""

    def mean(self, maps: Float[Tensor, "n c *places"]) -> Float[Tensor, "n c *ones"]:
        """Return means of maps over places that are read; the others' values must be zero."""
        whole = maps.mean(places(maps), keepdim=True)
        if self.read is None:
            return whole
        return whole / self.read.to(maps).mean(1)[:, None, None]

    def maps(self, output: Tensor) -> Float[Tensor, "n c *places"]:
        """Return an output as maps, padding of texts as zero."""
        maps = self.layout.maps(output)
        return maps if self.read is None else maps.masked_fill(~self.read[:, None].to(maps.device), 0)

    def maps_and_slopes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the score, the layer's maps, and the score's gradient there."""
        score, output, slope = self.slopes()
        return score, self.maps(output), self.maps(slope)

    @property
    def rows(self) -> Int[Tensor, " n"]:
        """Numbers of the inputs."""
        return torch.arange(len(self.inputs))

    def slopes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the score, the layer's output, and the score's gradient there."""
        score, output, slope = self._slopes(classes=False)
        return score, output, slope

    def slopes_and_classes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `slopes` does, and what the score is read from."""
        score, output, slope, classes = self._slopes(classes=True)
        return score, output, slope, classes

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Return the score and the layer's output, without gradients."""
        score, output = self._outputs(classes=False)
        return score, output

    def outputs_and_classes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `outputs` does, and what the score is read from."""
        score, output, classes = self._outputs(classes=True)
        return score, output, classes

    def _outputs(self, *, classes: bool) -> tuple[Tensor, ...]:
        return self._joined(lambda part: self._outputs_of(part, classes=classes))

    def _slopes(self, *, classes: bool) -> tuple[Tensor, ...]:
        return self._joined(lambda part: self._slopes_of(part, classes=classes))

    def _joined(self, work: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        parts = in_chunks(len(self.inputs), self.passes.chunk, work)
        return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))

    def _outputs_of(self, part: slice, *, classes: bool) -> tuple[Tensor, ...]:
        passes, score = self.passes, self.passes.score.of(part)
        rows = len(self.inputs[part])
        with torch.no_grad(), capture(score.model, [self.layer], rows=rows) as kept:
            output = passes.output(self.inputs[part], self.rows[part])
        found = (score.read(output), kept[self.layer], *([score.whole(output)] if classes else []))
        return tuple(t.to(self.inputs) for t in found)

    def _slopes_of(self, part: slice, *, classes: bool) -> tuple[Tensor, ...]:
        passes = self.passes
        with torch.inference_mode(False), torch.enable_grad():
            score = passes.score.of(part)
            rows = len(self.inputs[part])
            with capture(score.model, [self.layer], graph=True, rows=rows) as kept:
                output = passes.output(self.inputs[part], self.rows[part])
            with passes.precision.gradients.arithmetic(passes.device):
                [[slope]] = score_gradients([score], output, [kept[self.layer]], [self.layer])
        passes.n_backward += len(slope)
        found = (score.read(output), kept[self.layer], slope, *([score.whole(output)] if classes else []))
        return tuple(t.detach().to(self.inputs) for t in found)


@dataclass(frozen=True)
class Weighed:
    """Maps whose channels were added up.

    Attributes:
        score: of each input.
        maps: one for each.
        diagnostics: what tells how far to trust them.
        facts: other fields of the result.
    """

    score: Float[Tensor, " n"]
    maps: Float[Tensor, "n *places"]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerMap(LocalMethod):
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
            found = self._explain(LayerReading(passes, inputs, layer, layout, read if text else None, text))
            dark = (found.maps <= 0).flatten(1).all(1)
            return passes.attribution(
                self,
                inputs,
                found.maps.unsqueeze(-1 if text else 1).contiguous(),
                found.score,
                layer=layer,
                layout=str(layout),
                geometry=None if text else layout.geometry,
                diagnostics={"nothing_positive": dark} | found.diagnostics,
                **found.facts,
            )

    @abstractmethod
    def _explain(self, reading: LayerReading) -> Weighed:
        """Return the scores and the maps."""


def places(maps: Tensor) -> tuple[int, ...]:
    """Return the axes of places."""
    return tuple(range(2, maps.ndim))
