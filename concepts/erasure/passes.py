"""What erasing and patching both do: scores of passes with layers changed, and a layer's rows and axis of features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from concepts.erasure.eraser import Eraser, ErasureError
from probing.core.inputs import Batch
from probing.data.examples import ExampleSet
from probing.models.calling import run
from probing.models.geometry import units_axis
from probing.models.gradients import frozen_parameters
from probing.models.hooks import Edit, capture, edit
from probing.models.precision import device_of
from probing.models.scores import Score
from probing.store.store import ActivationStore

ROWS = 32
"""Examples in one pass."""
_SAME = (1e-4, 1e-5)  # relative and absolute: scores in float32 of the same examples in batches of other sizes


def output_with(model: nn.Module, batch: Batch, changes: Mapping[str, Edit]) -> object:
    """Return the model's output for a batch with some layers' outputs changed."""
    with torch.no_grad(), frozen_parameters(model), edit(model, changes):
        return run(model, batch)


def read(scores: Mapping[str, Score], output: object) -> Float[Tensor, "n targets"]:
    """Return all scores of an output, in float64 on the CPU."""
    return torch.stack([score.read(output).cpu().double() for score in scores.values()], 1)


def outputs(model: nn.Module, scores: Mapping[str, Score], examples: ExampleSet) -> Float[Tensor, "n targets"]:
    """Return all scores of examples, in float64 on the CPU."""
    found = []
    for start in range(0, len(examples), ROWS):
        batch = examples.load(range(start, min(start + ROWS, len(examples)))).to(device_of(model))
        found.append(read(scores, output_with(model, batch, {})))
    return torch.cat(found)


@dataclass
class Variants:
    """Scores of a batch with one layer's output changed in several ways, by one pass up to that layer.

    What comes before the layer is computed once, and what comes behind for all ways together, as for so many more examples.
    Whether a network admits that is seen with the first batch of two or more: it must take the larger batch, and say of one
    way what a pass for that alone says. Else every way has a pass of its own.
    """

    model: nn.Module
    scores: Mapping[str, Score]
    layer: str
    together: bool | None = None

    def __call__(self, batch: Batch, edits: Sequence[Edit]) -> Float[Tensor, "edits n targets"]:
        """Return the scores by way, in float64 on the CPU."""
        if self.together is None and len(batch) > 1:
            alone = self._pass(batch, edits[-1:])[0]
            found = self._stacked(batch, edits)
            self.together = found is not None and bool(torch.isclose(found[-1], alone, *_SAME).all())
        if self.together:
            return self._pass(batch, edits)
        return torch.cat([self._pass(batch, [one]) for one in edits])

    def _stacked(self, batch: Batch, edits: Sequence[Edit]) -> Float[Tensor, "edits n targets"] | None:
        try:
            return self._pass(batch, edits)
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError):
            return None  # what is behind the layer holds on to the number of examples

    def _pass(self, batch: Batch, edits: Sequence[Edit]) -> Float[Tensor, "edits n targets"]:
        def change(module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
            return torch.cat([one(module, given, output) for one in edits])

        found = read(self.scores, output_with(self.model, batch, {self.layer: change}))
        return found.reshape(len(edits), len(batch), len(self.scores))


def activations(model: nn.Module, layer: str, batch: Batch) -> Float[Tensor, "n ..."]:
    """Return what a layer makes of a batch."""
    with torch.no_grad(), capture(model, [layer], stop=True, rows=len(batch)) as kept:
        run(model, batch)
    return kept[layer]


def mean_rows(
    store: ActivationStore, model: nn.Module, layer: str, examples: ExampleSet
) -> tuple[Float[Tensor, "n m"], int]:
    """Return means over places of a layer's output, in float64 on the CPU, and the axis of its features.

    Raises:
        ErasureError: as `feature_axis`.
    """
    one = examples.load([0]).to(device_of(model))
    axis = feature_axis(model, one, layer, activations(model, layer, one).ndim)
    found = store.activations(model, [layer], examples, pool="mean")
    return next(iter(found.values())).cpu().double(), axis


def feature_axis(model: nn.Module, one: Batch, layer: str, axes: int) -> int:
    """Return which axis of a layer's output holds features, of as many axes as it has.

    Raises:
        ErasureError: for a layer whose axes don't tell.
    """
    known, axis = units_axis(model, one, layer)
    if known == axes and axis is None:
        raise ErasureError(
            f"layer {layer!r} returns {axes} axes, and which of them holds channels can't be told: name a layer behind its "
            "pooling."
        )
    return axis if known == axes and axis is not None else -1 if axes in {2, 3} else 1


def everywhere(eraser: Eraser, axis: int) -> Edit:
    """Return the edit of a layer that erases at every place."""
    return lambda module, given, output: eraser(output.movedim(axis, -1)).movedim(-1, axis)
