"""What every local method takes and returns."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from probing.core.doubles import near
from probing.core.errors import ArgumentError
from probing.core.inputs import Batch, InputError, Inputs, batch_of
from probing.models.calling import run
from probing.models.explained import Explained, split_points
from probing.models.geometry import Geometry, naming_inputs
from probing.models.loading import Model
from probing.models.model_cache import identity
from probing.models.precision import AS_GIVEN, device_of
from probing.models.scores import Score, Target, TargetError, refuse_training
from probing.results.heatmaps import (
    ALPHA,
    PERCENTILE,
    Channels,
    Column,
    RenderError,
    edge_control,
    pictures,
    reduce_channels,
    side_by_side,
)
from probing.results.notebook import picture_html
from probing.results.result import Provenance, Result, describe
from probing.results.text_highlight import highlight_figure, highlight_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
Family = Literal["backprop", "local", "network"]
Demand = Literal["gradients", "layer", "head", "rectifiers", "operations", "attention"]

_MOST_SHOWN = 4  # rows of what a notebook displays


@dataclass(frozen=True)
class Attribution(Result):
    """A map per example, in units of the score; positive values are evidence that raises the score.

    Nothing is normalised, rectified or summed over channels here: that is rendering. Maps lie where the inputs did, or on
    the CPU if there is no float64 there.
    """

    values: Float[Tensor, "n *shape"]
    """Of the inputs' shape; `[n, 1, h, w]` at the layer's own resolution for class activation maps, `[n, 1, t]` of series
    and `[n, 1, d, h, w]` of volumes."""
    score: Float[Tensor, " n"]
    """What was explained: the score of each input."""
    target: tuple[int | str, ...]
    """The class of each input, or the name of what is read of the output instead."""
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
    signed: bool = True
    """Whether a value says by its sign whether a place raises the score; False for shares, as of attention rollout."""
    explained: str = ""
    """What was read of the output, such as `logit of class 3`; what is no class is named with its content."""
    prepared: str = ""
    """How the model and its inputs were prepared for the passes, such as `channels_last, 17 BatchNorm folded` or
    `examples cast to float16`; `as given` if not at all."""
    input_names: tuple[str, ...] = ()
    """Names of the inputs that are explained, where the model takes named ones; see `parts`."""
    input_shapes: tuple[tuple[int, ...], ...] = ()
    """Of the explained inputs, for one example: of token ids, of what is looked up for them, `[tokens, features]`."""
    read: Bool[Tensor, "n tokens"] | None = None
    """Which tokens are read, and no padding; None where no mask tells."""
    tokens: tuple[tuple[str, ...], ...] = ()
    """Of each input, each with the gap before it, as far as that is known; none where they are not known."""

    def token_values(self) -> Float[Tensor, "n tokens"]:
        """Return what each token contributes, its features added up.

        Raises:
            RenderError: if the values are no maps `[n, tokens, features]`.
        """
        if self.values.ndim != 3:
            raise RenderError(f"values of tokens are [n, tokens, features], got shape {tuple(self.values.shape)}.")
        return self.values.sum(2)

    def parts(self) -> dict[str, Tensor]:
        """Return the map of each explained input by its name, in its shape; several lie in one row of `values`.

        Raises:
            RenderError: for inputs without names, or a map of something else than the inputs.
        """
        if not self.input_names:
            raise RenderError("the map is of one tensor without a name, or not of the inputs: read `.values`.")
        return split_points(self.values, self.input_names, self.input_shapes)

    def upsampled(self) -> Float[Tensor, "n *shape"]:
        """Return the map at the input's resolution; what has it already is returned as it is.

        Linear along each axis between the centres of the cells' receptive fields, and constant outside the outermost
        ones (Bau et al. 2017, sec. 2.2); no value is rescaled.
        """
        return self.values if self.geometry is None else self.geometry.spread(self.values)

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

        Of texts whose tokens are known it is the first one, its tokens in the colours of what they contribute.

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
        if self.tokens and self.values.ndim == 3:
            return highlight_figure(*self._text(0), caption=self._caption(0))
        said = zip(self.target, self.score.tolist(), strict=True)
        names = [f"{_called(target)}\n{self.unit} {score:.3g}" for target, score in said]
        if inputs is None:
            notes = tuple("\n".join(lines) for lines in zip(names, self.checks(), strict=True))
            return side_by_side([self.column(self._title, channels=channels, notes=notes)])
        images = pictures(inputs)
        shown = [self.column(self._title, channels=channels, notes=self.checks())]
        if alpha is not None:
            shown.append(self.column("over the input", channels=channels, alpha=alpha))
        if edges:
            shown.append(edge_control(images))
        return side_by_side(shown, images, names=names, percentile=percentile)

    def checks(self) -> tuple[str, ...]:
        """Return for each input what tells how far to trust its map, in one short line; empty where nothing does."""
        return tuple(_check({k: d[row] for k, d in self.diagnostics.items()}, self, row) for row in range(len(self.values)))

    def column(
        self,
        title: str,
        *,
        channels: Channels = "sum",
        notes: tuple[str, ...] = (),
        alpha: float | None = None,
    ) -> Column:
        """Return the maps as a column of a figure, at the input's resolution.

        Channels that all hold the same, as of superpixels, are one.

        Raises:
            RenderError: if the values are no maps `[n, c, h, w]`.
        """
        if self.values.ndim != 4:
            raise RenderError(
                f"heat maps need values [n, c, h, w], got shape {tuple(self.values.shape)}: "
                "read `.values` where inputs are no images, or `.upsampled()`."
            )
        maps = self.upsampled().detach().cpu()
        if bool((maps == maps[:, :1]).all()):
            maps = maps[:, :1]
        signed = channels == "sum" and self.signed
        return Column(title, reduce_channels(maps, channels), notes, signed=signed, alpha=alpha)

    @property
    def _title(self) -> str:
        """The name of the class that made it."""
        return str(self.provenance.method.get("class", "")).rpartition(":")[2] or "attribution"

    def _repr_html_(self) -> str:
        from markupsafe import escape

        cells = "".join(
            f"<tr><td>{row}</td><td>{escape(self.target[row])}</td><td>{float(self.score[row]):.4g}</td><td>{escape(said)}</td></tr>"
            for row, said in enumerate(self.checks()[:_MOST_SHOWN])
        )
        more = len(self.values) - _MOST_SHOWN
        what = "class" if isinstance(self.target[0], int) else "score"
        head = f"<tr><th>input</th><th>{what}</th><th>{escape(self.unit)}</th><th>check</th></tr>"
        where = f", layer {escape(self.layer)}" if self.layer else ""
        parts = [f"<p><b>{escape(self._title)}</b>{where}, {tuple(self.values.shape)}</p>"]
        if self.values.ndim == 4 and bool(torch.isfinite(self.values).all()):
            parts.append(picture_html(self._first().plot(), f"{self._title}: heat maps"))
        if self.tokens and self.values.ndim == 3:
            some = range(min(_MOST_SHOWN, len(self.values)))
            parts += [self.text_html(row) for row in some]
        parts.append(f"<table>{head}{cells}</table>")
        if more > 0:
            parts.append(f"<p>and {more} more</p>")
        return f"<div>{''.join(parts)}</div>"

    def text_html(self, row: int) -> str:
        """Return a text as an HTML element, its tokens in the colours of what they contribute.

        Raises:
            RenderError: where the tokens are not known.
        """
        if not self.tokens:
            raise RenderError(
                "the tokens of these inputs are not known: give Inputs(…, tokens=…), as loaded.preprocess does."
            )
        return highlight_html(*self._text(row), caption=self._caption(row))

    def _text(self, row: int) -> tuple[str, list[list[tuple[int, int]]], list[float]]:
        """Return a text made of its tokens, where each stands, and what it contributes; padding is left out."""
        values = self.token_values()[row].tolist()
        shown = [True] * len(values) if self.read is None else self.read[row].tolist()
        kept = [(t, v) for t, v, read in zip(self.tokens[row], values, shown, strict=True) if read]
        tokens = [token for token, _ in kept]
        if not any(token[:1].isspace() for token in tokens):  # without the gaps between them
            tokens = [f" {token}" if i else token for i, token in enumerate(tokens)]
        ends = list(accumulate(map(len, tokens), initial=0))
        spans = [[(e - len(t.lstrip()), e)] for t, e in zip(tokens, ends[1:], strict=True)]
        return "".join(tokens), spans, [value for _, value in kept]

    def _caption(self, row: int) -> str:
        return f"{self.unit} of {self.target[row]}: {float(self.score[row]):.3g}. {self.checks()[row]}".strip()

    def _first(self) -> "Attribution":
        part = slice(0, _MOST_SHOWN)
        base = None if self.baseline_score is None else self.baseline_score[part]
        return replace(
            self,
            values=self.values[part],
            score=self.score[part],
            target=self.target[part],
            baseline_score=base,
            read=None if self.read is None else self.read[part],
            tokens=self.tokens[part],
            diagnostics={name: d[part] for name, d in self.diagnostics.items()},
        )


def _called(target: int | str) -> str:
    return f"class {target}" if isinstance(target, int) else target


def _check(facts: dict[str, Tensor], found: Attribution, row: int) -> str:
    if "conservation_gap" in facts:
        score = float(found.score[row])
        bias = float(facts["absorbed_by_bias"])
        return f"input {float(facts['input']):+.3g}, bias {bias:+.3g} of {score:+.3g}"
    if "r2" in facts:
        score, given = float(found.score[row]), float(facts["prediction"])
        lost = int(facts.get("unhidden_parts", torch.tensor(0)))
        same = f"; {lost} parts look the same hidden" if lost else ""
        return f"{r2_in_words(float(facts['r2']))}, gives {given:+.3g} of {score:+.3g}{same}"
    if "completeness_gap" in facts:
        return _sum_check(facts, found, row)
    if "standard_error" in facts:
        return _noise_check(facts, found.values[row])
    return _void_check(facts)


def _sum_check(facts: dict[str, Tensor], found: Attribution, row: int) -> str:
    """Return by how much a map misses the change of the score that it should add up to."""
    unmoved = float(facts.get("unmoved", torch.tensor(0.0)))
    if unmoved == 1:
        return "empty: the input is its own baseline"
    gap = float(facts["completeness_gap"])
    base = 0.0 if found.baseline_score is None else float(found.baseline_score[row])
    whole = abs(float(found.score[row]) - base)
    share = f" ({abs(gap) / whole:.1%})" if whole > 0 else ""
    missed = "" if bool(facts.get("converged", torch.tensor(True))) else ", not converged"
    own = f"; {unmoved:.0%} equals the baseline and gets 0" if unmoved >= 0.005 else ""
    return f"gap {gap:+.2g}{share}{missed}{own}"


def _void_check(facts: dict[str, Tensor]) -> str:
    """Return why a map, or some of it, is empty, if it is: nothing raises the score, or hiding changes nothing."""
    if bool(facts.get("nothing_positive", torch.tensor(False))):
        return "empty: nothing raises the score"
    if lost := int(facts.get("unhidden_parts", torch.tensor(0))):
        return f"{lost} parts look the same hidden"
    share = float(facts.get("unmoved", torch.tensor(0.0)))
    if share == 1:
        return "empty: the input is what hides it"
    return f"{share:.0%} looks the same hidden" if share >= 0.005 else ""


def _noise_check(facts: dict[str, Tensor], values: Tensor) -> str:
    """Return the error of a map by the draw of noise, if there was any."""
    if not float(facts.get("noise", torch.tensor(1.0))):
        return "no noise: the input has one value"
    if not float(facts.get("variance", torch.tensor(1.0))):
        return "empty: no mask changes the score"
    size, error = float(values.abs().mean()), float(facts["standard_error"].mean())
    return f"standard error {error / size:.0%}" if size > 0 else ""


def r2_in_words(r2: float) -> str:
    """Return an R², or that there is none."""
    if math.isnan(r2):
        return "no R\N{SUPERSCRIPT TWO}: what was hidden changed nothing"
    return f"R\N{SUPERSCRIPT TWO} {r2:.2f}"


@runtime_checkable
class AttributionMethod(Protocol):
    """A frozen dataclass of hyperparameters that explains scores of inputs; it holds no model."""

    def __call__(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the attribution of each input's score."""
        ...


class LocalMethod(ABC):
    """What local methods share: they check what they are given, and take a model and a target where there is no score.

    A method is a frozen dataclass of hyperparameters with `explain`, which gets a score whose classes are named and
    inputs that can be explained.

    Example:
        >>> IntegratedGradients()(model, images, target=3)
        >>> IntegratedGradients()(Score(model, 3, unit="probability"), images)
    """

    takes_integers: ClassVar[bool] = False
    """Whether whole numbers, such as token ids, are inputs too."""
    family: ClassVar[Family]
    """`backprop` for what follows gradients, `local` for what fits the score around the input."""
    answers: ClassVar[tuple[int, ...]]
    """Which of the scorecard's questions what it returns holds the answer to, numbered from 1."""
    demands: ClassVar[tuple[Demand, ...]]
    """What it asks of a network besides forward passes. A scorecard needs all three, and refuses a method without."""

    def __call__(self, score: Score | Model, inputs: Batch | Mapping[str, Tensor], target: Target = None) -> Attribution:
        """Return the attribution of each input's score.

        Args:
            score: what is explained, or a model, of which that is the logit of the target.
            inputs: one example per row, in model space: a tensor, or named tensors, of which some are explained and the
                others go with their row. Token ids are explained at the output of the layer that looks them up.
            target: of a model: a class, or one per input; by default the top class of each.

        Raises:
            ArgumentError: if a target is given beside a score, which has its own.
            InputError, ModelModeError, TargetError, OutputError: as `checked` says.
        """
        if not isinstance(score, Score):
            score = Score(score, target)
        elif target is not None:
            raise ArgumentError("the score names its target already: give a model and a target, or a score.")
        return self.explain(*checked(score, inputs, integers=self.takes_integers))

    @abstractmethod
    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the attribution of each input's score, which was checked."""


def checked(
    score: Score, inputs: Batch | Mapping[str, Tensor], *, integers: bool = False
) -> tuple[Score, Shaped[Tensor, "n *shape"]]:
    """Return the score with its classes named, and the inputs, detached, if they can be explained.

    Of named inputs, and of token ids, what is returned is what is explained of them; the score holds the others.
    Inputs on a device without float64 are brought to the CPU, where maps add up; the model runs where it lies.

    The passes that this takes, where no class is named or the unit is a probability, are not counted.

    Args:
        score: asked for its model and targets.
        inputs: one example per row.
        integers: whether whole numbers, such as token ids, are explained themselves.

    Raises:
        InputError: for what is no tensor or named ones, an empty batch, whole numbers that no layer looks up, NaN or
            infinity.
        ModelModeError: for a model in training mode.
        TargetError: for targets of another number than the inputs.
        OutputError: for probabilities of what are probabilities already.
    """
    refuse_training(score.model)
    score, inputs = _set_apart(score, batch_of(inputs), integers=integers)
    if not torch.isfinite(inputs).all():
        row = int((~torch.isfinite(inputs.flatten(1))).any(1).nonzero()[0])
        raise InputError(f"input {row} holds NaN or infinity.")
    inputs = inputs.detach().to(near(inputs.device))
    with naming_inputs(score.model, inputs):
        score = score.named(inputs).of_texts(score.given(inputs))
    if score.count not in {None, len(inputs)}:
        raise TargetError(
            f"score.target must have one class per input, {len(inputs)}, got shape {tuple(score.target.shape)}."
            if isinstance(score.target, Tensor)
            else f"the {type(score.target).__name__} has values for {score.count} of {len(inputs)} inputs: give one each."
        )
    if score.unit in {"probability", "logprob"}:
        _read_with_graph(score.of(slice(0, 1)), inputs[:1])
    return score, inputs


def _set_apart(score: Score, inputs: Batch, *, integers: bool) -> tuple[Score, Tensor]:
    """Return what is explained of the inputs, and the score with the others, unless it holds these already."""
    if inputs.ndim < 2 or not inputs.numel():
        raise InputError(f"inputs must be a batch [n, …] of at least one, got shape {tuple(inputs.shape)}.")
    if isinstance(inputs, Tensor):
        if inputs.is_floating_point() or integers:
            return score, inputs
        if score.beside is not None:
            raise InputError("the score holds other inputs already, and points of these are real numbers: give a new score.")
        if inputs.dtype in {torch.bool, torch.uint8} or inputs.ndim != 2:
            raise InputError(f"inputs must be floating point in model space, or token ids [n, tokens], got {inputs.dtype}.")
        inputs = Inputs({"": inputs})
    with naming_inputs(score.model, inputs):
        explained, points = Explained.of(score.model, inputs, integers=integers)
    return replace(score, beside=explained), points


def _read_with_graph(score: Score, one: Tensor) -> None:
    """Read a score where it can be seen whether the model ends with a sigmoid: passes without a graph don't tell."""
    whole = score.given(one)
    with naming_inputs(score.model, whole), torch.random.fork_rng():
        given = AS_GIVEN.prepare(score.model, (), device_of(score.model), whole)
        with torch.inference_mode(False), torch.enable_grad():
            at = given.inputs(whole)
            for tensor in [at] if isinstance(at, Tensor) else [*at.tensors.values(), *at.put.values()]:
                tensor.requires_grad_(tensor.is_floating_point())
            score.read(run(score.model, at))


def with_places(inputs: Tensor, what: str = "class activation maps need") -> Tensor:
    """Return the inputs if they are images, series or volumes, which is what something needs."""
    if inputs.ndim not in {3, 4, 5}:
        raise InputError(
            f"{what} images [n, c, h, w], series [n, c, t] or volumes [n, c, d, h, w], got shape {tuple(inputs.shape)}."
        )
    return inputs


def attribution(
    method: object,
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
    fixed = (provenance, values.detach(), value.detach(), score.names(len(inputs)), score.unit)
    beside = score.beside
    if beside is not None:
        facts |= {"read": beside.inputs.read, "tokens": beside.inputs.tokens}
        if values.shape == inputs.shape and beside.names != ("",):
            facts |= {"input_names": beside.names, "input_shapes": beside.shapes}
    return Attribution(*fixed, **({"explained": score.says} | facts))  # type: ignore[arg-type]  # fields, checked by name


@cache
def _process() -> Provenance:
    """Return what is the same for all results of this process; looking up versions takes longer than a small map."""
    return Provenance.collect()


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
