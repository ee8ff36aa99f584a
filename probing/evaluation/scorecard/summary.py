"""A scorecard in one screen: which methods are faithful to this network, and how sure that is."""

import math
from functools import partial
from typing import TYPE_CHECKING

from probing.evaluation.scorecard.criteria import DESIDERATA, EXPECTED, third
from probing.evaluation.scorecard.scorecard import Scorecard
from probing.results.effect_panels import MOST_ROWS, Effect, EffectPanel, draw_effects
from probing.results.html_report import Mark, Plate, Standing, Summary
from probing.results.tables import known

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 4
_FIDELITY = DESIDERATA.index("fidelity")


def scorecard_summary(card: Scorecard) -> Summary | None:
    """Return the first screen of a scorecard, which is about fidelity; None where nothing of it was measured."""
    measured = _measured(card)
    if not measured:
        return None
    count = len(measured)
    more = f" Shown are {MOST_ROWS} of {count}." if count > MOST_ROWS else ""
    caption = (
        "Standing in fidelity among the methods of this table, the mean of ranks from 0 (worst) to 1 (best); bars hold 95% "
        f"of bootstrap draws of inputs. The grey band is the best third; filled: the whole bar lies in it.{more}"
    )
    thirds = [(third(float(card.low[r, _FIDELITY])), third(float(card.high[r, _FIDELITY]))) for r in measured]
    told = sum(low is not None and low == high for low, high in thirds)
    expected = sum(card.mark(r, _FIDELITY) == EXPECTED[card.rows[r].family][_FIDELITY] for r in measured)
    return Summary(
        answer=answer(card),
        plate=Plate(partial(_figure, card), "Fidelity of each method", caption),
        marks=(
            Mark("Ranks sure?", Standing.of(told, count), f"{told or 'none'} of {count} within one third."),
            Mark("As expected?", Standing.of(expected, count), f"{expected or 'none'} of {count} methods."),
            Mark("Replicated?", Standing.UNTESTED),
        ),
        caveat="how other methods, inputs or models fare, or whether people understand the explanations.",
    )


def _measured(card: Scorecard) -> list[int]:
    return [r for r in range(len(card.rows)) if not math.isnan(float(card.standing[r, _FIDELITY]))]


def surely_best(card: Scorecard) -> list[str]:
    """Return the methods whose whole interval of fidelity lies in the best third."""
    return [card.rows[r].name for r in _measured(card) if third(float(card.low[r, _FIDELITY])) == "+"]


def answer(card: Scorecard) -> str:
    """Say in one sentence which methods rank first in fidelity, and whose intervals lie in the best third."""
    measured, sure = _measured(card), surely_best(card)
    most = max(float(card.standing[r, _FIDELITY]) for r in measured)
    first = [card.rows[r].name for r in measured if float(card.standing[r, _FIDELITY]) == most]
    rank = "ranks" if len(first) == 1 else "rank"
    ranks = f"Of {len(measured)} explanations of this model, {' and '.join(first)} {rank} first in fidelity"
    if not sure:
        return f"{ranks}; none lies in the best third for sure."
    return f"{ranks}; for sure in the best third: {', '.join(sure[:_NAMED])}{_more(sure)}."


def _more(names: list[str]) -> str:
    return f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""


def _figure(card: Scorecard) -> "Figure":
    best = surely_best(card)
    effects = {}
    for r in _measured(card):
        value, low, high = (known(t[r, _FIDELITY]) for t in (card.standing, card.low, card.high))
        assert value is not None  # as measured ones have it
        effects[card.rows[r].name] = Effect(value, low, high, card.rows[r].name in best)
    return draw_effects([EffectPanel("", effects, band=(2 / 3, 1.0))], "standing in fidelity, 0 to 1")
