"""What TCAV says, whether its directions exist, and which images lie along them."""

from collections.abc import Callable, Iterator
from functools import partial

from concepts.auditing.measurement.results import AuditResults, CellRow, ConceptInfo
from concepts.auditing.report import figures
from concepts.auditing.report.criteria import SCORES, floor, predicted, used
from probing.results.html_report import (
    Block,
    Heat,
    Paragraph,
    Plate,
    Section,
    Square,
    Table,
    interval,
    linked,
    number,
    p_value,
)

_TOLD = 3
"""Images of a row named to readers that do not see it."""


def scores_section(results: AuditResults) -> Section:
    """Return the TCAV scores and predicted effects of all cells, as a figure and as heat maps that can be read."""
    text = (
        "The TCAV score is the share of inputs whose logit rises along a concept's direction. It counts signs: where"
        " gradients hardly vary over inputs, any direction scores near 0 or 1, random ones too. So each score is compared"
        " with those along directions fitted to the same images under other labels. The predicted effect is in logits: by"
        " how much the class should change, to first order, if the layer moved from one set's mean to the other's."
    )
    marked = sum(used(results, c) for c in results.cells)
    caption = (
        f"How many of {len(results.targets)} classes have a TCAV score (left) or a predicted effect (right) beyond chance, "
        f"by concept and layer: corrected p below {results.alpha:g}. Dotted: concepts given as one set. {floor(results)}"
    )
    label = "Classes beyond chance by concept and layer"
    shown = Plate(partial(figures.told, results), label, caption, "figures/told", "classes_by_layer")
    caption = (
        "TCAV score by class, concept and layer; white is one half. A dot marks corrected p below "
        f"{results.alpha:g}: {marked} of {len(results.cells)}."
    )
    whole = Plate(partial(figures.scores, results), "TCAV scores", caption, "figures/tcav", "classes_by_layer")
    tails = [f"{r.concept} at {r.layer}" for r in results.layer_rows if r.linear_tail]
    linear = (
        Paragraph(
            "From these layers on the model is linear, so that the score is 0 or 1 by construction: "
            + "; ".join(tails)
            + "."
        ),
    )
    legend = Paragraph(
        f"The same by concept, and the predicted effects: below each number its {results.level:.0%} interval, a star where"
        f" the corrected p is below {results.alpha:g}."
    )
    every = Section("All scores and effects", (whole, legend, *_heat_maps(results)), folded=True)
    return Section(SCORES, (Paragraph(text), shown, *(linear if tails else ()), every))


def _heat_maps(results: AuditResults) -> Iterator[Heat]:
    """Yield the scores and the effects of each concept; beside contrasts, those of the others are folded."""
    for concept in results.concepts:
        folded = not concept.matched and bool(results.contrasts)
        for what, square in (
            (f"TCAV scores of {concept.name}.", _score),
            (f"Predicted effects of {concept.name}, in logits.", _effect(results, concept.name)),
        ):
            rows = tuple(
                (
                    target.name,
                    tuple(square(results, results.cell(concept.name, layer, target.name)) for layer in results.layers),
                )
                for target in results.targets
            )
            yield Heat(what, "class", results.layers, rows, folded)


def _score(results: AuditResults, cell: CellRow) -> Square:
    low, high = cell.tcav_low, cell.tcav_high
    said = number(cell.tcav), interval(low, high, sign=False)
    return Square(*said, 2 * cell.tcav - 1, used(results, cell), results.at(cell))


def _effect(results: AuditResults, concept: str) -> Callable[[AuditResults, CellRow], Square]:
    """Return what shows an effect, on one scale for a concept's classes and layers."""
    reach = max((abs(c.effect) for c in results.cells if c.concept == concept), default=0) or 1.0

    def square(results: AuditResults, cell: CellRow) -> Square:
        said = number(cell.effect, sign=True), interval(cell.effect_low, cell.effect_high)
        return Square(*said, cell.effect / reach, predicted(results, cell), results.at(cell))

    return square


def directions_section(results: AuditResults) -> Section:
    """Return how well each concept's direction separates images it was not fitted on."""
    never_seen = f": for contrasts, those of {len(results.judged_on)} {results.clusters} never seen"
    text = (
        "A score along a direction means something only if the direction separates the concept from its counterpart on"
        f" images that it was not fitted on{never_seen if results.contrasts else ''}."
    )
    caption = f"Accuracy of each concept's classifiers on held-out images, with {results.level:.0%} intervals."
    draw = partial(figures.accuracy, results)
    shown = Plate(draw, "Accuracy by layer", caption, "figures/accuracy", "layers")
    rows = tuple(
        linked(
            (
                r.concept,
                r.layer,
                number(r.accuracy),
                interval(r.accuracy_low, r.accuracy_high, sign=False),
                p_value(r.accuracy_p),
                number(r.cosine),
            ),
            results.at(r),
            start=2,
        )
        for r in results.layer_rows
    )
    header = ("concept", "layer", "accuracy", "interval", "p", "mean cosine")
    caption = (
        "Does the direction exist? p: one-sided, against chance. Mean cosine: between directions of different runs; below "
        "0.2 the direction is not settled at this number of images."
    )
    return Section(
        "Do the directions exist",
        (Paragraph(text), shown, Table(caption, header, rows, text_columns=2, folded=True)),
    )


def likeness_section(results: AuditResults, picture: figures.Picture) -> Section:
    """Return the images most and least along each direction.

    Args:
        results: of the audit.
        picture: returns the picture saved under a name; called when a figure is drawn.
    """
    blocks: list[Block] = []
    for i, contrast in enumerate(results.contrasts):
        layer = results.shown_layer(contrast.name)
        caption = (
            f"Images most like “{contrast.positive}” as against “{contrast.negative}”, and the reverse, at {layer}, by the"
            " cosine below each: activation, less the mean, with the direction. None of them was used to find it. Where"
            " they do not show the concept to the eye, the direction stands for something else there."
        )
        draw = partial(figures.likeness, results, contrast.name, picture)
        label = f"Images like {contrast.name}: {_seen(results, contrast)}"
        blocks.append(Plate(draw, label, caption, f"figures/likeness_{i + 1}", "likeness"))
    if len(results.concepts) > len(results.contrasts):
        kind = "controls" if results.contrasts else "concepts"
        caption = (
            f"{'Controls: images' if results.contrasts else 'Images'} most like each concept that is given as one set, among"
            " images not used to find it, at the first layer where it is separated best. Where these do not show the"
            " concept to the eye, its scores mean something else."
        )
        draw = partial(figures.controls, results, picture)
        seen = [_seen(results, c) for c in results.concepts if not c.matched]
        label = f"Images like the {kind}: {'; '.join(seen)}"
        blocks.append(Plate(draw, label, caption, f"figures/{kind}", "likeness"))
    return Section("Which images are like the concepts", (*blocks, *_positions(results)))


def _seen(results: AuditResults, concept: ConceptInfo) -> str:
    """Return in words which images come first in a montage, for readers that do not see it."""
    sides = {"most": concept.positive} | ({"least": concept.negative} if concept.matched else {})
    rows = [r for r in results.likeness if r.concept == concept.name]
    return "; ".join(
        f"most like {name} among {among} are {', '.join(chosen)}"
        for among in dict.fromkeys(r.among for r in rows)
        for side, name in sides.items()
        if (chosen := [r.caption for r in rows if (r.among, r.side) == (among, side)][:_TOLD])
    )


def _positions(results: AuditResults) -> list[Block]:
    placed = dict.fromkeys(r.concept for r in results.positions)
    blocks: list[Block] = []
    for i, contrast in enumerate(results.of(name) for name in placed):
        caption = (
            f"Where {results.inputs} lie at {results.shown_layer(contrast.name)} between the drawings of"
            f" “{contrast.negative}” and “{contrast.positive}” of the same {results.cluster_by}. Dots are images, ticks"
            f" their mean; these {results.clusters} were not used to find the direction."
        )
        draw = partial(figures.positions, results, contrast.name)
        label = f"Positions along {contrast.name}"
        blocks.append(Plate(draw, label, caption, f"figures/positions_{i + 1}", "positions"))
    return blocks
