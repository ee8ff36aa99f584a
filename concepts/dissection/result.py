"""What dissection found, with the numbers that must be read beside an IoU."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concepts.data.segmentation.labels import Vocabulary
from concepts.dissection.label_tests import MOST_UNITS, LabelTest
from concepts.dissection.layer_units import Reading
from concepts.dissection.tally import Counts
from probing.results.figures import FAINT, FULL_WIDTH, INK, PALETTE, RULE, new_figure, style
from probing.results.result import Provenance, Result
from probing.statistics.hypothesis_tests import benjamini_hochberg, max_t, permutation_p

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_TOLD = (
    "layer",
    "unit",
    "concept",
    "category",
    "iou",
    "ceiling",
    "chance",
    "held_out",
    "p_fdr",
    "detector",
)

Units = Float[Tensor, " units"]
Flags = Bool[Tensor, " units"]


@dataclass(frozen=True)
class NullScores:
    """Each unit's best IoU, and the concept it is with, where units look at other images than the labels do."""

    iou: Float[Tensor, "draws units"]
    concept: Int[Tensor, "draws units"]


@dataclass(frozen=True)
class DissectionResult(Result):
    """Units of several layers, one after the other, against concepts.

    A label is a unit's concept of highest IoU; it says where the unit is highly active, not what the network uses it
    for (see `Ablation`).
    """

    layers: tuple[str, ...]
    anchors: tuple[str, ...]
    """Of each layer: where its cells lie in the input is known by `receptive field`, or taken as `tiles`."""
    layer_of: Int[Tensor, " units"]
    """Which of `layers` each unit is of."""
    unit: Int[Tensor, " units"]
    """Its number there."""
    concepts: tuple[str, ...]
    categories: tuple[str, ...]
    images: int
    min_iou: float
    level: float

    threshold: Units
    """The value that a share q of all the unit's values exceeds."""
    inactive: Flags
    """The threshold is the lowest value there is: the unit is dead, or active less often than q."""
    binary: Flags
    """There are two values only: the threshold can't cut off the share q."""
    degenerate: Flags
    """No value exceeds the threshold, so that the mask is empty and IoU 0."""

    shared: Int[Tensor, "units concepts"]
    unit_area: Int[Tensor, "units concepts"]
    label_area: Int[Tensor, " concepts"]
    cells: Int[Tensor, " concepts"]
    """Label cells: active and labelled; active; labelled; all, each in the images that count for the concept."""
    correlation: Float[Tensor, "units concepts"]
    """Pearson's, of the upsampled map with the concept's mask; NaN where either is constant."""
    auprc: Float[Tensor, "units concepts"]
    """Average precision of finding images that show the concept by the unit's highest activation; by chance it is
    `base_rate`. NaN where no image shows it."""
    base_rate: Float[Tensor, " concepts"]
    """Share of images that show the concept, of those labelled in its category."""

    held_out: Units
    """IoU of the concept chosen on half of the images with the other half, the mean of both ways round."""
    same_choice: Flags
    """Whether both halves choose the same concept."""
    null: NullScores
    z: Units
    """The best IoU's distance from its mean under shuffled images, in their standard deviations."""
    p: Units
    """Permutation test of the best IoU over concepts; NaN for a unit without a mask, or without draws."""
    p_fdr: Units
    """Corrected over all units and layers by Benjamini & Hochberg (share of false ones among those called)."""
    p_max_t: Units
    """Corrected over all units and layers by the step-down maximum (no false one at all)."""
    label_tests: tuple[LabelTest, ...]
    """Whether scores notice wrong labels, on the detectors; where there are none, on all units that share a cell with
    their label."""
    top_images: Int[Tensor, "units top"]
    """The images with the unit's highest activations, best first; of equal ones the first."""

    @cached_property
    def iou(self) -> Float[Tensor, "units concepts"]:
        """Intersection over union, over all images."""
        return Counts(self.shared, self.unit_area, self.label_area, self.cells).iou

    @cached_property
    def best_iou(self) -> Units:
        """Each unit's highest IoU."""
        return self.iou.max(1).values

    @cached_property
    def best(self) -> Int[Tensor, " units"]:
        """The concept it is with; of equal ones the first. Meaningless where `best_iou` is 0."""
        return self.iou.max(1).indices

    @cached_property
    def ceiling(self) -> Float[Tensor, "units concepts"]:
        """The highest IoU that areas allow: the smaller of unit and label over the larger."""
        unit, label = self.unit_area.double(), self.label_area.double()
        return torch.minimum(unit, label) / torch.maximum(unit, label).clamp(min=1)

    @cached_property
    def chance(self) -> Float[Tensor, "units concepts"]:
        """The IoU of a mask of the unit's area that lies anywhere."""
        unit, label = (a.double() / self.cells.clamp(min=1) for a in (self.unit_area, self.label_area))
        return unit * label / (unit + label - unit * label).clamp(min=1e-12)

    @property
    def detector(self) -> Flags:
        """Whether the best IoU exceeds `min_iou`: the published rule, which has no error rate."""
        return self.best_iou > self.min_iou

    @property
    def significant(self) -> Flags:
        """Whether the best IoU is more than shuffled images give, after correction for the number of units."""
        return self.p_fdr <= self.level

    @property
    def null_share(self) -> float:
        """Share of units that the published rule calls detectors where images are shuffled; NaN without draws."""
        return float((self.null.iou > self.min_iou).double().mean())

    def rows_of(self, layer: str) -> Int[Tensor, " rows"]:
        """Return which units are a layer's."""
        return (self.layer_of == self.layers.index(layer)).nonzero()[:, 0]

    def detectors_by_category(self, layer: str, *, unique: bool = True, min_iou: float | None = None) -> dict[str, int]:
        """Return how many concepts of each category a layer has detectors of, or how many detectors.

        Args:
            layer: which one.
            unique: counts a concept once, however many units detect it.
            min_iou: least IoU of a detector, if not the result's own.
        """
        least = self.min_iou if min_iou is None else min_iou
        rows = self.rows_of(layer)
        return self._by_category(self.best[rows], self.best_iou[rows] > least, unique=unique)

    def null_by_category(self, layer: str, *, unique: bool = True) -> dict[str, float]:
        """Return the mean of `detectors_by_category` over shuffles of the images."""
        rows = self.rows_of(layer)
        draws = [
            self._by_category(concept[rows], iou[rows] > self.min_iou, unique=unique)
            for iou, concept in zip(self.null.iou, self.null.concept, strict=True)
        ]
        kinds = dict.fromkeys(self.categories)
        return {k: sum(d[k] for d in draws) / max(len(draws), 1) for k in kinds}

    def _by_category(self, concepts: Tensor, detects: Tensor, *, unique: bool) -> dict[str, int]:
        found = concepts[detects].tolist()
        counted = dict.fromkeys(self.categories, 0)
        for concept in set(found) if unique else found:
            counted[self.categories[concept]] += 1
        return counted

    def sentences(self) -> tuple[str, ...]:
        """Return what must be said beside the numbers, in plain words."""
        return (
            *_on_null(self),
            *_on_units(self),
            *_on_concepts(self),
            *_on_layers(self),
            *_on_scores(self),
        )

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per unit, with the concept of highest IoU."""
        import pandas as pd

        at = torch.arange(len(self.best)), self.best
        named = (self.best_iou > 0).tolist()
        names = [self.concepts[c] if n else "" for c, n in zip(self.best.tolist(), named, strict=True)]
        kinds = [self.categories[c] if n else "" for c, n in zip(self.best.tolist(), named, strict=True)]
        columns: dict[str, object] = {
            "layer": [self.layers[i] for i in self.layer_of.tolist()],
            "unit": self.unit.tolist(),
            "concept": names,
            "category": kinds,
            "iou": self.best_iou.tolist(),
            "ceiling": self.ceiling[at].tolist(),
            "chance": self.chance[at].tolist(),
            "correlation": self.correlation[at].tolist(),
            "auprc": self.auprc[at].tolist(),
            "base_rate": self.base_rate[self.best].tolist(),
        }
        for name in (
            "detector",
            "significant",
            "held_out",
            "same_choice",
            "z",
            "p",
            "p_fdr",
            "p_max_t",
            "threshold",
            "inactive",
            "binary",
            "degenerate",
        ):
            columns[name] = getattr(self, name).tolist()
        return pd.DataFrame(columns)

    def plot(self) -> "Figure":
        """Draw how many concepts each layer has detectors of, by category, beside shuffled images."""
        kinds = list(dict.fromkeys(self.categories))
        layers = self.layers
        with style():
            figure = new_figure(FULL_WIDTH, 0.9 + 0.34 * len(kinds) + 0.12 * len(kinds) * len(layers))
            axes = figure.subplots(1, len(layers), sharex=True, sharey=True, squeeze=False)[0]
            for ax, layer in zip(axes, layers, strict=True):
                found, chance = self.detectors_by_category(layer), self.null_by_category(layer)
                places = np.arange(len(kinds))
                ax.barh(
                    places - 0.19,
                    [found[k] for k in kinds],
                    0.36,
                    color=PALETTE[0],
                    label="images as they are",
                )
                if len(self.null.iou):
                    ax.barh(
                        places + 0.19,
                        [chance[k] for k in kinds],
                        0.36,
                        color=RULE,
                        edgecolor=FAINT,
                        lw=0.5,
                        label="images shuffled, mean",
                    )
                for place, kind in zip(places, kinds, strict=True):
                    ax.annotate(
                        str(found[kind]),
                        (found[kind], place - 0.19),
                        (3, 0),
                        textcoords="offset points",
                        va="center",
                        fontsize=6.5,
                        color=INK,
                    )
                ax.set_title(f"{layer}\n{int(self.rows_of(layer).numel())} units", fontsize=7)
            axes[0].set_yticks(np.arange(len(kinds)), kinds)
            axes[0].invert_yaxis()
            axes[0].margins(x=0.15)
            figure.supxlabel(f"concepts with a detector (IoU > {self.min_iou:g})", fontsize=8)
            if len(self.null.iou):
                figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
        return figure

    def notebook_table(self) -> "pd.DataFrame":
        """Return the units of highest IoU, with the concept, and what the number is to be compared with."""
        table = self.to_pandas().sort_values("iou", ascending=False, kind="stable", ignore_index=True)
        return table[list(_TOLD)]


def assemble(
    *,
    provenance: Provenance,
    readings: Sequence[Reading],
    vocabulary: Vocabulary,
    images: int,
    counts: Counts,
    halves: tuple[Counts, Counts],
    correlation: Tensor,
    auprc: Tensor,
    base_rate: Tensor,
    maxima: Tensor,
    null: NullScores,
    label_tests: tuple[LabelTest, ...],
    min_iou: float,
    level: float,
    top: int,
) -> DissectionResult:
    """Return the result of all layers' readings; arguments are its fields, or what they follow from."""
    units = [len(reading.extremes) for reading in readings]
    threshold = torch.cat([r.thresholds.threshold.cpu().double() for r in readings])
    low, high = (torch.cat([getattr(r.levels, end) for r in readings]) for end in ("low", "high"))
    extremes = torch.cat([r.extremes for r in readings])
    values = torch.cat(
        [torch.full((n,), images * math.prod(r.lens.layout.cells)) for n, r in zip(units, readings, strict=True)]
    )
    above = torch.cat([r.thresholds.above.cpu() for r in readings])
    held_out, same_choice = judged_on_the_other(*halves)
    has_mask = counts.unit_area.sum(1) > 0
    z, p, p_fdr, p_max_t = tested(counts.iou.max(1).values, null.iou, has_mask)
    return DissectionResult(
        provenance=provenance,
        layers=tuple(r.lens.layer for r in readings),
        anchors=tuple(r.lens.layout.geometry.anchor for r in readings),
        layer_of=torch.cat([torch.full((n,), i) for i, n in enumerate(units)]),
        unit=torch.cat([torch.arange(n) for n in units]),
        concepts=vocabulary.names,
        categories=vocabulary.categories,
        images=images,
        min_iou=min_iou,
        level=level,
        threshold=threshold,
        inactive=threshold <= low,
        binary=(extremes == values) & (high > low),
        degenerate=above == 0,
        shared=counts.shared,
        unit_area=counts.unit_area,
        label_area=counts.label_area,
        cells=counts.cells,
        correlation=correlation,
        auprc=auprc,
        base_rate=base_rate,
        held_out=held_out,
        same_choice=same_choice,
        null=null,
        z=z,
        p=p,
        p_fdr=p_fdr,
        p_max_t=p_max_t,
        label_tests=label_tests,
        top_images=maxima.sort(stable=True, dim=0, descending=True).indices[:top].T.contiguous(),
    )


def judged_on_the_other(first: Counts, second: Counts) -> tuple[Float[Tensor, " units"], Bool[Tensor, " units"]]:
    """Return the IoU of concepts chosen on one half with the other, both ways round, and whether both choose alike."""
    one, other = first.iou, second.iou
    chosen = one.max(1).indices, other.max(1).indices
    judged = [values.gather(1, c[:, None])[:, 0] for values, c in ((other, chosen[0]), (one, chosen[1]))]
    return (judged[0] + judged[1]) / 2, chosen[0] == chosen[1]


def tested(
    best: Float[Tensor, " units"],
    null: Float[Tensor, "draws units"],
    has_mask: Bool[Tensor, " units"],
) -> tuple[Units, Units, Units, Units]:
    """Return z, p, and p corrected for false discoveries and for any false one; NaN where nothing was tested."""
    z, p, p_max_t = (torch.full_like(best, torch.nan) for _ in range(3))
    if not len(null) or not has_mask.any():
        return z, p, p, p_max_t
    observed, draws = best[has_mask], null[:, has_mask]
    spread = draws.std(0) if len(draws) > 1 else torch.full_like(observed, torch.nan)
    z[has_mask] = torch.where(spread > 0, (observed - draws.mean(0)) / spread, torch.nan)
    p[has_mask] = permutation_p(observed, draws)
    p_max_t[has_mask] = max_t(observed, draws)
    return z, p, benjamini_hochberg(p), p_max_t


def _on_null(result: DissectionResult) -> Iterator[str]:
    draws, units = result.null.iou.shape
    if not draws:
        yield "No images were shuffled: nothing says how many of the detectors are chance."
        return
    called, significant = int(result.detector.sum()), int(result.significant.sum())
    yield (
        f"The rule IoU > {result.min_iou:g} calls {called} of {units} units detectors, and {result.null_share:.1%} of "
        f"units where images are shuffled; {significant} units have more than shuffled images give (share of false ones "
        f"held to {result.level:.0%})."
    )
    tested = int((~result.p.isnan()).sum())
    if tested and 1 / (draws + 1) * tested > result.level * max(significant, 1):
        yield (
            f"With {draws} shuffles a p is at least {1 / (draws + 1):.2g}: of {tested} units tested, fewer than "
            f"{round(tested / (draws + 1) / result.level)} above chance can't be shown to differ from it. More draws could."
        )


def _on_units(result: DissectionResult) -> Iterator[str]:
    named = (
        ("inactive", "have their lowest value as threshold: they are dead, or active less often than q"),
        ("binary", "have two values only, so that the threshold does not cut off the share q"),
        ("degenerate", "never exceed their threshold: their masks are empty and their IoU is 0"),
    )
    for name, what in named:
        if count := int(getattr(result, name).sum()):
            yield f"{count} of {len(result.unit)} units {what}."


def _on_concepts(result: DissectionResult) -> Iterator[str]:
    absent = [name for name, area in zip(result.concepts, result.label_area, strict=True) if not area]
    if absent:
        more = ", …" if len(absent) > 5 else ""
        yield f"{len(absent)} of {len(result.concepts)} concepts are in none of the images: {', '.join(absent[:5])}{more}."
    out_of_reach = (result.ceiling.max(0).values <= result.min_iou) & (result.label_area > 0)
    if out_of_reach.any():
        names = [result.concepts[i] for i in out_of_reach.nonzero()[:, 0].tolist()]
        more = ", …" if len(names) > 5 else ""
        yield (
            f"{len(names)} concepts cover too much or too little of the images for any unit's IoU to exceed "
            f"{result.min_iou:g}, whatever it detects: {', '.join(names[:5])}{more}."
        )


def _on_layers(result: DissectionResult) -> Iterator[str]:
    for layer, anchor in zip(result.layers, result.anchors, strict=True):
        if anchor == "tiles":
            yield f"At {layer!r} the network does not tell where cells look: they are taken to tile the image."
    for i, layer in enumerate(result.layers):
        own = result.detector & (result.layer_of == i)
        if own.any() and torch.nanmean(result.held_out[own]) < result.best_iou[own].mean() / 2:
            yield (
                f"At {layer!r} the detectors' IoU falls from {float(result.best_iou[own].mean()):.3f} to "
                f"{float(result.held_out[own].mean()):.3f} on images that their concept was not chosen on."
            )


def _on_scores(result: DissectionResult) -> Iterator[str]:
    for test in result.label_tests:
        if test.units and not test.passed:
            which = [
                name for name, falls in (("missing", test.missing_falls), ("extra", test.extra_falls)) if falls < MOST_UNITS
            ]
            yield (
                f"The score {test.score!r} does not notice {' or '.join(which)} labels in at least {MOST_UNITS:.0%} of "
                f"{test.units} units: it falls in {test.missing_falls:.0%} and {test.extra_falls:.0%} of them."
            )
