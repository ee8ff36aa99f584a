"""Two audits in one screen: for how many classes the same swaps do something else, and how sure that is."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from PIL import Image

from concepts.auditing.measurement.results import saved_picture
from concepts.auditing.model_comparison.compare import Difference, SideBySide
from probing.results.effect_panels import MOST_ROWS, Effect, EffectPanel, draw_effects
from probing.results.html_report import Mark, Plate, Standing, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALES = 1.5
"""Times apart, from which on a reader is warned of two models' scales."""
MOST_PANELS = 2
"""Contrasts in the figure, and in the answer by themselves."""


def comparison_summary(found: SideBySide) -> Summary:
    """Return the first screen of a comparison; its pictures are those of the first audit's folder, where they lie there."""
    a, b = found.labels
    results = found.first.results
    count = len(found.targets)
    cut = f" Shown are the {MOST_ROWS} largest of {count}." if count > MOST_ROWS else ""
    others = found.contrasts[MOST_PANELS:]
    rest = f" Not shown here: {', '.join(others)}." if others else ""
    caption = (
        f"Change of each class's logit in {b} less that in {a}, by the same swaps; bars are "
        f"{results.level:.0%} intervals, paired by {results.clusters}. Filled: beyond chance after correction.{cut}{rest}"
    )
    plate = Plate(partial(_differences, found), f"Differences between {a} and {b}", caption, data="differences")
    return Summary(
        answer=answer(found),
        plate=plate,
        marks=(beyond_chance(found), scales_alike(found), Mark("Replicated?", Standing.UNTESTED)),
        caveat="what of their making sets the two apart, or how other images or another training fare.",
    )


def answer(found: SideBySide) -> str:
    """Say in one sentence for how many classes the change by a swap differs between the two, and no more."""
    a, b = found.labels
    total = len(found.targets)
    each = [(c, [d for d in found.differences if d.contrast == c and found.significant(d)]) for c in found.contrasts]
    if not any(rows for _, rows in each):
        swaps = " or ".join(c for c, _ in each[:MOST_PANELS])
        more = " or any further swap" if len(each) > MOST_PANELS else ""
        return (
            f"For none of {total} class scores is it shown that the change by {swaps}{more} differs between {a} and {b}; "
            "that does not prove that none does."
        )
    said: list[str] = []
    for contrast, rows in each[:MOST_PANELS]:
        count = f"{len(rows)} of {total} class scores" if not said else str(len(rows) or "none")
        verb = "" if said else " changes otherwise" if len(rows) == 1 else " change otherwise"
        if not said and not rows:
            count, verb = f"none of {total} class scores", " is shown to change otherwise"
        said.append(f"by {contrast} {count}{verb}{_most(rows, b)}")
    if rest := sum(len(rows) for _, rows in each[MOST_PANELS:]):
        said.append(f"by further swaps {rest}")
    text = "; ".join(said)
    return f"In {b} against {a}, {text}."


def _most(rows: Sequence[Difference], second: str) -> str:
    if not rows:
        return ""
    most = max(rows, key=lambda d: abs(d.difference))
    return f", most {most.target} ({'higher' if most.difference > 0 else 'lower'} in {second})"


def beyond_chance(found: SideBySide) -> Mark:
    """Say how many differences are significant after correction, and of how many tested."""
    tested = [d for d in found.differences if d.p_corrected is not None]
    count, total = sum(found.significant(d) for d in tested), len(tested)
    if not tested:
        return Mark("Beyond chance?", Standing.UNTESTED, "too few images.")
    standing = Standing.of(count, total)
    return Mark("Beyond chance?", standing, f"{count or 'none'} of {total} after correction.")


def scales_alike(found: SideBySide) -> Mark:
    """Say whether the two models' logits change on scales alike: by other scales alone amounts differ."""
    ratios = [scale_ratio(found, contrast) for contrast in found.contrasts]
    near = sum(ratio <= SCALES for ratio in ratios)
    return Mark("Scales alike?", Standing.of(near, len(ratios)), f"{max(ratios):.1f} times apart.")


def scale_ratio(found: SideBySide, contrast: str) -> float:
    """Return how many times wider the middle 95% of all classes' changes are in the one than in the other, 1 or more."""
    rows = [next(b for b in side.results.backdrops if b.concept == contrast) for side in (found.first, found.second)]
    widths = [max(row.high - row.low, 1e-12) for row in rows]
    return max(widths) / min(widths)


def _differences(found: SideBySide) -> "Figure":
    panels = []
    for contrast in found.contrasts[:MOST_PANELS]:
        rows = [d for d in found.differences if d.contrast == contrast]
        concept = found.first.results.of(contrast)
        panels.append(
            EffectPanel(
                f"{concept.negative} \N{RIGHTWARDS ARROW} {concept.positive}",
                {d.target: Effect(d.difference, d.low, d.high, found.significant(d)) for d in rows},
                _pair(found, contrast),
            )
        )
    return draw_effects(panels, f"change (logit) in {found.labels[1]} less that in {found.labels[0]}")


def _pair(found: SideBySide, contrast: str) -> tuple[Image.Image, ...]:
    """Return the typical pair of the first audit; nothing where its pictures do not lie beside its results."""
    folder, pair = found.first.folder, found.first.results.pair(contrast)
    names = (pair.negative, pair.positive) if pair else ()
    if not all((folder / "images" / name).is_file() for name in names):
        return ()
    return tuple(saved_picture(folder, name) for name in names)
