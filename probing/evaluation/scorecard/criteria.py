"""What a scorecard measures, for which desideratum of Swartout & Moore (1993, sec. 2), and what is expected of it."""

import math
from dataclasses import dataclass
from typing import Literal

from probing.attribution.base import Family
from probing.evaluation.base import Better

Mark = Literal["+", "0", "-"]
DESIDERATA = ("fidelity", "understandability", "sufficiency", "low overhead", "efficiency")
"""In the order of the table of L. Rieger's lecture *Explanation techniques for neural networks* (DTU Compute)."""
EXPECTED: dict[Family, tuple[Mark, ...]] = {
    "backprop": ("+", "-", "0", "+", "+"),
    "local": ("0", "+", "0", "+", "-"),
    "network": ("+", "+", "-", "-", "0"),
}
"""That lecture's opinion of backpropagation, of local models such as LIME, and of what reads whole networks."""


@dataclass(frozen=True)
class Quantity:
    """Something that is measured of every method that it applies to, and which way it counts.

    Attributes:
        desideratum: that it belongs to.
        title: in a table.
        better: which values are good.
        what: it is, in a sentence.
        range: of its values, beyond which no interval goes.
    """

    desideratum: str
    title: str
    better: Better
    what: str
    range: tuple[float, float] = (0.0, math.inf)


QUANTITIES: dict[str, Quantity] = {
    "abpc": Quantity(
        "fidelity",
        "area between curves",
        "higher",
        "mean fall of the score when what the map values most goes first, less that when it goes last; in score units",
        (-math.inf, math.inf),
    ),
    "effects": Quantity(
        "fidelity",
        "predicted vs true effect",
        "higher",
        "correlation of the change of the score that the explanation predicts with the true one: for maps when random"
        " patches go (sensitivity-n), for concepts when the layer moves along each of them",
        (-1.0, 1.0),
    ),
    "randomised": Quantity(
        "fidelity",
        "likeness, random weights",
        "lower",
        "size of the signed rank correlation with maps of the network with all parameters drawn anew",
        (0.0, 1.0),
    ),
    "gap": Quantity(
        "fidelity",
        "completeness gap",
        "lower",
        "distance of the map's sum from the score's difference to the baseline, as a share of it",
    ),
    "parts": Quantity(
        "understandability",
        "parts to read",
        "lower",
        "exp of the entropy of sizes over pixels, cells, segments, or concepts: how many things there are to read",
    ),
    "bytes": Quantity("understandability", "bytes of the picture", "lower", "size of the map as a PNG of 8 bits"),
    "on_object": Quantity(
        "understandability",
        "energy on the object",
        "higher",
        "share of the map's positive values inside the mask",
        (0.0, 1.0),
    ),
    "sufficient": Quantity(
        "sufficiency",
        "sufficient share",
        "lower",
        "smallest share of patches, those valued most first, that brings back nine tenths of the class's probability",
        (0.0, 1.0),
    ),
    "questions": Quantity(
        "sufficiency", "questions answered", "higher", "of the eight fixed questions, those to which it returns an answer"
    ),
    "settings": Quantity("low overhead", "settings", "lower", "hyperparameters that can be tuned"),
    "images": Quantity("low overhead", "further images", "lower", "images that it needs besides the one explained"),
    "labels": Quantity(
        "low overhead", "named images", "lower", "of the further images, those that must be named or outlined"
    ),
    "constraints": Quantity(
        "low overhead",
        "demands on the network",
        "lower",
        "gradients; access to a layer; access to the gates, or a head of a certain form: one each",
    ),
    "passes": Quantity("efficiency", "passes", "lower", "inputs passed forward and backward for one explanation"),
    "time": Quantity(
        "efficiency", "time, forward passes", "lower", "CPU time of one explanation over that of one forward pass"
    ),
    "memory": Quantity("efficiency", "memory, MB", "lower", "growth of memory while one explanation is made"),
}

QUESTIONS = (
    "Why this class?",
    "Why not that one?",
    "Which parts of the input would change the decision?",
    "What does a unit respond to?",
    "Where in the network is a concept?",
    "Does the model use a concept for a class, in general?",
    "Is the explanation caused by what was learned?",
    "How certain is it?",
)
"""Answered if what a method itself returns holds the answer; what other checks here find out about it does not count."""


def third(standing: float) -> Mark | None:
    """Return `+` for the upper third of 0 to 1, `-` for the lower one, `0` between; None for NaN."""
    if standing != standing:  # noqa: PLR0124 (NaN)
        return None
    return "+" if standing >= 2 / 3 else "-" if standing <= 1 / 3 else "0"
