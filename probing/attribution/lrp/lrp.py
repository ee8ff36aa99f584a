"""Layer-wise relevance propagation (Bach et al. 2015), on the operations that a forward pass consists of."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probing.attribution.base import (
    Attribution,
    Demand,
    Family,
    LocalMethod,
    attribution,
    in_chunks,
)
from probing.attribution.lrp.composites import Composite, EpsilonPlusFlat, LrpLayer, PerLayer
from probing.attribution.lrp.operations import Flow, MixedRowsError, mark_gates
from probing.attribution.lrp.propagation import Backward, Tap
from probing.attribution.lrp.rules import Relevance
from probing.attribution.lrp.tape import Tape
from probing.attribution.score_passes import BatchSize, rows_at_once
from probing.core.doubles import doubled
from probing.core.errors import Mend
from probing.models.calling import run
from probing.models.consistency import refuse_inconsistent
from probing.models.geometry import RefusedError, naming_inputs
from probing.models.layers import LayerNotFoundError
from probing.models.model_cache import unchanged
from probing.models.precision import AS_GIVEN, Precision, device_of
from probing.models.readings import OutputError, Reading
from probing.models.scores import Score

_ENTRIES = {
    "bias": "absorbed_by_bias",
    "epsilon": "absorbed_by_epsilon",
    "softmax": "absorbed_by_softmax",
}


@runtime_checkable
class LayerTap(Tap, Protocol):
    """A tap of what a layer returns, which learns its key while the pass is recorded."""

    def noting(self, tape: Tape) -> AbstractContextManager[None]:
        """Return a context in which the pass is recorded."""

    def begun(self, start: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the relevance that went on from the layer, of that which the walk started with."""


@dataclass(frozen=True)
class LRP(LocalMethod):
    """Layer-wise relevance propagation: the score is shared among the inputs, layer by layer.

    Whatever a model computes is recorded operation by operation, whether modules, functions or operators run it;
    nothing is set on the model. BatchNorm after a layer is folded into it. Residual sums share in proportion to their
    terms; activations, dropout and reshaping pass relevance on; the deviation in normalisation layers, divisors and
    sigmoid gates count as constants; products of two activations share it in halves and a softmax inside the network
    passes gradient × input (AttnLRP, Achtibat et al. 2024). What has no rule is refused by module and operation.

    Of token ids, the layer that looks them up is the first one; what it returns gets the relevance. Rows of features have no
    first layer in that sense either: a rule for pixels would give each the same share.

    It takes class scores in every unit, and of readings those that are a sum of the model's outputs, each times a number: a
    column, a label's logit, a token's or the difference of two, a pixel, a region. Others are refused.

    `diagnostics` holds the ledger, each `[n]`: `input`, `absorbed_by_bias` (constants and position embeddings too),
    `absorbed_by_epsilon` (stabilisers, and what a rule drops), `absorbed_by_softmax`, their distance from the relevance
    at the start as `conservation_gap`, and `fallbacks`, the α-β outputs that lacked products of one sign.

    Holders of patents on LRP offer free use of it for personal and scientific purposes; commercial users should look
    into it.

    Attributes:
        composite: which layer gets which rule.
        start: `score`: the relevance is the score itself, which the ledger sums to. `one`: 1 at the target.
            `contrast`: the target's logit, minus the mean of the others.
        attention: `product`: half of what attention makes goes through its weights (AttnLRP); `constant`: all goes
            through the values (Ali et al. 2022).
        batch_size: inputs that run together.

    Raises:
        RefusedError: for an operation that relevance reaches and that has no rule, and where relevance is no finite
            number.
        LayerNotFoundError: for a key of `PerLayer` that fits no layer.

    Example:
        >>> LRP(EpsilonPlus())(Score(model, 3), images).diagnostics["absorbed_by_bias"]
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 8)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients", "operations")

    composite: Composite = field(default_factory=EpsilonPlusFlat)
    start: Literal["score", "one", "contrast"] = "score"
    attention: Literal["product", "constant"] = "product"
    batch_size: BatchSize = "auto"

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        with unchanged(score.model):
            found, how = self.walk(score, inputs)
            return attribution(
                self,
                score,
                inputs,
                found.values.to(inputs),
                found.score.to(inputs),
                n_forward=len(inputs),
                n_backward=len(inputs),
                diagnostics={name: entry.to(inputs.device) for name, entry in found.ledger.items()},
                prepared=how,
            )

    def walk(
        self, score: Score, inputs: Float[Tensor, "n *shape"], at: "Callable[[slice], LayerTap] | None" = None
    ) -> "tuple[Walked, str]":
        """Return maps, scores and ledgers, and how the model was prepared.

        Args:
            score: with its classes named.
            inputs: checked.
            at: gives, for some rows, what takes the relevance at a layer; see `probing.attribution.lrp.conditional`.
        """
        device = device_of(score.model)
        whole = score.given(inputs)
        with naming_inputs(score.model, whole):
            given = AS_GIVEN.prepare(score.model, (), device, whole)
        taken = given.dtype or inputs.dtype
        beside = None if score.beside is None else score.beside.placed(given.inputs)
        placed = replace(score, beside=beside)
        size = rows_at_once(inputs, self.batch_size, device)
        if self.batch_size == "auto":  # a rule holds several tensors of a layer's size at once
            size = max(1, size // 2)
        # Of a caller in that mode, tensors could not be written to as models with in-place operations do.
        with torch.inference_mode(False), torch.no_grad(), Precision().arithmetic(device):
            try:
                parts = in_chunks(
                    len(inputs),
                    size,
                    lambda rows: self._explain(placed, inputs, rows, taken, at),
                )
            except _OpenLedgerError:
                refuse_inconsistent(score.model, whole, device)  # the likeliest reason
                raise
        with naming_inputs(score.model, whole):
            refuse_inconsistent(score.model, whole, device)  # last: LRP's own refusals name more
        return Walked.join(parts), given.how

    def _explain(
        self,
        score: Score,
        inputs: Tensor,
        rows: slice,
        dtype: torch.dtype,
        at: "Callable[[slice], LayerTap] | None",
    ) -> "Walked":
        def some(part: slice) -> Walked:
            given = inputs[part].to(device_of(score.model), dtype)
            return self._propagate(score.of(part), given, None if at is None else at(part))

        try:
            return some(rows)
        except (MixedRowsError, torch.OutOfMemoryError):
            if len(inputs[rows]) == 1:
                raise
        return Walked.join([some(slice(i, i + 1)) for i in range(rows.start, rows.stop)])

    def _propagate(self, score: Score, inputs: Tensor, tap: "LayerTap | None") -> "Walked":
        # What is looked up for ids, and a table's features, are no pixels, which the first layer's rule is for.
        deep = inputs.ndim == 2 if score.beside is None else bool(score.beside.layers)
        tape = Tape(score.model, inputs.clone(), lambda points: run(score.model, score.given(points)), deep)
        with naming_inputs(score.model, inputs), nullcontext() if tap is None else tap.noting(tape):
            output = tape.record()
        outputs = score.whole(output)
        key = tape.key_of(outputs)
        if key is None:
            raise RefusedError("what is explained doesn't depend on the input by operations that can be recorded.")
        tape.forget_names()
        value, start = self._start(score, outputs.detach())
        mark_gates(tape, constant_attention=self.attention == "constant")
        begun = _by_example(doubled(start.of(outputs))).sum(1)
        last = tape.nodes[-1]
        if last.outputs[0] == key and last.name in {"_softmax", "_log_softmax"}:
            key, start = (
                last.inputs[0],
                Relevance(extra=start.of(outputs)),
            )  # cut off: the logits are explained
        flow = Flow(tape, {key: start})
        backward = Backward(flow, self.composite, tap)
        backward.run()
        if tap is None:  # else layers above alone may be met
            _refuse_idle_keys(self.composite, backward.met)
        return _finish(flow, value, begun if tap is None else tap.begun(begun))

    def _start(self, score: Score, outputs: Float[Tensor, "n ..."]) -> tuple[Tensor, Relevance]:
        """Return the score, and the relevance of the outputs that the walk back starts from."""
        score = replace(score, output=None)  # `outputs` is that part already
        value = score.read(outputs)
        if isinstance(score.target, Reading):
            return value, self._linear_start(score, outputs, value)
        target = _gradient(replace(score, unit="logit"), outputs)
        if self.start == "one":
            return value, Relevance(extra=target)
        if self.start == "contrast":
            others = outputs.shape[1] - 1
            if not others:
                raise OutputError(
                    "a contrast needs at least two classes, the model has one: start with its score",
                    mends=[Mend("do so", "start='score'")],
                )
            return value, Relevance(target - (1 - target) / others)
        if score.unit in {"logit", "margin"}:
            return value, Relevance(_gradient(score, outputs))
        return value, Relevance(extra=target * value.unsqueeze(1))

    def _linear_start(self, score: Score, outputs: Float[Tensor, "n ..."], value: Tensor) -> Relevance:
        """Return the relevance of what a reading takes: its own terms, which must add up to it."""
        if self.start != "score":
            raise OutputError(
                f"a start with {self.start!r} is one of classes:", mends=[Mend("start with the score", "start='score'")]
            )
        gradient = _gradient(score, outputs)
        terms = _by_example(doubled(gradient * outputs))
        if bool(((terms.sum(1) - value).abs() > 1e-4 * (terms.abs().sum(1) + value.abs())).any()):
            raise RefusedError(
                f"LRP shares out a score that is a sum of the model's outputs, each times a number, which {score.says!r} is "
                "not: use a method that needs gradients only, such as integrated gradients."
            )
        return Relevance(gradient)


@dataclass(frozen=True)
class Walked:
    """Maps, scores and ledgers of some inputs."""

    values: Tensor
    score: Float[Tensor, " n"]
    ledger: dict[str, Float[Tensor, " n"]]

    @classmethod
    def join(cls, parts: "Sequence[Walked]") -> "Walked":
        """Return several batches as one."""
        names = parts[0].ledger
        return cls(
            torch.cat([part.values for part in parts]),
            torch.cat([part.score for part in parts]),
            {name: torch.cat([part.ledger[name] for part in parts]) for name in names},
        )


def _by_example(values: Tensor) -> Float[Tensor, "n many"]:
    return values.reshape(len(values), -1)


def _gradient(score: Score, outputs: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        return torch.autograd.grad(score.read(leaf).sum(), leaf)[0]


def _finish(flow: Flow, score: Tensor, begun: Tensor) -> Walked:
    """Read the relevance of the input, and close the ledger."""
    inputs = flow.tape.inputs
    values = flow.relevance.get(0, Relevance()).of(inputs)
    nothing = torch.zeros_like(begun)
    ledger = {"input": doubled(values.flatten(1)).sum(1)}
    ledger |= {name: flow.ledger.get(entry, nothing) for entry, name in _ENTRIES.items()}
    entries = torch.stack(list(ledger.values()))
    ledger["conservation_gap"] = begun - entries.sum(0)
    _refuse_open_ledger(ledger["conservation_gap"], entries.abs().sum(0), inputs.dtype)
    ledger["fallbacks"] = flow.ledger.get("fallbacks", nothing)
    return Walked(values, score, ledger)


def _refuse_open_ledger(gap: Tensor, size: Tensor, dtype: torch.dtype) -> None:
    """Refuse a map whose relevance is undefined, or does not add up to what it started from."""
    tolerance = max(1e-3, 8 * torch.finfo(dtype).eps)
    undefined = ~(gap.isfinite() & size.isfinite())
    is_open = gap.abs() > tolerance * size
    if not bool((undefined | is_open).any()):
        return
    if undefined.any():
        raise RefusedError(
            f"the relevance of input {int(undefined.nonzero()[0])} is no finite number, so an activation or the score is "
            "none either: look for an overflow, which float64 mends, or for a row of attention that a mask hides altogether."
        )
    row = int(is_open.nonzero()[0])
    raise _OpenLedgerError(
        f"the relevance of input {row} and what was absorbed miss its start by {float(gap[row]):.3g}: this is rounding, "
        "which float64 mends."
    )


class _OpenLedgerError(RefusedError):
    """Relevance is lost or made on its way."""


def _refuse_idle_keys(composite: Composite, met: list[LrpLayer]) -> None:
    if not isinstance(composite, PerLayer):
        return
    if idle := [key for key in composite.rules if not any(composite.fits(key, layer) for layer in met)]:
        known = sorted({layer.path for layer in met})
        raise LayerNotFoundError(f"the rules for {idle} fit no layer that takes a rule; those are {known[:8]}.")
