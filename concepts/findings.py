"""From an audit's numbers to sentences that say no more than the numbers do."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import torch

from concepts.results import AuditResults, CellRow, ConceptInfo, SwapRow, TargetInfo
from concepts.statistics import rank_sum
from probing.report import Finding, interval, number, p_value

AGREE = "agree"
CONTRADICT = "opposite signs"
UNPREDICTED = "moved, not predicted"
UNMOVED = "predicted, not moved"
NOTHING = "no evidence"
"""How predicted effect and measured swap relate, each told from chance or not."""
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
    """Return the findings: what was measured, then what may be said of layers and of TCAV."""
    if not results.contrasts:
        return (*(_concept_finding(results, c) for c in results.concepts), UNSWAPPED)
    found = []
    for contrast in results.contrasts:
        found.append(_swap_finding(results, contrast))
        found += _expectations(results, contrast)
    found += [_trust_finding(results, contrast) for contrast in results.contrasts]
    return (*found, _tcav_finding(results))


def _swap_finding(results: AuditResults, contrast: ConceptInfo) -> Finding:
    rows = [r for r in results.swaps if r.concept == contrast.name]
    sure = [r for r in rows if moved(results, r)]
    change = f"Exchanging “{contrast.negative}” for “{contrast.positive}”"
    scale = next(b for b in results.backdrops if b.concept == contrast.name)
    context = (
        f"For scale: over all {scale.classes:,} classes of the model the middle 95% of changes lie between "
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
        f"Paired differences over {contrast.clusters} {results.clusters}, {results.level:.0%} intervals, corrected p below "
        f"{results.alpha:g}."
    )


def _expectations(results: AuditResults, contrast: ConceptInfo) -> list[Finding]:
    """Say whether what was expected came, and whether classes of which nothing was expected move as much."""
    expected = [t for t in results.targets if contrast.name in t.expected]
    others = [t for t in results.targets if contrast.name not in t.expected]
    if not expected:
        return []
    named: dict[str, list[str]] = {"borne out": [], "reversed": [], "undecided": []}
    for target in expected:
        row = results.swap(contrast.name, target.name)
        as_said = (row.swap > 0) == (target.expected[contrast.name] == "up")
        sure = "borne out" if as_said else "reversed"
        named[sure if moved(results, row) else "undecided"].append(target.name)
    counts = {name: len(targets) for name, targets in named.items()}
    claim = (
        f"Of {len(expected)} directions written down beforehand for {contrast.name}, {counts['borne out']} are borne "
        f"out, {counts['reversed']} reversed and {counts['undecided']} undecided."
    )
    told = " ".join(f"{name.capitalize()}: {', '.join(t)}." for name, t in named.items() if t)
    found = [Finding(claim, told)]
    return [*found, _comparison(results, contrast, expected, others)] if others else found


def _comparison(
    results: AuditResults,
    contrast: ConceptInfo,
    expected: Sequence[TargetInfo],
    others: Sequence[TargetInfo],
) -> Finding:
    """Compare sizes: a moved logit proves little if those of classes of which nothing was expected move as much."""
    sizes = [
        [abs(results.swap(contrast.name, t.name).swap) for t in group]
        for group in (expected, others)
    ]
    p = rank_sum(torch.tensor(sizes[0]), torch.tensor(sizes[1])).p
    more = "more" if fmean(sizes[0]) > fmean(sizes[1]) else "less"
    claim = (
        f"Classes of which something was expected move {more} than the others."
        if p < results.alpha
        else "It is not shown that classes of which something was expected move more than the others."
    )
    evidence = (
        f"Mean size of the change for {contrast.name}: {number(fmean(sizes[0]))} over {len(expected)} classes against "
        f"{number(fmean(sizes[1]))} over {len(others)}; rank-sum p {p_value(p)}, taking classes as independent."
    )
    return Finding(claim, evidence)


def _trust_finding(results: AuditResults, contrast: ConceptInfo) -> Finding:
    rows = [r for r in results.layer_rows if r.concept == contrast.name]
    trusted = results.trusted(contrast.name)
    told = [
        f"{r.layer} {number(r.r)} ({interval(r.r_low, r.r_high, sign=False)})"
        for r in rows
        if r.r is not None
    ]
    evidence = (
        f"Correlation over {len(results.targets)} classes of the effect predicted from one half of the {results.clusters} and "
        f"the swap measured on the other: {', '.join(told)}; from {results.trust:g} on, the interval's lower bound counts as "
        "trust."
    )
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


def _tcav_finding(results: AuditResults) -> Finding:
    names = {c.name for c in results.contrasts}
    cells = [c for c in results.cells if c.concept in names and c.tcav_p is not None]
    sure = [c for c in cells if used(results, c)]
    extreme = [c for c in cells if c.tcav in {0.0, 1.0}]
    idle = [c for c in extreme if c.tcav_p is not None and c.tcav_p >= results.alpha]
    claim = (
        f"The sign-count TCAV score is told from chance in {len(sure)} of {len(cells)} combinations of contrast, layer "
        "and class."
    )
    evidence = (
        "Chance: the same count along directions fitted after labels were swapped within whole "
    )
    evidence += f"{results.clusters}; p corrected by the step-down maximum. "
    if extreme:
        evidence += (
            f"{len(extreme)} scores are exactly 0 or 1, {len(idle)} of them with p of {results.alpha:g} or more even without "
            "correction: there, relabelled directions score 0 or 1 too. "
        )
    unmoved = [c for c in sure if not moved(results, results.swap(c.concept, c.target))]
    if unmoved:
        evidence += (
            f"{len(unmoved)} of the {len(sure)} belong to logits that the swap does not move."
        )
    return Finding(claim, evidence.strip())


UNSWAPPED = Finding(
    "Whether any logit would really move with a concept is not known: there are no matched images.",
    "A predicted effect is what the gradient says of a step along a direction. It was not compared with an exchange of "
    "images that differ in the concept alone, so no layer is called trusted, and what else sets a concept's images apart "
    "may be what the model goes by.",
)
"""What no audit without matched images can say."""


def exists(results: AuditResults, concept: str, layer: str) -> bool:
    """Whether a concept's direction at a layer tells images that it was not fitted on, better than chance."""
    p = results.layer(concept, layer).accuracy_p
    return p is not None and p < results.alpha


def _concept_finding(results: AuditResults, concept: ConceptInfo) -> Finding:
    """Say of a concept given as one set where its direction exists, and which classes go along it."""
    name = concept.name
    layers = [layer for layer in results.layers if exists(results, name, layer)]
    told = ", ".join(
        f"{layer} {results.layer(name, layer).accuracy:.0%}" for layer in results.layers
    )
    accuracy = f"Held-out accuracy of its classifiers against {concept.negative}: {told}."
    if not layers:
        claim = (
            f"There is no evidence of a direction of “{name}” at any layer: nothing is said of it."
        )
        return Finding(claim, accuracy)
    cells = [c for c in results.cells if c.concept == name and c.layer in layers]
    tested = (
        f"{len(cells)} pairs of layer and class were tested by TCAV score and by effect; p is corrected for those of all "
        f"{len(results.concepts)} concepts."
    )
    deepest = {c.target: c for c in cells if used(results, c) or predicted(results, c)}
    if not deepest:
        claim = f"“{name}” is told from {concept.negative}, but no class is shown to depend on it."
        return Finding(claim, f"{tested} {accuracy}")
    verb = "depends" if len(deepest) == 1 else "depend"
    claim = f"{_few(list(deepest))} {verb} on the direction of “{name}”, to first order."
    said = [_along(results, cell) for cell in list(deepest.values())[:_NAMED]]
    return Finding(
        claim, f"At the deepest layer that shows it: {'; '.join(said)}. {tested} {accuracy}"
    )


def _few(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return f"{', '.join(names[:_NAMED])} and {rest} more" if rest > 0 else _listed(names)


def _along(results: AuditResults, cell: CellRow) -> str:
    """Return the reading that tells a cell from chance, the effect if both do."""
    if predicted(results, cell):
        said = f"{number(cell.effect, sign=True)} logits ({interval(cell.effect_low, cell.effect_high)})"
        return f"{cell.target} {said} at {cell.layer}, p {p_value(cell.effect_p_corrected)}"
    said = f"TCAV {number(cell.tcav)} ({interval(cell.tcav_low, cell.tcav_high, sign=False)})"
    return f"{cell.target} {said} at {cell.layer}, p {p_value(cell.tcav_p_corrected)}"


def floor(results: AuditResults) -> str:
    """Say, where it is so, that too few pseudo-concepts were drawn for any corrected p of a one-set concept."""
    concepts = len(results.concepts) - len(results.contrasts)
    least = min(1.0, concepts / (results.pseudo_concepts + 1))
    if not concepts or least < results.alpha:
        return ""
    return (
        f"Scores of concepts given as one set are shown for comparison: with {results.pseudo_concepts} pseudo-concepts and "
        f"{concepts} concepts, no p of theirs could be small after correction."
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
