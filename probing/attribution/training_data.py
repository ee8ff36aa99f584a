"""Which training examples a network's answer to an input rests on.

Beside the maps of the rest of this folder, which say what of an input counts: an explanation of one input, too, whose parts
are examples. They can be looked at by people, and wrong labels come first; what it can't tell is what the network would say
without an example, for which it would have to be trained again: `LeaveOneOutProbes` does so exactly, for what is read from a
layer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn

from probing.core.content_ids import content_id
from probing.core.errors import ArgumentError
from probing.core.inputs import InputError
from probing.data.examples import Examples, ExampleSet, as_examples
from probing.models.hooks import capture, record_calls
from probing.models.layers import resolve
from probing.models.loading import Model, module_of
from probing.models.precision import AS_GIVEN, device_of
from probing.models.scores import class_scores, classes, refuse_training
from probing.results.figures import COLUMN_WIDTH, INK, PALETTE, new_figure, style
from probing.results.result import Provenance, Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Labels = Sequence[int] | Tensor
"""Classes: whole numbers, one for each example."""
_SHOWN = 5  # of each end of a table


@dataclass(frozen=True)
class InfluenceResult(Result):
    """What each training example has to do with each input."""

    values: Float64[Tensor, "inputs train"]
    """Above 0 for examples that speak for the input's label."""
    own: Float64[Tensor, " train"]
    """Of each training example on itself."""
    unit: str
    n_forward: int = 0

    def first(self, count: int = 10) -> Int[Tensor, " first"]:
        """Return the training examples with the largest influence on themselves: whose labels to look at first."""
        return self.own.argsort(descending=True, stable=True)[:count]

    def proponents(self, row: int, count: int = _SHOWN) -> Int[Tensor, " most"]:
        """Return the training examples that speak most for an input's label, the first first."""
        return self.values[row].argsort(descending=True, stable=True)[:count]

    def opponents(self, row: int, count: int = _SHOWN) -> Int[Tensor, " least"]:
        """Return those that speak most against it."""
        return self.values[row].argsort(stable=True)[:count]

    def to_pandas(self) -> "pd.DataFrame":
        """Return both ends for each input, a row for each example."""
        import pandas as pd

        rows = [
            {"input": row, "role": role, "example": i, "value": float(self.values[row, i])}
            for row in range(len(self.values))
            for role, found in (("for", self.proponents(row)), ("against", self.opponents(row)))
            for i in found.tolist()
        ]
        return pd.DataFrame(rows)

    def plot(self) -> "Figure":
        """Return a figure of the influences on each input, from the largest to the smallest."""
        with style():
            figure = new_figure(COLUMN_WIDTH, 2.3)
            panel = figure.subplots()
            for row in self.values:
                panel.plot(row.sort(descending=True).values, color=PALETTE[0], alpha=0.5, lw=0.8)
            panel.axhline(0, color=INK, lw=0.5)
            panel.set(xlabel="training examples, in order", ylabel=self.unit)
        return figure


@dataclass(frozen=True)
class TracIn:
    """How far steps on a training example lowered the loss on an input: TracInCP (Pruthi et al. 2020).

    The sum, over checkpoints of the training, of the learning rate times the product of both losses' gradients, here with
    respect to the last linear layer: with inputs `h` of that layer and probabilities less labels `r`, that is
    `(h · h' + 1) (r · r')`, 1 for the bias, without any gradient being formed. Exact for a network of
    which only this layer was trained, to first order and by steps of one example each; for others, what goes through the
    layers before it is left out. Two passes over the data for each checkpoint, and a matrix of inputs by examples.

    An example with a large influence on itself was hard to learn: mislabelled ones come first, and so do odd ones.

    Attributes:
        layer: path of the last linear layer, whose outputs are the class scores.
        batch_size: examples of a pass.

    Example:
        >>> found = TracIn("fc")([(net, 0.01)], images, labels, pictures[:2], [0, 1])
        >>> found.proponents(0)
    """

    layer: str
    batch_size: int = 64

    def __call__(
        self,
        checkpoints: Sequence[tuple[Model, float]],
        train: Examples,
        train_labels: Labels,
        inputs: Examples,
        labels: Labels,
    ) -> InfluenceResult:
        """Return the influences, in units of the loss (nats).

        Args:
            checkpoints: networks as they were at moments of their training, each with the learning rate there, times the
                steps on each example that it stands for.
            train: training examples, as the networks saw them.
            train_labels: their classes, as the networks were told them.
            inputs: what is explained.
            labels: classes whose loss is explained: the true ones, or those that the network gives.

        Raises:
            ArgumentError: for no checkpoints, rates that are none, a layer that is not the last linear one, or a batch
                size below 1.
            InputError: for labels of another number than the examples, or that are no class.
            ModelModeError: for a model in training mode.
        """
        refuse_batch(self.batch_size)
        rates = [rate for _, rate in checkpoints]
        if not rates or not all(0 < rate < float("inf") for rate in rates):
            raise ArgumentError(f"checkpoints must be pairs of a network and its learning rate above 0, got rates {rates}.")
        train, inputs = as_examples(train), as_examples(inputs)
        values = torch.zeros(len(inputs), len(train), dtype=torch.float64)
        own = torch.zeros(len(train), dtype=torch.float64)
        for model, rate in checkpoints:
            net = module_of(model)
            h, r = self._read(net, train, train_labels)
            g, q = self._read(net, inputs, labels)
            bias = float(resolve(net, self.layer).bias is not None)
            values += rate * (g @ h.T + bias) * (q @ r.T)
            own += rate * (h.square().sum(1) + bias) * r.square().sum(1)
        content = content_id([list(train.ids), list(inputs.ids)])
        made = Provenance.collect(model=module_of(checkpoints[-1][0]), examples=content, method=self)
        passes = len(rates) * (len(train) + len(inputs))
        return InfluenceResult(made, values, own, "fall of the loss, nats", passes)

    def _read(self, model: nn.Module, examples: ExampleSet, labels: Labels) -> tuple[Tensor, Tensor]:
        """Return what the layer is given of each example, and its probabilities less the label's, in float64."""
        refuse_training(model)
        layer = resolve(model, self.layer)
        if not isinstance(layer, nn.Linear):
            raise ArgumentError(f"the last linear layer is asked for, and {self.layer!r} is a {type(layer).__name__}.")
        given = AS_GIVEN.prepare(model, (), device_of(model), examples.load([0]))
        rows, scores = [], []
        for part in _parts(len(examples), self.batch_size):
            with record_calls(given.model, self.layer) as calls, torch.no_grad():
                logits = class_scores(given.output(examples.load(part)))
            taken = next(iter(calls[0].inputs), None) if len(calls) == 1 and isinstance(calls[0].inputs, list) else None
            returned = calls[0].output if calls else None
            if not (isinstance(taken, Tensor) and taken.ndim == 2 and len(taken) == len(part)) or not (
                isinstance(returned, Tensor) and torch.equal(returned, logits)
            ):
                raise ArgumentError(
                    f"{self.layer!r} is not the network's last layer, run once on a row for each example: "
                    "what it returns are not the class scores."
                )
            rows.append(taken.detach().cpu().double())
            scores.append(logits.detach().cpu().double())
        logits = torch.cat(scores)
        known = _known(labels, len(examples), logits.shape[1])
        return torch.cat(rows), logits.softmax(1) - nn.functional.one_hot(known, logits.shape[1]).double()


@dataclass(frozen=True)
class RepresentationSimilarity:
    """The cosine of each training example's representation at a layer with an input's: the plain baseline.

    It knows no label, no loss and no training: what an influence shows beyond it is what these add.

    Attributes:
        layer: path of the layer whose outputs are compared, all of their values in one row.
        batch_size: examples of a pass.
    """

    layer: str
    batch_size: int = 64

    def __call__(self, model: Model, train: Examples, inputs: Examples) -> InfluenceResult:
        """Return the cosines, from -1 to 1; 0 with what is represented by zeros."""
        refuse_batch(self.batch_size)
        train, inputs, net = as_examples(train), as_examples(inputs), module_of(model)
        refuse_training(net)
        h, g = (self._read(net, examples) for examples in (train, inputs))
        content = content_id([list(train.ids), list(inputs.ids)])
        made = Provenance.collect(model=net, examples=content, method=self)
        return InfluenceResult(made, g @ h.T, h.square().sum(1), "cosine", len(train) + len(inputs))

    def _read(self, model: nn.Module, examples: ExampleSet) -> Float64[Tensor, "n features"]:
        given = AS_GIVEN.prepare(model, (), device_of(model), examples.load([0]))
        rows = []
        for part in _parts(len(examples), self.batch_size):
            with capture(given.model, [self.layer]) as found, torch.no_grad():
                given.output(examples.load(part))
                rows.append(found[self.layer].detach().cpu().double().flatten(1))
        table = torch.cat(rows)
        return nn.functional.normalize(table, dim=1)


def refuse_batch(size: int) -> None:
    """Raise `ArgumentError` for a batch size that is none."""
    if size < 1:
        raise ArgumentError(f"batch_size must be at least 1, got {size}.")


def _parts(count: int, size: int) -> Iterator[list[int]]:
    return (list(range(start, min(start + size, count))) for start in range(0, count, size))


def _known(labels: Labels, count: int, outputs: int) -> Int[Tensor, " n"]:
    known = classes(labels)
    if not isinstance(known, Tensor) or known.shape != (count,):
        raise InputError(f"{count} examples need a class each, got {labels!r}.")
    known = known.cpu()
    if outputs < 2 or int(known.min()) < 0 or int(known.max()) >= outputs:
        raise InputError(
            f"labels are classes, and the network has {outputs} (two or more are needed), got {int(known.min())} to "
            f"{int(known.max())}."
        )
    return known
