"""A score is what is explained: one scalar per example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probing.errors import ArgumentError, Mend, ProbingError

Unit = Literal["logit", "probability", "logprob", "margin"]


class TargetError(ProbingError, IndexError):
    """A target is no class of the model, or does not fit the examples."""


class ModelModeError(ProbingError, RuntimeError):
    """A model is in training mode, where examples of a batch influence each other."""


class OutputError(ProbingError, TypeError):
    """A model's output is not one row of class scores per example."""


@dataclass(frozen=True)
class Score:
    """One number per example, read from the model's output: by default the logit of a class.

    Attributes:
        target: a class index, or one per example.
        unit: `logit`; `probability` (softmax, 0–1); `logprob`; `margin` (logit minus the largest
            other logit).
        output: which part of the output holds the class scores, a position or a key, where a model
            returns several.
    """

    model: nn.Module
    target: int | Int[Tensor, " examples"]
    unit: Unit = "logit"
    output: str | int | None = None

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ArgumentError(f"score.unit must be one of {get_args(Unit)}, got {self.unit!r}.")

    def __call__(
        self, inputs: Tensor, rows: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """Return the score of each input, differentiable.

        Args:
            inputs: in model space, `[n, …]`.
            rows: of which example each input is a variant, for a `target` with a class per example.

        Raises:
            ModelModeError: if the model, or a part of it, is in training mode.
            OutputError: if the output is not `[n, classes]`.
            TargetError: if a target is no class, or targets and inputs differ in number.
        """
        refuse_training(self.model)
        score = self.read(self.model(inputs), rows)
        if len(score) != len(inputs):
            raise OutputError(
                f"the model returns {len(score)} rows of scores for {len(inputs)} inputs."
            )
        return score

    def read(self, output: object, rows: Int[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """Return the score from an output of the model that is there already."""
        scores = class_scores(output, self.output)
        target = self._targets(scores, rows)
        if len(target) and (int(target.min()) < 0 or int(target.max()) >= scores.shape[1]):
            bad = int(target.min()) if int(target.min()) < 0 else int(target.max())
            raise TargetError(
                f"class {bad} is out of range: the model has {scores.shape[1]} classes, "
                f"0 to {scores.shape[1] - 1}."
            )
        return _in_unit(scores, target, self.unit)

    def _targets(
        self, scores: Float[Tensor, "n classes"], rows: Tensor | None
    ) -> Int[Tensor, " n"]:
        """Return the class of each row of scores."""
        if isinstance(self.target, int) and not isinstance(self.target, bool):
            return torch.full((len(scores),), self.target, device=scores.device)
        target = class_indices(self.target).to(scores.device)
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
            raise TargetError(
                f"{what} {len(target)} classes for {len(scores)} inputs: give one each, or `rows`."
            )
        return target


def class_indices(target: object) -> Int[Tensor, " examples"]:
    """Return a target that gives each example its class.

    Raises:
        TargetError: if it is no tensor of whole numbers, one per example.
    """
    if not isinstance(target, Tensor):
        raise TargetError(
            f"score.target must be a class index or a tensor of them, got {target!r}."
        )
    if (
        target.ndim != 1
        or target.dtype == torch.bool
        or target.is_floating_point()
        or target.is_complex()
    ):
        raise TargetError(
            "score.target must hold one whole number per example, "
            f"got {target.dtype} of shape {tuple(target.shape)}."
        )
    return target.long()


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
            "class scores must be real numbers of shape [n, classes], "
            f"got {output.dtype} of shape {tuple(output.shape)}."
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
            raise ModelModeError(
                f"{where} is in training mode: call model.eval() before reading it."
            )


def _in_unit(
    scores: Float[Tensor, "n classes"], target: Int[Tensor, " n"], unit: Unit
) -> Float[Tensor, " n"]:
    index = target.unsqueeze(1)
    if unit == "logprob":
        return scores.log_softmax(dim=1).gather(1, index).squeeze(1)
    if unit == "probability":
        return scores.softmax(dim=1).gather(1, index).squeeze(1)
    chosen = scores.gather(1, index).squeeze(1)
    if unit == "logit":
        return chosen
    if scores.shape[1] < 2:
        raise OutputError("a margin needs at least two classes, the model has one.")
    return chosen - scores.scatter(1, index, -torch.inf).amax(dim=1)


def _holds(output: object) -> str:
    if isinstance(output, Mapping):
        return f"a mapping with keys {list(output)}"
    if isinstance(output, Sequence) and not isinstance(output, str):
        return f"a {type(output).__name__} of {[type(o).__name__ for o in output]}"
    return f"a {type(output).__name__}"
