"""What a correction did to a network, on data that neither the network's faults nor the correction were fitted on."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.results.figures import COLUMN_WIDTH, FAINT, INK, PALETTE, new_figure, style
from probing.results.html_report import interval, number
from probing.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MEND, LEAVE, COSTS, UNKNOWN = "mend", "do not mend", "mends at a cost", "no labels"


@dataclass(frozen=True)
class MendingResult(Result):
    """A network before and after a correction, on held-out clusters; changes are paired, with intervals over clusters.

    Attributes:
        by: the correction.
        layer: that was corrected.
        attribute: that the network is to lean less on.
        groups: labels with a value of the attribute; none without labels.
        count: held-out examples in each.
        before, after: accuracy of each (0-1).
        change, change_low, change_high: of it.
        worst: the group that the network classified worst among the examples that were fitted on; -1 without labels.
        gap, gap_low, gap_high: by how much better the others of the worst group's class were classified, before; NaN where
            it is its whole class.
        overall_before, overall_after: accuracy of all held-out examples (0-1); NaN without labels.
        overall_change, overall_low, overall_high: of it.
        kept: share of held-out examples whose top class is as before (0-1).
        attributes: of matched inputs that were swapped, before and after.
        targets: names of the scores.
        swap_before, swap_after: mean change of a score from negatives to positives, in standard deviations of that score
            over held-out examples, since a layer fitted anew may have another scale.
        swap_change, swap_low, swap_high: of their sizes' difference pair by pair, in the sign of the swap before: below
            0 where less moves.
        flips_before, flips_after: share of pairs whose sides have different top classes (0-1).
        flips_change, flips_low, flips_high: of it.
        fitted, judged: clusters that the correction was fitted on, and held-out ones.
        level: of the intervals.
    """

    by: str
    layer: str
    attribute: str
    groups: tuple[str, ...]
    count: Int[Tensor, " groups"]
    before: Float[Tensor, " groups"]
    after: Float[Tensor, " groups"]
    change: Float[Tensor, " groups"]
    change_low: Float[Tensor, " groups"]
    change_high: Float[Tensor, " groups"]
    worst: int
    overall_before: float
    overall_after: float
    overall_change: float
    overall_low: float
    overall_high: float
    kept: float
    attributes: tuple[str, ...]
    targets: tuple[str, ...]
    swap_before: Float[Tensor, "attributes targets"]
    swap_after: Float[Tensor, "attributes targets"]
    swap_change: Float[Tensor, "attributes targets"]
    swap_low: Float[Tensor, "attributes targets"]
    swap_high: Float[Tensor, "attributes targets"]
    flips_before: Float[Tensor, " attributes"]
    flips_after: Float[Tensor, " attributes"]
    flips_change: Float[Tensor, " attributes"]
    flips_low: Float[Tensor, " attributes"]
    flips_high: Float[Tensor, " attributes"]
    fitted: int
    judged: int
    level: float
    gap: float = math.nan
    gap_low: float = math.nan
    gap_high: float = math.nan

    @property
    def verdict(self) -> str:
        """`mend` where the network is shown to lean on the attribute, the worst group to gain, and accuracy not to fall.

        It is shown to lean where the worst group was classified worse, before, than the others of its class: a layer that is
        fitted anew may gain where nothing leaned on the attribute, and that mends something else.
        """
        if self.worst < 0:
            return UNKNOWN
        if self.gap_low <= 0 or not float(self.change_low[self.worst]) > 0:
            return LEAVE
        return COSTS if self.overall_high < 0 else MEND

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per quantity: accuracy of groups and of all, swaps and flips."""
        import pandas as pd

        ends = (self.change, self.change_low, self.change_high)
        rows = [
            ("accuracy", name, *(float(t[g]) for t in (self.before, self.after, *ends)))
            for g, name in enumerate(self.groups)
        ]
        overall = (self.overall_before, self.overall_after, self.overall_change, self.overall_low, self.overall_high)
        rows.append(("accuracy", "all", *overall))
        for a, attribute in enumerate(self.attributes):
            parts = (self.flips_before, self.flips_after, self.flips_change, self.flips_low, self.flips_high)
            rows.append(("flips", attribute, *(float(t[a]) for t in parts)))
            for t, target in enumerate(self.targets):
                parts = (self.swap_before, self.swap_after, self.swap_change, self.swap_low, self.swap_high)
                rows.append(("swap", f"{attribute}: {target}", *(float(p[a, t]) for p in parts)))
        return pd.DataFrame(rows, columns=["what", "of", "before", "after", "change", "low", "high"])

    def sentences(self) -> tuple[str, ...]:
        """Return what the correction did, and what must be said beside it."""
        told = f"Fitted on {self.fitted} clusters and judged on {self.judged} others that nothing was fitted on."
        return (f"{self.verdict.capitalize()}: {self._accuracy()}", *self._swaps(), told)

    def _accuracy(self) -> str:
        if self.worst < 0:
            return f"what accuracy it costs is not known; {self.kept:.0%} of held-out examples keep their top class."
        change, low, high = (float(t[self.worst]) for t in (self.change, self.change_low, self.change_high))
        gain = f"{number(change, sign=True)} ({interval(low, high)})"
        cost = f"{number(self.overall_change, sign=True)} ({interval(self.overall_low, self.overall_high)})"
        lean = f"{number(self.gap, sign=True)} ({interval(self.gap_low, self.gap_high)})"
        return (
            f"others of its class were classified better than the group that was worst before, {self.groups[self.worst]}, "
            f"by {lean}; by {self.by} its accuracy changes by {gain}, that of all by {cost}."
        )

    def _swaps(self) -> list[str]:
        return [
            f"Swapping {name} changes the top class of {float(self.flips_after[a]):.0%} of pairs, before "
            f"{float(self.flips_before[a]):.0%} (change {interval(float(self.flips_low[a]), float(self.flips_high[a]))})."
            for a, name in enumerate(self.attributes)
        ]

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the change of each group's accuracy, of all, and of flips under swaps, with intervals."""
        table = self.to_pandas()
        table = table[table["what"] != "swap"].reset_index(drop=True)
        if ax is None:
            with style():
                return self.plot(new_figure(COLUMN_WIDTH, 0.8 + 0.22 * len(table)).add_subplot())
        ax.axvline(0, color=FAINT, lw=0.7)
        for y, row in table.iterrows():
            if not math.isnan(row["low"]):
                ax.plot([row["low"], row["high"]], [y, y], color=INK, lw=0.8)
            ax.plot(row["change"], y, "o", color=PALETTE[row["what"] == "flips"], ms=4)
        names = [f"{w}: {of}" for w, of in zip(table["what"], table["of"], strict=True)]
        ax.set_yticks(range(len(names)), names)
        ax.set(xlabel=f"change by {self.by}")
        ax.invert_yaxis()
        return ax


def paired(before: Float[Tensor, "n *cells"], after: Float[Tensor, "n *cells"]) -> Float[Tensor, "n *cells"]:
    """Return by how much sizes change, in the sign of the mean before."""
    return (after - before) * torch.where(before.mean(0) < 0, -1.0, 1.0)
