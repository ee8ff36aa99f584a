"""Do heat maps show what swaps and network-level tests find? An audit's contrasts, read by all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import UInt8
from torch import Tensor

from concepts.auditing.analyses.readings import (
    agreement_table,
    agreements,
    division_table,
    readings,
    readings_table,
)
from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.measurement.setup import Material
from concepts.local_vs_global.compare import Compare
from concepts.local_vs_global.matched_pairs import MatchedConcept
from concepts.local_vs_global.result import (
    CLAIMED,
    EFFECT,
    HIDDEN,
    REVERSED,
    SWAP,
    TCAV,
    Comparison,
    Parting,
)
from probing.attribution.base import AttributionMethod
from probing.attribution.cam.grad_cam import GradCAM
from probing.attribution.gradient import GradientTimesInput
from probing.attribution.lrp.lrp import LRP
from probing.core.inputs import one_tensor
from probing.models.geometry import RefusedError
from probing.models.scores import Score
from probing.results.figures import Strip, figure_of, montage
from probing.results.heatmaps import colours, overlay, pictures, reduce_channels, scale_of, tones
from probing.results.html_report import (
    Block,
    Finding,
    Link,
    Paragraph,
    Plate,
    Points,
    Section,
    Words,
    interval,
    listed,
    number,
    words,
)
from probing.results.result import Provenance, Result
from probing.results.tables import DataTable, known
from probing.store.requests import Request
from probing.store.store import ActivationStore

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

HEAT_MAPS: Mapping[str, AttributionMethod] = {
    "gradcam": GradCAM(),
    "lrp": LRP(),
    "gradient times input": GradientTimesInput(),
}
"""A map of places, one that adds up to the score, and the gradient's own: each a pass or two an image."""
TITLE = "What TCAV found and the heat maps hide, and the reverse"
_EXPLAINED, _STEPS, _SHOWN, _NAMED, _LISTED, _EVERYWHERE = 12, 16, 2, 6, 20, 0.95


@dataclass(frozen=True)
class Shown:
    """A pair that shows a parting: the negative, the positive, what differs, and the positive's heat map."""

    parting: Parting
    images: UInt8[Tensor, "4 h w 3"]


@dataclass(frozen=True)
class HeatMapComparison(Result):
    """The comparison of an audit's contrasts, with what could not be asked and pictures of where readings part."""

    comparison: Comparison
    refused: tuple[tuple[str, str], ...]
    """Heat maps that the model does not admit, and why."""
    shown: tuple[Shown, ...]

    def sentences(self) -> tuple[str, ...]:
        """Return where readings part, and which heat maps are left out."""
        refused = (f"{name} is left out: {reason}" for name, reason in self.refused)
        return (*self.comparison.sentences(), *refused)

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per measure, contrast and class."""
        return self.comparison.to_pandas()

    def plot(self) -> "Figure":
        """Draw the rank agreement of every two readings."""
        return figure_of(self.comparison.plot())


@dataclass(frozen=True)
class HeatMaps:
    """Heat maps beside TCAV, effects and swaps of the audit's contrasts, at its deepest layer.

    The concept's pixels are those in which matched images differ. Directions are fitted on the audit's clusters to fit
    on; all the rest is of the others, and TCAV and effects of the audit's inputs among those.
    """

    def requests(self, material: Material) -> tuple[Request, ...]:
        """Return nothing: the rows are the audit's own."""
        return ()

    def measure(self, material: Material, store: ActivationStore) -> HeatMapComparison:
        """Return the comparison; activations, gradients and logits are rows that the audit reads anyway."""
        statistics, model = material.file.statistics, material.loaded.model
        targets = {name: Score(model, index) for name, index in material.targets.items()}
        usable, refused = _usable(material, next(iter(targets.values())))
        method = Compare(
            material.layers[-1],
            usable,
            _STEPS,
            explained=_EXPLAINED,
            relabellings=statistics.relabellings,
            pseudo_concepts=statistics.pseudo_concepts,
            level=1 - statistics.alpha,
            seed=statistics.seed,
            channels_last=True if material.file.model.pool == "mean_last" else None,
        )
        concepts = [
            MatchedConcept(
                sets.spec.name,
                material.subset(sets.every.first),
                material.subset(sets.every.second),
                tuple(sets.every.cluster),
            )
            for sets in material.contrasts
        ]
        found = method(
            store,
            targets,
            concepts,
            material.subset(material.judged_inputs),
            input_clusters=material.clusters_of(material.judged_inputs),
            fitted_on=material.fitted_on,
        )
        shown = tuple(
            _picture(parting, concepts[found.concepts.index(parting.concept)], method, targets)
            for parting in _most_telling(found)
        )
        return HeatMapComparison(Provenance.collect(model=model, method=method), found, tuple(refused), shown)

    def findings(self, audit: AuditResults, found: Result) -> tuple[Finding, ...]:
        """Say how often heat maps hide what the network-level readings and the swap find, and the reverse."""
        assert isinstance(found, HeatMapComparison)
        return tuple(_finding(found.comparison, name) for name in found.comparison.heat_maps)

    def tables(self, audit: AuditResults, found: Result) -> tuple[DataTable, ...]:
        """Return a row for each reading, contrast and class, and one for each reading's agreement."""
        assert isinstance(found, HeatMapComparison)
        return (readings(found.comparison), agreements(found.comparison))

    def section(self, audit: AuditResults, found: Result) -> Section:
        """Return the agreement of all readings, where they part, and the images that show it."""
        assert isinstance(found, HeatMapComparison)
        c = found.comparison
        text = (
            f"All readings of the {len(c.concepts)} contrasts for the {len(c.targets)} classes, on {audit.clusters} that no "
            f"direction was fitted on, at {c.layer}. A heat map is of the image after the swap; its evidence is what "
            "of it lies in the pixels that the swap changes, as a share of the sizes of all its values, beyond what "
            "their area gives: 0 if the map pays these pixels no heed. Concept attribution divides the change of the logit "
            "among the contrasts' directions; what goes along none of them is its remainder. Heat maps are of up to "
            f"{_EXPLAINED} pairs a contrast."
        )
        label = "Rank agreement of readings"
        caption = (
            f"Rank correlation of every two readings over contrasts and classes; a star where its {c.level:.0%} interval,"
            " which takes these as independent, leaves out zero."
        )
        blocks: list[Block] = [
            Paragraph(text),
            Plate(partial(_agreement, c), label, caption, "figures/readings_agreement", "readings"),
            Points(_parted(c)),
        ]
        if found.shown:
            caption = (
                "Pairs that show where readings part: before and after the swap, the pixels it changes, and the heat map"
                " of the image after it (red raises the logit, blue lowers it)."
            )
            draw = partial(_montage, c, found.shown)
            blocks.append(Plate(draw, "Pairs that show it", caption, "figures/readings_part"))
        refused = tuple(f"{name} is left out: {reason}" for name, reason in found.refused)
        blocks += [Points(refused)] if refused else []
        return Section(
            TITLE,
            (*blocks, agreement_table(c), division_table(c), readings_table(c)),
        )


def _usable(material: Material, score: Score) -> tuple[dict[str, AttributionMethod], list[tuple[str, str]]]:
    """Return the heat maps that the model admits, and why it refuses the others."""
    one = one_tensor(material.examples.load([material.inputs[0]]))
    usable: dict[str, AttributionMethod] = {}
    refused = []
    for name, method in HEAT_MAPS.items():
        try:
            method(score, one)
        except RefusedError as error:
            refused.append((name, str(error)))
        else:
            usable[name] = method
    return usable, refused


def _most_telling(found: Comparison) -> list[Parting]:
    """Return a few partings of each kind, one for each concept and class, those with the largest swap first."""
    chosen: dict[tuple[str, str], Parting] = {}
    for parting in found.partings(1):
        chosen.setdefault((parting.concept, parting.target), parting)
    order = sorted(chosen.values(), key=lambda p: -abs(value(found, SWAP, p)))
    return [
        parting
        for kind in (HIDDEN, REVERSED, CLAIMED)
        for parting in [p for p in order if p.kind == kind and p.pairs][:_SHOWN]
    ]


def value(found: Comparison, measure: str, parting: Parting) -> float:
    """Return a measure of the concept and class that a parting is about."""
    at = found.concepts.index(parting.concept), found.targets.index(parting.target)
    return float(found.value[found.measures.index(measure)][at])


def _picture(parting: Parting, concept: MatchedConcept, method: Compare, targets: Mapping[str, Score]) -> Shown:
    [pair] = parting.pairs
    before, after = (one_tensor(side.load([pair])) for side in (concept.negative, concept.positive))
    found = method.heat_maps[parting.heat_map](targets[parting.target], after)
    maps = reduce_channels(found.upsampled(), "sum").float()
    plain = pictures(torch.cat([before, after]))
    differs = torch.where(concept.pixels([pair])[:, None], plain[1:], 1.0)
    heat = overlay(plain[1:], colours(tones(maps, scale_of(maps))))
    together = torch.cat([plain, differs, heat]).clamp(0, 1)
    return Shown(parting, (together * 255).round().byte().permute(0, 2, 3, 1).contiguous())


def _finding(found: Comparison, name: str) -> Finding:
    own = [p for p in found.partings() if p.heat_map == name]
    cells = len(found.concepts) * len(found.targets)
    counts = {kind: [p for p in own if p.kind == kind] for kind in (HIDDEN, REVERSED, CLAIMED)}
    agreed = _both(found, name)
    found_by_both = agreed + len(counts[HIDDEN]) + len(counts[REVERSED])
    claim = (
        f"Heat maps ({name}) show {agreed} of {found_by_both} effects that both the swap and network-level readings find"
        f" at {found.layer}."
        if found_by_both
        else (
            f"There is nothing for heat maps ({name}) to show that both the swap and network-level readings find at"
            f" {found.layer}."
        )
    )
    sentences = [
        f"{text}: {_names(found, counts[kind])}."
        for kind, text in (
            (HIDDEN, "Hidden"),
            (REVERSED, "With the other sign"),
            (CLAIMED, "Pointed to by the map alone"),
        )
        if counts[kind]
    ]
    r = found.agreement(name, SWAP)
    sentences.append(
        f"Over {cells} pairs of contrast and class, evidence in the swapped pixels and measured change have a rank "
        f"correlation of {number(known(r.r))} ({interval(r.low, r.high)})."
    )
    return Finding(claim, " ".join(sentences), see=TITLE)


def _both(found: Comparison, name: str) -> int:
    """Return in how many cells swap, a network-level reading and the heat map are significant, with one sign."""
    i = {m: k for k, m in enumerate(found.measures)}
    significant = found.significant
    network = significant[i[TCAV]] | significant[i[EFFECT]]
    same = found.value[i[name]] * found.value[i[SWAP]] > 0
    return int((significant[i[SWAP]] & network & significant[i[name]] & same).sum())


def _names(found: Comparison, partings: list[Parting]) -> str:
    order = sorted(partings, key=lambda p: -abs(value(found, SWAP, p)))
    text = ", ".join(f"{p.target} ({p.concept})" for p in order[:_NAMED])
    return text + (f" and {len(order) - _NAMED} more" if len(order) > _NAMED else "")


def _parted(found: Comparison) -> tuple[Words, ...]:
    """Return where readings part, a line for each contrast and class, largest swap first."""
    maps: dict[tuple[str, str, str], list[Parting]] = {}
    for p in found.partings():
        maps.setdefault((p.kind, p.concept, p.target), []).append(p)
    groups = sorted(maps.values(), key=lambda own: -abs(value(found, SWAP, own[0])))
    numbers = readings(found)
    lines: list[Words] = [_line(found, own, numbers) for own in groups[:_LISTED]]
    if len(groups) > _LISTED:
        lines.append(f"And {len(groups) - _LISTED} more; the table has them all.")
    lines += [
        f"{name.capitalize()} changes {area:.0%} of the pixels: evidence beyond their area is next to nothing whatever the "
        "map, which can't show by places what has none of its own."
        for name, area in zip(found.concepts, found.area.tolist(), strict=True)
        if area > _EVERYWHERE
    ]
    return tuple(lines) or ("Heat maps and network-level readings part nowhere.",)


def _line(found: Comparison, own: list[Parting], numbers: DataTable) -> Words:
    p = own[0]

    def said(measure: str, *, sign: bool = True) -> Link:
        return Link(number(value(found, measure, p), sign=sign), numbers.at(measure, p.concept, p.target))

    maps = listed([words(f"{q.heat_map} ", said(q.heat_map)) for q in own])
    return words(
        f"{p.target}, {p.concept}: {p.kind}. Swap ",
        said(SWAP),
        ", TCAV ",
        said(TCAV, sign=False),
        ", effect ",
        said(EFFECT),
        "; evidence of ",
        maps,
        ".",
    )


def _agreement(found: Comparison) -> "Figure":
    return figure_of(found.plot())


def _montage(found: Comparison, shown: tuple[Shown, ...]) -> "Figure":
    from PIL import Image

    strips = []
    for one in shown:
        p = one.parting
        title = (
            f"{p.target}, {p.concept}: swap {number(value(found, SWAP, p), sign=True)}, TCAV "
            f"{number(value(found, TCAV, p))}, {p.heat_map} {number(value(found, p.heat_map, p), sign=True)}"
        )
        images = [Image.fromarray(image) for image in one.images.numpy()]
        strips.append(Strip(title, images, ("before", "after", "what differs", p.heat_map)))
    return montage(strips, columns=6)
