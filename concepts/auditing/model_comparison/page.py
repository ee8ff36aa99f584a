"""The page that sets two audits side by side, made of their saved results alone."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from concepts.auditing.measurement.results import AuditResults, CellRow, LayerRow
from concepts.auditing.model_comparison.compare import Difference, Side, SideBySide, side_by_side
from concepts.auditing.model_comparison.summary import SCALES, comparison_summary, scale_ratio
from concepts.auditing.report.verdict import verdict
from probing import __version__
from probing.results.html_report import (
    NONE,
    Finding,
    Link,
    Paragraph,
    Plate,
    Points,
    Report,
    Section,
    Table,
    Words,
    interval,
    linked,
    listed,
    number,
    p_value,
    plain,
    words,
)
from probing.results.tables import DataTable

CHANGES = "What the same swaps do in both"


def write_side_by_side(first: Path, second: Path, out: Path) -> tuple[str, ...]:
    """Write the page on two audits, one file, and return its findings and where it is, a line each.

    Raises:
        concepts.auditing.model_comparison.compare.SideBySideError: if they can't be compared, and why.
        concepts.auditing.measurement.results.ResultsError: if a folder holds no readable audit.
    """
    page = side_by_side_page(side_by_side(first, second))
    page.save(out, alone=True)
    return (*(f"  {i}. {f.claim}" for i, f in enumerate(page.findings, 1)), f"Comparison: {out}")


def side_by_side_page(found: SideBySide) -> Report:
    """Return the page on two audits."""
    a, b = found.labels
    numbers = DataTable.of("differences", f"what each swap does to each class in {a} and in {b}", found.differences, keys=2)
    return Report(
        title=f"{a} beside {b}",
        subject="Two audits of the same images",
        question=f"Do the same swaps of images do the same in {a} and in {b}?",
        findings=tuple(_finding(found, contrast, numbers) for contrast in found.contrasts),
        limits=_limits(found),
        sections=(
            Section(CHANGES, tuple(_changes(found, numbers))),
            Section("What each audit says by itself", (_own(found.first, a), _own(found.second, b))),
            Section("The layers of both", (_layers(found),)),
            Section("TCAV scores and predicted effects of both", (_cells(found),)),
            Section("What differs between the audits", (_facts(found),)),
        ),
        colophon=(
            ("Made", f"by probing-concepts {__version__} from {found.first.folder.name} and {found.second.folder.name}"),
        ),
        data=(numbers,),
        summary=comparison_summary(found),
    )


def _finding(found: SideBySide, contrast: str, numbers: DataTable) -> Finding:
    rows = [d for d in found.differences if d.contrast == contrast]
    sure = sorted((d for d in rows if found.significant(d)), key=lambda d: -abs(d.difference))
    one_only = [d for d in rows if d.first_moved != d.second_moved]
    of_these = sum(found.significant(d) for d in one_only)
    claim = (
        f"The changes by {contrast} differ for {len(sure)} of {len(rows)} classes."
        if sure
        else f"For no class is it shown that the change by {contrast} differs between the two."
    )
    shown: Words = words(listed([_difference(d, numbers) for d in sure[:6]], "; "), ". ") if sure else ""
    rest = (
        f"Differences are {found.labels[1]} less {found.labels[0]}, paired by cluster, significant where the corrected p is"
        f" below {found.first.results.alpha:g}. Classes moved in one of the two only: {len(one_only)}, of which {of_these}"
        f" differ for sure between the two. Where no difference is shown there may still be one. {_scales(found, contrast)}"
    )
    return Finding(claim, words(shown, rest), see=CHANGES)


def _scales(found: SideBySide, contrast: str) -> str:
    """Say on what scale each model's logits change, and warn where these are far apart."""
    rows = [next(b for b in side.results.backdrops if b.concept == contrast) for side in (found.first, found.second)]
    bounds = " and ".join(
        f"{number(row.low, sign=True)} and {number(row.high, sign=True)} in {label}"
        for row, label in zip(rows, found.labels, strict=True)
    )
    ratio = scale_ratio(found, contrast)
    warning = (
        f": scales {ratio:.1f} times apart, by which alone amounts differ; compare the shares of classes that move more."
        if ratio > SCALES
        else "."
    )
    return f"For scale: the middle 95% of the changes of all classes lie between {bounds}{warning}"


def _difference(d: Difference, numbers: DataTable) -> Words:
    link = Link(number(d.difference, sign=True), numbers.at(d.contrast, d.target))
    return words(f"{d.target} ", link, f" ({interval(d.low, d.high)})")


def _limits(found: SideBySide) -> tuple[str, ...]:
    clusters = found.first.results.clusters
    return (
        (
            "Logits of two models have no scale in common: one whose logits are larger throughout moves more throughout. The"
            " share of a model's classes that move more than a class is free of that scale, and stands beside each change."
        ),
        f"Differences are of these images, and take the {clusters} as independent and as a sample of others like them.",
        (
            "Scores, effects and accuracies are shown beside each other with intervals, and not tested: which draws the two"
            " share was not saved, and whether two intervals overlap is no test of a difference."
        ),
        (
            "Two models differ in all that made them, such as data, architecture and training; which of it makes a"
            " difference does not follow from their comparison. Another training of the same model would differ, too."
        ),
        *dict.fromkeys((*found.first.results.limits, *found.second.results.limits)),
    )


def _changes(found: SideBySide, numbers: DataTable) -> Iterator[Paragraph | Plate | Table]:
    a, b = found.labels
    clusters = found.first.results.clusters
    yield Paragraph(
        f"Both audits swapped the same images, so a class's change in {a} and in {b} is compared in each of the same "
        f"{clusters}: the interval and the test of the difference are t over {clusters}, paired, and corrected over all "
        f"{len(found.differences)} pairs of contrast and class (Holm). Each change's own interval is that of its audit."
    )
    caption = (
        f"Change of each class's logit when matched images are swapped, with {found.first.results.level:.0%} intervals; a "
        "star marks classes for which the difference of the two is significant."
    )
    label = f"Changes of logits in {a} and in {b}"
    yield Plate(found.plot, label, caption, data="differences")
    for contrast in found.contrasts:
        rows = tuple(
            linked(_line(found, d), numbers.at(d.contrast, d.target)) for d in found.differences if d.contrast == contrast
        )
        header = ("class", a, "move more", b, "move more", "difference", "p corrected")
        caption = (
            f"Changes by {contrast}, in logits, with intervals; a star: significant, for changes in their own audit. Move"
            " more: the share of all the model's classes that do."
        )
        yield Table(caption, header, rows)


def _line(found: SideBySide, d: Difference) -> tuple[str, ...]:
    star = ["*" if moved else "" for moved in (d.first_moved, d.second_moved)]
    return (
        d.target,
        f"{_change(d.first, d.first_low, d.first_high)}{star[0]}",
        f"{d.first_larger:.0%}",
        f"{_change(d.second, d.second_low, d.second_high)}{star[1]}",
        f"{d.second_larger:.0%}",
        f"{_change(d.difference, d.low, d.high)}{'*' if found.significant(d) else ''}",
        p_value(d.p_corrected),
    )


def _change(value: float, low: float | None, high: float | None) -> str:
    return f"{number(value, sign=True)} ({interval(low, high)})"


def _own(side: Side, label: str) -> Section:
    claims = tuple(f"{f.claim} {plain(f.evidence)}" for f in verdict(side.results) for f in (f, *f.parts))
    return Section(label, (Points(claims),))


def _layers(found: SideBySide) -> Table:
    a, b = found.labels
    rows = []
    for contrast in found.contrasts:
        for layer in dict.fromkeys((*found.first.results.layers, *found.second.results.layers)):
            sides = [_layer(side.results, contrast, layer) for side in (found.first, found.second)]
            cells = [_accuracy(row) for row in sides] + [_agreement(row) for row in sides]
            rows.append((contrast, layer, *cells))
    header = ("contrast", "layer", f"accuracy, {a}", f"accuracy, {b}", f"agreement, {a}", f"agreement, {b}")
    caption = (
        "Held-out accuracy of each contrast's direction, and the correlation of predicted effects with swaps, with "
        "intervals. Layers of one name need not be of one kind in two models."
    )
    return Table(caption, header, tuple(rows), text_columns=2)


def _layer(results: AuditResults, concept: str, layer: str) -> LayerRow | None:
    return results.layer(concept, layer) if layer in results.layers else None


def _accuracy(row: LayerRow | None) -> str:
    if row is None:
        return NONE
    return f"{number(row.accuracy)} ({interval(row.accuracy_low, row.accuracy_high, sign=False)})"


def _agreement(row: LayerRow | None) -> str:
    if row is None or row.r is None:
        return NONE
    return f"{number(row.r)} ({interval(row.r_low, row.r_high, sign=False)})"


def _cells(found: SideBySide) -> Table:
    a, b = found.labels
    shared = [x for x in found.first.results.layers if x in found.second.results.layers]
    header = ("class", "contrast", "layers", f"TCAV, {a}", f"TCAV, {b}", f"effect, {a}", f"effect, {b}")
    rows = []
    for contrast in found.contrasts:
        shown = [side.results.shown_layer(contrast) for side in (found.first, found.second)]
        for layers in [(x, x) for x in shared] or [(shown[0], shown[1])]:
            for target in found.targets:
                cells = [
                    side.results.cell(contrast, layer, target)
                    for side, layer in zip((found.first, found.second), layers, strict=True)
                ]
                where = " and ".join(dict.fromkeys(layers))
                rows.append((target, contrast, where, *map(_tcav, cells), *map(_effect, cells)))
    caption = (
        "With each audit's intervals; effects in logits. "
        + ("Layers that both have." if shared else "They have no layer of one name: each at the layer that it is shown at.")
        + " Nothing here is a test of a difference."
    )
    return Table(caption, header, tuple(rows), text_columns=3, folded=True)


def _tcav(cell: CellRow) -> str:
    return f"{number(cell.tcav)} ({interval(cell.tcav_low, cell.tcav_high, sign=False)})"


def _effect(cell: CellRow) -> str:
    return f"{number(cell.effect, sign=True)} ({interval(cell.effect_low, cell.effect_high)})"


_FACTS: Mapping[str, Callable[[Side], object]] = {
    "model": lambda s: s.results.model,
    "weights": lambda s: s.results.weights,
    "content of the model": lambda s: s.made.get("model"),
    "layers": lambda s: ", ".join(s.results.layers),
    "classes": lambda s: ", ".join(t.name for t in s.results.targets),
    "contrasts": lambda s: ", ".join(c.name for c in s.results.contrasts),
    "content of the images": lambda s: s.images,
    "the same, prepared for the model": lambda s: s.made.get("examples"),
    "inputs": lambda s: f"{s.results.input_count} {s.results.inputs}",
    "fitted on": lambda s: ", ".join(s.results.fitted_on),
    "relabellings": lambda s: ", ".join(str(c.relabellings) for c in s.results.contrasts),
    "audit file": lambda s: s.made.get("file"),
    "statistics": lambda s: (s.made.get("audit") or {}).get("statistics"),  # type: ignore[attr-defined]
    "versions": lambda s: s.made.get("versions"),
    "machine": lambda s: s.made.get("machine"),
    "made": lambda s: s.made.get("created"),
}


def _facts(found: SideBySide) -> Table:
    rows = []
    for name, of in _FACTS.items():
        first, second = (_fact(of(side)) for side in (found.first, found.second))
        rows.append((name, "same" if first == second else "differs", first, second))
    rows.sort(key=lambda row: row[1])
    caption = "Data, versions and content ids of both; what differs stands first."
    return Table(caption, ("what", "same or not", *found.labels), tuple(rows), 4)


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return NONE if value is None else str(value)
