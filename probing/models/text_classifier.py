"""A recurrent text classifier whose every stage is a layer that can be read."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class BidirectionalLSTM(nn.Module):
    """An LSTM that reads a text forwards and backwards, with the gates of early Keras models.

    Gates pass `clip(0.2 x + 0.5, 0, 1)` where `nn.LSTM` has the logistic function (Hochreiter & Schmidhuber 1997; the
    `hard_sigmoid` that was Keras' default for recurrent activations). Both directions take each step together, and the
    products with the inputs are made once for all steps.

    Attributes:
        kernel: `[directions, inputs, gates]`, gates in the order input, forget, cell, output.
        recurrent: `[directions, units, gates]`.
        bias: `[directions, 1, gates]`.
    """

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(2, features, 4 * units))
        self.recurrent = nn.Parameter(torch.empty(2, units, 4 * units))
        self.bias = nn.Parameter(torch.zeros(2, 1, 4 * units))
        for weight in (self.kernel, self.recurrent):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Float[Tensor, "n steps features"]) -> Float[Tensor, "n steps units"]:
        """Return both directions' outputs at each step, side by side."""
        n, steps, _ = x.shape
        both = torch.stack([x, x.flip(1)]).flatten(1, 2)
        given = torch.baddbmm(self.bias, both, self.kernel).reshape(2, n, steps, -1).unbind(2)
        hidden = cell = x.new_zeros(2, n, self.recurrent.shape[1])
        found = []
        for inputs in given:
            gates = torch.baddbmm(inputs, hidden, self.recurrent)
            enter, forget, new, leave = gates.chunk(4, dim=2)
            enter, forget, leave = (_hard_sigmoid(gate) for gate in (enter, forget, leave))
            cell = forget * cell + enter * new.tanh()
            hidden = leave * cell.tanh()
            found.append(hidden)
        forwards, backwards = torch.stack(found, dim=2)
        return torch.cat([forwards, backwards.flip(1)], dim=2)


def _hard_sigmoid(x: Tensor) -> Tensor:
    return (0.2 * x + 0.5).clamp(0, 1)


class Maximum(nn.Module):
    """The largest value of each feature over the steps."""

    def forward(self, x: Float[Tensor, "n steps units"]) -> Float[Tensor, "n units"]:
        """Return the largest values."""
        return x.amax(1)


class RecurrentClassifier(nn.Module):
    """Embedding, bidirectional LSTM, maximum over steps, one hidden layer, logits of labels that may hold together.

    Each label's probability is the logistic function of its own logit, so the units `probability`, `logprob` and
    `margin` of `Score`, which are of classes that exclude each other, do not apply: explain logits.
    """

    def __init__(self, words: int, features: int = 50, units: int = 50, hidden: int = 50, labels: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, features)
        self.recurrent = BidirectionalLSTM(features, units)
        self.pooled = Maximum()
        self.hidden = nn.Linear(2 * units, hidden)
        self.relu = nn.ReLU()
        self.output = nn.Linear(hidden, labels)

    def forward(self, ids: Int[Tensor, "n steps"]) -> Float[Tensor, "n labels"]:
        """Return the logits of texts given as numbers of words."""
        features = self.pooled(self.recurrent(self.embedding(ids)))
        logits: Tensor = self.output(self.relu(self.hidden(features)))
        return logits
