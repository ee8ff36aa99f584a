"""A mending's page: what a correction did on clusters that nothing was fitted on, in one screen and at length."""

import math
from functools import partial
from typing import TYPE_CHECKING

from concepts.erasure.mending_result import COSTS, MEND, MendingResult
from probing.results.effect_panels import MOST_ROWS, Effect, EffectPanel, draw_effects
from probing.results.html_report import (
    Finding,
    Mark,
    Plate,
    Report,
    Section,
    Standing,
    Summary,
    Table,
    interval,
    number,
)
from probing.results.tables import DataTable, known

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LIMITS = (
    "That the worst group gains says that the correction helps it on data like these, not what else the model leans on.",
    "Where no change is shown there may still be one: look at the interval.",
    "A correction of the last layer leaves in the layers below it what can be read there.",
)


def mending_page(result: MendingResult, subject: str) -> Report:
    """Return the page of a mending.

    Args:
        result: of the mending.
        subject: what was mended, in a line.
    """
    made = result.provenance
    title = f"{result.attribute}, mended by {result.by}"
    return Report(
        title=title[:1].upper() + title[1:],
        subject=subject,
        question="Does the correction help those whom the network classified worst, and at what cost?",
        findings=tuple(Finding(sentence) for sentence in result.sentences()),
        limits=_LIMITS,
        sections=(Section("What changes", (_table(result),)),),
        colophon=(
            ("examples", f"content id {made.examples}"),
            ("model", made.model),
            ("made", f"{made.created} on {made.machine}"),
            ("versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())),
        ),
        data=(DataTable.of_frame("mending", "what changes by the correction", result.to_pandas(), 2),),
        summary=mending_summary(result),
    )


def mending_summary(result: MendingResult) -> Summary:
    """Return the first screen of a mending."""
    count = len(_effects(result))
    cut = f" Shown are the {MOST_ROWS} largest of {count}." if count > MOST_ROWS else ""
    caption = (
        "Change of accuracy by group and of all, and of the share of pairs whose top class changes when they are swapped; "
        f"bars are {result.level:.0%} intervals over {result.judged} held-out clusters. Filled: the interval leaves out 0; "
        f"not corrected for how many there are.{cut}"
    )
    return Summary(
        answer=answer(result),
        plate=Plate(partial(_figure, result), "Changes by the correction", caption, data="mending"),
        marks=_marks(result),
        caveat="how groups fare that nobody labelled, or what a network trained anew would do.",
    )


def answer(result: MendingResult) -> str:
    """Say in one sentence whether the worst group gains, and whether all lose, and no more."""
    by = f"By {result.by}"
    if result.worst < 0:
        return (
            f"{by}, {result.kept:.0%} of held-out examples keep their top class; without labels, what it costs is not known."
        )
    worst = f"the group classified worst before, “{result.groups[result.worst]}”,"
    if result.verdict == COSTS:
        return f"{by}, {worst} is classified better, but all together worse."
    if result.verdict == MEND:
        return f"{by}, {worst} is classified better; that all together lose is not shown."
    if _gains(result):
        return f"{by}, {worst} is classified better, but it is not shown that the model leaned on {result.attribute}."
    return f"{by}, {worst} is not shown to be classified better."


def _gains(result: MendingResult) -> bool:
    return float(result.change_low[result.worst]) > 0


def _marks(result: MendingResult) -> tuple[Mark, ...]:
    asks = ("Leaned on it?", "Worst group gains?", "Accuracy kept?")
    if result.worst < 0:
        return tuple(Mark(asked, Standing.UNTESTED) for asked in asks)
    w = result.worst
    leaned = (
        Mark(asks[0], Standing.UNTESTED, "no other group of its class.")
        if math.isnan(result.gap_low)
        else Mark(asks[0], Standing.YES if result.gap_low > 0 else Standing.NO, f"{_of(result.gap_low, result.gap_high)}.")
    )
    low, high = float(result.change_low[w]), float(result.change_high[w])
    gains = Mark(
        asks[1], Standing.UNTESTED if math.isnan(low) else Standing.YES if low > 0 else Standing.NO, f"{_of(low, high)}."
    )
    low, high = result.overall_low, result.overall_high
    kept = (
        Standing.UNTESTED if math.isnan(low) else Standing.YES if low >= 0 else Standing.NO if high < 0 else Standing.PARTLY
    )
    shown = "no fall shown, " if kept is Standing.PARTLY else ""
    return (leaned, gains, Mark(asks[2], kept, f"{shown}{_of(low, high)}."))


def _of(low: float, high: float) -> str:
    return interval(known(low), known(high))


def _effects(result: MendingResult) -> dict[str, Effect]:
    """Return the changes of accuracy and of flips that are known, by what they are of."""
    found = {}
    for row in result.to_pandas().itertuples(index=False):
        if row.what == "swap" or math.isnan(row.change):
            continue
        low, high = known(row.low), known(row.high)
        sure = low is not None and high is not None and not low <= 0 <= high
        found[row.of if row.what == "accuracy" else f"flips: {row.of}"] = Effect(row.change, low, high, sure)
    return found


def _figure(result: MendingResult) -> "Figure":
    return draw_effects([EffectPanel("", _effects(result))], "change of the share, -1 to 1")


def _table(result: MendingResult) -> Table:
    rows = tuple(
        (
            row.what,
            row.of,
            *(number(known(v)) for v in (row.before, row.after)),
            number(known(row.change), sign=True),
            _of(row.low, row.high),
        )
        for row in result.to_pandas().itertuples(index=False)
    )
    caption = (
        "Accuracy and flips as shares, swaps in standard deviations of the score, with intervals over held-out clusters; "
        "none is corrected for how many there are."
    )
    return Table(caption, ("what", "of", "before", "after", "change", "interval"), rows, text_columns=2)
