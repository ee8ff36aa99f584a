"""From an audit's numbers to the sentences of its verdict, which say no more than the numbers do."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from concepts.auditing.measurement.results import (
    AuditResults,
    CellRow,
    ConceptInfo,
    SwapRow,
)
from concepts.auditing.report import figures
from concepts.auditing.report.criteria import (
    AGREE,
    CONTRADICT,
    NAMED,
    NOTHING,
    SCORES,
    SWAPS,
    TRUST,
    UNMOVED,
    UNPREDICTED,
    Comparison,
    compared,
    moved,
    reading,
    used,
)
from concepts.auditing.report.verdict_unmatched import named, unmatched_verdict
from probing.results.html_report import (
    Finding,
    Link,
    Plate,
    Words,
    interval,
    listed,
    number,
    p_value,
    words,
)


def verdict(results: AuditResults) -> tuple[Finding, ...]:
    """Return the main findings, each with those that it sums up.

    What swaps do, whether that was expected, and what may be said of the inside; without matched images, which classes
    lean on directions, and what is not known of that.
    """
    if not results.contrasts:
        return unmatched_verdict(results)
    return _moves(results), _expected(results), _inside(results)


def _moves(results: AuditResults) -> Finding:
    parts = tuple(_swap_finding(results, contrast) for contrast in results.contrasts)
    if len(parts) == 1:
        return parts[0]
    counts = [
        f"{sum(moved(results, r) for r in results.swaps if r.concept == c.name)} with {_swap(c)}" for c in results.contrasts
    ]
    return Finding(
        f"Of {len(results.targets)} logits, swaps of matched images move {named(counts)}.",
        parts=parts,
    )


def _expected(results: AuditResults) -> Finding:
    expected = [t for t in results.targets if t.expected]
    if not expected:
        return Finding(
            "No direction was written down beforehand: nothing here confirms an expectation.",
            "Which classes move was found by looking, and is to be confirmed on other data.",
        )
    each = [found for c in results.contrasts if (found := _expectations(results, c))]
    if len(each) == 1:
        [first, *rest] = each[0]
        return replace(first, parts=tuple(rest), see=SWAPS)
    counts = Counter(kind for c in results.contrasts for kind in _outcomes(results, c).values())
    claim = f"Of {counts.total()} directions written down beforehand, {_in_words(counts)}."
    return Finding(claim, parts=tuple(finding for found in each for finding in found))


def _inside(results: AuditResults) -> Finding:
    parts = (*(_trust_finding(results, c) for c in results.contrasts), _tcav_finding(results))
    where = {c.name: results.trusted(c.name) for c in results.contrasts}
    if not any(where.values()):
        claim = "At no layer do predicted effects follow the swaps well enough to be read"
    elif len(set(where.values())) == 1:
        claim = f"Predicted effects may be read at {named(results.trusted(results.contrasts[0].name))}"
    else:
        readable = [f"{named(layers) if layers else 'no layer'} for {name}" for name, layers in where.items()]
        claim = f"Predicted effects may be read at {named(readable)}"
    sure, cells = _tcav_cells(results)
    claim += f"; the sign-count TCAV score is significant in {len(sure)} of {len(cells)} cells."
    caption = (
        f"Correlation over classes of predicted effects with measured swaps at each layer, with {results.level:.0%} "
        "intervals. Filled: trusted, the whole interval lies in the grey band."
    )
    shown = Plate(partial(figures.trust, results), "Agreement by layer", caption, "figures/trust", "layers")
    return Finding(claim, parts=parts, picture=shown if any(r.r is not None for r in results.layer_rows) else None)


def _swap(contrast: ConceptInfo) -> str:
    return f"“{contrast.positive}” in place of “{contrast.negative}”"


def _swap_finding(results: AuditResults, contrast: ConceptInfo) -> Finding:
    rows = [r for r in results.swaps if r.concept == contrast.name]
    sure = [r for r in rows if moved(results, r)]
    change = f"Swapping “{contrast.negative}” for “{contrast.positive}”"
    scale = next(b for b in results.backdrops if b.concept == contrast.name)
    context = words(
        f" For scale: over all {scale.classes:,} classes of the model the middle 95% of changes lie between ",
        Link(number(scale.low, sign=True), results.at(scale)),
        " and ",
        Link(number(scale.high, sign=True), results.at(scale)),
        ".",
    )
    if not sure:
        claim = f"{change} moves none of the {len(rows)} logits by more than chance on these images."
        return Finding(claim, words(_test(results, contrast), context), see=SWAPS)
    claim = f"{change} moves {len(sure)} of {len(rows)} logits on these images."
    parts = [
        words(
            f"{word}: ",
            listed([_with_interval(results, r) for r in chosen[:NAMED]]),
            f"{_more(chosen)}. ",
        )
        for word, chosen in (
            ("Up", sorted((r for r in sure if r.swap > 0), key=lambda r: -r.swap)),
            ("Down", sorted((r for r in sure if r.swap < 0), key=lambda r: r.swap)),
        )
        if chosen
    ]
    return Finding(claim, words(*parts, _test(results, contrast), context), see=SWAPS)


def _with_interval(results: AuditResults, row: SwapRow) -> Words:
    value = Link(number(row.swap, sign=True), results.at(row))
    return words(f"{row.target} ", value, f" ({interval(row.low, row.high)})")


def _more(rows: Sequence[SwapRow]) -> str:
    return f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""


def _test(results: AuditResults, contrast: ConceptInfo) -> str:
    return (
        f"Paired differences over {contrast.clusters} {results.clusters}, {results.level:.0%} intervals, corrected p below "
        f"{results.alpha:g}."
    )


def _expectations(results: AuditResults, contrast: ConceptInfo) -> list[Finding]:
    """Say whether what was expected came, and whether classes of which nothing was expected move as much."""
    expected = [t for t in results.targets if contrast.name in t.expected]
    if not expected:
        return []
    came: dict[str, list[str]] = {name: [] for name in _OUTCOMES}
    for target, outcome in _outcomes(results, contrast).items():
        came[outcome].append(target)
    counts = Counter({name: len(targets) for name, targets in came.items()})
    claim = f"Of {len(expected)} directions written down beforehand for {contrast.name}, {_in_words(counts)}."
    outcomes = " ".join(f"{name.capitalize()}: {', '.join(t)}." for name, t in came.items() if t)
    found = [Finding(claim, outcomes)]
    sizes = compared(results, contrast.name)
    return [*found, _comparison(results, contrast, sizes)] if sizes else found


_OUTCOMES = ("borne out", "reversed", "undecided")


def _outcomes(results: AuditResults, contrast: ConceptInfo) -> dict[str, str]:
    """Return what came of each expectation, by target."""
    found = {}
    for target in results.targets:
        if contrast.name in target.expected:
            row = results.swap(contrast.name, target.name)
            as_said = (row.swap > 0) == (target.expected[contrast.name] == "up")
            sure = "borne out" if as_said else "reversed"
            found[target.name] = sure if moved(results, row) else "undecided"
    return found


def _in_words(counts: Counter[str]) -> str:
    return f"{counts['borne out']} are borne out, {counts['reversed']} reversed and {counts['undecided']} undecided"


def _comparison(results: AuditResults, contrast: ConceptInfo, found: Comparison) -> Finding:
    """Compare sizes: a moved logit proves little if those of classes of which nothing was expected move as much."""
    more = "more" if found.expected > found.others else "less"
    claim = (
        f"Classes of which something was expected move {more} than the others."
        if found.p < results.alpha
        else "It is not shown that classes of which something was expected move more than the others."
    )
    expected = [t for t in results.targets if contrast.name in t.expected]
    evidence = (
        f"Mean size of the change for {contrast.name}: {number(found.expected)} over {len(expected)} classes against "
        f"{number(found.others)} over {len(results.targets) - len(expected)}; rank-sum p {p_value(found.p)}, taking classes "
        "as independent."
    )
    return Finding(claim, evidence)


def _trust_finding(results: AuditResults, contrast: ConceptInfo) -> Finding:
    rows = [r for r in results.layer_rows if r.concept == contrast.name]
    trusted = results.trusted(contrast.name)
    sentences = [
        words(
            f"{r.layer} ",
            Link(number(r.r), results.at(r)),
            f" ({interval(r.r_low, r.r_high, sign=False)})",
        )
        for r in rows
        if r.r is not None
    ]
    evidence = words(
        f"Correlation over {len(results.targets)} classes of the effect predicted from one half of the {results.clusters}"
        " and the swap measured on the other: ",
        listed(sentences),
        f"; from {results.trust:g} on, the interval's lower bound counts as trust.",
    )
    if not sentences:
        claim = f"Whether effects of {contrast.name} may be believed is not known: there are too few classes."
        return Finding(claim)
    if not trusted:
        claim = f"At no layer do predicted effects of {contrast.name} follow the measured swap well enough to be trusted."
        return Finding(claim, evidence, see=TRUST)
    claim = f"Predicted effects of {contrast.name} may be read at {named(trusted)}."
    agree = Counter(reading(results, c) for c in results.cells if c.concept == contrast.name and c.layer in trusted)
    there = (
        f" There, measured and predicted agree for {agree[AGREE]} of {agree.total()} pairs of class and layer, "
        f"{agree[UNMOVED]} are predicted and not moved, {agree[UNPREDICTED]} moved and not predicted, "
        f"{agree[CONTRADICT]} opposite, {agree[NOTHING]} without evidence."
    )
    return Finding(claim, words(evidence, there), see=TRUST)


def _tcav_cells(results: AuditResults) -> tuple[list[CellRow], list[CellRow]]:
    """Return the cells of contrasts whose TCAV score is significant, and all that were tested."""
    names = {c.name for c in results.contrasts}
    cells = [c for c in results.cells if c.concept in names and c.tcav_p is not None]
    return [c for c in cells if used(results, c)], cells


def _tcav_finding(results: AuditResults) -> Finding:
    sure, cells = _tcav_cells(results)
    extreme = [c for c in cells if c.tcav in {0.0, 1.0}]
    idle = [c for c in extreme if c.tcav_p is not None and c.tcav_p >= results.alpha]
    claim = (
        f"The sign-count TCAV score is significant in {len(sure)} of {len(cells)} combinations of contrast, layer and class."
    )
    evidence = "Chance: the same count along directions fitted after labels were swapped within whole "
    evidence += f"{results.clusters}; p corrected by the step-down maximum. "
    if extreme:
        evidence += (
            f"{len(extreme)} scores are exactly 0 or 1, {len(idle)} of them with p of {results.alpha:g} or more even without"
            " correction: there, relabelled directions score 0 or 1 too. "
        )
    unmoved = [c for c in sure if not moved(results, results.swap(c.concept, c.target))]
    if unmoved:
        evidence += f"{len(unmoved)} of the {len(sure)} belong to logits that the swap does not move."
    return Finding(claim, evidence.strip(), see=SCORES)
