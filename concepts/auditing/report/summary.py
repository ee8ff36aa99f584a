"""An audit in one screen: its answer in a sentence, the figure that shows it, how sure it is, and what it does not say."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from concepts.auditing.measurement.results import AuditResults, ConceptInfo, SwapRow
from concepts.auditing.report.criteria import compared, exists, leaning, moved, predicted, sure
from concepts.auditing.report.figures import Picture
from probing.results.effect_panels import MOST_ROWS, Effect, EffectPanel, draw_effects
from probing.results.html_report import Mark, Plate, Standing, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHANCE, _AGREE, _AGAIN = "Beyond chance?", "Measures agree?", "Replicated?"
MOST_PANELS = 2
"""Contrasts or concepts in the figure, and in the answer by themselves."""


def audit_summary(results: AuditResults, picture: Picture) -> Summary:
    """Return the first screen of an audit.

    Args:
        results: of the audit.
        picture: returns the picture saved under a name; called when the figure is drawn.
    """
    return _matched(results, picture) if results.contrasts else _unmatched(results, picture)


def _matched(results: AuditResults, picture: Picture) -> Summary:
    shown = results.contrasts[:MOST_PANELS]
    caption = (
        f"Change of each class's logit when matched images are swapped, above it a typical pair; bars are "
        f"{results.level:.0%} intervals over {results.clusters}. Filled: beyond chance after correction. The grey band "
        f"holds 95% of the model's classes.{_cut(results)}{_left_out(results.contrasts)}"
    )
    label = f"Changes of class scores by swap: {'; '.join(f'{c.negative} to {c.positive}' for c in shown)}"
    draw = partial(_changes, results, shown, picture)
    return Summary(
        answer=answer(results),
        plate=Plate(draw, label, caption, "figures/summary", "swaps"),
        marks=(beyond_chance(results), _agreement(results), Mark(_AGAIN, Standing.UNTESTED)),
        caveat=_caveat(results),
    )


def _cut(results: AuditResults) -> str:
    count = len(results.targets)
    return f" Shown are the {MOST_ROWS} largest of {count}." if count > MOST_ROWS else ""


def _left_out(concepts: Sequence[ConceptInfo]) -> str:
    names = [c.name for c in concepts[MOST_PANELS:]]
    return f" Not shown here: {', '.join(names)}." if names else ""


def _changes(results: AuditResults, contrasts: Sequence[ConceptInfo], picture: Picture) -> "Figure":
    panels = []
    for contrast in contrasts:
        rows = [r for r in results.swaps if r.concept == contrast.name]
        pair, band = results.pair(contrast.name), next(b for b in results.backdrops if b.concept == contrast.name)
        panels.append(
            EffectPanel(
                f"{contrast.negative} \N{RIGHTWARDS ARROW} {contrast.positive}",
                {r.target: Effect(r.swap, r.low, r.high, moved(results, r)) for r in rows},
                (picture(pair.negative), picture(pair.positive)) if pair else (),
                (band.low, band.high),
            )
        )
    return draw_effects(panels, "change of the class score (logit)")


def answer(results: AuditResults) -> str:
    """Say in one sentence what swaps of matched images are shown to do, and no more."""
    each = [(c, [r for r in results.swaps if r.concept == c.name]) for c in results.contrasts]
    tested = [(c, rows) for c, rows in each if any(r.p_corrected is not None for r in rows)]
    if not tested:
        return "Whether any class score changes when matched images are swapped was not tested."
    changed = {c.name: [r for r in rows if moved(results, r)] for c, rows in tested}
    total = len(results.targets)
    if not any(changed.values()):
        swaps = " or ".join(_in_place(c) for c, _ in tested[:MOST_PANELS])
        return f"Showing {swaps} is not shown to change any of {total} class scores; that does not prove that none changes."
    said: list[str] = []
    for contrast, _ in tested[:MOST_PANELS]:
        rows = changed[contrast.name]
        count = str(len(rows) or "none")
        what = f" changes {count} of {total} class scores beyond chance" if not said else f" changes {count}"
        said.append(f"{_in_place(contrast)}{what}{_most(rows)}")
    if rest := sum(len(changed[c.name]) for c, _ in tested[MOST_PANELS:]):
        said.append(f"further swaps, {rest}")
    return f"Showing {'; '.join(said)}."


def _in_place(contrast: ConceptInfo) -> str:
    return f"“{contrast.positive}” instead of “{contrast.negative}”"


def _most(rows: Sequence[SwapRow]) -> str:
    if not rows:
        return ""
    most = max(rows, key=lambda r: abs(r.swap))
    return f", most {most.target} ({'up' if most.swap > 0 else 'down'})"


def beyond_chance(results: AuditResults) -> Mark:
    """Say how many changes are significant after correction, and how many of these lie beyond most classes' changes."""
    rows = [r for r in results.swaps if r.p_corrected is not None]
    found = [r for r in rows if moved(results, r)]
    bands = {b.concept: (b.low, b.high) for b in results.backdrops}
    far = [r for r in found if not bands[r.concept][0] <= r.swap <= bands[r.concept][1]]
    asks = _CHANCE
    if not rows:
        return Mark(asks, Standing.UNTESTED, "too few images.")
    if not found:
        return Mark(asks, Standing.NO, f"none of {len(rows)} after correction.")
    standing = Standing.YES if len(found) == len(rows) else Standing.PARTLY
    return Mark(asks, standing, f"{len(found)} of {len(rows)}; {len(far) or 'none'} outside the grey band.")


def _agreement(results: AuditResults) -> Mark:
    rows = [r for r in results.layer_rows if results.of(r.concept).matched]
    known, trusted = [r for r in rows if r.r is not None], [r for r in rows if r.trusted]
    asks = _AGREE
    if not known:
        return Mark(asks, Standing.UNTESTED, "too few classes.")
    standing = Standing.of(len(trusted), len(rows))
    return Mark(asks, standing, f"at {len(trusted) or 'none'} of {len(rows)} layers.")


def _caveat(results: AuditResults) -> str:
    """Return what swaps do not say, and, unless it is shown, that what was expected to move moves more."""
    said = ["which drawn differences matter", "how other images fare"]
    found = [c for contrast in results.contrasts if (c := compared(results, contrast.name))]
    if found and not all(c.p < results.alpha and c.expected > c.others for c in found):
        said.append("that expected classes change more")
    return f"{', '.join(said[:-1])} or {said[-1]}."


def _unmatched(results: AuditResults, picture: Picture) -> Summary:
    counts = {c.name: len(leaning(results, c.name)) for c in results.concepts}
    shown = sorted(results.concepts, key=lambda c: -counts[c.name])[:MOST_PANELS]
    where = ", ".join(f"{results.shown_layer(c.name)} for {c.name}" for c in shown)
    caption = (
        f"Predicted effect of each concept on each class, to first order, at {where}; bars are {results.level:.0%} "
        "intervals. Filled: the effect is beyond chance after correction. Above: the image most like the concept."
        f"{_cut(results)}{_left_out([*shown, *(c for c in results.concepts if c not in shown)])}"
    )
    label = f"Predicted effects of {' and '.join(c.name for c in shown)}"
    draw = partial(_effects, results, shown, picture)
    cells = [c for c in results.cells if c.tcav_p_corrected is not None or c.effect_p_corrected is not None]
    found = sum(len(sure(results, c.name, results.layers)) for c in results.concepts)
    standing = Standing.of(found, len(cells))
    chance = (
        Mark(_CHANCE, standing, f"{found or 'none'} of {len(cells)} pairs of class and layer.")
        if cells
        else Mark(_CHANCE, Standing.UNTESTED, "too few images.")
    )
    return Summary(
        answer=unmatched_answer(results),
        plate=Plate(draw, label, caption, "figures/summary", "classes_by_layer"),
        marks=(
            chance,
            Mark(_AGREE, Standing.UNTESTED),
            Mark(_AGAIN, Standing.UNTESTED),
        ),
        caveat="whether a score would really change with the concept, or what else sets its images apart.",
    )


def _effects(results: AuditResults, concepts: Sequence[ConceptInfo], picture: Picture) -> "Figure":
    panels = []
    for concept in concepts:
        layer = results.shown_layer(concept.name)
        cells = [c for c in results.cells if (c.concept, c.layer) == (concept.name, layer)]
        like = next((r.image for r in results.likeness if (r.concept, r.side) == (concept.name, "most")), None)
        there = exists(results, concept.name, layer)
        panels.append(
            EffectPanel(
                concept.name,
                {c.target: Effect(c.effect, c.effect_low, c.effect_high, there and predicted(results, c)) for c in cells},
                (picture(like),) if like else (),
            )
        )
    return draw_effects(panels, "predicted effect (logits)")


def unmatched_answer(results: AuditResults) -> str:
    """Say in one sentence which classes depend on which concepts' directions, and no more."""
    counts = {c.name: len(leaning(results, c.name)) for c in results.concepts}
    leant_on = sorted((name for name in counts if counts[name]), key=lambda name: -counts[name])
    total, names = len(results.targets), [f"“{name}”" for name in counts]
    if not leant_on:
        which = f"any of {len(names)} concepts" if len(names) > MOST_PANELS else " or ".join(names)
        return f"No class score is shown to depend on {which}; that does not show that none does."
    first, *others = (f"“{name}”" for name in leant_on[:MOST_PANELS])
    said = [f"{counts[leant_on[0]]} of {total} class scores depend on the direction of {first}"]
    said += [f"{counts[name]} on {quoted}" for name, quoted in zip(leant_on[1:], others, strict=False)]
    if (rest := len(leant_on) - MOST_PANELS) > 0:
        said.append(f"some on {rest} more")
    if none := len(counts) - len(leant_on):
        said.append(f"none on {none} other{'s' * (none > 1)}")
    return f"To first order, {', '.join(said)}; nothing was swapped."
