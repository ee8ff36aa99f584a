"""What erasing an attribute shows: whether it can be read from a layer, and whether the network uses it there."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from probing.results.figures import COLUMN_WIDTH, FAINT, INK, PALETTE, new_figure, style
from probing.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ErasureResult(Result):
    """An attribute erased from layers: what linear readers and the network's scores lose, beside random directions.

    All of it is of held-out examples, on which no eraser was fitted. `slope` is by how much a score differs with the
    attribute: between examples that have a value and those that have not, or per unit of a continuous attribute.

    Attributes:
        layers: where the attribute was erased, one at a time, or (`sequence`) with all layers before.
        sequence: whether a layer's row is of the attribute erased there and in all layers before it.
        targets: names of the scores.
        columns: values of the attribute that are told from the others; of two values the second alone.
        rank: directions removed at each layer.
        readable: how well a linear reader finds the attribute: balanced accuracy (0-1), or R² of a continuous one.
        readable_after: the same of a reader fitted anew on erased rows.
        chance: what a reader without information gets.
        slope: of each score on each column, in score units.
        slope_low, slope_high: its interval over clusters.
        slope_after: with the attribute erased at a layer.
        slope_control: with random directions removed, as many: the mean over draws.
        used: by how much more erasing takes of the slope than random directions do, in the slope's own sign.
        used_low, used_high: its interval over clusters, the directions drawn taken as they are.
        used_p: of there being no slope, or erasing taking no more of it than random directions: the larger p of the two,
            corrected over layers, targets and columns (Holm).
        as_much: share of the random draws that take as much of the slope, or more (0-1).
        moved: mean size of the change of a score, in score units.
        moved_control: with random directions removed, the mean over draws.
        accuracy: of the whole network (0-1); NaN without labels.
        lost: by how much accuracy falls more than with random directions removed; negative where it falls less.
        lost_low, lost_high: its interval over clusters.
        fitted, judged: clusters that erasers were fitted on, and held-out ones.
        controls: draws of random directions.
        level: of the intervals.
    """

    layers: tuple[str, ...]
    targets: tuple[str, ...]
    columns: tuple[str, ...]
    slope: Float[Tensor, "targets columns"]
    slope_low: Float[Tensor, "targets columns"]
    slope_high: Float[Tensor, "targets columns"]
    sequence: bool
    level: float
    readable: Float[Tensor, " layers"]
    readable_after: Float[Tensor, " layers"]
    chance: float
    rank: tuple[int, ...]
    slope_after: Float[Tensor, "layers targets columns"]
    slope_control: Float[Tensor, "layers targets columns"]
    controls: int
    used: Float[Tensor, "layers targets columns"]
    used_low: Float[Tensor, "layers targets columns"]
    used_high: Float[Tensor, "layers targets columns"]
    used_p: Float[Tensor, "layers targets columns"]
    as_much: Float[Tensor, "layers targets columns"]
    fitted: int
    judged: int
    moved: Float[Tensor, "layers targets"]
    moved_control: Float[Tensor, "layers targets"]
    accuracy: float
    lost: Float[Tensor, " layers"]
    lost_low: Float[Tensor, " layers"]
    lost_high: Float[Tensor, " layers"]

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per layer, target and column."""
        import pandas as pd

        return pd.DataFrame(
            {
                "layer": layer,
                "target": target,
                "value": column,
                "readable": float(self.readable[i]),
                "readable_after": float(self.readable_after[i]),
                "slope": float(self.slope[t, c]),
                "slope_after": float(self.slope_after[i, t, c]),
                "slope_control": float(self.slope_control[i, t, c]),
                "used": float(self.used[i, t, c]),
                "used_low": float(self.used_low[i, t, c]),
                "used_high": float(self.used_high[i, t, c]),
                "used_p": float(self.used_p[i, t, c]),
                "as_much": float(self.as_much[i, t, c]),
                "moved": float(self.moved[i, t]),
                "moved_control": float(self.moved_control[i, t]),
                "accuracy_lost": float(self.lost[i]),
            }
            for i, layer in enumerate(self.layers)
            for t, target in enumerate(self.targets)
            for c, column in enumerate(self.columns)
        )

    def sentences(self) -> tuple[str, ...]:
        """Return what must be said beside the numbers."""
        said = [
            f"Erasers were fitted on {self.fitted} clusters and judged on {self.judged} others, beside {self.controls} "
            "draws of as many random directions.",
            "Erasing takes along whatever goes with the attribute in these examples; matched examples leave least of that.",
            "What no linear reader finds after erasure, a network that is not linear may still use; and what erasing takes "
            "away, later layers of the network may have made up for in training that they can't here.",
        ]
        if left := [layer for i, layer in enumerate(self.layers) if self._is_left(i)]:
            said.append(
                f"At {', '.join(left)} a reader fitted anew still finds the attribute on held-out examples: there are too "
                "few examples for so many features, and what the network loses may be more than is shown."
            )
        return tuple(said)

    def _is_left(self, i: int) -> bool:
        before, after = float(self.readable[i]) - self.chance, float(self.readable_after[i]) - self.chance
        return not math.isnan(after) and before > 0 and after > before / 3

    def plot(self) -> "Figure":
        """Draw, for the first column, the slope of each score before and after, layer by layer."""
        with style():
            figure = new_figure(max(COLUMN_WIDTH, 0.9 + 0.55 * len(self.layers)), 0.9 + 1.25 * len(self.targets))
            panels = figure.subplots(len(self.targets), 1, squeeze=False, sharex=True)[:, 0]
            places = list(range(len(self.layers)))
            for t, (panel, target) in enumerate(zip(panels, self.targets, strict=True)):
                panel.axhspan(float(self.slope_low[t, 0]), float(self.slope_high[t, 0]), color=FAINT, alpha=0.3, lw=0)
                panel.axhline(float(self.slope[t, 0]), color=INK, lw=0.7, ls=(0, (4, 3)), label="whole network")
                panel.axhline(0, color=FAINT, lw=0.5)
                panel.plot(places, self.slope_control[:, t, 0], "s-", color=FAINT, label="random directions removed")
                panel.plot(places, self.slope_after[:, t, 0], "o-", color=PALETTE[0], label="erased")
                panel.set_title(target)
            panels[-1].set_xticks(places, self.layers, rotation=30, ha="right")
            figure.supylabel(f"difference with {self.columns[0]}", fontsize=8)
            handles, names = panels[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper center", ncols=2)
        return figure
