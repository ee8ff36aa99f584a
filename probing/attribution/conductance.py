"""What passes through a layer's units while the input is brought along a path from a baseline."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.attribution.base import Attribution, Demand, Family, LocalMethod, Moments
from probing.attribution.baselines import ZERO, Baseline, baseline_of
from probing.attribution.cam_layer import cam_layer
from probing.attribution.quadrature import Quadrature, nodes
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.core.inputs import InputError
from probing.core.progress import Progress
from probing.models.geometry import layers_run, refuse_other_rows
from probing.models.gradients import ZeroPathError
from probing.models.hooks import capture
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score


@dataclass(frozen=True)
class _AlongPath(LocalMethod):
    """A layer read along the straight path of the input from a baseline.

    Attributes:
        layer: a dotted path; by default the layer that a class activation map is read at.
        baseline: where the path of the input starts, as of integrated gradients; of several the mean is taken.
        steps: into how many pieces the path is cut.
        batch_size: points of a pass.
        precision: how passes run.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients", "layer")

    layer: str | None = None
    baseline: Baseline | float | Tensor = ZERO
    steps: int = 50
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", baseline_of(self.baseline))
        if self.steps < 1:
            raise InputError(f"a path needs at least one step, got {self.steps}.")

    def _begin(self, score: Score, inputs: Tensor) -> tuple[str, Passes, Tensor]:
        """Return the layer, the passes, and where paths start."""
        ran = layers_run(score.model, score.given(inputs))
        layer = cam_layer(score, inputs) if self.layer is None else self.layer
        refuse_other_rows(ran, layer)
        starts = baseline_of(self.baseline)(inputs)
        if starts.shape[1:] != inputs.shape:
            raise InputError(f"the baseline has shape {tuple(starts.shape[1:])}, expected {tuple(inputs.shape)}.")
        return layer, Passes.of(score, inputs, self.batch_size, self.precision, [layer]), starts.to(inputs)


@dataclass(frozen=True)
class LayerConductance(_AlongPath):
    """What flows through each unit of a layer while the input moves from a baseline (Dhamdhere et al. 2019).

    The map has the shape of the layer's output: of each unit, the integral of the score's gradient there over the change of
    the unit, `∫ ∂s/∂y dy`. That is the sum over all inputs of what integrated gradients sends through it, and is taken from
    the values of the unit itself at neighbouring points; no derivative of the unit is needed.

    Where nothing passes by the layer, its map adds up to the score minus the baseline's, up to
    `diagnostics["completeness_gap"]` (signed, in score units); `relative_gap` is its size over that difference. At a layer
    that a residual connection passes by, the gap is what went there, and more steps do not close it. With several
    baselines the map is their mean, and `baseline_spread` its standard deviation over them.

    Attributes:
        rule: whose gradient goes with the change between two points: the mean of both (`trapezoid`), the `left` or the
            `right` one's.
    """

    rule: Literal["trapezoid", "left", "right"] = "trapezoid"

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map, of the shape of the layer's output.

        Raises:
            InputError: for a baseline of another shape.
            LayerNotFoundError: if the path names no layer.
            LayerCallError: if the layer runs several times, or returns no tensor.
            ZeroPathError: if the score does not depend on the layer.
        """
        with unchanged(score.model):
            layer, passes, starts = self._begin(score, inputs)
            moments, bases = Moments(), []
            for start in starts:
                total, ends, dtype = self._one(passes, inputs, start, layer)
                moments.add(total[None])
                bases.append(ends[0])
                value = ends[1]
            base = torch.stack(bases).mean(0)
            gap = moments.mean.flatten(1).sum(1) - (value - base).double()
            whole = (value - base).double().abs()
            diagnostics = {"completeness_gap": gap, "relative_gap": torch.where(whole > 0, gap.abs() / whole, torch.nan)}
            if moments.count > 1:
                diagnostics["baseline_spread"] = moments.variance.sqrt()
            return passes.attribution(
                self,
                inputs,
                moments.mean.to(dtype),
                value,
                baseline_score=base,
                layer=layer,
                diagnostics={k: d.to(dtype) for k, d in diagnostics.items()},
            )

    def _one(
        self, passes: Passes, inputs: Tensor, start: Tensor, layer: str
    ) -> tuple[Tensor, Float[Tensor, "2 n"], torch.dtype]:
        """Return the sum over a path's pieces, the scores at its ends, and the layer's number format."""
        k = self.steps + 1
        alphas = torch.linspace(0, 1, k, dtype=torch.float64, device=inputs.device)
        scores = torch.empty(len(inputs), k, dtype=inputs.dtype, device=inputs.device)
        total: Tensor | None = None
        before: tuple[Tensor, Tensor] | None = None  # the last point's, which belongs to a piece of the next chunk
        for i, j, value, output, slope in _along(passes, inputs, start, layer, alphas):
            scores[i, j] = value
            if total is None:
                total = torch.zeros(len(inputs), *output.shape[1:], dtype=torch.float64, device=inputs.device)
            outputs, slopes, dtype = output.double(), slope.double(), output.dtype
            if before is not None:
                outputs, slopes = torch.cat([before[0], outputs]), torch.cat([before[1], slopes])
            pieces = len(outputs) - 1  # each ends at one of the last so many points
            before, change = (outputs[-1:], slopes[-1:]), outputs.diff(dim=0)
            left, right = slopes[:-1], slopes[1:]
            weighed = change * {"left": left, "right": right, "trapezoid": (left + right) / 2}[self.rule]
            inside = (j > 0).double()[len(j) - pieces :]  # no piece joins two examples
            total.index_add_(0, i[len(i) - pieces :], weighed * inside.reshape(-1, *[1] * (weighed.ndim - 1)))
        assert total is not None
        return total, torch.stack([scores[:, 0], scores[:, -1]]), dtype


@dataclass(frozen=True)
class InternalInfluence(_AlongPath):
    """The mean gradient at a layer's units while the input moves from a baseline (Leino et al. 2018, def. 1).

    The map has the shape of the layer's output, in score units per unit of activation; the distribution of interest is the
    straight path. It tells how far the score would move with a unit, not what the unit gave, and adds up to nothing.

    Attributes:
        rule: where on the path, and with what weight, gradients are taken.
        seed: of random points.
    """

    rule: Quadrature = "midpoint"
    seed: int = 0

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map, of the shape of the layer's output.

        Raises:
            InputError: for a number of steps that the rule does not take, or a baseline of another shape.
            LayerNotFoundError: if the path names no layer.
            LayerCallError: if the layer runs several times, or returns no tensor.
            ZeroPathError: if the score does not depend on the layer.
        """
        with unchanged(score.model):
            layer, passes, starts = self._begin(score, inputs)
            alphas, weights = (t.to(inputs.device) for t in nodes(self.rule, self.steps, self.seed))
            moments = Moments()
            for start in starts:
                total: Tensor | None = None
                for i, j, _, _, slope in _along(passes, inputs, start, layer, alphas):
                    if total is None:
                        total = torch.zeros(len(inputs), *slope.shape[1:], dtype=torch.float64, device=inputs.device)
                    dtype = slope.dtype
                    total.index_add_(0, i, slope.double() * weights[j].reshape(-1, *[1] * (slope.ndim - 1)))
                assert total is not None
                moments.add(total[None])
            value = passes.values(inputs, torch.arange(len(inputs)))
            spread = {"baseline_spread": moments.variance.sqrt().to(dtype)} if moments.count > 1 else {}
            return passes.attribution(self, inputs, moments.mean.to(dtype), value, layer=layer, diagnostics=spread)


def _along(
    passes: Passes, inputs: Tensor, start: Tensor, layer: str, alphas: Float[Tensor, " k"]
) -> Iterator[tuple[Int[Tensor, " m"], Int[Tensor, " m"], Tensor, Tensor, Tensor]]:
    """Yield, chunk by chunk, examples, points of the path, and the score, the layer's output and the gradient there."""
    k, extra = len(alphas), [1] * (inputs.ndim - 1)
    with Progress(len(inputs) * k, "gradients along paths", unit="passes") as meter:
        for part in passes.slices(len(inputs) * k):
            point = torch.arange(part.start, part.stop)
            rows = point // k
            i, j = rows.to(inputs.device), (point % k).to(inputs.device)
            way = inputs[i] - start[i]
            points = start[i] + alphas[j].to(way).reshape(-1, *extra) * way
            with torch.inference_mode(False), torch.enable_grad():
                with capture(passes.score.model, [layer], graph=True, rows=len(rows)) as kept:
                    value = passes.value(points, rows)
                at = kept[layer]
                with passes.precision.gradients.arithmetic(passes.device):
                    slope = torch.autograd.grad(value.sum(), at, allow_unused=True)[0] if value.requires_grad else None
            if slope is None:
                raise ZeroPathError(f"the score does not depend on {layer!r}: no path leads from there to the output.")
            passes.n_backward += len(rows)
            yield i, j, value.detach().to(inputs), at.detach().to(inputs.device), slope.to(inputs.device)
            meter.advance(len(rows))
