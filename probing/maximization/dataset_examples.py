"""Where synthetic images stand among data: percentiles of their values, top and nearest examples."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from probing.core.content_ids import content_id
from probing.data.examples import ExampleSet, TensorExamples
from probing.maximization.objective import Objective, Seen
from probing.maximization.result import Beside, Maximization
from probing.models.geometry import channel_axis
from probing.store.store import ActivationStore

SHOWN = 5
"""How many examples are kept for each image."""


def place(
    found: Maximization,
    seen: Float[Tensor, "n c h w"],
    model: nn.Module,
    objectives: Sequence[Objective],
    store: ActivationStore,
    examples: ExampleSet,
    count: int = SHOWN,
) -> Beside:
    """Return where images stand among examples, read through a store.

    Args:
        found: the images.
        seen: the same as the model sees them, with their margins.
        model: that they were made for.
        objectives: of the images, in their order.
        store: keeps the examples' activations; they stream through it.
        examples: in the model's own preprocessing.
        count: how many top and nearest examples to keep.
    """
    layers = tuple(dict.fromkeys(layer for o in objectives for layer in o.layers))
    data = _read(model, layers, objectives, store, examples)
    passing = replace(store, root=None)  # nobody asks for their rows again, and sizes may differ
    made = _read(model, layers, objectives, passing, TensorExamples(seen))
    shape = (len(found.names), min(count, len(examples)))
    percentile = torch.full(shape[:1], torch.nan)
    highest, cosine = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    top, nearest = (torch.full(shape, -1, dtype=torch.long) for _ in range(2))
    for i, which in enumerate(found.objective):
        goal = objectives[which]
        layer = goal.layers[0]
        alike = functional.normalize(data.means[layer]) @ functional.normalize(made.means[layer][i], dim=0)
        cosine[i], nearest[i] = alike.topk(shape[1])
        if goal.on_data:
            values = data.values[which]
            percentile[i] = 100 * (values < found.activation[i]).float().mean()
            highest[i], top[i] = values.topk(shape[1])
    examples_id = content_id(tuple(examples.ids))
    return Beside(examples_id, percentile, highest, top, nearest, cosine)


class _Rows:
    """Per objective its value at each example, and per layer the means over positions."""

    def __init__(self, count: int, last: Collection[str]) -> None:
        self.count, self.last = count, last
        self.values: dict[int, Float[Tensor, " examples"]] = {}
        self.means: dict[str, Float[Tensor, "examples units"]] = {}

    def add(self, where: list[int], rows: dict[str, Tensor], goals: Sequence[Objective]) -> None:
        for layer, values in rows.items():
            mean = Seen({layer: values.float()}, last=self.last).by_unit(layer).mean(2)
            self.means.setdefault(layer, mean.new_empty((self.count, mean.shape[1])))[where] = mean
        for i, goal in enumerate(goals):
            if goal.on_data:
                seen = Seen({layer: rows[layer].float() for layer in goal.layers}, last=self.last)
                value = goal(seen)
                self.values.setdefault(i, value.new_empty(self.count))[where] = value


def _read(
    model: nn.Module,
    layers: Sequence[str],
    goals: Sequence[Objective],
    store: ActivationStore,
    examples: ExampleSet,
) -> _Rows:
    one = examples.load([0])
    last = [layer for layer in layers if channel_axis(model, one, layer) == -1]
    found = _Rows(len(examples), last)
    for where, rows in store.batches(model, layers, examples):
        found.add(where, rows, goals)
    return found
