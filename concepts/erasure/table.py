"""The table of what is read, used and moved, as it is saved, and where its columns part."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probing.results.figures import DIVERGING, FULL_WIDTH, INK, RULE, new_figure, style
from probing.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

USED = "used"
UNUSED = "read, not shown to be used"
ELSEWHERE = "moves, not shown to pass here"
UNPREDICTED = "used, not predicted"
REVERSED = "predicted the other way"
EMPTY = "predicted, not shown to move"
QUIET = "not shown to move"
KINDS = (USED, UNPREDICTED, REVERSED, ELSEWHERE, UNUSED, EMPTY, QUIET)
"""What the columns say together of an attribute at a layer for a score."""

Cells = Float[Tensor, "attributes layers targets"]


@dataclass(frozen=True)
class ReadUsedMovedResult(Result):
    """Attributes at layers: whether they are read, carried, needed, predicted to move scores, and move them.

    All of it but `predicted` is of held-out pairs. All numbers but `error` are in score units and of the swap from
    negatives to positives. Each p is corrected over all attributes, layers and scores of its column, not over columns.

    Attributes:
        attributes: what the pairs differ in.
        layers: where it was read, put over and erased, one at a time.
        targets: names of the scores.
        error: of a ridge classifier of positives against negatives (0-1).
        error_low, error_high: its interval over clusters.
        read_p: of erring as by chance, 1/2; by relabelling clusters.
        carried: what the attribute's directions of the layer change, put over from positives into negatives' passes.
        carried_low, carried_high: its interval over clusters, the fitted directions taken as they are.
        carried_control: the same of random directions, in the mean over draws.
        carried_p: of no swap, or of carrying no more of it than random directions do: the larger p of the two.
        needed: what goes of the swap when the attribute's directions are erased in both passes.
        needed_low, needed_high: its interval over clusters, the fitted directions taken as they are.
        needed_control: the same of random directions, in the mean over draws.
        needed_p: of no swap, or of erasing taking no more of it than random directions: the larger p of the two.
        predicted: the gradient times the mean difference of other clusters, in the mean over inputs.
        predicted_low, predicted_high: its interval, by a bootstrap of clusters and inputs.
        predicted_p: of no effect, by relabelling clusters.
        moved: the measured swap.
        moved_low, moved_high: its interval over clusters.
        moved_p: of none.
        fitted, judged: clusters of each attribute that were fitted on, and held-out ones.
        controls: draws of random directions.
        level: of the intervals; a p below 1 - level is called evidence.
    """

    attributes: tuple[str, ...]
    layers: tuple[str, ...]
    targets: tuple[str, ...]
    fitted: tuple[int, ...]
    judged: tuple[int, ...]
    controls: int
    level: float

    error: Float[Tensor, "attributes layers"]
    error_low: Float[Tensor, "attributes layers"]
    error_high: Float[Tensor, "attributes layers"]
    read_p: Float[Tensor, "attributes layers"]
    carried: Cells
    carried_low: Cells
    carried_high: Cells
    carried_control: Cells
    carried_p: Cells
    needed: Cells
    needed_low: Cells
    needed_high: Cells
    needed_control: Cells
    needed_p: Cells
    predicted: Cells
    predicted_low: Cells
    predicted_high: Cells
    predicted_p: Cells
    moved: Float[Tensor, "attributes targets"]
    moved_low: Float[Tensor, "attributes targets"]
    moved_high: Float[Tensor, "attributes targets"]
    moved_p: Float[Tensor, "attributes targets"]

    @property
    def share(self) -> Cells:
        """What is carried over the swap; NaN where the swap's interval holds zero."""
        told = (self.moved_low > 0) | (self.moved_high < 0)
        return torch.where(told, 1.0, torch.nan)[:, None] * self.carried / self.moved[:, None]

    def shown(self, column: str) -> Bool[Tensor, "attributes layers targets"]:
        """Return where there is evidence of a column: `read`, `carried`, `needed`, `predicted` or `moved`."""
        p: Tensor = getattr(self, f"{column}_p")
        wide = p[:, :, None] if column == "read" else p[:, None] if column == "moved" else p
        return (wide < 1 - self.level).expand(self.carried.shape)

    def says(self, attribute: int, layer: int, target: int) -> str:
        """Return what the columns say together, one of `KINDS`."""
        at = (attribute, layer, target)
        read, carried, needed, predicted, moved = (
            bool(self.shown(column)[at]) for column in ("read", "carried", "needed", "predicted", "moved")
        )
        if not moved:
            return EMPTY if predicted else UNUSED if read else QUIET
        if predicted and self.predicted[at] * self.moved[attribute, target] < 0:
            return REVERSED
        if carried or needed:
            return USED if predicted else UNPREDICTED
        return ELSEWHERE

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per attribute, layer and target."""
        import pandas as pd

        ends = ("", "_low", "_high", "_p")
        rows = []
        for a, attribute in enumerate(self.attributes):
            for i, layer in enumerate(self.layers):
                for t, target in enumerate(self.targets):
                    row: dict[str, object] = {"attribute": attribute, "layer": layer, "target": target}
                    row |= {f"error{e}": float(getattr(self, f"error{e}")[a, i]) for e in ends[:3]}
                    row["read_p"] = float(self.read_p[a, i])
                    for column in ("carried", "needed", "predicted"):
                        row |= {f"{column}{e}": float(getattr(self, f"{column}{e}")[a, i, t]) for e in ends}
                    row |= {f"moved{e}": float(getattr(self, f"moved{e}")[a, t]) for e in ends}
                    row |= {n: float(getattr(self, n)[a, i, t]) for n in ("carried_control", "needed_control", "share")}
                    rows.append({**row, "says": self.says(a, i, t)})
        return pd.DataFrame(rows)

    def notebook_table(self) -> "pd.DataFrame":
        """Return the five columns, and what they say together."""
        named = ("attribute", "layer", "target", "error", "carried", "needed", "predicted", "moved", "says")
        return self.to_pandas()[list(named)]

    def sentences(self) -> tuple[str, ...]:
        """Return what must be said beside the numbers, and how often the columns part."""
        fitted, judged = min(self.fitted), min(self.judged)
        said = [
            f"Of each attribute {fitted} clusters or more were fitted on and {judged} or more judged; p corrected over all "
            "attributes, layers and scores of a column, not over columns.",
            "What is carried and needed is what goes along the directions by which a linear reader finds the attribute: "
            "what lies along others is missed, and what goes with the attribute in these pairs is taken along. Not shown "
            "does not mean absent: look at the interval.",
            "Their intervals take the fitted directions as they are; those that endless data would give may lie outside "
            "more often than the level says.",
        ]
        for a, attribute in enumerate(self.attributes):
            if parts := self._parts(a):
                said.append(f"{attribute}: {'; '.join(parts)}.")
            if off := self._misjudged(a):
                said.append(
                    f"{attribute}: at {', '.join(off)} what is predicted is less than half of the swap, more than twice as "
                    "much, or the other way, for most scores that move."
                )
        return tuple(said)

    def _misjudged(self, a: int) -> list[str]:
        """Return the layers at which the predicted effect is no measure of most scores' swaps."""
        moved = self.shown("moved")[a, 0]
        ratio = (self.predicted[a] / self.moved[a])[:, moved]
        off = ((ratio < 0.5) | (ratio > 2)).double()
        return [layer for i, layer in enumerate(self.layers) if bool(moved.any()) and float(off[i].mean()) > 0.5]

    def _parts(self, a: int) -> Sequence[str]:
        """Return how many cells of an attribute are of each kind."""
        cells = [self.says(a, i, t) for i in range(len(self.layers)) for t in range(len(self.targets))]
        return [f"{cells.count(kind)} of {len(cells)} {kind}" for kind in KINDS if kind in cells]

    def plot(self) -> "Figure":
        """Draw, for each attribute, what is carried, needed and predicted at each layer above the measured swap.

        Colours are score units, on one scale; a dot marks evidence. At the left stands the error of the probe.
        """
        count, layers, targets = len(self.attributes), len(self.layers), len(self.targets)
        values = torch.cat([t.flatten() for t in (self.carried, self.needed, self.predicted, self.moved)])
        known = values[values.isfinite()].abs()
        reach = float(known.max()) if len(known) else 0.0
        with style():
            figure = new_figure(FULL_WIDTH, count * (0.75 + 0.17 * (layers + 1)) + 0.9)
            grid = figure.add_gridspec(count, 4, width_ratios=[1.6, *[max(2, 0.6 * targets)] * 3])
            for a, attribute in enumerate(self.attributes):
                first = figure.add_subplot(grid[a, 0])
                self._errors(first, a)
                first.set_title(f"{attribute}\nread", loc="left")
                for k, column in enumerate(("carried", "needed", "predicted"), 1):
                    axes = figure.add_subplot(grid[a, k])
                    image = self._block(axes, a, column, reach or 1.0)
                    axes.set_title(column)
                    axes.set_xticks(range(targets), self.targets if a == count - 1 else [""] * targets, rotation=90)
            bar = figure.colorbar(image, ax=figure.axes, shrink=0.5, aspect=12, pad=0.01)
            bar.set_label("score units")
        return figure

    def _errors(self, axes: "Axes", a: int) -> None:
        """Draw the probe's error layer by layer, downwards as in the blocks."""
        places = list(range(len(self.layers)))
        ends = torch.stack([self.error[a] - self.error_low[a], self.error_high[a] - self.error[a]]).clamp(min=0)
        axes.axvline(0.5, color=RULE, lw=0.7)
        axes.errorbar(self.error[a].tolist(), places, xerr=ends.tolist(), fmt="o", ms=3, color=INK)
        axes.set_yticks([*places, len(places)], [*self.layers, "moved"])
        axes.set(xlim=(0, max(0.6, float(self.error_high[a].nan_to_num(0).max()))), xlabel="error")
        axes.set_ylim(len(places) + 0.5, -0.5)

    def _block(self, axes: "Axes", a: int, column: str, reach: float) -> "AxesImage":
        cells = torch.cat([getattr(self, column)[a], self.moved[a][None]])
        sure = torch.cat([self.shown(column)[a], self.shown("moved")[a, :1]])
        image = axes.imshow(cells.numpy(), cmap=DIVERGING, vmin=-reach, vmax=reach, aspect="auto")
        where = sure.nonzero()
        axes.plot(where[:, 1].tolist(), where[:, 0].tolist(), "o", ms=2, color=INK, ls="")
        axes.axhline(len(self.layers) - 0.5, color=INK, lw=0.8)
        axes.set_yticks([])
        return image
