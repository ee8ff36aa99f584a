"""Forward and backward passes of one score, through a prepared copy of its model, in chunks that fit."""

from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.attribution.base import Attribution, AttributionMethod, attribution
from probing.attribution.rectifiers import Gates
from probing.core.inputs import InputError
from probing.models.calling import run
from probing.models.consistency import refuse_inconsistent
from probing.models.geometry import naming_inputs
from probing.models.gradients import ZeroPathError
from probing.models.model_cache import remembered
from probing.models.precision import Precision, Prepared, device_of
from probing.models.readings import OutputError
from probing.models.scores import Score

BatchSize = int | Literal["auto"]
"""Rows (examples times steps or samples) of a pass; `auto` suits the machine. Results depend on it by rounding only."""
Call = Callable[[Tensor, Tensor | None], object]
"""(points, of which example each is a variant) → the model's output."""

FLOAT32 = Precision("float32")

# Elements of a batch that suit a CPU: activations past 32 MB go back to the kernel and are faulted in again.
_CPU_ELEMENTS = 8 * 3 * 224 * 224
_ELSEWHERE_ELEMENTS = 64 * 3 * 224 * 224
_MOST_ROWS = 256


@dataclass
class Passes:
    """Passes of a score through a prepared copy of its model; a count of examples passed is kept.

    Attributes:
        score: of the prepared copy.
        origin: the score asked for.
        prepared: the copy, and how batches enter it.
        call: runs the copy, or the part of it that is wanted.
        chunk: rows of a pass.
    """

    score: Score
    origin: Score
    prepared: Prepared
    call: Call
    chunk: int
    n_forward: int = 0
    n_backward: int = 0

    @classmethod
    def of(
        cls,
        score: Score,
        inputs: Tensor,
        batch_size: BatchSize = "auto",
        precision: Precision = FLOAT32,
        layers: Collection[str] = (),
    ) -> "Passes":
        """Prepare a score's model for inputs like these.

        Args:
            score: what is explained.
            inputs: whose size decides how many make up a chunk.
            batch_size: rows of a pass.
            precision: how the copy computes.
            layers: paths whose outputs will be read.

        Raises:
            InputError: for a batch size that is none, or inputs that the model does not take.
            InconsistentModelError: if what the model returns for an example hangs on anything else.
        """
        device, whole = device_of(score.model), score.given(inputs)
        key = ("prepared", precision, frozenset(layers), device, whole.dtype)
        with naming_inputs(score.model, whole):
            refuse_inconsistent(score.model, whole, device)
            prepared = remembered(score.model, key, lambda: precision.prepare(score.model, layers, device, whole))
        beside = None if score.beside is None else score.beside.placed(prepared.inputs)
        copy, chunk = replace(score, model=prepared.model, beside=beside), rows_at_once(inputs, batch_size, device)
        return cls(copy, score, prepared, lambda x, rows: run(copy.model, copy.given(x, rows)), chunk)

    @property
    def precision(self) -> Precision:
        """How the copy computes."""
        return self.prepared.precision

    @property
    def device(self) -> torch.device:
        """Where the copy runs."""
        return self.prepared.device

    def slices(self, rows: int) -> Iterator[slice]:
        """Yield the chunks of that many rows."""
        for start in range(0, rows, self.chunk):
            yield slice(start, min(start + self.chunk, rows))

    def values(self, points: Float[Tensor, "n *shape"], rows: Int[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """Return the score at each point, without gradients."""
        found = []
        for part in self.slices(len(points)):
            with torch.no_grad():
                value = self.value(points[part], None if rows is None else rows[part])
            found.append(value.to(points.device))
        return torch.cat(found)

    def gradients(
        self, points: Float[Tensor, "n *shape"], gates: Gates | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n *shape"]]:
        """Return the score of each example and its gradient there, chunk by chunk."""
        rows = torch.arange(len(points))
        parts = [self.gradient(points[p], rows[p], gates) for p in self.slices(len(points))]
        return parts[0] if len(parts) == 1 else (torch.cat([v for v, _ in parts]), torch.cat([g for _, g in parts]))

    def gradient(
        self,
        points: Float[Tensor, "n *shape"],
        rows: Int[Tensor, " n"] | None,
        gates: Gates | None = None,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n *shape"]]:
        """Return the score of each point and its gradient there, in one pass.

        Args:
            points: where the score is differentiated.
            rows: of which example each point is a variant.
            gates: backward rules of non-linearities, if not their own.

        Raises:
            ZeroPathError: if the score does not depend on the points.
        """
        try:
            return self._gradient(points, rows, gates)
        except torch.OutOfMemoryError:
            if len(points) == 1:
                raise
        halves = zip(points.tensor_split(2), _halves(rows), strict=True)
        found = [self.gradient(p, r, gates) for p, r in halves]
        return torch.cat([v for v, _ in found]), torch.cat([g for _, g in found])

    def _gradient(self, points: Tensor, rows: Tensor | None, gates: Gates | None) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            at = (points.clone() if points.is_inference() else points).detach()  # what enters the model is a copy
            at.requires_grad_()
            with gates or nullcontext():
                value = self.value(at, rows)
            if not value.requires_grad:
                raise ZeroPathError("the score does not depend on the input: no path leads there.")
            if gates is not None:
                gates.check(value)
            with self.precision.gradients.arithmetic(self.device):
                (slope,) = torch.autograd.grad(value.sum(), at, allow_unused=True)
        if slope is None:
            raise ZeroPathError("the score does not depend on the input: no path leads there.")
        self.n_backward += len(points)
        return value.detach().to(points), slope.contiguous()

    def value(self, points: Tensor, rows: Tensor | None) -> Float[Tensor, " n"]:
        """Return the score at each point, in the caller's gradient mode."""
        value = self.score.read(self.output(points, rows), rows)
        if len(value) != len(points):
            raise OutputError(f"the model returns {len(value)} rows of scores for {len(points)} inputs.")
        return value

    def output(self, points: Tensor, rows: Tensor | None = None) -> object:
        """Return the model's output.

        Raises:
            InputError: if the model does not take such inputs; the message holds the model's own.
        """
        self.n_forward += len(points)
        points = self.prepared.inputs(points)
        with naming_inputs(self.origin.model, points), self.precision.arithmetic(self.device):
            return self.call(points, rows)

    def attribution(
        self,
        method: AttributionMethod,
        inputs: Tensor,
        values: Tensor,
        value: Tensor,
        **facts: object,
    ) -> Attribution:
        """Return a method's result, with these passes counted in it."""
        told = {
            "n_forward": self.n_forward,
            "n_backward": self.n_backward,
            "prepared": self.prepared.how,
        }
        return attribution(method, self.origin, inputs, values, value, **(told | facts))


def rows_at_once(inputs: Tensor, batch_size: BatchSize, device: torch.device) -> int:
    """Return how many rows a pass takes.

    Raises:
        InputError: for a batch size that is none.
    """
    if batch_size != "auto":
        if batch_size < 1:
            raise InputError(f"batch_size must be 'auto' or at least 1, got {batch_size!r}.")
        return batch_size
    elements = _CPU_ELEMENTS if device.type == "cpu" else _ELSEWHERE_ELEMENTS
    return max(1, min(_MOST_ROWS, elements // inputs[0].numel()))


def _halves(rows: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if rows is None:
        return None, None
    first, second = rows.tensor_split(2)
    return first, second
