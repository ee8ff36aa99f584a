"""A discovery in one screen: which atoms are found again, which have a part of a score, and how sure that is."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from PIL import Image

from concepts.discovery.result import DiscoveryResult, Importance
from probing.results.effect_panels import MOST_ROWS, Effect, EffectPanel, draw_effects
from probing.results.html_report import Mark, Plate, Standing, Summary
from probing.results.tables import known

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PANELS = 2
"""Scores in the figure; the answer is about the first."""


def discovery_summary(result: DiscoveryResult, picture: Image.Image | None = None) -> Summary:
    """Return the first screen of a discovery.

    Args:
        result: of the discovery.
        picture: the held-out example that shows most of `shown_atom`, if there is one.
    """
    count = len(result)
    cut = f" Shown are {MOST_ROWS} of {count}." if count > MOST_ROWS else ""
    above = f" Above: the example that shows most of {result.name(shown_atom(result))}." if picture else ""
    told = result.importance
    if told is None:
        label = "How far each atom is found again"
        caption = (
            "Cosine of each atom with its partner in a dictionary learned of the held-out half. Filled: beyond what "
            f"unrelated dictionaries give, after correction. The grey band holds the middle 95% of their means.{above}{cut}"
        )
    else:
        label = "Part of each atom in the score"
        others = told.targets[MOST_PANELS:]
        rest = f" Not shown here: {', '.join(others)}." if others else ""
        caption = (
            f"Part of each atom in the score, in the mean over {told.examples} held-out examples; bars are "
            f"{result.level:.0%} intervals. Filled: larger than of random atoms, after correction.{above}{cut}{rest}"
        )
    return Summary(
        answer=answer(result),
        plate=Plate(partial(_figure, result, picture), label, caption),
        marks=(_again(result), _parts(result) or _named(result), Mark("Replicated?", Standing.UNTESTED)),
        caveat="whether an atom means one thing to people, or what would happen without it.",
    )


def answer(result: DiscoveryResult) -> str:
    """Say in one sentence how many atoms are found again, and how many have a part of the first score, and no more."""
    count, stable = len(result), int(result.stable.sum())
    layer = result.layer or "the output"
    said = (
        f"Of {count} atoms of {layer}, {stable} {'is' if stable == 1 else 'are'} found again in other examples beyond chance"
        if stable
        else f"None of {count} atoms of {layer} is shown to be found again in other examples"
    )
    return f"{said}." if (told := result.importance) is None else f"{said}; {_part(result, told, 0)}."


def _part(result: DiscoveryResult, told: Importance, t: int) -> str:
    sure, score = _sure(result, told, t), f"a part in the score of “{told.targets[t]}”"
    if not sure:
        return f"none is shown to have {score}"
    most = max(sure, key=lambda atom: abs(float(told.part[t, atom])))
    side = "up" if told.part[t, most] > 0 else "down"
    return f"{len(sure)} {'has' if len(sure) == 1 else 'have'} {score}, most {result.name(most)} ({side})"


def _sure(result: DiscoveryResult, told: Importance, t: int) -> list[int]:
    """Return the atoms whose part of a score is significant after correction."""
    return [int(i) for i in (told.p[t] < 1 - result.level).nonzero()[:, 0]]


def shown_atom(result: DiscoveryResult) -> int:
    """Return the atom whose example stands above the figure.

    It is that of the largest significant part of the first score, or of the largest part where none is significant; the
    one that is best found again where no score was asked for.
    """
    if (told := result.importance) is None:
        return int(result.agreement.cosine.argmax())
    among: Sequence[int] = _sure(result, told, 0) or range(len(result))
    return max(among, key=lambda atom: abs(float(told.part[0, atom])))


def _again(result: DiscoveryResult) -> Mark:
    count, total = int(result.stable.sum()), len(result)
    return Mark("Found again?", Standing.of(count, total), f"{count or 'none'} of {total} in the other half.")


def _parts(result: DiscoveryResult) -> Mark | None:
    if (told := result.importance) is None:
        return None
    count = sum(len(_sure(result, told, t)) for t in range(len(told.targets)))
    total = told.p.numel()
    return Mark("Part beyond chance?", Standing.of(count, total), f"{count or 'none'} of {total}.")


def _named(result: DiscoveryResult) -> Mark:
    if (naming := result.naming) is None:
        return Mark("Named?", Standing.UNTESTED)
    count = int(naming.named.sum())
    return Mark("Named?", Standing.of(count, len(result)), f"{count or 'none'} of {len(result)} beyond chance.")


def _figure(result: DiscoveryResult, picture: Image.Image | None) -> "Figure":
    pictures = (picture,) if picture else ()
    names = [result.name(atom) for atom in range(len(result))]
    if (told := result.importance) is None:
        rows = zip(names, result.agreement.cosine.tolist(), result.stable.tolist(), strict=True)
        low, high = (float(result.agreement.chance.quantile(q)) for q in (0.025, 0.975))
        effects = {name: Effect(value, None, None, sure) for name, value, sure in rows}
        return draw_effects([EffectPanel("", effects, pictures, (low, high))], "cosine with its partner")
    panels = []
    for t, target in enumerate(told.targets[:MOST_PANELS]):
        sure = _sure(result, told, t)
        effects = {
            name: Effect(float(told.part[t, atom]), known(told.low[t, atom]), known(told.high[t, atom]), atom in sure)
            for atom, name in enumerate(names)
        }
        panels.append(EffectPanel(target, effects, pictures if t == 0 else ()))
    return draw_effects(panels, "part of the score")
