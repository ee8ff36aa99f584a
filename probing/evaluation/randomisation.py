"""Is an explanation caused by what the network learned? Parameters are drawn anew, and the maps must change.

Adebayo et al. 2018, sec. 3, and two later forms of the test (Hedström et al. 2023, arXiv:2401.06465). The class
explained is the trained network's at every step: explaining the randomised network's own favourite would mix a change of
class into it, as the authors' notebooks do.

Which to read when: `CascadingRandomisation` shows at which depth maps change, but by similarities that noise lowers as well
as forgetting does: a noisier method passes more easily. `SmoothRandomisation` takes noise out of all maps first, at many
times the cost, and is read against its own bands. `EfficientRandomisation` compares nothing place by place: it asks whether
maps become more disordered, so no choice of similarity or of the order of layers enters, but neither can it see that a
map stays the same while its disorder does: a map that ignores the network gets 0, as does one that is noise throughout.
None tells that a map is right, only that it hangs on what was learned.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor, nn

from probing.attribution.base import Attribution, AttributionMethod
from probing.evaluation.base import (
    Better,
    EvaluationError,
    Maps,
    Measurement,
    drawn_noise,
    keys_of,
    maps_of,
    mean_interval,
    measurement,
    pixels,
)
from probing.evaluation.complexity import histogram_entropy
from probing.evaluation.reinitialise import Plan, plan_of, randomised, redraw
from probing.evaluation.similarity import SIMILARITIES, TITLES
from probing.models.copies import own_copy
from probing.models.precision import AS_GIVEN, device_of
from probing.models.scores import Score
from probing.results.figures import FAINT, FULL_WIDTH, RULE, look, new_figure, style
from probing.results.heatmaps import Channels
from probing.results.result import Provenance, Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = ("spearman", "spearman_abs", "ssim", "hog", "top_iou")
PRIMARY = ("spearman", "spearman_abs")
Features = dict[str, Tensor]
Trace = Literal["none", "architecture", "training", "unknown"]


@dataclass(frozen=True)
class Randomisation(Result):
    """Similarities of the trained network's maps with those of networks whose parameters were drawn anew."""

    order: Literal["cascading", "independent"]
    layers: tuple[str, ...]
    """The layer that each step ends with (cascading) or consists of (independent), from the output on."""
    measures: tuple[str, ...]
    values: Float[Tensor, "seeds steps measures n"]
    """NaN where a map is constant; never the trained network with itself, which is 1 and no part of any mean."""
    shuffled: Float[Tensor, "seeds measures n"]
    """Of the trained network's maps with themselves, their places shuffled: no relation at all."""
    strangers: Float[Tensor, "pairs measures n"]
    """Of two networks drawn independently: what the input and the architecture alone make alike."""
    left: tuple[str, ...]
    """Tensors that were not drawn anew, since they carry nothing learned."""
    n_forward: int = 0
    n_backward: int = 0
    better: ClassVar[Better] = "lower"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @property
    def excluded(self) -> Int[Tensor, "steps measures"]:
        """How many similarities, over seeds and inputs, are not defined since a map is constant."""
        return self.values.isnan().sum((0, 3))

    @property
    def mean(self) -> Float[Tensor, "steps measures"]:
        """Over seeds and inputs."""
        return self._summary()[0]

    @property
    def interval(self) -> tuple[Float[Tensor, "steps measures"], Float[Tensor, "steps measures"]]:
        """Of the mean: inputs are the independent draws, seeds are averaged within each."""
        return self._summary()[1:]

    def _summary(self) -> tuple[Tensor, Tensor, Tensor]:
        return mean_interval(self.values.nanmean(0).movedim(-1, 0))

    def band(self, kind: Literal["shuffled", "strangers"], measure: str) -> tuple[float, float]:
        """Return the range in which a further mean over as many inputs lies with 95 %, under the null.

        A prediction interval: it takes in that its own middle and width are estimates too. Draws are maps; for
        strangers also networks, whose pairs' means say how much the mean of another pair may differ.
        """
        draws = getattr(self, kind)[:, self.measures.index(measure)].double()
        means = draws.nanmean(1)
        means, known = means[~means.isnan()], draws[~draws.isnan()]
        half = math.nan
        if len(known) > 1:
            half = _student(len(known) - 1) * float(known.std()) * math.sqrt(1 / draws.shape[1] + 1 / len(known))
        if kind == "strangers" and len(means) > 1:
            networks = (1 + math.sqrt(1 + 8 * len(means))) / 2
            half = max(half, _student(networks - 1) * float(means.std()) * math.sqrt(1 + 1 / networks))
        return float(known.mean()) - half, float(known.mean()) + half

    @property
    def traces(self) -> dict[str, Trace]:
        """What signed and absolute rank correlation have left at the last step, where everything was drawn anew.

        `training` if above the strangers' band: something learned survived. `architecture` if not, but above the band
        of shuffled maps: input and architecture alone make maps alike. `none` if inside or below both. `unknown` where
        constant maps leave no similarity, or no band, to tell it by.
        """
        last = self.mean[-1]
        found: dict[str, Trace] = {}
        for measure in PRIMARY:
            if measure in self.measures:
                value = float(last[self.measures.index(measure)])
                strangers, shuffled = (self.band(k, measure)[1] for k in ("strangers", "shuffled"))
                if math.isnan(value + strangers + shuffled):
                    found[measure] = "unknown"
                elif value > strangers:
                    found[measure] = "training"
                else:
                    found[measure] = "architecture" if value > shuffled else "none"
        return found

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per step and measure."""
        import pandas as pd

        mean, (low, high), excluded = self.mean, self.interval, self.excluded
        return pd.DataFrame(
            {
                "step": step + 1,
                "layer": layer,
                "measure": measure,
                "mean": float(mean[step, m]),
                "low": float(low[step, m]),
                "high": float(high[step, m]),
                "excluded": int(excluded[step, m]),
            }
            for step, layer in enumerate(self.layers)
            for m, measure in enumerate(self.measures)
        )

    def plot(self, measures: tuple[str, ...] = PRIMARY) -> "Figure":
        """Return a figure of similarity against what was drawn anew, with both null bands."""
        return randomisation_figure({"": self}, measures)


def _student(degrees: float | int) -> float:
    return float(stats.t.ppf(0.975, degrees))


def randomisation_figure(found: Mapping[str, Randomisation], measures: Sequence[str]) -> "Figure":
    """Return similarity against what was drawn anew, a line per method and a panel per measure.

    Bars are 95 % intervals over inputs. The grey band is what two independent random networks have in common, for
    the first method; below it nothing learned is left.
    """
    with style():
        figure = new_figure(FULL_WIDTH, 2.9)
        panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
        for panel, measure in zip(panels, measures, strict=True):
            first = next(iter(found.values()))
            band = first.band("strangers", measure)
            panel.axhspan(*band, color=RULE, alpha=0.6, linewidth=0)
            panel.axhline(0, color=FAINT, linewidth=0.5)
            for i, (name, result) in enumerate(found.items()):
                _similarity_line(panel, result, measure, name, i)
            panel.set_title(TITLES.get(measure, measure))
            panel.set_xlabel("drawn anew, from the output on")
            _name_layers(panel, first.layers)
        panels[0].set_ylabel("similarity")
        if len(found) > 1:
            handles, names = panels[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    return figure


def _similarity_line(panel: "Axes", result: Randomisation, measure: str, name: str, number: int) -> None:
    m = result.measures.index(measure)
    mean, (low, high) = result.mean[:, m], result.interval
    steps = range(1, len(result.layers) + 1)
    colour, marker = look(number)
    panel.errorbar(
        list(steps),
        mean.tolist(),
        yerr=[(mean - low[:, m]).tolist(), (high[:, m] - mean).tolist()],
        color=colour,
        marker=marker,
        elinewidth=0.5,
        label=name,
    )


def _name_layers(panel: "Axes", layers: Sequence[str]) -> None:
    shown = range(len(layers)) if len(layers) <= 8 else [0, len(layers) // 2, len(layers) - 1]
    turned = sum(len(layers[i]) for i in shown) > 24
    panel.set_xticks(
        [i + 1 for i in shown],
        [layers[i] for i in shown],
        rotation=30 if turned else 0,
        ha="right" if turned else "center",
    )


@dataclass(frozen=True)
class RandomisationMetric:
    """How alike a method's maps stay as a network's layers are drawn anew.

    Attributes:
        seeds: independent draws; the first two also make the band of strangers.
        steps: at how many depths maps are compared, the last being the whole network; None for every layer.
        measures: names of similarities.
        channels: how the maps' channels become one value.
        keep: paths or globs of tensors that stay.
        calibrate: estimate running statistics of drawn BatchNorms on the inputs; else they start over.
        seed: the first of the seeds.
    """

    seeds: int = 5
    steps: int | None = None
    measures: tuple[str, ...] = MEASURES
    channels: Channels = "sum"
    keep: tuple[str, ...] = ()
    calibrate: bool = True
    seed: int = 0
    better: ClassVar[Better] = "lower"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    cost: ClassVar[str] = "steps times seeds, plus 1, maps"
    order: ClassVar[Literal["cascading", "independent"]]

    def __call__(self, method: AttributionMethod, score: Score, inputs: Float[Tensor, "n *shape"]) -> Randomisation:
        """Return the similarities.

        Raises:
            EvaluationError: for settings that can't be followed.
            UnchangedError: if a parameter could not be changed.
        """
        return _randomise(self, method, score, inputs)


@dataclass(frozen=True)
class CascadingRandomisation(RandomisationMetric):
    """Layers are drawn anew from the output towards the input, each step with all those before."""

    order: ClassVar[Literal["cascading", "independent"]] = "cascading"


@dataclass(frozen=True)
class IndependentRandomisation(RandomisationMetric):
    """One layer at a time is drawn anew, all others stay trained."""

    order: ClassVar[Literal["cascading", "independent"]] = "independent"


@dataclass(frozen=True)
class SmoothRandomisation(CascadingRandomisation):
    """The cascade, of maps that are each the mean over noisy inputs: sMPRT (Hedström et al. 2023).

    All networks see the same noise. Its bands are of smooth maps, too, which are more alike than single ones: judge by
    them, not by the size of a similarity. A method that averages over noise itself, such as SmoothGrad, needs none of it.

    Attributes:
        draws: noisy inputs of a map.
        noise: standard deviation of the noise, as a share of each input's range.
    """

    draws: int = 50
    noise: float = 0.1
    cost: ClassVar[str] = "draws times those of the cascade, maps"

    def __call__(self, method: AttributionMethod, score: Score, inputs: Float[Tensor, "n *shape"]) -> Randomisation:
        """Return the similarities.

        Raises:
            EvaluationError: for settings that can't be followed.
            UnchangedError: if a parameter could not be changed.
        """
        if self.draws < 1 or self.noise <= 0:
            raise EvaluationError(f"draws must be at least 1 and noise above 0, got {self.draws} and {self.noise}.")
        return _randomise(self, _Smoothed(method, self.draws, self.noise, self.seed), score, inputs)


@dataclass(frozen=True)
class _Smoothed:
    """A method's maps, averaged over noisy inputs."""

    method: AttributionMethod
    draws: int
    noise: float
    seed: int

    def __call__(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        flat = inputs.flatten(1)
        width = (self.noise * (flat.amax(1) - flat.amin(1))).view(-1, *[1] * (inputs.ndim - 1))
        found = [self.method(score, inputs + width * z) for z in drawn_noise(inputs, self.draws, self.seed, "normal")]
        return replace(
            found[0],
            values=torch.stack([f.values for f in found]).mean(0),
            n_forward=sum(f.n_forward for f in found),
            n_backward=sum(f.n_backward for f in found),
        )


@dataclass(frozen=True)
class EfficientRandomisation:
    """How much more disordered a map is once all was drawn anew: eMPRT (Hedström et al. 2023).

    `(ξ(randomised) - ξ(trained)) / ξ(trained)`, where ξ is the entropy of a histogram of the map's values: above 0 where
    maps become noise, 0 for maps that ignore the network. Networks whose maps die out are left out of the mean.

    Attributes:
        seeds: independent draws, averaged.
        bins: of the histogram, between a map's smallest and largest value. With many more than the map has values, all
            maps are as disordered as can be.
        channels: how the maps' channels become one value.
        keep: paths or globs of tensors that stay.
        calibrate: estimate running statistics of drawn BatchNorms on the inputs; else they start over.
        seed: the first of the seeds.
    """

    seeds: int = 5
    bins: int = 100
    channels: Channels = "sum"
    keep: tuple[str, ...] = ()
    calibrate: bool = True
    seed: int = 0
    better: ClassVar[Better] = "higher"
    range: ClassVar[tuple[float, float]] = (-1.0, float("inf"))
    cost: ClassVar[str] = "seeds plus 1 maps"

    def __call__(self, method: AttributionMethod, score: Score, inputs: Float[Tensor, "n *shape"]) -> Measurement:
        """Return each input's relative rise; NaN where the trained network's map has one value, or all others have.

        Raises:
            EvaluationError: for settings that can't be followed.
            UnchangedError: if a parameter could not be changed.
        """
        if self.seeds < 1 or self.bins < 2:
            raise EvaluationError(f"seeds must be at least 1 and bins at least 2, got {self.seeds} and {self.bins}.")
        run = _Prepared.of(self, method, score, inputs)
        trained = histogram_entropy(run.explain(run.score.model), self.bins)
        rises = []
        for seed in range(self.seed, self.seed + self.seeds):
            drawn = histogram_entropy(run.explain(run.stranger(seed)), self.bins)
            rises.append((torch.where(drawn > 0, drawn, torch.nan) - trained) / trained)
        values = torch.where(trained > 0, torch.stack(rises).nanmean(0), torch.nan)
        passed = Maps(inputs, None, run.explain.n_forward, run.explain.n_backward)
        return measurement(self, score, values, passed)


@dataclass
class _Explainer:
    """Maps of one method with one class per input, for several networks; passes are counted."""

    method: AttributionMethod
    score: Score
    inputs: Tensor
    channels: Channels
    n_forward: int = 0
    n_backward: int = 0

    def __call__(self, model: nn.Module) -> Tensor:
        found = maps_of(self.method, replace(self.score, model=model), self.inputs)
        self.n_forward += found.n_forward
        self.n_backward += found.n_backward
        return pixels(found.values, self.channels)


@dataclass(frozen=True)
class _Prepared:
    """What any of these tests starts from."""

    score: Score
    plan: Plan
    explain: _Explainer
    calibrate: Tensor | None

    @classmethod
    def of(
        cls,
        metric: RandomisationMetric | EfficientRandomisation,
        method: AttributionMethod,
        score: Score,
        inputs: Tensor,
    ) -> "_Prepared":
        score = score.named(inputs)
        plan = plan_of(score.model, inputs, metric.keep)
        given = AS_GIVEN.prepare(score.model, (), device_of(score.model), inputs)
        calibrate = given.inputs(inputs) if metric.calibrate else None
        return cls(score, plan, _Explainer(method, score, inputs, metric.channels), calibrate)

    def stranger(self, seed: int) -> nn.Module:
        """Return the network with everything drawn anew."""
        return randomised(self.score.model, self.plan.blocks, seed, self.calibrate)


def _randomise(
    metric: RandomisationMetric,
    method: AttributionMethod,
    score: Score,
    inputs: Tensor,
) -> Randomisation:
    if metric.seeds < 1 or not set(metric.measures) <= set(SIMILARITIES):
        raise EvaluationError(
            f"seeds must be at least 1 and measures of {sorted(SIMILARITIES)}, got {metric.seeds} and {metric.measures}."
        )
    order, run = metric.order, _Prepared.of(metric, method, score, inputs)
    plan, explain, calibrate, score = run.plan, run.explain, run.calibrate, run.score
    depths = _depths(len(plan.blocks), metric.steps)
    trained = explain(score.model)
    features = _features(metric.measures, trained)
    seeds = range(metric.seed, metric.seed + metric.seeds)

    def stranger(seed: int) -> Tensor:
        return explain(run.stranger(seed))

    rows, strangers = [], []
    for seed in seeds:
        alike, last = [], features
        for net in _networks(score.model, plan, depths, order, seed, calibrate):
            last = _features(metric.measures, explain(net))
            alike.append(_alike(features, last))
        rows.append(torch.stack(alike))
        whole = order == "cascading"
        strangers.append(last if whole else _features(metric.measures, stranger(seed)))
    if len(strangers) < 2:
        strangers.append(_features(metric.measures, stranger(metric.seed + 1)))
    shuffled = [_features(metric.measures, _shuffle(trained, seed)) for seed in seeds]
    return Randomisation(
        Provenance.collect(model=score.model, method=metric),
        order,
        tuple(plan.blocks[depth].name for depth in depths),
        metric.measures,
        torch.stack(rows),
        torch.stack([_alike(features, f) for f in shuffled]),
        torch.stack([_alike(a, b) for a, b in combinations(strangers, 2)]),
        plan.left,
        explain.n_forward,
        explain.n_backward,
    )


def _depths(count: int, steps: int | None) -> list[int]:
    """Return the blocks that steps end with, evenly spread, the last one always among them."""
    if steps is None or steps >= count:
        return list(range(count))
    if steps < 1:
        raise EvaluationError(f"steps must be at least 1, got {steps}.")
    return sorted({round((i + 1) * count / steps) - 1 for i in range(steps)})


def _networks(
    model: nn.Module,
    plan: Plan,
    depths: Sequence[int],
    order: str,
    seed: int,
    calibrate: Tensor | None,
) -> Iterator[nn.Module]:
    """Yield the network of each step; a cascade's is one network that is drawn further."""
    if order == "independent":
        for depth in depths:
            yield randomised(model, plan.blocks[depth : depth + 1], seed, calibrate)
        return
    net, done = own_copy(model), 0
    for depth in depths:
        redraw(net, plan.blocks[done : depth + 1], seed, calibrate, plan.blocks[:done])
        done = depth + 1
        yield net


def _features(measures: tuple[str, ...], maps: Tensor) -> Features:
    return {name: SIMILARITIES[name].features(maps) for name in measures}


def _alike(first: Features, second: Features) -> Tensor:
    """Return `[measures, n]`."""
    return torch.stack([SIMILARITIES[m].between(first[m], second[m]).double() for m in first])


def _shuffle(maps: Tensor, seed: int) -> Tensor:
    flat = maps.flatten(1)
    order = keys_of(maps, flat.shape[1], seed).to(flat.device)
    return flat.gather(1, order).view(maps.shape)
