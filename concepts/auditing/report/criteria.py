"""What may be said of an audit's numbers: what is moved, predicted, used, significant, and where measures disagree."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from concepts.auditing.measurement.results import AuditResults, CellRow, SwapRow
from probing.statistics.hypothesis_tests import rank_sum

AGREE = "agree"
CONTRADICT = "opposite signs"
UNPREDICTED = "moved, not predicted"
UNMOVED = "predicted, not moved"
NOTHING = "no evidence"
"""How predicted effect and measured swap relate, each significant or not."""
SWAPS = "What a swap does to each class"
TRUST = "Which layers may be trusted"
SCORES = "Concepts by class and layer"
"""Titles of the sections that findings rest on."""
NAMED = 4
"""Classes named in a sentence."""


def moved(results: AuditResults, row: SwapRow) -> bool:
    """Whether the swap moves a logit, after correction."""
    return row.p_corrected is not None and row.p_corrected < results.alpha


def predicted(results: AuditResults, cell: CellRow) -> bool:
    """Whether an effect in logits is significant by relabelling, after correction."""
    return cell.effect_p_corrected is not None and cell.effect_p_corrected < results.alpha


def used(results: AuditResults, cell: CellRow) -> bool:
    """Whether a TCAV score is significant against pseudo-concepts', after correction."""
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


def exists(results: AuditResults, concept: str, layer: str) -> bool:
    """Whether a concept's direction at a layer separates images that it was not fitted on better than chance."""
    p = results.layer(concept, layer).accuracy_p
    return p is not None and p < results.alpha


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


def sure(results: AuditResults, concept: str, layers: Sequence[str]) -> list[CellRow]:
    """Return the cells of a concept at some layers that are significant by score or by effect."""
    cells = [c for c in results.cells if c.concept == concept and c.layer in layers]
    return [c for c in cells if used(results, c) or predicted(results, c)]


def leaning(results: AuditResults, concept: str) -> dict[str, CellRow]:
    """Return the classes that depend on a concept's direction, each with the deepest cell that shows it."""
    layers = [layer for layer in results.layers if exists(results, concept, layer)]
    return {cell.target: cell for cell in sure(results, concept, layers)}


@dataclass(frozen=True)
class Comparison:
    """The mean sizes of a contrast's swaps over the classes that something was expected of, and over the others.

    Attributes:
        p: of the rank-sum test, which takes classes as independent.
    """

    expected: float
    others: float
    p: float


def compared(results: AuditResults, concept: str) -> Comparison | None:
    """Return whether expected classes move more than others; None where nothing, or everything, was expected."""
    sizes = [
        [abs(results.swap(concept, t.name).swap) for t in results.targets if (concept in t.expected) == wanted]
        for wanted in (True, False)
    ]
    if not all(sizes):
        return None
    p = rank_sum(torch.tensor(sizes[0]), torch.tensor(sizes[1])).p
    return Comparison(fmean(sizes[0]), fmean(sizes[1]), p)
