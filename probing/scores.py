"""A score is what is explained: one scalar per example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Unit = Literal["logit", "probability", "logprob", "margin"]


class TargetError(IndexError):
    """A target is no class of the model, or does not fit the examples."""


class ModelModeError(RuntimeError):
    """A model is in training mode, where examples of a batch influence each other."""


class OutputError(TypeError):
    """A model's output is not one row of class scores per example."""


@dataclass(frozen=True)
class Score:
    """One number per example, read from the model's output; the default is the logit of a class, never a loss.

    Attributes:
        target: a class index, or one per example.
        unit: `logit`; `probability` (softmax, 0–1); `logprob`; `margin` (logit minus the largest other logit).
        output: which part of the output holds the class scores, a position or a key, where a model returns several.
    """

    model: nn.Module
    target: int | Int[Tensor, " examples"]
    unit: Unit = "logit"
    output: str | int | None = None

    def __call__(self, inputs: Tensor, rows: Int[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """Return the score of each input, differentiable.

        Args:
            inputs: in model space, `[n, …]`.
            rows: of which example each input is a variant, where `target` has one class per example.

        Raises:
            ModelModeError: if the model, or a part of it, is in training mode.
            OutputError: if the output is not `[n, classes]`.
            TargetError: if a target is no class, or targets and inputs differ in number.
        """
        refuse_training(self.model)
        return self.read(self.model(inputs), rows)

    def read(self, output: object, rows: Int[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """Return the score from an output of the model that is there already."""
        scores = class_scores(output, self.output)
        return _in_unit(scores, self._classes(scores, rows), self.unit)

    def _classes(self, scores: Float[Tensor, "n classes"], rows: Int[Tensor, " n"] | None) -> Int[Tensor, " n"]:
        n, classes = scores.shape
        if isinstance(self.target, Tensor):
            target = self.target.to(scores.device)
            if rows is None and len(target) != n:
                raise TargetError(f"score.target has {len(target)} classes for {n} inputs: give one each, or `rows`.")
            target = target if rows is None else target[rows.to(scores.device)]
        elif isinstance(self.target, int) and not isinstance(self.target, bool):
            target = torch.full((n,), self.target, device=scores.device)
        else:
            raise TargetError(f"score.target must be a class index or a tensor of them, got {self.target!r}.")
        if n and not (0 <= int(target.min()) and int(target.max()) < classes):
            bad = int(target.max()) if int(target.max()) >= classes else int(target.min())
            raise TargetError(f"class {bad} is out of range: the model has {classes} classes, 0 to {classes - 1}.")
        return target


def class_scores(output: object, part: str | int | None = None) -> Float[Tensor, "n classes"]:
    """Return the `[n, classes]` tensor in a model's output.

    Raises:
        OutputError: if there is none; the message names what the output holds.
    """
    if part is not None:
        try:
            output = output[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            raise OutputError(f"the model's output has no part {part!r}: it is {_holds(output)}.") from None
    if not isinstance(output, Tensor):
        raise OutputError(f"the model returns {_holds(output)}; name the class scores with Score(output=…).")
    if output.ndim != 2:
        raise OutputError(f"class scores must be [n, classes], got shape {tuple(output.shape)}.")
    return output


def refuse_training(model: nn.Module) -> None:
    """Raise `ModelModeError` if any part of the model is in training mode."""
    for name, module in model.named_modules():
        if module.training:
            where = f"{name!r} of {type(model).__name__}" if name else type(model).__name__
            raise ModelModeError(f"{where} is in training mode: call model.eval() before reading it.")


def _in_unit(scores: Float[Tensor, "n classes"], target: Int[Tensor, " n"], unit: Unit) -> Float[Tensor, " n"]:
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
