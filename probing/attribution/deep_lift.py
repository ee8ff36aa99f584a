"""DeepLIFT: what each input's difference from a reference gave to the score's difference, and its mean over a background."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from probing.attribution.base import Attribution, Demand, Family, LocalMethod, Moments, attribution, in_chunks
from probing.attribution.baselines import ZERO, Baseline, Samples, baseline_of, samples_of, unmoved
from probing.attribution.lrp.tape import Tape
from probing.attribution.multipliers import Pair
from probing.attribution.reveal_cancel import reveal_cancel
from probing.attribution.score_passes import BatchSize, rows_at_once
from probing.core.doubles import doubled
from probing.core.errors import ArgumentError
from probing.core.inputs import InputError
from probing.models.calling import run
from probing.models.consistency import refuse_inconsistent
from probing.models.geometry import RefusedError, naming_inputs
from probing.models.model_cache import unchanged
from probing.models.precision import AS_GIVEN, Precision, device_of
from probing.models.scores import Score

DeepLIFTRule = Literal["rescale", "reveal_cancel"]


@dataclass(frozen=True)
class DeepLIFT(LocalMethod):
    """The score's difference from a reference, shared out by multipliers (Shrikumar et al. 2017).

    The map adds up to the score minus the baseline's (summation to delta, eq. 1 there); `diagnostics["completeness_gap"]` is
    rounding, and a map that misses more is refused. Whatever a model computes is recorded operation by operation, so that
    residual sums, activations that run twice and functions need no module. Functions of one value pass the ratio of their
    output's difference to their input's; of products and quotients of two activations each factor counts at its mean over
    input and reference; of a maximum over windows a rise goes to the place that has it, and a fall to the place that had it.
    What has no rule, such as a softmax or layer normalisation, is refused by module and operation.

    It takes class logits and what else is a sum of the model's outputs, each times a number; of a softmax, explain the logit
    (sec. 3.6). `unmoved` is the share of values that equal the baseline and get 0. With several baselines the map is their
    mean, and `baseline_spread` its standard deviation over them.

    Attributes:
        baseline: the reference; zero in model space unless given. A number, or a tensor with a row for each input or one
            for all, is one too.
        batch_size: inputs that run together.
        rule: `reveal_cancel` carries what raises a unit and what lowers it apart, so that in `min(a, b)`, written with a
            rectifier, each gets its part, where `rescale` gives all to one. It has rules for linear operations and for
            functions of one value that never fall; maxima over windows, products and other activations are refused.

    Raises:
        RefusedError: for an operation that has no rule, and where input and reference do not run the same operations.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 8)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients", "operations")

    baseline: Baseline | float | Tensor = ZERO
    batch_size: BatchSize = "auto"
    rule: DeepLIFTRule = "rescale"

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", baseline_of(self.baseline))
        if self.rule not in get_args(DeepLIFTRule):
            raise ArgumentError(f"rule must be one of {get_args(DeepLIFTRule)}, got {self.rule!r}.")

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            InputError: for a baseline of another shape.
        """
        starts = baseline_of(self.baseline)(inputs)
        if starts.shape[1:] != inputs.shape:
            raise InputError(f"the baseline has shape {tuple(starts.shape[1:])}, expected {tuple(inputs.shape)}.")
        return _mean(self, score, inputs, starts, self.batch_size, "baseline_spread", self.rule)


@dataclass(frozen=True)
class DeepSHAP(LocalMethod):
    """DeepLIFT averaged over references drawn from data (Lundberg & Lee 2017, sec. 4.2).

    Each row of the background is a reference of every input. The map adds up to the score minus the background's mean
    score. It equals Shapley values where the network is linear or its units are fed apart; elsewhere it is what DeepLIFT's
    rules make of it. `diagnostics["standard_error"]` is the error of each value by the choice of the background.

    Attributes:
        background: inputs that stand for the data, as `Samples` or a tensor with one in each row.
        batch_size: inputs that run together.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 8)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients", "operations")

    background: Samples | Tensor
    batch_size: BatchSize = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "background", self._samples)

    @property
    def _samples(self) -> Samples:
        return samples_of(self.background)

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            InputError: if the background is of another shape.
        """
        pool = self._samples.like(inputs)
        starts = pool[:, None].expand(-1, *inputs.shape)
        return _mean(self, score, inputs, starts, self.batch_size, "standard_error")


def _mean(
    method: DeepLIFT | DeepSHAP,
    score: Score,
    inputs: Tensor,
    starts: Float[Tensor, "draws n *shape"],
    size: BatchSize,
    told: str,
    rule: DeepLIFTRule = "rescale",
) -> Attribution:
    """Return the mean of maps from several references to each input."""
    device, whole = device_of(score.model), score.given(inputs)
    with unchanged(score.model):
        with naming_inputs(score.model, whole):
            given = AS_GIVEN.prepare(score.model, (), device, whole)
        beside = None if score.beside is None else score.beside.placed(given.inputs)
        placed, dtype = replace(score, beside=beside), given.dtype or inputs.dtype
        at_once = rows_at_once(inputs, size, device)
        if size == "auto":  # all activations of two passes are held at once
            at_once = max(1, at_once // 4)

        def some(rows: slice) -> tuple[Tensor, ...]:
            of, one = placed.of(rows), inputs[rows].to(device, dtype)
            return _maps(of, one, [start[rows].to(device, dtype) for start in starts], rule)

        # Of a caller in that mode, tensors could not be written to as models with in-place operations do.
        with torch.inference_mode(False), torch.no_grad(), Precision().arithmetic(device):
            try:
                parts = in_chunks(len(inputs), at_once, some)
            except _GapError:
                refuse_inconsistent(score.model, whole, device)  # the likeliest reason
                raise
        with naming_inputs(score.model, whole):
            refuse_inconsistent(score.model, whole, device)  # last: refusals of operations name more
        mean, variance, value, base = (torch.cat(t).to(inputs.device) for t in zip(*parts, strict=True))
        gap = mean.flatten(1).sum(1) - (value - base).double()
        size_ = (value - base).double().abs()
        diagnostics = {"completeness_gap": gap, "relative_gap": torch.where(size_ > 0, gap.abs() / size_, torch.nan)}
        diagnostics["unmoved"] = unmoved(starts, inputs, score.beside)
        if len(starts) > 1:
            spread = variance.sqrt()
            diagnostics[told] = spread / len(starts) ** 0.5 if told == "standard_error" else spread
        return attribution(
            method,
            score,
            inputs,
            mean.to(inputs),
            value.to(inputs),
            n_forward=len(inputs) * (1 + len(starts)),
            n_backward=len(inputs) * len(starts),
            baseline_score=base.to(inputs),
            diagnostics={k: d.to(inputs) for k, d in diagnostics.items()},
            prepared=given.how,
        )


def _maps(score: Score, inputs: Tensor, starts: Sequence[Tensor], rule: DeepLIFTRule) -> tuple[Tensor, ...]:
    """Return mean and variance of maps over references, the score, and the references' mean score."""
    ours, output = _recorded(score, inputs)
    value = replace(score, output=None).read(output)
    moments, bases = Moments(), []
    for start in starts:
        theirs, reference = _recorded(score, start)
        base = replace(score, output=None).read(reference)
        pair = Pair(ours, theirs)
        key = ours.key_of(output)
        if key is None:
            raise RefusedError("what is explained doesn't depend on the input by operations that can be recorded.")
        slope = _start(score, output, reference, value - base)
        if rule == "reveal_cancel":
            found = doubled(reveal_cancel(pair, key, slope))
        else:
            pair.multipliers[key] = slope
            found = doubled(pair.run() * pair.change(0))
        pair.refuse_differing()
        _refuse_gap(pair, found, doubled(value - base), doubled(value.abs() + base.abs()))
        moments.add(found[None])
        bases.append(base)
    return moments.mean, moments.variance, value, torch.stack(bases).mean(0)


def _recorded(score: Score, points: Tensor) -> tuple[Tape, Tensor]:
    deep = points.ndim == 2 if score.beside is None else bool(score.beside.layers)
    tape = Tape(score.model, points.clone(), lambda p: run(score.model, score.given(p)), deep)
    with naming_inputs(score.model, points):
        return tape, score.whole(tape.record())


def _start(score: Score, output: Tensor, reference: Tensor, change: Tensor) -> Tensor:
    """Return the multipliers of the model's output, which must account for the change of the score."""
    with torch.enable_grad():
        leaf = output.detach().requires_grad_()
        (slope,) = torch.autograd.grad(replace(score, output=None).read(leaf).sum(), leaf)
    terms, own = (doubled(slope * t).reshape(len(output), -1) for t in (output - reference, output))
    size = terms.abs().sum(1) + own.abs().sum(1)
    if bool(((terms.sum(1) - doubled(change)).abs() > 1e-4 * size).any()):
        raise RefusedError(
            "DeepLIFT shares out the difference of a score that is a sum of the model's outputs, each times a number, which "
            f"{score.says!r} is not: explain the logit."
        )
    return slope


class _GapError(RefusedError):
    """A map does not add up."""


def _refuse_gap(pair: Pair, found: Tensor, change: Tensor, size: Tensor) -> None:
    """Refuse a map that does not add up to the change of the score by more than rounding."""
    gap = (found.flatten(1).sum(1) - change).abs()
    tolerance = max(1e-3, 8 * torch.finfo(pair.ours.inputs.dtype).eps)
    good = gap <= tolerance * (found.flatten(1).abs().sum(1) + size)
    if bool(good.all()):
        return
    row = int((~good).nonzero()[0])
    raise _GapError(
        f"the multipliers of input {row} miss the change of its score by {float(gap[row]):.3g}, most at {pair.worst()} by "
        "more than rounding, which float64 mends: if it does not, use integrated gradients."
    )
