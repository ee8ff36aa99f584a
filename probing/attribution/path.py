"""Gradients along paths from a baseline to the input: their integral, and its mean over a background."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from probing.attribution.base import Attribution, Demand, Family, LocalMethod, Moments
from probing.attribution.baselines import ZERO, Baseline, Samples, baseline_of, samples_of, unmoved
from probing.attribution.cam_layer import cam_layer
from probing.attribution.quadrature import PathSum, Quadrature, adaptive_sum, nodes, path_sum
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.attribution.subnetwork import given, rerun, tail_of
from probing.core.inputs import InputError
from probing.models.geometry import layers_run, refuse_other_rows
from probing.models.hooks import capture
from probing.models.model_cache import remembered, unchanged
from probing.models.precision import Precision, agree
from probing.models.scores import Score

Steps = int | Literal["auto"]


@dataclass(frozen=True)
class IntegratedGradients(LocalMethod):
    """The gradient integrated along the straight path from a baseline, times the way (Sundararajan et al. 2017, eq. 1).

    The map adds up to the score minus the baseline's score, up to `diagnostics["completeness_gap"]` (signed, in
    score units); `relative_gap` is its size over that difference. With several baselines the map is their mean, and
    `baseline_spread` its standard deviation over them. `steps` counts the points used. `unmoved` is the share of values
    that equal the baseline: the path does not move them, so they get 0 whatever they mean. Where that is all of them,
    the map is empty and `relative_gap` NaN.

    Attributes:
        baseline: where the path starts; zero in model space unless given. A number, or a tensor with a row for each
            input or one for all, is one too; black is `Constant.black(mean, std)`.
        rule: where on the path, and with what weight, gradients are taken; `mc` is the mean at uniformly random
            points, whose `standard_error` is reported.
        steps: points on the path; `auto` begins with 25 intervals and halves those in which gradients do not
            explain the change of the score, until all together do, or up to 1,600 points (`converged` tells for
            which inputs the relative gap is at most `tolerance`).
        tolerance: for `auto`.
        seed: of random points.
        batch_size: points of a pass.
        precision: how passes run; `fast` is unfit for gradient maps (cosine to float32 0.93 to 0.96).
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 8)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients",)

    baseline: Baseline | float | Tensor = ZERO
    rule: Quadrature = "midpoint"
    steps: Steps = 50
    tolerance: float = 0.01
    seed: int = 0
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", baseline_of(self.baseline))

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            InputError: for a number of steps that the rule does not take, or a baseline of another shape.
        """
        with unchanged(score.model):
            passes = Passes.of(score, inputs, self.batch_size, self.precision)
            return _integrate(self, passes, inputs, baseline_of(self.baseline)(inputs), inputs, self)


@dataclass(frozen=True)
class LayerIntegratedGradients(LocalMethod):
    """Integrated gradients along a straight path between outputs of a layer (Dhamdhere et al. 2019, sec. 3).

    The map has the shape of the layer's output; for an embedding layer, sum it over features to get a score per
    token. Inputs may be whole numbers, such as token ids.

    Attributes:
        layer: a dotted path; by default the layer that a class activation map is read at.
        path: the rule, the steps and the rest; its baseline is one of the layer's output, or of the input.
        space: what the baseline is of: `layer`, such as the zero embedding, or `input`, which the layer then maps.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients", "layer")
    takes_integers: ClassVar[bool] = True

    layer: str | None = None
    path: IntegratedGradients = IntegratedGradients()
    space: Literal["layer", "input"] = "layer"

    def explain(self, score: Score, inputs: Shaped[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            LayerNotFoundError: if the path names no layer.
            LayerCallError: if the layer runs several times, or returns no tensor.
        """
        with unchanged(score.model):
            layer, ran = self.layer, layers_run(score.model, score.given(inputs))
            if layer is None:
                layer = cam_layer(score, inputs)
            refuse_other_rows(ran, layer)
            path = self.path
            passes = Passes.of(score, inputs, path.batch_size, path.precision, [layer])
            ends = read_layer(passes, inputs, layer)
            if self.space == "layer":
                starts = baseline_of(path.baseline)(ends)
            else:
                starts = torch.stack([read_layer(passes, draw, layer) for draw in baseline_of(path.baseline)(inputs)])
            along = tail_passes(passes, inputs, layer, ends)
            found = _integrate(path, along, ends, starts, inputs, self)
        return replace(found, layer=layer)


@dataclass(frozen=True)
class ExpectedGradients(LocalMethod):
    """Integrated gradients averaged over baselines drawn from a background (Erion et al. 2021, eq. 3).

    Each sample draws a baseline and one point on its path; draws are the same for all inputs. A background row equal
    to the input is left out. The map adds up to the score minus the background's mean score only on average:
    `diagnostics["completeness_gap"]` is what one run misses, `gap_standard_error` what it may miss by chance, and
    `standard_error` the error of each value.

    Attributes:
        background: inputs that stand for the data, as `Samples` or a tensor with one in each row.
        samples: draws for each input.
        stratified: draw points in equal strata of the path, and rows of the background equally often: less error
            than `standard_error` says.
        seed: of the draws.
        batch_size: points of a pass.
        precision: how passes run.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 8)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients",)

    background: Samples | Tensor
    samples: int = 200
    stratified: bool = False
    seed: int = 0
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def __post_init__(self) -> None:
        object.__setattr__(self, "background", self._samples)

    @property
    def _samples(self) -> Samples:
        return samples_of(self.background)

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            InputError: if the background is of another shape or nothing but the input itself.
        """
        pool = self._samples.like(inputs)
        if self.samples < 2:
            raise InputError(f"ExpectedGradients needs at least 2 samples, got {self.samples}.")
        with unchanged(score.model):
            passes = Passes.of(score, inputs, self.batch_size, self.precision)
            draws, alphas = self._draws(len(pool), inputs.device)
            own = torch.stack([(pool == x).flatten(1).all(1) for x in inputs])
            if bool(own.all(1).any()):
                raise InputError("the background holds nothing but the input itself: give other samples.")
            weights = (~own).double()[:, draws]
            weights = weights / weights.sum(1, keepdim=True)
            index = draws.expand(len(inputs), -1)
            rows = torch.arange(len(inputs), device=inputs.device)
            total = path_sum(passes, inputs, pool, index, alphas.expand_as(index), weights, rows)
            return self._result(passes, inputs, pool, ~own, total)

    def _draws(self, rows: int, device: torch.device) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
        generator, k = torch.Generator().manual_seed(self.seed), self.samples
        alphas = torch.rand(k, generator=generator, dtype=torch.float64)
        if not self.stratified:
            return torch.randint(rows, (k,), generator=generator).to(device), alphas.to(device)
        shuffled = [torch.randperm(rows, generator=generator) for _ in range(-(-k // rows))]
        strata = torch.randperm(k, generator=generator)
        return torch.cat(shuffled)[:k].to(device), ((strata + alphas) / k).to(device)

    def _result(self, passes: Passes, inputs: Tensor, pool: Tensor, others: Tensor, total: PathSum) -> Attribution:
        value = passes.values(inputs, torch.arange(len(inputs)))
        base = _mean_scores(passes, pool, others.double())
        gap = total.mean.flatten(1).sum(1) - (value.double() - base)
        return passes.attribution(
            self,
            inputs,
            total.mean.to(inputs.dtype),
            value,
            baseline_score=base.to(value),
            diagnostics={
                "completeness_gap": gap,
                "gap_standard_error": total.sum_error,
                "standard_error": total.error.to(inputs.dtype),
            },
        )


def read_layer(passes: Passes, inputs: Tensor, layer: str) -> Tensor:
    """Return a layer's outputs, from passes that end there."""
    parts = []
    rows = torch.arange(len(inputs))
    for part in passes.slices(len(inputs)):
        with torch.no_grad(), capture(passes.score.model, [layer], stop=True, rows=len(rows[part])) as kept:
            passes.output(inputs[part], rows[part])
        parts.append(kept[layer].to(inputs.device))
    return torch.cat(parts)


def tail_passes(passes: Passes, inputs: Tensor, layer: str, outputs: Tensor) -> Passes:
    """Return passes of the score as a function of a layer's output, by the tail alone where it is proved the same."""
    model = passes.score.model
    key = ("tail", layer, passes.precision, passes.device)
    tail = remembered(passes.origin.model, key, lambda: tail_of(model, layer))
    if tail is not None:
        with torch.no_grad(), passes.precision.arithmetic(passes.device):
            whole = passes.output(inputs[:1], torch.zeros(1, dtype=torch.long))
            alone = given(tail, passes.prepared.inputs(outputs[:1]))
        tail = tail if agree(alone, whole) else None
    return replace(passes, call=rerun(passes.score, layer, tail, inputs))


def _integrate(
    method: IntegratedGradients,
    passes: Passes,
    ends: Tensor,
    starts: Tensor,
    inputs: Tensor,
    described: IntegratedGradients | LayerIntegratedGradients,
) -> Attribution:
    """Return the mean over baselines of the path integral from each, with its completeness gap."""
    if starts.shape[1:] != ends.shape:
        raise InputError(f"the baseline has shape {tuple(starts.shape[1:])}, expected {tuple(ends.shape)}.")
    rows = torch.arange(len(ends)).repeat(1 + len(starts))
    every = passes.values(torch.cat([ends, *starts.to(ends)]), rows)  # in as few passes as can be
    value, *bases = every.reshape(-1, len(ends)).unbind()
    moments, errors = Moments(), []
    steps = torch.zeros(len(ends), dtype=torch.long, device=ends.device)
    for start, base in zip(starts, bases, strict=True):
        found, used = _one_path(method, passes, ends, start, torch.stack([base, value]))
        moments.add(found.mean[None])
        errors.append(found.error)
        steps = torch.maximum(steps, used)
    base = torch.stack(bases).mean(0)
    diagnostics = _checks(method, moments, value - base, steps, torch.stack(errors))
    diagnostics["unmoved"] = unmoved(starts, ends, passes.origin.beside)
    return passes.attribution(
        described,
        inputs,
        moments.mean.to(ends.dtype),
        value,
        baseline_score=base,
        diagnostics={k: d.to(ends.dtype) if d.is_floating_point() else d for k, d in diagnostics.items()},
    )


def _checks(
    method: IntegratedGradients, maps: Moments, difference: Tensor, steps: Tensor, errors: Tensor
) -> dict[str, Tensor]:
    """Return what tells how far to trust the mean of maps from several baselines."""
    gap = maps.mean.flatten(1).sum(1) - difference.double()
    whole = difference.double().abs().clamp(min=1e-8)
    nothing = (gap == 0) & (difference == 0)  # a gap of nothing is no share
    relative = (gap.abs() / whole).masked_fill(nothing, torch.nan)
    found = {"completeness_gap": gap, "relative_gap": relative, "steps": steps}
    if method.steps == "auto":
        found["converged"] = gap.abs() <= method.tolerance * whole
    if method.rule == "mc":
        found["standard_error"] = errors.square().sum(0).sqrt() / len(errors)
    if maps.count > 1:
        found["baseline_spread"] = maps.variance.sqrt()
    return found


def _one_path(
    method: IntegratedGradients, passes: Passes, ends: Tensor, start: Tensor, scores: Tensor
) -> tuple[PathSum, Int[Tensor, " n"]]:
    """Return the integral along paths from one baseline, and how many points were used for each."""
    if method.steps == "auto":
        if method.rule == "mc":
            raise InputError("random points have no steps='auto': give a number, or another rule.")
        return adaptive_sum(passes, ends, start, scores, method.rule, method.tolerance)
    n, k = len(ends), method.steps
    rows = torch.arange(n, device=ends.device)
    points, weights = (t.to(ends.device).expand(n, k) for t in nodes(method.rule, k, method.seed))
    index = rows[:, None].expand(n, k)
    found = path_sum(passes, ends, start, index, points, weights, rows)
    return found, torch.full_like(rows, k)


def _mean_scores(
    passes: Passes, pool: Float[Tensor, "pool *shape"], weights: Float[Tensor, "n pool"]
) -> Float[Tensor, " n"]:
    """Return, for what is explained of each example, the weighted mean score of a pool."""
    keys = passes.origin.keys(len(weights))
    scores: dict[Hashable, Tensor] = {}
    for i, key in enumerate(keys):
        if key not in scores:
            scores[key] = passes.values(pool, torch.full((len(pool),), i)).double()
    return (weights * torch.stack([scores[key] for key in keys])).sum(1) / weights.sum(1)
