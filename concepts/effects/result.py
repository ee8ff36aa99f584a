"""Effects in logits beside measured swaps, as they are saved."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.results.figures import (
    COLUMN_WIDTH,
    FAINT,
    FULL_WIDTH,
    PALETTE,
    RULE,
    new_figure,
    style,
)
from probing.results.result import Result
from probing.statistics.hypothesis_tests import Correlation

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class EffectResult(Result):
    """Predicted effects, in units of the score such as logits, layer by layer, beside the measured effect of a swap."""

    layers: tuple[str, ...]
    targets: tuple[str, ...]
    effect: Float[Tensor, "layers targets"]
    """Score units: what moving the layer from the typical negative to the typical positive does, to first order."""
    low: Float[Tensor, "layers targets"]
    high: Float[Tensor, "layers targets"]
    """Joint bootstrap over clusters and inputs, at `level`."""
    p: Float[Tensor, "layers targets"]
    """Two-sided, by relabelling."""
    p_holm: Float[Tensor, "layers targets"]
    p_max_t: Float[Tensor, "layers targets"]
    """Corrected over layers and targets: Holm, and the step-down maximum over the same relabellings."""
    swap: Float[Tensor, " targets"]
    """Mean score of positives less that of their matched negatives, at the input; NaN without matched clusters."""
    swap_low: Float[Tensor, " targets"]
    swap_high: Float[Tensor, " targets"]
    swap_p: Float[Tensor, " targets"]
    """t over clusters."""
    agreement: Float[Tensor, "layers 3"]
    """Pearson's r of effect and swap over targets, and Fisher's interval, which takes targets as independent."""
    slope: Float[Tensor, " layers"]
    """Least-squares slope of swap on effect through the origin: 1 where the first order carries all the way."""
    signs_right: Int[Tensor, " layers"]
    """For how many targets effect and swap have the same sign."""
    groups: int
    """Independent groups: clusters of positives and negatives, or of the smaller of the two sets."""
    relabellings: int
    exact: bool
    """Whether the relabellings are all there are."""
    level: float
    units: tuple[str, ...] = ()
    """Of the targets' scores, and so of effects and swaps; none in results from before they were kept: logits."""

    def correlation(self, layer: str) -> Correlation:
        """Return the agreement at a layer."""
        r, low, high = self.agreement[self.layers.index(layer)].tolist()
        return Correlation(r, low, high, len(self.targets))

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per layer and target."""
        import pandas as pd

        columns = ("effect", "low", "high", "p", "p_holm", "p_max_t")
        rows = [
            {"layer": layer, "target": target}
            | {name: float(getattr(self, name)[i, k]) for name in columns}
            | {name: float(getattr(self, name)[k]) for name in ("swap", "swap_low", "swap_high", "swap_p")}
            | ({"unit": self.units[k]} if self.units else {})
            for i, layer in enumerate(self.layers)
            for k, target in enumerate(self.targets)
        ]
        return pd.DataFrame(rows)

    def plot(self) -> "Figure":
        """Draw predicted effect against measured swap over all targets, one panel per layer."""
        columns = min(3, len(self.layers))
        rows = math.ceil(len(self.layers) / columns)
        side = min(2.4, FULL_WIDTH / columns)
        with style():
            figure = new_figure(max(COLUMN_WIDTH, side * columns), 0.3 + side * rows)
            for i in range(len(self.layers)):
                axes = figure.add_subplot(rows, columns, i + 1)
                self._panel(axes, i)
            units = sorted(set(self.units)) or ["logit"]
            unit = "logits" if units == ["logit"] else ", ".join(units)
            figure.supxlabel(f"predicted effect ({unit})", fontsize=8)
            figure.supylabel(f"measured swap ({unit})", fontsize=8)
        return figure

    def _panel(self, axes: "Axes", i: int) -> None:
        x, y = self.effect[i], self.swap
        whiskers = [
            torch.stack([x - self.low[i], self.high[i] - x]),
            torch.stack([y - self.swap_low, self.swap_high - y]),
        ]
        reach = 1.1 * float(torch.cat([x.abs(), y.abs()]).nan_to_num().max()) or 1.0
        axes.axline((0, 0), slope=1, color=FAINT, lw=0.7, ls=(0, (4, 3)), zorder=0)
        axes.axhline(0, color=RULE, lw=0.6, zorder=0)
        axes.axvline(0, color=RULE, lw=0.6, zorder=0)
        across, up = (w.clamp(min=0).nan_to_num() for w in whiskers)
        axes.errorbar(x, y, xerr=across, yerr=up, fmt="o", color=PALETTE[0], elinewidth=0.6)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), box_aspect=1)
        axes.locator_params(nbins=4)
        r, low, high = self.agreement[i].tolist()
        axes.set_title(f"{self.layers[i]}\nr = {r:.2f} ({low:.2f} to {high:.2f})", loc="left")
