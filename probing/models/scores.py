"""A score is what is explained: one scalar per example."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, SupportsIndex, get_args

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from probing.core.errors import ArgumentError, Mend, ProbingError
from probing.core.inputs import Batch, batch_of, pieces
from probing.models.calling import run
from probing.models.explained import Explained
from probing.models.loading import LoadedModel, Model, module_of
from probing.models.precision import AS_GIVEN, device_of
from probing.models.readings import OutputError, Reading, holds, joined, made_probabilities, maker_of, part_of, ways_to_read

Unit = Literal["logit", "probability", "logprob", "margin"]
Target = int | np.integer[Any] | str | Sequence[SupportsIndex] | Sequence[str] | npt.NDArray[Any] | Tensor | Reading | None
"""A class index, or one per example: whatever is a whole number is one; a name for a model that came with names of its
classes. None: the top class of each input. What is no class score is named by a `Reading`."""

_ROWS = 32  # that look for their top class together


class TargetError(ProbingError, IndexError):
    """A target is no class of the model, or does not fit the examples."""


class ModelModeError(ProbingError, RuntimeError):
    """A model is in training mode, where examples of a batch influence each other."""


@dataclass(frozen=True, init=False)
class Score:
    """One number per example, read from the model's output: by default the logit of a class.

    Where the output is not `[n, classes]`, or another number of it is meant, a reading stands in the place of the class:
    `Label`, `Regression`, `NextToken`, `Span`, `Pixel`, `Region`, `Box`, `Similarity`, or `Custom` with a function.

    Attributes:
        model: a module, or what `load` returns; kept as a module.
        target: a class index, or one per example, as numbers of any whole type, or by name where the model came with
            names of its classes; kept as an `int` or a tensor. None stands for the class that the model gives each
            input, which methods hold on to while they change it. Or a reading.
        unit: of a class `logit` (if not said), `probability` (softmax, 0–1), `logprob`, its logarithm, or `margin` (logit
            minus the largest other logit). A model with one class score is taken for a binary classifier whose score is
            the logit of its label 1: `probability` is the sigmoid. A reading has its own unit.
        output: which part of the output is read, a position, a key or an attribute, where a model returns several; by
            default the `logits` of what models of transformers return.
        beside: which of named inputs are explained, and what stands beside them; None where the model takes one tensor.

    Raises:
        TargetError: if the target is no whole number, nor one per example.
        ClassNameError: if no class has that name, or several have.

    Example:
        >>> Score(load("torchvision:resnet18"), "zebra", unit="probability")(images)
        >>> Score(segmenter, Pixel(15, (120, 80)), output="out")(images)
    """

    model: nn.Module
    target: int | Tensor | Reading | None
    unit: str
    output: str | int | None
    beside: Explained | None

    def __init__(
        self,
        model: Model,
        target: Target = None,
        unit: str | None = None,
        output: str | int | None = None,
        beside: Explained | None = None,
    ) -> None:
        if isinstance(target, Reading):
            if unit not in {None, target.unit}:
                raise ArgumentError(
                    f"a {type(target).__name__} is in units of its own, {target.unit!r}: leave out unit={unit!r}."
                )
            unit = target.unit
        unit = "logit" if unit is None else unit
        if not isinstance(target, Reading) and unit not in get_args(Unit):
            raise ArgumentError(f"score.unit must be one of {get_args(Unit)}, got {unit!r}.")
        if isinstance(model, LoadedModel):
            target = _by_name(model, target)
        elif _holds_names(target):
            raise TargetError(f"only a model from `load` knows its classes by name: give their numbers, got {target!r}.")
        read = target if isinstance(target, Reading) else classes(target)
        fields = {"model": module_of(model), "target": read, "unit": unit}
        for name, value in (fields | {"output": output, "beside": beside}).items():
            object.__setattr__(self, name, value)

    def given(self, inputs: Batch, rows: Int[Tensor, " n"] | None = None) -> Batch:
        """Return all that the model is given: points of the explained inputs, with the others beside them.

        Args:
            inputs: one tensor of points, or what is whole already.
            rows: of which example each point is a variant.
        """
        if self.beside is None or not isinstance(inputs, Tensor):
            return inputs
        return self.beside.join(inputs, rows)

    def __call__(self, inputs: Batch | Mapping[str, Tensor], rows: Int[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """Return the score of each input, differentiable.

        Args:
            inputs: in model space, `[n, …]`, or named tensors.
            rows: of which example each input is a variant, for a `target` with a class per example.

        Raises:
            ModelModeError: if the model, or a part of it, is in training mode.
            InputError: if the inputs are neither one tensor nor named ones.
            OutputError: if the output is not `[n, classes]`, or holds probabilities where the unit is one.
            TargetError: if a target is no class, or targets and inputs differ in number.
        """
        refuse_training(self.model)
        whole = self.given(batch_of(inputs), rows)
        output = run(self.model, whole)
        named = self if rows is not None else self.of_texts(whole)
        score = (named._named(output) if named.is_open and rows is None else named).read(output, rows)
        if len(score) != len(whole):
            raise OutputError(f"the model returns {len(score)} rows of scores for {len(whole)} inputs.")
        return score

    @property
    def is_open(self) -> bool:
        """Whether it names no class, or a part of its reading is yet to be found for each input: `named` does so."""
        return self.target is None or (isinstance(self.target, Reading) and self.target.open)

    @property
    def count(self) -> int | None:
        """Of how many examples it has a target for each; None if that is the same for all."""
        if isinstance(self.target, Reading):
            return self.target.count
        return len(self.target) if isinstance(self.target, Tensor) else None

    def of(self, rows: Tensor | slice | int) -> "Score":
        """Return the score of some of the examples; of one, by its number, it is one that is the same for all."""
        score = self
        if score.beside is not None:
            score = replace(score, beside=score.beside.at(slice(rows, rows + 1) if isinstance(rows, int) else rows))
        if score.count is None:
            return score
        if isinstance(score.target, Reading):
            return replace(score, target=score.target.rows(rows))
        assert isinstance(score.target, Tensor)
        return replace(score, target=score.target[rows])

    def names(self, count: int) -> tuple[int | str, ...]:
        """Return what is explained of each of so many inputs: its class, or the name of what is read.

        Raises:
            TargetError: if the score names none.
        """
        if isinstance(self.target, Reading):
            return tuple(self.target.rows(row).name for row in range(count)) if self.count else (self.target.name,) * count
        if isinstance(self.target, Tensor):
            return tuple(int(t) for t in self.target)
        if self.target is None:
            raise TargetError("score.target is None: name its classes by `score, inputs = checked(score, inputs)`.")
        return (self.target,) * count

    def keys(self, count: int) -> tuple[Hashable, ...]:
        """Return for each of so many inputs what tells scores of one from those of another: equal for equal targets."""
        found: tuple[Hashable, ...] = self.names(count)
        if isinstance(self.target, Reading):
            own = self.target
            found = tuple(own.rows(row).key for row in range(count)) if self.count else (own.key,) * count
        return found if self.beside is None else tuple(enumerate(found))  # other inputs are each example's own

    @property
    def column(self) -> int | Tensor | None:
        """Which column of an output `[n, outputs]` it is as it stands, as a class's logit is; None if it is more."""
        if isinstance(self.target, Reading):
            return self.target.column
        return self.target if self.unit == "logit" else None

    @property
    def says(self) -> str:
        """What is read, in words, with the content of what is no class: results name it."""
        part = "" if self.output is None else f" of output {self.output!r}"
        if isinstance(self.target, Reading):
            return f"{self.target.name} ({self.unit}){part}: {self.target.key}"
        of = f"class {self.target}" if isinstance(self.target, int) else "a class of each input"
        return f"{self.unit} of {of}{part}"

    def named(self, inputs: Batch | Mapping[str, Tensor]) -> "Score":
        """Return the score with its classes named: where it names none, those that the model gives these inputs.

        Inputs that are changed, and copies of the model, would otherwise each have a favourite class of their own. The same
        is done with what a reading leaves open, such as the box of a detected object.
        """
        if not self.is_open:
            return self
        refuse_training(self.model)
        inputs = self.given(batch_of(inputs)).detach()
        given = AS_GIVEN.prepare(self.model, (), device_of(self.model), inputs)
        starts = range(0, len(inputs), _ROWS)
        scores = [self.of(slice(i, i + _ROWS)) for i in starts]
        found = [s._named(given.output(p)).target for s, p in zip(scores, pieces(inputs, _ROWS), strict=True)]
        if isinstance(self.target, Reading):
            return replace(self, target=joined([r for r in found if isinstance(r, Reading)]))
        return replace(self, target=torch.cat([t.cpu() for t in found if isinstance(t, Tensor)]))

    def of_texts(self, inputs: Batch) -> "Score":
        """Return the score read at no padding, of texts whose mask tells it.

        Raises:
            OutputError: if what it names is padding.
        """
        read = None if isinstance(inputs, Tensor) else inputs.read
        if not isinstance(self.target, Reading) or read is None or self.count not in {None, len(read)}:
            return self
        return replace(self, target=self.target.of_texts(read))

    def _named(self, output: object) -> "Score":
        if isinstance(self.target, Reading):
            return replace(self, target=self.target.named(part_of(output, self.output)))
        return replace(self, target=class_scores(output, self.output).argmax(1))

    def whole(self, output: object) -> Tensor:
        """Return what a score of this kind is read from, `[n, …]`: all class scores, or the tensor that a reading takes.

        Raises:
            OutputError: if that is no tensor.
        """
        if not isinstance(self.target, Reading):
            return class_scores(output, self.output)
        part = part_of(output, self.output)
        if not isinstance(part, Tensor) or not part.is_floating_point():
            raise OutputError(f"what is read of the output must be one tensor here, got {holds(part)}.")
        return part

    def read(self, output: object, rows: Int[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """Return the score from an output of the model that is there already."""
        if isinstance(self.target, Reading):
            return _read(self.target, part_of(output, self.output), rows)
        scores = class_scores(output, self.output)
        target = self._targets(scores, rows)
        low, high = self._extremes() if len(target) else (0, 0)
        if low < 0 or high >= scores.shape[1]:
            bad = low if low < 0 else high
            if scores.shape[1] == 1:
                raise TargetError(
                    f"class {bad} is out of range: the model has one class score, class 0, which is the logit of label "
                    "1 if it is a binary classifier."
                )
            raise TargetError(
                f"class {bad} is out of range: the model has {scores.shape[1]} classes, 0 to {scores.shape[1] - 1}."
            )
        return _in_unit(scores, target, self.unit)

    def _extremes(self) -> tuple[int, int]:
        """Return the smallest and the largest class, read where they lie: an accelerator would have to be waited for."""
        if not isinstance(self.target, Tensor):
            return self.target, self.target  # type: ignore[return-value]  # a class, as `_targets` has seen
        low, high = self.target.aminmax()
        return int(low), int(high)

    def _targets(self, scores: Float[Tensor, "n classes"], rows: Tensor | None) -> Int[Tensor, " n"]:
        """Return the class of each row of scores."""
        if isinstance(self.target, int):
            return torch.full((len(scores),), self.target, device=scores.device)
        if not isinstance(self.target, Tensor):
            raise TargetError(
                "score.target is None, the top class of each input, but here it is not known which inputs are meant: "
                "name a class, or use score.named(inputs)."
            )
        target = self.target.to(scores.device)
        if rows is not None:
            if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(target)):
                raise TargetError(
                    f"rows must name examples 0 to {len(target) - 1}, one per class of the target; "
                    f"got {int(rows.min())} to {int(rows.max())}."
                )
            target = target[rows.to(scores.device)]
        if len(target) != len(scores):
            what = "score.target has" if rows is None else "rows name"
            raise TargetError(f"{what} {len(target)} classes for {len(scores)} inputs: give one each, or `rows`.")
        return target


def _read(reading: Reading, part: object, rows: Int[Tensor, " n"] | None) -> Float[Tensor, " n"]:
    """Return what a reading reads, of the examples that rows name."""
    if reading.count is not None and rows is not None:
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= reading.count):
            raise TargetError(
                f"rows must name examples 0 to {reading.count - 1}, one per value of the {type(reading).__name__}; "
                f"got {int(rows.min())} to {int(rows.max())}."
            )
        reading = reading.rows(rows)
    if reading.count is not None and isinstance(part, Tensor | list) and len(part) != reading.count:
        raise TargetError(
            f"the {type(reading).__name__} has values for {reading.count} of {len(part)} inputs: give one each."
        )
    return reading(part)


def classes(target: object) -> int | Int[Tensor, " examples"] | None:
    """Return a target as a class index or a tensor of them.

    Raises:
        TargetError: if it is no whole number, nor one per example.
    """
    if target is None or type(target) is int:
        return target
    try:
        values = target if isinstance(target, Tensor) else torch.tensor(np.asarray(target))
    except (TypeError, ValueError):  # text, or lists of several lengths
        raise _no_target(repr(target)) from None
    if isinstance(target, Sequence) and not len(target):
        values = values.long()  # an empty list has no type of its own
    whole = not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
    if not whole or values.ndim > 1:
        many = values.ndim > 0
        raise _no_target(f"{values.dtype} of shape {tuple(values.shape)}" if many else repr(target))
    return values.long() if values.ndim else int(values)


def _by_name(model: LoadedModel, target: Target) -> Target:
    """Return a target whose classes may be named as numbers."""
    if isinstance(target, str):
        return model.class_index(target)
    if isinstance(target, Sequence) and _holds_names(target):
        return [model.class_index(t if isinstance(t, str) else int(t)) for t in target]
    return target


def _holds_names(target: Target) -> bool:
    if isinstance(target, Sequence) and not isinstance(target, str):
        return any(isinstance(t, str) for t in target)
    return isinstance(target, str)


def _no_target(got: str) -> TargetError:
    return TargetError(
        "score.target must be the number of a class, or one per example, or None for the top class of each input, "
        f"got {got}."
    )


def class_scores(output: object, part: str | int | None = None) -> Float[Tensor, "n classes"]:
    """Return the `[n, classes]` tensor in a model's output.

    Raises:
        OutputError: if there is none; the message names what the output holds.
    """
    output = part_of(output, part)
    ways = ways_to_read(output)
    if not isinstance(output, Tensor):
        raise OutputError(
            f"the model returns {holds(output)}:",
            mends=ways or [Mend("name the class scores", "Score(output=…)")],
        )
    if output.ndim != 2 or not output.is_floating_point():
        got = f"{output.dtype} of shape {tuple(output.shape)}"
        raise OutputError(
            f"class scores must be real numbers of shape [n, classes], got {got}{':' if ways else '.'}", mends=ways
        )
    return output


def refuse_training(model: nn.Module) -> None:
    """Raise `ModelModeError` if any part of the model is in training mode."""
    if not any(module.training for module in model.modules()):
        return
    for name, module in model.named_modules():
        if module.training:
            where = f"{name!r} of {type(model).__name__}" if name else type(model).__name__
            raise ModelModeError(f"{where} is in training mode: call model.eval() before reading it.")


def _in_unit(scores: Float[Tensor, "n classes"], target: Int[Tensor, " n"], unit: str) -> Float[Tensor, " n"]:
    index = target.unsqueeze(1)
    if unit in {"probability", "logprob"}:
        _refuse_probabilities(scores, unit)
        if scores.shape[1] == 1:
            return (torch.sigmoid if unit == "probability" else F.logsigmoid)(scores[:, 0])
        normal = scores.softmax(dim=1) if unit == "probability" else scores.log_softmax(dim=1)
        return normal.gather(1, index).squeeze(1)
    chosen = scores.gather(1, index).squeeze(1)
    if unit == "logit":
        return chosen
    if scores.shape[1] < 2:
        raise OutputError("a margin needs at least two classes, the model has one.")
    return chosen - scores.scatter(1, index, -torch.inf).amax(dim=1)


def _are_probabilities(scores: Float[Tensor, "n classes"]) -> bool:
    """Whether class scores are probabilities already: they add up to 1, or a sigmoid or softmax made them.

    The latter can be seen only where a graph is recorded.
    """
    if maker_of(scores) in {"SigmoidBackward0", "SoftmaxBackward0"}:
        return True
    if not len(scores) or scores.shape[1] < 2:
        return False
    values = scores.detach()
    slack = max(1e-4, 8 * torch.finfo(values.dtype).eps)
    adds_up = ((values.double().sum(1) - 1).abs() <= slack).all()
    return bool(adds_up & (values >= 0).all())


def _refuse_probabilities(scores: Tensor, unit: str) -> None:
    if _are_probabilities(scores):
        raise made_probabilities(unit)
