"""What is left to learn once maps have taken out what they point to, and maps of networks that learned nothing true.

Networks are trained anew, so this is for small ones and small data. It measures what the data hold, not what one
network used: where two places say the same, taking either out costs nothing, however faithful the map.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probing.attribution.base import AttributionMethod
from probing.core.content_ids import tensor_id
from probing.evaluation.base import (
    Better,
    EvaluationError,
    descending,
    keys_of,
    maps_of,
    mean_interval,
    pixels,
)
from probing.evaluation.similarity import SIMILARITIES, TITLES
from probing.models.scores import Score
from probing.results.figures import COLUMN_WIDTH, FAINT, INK, PALETTE, RULE, look, new_figure, style
from probing.results.heatmaps import Channels
from probing.results.result import Provenance, Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MakeNet = Callable[[], nn.Module]
"""Builds an untrained network; it is called with the random state that the seed gives."""
Ranking = AttributionMethod | Tensor
"""A method, or given maps of the training inputs and then the test inputs."""


@dataclass(frozen=True)
class Data:
    """Inputs in model space and their classes, to train on and to test on."""

    train: Float[Tensor, "n *shape"]
    train_labels: Int[Tensor, " n"]
    test: Float[Tensor, "m *shape"]
    test_labels: Int[Tensor, " m"]


@dataclass(frozen=True)
class Training:
    """How a network is trained: Adam on the cross-entropy, without augmentation.

    Attributes:
        epochs: at most.
        rate: of learning.
        batch: examples of a step.
        enough: training accuracy at which it stops; None for all epochs.
    """

    epochs: int = 10
    rate: float = 1e-3
    batch: int = 64
    enough: float | None = None

    def __call__(self, make: MakeNet, inputs: Float[Tensor, "n *shape"], labels: Int[Tensor, " n"], seed: int) -> nn.Module:
        """Return a trained network in evaluation mode; the global random state is left as found."""
        default: torch.Generator = torch.default_generator
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=()):
            default.manual_seed(seed)
            net = make().to(inputs).train()
            optimiser = torch.optim.Adam(net.parameters(), self.rate)
            for _ in range(self.epochs):
                right = 0
                for part in torch.split(torch.randperm(len(inputs)), self.batch):
                    optimiser.zero_grad()
                    logits = net(inputs[part])
                    torch.autograd.backward(nn.functional.cross_entropy(logits, labels[part]))
                    optimiser.step()
                    right += int((logits.argmax(1) == labels[part]).sum())
                if self.enough is not None and right >= self.enough * len(inputs):
                    break
        return net.eval()


def accuracy(net: nn.Module, inputs: Float[Tensor, "n *shape"], labels: Int[Tensor, " n"]) -> float:
    """Return the share of inputs whose class has the highest score."""
    with torch.no_grad():
        found = torch.cat([net(part.clone()).argmax(1) for part in torch.split(inputs, 256)])
    return float((found == labels).double().mean())


@dataclass(frozen=True)
class Retrained(Result):
    """Test accuracy of networks trained on data from which maps took a part."""

    kind: Literal["removed", "kept"]
    rankings: tuple[str, ...]
    fractions: tuple[float, ...]
    values: Float[Tensor, "rankings fractions seeds"]
    """Test accuracy."""
    mask_only: Float[Tensor, "rankings fractions"]
    """Accuracy of a network that sees nothing but which places were taken: what the pattern itself gives away."""
    masks: dict[str, str]
    """The content id of each ranking's masks: the same in every epoch and for every seed."""
    chance: float
    """The share of the most frequent class."""

    @property
    def summary(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean over seeds and its interval, each `[rankings, fractions]`."""
        return mean_interval(self.values.movedim(-1, 0))

    @property
    def areas(self) -> dict[str, float]:
        """The mean accuracy over fractions, by ranking: low speaks for a map where places were removed."""
        return dict(zip(self.rankings, self.values.mean((1, 2)).tolist(), strict=True))

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per ranking and fraction."""
        import pandas as pd

        mean, low, high = self.summary
        return pd.DataFrame(
            {
                "ranking": ranking,
                "fraction": fraction,
                "accuracy": float(mean[i, k]),
                "low": float(low[i, k]),
                "high": float(high[i, k]),
                "mask_only": float(self.mask_only[i, k]),
            }
            for i, ranking in enumerate(self.rankings)
            for k, fraction in enumerate(self.fractions)
        )

    def plot(self) -> "Figure":
        """Return a figure of accuracy against the share of places, a line per ranking."""
        mean, low, high = self.summary
        x = [100 * f for f in self.fractions]
        with style():
            figure = new_figure(COLUMN_WIDTH, 2.6)
            panel = figure.subplots()
            for i, name in enumerate(self.rankings):
                colour, marker = look(i)
                panel.plot(x, mean[i], color=colour, marker=marker, label=name)
                panel.fill_between(x, low[i], high[i], color=colour, alpha=0.15, linewidth=0)
                panel.plot(x, self.mask_only[i], color=colour, lw=0.6, ls=":")
            panel.plot([], [], color=FAINT, lw=0.6, ls=":", label="masks alone")
            panel.axhline(self.chance, color=FAINT, lw=0.7, ls=(0, (4, 3)))
            panel.set(xlabel=f"places {self.kind}, %", ylabel="test accuracy")
            figure.legend(loc="outside upper left", ncols=2)
        return figure


@dataclass(frozen=True)
class Roar:
    """Remove and retrain (Hooker et al. 2019): the accuracy that is left when what maps value most is gone.

    Masks are made once, from the network's own predictions rather than the labels, and stay the same in every
    epoch. Removed pixels show the training data's mean. A random ranking stands beside the methods, with masks as
    fixed as theirs.

    Attributes:
        fractions: of places that go.
        seeds: networks for each fraction.
        training: of all networks.
        channels: how the maps' channels become one value.
        seed: the first of the seeds.
    """

    fractions: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
    seeds: int = 5
    training: Training = Training()
    channels: Channels = "sum"
    seed: int = 0
    better: ClassVar[Better] = "lower"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    cost: ClassVar[str] = "a map of all data, and fractions times seeds trainings"

    def __call__(self, rankings: Mapping[str, Ranking], model: nn.Module, make: MakeNet, data: Data) -> Retrained:
        """Return the accuracies; `random` is added to the rankings."""
        return _retrain(self, "removed", rankings, model, make, data)


@dataclass(frozen=True)
class Kar:
    """Keep and retrain: the accuracy when only what maps value most is kept; attributes as of `Roar`."""

    fractions: tuple[float, ...] = (0.1, 0.3, 0.5)
    seeds: int = 5
    training: Training = Training()
    channels: Channels = "sum"
    seed: int = 0
    better: ClassVar[Better] = "higher"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    cost: ClassVar[str] = "a map of all data, and fractions times seeds trainings"

    def __call__(self, rankings: Mapping[str, Ranking], model: nn.Module, make: MakeNet, data: Data) -> Retrained:
        """Return the accuracies; `random` is added to the rankings."""
        return _retrain(self, "kept", rankings, model, make, data)


def _retrain(
    metric: Roar | Kar,
    kind: Literal["removed", "kept"],
    rankings: Mapping[str, Ranking],
    model: nn.Module,
    make: MakeNet,
    data: Data,
) -> Retrained:
    bad = [f for f in metric.fractions if not 0 <= f <= 1]
    if bad or not metric.fractions or metric.seeds < 1:
        raise EvaluationError(
            f"fractions must lie within 0 to 1 and seeds be at least 1, got {metric.fractions} and {metric.seeds}."
        )
    both = torch.cat([data.train, data.test])
    every = {**rankings, "random": keys_of(both, both[0].numel(), metric.seed).view(both.shape).to(both)}
    orders = {name: _order(r, model, both, metric) for name, r in every.items()}
    values, leaks = [], []
    for order in orders.values():
        masks = [_gone(order, fraction, kind) for fraction in metric.fractions]
        values.append([_accuracies(metric, make, data, gone) for gone in masks])
        leaks.append([_mask_only(metric, data, gone) for gone in masks])
    counts = torch.bincount(data.test_labels)
    return Retrained(
        Provenance.collect(model=model, examples=tensor_id(both), method=metric),
        kind,
        tuple(every),
        metric.fractions,
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(leaks, dtype=torch.float64),
        {name: tensor_id(order) for name, order in orders.items()},
        float(counts.max()) / len(data.test_labels),
    )


def _order(ranking: Ranking, model: nn.Module, inputs: Tensor, metric: Roar | Kar) -> Tensor:
    """Return when each place goes, `[n, places]`, by maps of the predicted class."""
    parts = []
    for rows in torch.split(torch.arange(len(inputs)), 64):
        x = inputs[rows]
        given = ranking[rows] if isinstance(ranking, Tensor) else ranking
        maps = maps_of(given, Score(model), x).values
        flat = pixels(maps, metric.channels).double().flatten(1)
        parts.append(descending(flat, keys_of(x, flat.shape[1], metric.seed)))
    order = torch.cat(parts)
    rank = torch.empty_like(order)
    return rank.scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))


def _gone(rank: Int[Tensor, "n places"], fraction: float, kind: str) -> Bool[Tensor, "n places"]:
    count = round(fraction * rank.shape[1])
    return rank < count if kind == "removed" else rank >= count


def _accuracies(metric: Roar | Kar, make: MakeNet, data: Data, gone: Bool[Tensor, "n places"]) -> Sequence[float]:
    """Return the accuracy of networks trained on what is left, one per seed."""
    dims = [0, *range(2, data.train.ndim)] if data.train.ndim > 2 else [0]
    mean = data.train.mean(dims, keepdim=True)
    places = (1, *data.train.shape[2:]) if data.train.ndim > 2 else data.train.shape[1:]
    split = torch.split(gone, [len(data.train), len(data.test)])
    train, test = (
        torch.where(mask.view(-1, *places), mean, x) for mask, x in zip(split, (data.train, data.test), strict=True)
    )
    nets = (metric.training(make, train, data.train_labels, seed) for seed in range(metric.seed, metric.seed + metric.seeds))
    return [accuracy(net, test, data.test_labels) for net in nets]


def _mask_only(metric: Roar | Kar, data: Data, gone: Bool[Tensor, "n places"]) -> float:
    """Return the accuracy of a linear reader that sees the masks alone."""
    train, test = torch.split(gone.float(), [len(data.train), len(data.test)])
    classes = int(torch.cat([data.train_labels, data.test_labels]).max()) + 1
    net = metric.training(lambda: nn.Linear(gone.shape[1], classes), train, data.train_labels, metric.seed)
    return accuracy(net, test, data.test_labels)


@dataclass(frozen=True)
class DataRandomisation(Result):
    """Similarity of maps of a network that learned the data with those of one that learned shuffled labels by heart."""

    method: str
    measures: tuple[str, ...]
    values: Float[Tensor, "measures n"]
    fitted: float
    """Training accuracy on the shuffled labels: below 0.95 the network has not learned them."""
    better: ClassVar[Better] = "lower"

    @property
    def summary(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean over inputs and its interval, each `[measures]`."""
        return mean_interval(self.values.movedim(-1, 0))

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per measure."""
        import pandas as pd

        columns = dict(zip(("mean", "low", "high"), (t.tolist() for t in self.summary), strict=True))
        return pd.DataFrame({"measure": self.measures} | columns)

    def plot(self) -> "Figure":
        """Return a figure of each input's similarity, their mean and its interval."""
        with style():
            figure = new_figure(COLUMN_WIDTH, 0.7 + 0.26 * len(self.measures))
            panel = figure.subplots()
            mean, low, high = self.summary
            panel.axvline(0, color=RULE, zorder=0)
            for y in range(len(self.measures)):
                values = self.values[y][~self.values[y].isnan()]
                panel.plot(values, torch.full_like(values, y), "o", color=PALETTE[0], alpha=0.35, mew=0, ms=3.5)
                panel.plot([float(low[y]), float(high[y])], [y, y], color=INK, lw=0.9)
                panel.plot(float(mean[y]), y, "|", color=INK, ms=9, mew=1.2)
            panel.set_yticks(range(len(self.measures)), [TITLES.get(m, m) for m in self.measures])
            panel.set(ylim=(len(self.measures) - 0.4, -0.6), xlabel="similarity of the maps of an input")
        return figure


def data_randomisation(
    methods: Mapping[str, AttributionMethod],
    model: nn.Module,
    make: MakeNet,
    data: Data,
    training: Training,
    *,
    measures: tuple[str, ...] = ("spearman", "spearman_abs"),
    channels: Channels = "sum",
    seed: int = 0,
) -> dict[str, DataRandomisation]:
    """Compare maps with those of a network that was trained on permuted labels (Adebayo et al. 2018, sec. 3.4).

    Both explain the class that the first one predicts, on the test inputs.

    Args:
        methods: by name.
        model: trained on the true labels.
        make: builds an untrained network.
        data: to train and test on.
        training: long enough to learn labels by heart, with `enough` of at least 0.95.
        measures: names of similarities.
        channels: how the maps' channels become one value.
        seed: of the permutation and of the training.

    Raises:
        EvaluationError: if the labels were not learned: the network's capacity or the training is too small.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = data.train_labels[torch.randperm(len(data.train_labels), generator=generator)]
    other = training(make, data.train, labels, seed)
    fitted = accuracy(other, data.train, labels)
    if fitted < 0.95:
        raise EvaluationError(
            f"the network learned {fitted:.0%} of the shuffled labels, 95 % are needed: train longer, or enlarge it."
        )
    score = Score(model).named(data.test)
    found = {}
    for name, method in methods.items():
        pair = [pixels(maps_of(method, replace(score, model=net), data.test).values, channels) for net in (model, other)]
        values = torch.stack([SIMILARITIES[m](*pair).double() for m in measures])
        facts = Provenance.collect(model=model, method=method)
        found[name] = DataRandomisation(facts, type(method).__name__, measures, values, fitted)
    return found
