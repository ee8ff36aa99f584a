"""How a score falls as what a map points to is removed, and rises as it is put in."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.attribution.base import checked
from probing.attribution.baselines import ZERO, Baseline, Blurred, Uniform
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.evaluation.base import (
    Better,
    EvaluationError,
    Explained,
    Maps,
    Measurement,
    descending,
    keys_of,
    maps_of,
    mean_interval,
    pixels,
    tied_share,
)
from probing.evaluation.removal import (
    Filler,
    Imputed,
    Shown,
    Units,
    cuts_of,
    removal_scores,
    scores_without_each,
    substrates,
)
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score
from probing.results.figures import COLUMN_WIDTH, INK, look, new_figure, style
from probing.results.heatmaps import Channels
from probing.results.result import Provenance, Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Order = Literal["most", "least", "random"]
"""`most`: what the map values most goes first (MoRF); `least`: last (LeRF); `random`: the mean over random orders."""
_FLAT = 1e-3
_IMPUTED = Imputed()


@dataclass(frozen=True)
class Curves(Result):
    """Scores of each input, step by step, for each substrate and order."""

    metric: str
    better: Better
    """Which areas speak for a map in the order `most`."""
    changed: str
    """What the steps count: `removed` or `inserted`."""
    unit: str
    shares: Float[Tensor, " steps"]
    """Of units that were changed, from 0."""
    substrates: tuple[str, ...]
    orders: tuple[Order, ...]
    values: Float[Tensor, "substrates orders n steps"]
    """Draws of a substrate, and random orders, are averaged."""
    tied: Float[Tensor, " n"]
    """The share of units whose value another unit of the map has too: their order is drawn from the seed."""
    n_forward: int = 0
    n_backward: int = 0

    @property
    def areas(self) -> Float[Tensor, "substrates orders n"]:
        """The mean score along the curve (trapezoids), as if all steps were equally wide: score units."""
        return torch.trapezoid(self.values, self._width) / self._width[-1]

    @property
    def normalised(self) -> Float[Tensor, "substrates orders n"]:
        """The area with each curve's first and last score as 1 and 0 (0 and 1 where units are inserted).

        NaN where the two differ by less than a thousandth of what the curve ranges over: there is nothing to
        normalise by. Those are to be counted, not dropped.
        """
        first, last = self.values[..., :1], self.values[..., -1:]
        step = first - last
        spread = self.values.amax(-1, keepdim=True) - self.values.amin(-1, keepdim=True)
        step = torch.where((step.abs() < _FLAT * spread) | (spread == 0), torch.nan, step)
        curve = (self.values - last) / step
        curve = 1 - curve if self.changed == "inserted" else curve
        return torch.trapezoid(curve, self._width) / self._width[-1]

    @property
    def aopc(self) -> Float[Tensor, "substrates orders n"]:
        """The mean fall of the score over all steps, the first included (Samek et al. 2017, eq. 12)."""
        return (self.values[..., :1] - self.values).mean(-1)

    @property
    def abpc(self) -> Float[Tensor, "substrates n"]:
        """The mean fall in the order `most` minus that in the order `least`: hardly depends on the substrate."""
        for order in ("most", "least"):
            if order not in self.orders:
                raise EvaluationError(f"ABPC needs the order {order!r}, got {self.orders}.")
        most, least = (self.orders.index(order) for order in ("most", "least"))
        return self.aopc[:, most] - self.aopc[:, least]

    @property
    def summary(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean curve over inputs and its interval, each `[substrates, orders, steps]`."""
        return mean_interval(self.values.movedim(2, 0))

    def sentences(self) -> tuple[str, ...]:
        """Return where nothing was measured: on inputs that equal the substrate, or that the score does not depend on."""
        still = self.values.amax(-1) == self.values.amin(-1)
        counts = still.all(1).sum(1).tolist()
        return tuple(
            f"The score of {count} of {self.values.shape[2]} inputs never changes, whatever is {self.changed} "
            f"({substrate}): their curves measure nothing."
            for substrate, count in zip(self.substrates, counts, strict=True)
            if count
        )

    def measured(self, values: Float[Tensor, " n"], metric: str, better: Better | None = None) -> Measurement:
        """Return one number per input, with its interval."""
        return Measurement(self.provenance, metric, values, better or self.better, self.n_forward, self.n_backward)

    def area(self, substrate: int = 0, order: Order = "most") -> Measurement:
        """Return the areas under one order's curves."""
        values = self.areas[substrate, self.orders.index(order)]
        return self.measured(values, f"{self.metric} ({self.substrates[substrate]}, {order})")

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per substrate and order."""
        import pandas as pd

        rows = []
        for s, substrate in enumerate(self.substrates):
            for o, order in enumerate(self.orders):
                area = self.measured(self.areas[s, o], "area")
                shape = self.measured(self.normalised[s, o], "normalised area")
                rows.append(
                    {
                        "substrate": substrate,
                        "order": order,
                        "area": area.mean,
                        "low": area.interval[0],
                        "high": area.interval[1],
                        "normalised": shape.mean,
                        "excluded": shape.excluded,
                        "aopc": float(self.aopc[s, o].mean()),
                    }
                )
        return pd.DataFrame(rows)

    def plot(self, substrate: int = 0) -> "Figure":
        """Return a figure of the mean curves."""
        return curves_figure({self.metric: self}, substrate)

    @property
    def _width(self) -> Tensor:
        return self.shares.double()


def curves_figure(found: Mapping[str, Curves], substrate: int = 0) -> "Figure":
    """Return mean scores against the share that was removed, a line per method, beside the order by chance.

    Bars are 95 % intervals over inputs.
    """
    with style():
        figure = new_figure(COLUMN_WIDTH, 2.3 + 0.12 * len(found))
        panel = figure.subplots()
        for number, (name, curves) in enumerate(found.items()):
            mean, low, high = (t[substrate, 0].tolist() for t in curves.summary)
            colour, marker = look(number)
            x = [100 * s for s in curves.shares.tolist()]
            every = max(1, len(x) // 6)
            panel.plot(x, mean, color=colour, marker=marker, markevery=every, ms=3, label=name)
            shade = 0.15 if len(found) < 4 else 0.06
            panel.fill_between(x, low, high, color=colour, alpha=shade, linewidth=0)
            if number == 0 and "random" in curves.orders:
                chance = curves.summary[0][substrate, curves.orders.index("random")].tolist()
                panel.plot(x, chance, color=INK, linestyle="--", label="random order")
        first = next(iter(found.values()))
        panel.set_xlabel(f"{first.changed}, %")
        panel.set_ylabel(first.unit)
        if len(found) > 1:
            figure.legend(loc="outside upper left", ncols=3, columnspacing=1.0)
        else:
            panel.legend(loc="best")
    return figure


@dataclass(frozen=True, kw_only=True)
class RemovalMetric(ABC):
    """What metrics of removal share.

    Attributes:
        steps: equal portions that go one after the other; fewer if there are fewer places.
        orders: computed beside each other, since only the distance to chance and to the opposite order tells
            importance from the damage that any removal does.
        channels: how the maps' channels become one value; the sign counts.
        random_orders: averaged for the order `random`.
        patch: side of what goes at once, in pixels.
        seed: of random orders and of ties.
        batch_size: variants of a pass.
        precision: how passes run; `fast` is fit for these.
    """

    steps: int = 100
    orders: tuple[Order, ...] = ("most",)
    channels: Channels = "sum"
    random_orders: int = 10
    patch: int = 1
    seed: int = 0
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32
    better: ClassVar[Better] = "lower"
    range: ClassVar[tuple[float, float]] = (float("-inf"), float("inf"))
    cost: ClassVar[str] = "steps + 1 forward passes for each baseline and order"
    changed: ClassVar[Literal["removed", "inserted"]] = "removed"

    def __call__(self, explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"]) -> Curves:
        """Return the curves.

        Raises:
            EvaluationError: for maps that don't lie over the inputs, or settings that can't be followed.
        """
        return _Run.of(self, explained, score, inputs).curves(self.changed)

    @property
    @abstractmethod
    def substrates(self) -> tuple[Baseline | Imputed, ...]:
        """What shows where a place is removed, or into which it is put."""


@dataclass(frozen=True)
class Deletion(RemovalMetric):
    """The score as the most important places are removed (Petsiuk et al. 2018, sec. 4.1): low areas are good.

    Attributes:
        baselines: what shows where a place is removed; several in one run.
    """

    baselines: tuple[Baseline, ...] = (ZERO,)

    @property
    def substrates(self) -> tuple[Baseline, ...]:
        """The baselines."""
        return self.baselines


@dataclass(frozen=True)
class Insertion(Deletion):
    """The score as the most important places are put into a substrate (Petsiuk et al. 2018): high areas are good.

    The substrate is the blurred input by default, as an empty one tells edges apart from nothing too easily.
    """

    baselines: tuple[Baseline, ...] = (Blurred(5.0),)
    better: ClassVar[Better] = "higher"
    changed: ClassVar[Literal["removed", "inserted"]] = "inserted"


@dataclass(frozen=True)
class PixelFlipping(Deletion):
    """The score as patches are replaced by noise, most and least important first (Bach et al. 2015; Samek et al. 2017).

    `Curves.aopc` is the mean fall, `Curves.abpc` the distance of the two orders. All channels of a patch go at once:
    a perturbation of single channels, as some libraries make it, needs three times the passes and shows the network
    colours that no picture has.
    """

    baselines: tuple[Baseline, ...] = (Uniform((-1.0,), (1.0,)),)
    orders: tuple[Order, ...] = ("most", "least", "random")
    patch: int = 9
    cost: ClassVar[str] = "steps + 1 forward passes for each draw and order"


@dataclass(frozen=True)
class Road(RemovalMetric):
    """Deletion where what is removed is made up from its surroundings (ROAD, Rong et al. 2022).

    Attributes:
        imputer: fills what is removed.
        most: the largest share that is removed, in `steps`.
    """

    steps: int = 9
    orders: tuple[Order, ...] = ("most", "least")
    random_orders: int = 3
    imputer: Imputed = _IMPUTED
    most: float = 0.9
    cost: ClassVar[str] = "steps + 1 forward passes for each order, and as many sparse solutions"

    @property
    def substrates(self) -> tuple[Imputed, ...]:
        """The imputer."""
        return (self.imputer,)


@dataclass(frozen=True)
class _Run:
    """One call of a metric: maps, their units' order, passes."""

    metric: RemovalMetric
    maps: Maps
    units: Units
    passes: Passes
    inputs: Tensor
    values: Float[Tensor, "n units"]
    keys: Int[Tensor, "n units"]

    @classmethod
    def of(
        cls,
        metric: RemovalMetric,
        explained: Explained,
        score: Score,
        inputs: Tensor,
    ) -> "_Run":
        score, inputs = checked(score, inputs)
        if not metric.orders or metric.random_orders < 1:
            raise EvaluationError(
                f"orders must name at least one and random_orders be at least 1, got {metric.orders} "
                f"and {metric.random_orders}."
            )
        if isinstance(metric, Road) and inputs.ndim != 4:
            raise EvaluationError(f"ROAD needs images, got inputs of shape {tuple(inputs.shape)}.")
        maps = maps_of(explained, score, inputs)
        units = Units.of(inputs, metric.patch)
        values = units.values(pixels(maps.values, metric.channels))
        keys = keys_of(inputs, units.count, metric.seed)
        passes = Passes.of(score, inputs, metric.batch_size, metric.precision)
        return cls(metric, maps, units, passes, inputs, values, keys)

    def curves(self, changed: Literal["removed", "inserted"]) -> Curves:
        metric = self.metric
        most = metric.most if isinstance(metric, Road) else 1.0
        cuts = cuts_of(self.units.count, metric.steps, most)
        with unchanged(self.passes.origin.model):
            found = [
                torch.stack([self._mean(draws, order, cuts) for order in metric.orders]) for draws in self._fillers(changed)
            ]
        return Curves(
            Provenance.collect(model=self.passes.origin.model, method=metric),
            type(metric).__name__.lower(),
            metric.better,
            changed,
            self.passes.origin.unit,
            torch.tensor(cuts, dtype=torch.float64) / self.units.count,
            self._names(),
            metric.orders,
            torch.stack(found),
            tied_share(self.values),
            self.passes.n_forward + self.maps.n_forward,
            self.passes.n_backward + self.maps.n_backward,
        )

    def _names(self) -> tuple[str, ...]:
        names = [type(b).__name__.lower() for b in self.metric.substrates]
        return tuple(f"{n} {names[:i].count(n) + 1}" if names.count(n) > 1 else n for i, n in enumerate(names))

    def _fillers(self, changed: str) -> list[list[tuple[Tensor, list[Filler]]]]:
        """Return, for each substrate and draw, what units are taken from, and what each input shows instead."""
        found: list[list[tuple[Tensor, list[Filler]]]] = []
        for baseline in self.metric.substrates:
            if isinstance(baseline, Imputed):
                found.append([(self.inputs, [baseline] * len(self.inputs))])
                continue
            draws = substrates(baseline, self.inputs)
            if changed == "inserted":
                found.append([(draw, [Shown(x) for x in self.inputs]) for draw in draws])
            else:
                found.append([(self.inputs, [Shown(x) for x in draw]) for draw in draws])
        return found

    def _mean(
        self,
        draws: Sequence[tuple[Tensor, list[Filler]]],
        order: Order,
        cuts: tuple[int, ...],
    ) -> Float[Tensor, "n steps"]:
        """Return one order's curves, averaged over draws of the substrate and over random orders."""
        found = []
        for start, fillers in draws:
            for ranks in self._ranks(order):
                least = order == "least"
                found.append(removal_scores(self.passes, start, fillers, ranks, cuts, least=least))
        return torch.stack(found).mean(0)

    def _ranks(self, order: Order) -> list[Int[Tensor, "n *places"]]:
        if order != "random":
            return [self.units.ranks(descending(self.values, self.keys))]
        seed, count = self.metric.seed, self.metric.random_orders
        drawn = [keys_of(self.inputs, self.units.count, seed + 1 + i) for i in range(count)]
        return [self.units.ranks(keys) for keys in drawn]


def own_effects(
    score: Score,
    inputs: Float[Tensor, "n *shape"],
    baseline: Baseline = ZERO,
    patch: int = 1,
    batch_size: BatchSize = "auto",
) -> Float[Tensor, "n *shape"]:
    """Return maps of how far the score falls when a single unit is removed: the ideal order, where effects add up.

    One forward pass for each unit; give the result to a metric in place of a method.
    """
    score, inputs = checked(score, inputs)
    units = Units.of(inputs, patch)
    passes = Passes.of(score, inputs, batch_size)
    whole, without = scores_without_each(passes, inputs, units, substrates(baseline, inputs))
    effects = whole[:, None] - without.mean(0)
    spread = effects[:, units.labels.flatten()].view(len(inputs), *units.labels.shape)
    return (spread[:, None] if inputs.ndim == 4 else spread).to(inputs)
