"""The verdict of an audit without matched images: which classes lean on directions, and what is not known of that."""

from collections.abc import Sequence

from concepts.auditing.measurement.results import AuditResults, CellRow, ConceptInfo
from concepts.auditing.report.criteria import NAMED, SCORES, exists, leaning, predicted
from probing.results.html_report import (
    Finding,
    Link,
    Words,
    interval,
    listed,
    number,
    p_value,
    words,
)

UNSWAPPED = Finding(
    "Whether any logit would really move with a concept is not known: there are no matched images.",
    "A predicted effect is what the gradient says of a step along a direction. It was not compared with a swap of "
    "images that differ in the concept alone, so no layer is called trusted, and what else sets a concept's images apart "
    "may be what the model goes by.",
)
"""What no audit without matched images can say."""


def unmatched_verdict(results: AuditResults) -> tuple[Finding, ...]:
    """Return what may be said of each concept, summed up where there are many, and what may not."""
    parts = tuple(_concept_finding(results, c) for c in results.concepts)
    if len(parts) < 3:
        return (*parts, UNSWAPPED)
    at = {c.name: [layer for layer in results.layers if exists(results, c.name, layer)] for c in results.concepts}
    separated = [name for name, layers in at.items() if layers]
    leant_on = [name for name in separated if leaning(results, name)]
    claim = (
        f"A direction separates {len(separated)} of {len(parts)} concepts; classes are shown to depend on the directions of "
        f"{named(leant_on) if leant_on else 'none'}, to first order."
    )
    return Finding(claim, parts=parts), UNSWAPPED


def _concept_finding(results: AuditResults, concept: ConceptInfo) -> Finding:
    """Say of a concept given as one set where its direction exists, and which classes go along it."""
    name = concept.name
    layers = [layer for layer in results.layers if exists(results, name, layer)]
    rows = [results.layer(name, layer) for layer in results.layers]
    accuracies = listed([words(f"{r.layer} ", Link(f"{r.accuracy:.0%}", results.at(r))) for r in rows])
    accuracy = words(f"Held-out accuracy of its classifiers against {concept.negative}: ", accuracies, ".")
    if not layers:
        claim = f"There is no evidence of a direction of “{name}” at any layer: nothing is said of it."
        return Finding(claim, accuracy, see=SCORES)
    tested = (
        f"{len(layers) * len(results.targets)} pairs of layer and class were tested by TCAV score and by effect; p is "
        f"corrected for those of all {len(results.concepts)} concepts. "
    )
    deepest = leaning(results, name)
    if not deepest:
        claim = f"“{name}” is separated from {concept.negative}, but no class is shown to depend on it."
        return Finding(claim, words(tested, accuracy), see=SCORES)
    verb = "depends" if len(deepest) == 1 else "depend"
    claim = f"{_few(list(deepest))} {verb} on the direction of “{name}”, to first order."
    said = listed([_along(results, cell) for cell in list(deepest.values())[:NAMED]], "; ")
    evidence = words("At the deepest layer that shows it: ", said, ". ", tested, accuracy)
    return Finding(claim, evidence, see=SCORES)


def _few(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return f"{', '.join(names[:NAMED])} and {rest} more" if rest > 0 else named(names)


def _along(results: AuditResults, cell: CellRow) -> Words:
    """Return the reading that makes a cell significant, the effect if both do."""
    if predicted(results, cell):
        value, what, p = number(cell.effect, sign=True), "", cell.effect_p_corrected
        ends = f" logits ({interval(cell.effect_low, cell.effect_high)})"
    else:
        value, what, p = number(cell.tcav), "TCAV ", cell.tcav_p_corrected
        ends = f" ({interval(cell.tcav_low, cell.tcav_high, sign=False)})"
    link = Link(value, results.at(cell))
    return words(f"{cell.target} {what}", link, f"{ends} at {cell.layer}, p {p_value(p)}")


def named(names: Sequence[str]) -> str:
    """Return names as they stand in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
