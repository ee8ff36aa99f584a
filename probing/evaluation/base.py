"""What every metric takes and returns: maps of some inputs, one value per input, its mean and its interval."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from probing.attribution.base import Attribution, AttributionMethod
from probing.core.content_ids import tensor_id
from probing.core.doubles import near
from probing.core.errors import ProbingError
from probing.core.inputs import one_tensor
from probing.models.scores import Score
from probing.results.figures import COLUMN_WIDTH, FAINT, INK, PALETTE, new_figure, style
from probing.results.heatmaps import Channels, reduce_channels
from probing.results.result import Provenance, Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Better = Literal["higher", "lower"]
Explained = AttributionMethod | Attribution | Tensor
"""What is judged: a method, which is called; its attribution; or maps of the inputs' shape."""
LEVEL = 0.95
DRAWS = 10_000


class EvaluationError(ProbingError, ValueError):
    """What was given can't be measured."""


@runtime_checkable
class Metric(Protocol):
    """A frozen dataclass of settings that measures maps of inputs; its facts are class variables."""

    better: ClassVar[Better]
    """Which values speak for a map."""
    range: ClassVar[tuple[float, float]]
    """Smallest and largest value that can come out."""
    cost: ClassVar[str]
    """Passes for each input, besides those of the method."""


@dataclass(frozen=True)
class Measurement(Result):
    """One value per input, their mean, and an interval that takes inputs as the independent draws."""

    metric: str
    """The metric's name; its settings are in the provenance."""
    values: Float[Tensor, " n"]
    """NaN where the value is not defined; those are left out of the mean and counted."""
    better: Better
    n_forward: int = 0
    """Examples passed forward by the metric and the methods it called."""
    n_backward: int = 0
    chance: Float[Tensor, " n"] | None = None
    """What a map without information would get, where that is known."""

    @property
    def excluded(self) -> int:
        """How many inputs have no value."""
        return int(self.values.isnan().sum())

    @property
    def mean(self) -> float:
        """Over inputs with a value; NaN if there is none."""
        return float(self.values.double().nanmean())

    @property
    def interval(self) -> tuple[float, float]:
        """Of the mean, 95 %."""
        low, high = mean_interval(self.values.double()[:, None])[1:]
        return float(low[0]), float(high[0])

    def __str__(self) -> str:
        low, high = self.interval
        left_out = f", {self.excluded} without a value left out" if self.excluded else ""
        return (
            f"{self.metric} {self.mean:.3g} ({low:.3g} to {high:.3g}; "
            f"n = {len(self.values) - self.excluded}{left_out}; {self.better} is better)"
        )

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per input."""
        import pandas as pd

        return pd.DataFrame({"input": range(len(self.values)), "value": self.values.tolist()})

    def sentences(self) -> tuple[str, ...]:
        """Return the mean with its interval."""
        return (f"{self}.",)

    def notebook_table(self) -> None:
        """Return nothing: the figure shows each input."""

    def plot(self) -> "Figure":
        """Return a figure of each input's value, their mean and its interval."""
        values = self.values.double()
        values = values[~values.isnan()]
        with style():
            figure = new_figure(COLUMN_WIDTH, 0.86)
            panel = figure.subplots()
            panel.plot(values, [0] * len(values), "o", color=PALETTE[0], alpha=0.35, mew=0, ms=3.5)
            panel.plot(list(self.interval), [0, 0], color=INK, lw=0.9)
            panel.plot(self.mean, 0, "|", color=INK, ms=9, mew=1.2)
            if self.chance is not None:
                panel.plot(float(self.chance.double().nanmean()), 0, "x", color=FAINT, ms=5)
            panel.set_yticks([0], [self.metric])
            panel.set(ylim=(0.6, -0.6), xlabel=f"value of each input ({self.better} is better)")
        return figure


class Tally:
    """Values of inputs that arrive in parts, from one process or several: `add`, `merge`, `value`.

    Inputs are known by name, and so the result is the same in whatever order and from whomever they came.

    Example:
        >>> tally = Tally()
        >>> tally.add(names, deletion(method, score, inputs).areas[0, 0])
        >>> tally.value()
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def add(self, names: Sequence[str], values: Float[Tensor, "n *cells"]) -> None:
        """Take in the values of some inputs.

        Raises:
            EvaluationError: if an input is there already, or values have another shape than before.
        """
        if len(names) != len(values):
            raise EvaluationError(f"{len(names)} names can't name {len(values)} values.")
        for name, value in zip(names, values.detach().cpu().double(), strict=True):
            self._take(name, value)

    def merge(self, other: "Tally") -> None:
        """Take in what another tally holds; the other is left as it is."""
        for name, value in other._held.items():
            self._take(name, value)

    def value(self) -> "Tallied":
        """Return all values in the order of their names, with means and intervals; the tally can go on."""
        if not self._held:
            raise EvaluationError("nothing was added yet; call add() with at least one input first.")
        names = tuple(sorted(self._held))
        values = torch.stack([self._held[name] for name in names])
        mean, low, high = mean_interval(values)
        return Tallied(names, values, mean, low, high)

    def _take(self, name: str, value: Tensor) -> None:
        if name in self._held:
            raise EvaluationError(f"input {name!r} was added twice; give each input once.")
        first = next(iter(self._held.values()), value)
        if first.shape != value.shape:
            raise EvaluationError(f"values must keep their shape, got {tuple(value.shape)} after {tuple(first.shape)}.")
        self._held[name] = value.clone()


@dataclass(frozen=True)
class Tallied:
    """Values of all inputs that a tally took in, with the mean of each cell and its interval."""

    names: tuple[str, ...]
    values: Float[Tensor, "n *cells"]
    mean: Float[Tensor, "*cells"]
    low: Float[Tensor, "*cells"]
    high: Float[Tensor, "*cells"]


def mean_interval(
    values: Float[Tensor, "n *cells"], level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> tuple[Float[Tensor, "*cells"], Float[Tensor, "*cells"], Float[Tensor, "*cells"]]:
    """Return the mean over inputs and its bootstrap interval: mean ± t · (deviation of the draws).

    Inputs are drawn with replacement. With few of them the deviation is too small by sqrt((n - 1) / n) and a normal
    quantile too short: both are mended, so that the interval holds what it says from n = 5 on, where percentiles of
    the draws hold too little. NaN values are left out; with fewer than two inputs the interval is unknown (NaN).
    """
    flat = values.double().flatten(1) if values.ndim > 1 else values.double()[:, None]
    known = ~flat.isnan()
    count = known.sum(0)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(flat), np.full(len(flat), 1 / len(flat)), size=draws)
    counts = torch.from_numpy(drawn).double()
    filled = flat.nan_to_num(0.0)
    weight = counts @ known.double()
    means = torch.where(weight > 0, counts @ filled / weight, torch.nan)
    mean = torch.where(count > 0, filled.sum(0) / count, torch.nan)
    deviation = (means - means.nanmean(0)).square().nanmean(0).sqrt()
    quantile = torch.tensor([_quantile(int(n), level) for n in count], dtype=torch.float64)
    half = deviation * quantile
    shape = values.shape[1:]
    return mean.reshape(shape), (mean - half).reshape(shape), (mean + half).reshape(shape)


def _quantile(count: int, level: float) -> float:
    if count < 2:
        return math.nan
    return float(stats.t.ppf((1 + level) / 2, count - 1)) * math.sqrt(count / (count - 1))


@dataclass(frozen=True)
class Maps:
    """Maps of the inputs' resolution, and what they cost."""

    values: Float[Tensor, "n *shape"]
    score: Float[Tensor, " n"] | None
    n_forward: int = 0
    n_backward: int = 0


def maps_of(explained: Explained, score: Score, inputs: Float[Tensor, "n *shape"]) -> Maps:
    """Return maps that lie over the inputs.

    Raises:
        InputError: for inputs that are not one tensor.
        EvaluationError: for maps that don't lie over the inputs, or that hold NaN or infinity.
    """
    one_tensor(inputs)
    if isinstance(explained, Tensor):
        found = Maps(explained.detach().to(near(explained.device)), None)
    elif isinstance(explained, Attribution):
        found = Maps(explained.upsampled(), explained.score)
    else:
        whole = explained(score, inputs)
        found = Maps(whole.upsampled(), whole.score, whole.n_forward, whole.n_backward)
    _check_over(found.values, inputs)
    return found


def _check_over(maps: Tensor, inputs: Tensor) -> None:
    spatial = maps.ndim == inputs.ndim == 4 and maps.shape[1] in {1, inputs.shape[1]}
    fits = maps.shape[2:] == inputs.shape[2:] if spatial else maps.shape == inputs.shape
    if not fits or len(maps) != len(inputs):
        raise EvaluationError(
            f"maps of shape {tuple(maps.shape)} don't lie over inputs of shape {tuple(inputs.shape)}: "
            "explain the input, not a layer."
        )
    if not torch.isfinite(maps).all():
        row = int((~torch.isfinite(maps)).flatten(1).any(1).nonzero()[0])
        raise EvaluationError(f"map {row} holds NaN or infinity.")


def pixels(maps: Float[Tensor, "n *shape"], channels: Channels = "sum") -> Float[Tensor, "n *places"]:
    """Return one value per place: channels of images are reduced, what is no image stays as it is."""
    return reduce_channels(maps, channels) if maps.ndim == 4 else maps


def keys_of(inputs: Float[Tensor, "n *shape"], places: int, seed: int) -> Int[Tensor, "n places"]:
    """Return a random order of places for each input, drawn from the seed and the input's own content.

    It breaks ties: what an input gets does not depend on which others are in the batch, and differs between inputs.
    """
    drawn = []
    for row in inputs:
        own = int(tensor_id(row)[:15], 16)
        generator = torch.Generator().manual_seed((own + seed * 0x9E3779B97F4A7C15) % (1 << 63))
        drawn.append(torch.randperm(places, generator=generator))
    return torch.stack(drawn)


def drawn_noise(
    inputs: Float[Tensor, "n *shape"], draws: int, seed: int, kind: Literal["uniform", "normal"]
) -> Iterator[Tensor]:
    """Yield noise of the inputs' shape, from the seed and each input's own content: from -1 to 1, or of deviation 1."""
    generators = []
    for row in inputs:
        own = int(tensor_id(row)[:15], 16)
        generators.append(torch.Generator().manual_seed((own + seed * 7919) % (1 << 63)))
    for _ in range(draws):
        rows = []
        for row, generator in zip(inputs, generators, strict=True):
            if kind == "uniform":
                noise = 2 * torch.rand(row.shape, generator=generator, dtype=torch.float64) - 1
            else:
                noise = torch.randn(row.shape, generator=generator, dtype=torch.float64)
            rows.append(noise)
        yield torch.stack(rows).to(inputs)


def descending(values: Float[Tensor, "n places"], keys: Int[Tensor, "n places"]) -> Int[Tensor, "n places"]:
    """Return places from the largest value to the smallest; equal values stand in the order of their keys."""
    by_key = keys.to(values.device).argsort(1)
    by_value = values.gather(1, by_key).argsort(dim=1, descending=True, stable=True)
    return by_key.gather(1, by_value)


def tied_share(values: Float[Tensor, "n places"]) -> Float[Tensor, " n"]:
    """Return the share of places whose value another place has too."""
    ordered = values.sort(1).values
    same = ordered[:, 1:] == ordered[:, :-1]
    none = torch.zeros_like(same[:, :1])
    tied = torch.cat([none, same], 1) | torch.cat([same, none], 1)
    return tied.double().mean(1)


def measurement(
    metric: Metric,
    score: Score,
    values: Float[Tensor, " n"],
    maps: Maps,
    *,
    n_forward: int = 0,
    chance: Float[Tensor, " n"] | None = None,
) -> Measurement:
    """Return a metric's values with its facts, its settings, and the passes that it and the maps took."""
    return Measurement(
        Provenance.collect(model=score.model, method=metric),
        type(metric).__name__,
        values.double().cpu(),
        metric.better,
        maps.n_forward + n_forward,
        maps.n_backward,
        chance,
    )
