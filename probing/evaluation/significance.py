"""Which parts of a map are more than another network's map of the same input would show by chance."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from probing.attribution.base import Attribution, AttributionMethod
from probing.attribution.perturbation.superpixels import Segmentation, usual_parts
from probing.core.inputs import Batch, Inputs, batch_of
from probing.evaluation.base import EvaluationError
from probing.evaluation.reinitialise import plan_of, randomised
from probing.models.precision import AS_GIVEN, device_of
from probing.models.scores import Score
from probing.results.figures import COLUMN_WIDTH, FAINT, INK, PALETTE, new_figure, style
from probing.results.heatmaps import Channels, reduce_channels
from probing.results.result import Provenance, Result
from probing.statistics.hypothesis_tests import max_t

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PartsResult(Result):
    """Of each part of each input: what the map says of it, and how often maps of the null say as much."""

    labels: Int[Tensor, "n *places"]
    """The part of each place, from 0; -1 for padding."""
    values: Float64[Tensor, "n parts"]
    """The mean of the map over each part, as was compared; NaN beyond an input's own parts."""
    null_mean: Float64[Tensor, "n parts"]
    """The same, in the mean of the null's maps."""
    p: Float64[Tensor, "n parts"]
    """That a map of the null exceeds so somewhere in the input: corrected over its parts, one-sided."""
    draws: int
    """Maps of the null."""
    alpha: float
    n_forward: int = 0
    n_backward: int = 0

    @property
    def significant(self) -> Bool[Tensor, "n parts"]:
        """Which parts exceed the null; of each input, with a probability of `alpha` at most that any is wrong."""
        return self.p <= self.alpha

    @property
    def shown(self) -> Float64[Tensor, "n *places"]:
        """Each significant part's value at its places, 0 elsewhere: a map to be drawn."""
        flat = self.labels.flatten(1)
        kept = torch.where(self.significant, self.values, 0.0)
        values = kept.gather(1, flat.clamp(min=0).to(kept.device))
        return torch.where(flat >= 0, values, 0.0).view(self.labels.shape)

    def sentences(self) -> tuple[str, ...]:
        """Return how many inputs have such parts, and what is assumed."""
        some = int(self.significant.any(1).sum())
        return (
            f"{some} of {len(self.p)} inputs have parts that exceed {self.draws} maps of the null "
            f"(p up to {self.alpha:g}, corrected over the parts of an input, not over inputs; least possible p "
            f"{1 / (self.draws + 1):.2g}).",
            "It is assumed that under the null the map is as likely to be any one of these maps as the network's own.",
        )

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per input and part."""
        import pandas as pd

        known = ~self.values.isnan()
        rows, parts = known.nonzero().T.tolist()
        columns = {name: getattr(self, name)[known].tolist() for name in ("values", "null_mean", "p", "significant")}
        return pd.DataFrame({"input": rows, "part": parts, **columns}).rename(columns={"values": "value"})

    def plot(self) -> "Figure":
        """Return a figure of every part: what the null says of it, and what the map does."""
        with style():
            figure = new_figure(COLUMN_WIDTH, 2.4)
            panel = figure.subplots()
            for chosen, colour, name in ((~self.significant, FAINT, "not"), (self.significant, PALETTE[0], "significant")):
                panel.plot(self.null_mean[chosen], self.values[chosen], "o", color=colour, mew=0, ms=3.5, label=name)
            panel.axline((0, 0), slope=1, color=INK, lw=0.7)
            panel.set(xlabel="mean of a part under the null", ylabel="of the map")
            figure.legend(loc="outside upper left", ncols=2)
        return figure


@dataclass(frozen=True)
class PartSignificance:
    """Where a map exceeds maps of networks that did not learn what this one did, part by part.

    An attribution has no test of its own: no value is significant in itself. What can be tested is whether the map differs
    from maps of the same input under a null that is named: of untrained twins (`untrained_twins`: is there anything here
    that training brought?), of networks trained in the same way on permuted labels (give a `Score` of each: does it hang
    on what the labels mean?), or of the other classes of the same network (`other_classes`: is it of this class?). Each
    part's value is centred and scaled by its mean and deviation over all maps, the network's own among them, and compared
    with the largest of each map of the null over all parts (the step-down maximum of Westfall & Young 1993).

    The chance that any part of an input is called significant is at most `alpha` if the map and those of the null are
    exchangeable: if, but for what the null denies, the network could as well have been any of them. Twins are so if the
    network's own start was drawn as theirs are; networks on permuted labels if they had the same starts, data and
    training; classes hardly ever exactly, since some are more alike than others: take that null as a description. With
    parts that are cut by the maps themselves it does not hold: cut by the input. A few nulls can show nothing: of 19,
    0.05 is the least p.

    Attributes:
        parts: how inputs are cut; if nothing is said, into superpixels, features, blocks, or the tokens that are read.
        channels: how the maps' channels become one value.
        scaled: whether each map is divided by the mean of its sizes first, so that a network whose scores are larger
            does not exceed everywhere; without, it is in score units.
        alpha: level.

    Example:
        >>> nulls = untrained_twins(Score(model, 1), images, draws=19)
        >>> found = PartSignificance()(Saliency(), Score(model, 1), images, nulls)
    """

    parts: Segmentation | None = None
    channels: Channels = "sum"
    scaled: bool = True
    alpha: float = 0.05

    def __call__(self, method: AttributionMethod, score: Score, inputs: Batch, nulls: Iterable[Score]) -> PartsResult:
        """Return each part's p.

        Args:
            method: explains the score and those of the null.
            score: of the network that is asked about; where it names no class, the top class of each input.
            inputs: images, features, series, volumes, or texts as token ids.
            nulls: scores under the null, with a class each.

        Raises:
            EvaluationError: if there are too few nulls for `alpha`, one names no class, or maps don't fit the inputs.
        """
        inputs = batch_of(inputs)
        score = score.named(inputs)
        own = method(score, inputs)  # type: ignore[arg-type]  # named inputs, too
        texts = own.values.ndim == 3 and not inputs.is_floating_point()
        labels = _of_tokens(own) if texts else self._labels(own, inputs)
        forward, backward = own.n_forward, own.n_backward
        maps = [self._places(own, labels, texts=texts)]
        for null in nulls:
            if null.is_open:
                raise EvaluationError(
                    "a score of the null names no class: explain the class that the network's own map is of."
                )
            found = method(null, inputs)  # type: ignore[arg-type]
            maps.append(self._places(found, labels, texts=texts))
            forward, backward = forward + found.n_forward, backward + found.n_backward
        if len(maps) * self.alpha < 1 - 1e-9:
            raise EvaluationError(
                f"{len(maps) - 1} maps of the null can't show anything at {self.alpha:g}: give {_least(self.alpha)} or more."
            )
        count = int(labels.max()) + 1
        means = torch.stack([_part_means(m, labels, count) for m in maps])
        return PartsResult(
            Provenance.collect(model=score.model, method=self),
            labels,
            means[0],
            means[1:].mean(0),
            torch.stack([exceedance(means[:, i]) for i in range(len(labels))]),
            len(maps) - 1,
            self.alpha,
            forward,
            backward,
        )

    def _labels(self, own: Attribution, inputs: Batch) -> Int[Tensor, "n *places"]:
        """Return the part of each place of the map, numbered from 0 in each input."""
        if isinstance(inputs, Inputs):
            raise EvaluationError(
                f"of named inputs texts can be cut into tokens, got maps of shape {tuple(own.values.shape)}: "
                "explain one tensor."
            )
        parts = usual_parts(inputs.ndim) if self.parts is None else self.parts
        labels = parts(inputs).cpu()
        labels = labels[:, 0] if labels.ndim > 2 and labels.shape[1] == 1 else labels
        return torch.stack([torch.unique(one, return_inverse=True)[1] for one in labels])

    def _places(self, found: Attribution, labels: Tensor, *, texts: bool) -> Float64[Tensor, "n *places"]:
        maps = found.upsampled().detach().cpu().double()
        if maps.ndim == 4:
            maps = reduce_channels(maps, self.channels)
        elif maps.ndim == labels.ndim + 1:
            maps = maps.sum(-1 if texts else 1)  # features of a token, or channels of a place
        if maps.shape != labels.shape or not torch.isfinite(maps).all():
            raise EvaluationError(
                f"maps must be finite and lie over parts of shape {tuple(labels.shape)}, got shape {tuple(maps.shape)}."
            )
        if not self.scaled:
            return maps
        held = labels >= 0
        sizes = (maps.abs() * held).flatten(1).sum(1) / held.flatten(1).sum(1).clamp(min=1)
        return maps / torch.where(sizes > 0, sizes, 1.0).view(-1, *[1] * (maps.ndim - 1))


def _of_tokens(own: Attribution) -> Int[Tensor, "n tokens"]:
    """Return each token that is read as a part of its own."""
    read = torch.ones(own.values.shape[:2], dtype=torch.bool) if own.read is None else own.read.cpu()
    return torch.where(read, read.long().cumsum(1) - 1, -1)


def exceedance(values: Float64[Tensor, "maps parts"]) -> Float64[Tensor, " parts"]:
    """Return p of each part that the first map exceeds the others there, corrected over parts; NaN where it has none."""
    known = ~values[0].isnan()
    own = values[:, known]
    centred = own - own.mean(0)
    # What rounding leaves of a part that is the same in all maps is nothing, and not to be scaled up.
    centred = torch.where(centred.abs() <= 1e-12 * own.abs().amax(0), 0.0, centred)
    p = torch.full(known.shape, torch.nan, dtype=torch.float64)
    if bool(known.any()):
        p[known] = max_t(centred[0], centred[1:])
    return p


def untrained_twins(score: Score, inputs: Float[Tensor, "n *shape"], draws: int = 99, seed: int = 0) -> Iterator[Score]:
    """Yield scores, of the same classes, of copies of the network with everything drawn anew.

    Args:
        score: of the trained network.
        inputs: on which running statistics of BatchNorms are estimated anew.
        draws: copies.
        seed: of the first.
    """
    score = score.named(inputs)
    plan = plan_of(score.model, inputs)
    given = AS_GIVEN.prepare(score.model, (), device_of(score.model), inputs).inputs(inputs)
    for number in range(draws):
        yield replace(score, model=randomised(score.model, plan.blocks, seed + number, given))


def other_classes(score: Score, inputs: Batch, classes: int) -> Iterator[Score]:
    """Yield scores of the same network, each of another of its classes than the one explained.

    Args:
        score: of a class, or one per input.
        inputs: which tell the class where none is named.
        classes: how many the network has.

    Raises:
        EvaluationError: if what is explained is no class.
    """
    target = score.named(inputs).target
    if not isinstance(target, int | Tensor):
        raise EvaluationError(f"only a class has others beside it, got a {type(target).__name__}.")
    for step in range(1, classes):
        yield replace(score, target=(target + step) % classes)


def _least(alpha: float) -> int:
    return round(1 / alpha + 0.5 - 1e-9) - 1


def _part_means(
    maps: Float64[Tensor, "n *places"], labels: Int[Tensor, "n *places"], count: int
) -> Float64[Tensor, "n parts"]:
    """Return the mean over each part; NaN for numbers that no place of the input has."""
    flat, own = maps.flatten(1), labels.flatten(1) + 1
    total = torch.zeros(len(flat), count + 1, dtype=torch.float64).scatter_add_(1, own, flat)
    places = torch.zeros_like(total).scatter_add_(1, own, torch.ones_like(flat))
    return (total / places)[:, 1:]  # 0/0 is NaN
