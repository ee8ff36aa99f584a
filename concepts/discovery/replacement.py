"""What a network loses when a layer's activations give way to what a dictionary keeps of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from concepts.discovery.dictionary import Dictionary
from concepts.discovery.rows import Cells
from probing.core.inputs import one_tensor
from probing.data.examples import ExampleSet
from probing.models.gradients import frozen_parameters
from probing.models.hooks import edit
from probing.models.precision import device_of
from probing.models.scores import class_scores

_ROWS = 16


@dataclass(frozen=True)
class Replacement:
    """Class scores with a layer's rows replaced by their reconstruction, and by one row, their mean."""

    lost: float
    """Squared error of the class scores, as a share of that of the mean row: 0 loses nothing, 1 as much as the mean."""
    same_class: float
    """Share of examples whose largest class score stays where it was (0-1)."""
    same_class_of_mean: float
    """The same with the mean row: what is owed to the classes' frequencies alone."""
    examples: int


def replaced(
    model: nn.Module,
    layer: str,
    cells: Cells,
    dictionary: Dictionary,
    mean: Float[Tensor, " m"],
    examples: ExampleSet,
    part: str | int | None = None,
) -> Replacement:
    """Measure what a classifier loses.

    Args:
        model: in evaluation mode.
        layer: whose output is replaced at every place.
        cells: how it is cut into rows.
        dictionary: of such rows.
        mean: row that stands for no information.
        examples: that the dictionary was not learned of.
        part: of the output that holds the class scores, where a model returns several.
    """
    whole, kept, bare = (
        torch.cat(
            [
                _scores(
                    model, layer, one_tensor(examples.load(range(i, min(i + _ROWS, len(examples))))), cells, change, part
                )
                for i in range(0, len(examples), _ROWS)
            ]
        )
        for change in (lambda rows: rows, lambda rows: dictionary.decode(dictionary.codes(rows)), mean.expand_as)
    )
    lost, most = (float((other - whole).square().sum()) for other in (kept, bare))
    same, bare_same = (float((other.argmax(1) == whole.argmax(1)).double().mean()) for other in (kept, bare))
    return Replacement(lost / most if most else float("nan"), same, bare_same, len(examples))


def _scores(
    model: nn.Module,
    layer: str,
    inputs: Tensor,
    cells: Cells,
    change: Callable[[Float[Tensor, "rows m"]], Float[Tensor, "rows m"]],
    part: str | int | None,
) -> Float[Tensor, "n classes"]:
    def put(module: nn.Module, before: Tensor, output: Tensor) -> Tensor:
        rows = cells.rows(output)
        return cells.put(output, change(rows.flatten(0, 1).float().cpu()).reshape(rows.shape))

    with torch.no_grad(), frozen_parameters(model), edit(model, {layer: put}):
        return class_scores(model(inputs.to(device_of(model))), part).cpu().double()
