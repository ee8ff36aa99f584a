"""The figure of two audits side by side."""

from typing import TYPE_CHECKING

from concepts.auditing.model_comparison.compare import Difference, SideBySide
from probing.results.figures import FULL_WIDTH, INK, MARKERS, PALETTE, PAPER, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def both(found: SideBySide) -> "Figure":
    """Draw each class's change in both models with its intervals, one panel a contrast; a star where they surely differ."""
    with style():
        figure = new_figure(FULL_WIDTH, 0.8 + 0.24 * len(found.targets))
        first = None
        for i, contrast in enumerate(found.contrasts):
            axes = figure.add_subplot(1, len(found.contrasts), i + 1, sharex=first, sharey=first)
            first = first or axes
            rows = {d.target: d for d in found.differences if d.contrast == contrast}
            _panel(axes, found, rows)
            axes.set_title(contrast, loc="left", fontweight="bold")
            axes.tick_params(labelleft=i == 0, left=False)
        _legend(figure, found)
    return figure


def _panel(axes: "Axes", found: SideBySide, rows: dict[str, Difference]) -> None:
    axes.axvline(0, color=INK, lw=0.5, zorder=1)
    for y, target in enumerate(found.targets):
        d = rows[target]
        sides = ((d.first, d.first_low, d.first_high), (d.second, d.second_low, d.second_high))
        for k, (value, low, high) in enumerate(sides):
            at = y + 0.32 * k - 0.16
            if low is not None and high is not None:
                axes.plot([low, high], [at, at], color=PALETTE[k], lw=1.1, zorder=2)
            axes.plot(value, at, MARKERS[k], color=PALETTE[k], mec=PAPER, mew=0.5, ms=4.5, zorder=3)
        if found.told(d):
            axes.text(1.005, y, "*", transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.set_yticks(range(len(found.targets)), found.targets)
    axes.set(ylim=(len(found.targets) - 0.4, -0.6), xlabel="change of the logit")
    axes.spines["left"].set_visible(False)


def _legend(figure: "Figure", found: SideBySide) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker=MARKERS[k], color=PALETTE[k], lw=1.1, ms=4.5, label=label)
        for k, label in enumerate(found.labels)
    ]
    handles.append(Line2D([], [], marker="*", color=INK, ls="none", mew=0, ms=5.5, label="differ for sure"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
