"""A replication in one screen: how much of what changed on one set changes alike on the other."""

from functools import partial
from typing import TYPE_CHECKING

from concepts.auditing.replication.replicate import BOTH, FIRST, OPPOSITE, Replication
from probing.results.effect_panels import Effect, EffectPanel, draw_effects
from probing.results.html_report import Mark, Plate, Standing, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def replication_summary(found: Replication) -> Summary:
    """Return the first screen of a replication; its figure shows the first contrast."""
    a, b = found.sets
    shown, *others = found.contrasts
    rest = f" Not shown here: {', '.join(others)}." if others else ""
    caption = (
        f"What {shown} does to each logit on {a} and on {b}, sorted by {a}; bars are {found.level:.0%} intervals over "
        f"{found.cluster_by}s. Filled: beyond chance after correction on that set.{rest}"
    )
    plate = Plate(partial(_changes, found), f"Changes on {a} and on {b}", caption, "figures/summary", "replication")
    caveat = "what a third set of images would do."
    return Summary(answer(found), plate, (_again(found), *_in_size(found)), caveat)


def answer(found: Replication) -> str:
    """Say in one sentence how many of the changes on the first set are found again on the second, and no more."""
    a, b = found.sets
    said = []
    for contrast in found.contrasts:
        outcomes = found.outcomes(contrast)
        same, opposite, undecided = (len(outcomes.get(o, ())) for o in (BOTH, OPPOSITE, FIRST))
        if not (moved := same + opposite + undecided):
            said.append(f"{contrast} changes none on {a}")
            continue
        turned = f" and {opposite} the other way" if opposite else ""
        scores = " class scores" if not said else ""
        said.append(f"of {moved}{scores} that {contrast} changes on {a}, {same or 'none'} change alike on {b}{turned}")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _again(found: Replication) -> Mark:
    each = [found.standing(contrast) for contrast in found.contrasts]
    told = [standing for standing in each if standing is not Standing.UNTESTED]
    if not told:
        return Mark("Replicated?", Standing.UNTESTED, f"nothing changes on {found.sets[0]}.")
    full = sum(standing is Standing.YES for standing in told)
    standing = told[0] if len(set(told)) == 1 else Standing.PARTLY
    return Mark("Replicated?", standing, f"{full or 'none'} of {len(told)} in full.")


def _in_size(found: Replication) -> tuple[Mark, Mark]:
    """Say for how many contrasts the two sets' changes go together over targets, and how many changes differ."""
    total = len(found.contrasts)
    together = sum(found.correlation(contrast).low > 0 for contrast in found.contrasts)
    differing = sum(len(found.differing(contrast)) for contrast in found.contrasts)
    cells = total * len(found.targets)
    agree = Standing.of(together, total)
    differ = Standing.PARTLY if differing else Standing.NO
    return (
        Mark("Sets agree?", agree, f"for {together or 'none'} of {total} contrasts."),
        Mark("Amounts differ?", differ, f"{differing or 'none'} of {cells} for sure."),
    )


def _changes(found: Replication) -> "Figure":
    panels = []
    for s, name in enumerate(found.sets):
        value, low, high, p = (t[s, 0].tolist() for t in (found.swap, found.low, found.high, found.p))
        rows = zip(found.targets, value, low, high, p, strict=True)
        panels.append(EffectPanel(name, {target: Effect(v, a, b, q < found.alpha) for target, v, a, b, q in rows}))
    return draw_effects(panels, "change of the class score (logit)", (found.contrasts[0],))
