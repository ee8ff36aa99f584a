"""Integrated gradients along other paths than the straight one: led by gradients, and through blurred inputs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from probing.attribution.base import Attribution, Demand, Family, LocalMethod, Moments, with_places
from probing.attribution.baselines import ZERO, Baseline, baseline_of, unmoved
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.core.inputs import InputError
from probing.core.progress import Progress
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score

PieceRule = Literal["trapezoid", "left", "right"]
"""Whose gradient goes with the way between two points of a path: the mean of both, the first one's or the second one's."""

_ALIKE = 1e-4
"""Gradients that differ by less than this share of the largest are equally steep: by rounding alone none goes first."""


@dataclass(frozen=True)
class GuidedIG(LocalMethod):
    """The gradient integrated along a path that goes first where the score is flat (Kapishnikov et al. 2021).

    At each point those features move on whose gradient is smallest, so that less of the map is gathered where the score is
    steep but does not change in the end. No feature ever moves away from the input. The map adds up to the score minus the
    baseline's score, up to `diagnostics["completeness_gap"]` (signed, in score units); `relative_gap` is its size over that
    difference. Values that equal the baseline (`unmoved`, their share) get 0, and do not change the path of the others. With
    several baselines the map is their mean, and `baseline_spread` its standard deviation over them.

    Features whose gradients differ by less than a ten-thousandth of the largest move together, so that the path hangs on
    rounding as little as may be. With `fraction=1` or `max_dist=0` the path is straight, and the map that of integrated
    gradients at equally spaced points.

    Attributes:
        baseline: where the path starts, as of integrated gradients.
        steps: pieces of equal length, the sum of all features' ways.
        fraction: which share of the features goes at a time, above 0 and up to 1.
        max_dist: how far each may run ahead of the straight path or lag behind it, as a share of its way, from 0 to 1.
        rule: whose gradient goes with a piece; the authors' code takes the first one's (`left`), the mean of both misses
            less of the score's change.
        batch_size: inputs that go together.
        precision: how passes run.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 8)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients",)

    baseline: Baseline | float | Tensor = ZERO
    steps: int = 200
    fraction: float = 0.25
    max_dist: float = 0.02
    rule: PieceRule = "trapezoid"
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", baseline_of(self.baseline))
        if self.steps < 1 or not 0 < self.fraction <= 1 or not 0 <= self.max_dist <= 1:
            raise InputError(
                "GuidedIG needs at least one step, a fraction above 0 and up to 1, and a max_dist from 0 to 1, "
                f"got {self.steps}, {self.fraction} and {self.max_dist}."
            )

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            InputError: for a baseline of another shape.
            ZeroPathError: if the score does not depend on the inputs.
        """
        starts = baseline_of(self.baseline)(inputs)
        if starts.shape[1:] != inputs.shape:
            raise InputError(f"the baseline has shape {tuple(starts.shape[1:])}, expected {tuple(inputs.shape)}.")
        starts = starts.to(inputs)
        with unchanged(score.model):
            passes = Passes.of(score, inputs, self.batch_size, self.precision)
            moments, ends = Moments(), []
            with Progress(len(starts) * len(inputs) * (self.steps + 1), "gradients along paths", unit="passes") as meter:
                for start in starts:
                    parts = [self._one(passes, inputs, start, part, meter) for part in passes.slices(len(inputs))]
                    moments.add(torch.cat([total for total, _ in parts])[None])
                    ends.append(torch.cat([at for _, at in parts], 1))
            return _complete(self, passes, inputs, starts, moments, torch.stack(ends))

    def _one(
        self, passes: Passes, inputs: Tensor, starts: Tensor, part: slice, meter: Progress
    ) -> tuple[Float64[Tensor, "n *shape"], Float[Tensor, "2 n"]]:
        """Return the sum over the pieces of the paths of some inputs, and the scores where they start and end."""
        rows = torch.arange(part.start, part.stop, device=inputs.device)
        start, end = starts[part], inputs[part]
        way = (end.double() - start.double()).flatten(1)
        length = way.abs().sum(1, keepdim=True)
        weights = way.abs() / torch.where(length > 0, length, 1)
        gone, moved, total = (torch.zeros_like(way) for _ in range(3))
        scores = []
        before = after = torch.empty(0)
        for step in range(self.steps + 1):
            points = torch.where(gone == 1, end.flatten(1), (start.flatten(1) + gone * way).to(end))
            value, slope = passes.gradient(points.reshape(end.shape), rows)
            meter.advance(len(rows))
            before, after = after, slope.flatten(1).double()
            if step > 0:
                total += moved * way * _of_piece(self.rule, before, after)
            scores.append(value)
            if step < self.steps:
                ahead = self._moved(gone, weights, after.abs(), (step + 1) / self.steps)
                moved, gone = ahead - gone, ahead
        return total.reshape(end.shape), torch.stack([scores[0], scores[-1]])

    def _moved(
        self,
        gone: Float64[Tensor, "n features"],
        weights: Float64[Tensor, "n features"],
        steep: Float64[Tensor, "n features"],
        share: float,
    ) -> Float64[Tensor, "n features"]:
        """Return how far along its way each feature is at the next point.

        Args:
            gone: how far it is now, from 0 to 1.
            weights: its share of the whole length; 0 for what does not move.
            steep: the size of its gradient.
            share: which share of the whole length has been gone at the next point.
        """
        if share == 1:
            return torch.ones_like(gone)
        low, high = max(share - self.max_dist, 0.0), min(share + self.max_dist, 1.0)
        gone = gone.clamp(min=low)
        free = (weights > 0) & (gone < high)
        alike = _ALIKE * torch.where(weights > 0, steep, 0).amax(1, keepdim=True)
        ranked = torch.where(free, steep, torch.inf).sort(1).values
        last = (free.sum(1, keepdim=True) - 1).clamp(min=0)
        group = (self.fraction * ((weights > 0).sum(1, keepdim=True) - 1).clamp(min=0).double()).floor().long()
        taken = torch.zeros_like(group)
        # So many groups make up all that is free. What is no longer needed moves nothing, and the host asks nothing.
        for _ in range(math.ceil(1 / self.fraction) + 1):
            limit = ranked.gather(1, torch.minimum(taken + group, last)) + alike
            going = free & (steep <= limit)
            room = torch.where(going, weights * (high - gone), 0).sum(1, keepdim=True)
            wanted = share - (weights * gone).sum(1, keepdim=True)
            part = torch.where(room > 0, wanted / torch.where(room > 0, room, 1), 0).clamp(0, 1)
            gone = torch.where(going, torch.where(part == 1, high, gone + part * (high - gone)), gone)
            taken = taken + going.sum(1, keepdim=True)
            free = free & ~going
        return gone


@dataclass(frozen=True)
class BlurIG(LocalMethod):
    """The gradient integrated while the input comes out of a blur (Xu et al. 2020).

    The path begins with the input blurred by `max_sigma`, which is its baseline, and ends with the input; no value that the
    input does not hold is brought in. Each piece's way is the difference of two blurred inputs, no derivative by the width,
    so that the map of a linear score is exact with any number of steps. The map adds up to the score minus that of the
    blurred input, up to `diagnostics["completeness_gap"]` (signed, in score units); `relative_gap` is its size over that
    difference. `unmoved` is the share of values that the blur leaves as they are.

    The blur is diffusion between neighbouring places, along each axis of places and in each channel by itself, for a time of
    half of the width squared: the discrete counterpart of the Gaussian (Lindeberg 1990), with that variance exactly. Nothing
    leaves at the edges, so that the mean of a channel stays what it is, and a wide blur makes it of all places.

    Attributes:
        max_sigma: standard deviation of the widest blur, in places; widths fall to 0 in equal steps.
        steps: pieces of the path.
        rule: whose gradient goes with a piece.
        batch_size: points of a pass.
        precision: how passes run.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 8)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients",)

    max_sigma: float = 50.0
    steps: int = 100
    rule: PieceRule = "trapezoid"
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.max_sigma < math.inf:
            raise InputError(
                f"BlurIG needs at least one step and a max_sigma above 0, got {self.steps} and {self.max_sigma}."
            )

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            InputError: for inputs that are no single image, series or volume.
            ZeroPathError: if the score does not depend on the inputs.
        """
        with_places(inputs, "BlurIG needs")
        if score.beside is not None and (len(score.beside.names) > 1 or score.beside.layers):
            raise InputError("BlurIG blurs one image, series or volume: use IntegratedGradients() for tokens.")
        with unchanged(score.model):
            passes = Passes.of(score, inputs, self.batch_size, self.precision)
            widths = torch.linspace(self.max_sigma, 0, self.steps + 1, dtype=torch.float64, device=inputs.device)
            blur = _Diffusion(inputs)
            total, ends = _sum_of_pieces(passes, inputs, len(widths), lambda i, j: blur.at(i, widths[j]), self.rule)
            moments = Moments()
            moments.add(total[None])
            starts = blur.at(torch.arange(len(inputs), device=inputs.device), widths[:1].expand(len(inputs)))
            return _complete(self, passes, inputs, starts[None], moments, ends[None])


class _Diffusion:
    """Inputs blurred by diffusion along all axes of places, each edge shut."""

    def __init__(self, inputs: Float[Tensor, "n c *places"]) -> None:
        self._inputs = inputs
        # Around one of its own values a channel that has no other is exactly 0, and stays so.
        self._around = inputs.double().flatten(2)[:, :, :1].reshape(*inputs.shape[:2], *[1] * (inputs.ndim - 2))
        self._waves = [_cosines(size).to(inputs.device) for size in inputs.shape[2:]]
        self._parts = self._turned(inputs.double() - self._around, back=False)

    def at(self, rows: Int[Tensor, " m"], widths: Float64[Tensor, " m"]) -> Float[Tensor, "m c *places"]:
        """Return inputs blurred by given standard deviations; by 0 they are what they were."""
        parts = self._parts[rows]
        for axis, size in enumerate(parts.shape[2:], start=2):
            rates = 2 - 2 * torch.cos(torch.pi * torch.arange(size, dtype=torch.float64, device=parts.device) / size)
            kept = (-0.5 * widths[:, None].square() * rates).exp()
            parts = parts * kept.reshape(len(kept), *[size if i == axis else 1 for i in range(1, parts.ndim)])
        blurred = self._turned(parts, back=True) + self._around[rows]
        sharp = (widths == 0).reshape(-1, *[1] * (parts.ndim - 1))
        return torch.where(sharp, self._inputs[rows], blurred.to(self._inputs))

    def _turned(self, values: Tensor, *, back: bool) -> Tensor:
        for axis, waves in enumerate(self._waves, start=2):
            values = (values.movedim(axis, -1) @ (waves.mT if back else waves)).movedim(-1, axis)
        return values


def _cosines(size: int) -> Float64[Tensor, "size size"]:
    """Return what diffusion along an axis with shut edges only shrinks: cosines, one in each column, of length one."""
    at = torch.arange(size, dtype=torch.float64)
    waves: Tensor = torch.cos(torch.pi * (at[:, None] + 0.5) * at / size) * math.sqrt(2 / size)
    waves[:, 0] = size**-0.5
    return waves


def _of_piece(rule: PieceRule, left: Tensor, right: Tensor) -> Tensor:
    return {"left": left, "right": right, "trapezoid": (left + right) / 2}[rule]


def _sum_of_pieces(
    passes: Passes, inputs: Tensor, k: int, at: Callable[[Tensor, Tensor], Tensor], rule: PieceRule
) -> tuple[Float64[Tensor, "n *shape"], Float[Tensor, "2 n"]]:
    """Return the sum over the pieces of paths that are known beforehand, and the scores where they start and end.

    Args:
        passes: of the score.
        inputs: where paths end.
        k: points of each path.
        at: makes points, by examples and which of their points is wanted.
        rule: whose gradient goes with a piece.
    """
    total = torch.zeros(inputs.shape, dtype=torch.float64, device=inputs.device)
    scores = torch.empty(len(inputs), k, dtype=inputs.dtype, device=inputs.device)
    points, slopes = (total[:0] for _ in range(2))
    with Progress(len(inputs) * k, "gradients along paths", unit="passes") as meter:
        for part in passes.slices(len(inputs) * k):
            point = torch.arange(part.start, part.stop, device=inputs.device)
            i, j = point // k, point % k
            here = at(i, j)
            scores[i, j], slope = passes.gradient(here, i)
            # The last point of a chunk begins a piece that ends in the next.
            points, slopes = torch.cat([points[-1:], here.double()]), torch.cat([slopes[-1:], slope.double()])
            pieces = len(points) - 1
            i, j = i[len(i) - pieces :], j[len(j) - pieces :]
            weighed = points.diff(dim=0) * _of_piece(rule, slopes[:-1], slopes[1:])
            inside = (j > 0).reshape(-1, *[1] * (inputs.ndim - 1))  # no piece joins two examples
            total.index_add_(0, i, torch.where(inside, weighed, 0))
            meter.advance(len(here))
    return total, torch.stack([scores[:, 0], scores[:, -1]])


def _complete(
    method: GuidedIG | BlurIG,
    passes: Passes,
    inputs: Tensor,
    starts: Float[Tensor, "draws n *shape"],
    maps: Moments,
    ends: Float[Tensor, "draws 2 n"],
) -> Attribution:
    """Return the mean of maps over baselines, with by how much it misses the change of the score."""
    value, base = ends[0, 1], ends[:, 0].mean(0)
    change = (value - base).double()
    gap, size = maps.mean.flatten(1).sum(1) - change, change.abs()
    told = {"completeness_gap": gap, "relative_gap": torch.where(size > 0, gap.abs() / size, torch.nan)}
    told["unmoved"] = unmoved(starts, inputs, passes.origin.beside)
    if maps.count > 1:
        told["baseline_spread"] = maps.variance.sqrt()
    return passes.attribution(
        method,
        inputs,
        maps.mean.to(inputs.dtype),
        value,
        baseline_score=base,
        diagnostics={name: each.to(inputs.dtype) for name, each in told.items()},
    )
