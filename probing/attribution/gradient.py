"""Gradients of a score with respect to the input: as they are, times the input, rectified, and smoothed by noise."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probing.attribution.base import (
    Attribution,
    AttributionMethod,
    Demand,
    Family,
    LocalMethod,
    Moments,
    attribution,
)
from probing.attribution.rectifiers import Gates, Rule, Which
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.core.inputs import InputError
from probing.core.progress import Progress
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score


@dataclass(frozen=True)
class Saliency(LocalMethod):
    """The gradient of the score at the input: its change per unit of input (Simonyan et al. 2014, sec. 3).

    The sign is kept and channels stay apart; the paper's map is their largest absolute value, which is rendering.

    Attributes:
        batch_size: examples of a pass.
        precision: how passes run; `fast` (bfloat16) is unfit for gradient maps (cosine to float32 about 0.91).
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients",)

    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        return _explain(self, score, inputs)


@dataclass(frozen=True)
class GradientTimesInput(LocalMethod):
    """The gradient times the input: a linear model's parts of the score (Shrikumar et al. 2016, sec. 3.1).

    For positively homogeneous networks (ReLU without biases) the parts add up to the score.

    Attributes:
        batch_size: examples of a pass.
        precision: how passes run.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients",)

    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map; `diagnostics["completeness_gap"]` is its sum minus the score."""
        found = _explain(self, score, inputs)
        values = found.values * inputs.detach().to(found.values)
        gap = values.flatten(1).sum(1, dtype=torch.float64) - found.score
        return replace(found, values=values, diagnostics={"completeness_gap": gap})


@dataclass(frozen=True)
class RectifierRule(LocalMethod):
    """Backward with another rule at each rectifier.

    Rectifiers are ReLU, ReLU6 and clamps from 0, as modules or functions. A network with other gates, such as
    GELU, is refused unless they are asked for; then each passes on its slope times the positive part.
    `diagnostics["gates"]` counts the rectifiers met.

    Attributes:
        gates: `rectifiers`, or `all` for leaky and smooth ones too.
        batch_size: examples of a pass.
        precision: how passes run.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients", "rectifiers")
    rule: ClassVar[Rule]

    gates: Which = "rectifiers"
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            RefusedError: if a gate can't be given the rule; the message names its kind.
        """
        return _explain(self, score, inputs, self.rule)


@dataclass(frozen=True)
class GuidedBackprop(RectifierRule):
    """The gradient, with what arrives at each rectifier cut to its positive part (Springenberg et al. 2015, sec. 3.4).

    The signal that leaves the first layer is not cut. Settings are those of `RectifierRule`.
    """

    rule: ClassVar[Rule] = "guided"


@dataclass(frozen=True)
class Deconvolution(RectifierRule):
    """Backward through the network, each rectifier passing what is positive (Zeiler & Fergus 2014, sec. 2.1).

    Pooling goes back to the positions of the maxima. Settings are those of `RectifierRule`.
    """

    rule: ClassVar[Rule] = "deconvolution"


@dataclass(frozen=True)
class SmoothGrad(LocalMethod):
    """The mean of a method's maps over inputs with Gaussian noise (Smilkov et al. 2017, sec. 3).

    All inputs get the same noise, so that none depends on which others are in the batch. Noise is never clipped
    to the valid range, which would bias the mean. The score reported is the clean input's.

    Attributes:
        method: what is smoothed.
        samples: noisy copies of each input.
        noise: the standard deviation, as a share of each input's range (largest minus smallest value) or in input units.
        unit: of the noise: `range` or `absolute`.
        statistic: `mean`; `square`, the mean of squared maps; `variance` of the maps (VarGrad, Adebayo et al. 2018).
        seed: of the noise.
        batch_size: noisy inputs handed to the method at once.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 8)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients",)

    method: AttributionMethod = field(default_factory=Saliency)
    samples: int = 50
    noise: float = 0.15
    unit: Literal["range", "absolute"] = "range"
    statistic: Literal["mean", "square", "variance"] = "mean"
    seed: int = 0
    batch_size: BatchSize = "auto"

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map; `diagnostics["standard_error"]` is its sampling error, of its shape.

        For the variance that is the error if maps were normally distributed. `diagnostics["noise"]` is each input's
        standard deviation of the noise: zero for an input of one value, whose range is none.
        """
        if self.samples < 2 or self.noise < 0:
            raise InputError(
                "SmoothGrad needs at least 2 samples and noise of at least 0, "
                f"got samples={self.samples} and noise={self.noise}."
            )
        scale = self._scale(inputs, None if score.beside is None else score.beside.read)
        with unchanged(score.model):
            passes = Passes.of(score, inputs, self.batch_size)
            clean = passes.values(inputs, torch.arange(len(inputs)))
            moments, last = Moments(), None
            for maps in self._maps(score, inputs, scale, max(1, passes.chunk // len(inputs)), passes):
                values = maps.values.reshape(-1, len(inputs), *maps.values.shape[1:]).double()
                moments.add(values.square() if self.statistic == "square" else values)
                last = maps
            assert last is not None
            values, error = moments.mean, (moments.variance / self.samples).sqrt()
            if self.statistic == "variance":
                values, error = moments.variance, moments.variance * (2 / (self.samples - 1)) ** 0.5
            return attribution(
                self,
                score,
                inputs,
                values.to(inputs.dtype),
                clean,
                n_forward=passes.n_forward,
                n_backward=passes.n_backward,
                diagnostics={"standard_error": error.to(inputs.dtype), "noise": scale},
                layer=last.layer,
                geometry=last.geometry,
                prepared=last.prepared,
            )

    def _scale(self, inputs: Tensor, read: Tensor | None) -> Float[Tensor, " n"]:
        """Return each input's standard deviation of the noise."""
        flat = inputs.flatten(1)
        scale = torch.full_like(flat[:, 0], self.noise)
        if self.unit == "absolute":
            return scale
        padding = torch.zeros_like(flat, dtype=torch.bool) if read is None else ~read.to(flat.device).flatten(1)
        highest, lowest = (flat.masked_fill(padding, end) for end in (-torch.inf, torch.inf))
        return scale * (highest.amax(1) - lowest.amin(1))

    def _maps(self, score: Score, inputs: Tensor, scale: Tensor, at_once: int, passes: Passes) -> Iterator[Attribution]:
        """Yield the method's maps of some noisy copies at a time, copies first, then examples."""
        generator = torch.Generator().manual_seed(self.seed)
        scale = scale.reshape(-1, *[1] * (inputs.ndim - 1))
        explain = self.method.explain if isinstance(self.method, LocalMethod) else self.method  # inputs were checked
        with Progress(self.samples, "SmoothGrad", unit="noisy copies of each input") as meter:
            for start in range(0, self.samples, at_once):
                count = min(at_once, self.samples - start)
                noise = torch.stack([_noise(score, inputs, generator) for _ in range(count)])
                maps = explain(score.of(torch.arange(len(inputs)).repeat(count)), (inputs + scale * noise).flatten(0, 1))
                passes.n_forward += maps.n_forward
                passes.n_backward += maps.n_backward
                meter.advance(count)
                yield maps


def _noise(score: Score, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Return one draw of noise for all inputs; of texts the same for their first tokens that are read, and so on."""
    beside = score.beside
    if beside is None or not beside.layers or len(beside.names) > 1:
        return _normal(inputs[:1], generator)
    read = beside.inputs.read
    if read is None or read.shape != inputs.shape[:2]:
        read = torch.ones(inputs.shape[:2], dtype=torch.bool)
    seed = int(torch.randint(2**62, (), generator=generator))
    # Token by token, since a draw of another length would have other numbers.
    draws = [_normal(inputs[0, 0], torch.Generator().manual_seed(seed + token)) for token in range(inputs.shape[1])]
    place = (read.cumsum(1) - 1).clamp(min=0).to(inputs.device)
    return torch.stack(draws)[place]


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return noise.to(like.device, like.dtype)


def _explain(
    method: Saliency | GradientTimesInput | RectifierRule,
    score: Score,
    inputs: Tensor,
    rule: Rule | None = None,
) -> Attribution:
    with unchanged(score.model):
        passes = Passes.of(score, inputs, method.batch_size, method.precision)
        if rule is None:
            value, gradient = passes.gradients(inputs)
            return passes.attribution(method, inputs, gradient, value)
        assert isinstance(method, RectifierRule)
        gates = Gates(rule, method.gates)
        value, gradient = passes.gradients(inputs, gates)
        count = torch.full((len(inputs),), gates.count // -(-len(inputs) // passes.chunk))
        return passes.attribution(method, inputs, gradient, value, diagnostics={"gates": count})
