"""A score is what is explained: one scalar per example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, SupportsIndex, get_args

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from probing.core.errors import ArgumentError, Mend, ProbingError
from probing.core.inputs import one_tensor
from probing.models.loading import LoadedModel, Model, module_of
from probing.models.precision import AS_GIVEN, device_of

Unit = Literal["logit", "probability", "logprob", "margin"]
Target = int | np.integer[Any] | str | Sequence[SupportsIndex] | Sequence[str] | npt.NDArray[Any] | Tensor | None
"""A class index, or one per example: whatever is a whole number is one; a name for a model that came with names of its
classes. None: the top class of each input."""

_ROWS = 32  # that look for their top class together


class TargetError(ProbingError, IndexError):
    """A target is no class of the model, or does not fit the examples."""


class ModelModeError(ProbingError, RuntimeError):
    """A model is in training mode, where examples of a batch influence each other."""


class OutputError(ProbingError, TypeError):
    """A model's output is not one row of class scores per example."""


@dataclass(frozen=True, init=False)
class Score:
    """One number per example, read from the model's output: by default the logit of a class.

    Attributes:
        model: a module, or what `load` returns; kept as a module.
        target: a class index, or one per example, as numbers of any whole type, or by name where the model came with
            names of its classes; kept as an `int` or a tensor. None stands for the class that the model gives each
            input, which methods hold on to while they change it.
        unit: `logit`; `probability` (softmax, 0–1); `logprob`, its logarithm; `margin` (logit minus the largest other
            logit). A model with one class score is taken for a binary classifier whose score is the logit of its
            label 1: `probability` is the sigmoid.
        output: which part of the output holds the class scores, a position or a key, where a model
            returns several.

    Raises:
        TargetError: if the target is no whole number, nor one per example.
        ClassNameError: if no class has that name, or several have.

    Example:
        >>> Score(load("torchvision:resnet18"), "zebra", unit="probability")(images)
    """

    model: nn.Module
    target: int | Tensor | None
    unit: Unit
    output: str | int | None

    def __init__(
        self,
        model: Model,
        target: Target = None,
        unit: Unit = "logit",
        output: str | int | None = None,
    ) -> None:
        if unit not in get_args(Unit):
            raise ArgumentError(f"score.unit must be one of {get_args(Unit)}, got {unit!r}.")
        if isinstance(model, LoadedModel):
            target = _by_name(model, target)
        elif _holds_names(target):
            raise TargetError(f"only a model from `load` knows its classes by name: give their numbers, got {target!r}.")
        fields = {"model": module_of(model), "target": classes(target), "unit": unit}
        for name, value in (fields | {"output": output}).items():
            object.__setattr__(self, name, value)

    def __call__(self, inputs: Tensor, rows: Int[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """Return the score of each input, differentiable.

        Args:
            inputs: in model space, `[n, …]`.
            rows: of which example each input is a variant, for a `target` with a class per example.

        Raises:
            ModelModeError: if the model, or a part of it, is in training mode.
            InputError: if the inputs are not one tensor.
            OutputError: if the output is not `[n, classes]`, or holds probabilities where the unit is one.
            TargetError: if a target is no class, or targets and inputs differ in number.
        """
        refuse_training(self.model)
        output = self.model(one_tensor(inputs))
        read = self._at_top(output) if self.target is None and rows is None else self
        score = read.read(output, rows)
        if len(score) != len(inputs):
            raise OutputError(f"the model returns {len(score)} rows of scores for {len(inputs)} inputs.")
        return score

    def named(self, inputs: Shaped[Tensor, "n *shape"]) -> "Score":
        """Return the score with its classes named: where it names none, those that the model gives these inputs.

        Inputs that are changed, and copies of the model, would otherwise each have a favourite class of their own.
        """
        if self.target is not None:
            return self
        refuse_training(self.model)
        inputs = one_tensor(inputs).detach()
        given = AS_GIVEN.prepare(self.model, (), device_of(self.model), inputs)
        found = [self._at_top(given.output(part)).target for part in torch.split(inputs, _ROWS)]
        return replace(self, target=torch.cat([t.cpu() for t in found if isinstance(t, Tensor)]))

    def _at_top(self, output: object) -> "Score":
        return replace(self, target=class_scores(output, self.output).argmax(1))

    def read(self, output: object, rows: Int[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """Return the score from an output of the model that is there already."""
        scores = class_scores(output, self.output)
        target = self._targets(scores, rows)
        if len(target) and (int(target.min()) < 0 or int(target.max()) >= scores.shape[1]):
            bad = int(target.min()) if int(target.min()) < 0 else int(target.max())
            if scores.shape[1] == 1:
                raise TargetError(
                    f"class {bad} is out of range: the model has one class score, class 0, which is the logit of label "
                    "1 if it is a binary classifier."
                )
            raise TargetError(
                f"class {bad} is out of range: the model has {scores.shape[1]} classes, 0 to {scores.shape[1] - 1}."
            )
        return _in_unit(scores, target, self.unit)

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
            rows = rows.to(scores.device)
            if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(target)):
                raise TargetError(
                    f"rows must name examples 0 to {len(target) - 1}, one per class of the target; "
                    f"got {int(rows.min())} to {int(rows.max())}."
                )
            target = target[rows]
        if len(target) != len(scores):
            what = "score.target has" if rows is None else "rows name"
            raise TargetError(f"{what} {len(target)} classes for {len(scores)} inputs: give one each, or `rows`.")
        return target


def classes(target: object) -> int | Int[Tensor, " examples"] | None:
    """Return a target as a class index or a tensor of them.

    Raises:
        TargetError: if it is no whole number, nor one per example.
    """
    if target is None:
        return None
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
    if part is not None:
        output = _part(output, part)
    if not isinstance(output, Tensor):
        raise OutputError(
            f"the model returns {_holds(output)}:",
            mends=[Mend("name the class scores", "Score(output=…)")],
        )
    if output.ndim != 2 or not output.is_floating_point():
        raise OutputError(
            f"class scores must be real numbers of shape [n, classes], got {output.dtype} of shape {tuple(output.shape)}."
        )
    return output


def _part(output: object, part: str | int) -> object:
    problem = f"the model's output has no part {part!r}: it is {_holds(output)}."
    if isinstance(output, Tensor):  # whose parts are examples
        raise OutputError(problem)
    try:
        return output[part]  # type: ignore[index]  # whatever is no container says so
    except (KeyError, IndexError, TypeError):
        raise OutputError(problem) from None


def refuse_training(model: nn.Module) -> None:
    """Raise `ModelModeError` if any part of the model is in training mode."""
    for name, module in model.named_modules():
        if module.training:
            where = f"{name!r} of {type(model).__name__}" if name else type(model).__name__
            raise ModelModeError(f"{where} is in training mode: call model.eval() before reading it.")


def _in_unit(scores: Float[Tensor, "n classes"], target: Int[Tensor, " n"], unit: Unit) -> Float[Tensor, " n"]:
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
    if _maker(scores) in {"SigmoidBackward0", "SoftmaxBackward0"}:
        return True
    if not len(scores) or scores.shape[1] < 2:
        return False
    values = scores.detach()
    slack = max(1e-4, 8 * torch.finfo(values.dtype).eps)
    adds_up = ((values.double().sum(1) - 1).abs() <= slack).all()
    return bool(adds_up & (values >= 0).all())


def _maker(tensor: Tensor) -> str:
    """Return the name of what computed a tensor, reshaping and copying aside."""
    node = tensor.grad_fn
    while node is not None and node.name().startswith(_RESHAPES):
        node = node.next_functions[0][0]
    return "" if node is None else node.name()


_RESHAPES = (
    "View",
    "UnsafeView",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Clone",
    "Alias",
    "Transpose",
    "Permute",
    "TBackward",
    "Select",
    "Slice",
    "ToCopy",
)


def _refuse_probabilities(scores: Tensor, unit: str) -> None:
    if _are_probabilities(scores):
        raise OutputError(
            f"the model returns probabilities already, of which no {unit} can be taken anew: read them as they are",
            mends=[Mend("do so", "unit='logit'")],
        )


def _holds(output: object) -> str:
    if isinstance(output, Mapping):
        return f"a mapping with keys {list(output)}"
    if isinstance(output, Sequence) and not isinstance(output, str):
        return f"a {type(output).__name__} of {[type(o).__name__ for o in output]}"
    return f"a {type(output).__name__}"
