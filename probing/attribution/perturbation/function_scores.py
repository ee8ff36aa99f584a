"""What any function says of rows: its class scores, checked."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from probing.core.inputs import InputError
from probing.core.progress import Progress
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


@dataclass
class CoalitionScores:
    """What a function gives for coalitions of parts, call by call; keeps how many inputs it got, and the scores' range.

    Attributes:
        predict: from coalitions to the class scores of all inputs that render them, those of one beside each other.
        target: the class.
        of: what the function is given, in one word, such as `text`.
        batch_size: inputs of a call.
        each: inputs that render a coalition, over which the mean is taken.
    """

    predict: Callable[[Bool[Tensor, "k parts"]], object]
    target: int
    of: str
    batch_size: int
    each: int = 1
    count: int = 0
    extent: Extent = field(default_factory=Extent)

    def __call__(self, kept: Bool[Tensor, "k parts"]) -> Float64[Tensor, " k"]:
        """Return the score of each coalition."""
        found = []
        with Progress(len(kept), "LIME", unit="coalitions") as meter:
            for part in torch.split(kept, max(1, self.batch_size // self.each)):
                count = len(part) * self.each
                scores = class_scores(self.predict(part), count, self.of)[:, self.target]
                found.append(scores.view(len(part), -1).mean(1))
                self.count += count
                meter.advance(len(part))
        scores = torch.cat(found)
        self.extent.add(scores)
        return scores
