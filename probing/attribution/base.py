"""What every local method takes and returns."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probing.core.doubles import near
from probing.core.inputs import InputError, one_tensor
from probing.models.geometry import Geometry, naming_inputs
from probing.models.model_cache import identity
from probing.models.precision import AS_GIVEN, device_of
from probing.models.scores import Score, TargetError, refuse_training
from probing.results.heatmaps import ALPHA, PERCENTILE, Channels
from probing.results.result import Provenance, Result, describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")


@dataclass(frozen=True)
class Attribution(Result):
    """A map per example, in score units; positive values are evidence that raises the score.

    Nothing is normalised, rectified or summed over channels here: that is rendering. Maps lie where the inputs did, or on
    the CPU if there is no float64 there.
    """

    values: Float[Tensor, "n *shape"]
    """Of the inputs' shape; `[n, 1, h, w]` at the layer's own resolution for class activation maps."""
    score: Float[Tensor, " n"]
    """What was explained: the score of each input."""
    target: tuple[int, ...]
    """The class of each input."""
    unit: str
    """The unit of the score, such as `logit`."""
    n_forward: int
    """Examples passed forward, all variants counted."""
    n_backward: int
    """Examples passed backward."""
    baseline_score: Float[Tensor, " n"] | None = None
    """The score at the baseline, for methods that have one."""
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """What tells how far to trust the map, each `[n]` or of the map's shape: `completeness_gap`, `standard_error`,
    `absorbed_by_bias`, `r2` …"""
    layer: str = ""
    """The layer that a class activation map was read at."""
    layout: str = ""
    """How its output was read, such as `7 x 7 cells, maps [n, c, h, w]`."""
    geometry: Geometry | None = None
    """Where the cells of a class activation map lie in the input; None for maps of another shape."""
    prepared: str = ""
    """How the model and its inputs were prepared for the passes, such as `channels_last, 17 BatchNorm folded` or
    `examples cast to float16`; `as given` if not at all."""

    def upsampled(self) -> Float[Tensor, "n *shape"]:
        """Return the map at the input's resolution; what has it already is returned as it is.

        Bilinear between the centres of the cells' receptive fields, and constant outside the outermost
        ones (Bau et al. 2017, sec. 2.2); no value is rescaled.
        """
        if self.geometry is None:
            return self.values
        cells = self.values.shape[2:]
        rows, columns = (
            self.geometry.weights(axis, cells[axis]).to(self.values) for axis in range(2)
        )
        return rows @ self.values @ columns.T

    def plot(
        self,
        inputs: Float[Tensor, "n c h w"] | None = None,
        *,
        channels: Channels = "sum",
        alpha: float | None = ALPHA,
        percentile: float = PERCENTILE,
        edges: bool = False,
    ) -> "Figure":
        """Return a figure of the maps at the input's resolution, with scales, scores and checks.

        Args:
            inputs: what was explained, to be shown beside the maps; stretched to their extremes unless they lie
                between 0 and 1.
            channels: how a pixel's channels become one value.
            alpha: share of the heat map where it is laid over the input; None to leave that out.
            percentile: of a map's absolute values, shown in full colour.
            edges: whether an edge detector's map stands beside them, as a control.

        Raises:
            RenderError: if the values are no maps of images.
        """
        from probing.attribution import shown

        return shown.plot(
            self, inputs, channels=channels, alpha=alpha, percentile=percentile, edges=edges
        )

    def _repr_html_(self) -> str:
        from probing.attribution import shown

        return shown.notebook_html(self)


@runtime_checkable
class AttributionMethod(Protocol):
    """A frozen dataclass of hyperparameters that explains scores of inputs; it holds no model."""

    def __call__(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the attribution of each input's score."""
        ...


def checked(score: Score, inputs: Tensor, *, integers: bool = False) -> tuple[Score, Tensor]:
    """Return the score with its classes named, and the inputs, detached, if they can be explained.

    Inputs on a device without float64 are brought to the CPU, where maps add up; the model runs where it lies.

    The passes that this takes, where no class is named or the unit is a probability, are not counted.

    Args:
        score: asked for its model and targets.
        inputs: one example per row.
        integers: whether whole numbers, such as token ids, are inputs too.

    Raises:
        InputError: for what is not one tensor, an empty batch, integers, NaN or infinity.
        ModelModeError: for a model in training mode.
        TargetError: for targets of another number than the inputs.
        OutputError: for probabilities of what are probabilities already.
    """
    refuse_training(score.model)
    one_tensor(inputs)
    if inputs.ndim < 2 or not inputs.numel():
        raise InputError(
            f"inputs must be a batch [n, …] of at least one, got shape {tuple(inputs.shape)}."
        )
    if not inputs.is_floating_point() and not integers:
        raise InputError(f"inputs must be floating point in model space, got {inputs.dtype}.")
    if not torch.isfinite(inputs).all():
        row = int((~torch.isfinite(inputs.flatten(1))).any(1).nonzero()[0])
        raise InputError(f"input {row} holds NaN or infinity.")
    inputs = inputs.detach().to(near(inputs.device))
    with naming_inputs(score.model, inputs):
        score = score.named(inputs)
    if isinstance(score.target, Tensor) and len(score.target) != len(inputs):
        raise TargetError(
            f"score.target must have one class per input, {len(inputs)}, got shape {tuple(score.target.shape)}."
        )
    if score.unit in {"probability", "logprob"}:
        _read_with_graph(score_of(score, slice(0, 1)), inputs[:1])
    return score, inputs


def _read_with_graph(score: Score, one: Tensor) -> None:
    """Read a score where it can be seen whether the model ends with a sigmoid: passes without a graph don't tell."""
    with naming_inputs(score.model, one), torch.random.fork_rng():
        given = AS_GIVEN.prepare(score.model, (), device_of(score.model), one)
        with torch.inference_mode(False), torch.enable_grad():
            at = given.inputs(one)
            output = score.model(at.requires_grad_(at.is_floating_point()))
            score.read(output)


def images_only(inputs: Tensor) -> Tensor:
    """Return the inputs if they are images."""
    if inputs.ndim != 4:
        raise InputError(
            f"class activation maps need images [n, c, h, w], got shape {tuple(inputs.shape)}."
        )
    return inputs


def classes_of(score: Score, count: int) -> list[int]:
    """Return the class of each input."""
    target = score.target
    if isinstance(target, Tensor):
        return [int(t) for t in target]
    if not isinstance(target, int):
        raise TargetError(
            "score.target is None: name its classes by `score, inputs = checked(score, inputs)`."
        )
    return [target] * count


def attribution(
    method: AttributionMethod,
    score: Score,
    inputs: Tensor,
    values: Tensor,
    value: Tensor,
    **facts: object,
) -> Attribution:
    """Return a method's result, with its provenance filled in."""
    provenance = replace(
        _process(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=identity(score.model),
        method=describe(method),
    )
    classes = tuple(classes_of(score, len(inputs)))
    fixed = (provenance, values.detach(), value.detach(), classes, score.unit)
    return Attribution(*fixed, **facts)  # type: ignore[arg-type]  # fields, checked by name


@cache
def _process() -> Provenance:
    """Return what is the same for all results of this process; looking up versions takes longer than a small map."""
    return Provenance.collect()


def score_of(score: Score, rows: slice) -> Score:
    """Return the score of some of the inputs only."""
    return replace(score, target=score.target[rows]) if isinstance(score.target, Tensor) else score


def in_chunks(count: int, size: int, work: Callable[[slice], T]) -> list[T]:
    """Call `work` on consecutive slices of at most `size`."""
    return [work(slice(start, min(start + size, count))) for start in range(0, count, size)]


class Moments:
    """Running mean and variance over the first axis (Chan et al. 1983, eq. 2.1); give it float64."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, values: Float[Tensor, "count *shape"]) -> None:
        """Take in more values."""
        mean, total = values.mean(0), self.count + len(values)
        step = mean - self._mean
        between = step.square() * (self.count * len(values) / total)
        self._squares = self._squares + (values - mean).square().sum(0) + between
        self._mean = self._mean + step * (len(values) / total)
        self.count = total

    @property
    def mean(self) -> Float[Tensor, "*shape"]:
        """The mean so far."""
        return self._mean

    @property
    def variance(self) -> Float[Tensor, "*shape"]:
        """The unbiased variance so far; zero for a single value."""
        return self._squares / max(self.count - 1, 1)
