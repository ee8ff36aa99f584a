"""The report of an audit, made of its saved results alone."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from concepts import figures
from concepts.findings import disagreements, floor, reading, used, verdict
from concepts.results import AuditResults, ConceptInfo
from probing.figures import inline_svg, save_figure
from probing.report import (
    NONE,
    Block,
    Paragraph,
    Plate,
    Points,
    Report,
    Section,
    Table,
    interval,
    number,
    p_value,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[], "Figure"]


def write_report(folder: Path, provenance: Mapping[str, object]) -> AuditResults:
    """Draw all figures and write the report of the results saved in a folder; no model is run.

    Args:
        folder: with `results.json` and the pictures under `images`.
        provenance: what made the results, as saved beside them.

    Raises:
        concepts.results.ResultsError: if there are no readable results.
    """
    results = AuditResults.load(folder)
    sections = [
        _agreement(results, folder),
        _changes(results, folder),
        _picked(results),
        _disagreements(results),
        _scores(results, folder),
        _directions(results, folder),
        _likeness(results, folder),
        _targets(results),
        _method(results),
    ]
    page = Report(
        title=results.title,
        subject=f"Audit “{results.name}” of {results.model}",
        question=results.question,
        findings=verdict(results),
        limits=(*results.limits, *_limits(results)),
        sections=tuple(s for s in sections if s is not None),
        colophon=(*_colophon(provenance), *results.sources),
    )
    page.save(folder / "report.html")
    return results


def _colophon(provenance: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    found = []
    for name in (
        "created",
        "command",
        "model",
        "weights",
        "examples",
        "machine",
        "versions",
        "rows",
    ):
        value = provenance.get(name, "")
        if isinstance(value, Mapping):
            value = ", ".join(f"{package} {version}" for package, version in value.items())
        elif isinstance(value, list | tuple):
            value = " ".join(map(str, value))
        found.append((name.capitalize(), str(value)))
    return tuple(found)


def _plate(folder: Path, stem: str, draw: Draw, label: str, caption: str) -> Plate:
    figure = draw()
    save_figure(figure, folder / "figures" / stem)
    return Plate(inline_svg(figure, label), caption, f"figures/{stem}")


def _limits(results: AuditResults) -> tuple[str, ...]:
    contrasts = " or ".join(f"“{c.negative}” and “{c.positive}”" for c in results.contrasts)
    return (
        f"A swap changes everything that was drawn differently between {contrasts}; which of these differences moved a "
        "logit is not known.",
        "A logit that moves need not change a decision, and a change that all classes share changes none.",
        f"Intervals and tests take the {len(results.fitted_on) + len(results.judged_on)} {results.clusters} as independent and "
        "as a sample of others like them.",
        f"Correlations over {len(results.targets)} classes take these as independent, and they were chosen, not drawn at "
        "random.",
        "A predicted effect is a first-order statement about one layer; where it does not follow the measured swap it "
        "says nothing about the model.",
    )


def _agreement(results: AuditResults, folder: Path) -> Section:
    blocks: list[Block] = [
        Paragraph(
            "Each point is a class. Across: by how much its logit should change if the layer moved from the mean of one set "
            "to the mean of the other, to first order. Up: by how much it did change when matched images were exchanged. "
            "A layer whose points lie along the diagonal may be read; one whose points do not, may not."
        )
    ]
    for i, contrast in enumerate(results.contrasts):
        caption = (
            f"Predicted effect against measured swap, from {contrast.negative} to {contrast.positive}, "
            f"{len(results.targets)} classes, one panel per layer; bars are {results.level:.0%} intervals. Points use all "
            f"{contrast.clusters} {results.clusters}, so that both their coordinates hold what is peculiar to these drawings. r "
            f"does not: the effect comes from one half of the {results.clusters} and the swap from the other, median over "
            f"{results.divisions} divisions, with its {results.level:.0%} interval."
        )
        label = f"Predicted effects against measured swaps of {contrast.name}"
        draw = partial(figures.agreement, results, contrast.name)
        blocks.append(_plate(folder, f"agreement_{i + 1}", draw, label, caption))
    return Section("Which layers may be trusted", (*blocks, _layer_table(results)))


def _layer_table(results: AuditResults) -> Table:
    rows = tuple(
        (
            r.concept,
            r.layer,
            number(r.r),
            interval(r.r_low, r.r_high, sign=False),
            interval(r.r_least, r.r_most, sign=False),
            number(r.slope),
            NONE if r.signs_right is None else f"{r.signs_right} of {len(results.targets)}",
            "yes" if r.trusted else "no",
        )
        for r in results.layer_rows
        if results.of(r.concept).matched
    )
    header = (
        "contrast",
        "layer",
        "r",
        "interval",
        "over divisions",
        "slope",
        "signs right",
        "trusted",
    )
    caption = (
        "Agreement of predicted effect and measured swap over the classes. Over divisions: the middle 95% of r. Slope: "
        "measured change per predicted change, 1 where the first order carries all the way. Trusted: the interval's lower "
        f"bound is at least {results.trust:g}."
    )
    return Table(caption, header, rows, text_columns=2)


def _changes(results: AuditResults, folder: Path) -> Section:
    caption = (
        "Change of each class's logit when matched images are exchanged, with "
        f"{results.level:.0%} intervals over {results.clusters}; beside it what trusted layers predict. The "
        "grey band holds the middle 95% of the changes of all the model's classes: a class inside it moves no more than "
        "classes do that nobody asked about."
    )
    plate = _plate(
        folder, "changes", partial(figures.changes, results), "Change of logits by class", caption
    )
    tables = tuple(_swap_table(results, contrast) for contrast in results.contrasts)
    return Section("What a swap does to each class", (plate, *tables))


def _swap_table(results: AuditResults, contrast: ConceptInfo) -> Table:
    layer = results.shown_layer(contrast.name)
    rows = []
    for target in sorted(results.targets, key=lambda t: -results.swap(contrast.name, t.name).swap):
        row, cell = (
            results.swap(contrast.name, target.name),
            results.cell(contrast.name, layer, target.name),
        )
        rows.append((
            target.name,
            target.group,
            target.expected.get(contrast.name, NONE),
            number(row.swap, sign=True),
            interval(row.low, row.high),
            p_value(row.p_corrected),
            f"{row.larger:.0%}",
            number(cell.effect, sign=True),
            p_value(cell.effect_p_corrected),
            reading(results, cell),
        ))  # fmt: skip
    header = (
        "class", "group", "expected", "swap", "interval", "p", "classes that move more", "predicted", "p", "reading"
    )  # fmt: skip
    caption = (
        f"From {contrast.negative} to {contrast.positive}, in logits, largest rise first; predictions at {layer}. p is "
        "corrected over contrasts and classes (swap: Holm) or contrasts, layers and classes (predicted: step-down maximum "
        "and Bonferroni)."
    )
    return Table(caption, header, tuple(rows), text_columns=3)


def _picked(results: AuditResults) -> Section | None:
    if not results.picked:
        return None
    rows = tuple(
        (
            r.target,
            r.concept,
            number(r.picked_by, sign=True),
            number(r.swap, sign=True),
            interval(r.low, r.high),
            p_value(r.p_corrected),
        )
        for r in results.picked
    )
    header = ("class", "contrast", "when picked", "judged", "interval", "p")
    text = (
        f"These classes were picked by the data: of all the model's classes, they change most on the "
        f"{len(results.fitted_on)} {results.clusters} of one part. That number is too large by "
        "the picking; what counts is the change on the others."
    )
    caption = "Classes picked on one part of the data and judged on the other, in logits; p is corrected (Holm)."
    return Section(
        "Which classes move most", (Paragraph(text), Table(caption, header, rows, text_columns=2))
    )


def _disagreements(results: AuditResults) -> Section:
    found = disagreements(results)
    if not found:
        text = "Nowhere does TCAV or a predicted effect say, after correction, what the measured swap denies, or the reverse."
        return Section("Where the measures disagree", (Paragraph(text),))
    text = (
        "What a direction inside the network predicts and what an exchange of images does are two measurements. Where one "
        "is told from chance and the other is not, or they have opposite signs, neither explains the other. At layers that "
        "are not trusted, disagreement is what to expect."
    )
    blocks: list[Block] = [Paragraph(text)]
    for trusted, where in ((True, "trusted layers"), (False, "layers that are not trusted")):
        rows = tuple(
            (
                cell.target,
                cell.concept,
                cell.layer,
                said,
                number(row.swap, sign=True),
                number(cell.effect, sign=True),
                number(cell.tcav),
            )
            for cell, row, said in found
            if results.layer(cell.concept, cell.layer).trusted is trusted
        )
        header = ("class", "contrast", "layer", "disagreement", "swap", "predicted", "TCAV")
        caption = f"Disagreements at {where}, after correction."
        blocks += [Table(caption, header, rows, text_columns=4, folded=not trusted)] if rows else []
    return Section("Where the measures disagree", tuple(blocks))


def _scores(results: AuditResults, folder: Path) -> Section:
    text = (
        "The TCAV score is the share of inputs whose logit rises along a concept's direction. It counts signs: where "
        "gradients hardly vary over inputs, any direction scores near 0 or 1, random ones too. So each score is compared "
        "with those along directions fitted to the same images under other labels."
    )
    marked = sum(used(results, c) for c in results.cells)
    caption = (
        "TCAV score by class, concept and layer; white is one half. A dot marks corrected p below "
        f"{results.alpha:g}: {marked} of {len(results.cells)}. {floor(results)}"
    )
    plate = _plate(folder, "tcav", partial(figures.scores, results), "TCAV scores", caption)
    tails = [f"{r.concept} at {r.layer}" for r in results.layer_rows if r.linear_tail]
    linear = (
        Paragraph(
            "From these layers on the model is linear, so that the score is 0 or 1 by construction: "
            + "; ".join(tails) + "."
        ),
    )  # fmt: skip
    blocks = (Paragraph(text), plate, *(linear if tails else ()), _cell_table(results))
    return Section("What TCAV says", blocks)


def _cell_table(results: AuditResults) -> Table:
    rows = tuple(
        (
            c.target,
            c.concept,
            c.layer,
            number(c.tcav),
            interval(c.tcav_low, c.tcav_high, sign=False),
            p_value(c.tcav_p),
            p_value(c.tcav_p_corrected),
            number(c.ties),
            number(c.effect, sign=True),
            interval(c.effect_low, c.effect_high),
            p_value(c.effect_p_corrected),
            reading(results, c) if results.of(c.concept).matched else NONE,
        )
        for c in results.cells
    )
    header = (
        "class", "concept", "layer", "TCAV", "interval", "p", "p corrected", "ties", "effect", "interval", "p corrected",
        "reading",
    )  # fmt: skip
    caption = "All classes, concepts and layers. Effects in logits; ties are inputs whose logit does not change at all."
    return Table(caption, header, rows, text_columns=3, folded=True)


def _directions(results: AuditResults, folder: Path) -> Section:
    text = (
        "A score along a direction means something only if the direction tells the concept from its counterpart on images "
        f"that it was not fitted on: for contrasts, those of {len(results.judged_on)} {results.clusters} never seen."
    )
    caption = f"Accuracy of each concept's classifiers on held-out images, with {results.level:.0%} intervals."
    plate = _plate(
        folder, "accuracy", partial(figures.accuracy, results), "Accuracy by layer", caption
    )
    rows = tuple(
        (
            r.concept,
            r.layer,
            number(r.accuracy),
            interval(r.accuracy_low, r.accuracy_high, sign=False),
            p_value(r.accuracy_p),
            number(r.cosine),
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
        (Paragraph(text), plate, Table(caption, header, rows, text_columns=2, folded=True)),
    )


def _likeness(results: AuditResults, folder: Path) -> Section:
    blocks: list[Block] = []
    pictures = folder / "images"
    for i, contrast in enumerate(results.contrasts):
        layer = results.shown_layer(contrast.name)
        caption = (
            f"Images most like “{contrast.positive}” as against “{contrast.negative}”, and the reverse, at {layer}, by the "
            "cosine below each: activation, less the mean, with the direction. None of them was used to find it. Where they do "
            "not show the concept to the eye, the direction stands for something else there."
        )
        draw = partial(figures.likeness, results, contrast.name, pictures)
        blocks.append(
            _plate(folder, f"likeness_{i + 1}", draw, f"Images like {contrast.name}", caption)
        )
    if len(results.concepts) > len(results.contrasts):
        caption = (
            "Controls: images most like each concept that is given as one set, among images not used to find it, at the first "
            "layer where it is told best. Where these do not show the concept to the eye, its scores mean something else."
        )
        draw = partial(figures.controls, results, pictures)
        blocks.append(_plate(folder, "controls", draw, "Images like the controls", caption))
    return Section("Which images are like the concepts", (*blocks, *_positions(results, folder)))


def _positions(results: AuditResults, folder: Path) -> list[Block]:
    placed = dict.fromkeys(r.concept for r in results.positions)
    blocks: list[Block] = []
    for i, contrast in enumerate(results.of(name) for name in placed):
        caption = (
            f"Where {results.inputs} lie at {results.shown_layer(contrast.name)} between the drawings of "
            f"“{contrast.negative}” and “{contrast.positive}” of the same {results.cluster_by}. Dots are images, ticks their "
            f"mean; these {results.clusters} were not used to find the direction."
        )
        draw = partial(figures.positions, results, contrast.name)
        label = f"Positions along {contrast.name}"
        blocks.append(_plate(folder, f"positions_{i + 1}", draw, label, caption))
    return blocks


def _targets(results: AuditResults) -> Section:
    rows = tuple((t.name, str(t.index), t.group, t.reason) for t in results.targets)
    table = Table(
        "The classes, fixed in the audit file.",
        ("class", "index", "group", "reason"),
        rows,
        text_columns=4,
    )
    return Section("Why these classes", (table,))


def _method(results: AuditResults) -> Section:
    first = results.contrasts[0]
    items = (
        "Measured swap: the difference of the logits of matched images, averaged over all pairs; its interval is a t interval "
        f"over {results.clusters}. Nothing is fitted, so nothing need be held out.",
        "Predicted effect: the mean over inputs of gradient times the difference of the two sets' mean activations, averaged "
        f"over positions. For inputs of one of the {results.clusters} the difference comes from all others. Its test swaps the "
        f"two labels within {results.clusters} ({first.relabellings:,} ways{', all there are' if first.exact else ''}).",
        f"Inputs are {results.inputs}: {results.input_count} images.",
        f"TCAV scores, accuracies and picked classes: the {results.clusters} were divided at random. Directions were fitted on "
        f"{', '.join(results.fitted_on)}; they were read and judged on {', '.join(results.judged_on)} "
        f"({results.judged_inputs} inputs).",
        "Concepts given as one set are told from random images and serve as controls: there is nothing to swap.",
        "p-values are corrected over contrasts, layers and classes; concepts given as one set are corrected apart.",
    )
    rows = tuple(
        (
            c.name,
            c.negative,
            str(c.positives),
            str(c.negatives),
            str(c.clusters),
            str(c.fitted),
            str(c.judged),
        )
        for c in results.concepts
    )
    header = (
        "concept",
        "told from",
        "images",
        "against",
        "independent groups",
        "fitted on",
        "judged on",
    )
    caption = "The sets. Fitted and judged on: images per side, where these are not the same."
    return Section("How it was done", (Points(items), Table(caption, header, rows, text_columns=2)))
