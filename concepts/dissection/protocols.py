"""Three published ways to dissect a network, so that numbers are compared like with like."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from probing.core.errors import ProbingError


class DissectionError(ProbingError, ValueError):
    """Layers or images that can't be dissected."""


Union = Literal["category", "touched", "all"]


@dataclass(frozen=True)
class Protocol:
    """What the published procedures differ in.

    Attributes:
        q: share of a unit's values above its threshold.
        threshold: from the layer's `maps`, or from `upsampled` maps.
        anchors: centres of the cells in the input: of their receptive fields, or of equal tiles of the image.
        border: outside the outermost centres a map stays constant, or falls to zero within one cell.
        union: in which images a unit's area counts for a concept: those where the concept's `category` is labelled
            at all, those where the unit's own area `touched` a label of the category, or `all`.
    """

    q: float
    threshold: Literal["maps", "upsampled"] = "maps"
    anchors: Literal["receptive field", "tiles"] = "receptive field"
    border: Literal["edge", "zero"] = "edge"
    union: Union = "category"


PAPER = Protocol(0.005)
"""Bau et al. 2017, sec. 2."""
LITE = Protocol(0.005, anchors="tiles", union="touched")
"""NetDissect-Lite: maps are resized as pictures; images where a unit misses the category drop out of its union, which
inflates IoU."""
PNAS = Protocol(0.01, threshold="upsampled", border="zero", union="all")
"""The code of Bau et al. 2020: upsampling fades towards the border."""
PROTOCOLS: Mapping[str, Protocol] = {"paper": PAPER, "lite": LITE, "pnas": PNAS}
