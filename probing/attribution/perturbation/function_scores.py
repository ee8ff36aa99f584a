"""What any function says of rows: its class scores, checked."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from probing.core.inputs import InputError
from probing.models.readings import OutputError
from probing.models.scores import TargetError, classes


@dataclass
class Extent:
    """The range of all scores of a class so far."""

    low: float = float("inf")
    high: float = float("-inf")

    def add(self, scores: Float64[Tensor, " k"]) -> None:
        """Take in more scores."""
        self.low, self.high = min(self.low, float(scores.min())), max(self.high, float(scores.max()))

    def refuse_constant(self, target: int, hiding: str) -> None:
        """Raise `InputError` if no coalition changed the score, up to rounding."""
        if self.high - self.low <= 1e-7 * max(abs(self.high), abs(self.low)):
            raise InputError(f"the score of class {target} stays {self.high:.4g} whichever {hiding}?")


def named_class(target: object, scores: Float64[Tensor, " classes"]) -> int:
    """Return the class asked for; without one, that with the highest score.

    Raises:
        TargetError: if the target is no class.
    """
    if target is None:
        return int(scores.argmax())
    chosen, count = classes(target), len(scores)
    if not isinstance(chosen, int):
        raise TargetError(f"target must be a class index, got {target!r}.")
    if not 0 <= chosen < count:
        raise TargetError(f"class {chosen} is out of range: the function gives {count} classes, 0 to {count - 1}.")
    return chosen


def class_scores(output: object, count: int, of: str) -> Float64[Tensor, "n classes"]:
    """Return what a function returned as class scores on the CPU.

    Args:
        output: a tensor, an array or nested lists.
        count: of what it was given.
        of: what it was given, in one word, such as `text`.

    Raises:
        OutputError: if that is not one row of finite class scores each.
    """
    try:
        own = output.copy() if isinstance(output, np.ndarray) else output  # it may not be writable
        scores = torch.as_tensor(own).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError):
        raise OutputError(f"a {of} function must return class scores [n, classes], got a {type(output).__name__}.") from None
    if scores.ndim != 2 or len(scores) != count or not scores.shape[1]:
        raise OutputError(
            f"a {of} function must return [n, classes] for n {of}s, got shape {tuple(scores.shape)} for {count}."
        )
    if not torch.isfinite(scores).all():
        raise OutputError(f"a {of} function must return finite class scores, got NaN or infinity.")
    return scores
