"""What the model really does when images are swapped, and which layers predict it."""

from functools import partial

from concepts.auditing.measurement.results import AuditResults, ConceptInfo
from concepts.auditing.report import figures
from concepts.auditing.report.criteria import SWAPS, TRUST, disagreements, reading
from probing.results.html_report import (
    NONE,
    Block,
    Link,
    Paragraph,
    Plate,
    Section,
    Table,
    interval,
    linked,
    number,
    p_value,
)


def agreement_section(results: AuditResults) -> Section:
    """Return predicted effects against measured swaps, layer by layer."""
    blocks: list[Block] = [
        Paragraph(
            "Each point is a class. Across: by how much its logit should change if the layer moved from the mean of one set "
            "to the mean of the other, to first order. Up: by how much it did change when matched images were swapped. "
            "A layer whose points lie along the diagonal may be read; one whose points do not, may not."
        )
    ]
    for i, contrast in enumerate(results.contrasts):
        caption = (
            f"Predicted effect against measured swap, from {contrast.negative} to {contrast.positive},"
            f" {len(results.targets)} classes, one panel per layer; bars are {results.level:.0%} intervals. Points use all"
            f" {contrast.clusters} {results.clusters}, so that both their coordinates hold what is peculiar to these"
            f" drawings. r does not: the effect comes from one half of the {results.clusters} and the swap from the other,"
            f" median over {results.divisions} divisions, with its {results.level:.0%} interval."
        )
        label = f"Predicted effects against measured swaps of {contrast.name}"
        draw = partial(figures.agreement, results, contrast.name)
        blocks.append(Plate(draw, label, caption, f"figures/agreement_{i + 1}", "classes_by_layer"))
    return Section(TRUST, (*blocks, _layer_table(results)))


def _layer_table(results: AuditResults) -> Table:
    rows = tuple(
        linked(
            (
                r.concept,
                r.layer,
                number(r.r),
                interval(r.r_low, r.r_high, sign=False),
                interval(r.r_least, r.r_most, sign=False),
                number(r.slope),
                NONE if r.signs_right is None else f"{r.signs_right} of {len(results.targets)}",
                "yes" if r.trusted else "no",
            ),
            results.at(r),
            start=2,
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


def changes_section(results: AuditResults) -> Section:
    """Return what swapping matched images does to each class."""
    caption = (
        "Change of each class's logit when matched images are swapped, with "
        f"{results.level:.0%} intervals over {results.clusters}; beside it what trusted layers predict. The "
        "grey band holds the middle 95% of the changes of all the model's classes: a class inside it moves no more than "
        "classes do that nobody asked about."
    )
    draw = partial(figures.changes, results)
    shown = Plate(draw, "Change of logits by class", caption, "figures/changes", "swaps")
    tables = tuple(_swap_table(results, contrast) for contrast in results.contrasts)
    return Section(SWAPS, (shown, *tables))


def _swap_table(results: AuditResults, contrast: ConceptInfo) -> Table:
    layer = results.shown_layer(contrast.name)
    rows = []
    for target in sorted(results.targets, key=lambda t: -results.swap(contrast.name, t.name).swap):
        row, cell = (
            results.swap(contrast.name, target.name),
            results.cell(contrast.name, layer, target.name),
        )
        named = (target.name, target.group, target.expected.get(contrast.name, NONE))
        measured = (
            number(row.swap, sign=True),
            interval(row.low, row.high),
            p_value(row.p_corrected),
            f"{row.larger:.0%}",
        )
        predicted = (number(cell.effect, sign=True), p_value(cell.effect_p_corrected), reading(results, cell))
        rows.append((*named, *linked(measured, results.at(row), 0), *linked(predicted, results.at(cell), 0)))
    header = ("class", "group", "expected", "swap", "interval", "p", "classes that move more", "predicted", "p", "reading")
    caption = (
        f"From {contrast.negative} to {contrast.positive}, in logits, largest rise first; predictions at {layer}. p is "
        "corrected over contrasts and classes (swap: Holm) or contrasts, layers and classes (predicted: step-down maximum "
        "and Bonferroni)."
    )
    return Table(caption, header, tuple(rows), text_columns=3, folded=True)


def picked_section(results: AuditResults) -> Section | None:
    """Return the classes that move most, judged on other clusters than picked them; None if none were picked."""
    if not results.picked:
        return None
    rows = tuple(
        linked(
            (
                r.target,
                r.concept,
                number(r.picked_by, sign=True),
                number(r.swap, sign=True),
                interval(r.low, r.high),
                p_value(r.p_corrected),
            ),
            results.at(r),
            start=2,
        )
        for r in results.picked
    )
    header = ("class", "contrast", "when picked", "judged", "interval", "p")
    text = (
        "These classes were picked by the data: of all the model's classes, they change most on the "
        f"{len(results.fitted_on)} {results.clusters} of one part. That number is too large by "
        "the picking; what counts is the change on the others."
    )
    caption = "Classes picked on one part of the data and judged on the other, in logits; p is corrected (Holm)."
    none = not any(r.p_corrected is not None and r.p_corrected < results.alpha for r in results.picked)
    judged = Table(caption, header, rows, text_columns=2)
    return Section("Which classes move most", (Paragraph(text), judged), nothing=none)


def disagreements_section(results: AuditResults) -> Section:
    """Return where predicted and measured effects part."""
    found = disagreements(results)
    if not found:
        text = (
            "Nowhere does TCAV or a predicted effect say, after correction, what the measured swap denies, or the reverse."
        )
        return Section("Where the measures disagree", (Paragraph(text),), nothing=True)
    text = (
        "What a direction inside the network predicts and what a swap of images does are two measurements. Where one "
        "is significant and the other is not, or they have opposite signs, neither explains the other. At layers that "
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
                Link(number(row.swap, sign=True), results.at(row)),
                Link(number(cell.effect, sign=True), results.at(cell)),
                Link(number(cell.tcav), results.at(cell)),
            )
            for cell, row, said in found
            if results.layer(cell.concept, cell.layer).trusted is trusted
        )
        header = ("class", "contrast", "layer", "disagreement", "swap", "predicted", "TCAV")
        caption = f"Disagreements at {where}, after correction."
        blocks += [Table(caption, header, rows, text_columns=4, folded=not trusted)] if rows else []
    return Section("Where the measures disagree", tuple(blocks))
