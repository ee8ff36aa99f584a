"""Amnesic probing: what a network's scores lose when an attribute can no longer be read from a layer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from concepts.effects.logit_effect import split_clusters
from concepts.erasure.eraser import CrossMoments, ErasureError, Kind, eraser_of, random_eraser
from concepts.erasure.passes import ROWS, everywhere, mean_rows, output_with, read
from concepts.erasure.result import ErasureResult
from probing.core.content_ids import content_id
from probing.core.seeds import seed_of
from probing.data.examples import Examples, ExampleSet, Subset, as_examples
from probing.models.hooks import Edit
from probing.models.layers import several
from probing.models.precision import device_of
from probing.models.scores import Score, class_scores
from probing.results.result import Provenance
from probing.statistics.clustered import ClusteredMean, clustered_mean, holm
from probing.statistics.hypothesis_tests import codes
from probing.store.requests import model_of
from probing.store.store import ActivationStore

_ROUNDING = 1e-6  # of scores, as a share of their spread


@dataclass(frozen=True)
class Erasure:
    """Erases an attribute from layers and measures what scores lose beyond random directions (Elazar et al. 2021).

    That an attribute can be read from a layer does not show that the network uses it there. Clusters of examples are
    divided at random: erasers are fitted to the means over places of one part, which guards every linear reader of these,
    and put into the network's passes of the other, the same map at every place.

    Attributes:
        layers: dotted paths.
        kind: `leace`, the least change after which no linear reader finds the attribute; `mean`, the orthogonal
            projection that does.
        sequence: whether a layer's attribute is erased after it was erased in the layers named before it.
        controls: draws of as many random directions.
        share: of the clusters, that erasers are fitted on (0-1).
        level: of intervals.
        seed: of the division and the draws.

    Raises:
        ErasureError: for an attribute of one value, or another number of values than examples.

    Example:
        >>> found = Erasure(("layer3", "layer4"))(store, {"zebra": Score(net, 3)}, images, labels)
        >>> found.to_pandas()[["layer", "readable", "readable_after", "slope", "slope_after", "used"]]
    """

    layers: str | tuple[str, ...]
    kind: Kind = "leace"
    sequence: bool = False
    controls: int = 20
    share: float = 0.5
    level: float = 0.95
    seed: int = 0

    def __call__(
        self,
        store: ActivationStore,
        scores: Mapping[str, Score],
        examples: Examples,
        attribute: Sequence[object] | Tensor,
        *,
        clusters: Sequence[str] = (),
        labels: Sequence[int] | Int[Tensor, " n"] | None = None,
        fitted_on: Collection[str] | None = None,
    ) -> ErasureResult:
        """Return what readers and scores lose.

        Args:
            store: reads activations and keeps them.
            scores: by name, of one model, with one class each.
            examples: with and without the attribute.
            attribute: of each example a value, such as a name; or numbers, `[n]` or `[n, k]` of a floating-point type,
                for a continuous one.
            clusters: which examples belong together; by default each is its own.
            labels: the true class of each, for accuracy.
            fitted_on: the clusters that erasers are fitted on; by default `share` of them, drawn at random.
        """
        model, examples = model_of(list(scores.values())), as_examples(examples)
        table = _Attribute.of(attribute, len(examples))
        names = tuple(clusters) or tuple(f"example {i}" for i in range(len(examples)))
        if len(names) != len(examples) or (labels is not None and len(labels) != len(examples)):
            raise ErasureError(f"{len(examples)} examples need as many clusters and labels, if any.")
        if self.controls < 1:
            raise ErasureError(f"controls must be at least 1, got {self.controls}: else no loss has a measure.")
        chosen = split_clusters(names, self.share, self.seed)[0] if fitted_on is None else fitted_on
        fit, judge = (tuple(i for i, n in enumerate(names) if (n in chosen) == side) for side in (True, False))
        if not fit or not judge:
            raise ErasureError(f"{len(fit)} examples are of clusters to fit on, and {len(judge)} of others: give both.")
        erased = _Run(self, store, model, scores, examples, table, fit, judge, codes([names[i] for i in judge]))
        return erased.result(names, None if labels is None else torch.as_tensor(labels)[list(judge)])


@dataclass(frozen=True, eq=False)
class _Attribute:
    """An attribute as columns of numbers, and what a reader is to find."""

    values: Float[Tensor, "n k"]
    columns: tuple[str, ...]
    kinds: Int[Tensor, " n"] | None
    """Which value each example has; None for a continuous attribute."""

    @classmethod
    def of(cls, attribute: Sequence[object] | Tensor, n: int) -> "_Attribute":
        if len(attribute) != n:
            raise ErasureError(f"{n} examples need as many values of the attribute, got {len(attribute)}.")
        if isinstance(attribute, Tensor) and attribute.is_floating_point():
            values = attribute.detach().cpu().double().reshape(n, -1)
            if not torch.isfinite(values).all():
                raise ErasureError("the attribute holds NaN or infinity.")
            if bool((values == values[0]).all()):
                raise ErasureError("the attribute is the same for all examples: there is nothing to erase.")
            count = values.shape[1]
            return cls(values, ("attribute",) if count == 1 else tuple(f"attribute {i}" for i in range(count)), None)
        given = attribute.tolist() if isinstance(attribute, Tensor) else list(attribute)
        kinds = sorted(set(given), key=str)
        if len(kinds) < 2:
            raise ErasureError(f"the attribute has the value {kinds[0]!r} alone: give examples with another, too.")
        index = torch.tensor([kinds.index(value) for value in given])
        one_hot = torch.nn.functional.one_hot(index, len(kinds)).double()
        # Of two values one column says all.
        first = 1 if len(kinds) == 2 else 0
        return cls(one_hot[:, first:], tuple(str(kind) for kind in kinds[first:]), index)


@dataclass(frozen=True, eq=False)
class _Run:
    """One erasure: its examples in two parts."""

    how: Erasure
    store: ActivationStore
    model: nn.Module
    scores: Mapping[str, Score]
    examples: ExampleSet
    attribute: _Attribute
    fit: tuple[int, ...]
    judge: tuple[int, ...]
    clusters: Int[Tensor, " judged"]

    def result(self, names: Sequence[str], labels: Tensor | None) -> ErasureResult:
        how, layers = self.how, several(self.how.layers)
        plain, right = self._outputs(self.judge, {}, labels)
        columns = self.attribute.values[list(self.judge)]
        slope = slopes(plain, columns, self.clusters, how.level)
        before: dict[str, Edit] = {}
        parts: list[_Layer] = []
        for layer in layers:
            parts.append(self._layer(layer, before, plain, right, labels, columns))
            if how.sequence:
                before = before | {layer: parts[-1].change}
        # Used is what is there, and goes: both must be shown.
        used_p = holm(torch.stack([torch.maximum(slope.p, more(part.used)) for part in parts]))

        def stack(pick: Callable[[_Layer], Tensor | float]) -> Tensor:
            return torch.stack([torch.as_tensor(pick(part), dtype=torch.float64) for part in parts])

        return ErasureResult(
            provenance=Provenance.collect(
                model=self.model, examples=content_id([list(self.examples.ids), list(names)]), method=how
            ),
            layers=tuple(layers),
            sequence=how.sequence,
            targets=tuple(self.scores),
            columns=self.attribute.columns,
            rank=tuple(part.rank for part in parts),
            readable=stack(lambda p: p.readable),
            readable_after=stack(lambda p: p.readable_after),
            chance=0.0 if self.attribute.kinds is None else 1 / (int(self.attribute.kinds.max()) + 1),
            slope=slope.mean,
            slope_low=slope.low,
            slope_high=slope.high,
            accuracy=float("nan") if right is None else float(right.mean()),
            slope_after=stack(lambda p: p.after),
            slope_control=stack(lambda p: p.control),
            used=stack(lambda p: p.used.mean),
            used_low=stack(lambda p: p.used.low),
            used_high=stack(lambda p: p.used.high),
            used_p=used_p,
            as_much=stack(lambda p: p.as_much),
            fitted=len({names[i] for i in self.fit}),
            judged=len({names[i] for i in self.judge}),
            moved=stack(lambda p: p.moved),
            moved_control=stack(lambda p: p.moved_control),
            lost=stack(lambda p: p.lost[0]),
            lost_low=stack(lambda p: p.lost[1]),
            lost_high=stack(lambda p: p.lost[2]),
            controls=how.controls,
            level=how.level,
        )

    def _layer(
        self,
        layer: str,
        before: Mapping[str, Edit],
        plain: Float[Tensor, "n targets"],
        right: Float[Tensor, " n"] | None,
        labels: Tensor | None,
        columns: Float[Tensor, "n k"],
    ) -> "_Layer":
        how = self.how
        rows, axis = self._rows(layer, before)
        first, second = rows[: len(self.fit)], rows[len(self.fit) :]
        moments = CrossMoments()
        moments.add(first, self.attribute.values[list(self.fit)])
        found = moments.value()
        eraser = eraser_of(found, how.kind)
        drawn = [
            random_eraser(found, eraser.rank, seed_of(how.seed, layer, k), whitened=how.kind == "leace")
            for k in range(how.controls)
        ]
        change = everywhere(eraser, axis)
        erased, still_right = self._outputs(self.judge, {**before, layer: change}, labels)
        others = [self._outputs(self.judge, {**before, layer: everywhere(e, axis)}, labels) for e in drawn]
        controls = torch.stack([scores for scores, _ in others])
        whole, after = (slopes(x, columns, self.clusters, how.level).mean for x in (plain, erased))
        sign = whole.sign()
        each = torch.stack([slopes(x, columns, self.clusters, how.level).mean for x in controls])
        # A slope is linear in the scores: that of a mean over draws is the mean of their slopes.
        gain = slopes(controls.mean(0) - erased, columns, self.clusters, how.level)
        lost = (float("nan"),) * 3
        if right is not None and still_right is not None:
            kept = torch.stack([hits for _, hits in others if hits is not None]).mean(0)
            loss = clustered_mean(kept - still_right, self.clusters, how.level)
            lost = (float(loss.mean), float(loss.low), float(loss.high))
        return _Layer(
            change,
            eraser.rank,
            self._readable(first, second),
            self._readable(eraser(first), eraser(second)),
            after,
            each.mean(0),
            signed(gain, sign),
            (sign * each <= sign * after).double().mean(0),
            (erased - plain).abs().mean(0),
            (controls - plain).abs().mean((0, 1)),
            lost,
        )

    def _rows(self, layer: str, before: Mapping[str, Edit]) -> tuple[Float[Tensor, "n m"], int]:
        """Return means over places of a layer's output, those to fit on first, and the axis of its features."""
        order = [*self.fit, *self.judge]
        rows, axis = mean_rows(self.store, self.model, layer, Subset(self.examples, order))
        if not before:
            return rows, axis
        kept: list[Tensor] = []

        def keep(module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
            rows = output.movedim(axis, -1)
            kept.append(rows.reshape(len(rows), -1, rows.shape[-1]).double().mean(1).cpu())
            return output

        self._outputs(order, {**before, layer: keep}, None)
        return torch.cat(kept), axis

    def _outputs(
        self, order: Sequence[int], changes: Mapping[str, Edit], labels: Tensor | None
    ) -> tuple[Float[Tensor, "n targets"], Float[Tensor, " n"] | None]:
        """Return scores of examples with layers changed, and whether the largest class score is the label's."""
        found, classes = [], []
        for start in range(0, len(order), ROWS):
            batch = self.examples.load(order[start : start + ROWS]).to(device_of(self.model))
            output = output_with(self.model, batch, changes)
            found.append(read(self.scores, output))
            if labels is not None:
                part = next(iter(self.scores.values())).output
                classes.append(class_scores(output, part).argmax(1).cpu())
        return torch.cat(found), None if labels is None else (torch.cat(classes) == labels).double()

    def _readable(self, first: Float[Tensor, "n m"], second: Float[Tensor, "k m"]) -> float:
        """Return how well a linear reader of the rows to fit on finds the attribute in held-out ones."""
        from sklearn.linear_model import LogisticRegression, RidgeCV
        from sklearn.metrics import balanced_accuracy_score, r2_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        kinds = self.attribute.kinds
        if kinds is None:
            reader = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13)))
            wanted = self.attribute.values.numpy()
            fitted = reader.fit(first.numpy(), wanted[list(self.fit)])
            return float(r2_score(wanted[list(self.judge)], fitted.predict(second.numpy())))
        judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        fitted = judge.fit(first.numpy(), kinds[list(self.fit)].numpy())
        return float(balanced_accuracy_score(kinds[list(self.judge)].numpy(), fitted.predict(second.numpy())))


@dataclass(frozen=True, eq=False)
class _Layer:
    """What one layer's erasure shows."""

    change: Edit
    rank: int
    readable: float
    readable_after: float
    after: Float[Tensor, "targets k"]
    control: Float[Tensor, "targets k"]
    used: ClusteredMean
    as_much: Float[Tensor, "targets k"]
    moved: Float[Tensor, " targets"]
    moved_control: Float[Tensor, " targets"]
    lost: tuple[float, float, float]


def slopes(
    scores: Float[Tensor, "n targets"], columns: Float[Tensor, "n k"], clusters: Int[Tensor, " n"], level: float
) -> ClusteredMean:
    """Return by how much scores differ with each column, by least squares on that column alone, over clusters.

    The slope is the mean of `slope + (column - mean) · residual / variance`, whose cluster-robust error is the sandwich's.
    What is within rounding of the scores is no slope.
    """
    apart = columns - columns.mean(0)
    variance = apart.square().mean(0)
    centred = scores - scores.mean(0)
    slope = centred.mT @ apart / (len(scores) * variance)
    rounding = _ROUNDING * centred.square().mean(0).sqrt()[:, None] / variance.sqrt()
    slope = torch.where(slope.abs() > rounding, slope, 0.0)
    residual = centred[:, :, None] - apart[:, None, :] * slope
    influence = apart[:, None, :] * residual / variance
    return clustered_mean(slope + influence - influence.mean(0), clusters, level)


def more(found: ClusteredMean) -> Float[Tensor, "*cells"]:
    """Return p of the mean being no more than zero."""
    return torch.where(found.mean > 0, found.p / 2, 1 - found.p / 2)


def signed(found: ClusteredMean, sign: Float[Tensor, "*cells"]) -> ClusteredMean:
    """Return means with some of them turned round."""
    low, high = found.low * sign, found.high * sign
    return replace(found, mean=found.mean * sign, low=torch.minimum(low, high), high=torch.maximum(low, high))
