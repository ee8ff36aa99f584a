"""From an audit's numbers to sentences that say no more than the numbers do."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import torch

from concepts.results import AuditResults, CellRow, ConceptInfo, SwapRow
from concepts.statistics import rank_sum
from probing.report import Finding, interval, number, p_value

AGREE = "measured and predicted agree"
CONTRADICT = "measured and predicted have opposite signs"
UNPREDICTED = "moved by the swap, not predicted here"
UNMOVED = "predicted here, not moved by the swap"
NOTHING = "no evidence either way"
_NAMED = 4


def moved(results: AuditResults, row: SwapRow) -> bool:
    """Whether the swap moves a logit, after correction."""
    return row.p_corrected is not None and row.p_corrected < results.alpha


def predicted(results: AuditResults, cell: CellRow) -> bool:
    """Whether an effect in logits is told from relabelled ones, after correction."""
    return cell.effect_p_corrected is not None and cell.effect_p_corrected < results.alpha


def used(results: AuditResults, cell: CellRow) -> bool:
    """Whether a TCAV score is told from those of pseudo-concepts, after correction."""
    return cell.tcav_p_corrected is not None and cell.tcav_p_corrected < results.alpha


def reading(results: AuditResults, cell: CellRow) -> str:
    """Say how the predicted effect at one layer and the measured swap of a contrast relate."""
    row = results.swap(cell.concept, cell.target)
    if moved(results, row) and predicted(results, cell):
        return AGREE if cell.effect * row.swap > 0 else CONTRADICT
    if moved(results, row):
        return UNPREDICTED
    return UNMOVED if predicted(results, cell) else NOTHING


def disagreements(results: AuditResults) -> list[tuple[CellRow, SwapRow, str]]:
    """Return the cells of contrasts in which TCAV or the effect says one thing and the swap another."""
    found = []
    for concept in results.contrasts:
        for cell in (c for c in results.cells if c.concept == concept.name):
            row = results.swap(concept.name, cell.target)
            said = reading(results, cell)
            parts = [] if said in {AGREE, NOTHING} else [said]
            if used(results, cell) and not moved(results, row):
                parts.append("used by TCAV, unmoved by the swap")
            if parts:
                found.append((cell, row, "; ".join(parts)))
    return found


def verdict(results: AuditResults) -> tuple[Finding, ...]:
    """Return the findings, the measured first, then what may be said of layers and of TCAV."""
    found = []
    for contrast in results.contrasts:
        found.append(_swap_finding(results, contrast))
        found += _expectations(results, contrast)
        found.append(_trust_finding(results, contrast))
    return (*found, *_groups_findings(results), _tcav_finding(results))


def _swap_finding(results: AuditResults, contrast: ConceptInfo) -> Finding:
    rows = [r for r in results.swaps if r.concept == contrast.name]
    sure = [r for r in rows if moved(results, r)]
    change = f"Drawing “{contrast.positive}” for “{contrast.negative}”"
    scale = next(b for b in results.backdrops if b.concept == contrast.name)
    context = (
        f"For scale: over all {scale.classes:,} classes of the model the middle 95 % of changes lie between "
        f"{number(scale.low, sign=True)} and {number(scale.high, sign=True)}."
    )
    if not sure:
        claim = (
            f"{change} moves none of the {len(rows)} logits by more than chance on these images."
        )
        return Finding(claim, f"{_test(results, contrast)} {context}")
    claim = f"{change} moves {len(sure)} of {len(rows)} logits on these images."
    parts = [
        f"{word}: {', '.join(_with_interval(r) for r in chosen[:_NAMED])}{_more(chosen)}."
        for word, chosen in (
            ("Up", sorted((r for r in sure if r.swap > 0), key=lambda r: -r.swap)),
            ("Down", sorted((r for r in sure if r.swap < 0), key=lambda r: r.swap)),
        )
        if chosen
    ]
    return Finding(claim, " ".join([*parts, _test(results, contrast), context]))


def _with_interval(row: SwapRow) -> str:
    return f"{row.target} {number(row.swap, sign=True)} ({interval(row.low, row.high)})"


def _more(rows: Sequence[SwapRow]) -> str:
    return f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""


def _test(results: AuditResults, contrast: ConceptInfo) -> str:
    return (
        f"Paired differences over {contrast.held_out_clusters} held-out values of {results.cluster_by}, "
        f"{results.level:.0%} intervals, corrected p below {results.alpha:g}."
    )


def _expectations(results: AuditResults, contrast: ConceptInfo) -> list[Finding]:
    expected = [t for t in results.targets if contrast.name in t.expected]
    if not expected:
        return []
    named: dict[str, list[str]] = {"borne out": [], "reversed": [], "undecided": []}
    for target in expected:
        row = results.swap(contrast.name, target.name)
        as_said = (row.swap > 0) == (target.expected[contrast.name] == "up")
        named[
            "undecided" if not moved(results, row) else "borne out" if as_said else "reversed"
        ].append(target.name)
    counts = {name: len(targets) for name, targets in named.items()}
    claim = (
        f"Of {len(expected)} directions written down beforehand for {contrast.name}, {counts['borne out']} are borne "
        f"out, {counts['reversed']} reversed and {counts['undecided']} undecided."
    )
    evidence = [
        f"{name.capitalize()}: {', '.join(targets)}." for name, targets in named.items() if targets
    ]
    return [Finding(claim, " ".join(evidence))]


def _trust_finding(results: AuditResults, contrast: ConceptInfo) -> Finding:
    rows = [r for r in results.layer_rows if r.concept == contrast.name]
    trusted = results.trusted(contrast.name)
    told = [
        f"{r.layer} {number(r.r)} ({interval(r.r_low, r.r_high, sign=False)})"
        for r in rows
        if r.r is not None
    ]
    evidence = f"Correlation of predicted effect and measured swap over {len(results.targets)} classes: {', '.join(told)}."
    if not told:
        claim = f"Whether effects of {contrast.name} may be believed is not known: there are too few classes."
        return Finding(claim)
    if not trusted:
        claim = f"At no layer do predicted effects of {contrast.name} follow the measured swap well enough to be trusted."
        return Finding(claim, evidence)
    claim = f"Predicted effects of {contrast.name} may be read at {_listed(trusted)}."
    agree = Counter(
        reading(results, c)
        for c in results.cells
        if c.concept == contrast.name and c.layer in trusted
    )
    there = (
        f"There, measured and predicted agree for {agree[AGREE]} of {agree.total()} pairs of class and layer, "
        f"{agree[UNMOVED]} are predicted and not moved, {agree[UNPREDICTED]} moved and not predicted, "
        f"{agree[CONTRADICT]} opposite, {agree[NOTHING]} without evidence."
    )
    return Finding(claim, f"{evidence} {there}")


def _groups_findings(results: AuditResults) -> list[Finding]:
    """Compare the groups of targets: moved logits prove little if those of neutral classes move as much."""
    groups = list(dict.fromkeys(t.group for t in results.targets))
    if len(groups) != 2:
        return []
    told = []
    apart = []
    for contrast in results.contrasts:
        sizes = [
            [
                abs(results.swap(contrast.name, t.name).swap)
                for t in results.targets
                if t.group == group
            ]
            for group in groups
        ]
        p = rank_sum(torch.tensor(sizes[0]), torch.tensor(sizes[1])).p
        apart += [contrast.name] if p < results.alpha else []
        means = " against ".join(
            f"{number(fmean(s))} ({g}, {len(s)})" for s, g in zip(sizes, groups, strict=True)
        )
        told.append(f"{contrast.name}: mean size of the change {means}, rank-sum p {p_value(p)}")
    names = f"“{groups[0]}” and “{groups[1]}”"
    claim = (
        f"The sizes of the changes tell classes of the groups {names} apart for {_listed(apart)}."
        if apart
        else f"Classes of the groups {names} do not move by sizes that differ more than chance allows."
    )
    return [
        Finding(claim, f"{'; '.join(told).capitalize()}. The test takes classes as independent.")
    ]


def _tcav_finding(results: AuditResults) -> Finding:
    cells = [c for c in results.cells if c.tcav_p is not None]
    sure = [c for c in cells if used(results, c)]
    extreme = [c for c in results.cells if c.tcav in {0.0, 1.0}]
    claim = (
        f"The TCAV score alone tells {len(sure)} of {len(cells)} combinations of concept, layer and class from "
        "pseudo-concepts."
    )
    chance = [c for c in extreme if c.tcav_p is not None and c.tcav_p >= results.alpha]
    evidence = (
        f"{len(extreme)} scores are exactly 0 or 1; {len(chance)} of these have p of {results.alpha:g} or more even "
        "without correction, because pseudo-concepts score 0 or 1 there too. A score near 0 or 1 is no evidence by "
        "itself."
    )
    return Finding(claim, evidence)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
