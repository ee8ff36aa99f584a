"""What must be said beside the numbers of a dissection."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from concepts.dissection.label_tests import MOST_UNITS

if TYPE_CHECKING:
    from concepts.dissection.result import DissectionResult


def sentences(result: "DissectionResult") -> tuple[str, ...]:
    """Return the sentences that apply."""
    return (
        *_null(result),
        *_units(result),
        *_concepts(result),
        *_layers(result),
        *_scores(result),
    )


def _null(result: "DissectionResult") -> Iterator[str]:
    draws, units = result.null.iou.shape
    if not draws:
        yield "No images were shuffled: nothing says how many of the detectors are chance."
        return
    called, significant = int(result.detector.sum()), int(result.significant.sum())
    yield (
        f"The rule IoU > {result.min_iou:g} calls {called} of {units} units detectors, and {result.null_share:.1%} of "
        f"units where images are shuffled; {significant} units have more than shuffled images give (share of false ones "
        f"held to {result.level:.0%})."
    )
    tested = int((~result.p.isnan()).sum())
    if tested and 1 / (draws + 1) * tested > result.level * max(significant, 1):
        yield (
            f"With {draws} shuffles a p is at least {1 / (draws + 1):.2g}: of {tested} units tested, fewer than "
            f"{round(tested / (draws + 1) / result.level)} above chance can't be told from none. More draws could."
        )


def _units(result: "DissectionResult") -> Iterator[str]:
    told = (
        ("inactive", "have their lowest value as threshold: they are dead, or active less often than q"),
        ("binary", "have two values only, so that the threshold does not cut off the share q"),
        ("degenerate", "never exceed their threshold: their masks are empty and their IoU is 0"),
    )  # fmt: skip
    for name, what in told:
        if count := int(getattr(result, name).sum()):
            yield f"{count} of {len(result.unit)} units {what}."


def _concepts(result: "DissectionResult") -> Iterator[str]:
    absent = [
        name for name, area in zip(result.concepts, result.label_area, strict=True) if not area
    ]
    if absent:
        more = ", …" if len(absent) > 5 else ""
        yield f"{len(absent)} of {len(result.concepts)} concepts are in none of the images: {', '.join(absent[:5])}{more}."
    out_of_reach = (result.ceiling.max(0).values <= result.min_iou) & (result.label_area > 0)
    if out_of_reach.any():
        names = [result.concepts[i] for i in out_of_reach.nonzero()[:, 0].tolist()]
        more = ", …" if len(names) > 5 else ""
        yield (
            f"{len(names)} concepts cover too much or too little of the images for any unit's IoU to exceed "
            f"{result.min_iou:g}, whatever it detects: {', '.join(names[:5])}{more}."
        )


def _layers(result: "DissectionResult") -> Iterator[str]:
    for layer, anchor in zip(result.layers, result.anchors, strict=True):
        if anchor == "tiles":
            yield f"At {layer!r} the network does not tell where cells look: they are taken to tile the image."
    for i, layer in enumerate(result.layers):
        own = result.detector & (result.layer_of == i)
        if own.any() and torch.nanmean(result.held_out[own]) < result.best_iou[own].mean() / 2:
            yield (
                f"At {layer!r} the detectors' IoU falls from {float(result.best_iou[own].mean()):.3f} to "
                f"{float(result.held_out[own].mean()):.3f} on images that their concept was not chosen on."
            )


def _scores(result: "DissectionResult") -> Iterator[str]:
    for test in result.label_tests:
        if test.units and not test.passed:
            which = [
                name
                for name, falls in (("missing", test.missing_falls), ("extra", test.extra_falls))
                if falls < MOST_UNITS
            ]
            yield (
                f"The score {test.score!r} does not notice {' or '.join(which)} labels in at least {MOST_UNITS:.0%} of "
                f"{test.units} units: it falls in {test.missing_falls:.0%} and {test.extra_falls:.0%} of them."
            )
