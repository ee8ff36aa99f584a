"""What local and network-level explanations say of the same concepts, side by side, and where they part."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.results.result import Result
from probing.statistics.hypothesis_tests import Correlation, spearman

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

HIDDEN = "found by the network-level reading, hidden in the heat map"
CLAIMED = "pointed to by the heat map, found by no network-level reading"
REVERSED = "the heat map points the other way"
SWAP, OWN, TCAV, EFFECT, WEIGHT, ABLATED = (
    "swap",
    "concept attribution",
    "tcav",
    "effect",
    "units (weight)",
    "units (ablation)",
)
"""What is measured besides heat maps, which go by the names of their methods."""
NETWORK = (TCAV, EFFECT)

Cells = Float[Tensor, "measures concepts targets"]


@dataclass(frozen=True)
class Parting:
    """A concept and a class of which a heat map and the network-level readings say different things."""

    kind: str
    concept: str
    target: str
    heat_map: str
    pairs: tuple[int, ...]
    """The concept's pairs that show it most, by their place among all its pairs."""


@dataclass(frozen=True)
class Comparison(Result):
    """Measures of concepts for classes. A value above `null` says that the concept raises the class's score.

    Measures have different units; they are compared by rank, and by whether each is significant.
    """

    layer: str
    measures: tuple[str, ...]
    heat_maps: tuple[str, ...]
    """Which of the measures are heat maps: the evidence inside the concept's pixels beyond what their area gives."""
    concepts: tuple[str, ...]
    targets: tuple[str, ...]
    level: float

    value: Cells
    """NaN where nothing was asked for."""
    low: Cells
    high: Cells
    null: Float[Tensor, " measures"]
    """What a measure is where the concept does nothing."""
    p_corrected: Cells
    """Against the null, corrected over concepts and targets (Holm; TCAV and effect: step-down maximum, and Bonferroni
    over concepts)."""
    by_pair: Float[Tensor, "measures concepts targets pairs"]
    """Values of single pairs; NaN where a measure has none, and for pairs that were not looked at."""
    pairs: tuple[tuple[int, ...], ...]
    """For each concept, which of its pairs the last axis of `by_pair` stands for."""
    remainder: Float[Tensor, "concepts targets pairs"]
    """What of each pair's swap went along none of the concepts' directions at the layer."""
    gap: Float[Tensor, "concepts targets pairs"]
    """What the integral missed of it; concept attributions, remainder and gap add up to the swap."""
    others: Float[Tensor, "concepts targets pairs"]
    """What went along the directions of the other concepts."""
    area: Float[Tensor, " concepts"]
    """Mean share of the pixels that are the concept's."""

    @property
    def significant(self) -> Bool[Tensor, "measures concepts targets"]:
        """Whether a measure is significant, after correction."""
        return self.p_corrected <= 1 - self.level

    def agreement(self, first: str, second: str) -> Correlation:
        """Return the rank correlation of two measures over concepts and classes, with its interval."""
        a, b = (self.value[self.measures.index(name)].flatten() for name in (first, second))
        known = ~(a.isnan() | b.isnan())
        if int(known.sum()) < 2:
            return Correlation(math.nan, -1.0, 1.0, int(known.sum()))
        return spearman(a[known], b[known], self.level)

    def partings(self, most: int = 3) -> tuple[Parting, ...]:
        """Return where heat maps and network-level readings part, with the pairs that show it.

        A concept is found for a class if swapping it moves the score and TCAV or the effect is significant, each after
        correction; a heat map misses it if its evidence in the concept's pixels is not significantly more than what
        their area gives. The reverse needs a significant heat map, and neither swap, TCAV nor effect.

        Args:
            most: pairs named for each.
        """
        found = []
        for heat_map in self.heat_maps:
            for c, concept in enumerate(self.concepts):
                for t, target in enumerate(self.targets):
                    kind = self._kind(heat_map, c, t)
                    if kind:
                        shown = self._shown(kind, heat_map, c, t, most)
                        found.append(Parting(kind, concept, target, heat_map, shown))
        return tuple(found)

    def _kind(self, heat_map: str, c: int, t: int) -> str:
        significant = {name: bool(self.significant[i, c, t]) for i, name in enumerate(self.measures)}
        network = any(significant.get(name, False) for name in NETWORK)
        if self.value[self.measures.index(heat_map), c, t].isnan():
            return ""
        if significant[SWAP] and network and not significant[heat_map]:
            return HIDDEN
        if significant[heat_map] and not significant[SWAP] and not network:
            return CLAIMED
        opposite = self._excess(heat_map, c, t) * self._excess(SWAP, c, t) < 0
        return REVERSED if significant[heat_map] and significant[SWAP] and network and opposite else ""

    def _excess(self, name: str, c: int, t: int) -> float:
        i = self.measures.index(name)
        return float(self.value[i, c, t] - self.null[i])

    def _shown(self, kind: str, heat_map: str, c: int, t: int, most: int) -> tuple[int, ...]:
        """Return the pairs with the largest swap (the largest evidence, where the map alone points there)."""
        by = heat_map if kind == CLAIMED else SWAP
        sizes = self.by_pair[self.measures.index(by), c, t]
        looked_at = ~self.by_pair[self.measures.index(heat_map), c, t].isnan()
        sizes = torch.where(looked_at & ~sizes.isnan(), sizes.abs(), -1)
        order = sizes.argsort(descending=True, stable=True)[:most]
        return tuple(self.pairs[c][i] for i in order.tolist() if sizes[i] >= 0)

    def sentences(self) -> tuple[str, ...]:
        """Return where they part, in plain words."""
        return tuple(
            f"{p.concept} for {p.target}: {p.kind} ({p.heat_map}; swap "
            f"{self._value_of(SWAP, p):+.2f}, TCAV {self._value_of(TCAV, p):.2f}, evidence beyond area "
            f"{self._value_of(p.heat_map, p):+.2f})."
            for p in self.partings()
        )

    def _value_of(self, name: str, parting: Parting) -> float:
        at = self.concepts.index(parting.concept), self.targets.index(parting.target)
        return float(self.value[self.measures.index(name)][at])

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per measure, concept and class."""
        import pandas as pd

        names = ("value", "low", "high", "p_corrected")
        return pd.DataFrame(
            {"measure": measure, "concept": concept, "target": target}
            | {name: float(getattr(self, name)[i, c, t]) for name in names}
            | {"null": float(self.null[i]), "significant": bool(self.significant[i, c, t])}
            for i, measure in enumerate(self.measures)
            for c, concept in enumerate(self.concepts)
            for t, target in enumerate(self.targets)
        )

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the rank agreement of every two measures; a star marks an interval that leaves out zero."""
        from probing.results.figures import (
            DIVERGING,
            FULL_WIDTH,
            ON_DARK,
            ON_LIGHT,
            new_figure,
            style,
        )

        if ax is None:
            side = min(FULL_WIDTH, 1.6 + 0.42 * len(self.measures))
            with style():
                return self.plot(new_figure(side, side - 0.4).add_subplot())
        names = [m for m, rows in zip(self.measures, self.value, strict=True) if not rows.isnan().all()]
        if not names:
            ax.text(0.5, 0.5, "nothing was measured", ha="center")
            ax.set_axis_off()
            return ax
        table = [[self.agreement(a, b) for b in names] for a in names]
        ax.imshow([[cell.r for cell in row] for row in table], vmin=-1, vmax=1, cmap=DIVERGING)
        for i, row in enumerate(table):
            for j, cell in enumerate(row):
                if i == j or math.isnan(cell.r):
                    continue
                star = "*" if cell.low > 0 or cell.high < 0 else ""
                colour = ON_DARK if abs(cell.r) > 0.6 else ON_LIGHT
                text = f"{cell.r:.2f}{star}".replace("-", "\N{MINUS SIGN}")
                ax.text(j, i, text, ha="center", va="center", fontsize=6, color=colour)
        ax.set_xticks(range(len(names)), names, rotation=40, ha="right")
        ax.set_yticks(range(len(names)), names)
        return ax


def padded(rows: Float[Tensor, "*cells n"], index: Int[Tensor, " n"], width: int) -> Float[Tensor, "*cells width"]:
    """Return rows spread over a longer last axis, NaN elsewhere."""
    found = torch.full((*rows.shape[:-1], width), torch.nan, dtype=torch.float64)
    found[..., index] = rows.double()
    return found
