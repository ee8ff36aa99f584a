"""A dissection in one screen: how many units pick out a concept beyond chance, and how sure that is."""

import math
from functools import partial
from typing import TYPE_CHECKING

import torch

from probing.results.effect_panels import MOST_ROWS, Effect, EffectPanel, draw_effects
from probing.results.html_report import Mark, Plate, Standing, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from concepts.dissection.result import DissectionResult


def dissection_summary(result: "DissectionResult") -> Summary:
    """Return the first screen of a dissection."""
    caption = (
        f"IoU of the {len(_shown(result))} units of {len(result.unit)} that match a concept best. Filled: beyond what "
        "shuffled images give, after correction. The grey band ends at "
        f"{result.min_iou:g}, the published rule for a detector."
    )
    return Summary(
        answer=answer(result),
        plate=Plate(partial(_figure, result), "Units that match a concept best", caption),
        marks=(_beyond_chance(result), _held_out(result), Mark("Used?", Standing.UNTESTED)),
        caveat="what the network uses a unit for, or that a label is the right word for it.",
    )


def answer(result: "DissectionResult") -> str:
    """Say in one sentence how many units match a concept beyond chance, and how many of these are detectors, no more."""
    total = len(result.unit)
    sure = result.significant
    count, called = int(sure.sum()), int((sure & result.detector).sum())
    if bool(result.p_fdr.isnan().all()):
        return (
            f"{int(result.detector.sum())} of {total} units overlap with a concept by more than the published rule asks; "
            "whether chance gives as much was not tested."
        )
    if not count:
        return (
            f"None of {total} units is shown to match any concept more than shuffled images give; that does not prove that "
            "none does."
        )
    best = int(torch.where(sure, result.best_iou, -1.0).argmax())
    verb = "matches" if count == 1 else "match"
    return (
        f"{count} of {total} units {verb} a concept more than shuffled images give, {called or 'none'} by more than the "
        f"published rule asks; best is unit {int(result.unit[best])} of {_layer(result, best)}, “{_concept(result, best)}”."
    )


def _layer(result: "DissectionResult", row: int) -> str:
    return result.layers[int(result.layer_of[row])] or "the output"


def _concept(result: "DissectionResult", row: int) -> str:
    return result.concepts[int(result.best[row])]


def _beyond_chance(result: "DissectionResult") -> Mark:
    count, total = int(result.significant.sum()), int((~result.p_fdr.isnan()).sum())
    if not total:
        return Mark("Beyond chance?", Standing.UNTESTED)
    standing = Standing.of(count, len(result.unit))
    return Mark("Beyond chance?", standing, f"{count or 'none'} of {len(result.unit)} after correction.")


def _held_out(result: "DissectionResult") -> Mark:
    """Say for how many detectors both halves of the images choose the same concept."""
    detectors = result.detector
    count, total = int((detectors & result.same_choice).sum()), int(detectors.sum())
    if not total:
        return Mark("Halves agree?", Standing.UNTESTED, "no detector.")
    standing = Standing.of(count, total)
    return Mark("Halves agree?", standing, f"on {count or 'none'} of {total} detectors.")


def _shown(result: "DissectionResult") -> list[int]:
    """Return the units of highest IoU, those without any overlap left out."""
    order = torch.sort(result.best_iou, descending=True, stable=True).indices[:MOST_ROWS]
    return [int(row) for row in order if result.best_iou[row] > 0]


def _figure(result: "DissectionResult") -> "Figure":
    several = len(result.layers) > 1
    effects = {}
    for row in _shown(result):
        where = f"{_layer(result, row)} " if several else ""
        value = float(result.best_iou[row])
        assert not math.isnan(value)  # as it is more than 0
        name = f"{_concept(result, row)} ({where}{int(result.unit[row])})"
        effects[name] = Effect(value, None, None, bool(result.significant[row]))
    return draw_effects([EffectPanel("", effects, band=(0.0, result.min_iou))], "IoU with the concept, 0 to 1")
