"""Figures of what an audit's analyses found: units of layers, and planes of their activations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float, Int
from torch import Tensor

from concepts.dissection.unit_contrasts import UnitShifts
from probing.atlas import AtlasResult
from probing.results.figures import FAINT, FULL_WIDTH, MARKERS, PALETTE, RULE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def units(
    contrasts: Sequence[str], layers: Sequence[str], layer_of: Int[Tensor, " units"], shifts: UnitShifts, *, alpha: float
) -> "Figure":
    """Draw each unit's shift on held-out clusters against that on training clusters, by contrast and layer."""
    significant = shifts.significant(alpha)
    with style():
        panel = min(2.0, (FULL_WIDTH - 0.8) / len(layers))
        width = min(FULL_WIDTH, 0.9 + panel * len(layers))
        figure = new_figure(width, 0.3 + (panel + 0.35) * len(contrasts))
        grid = figure.subplots(len(contrasts), len(layers), sharex="row", sharey="row", squeeze=False)
        for row, (panels, contrast) in enumerate(zip(grid, contrasts, strict=True)):
            across, up = shifts.fitted[row], shifts.shift[row]
            reach = 1.08 * max(1e-6, float(across.abs().max()), float(up.abs().max()))
            for k, (axes, layer) in enumerate(zip(panels, layers, strict=True)):
                own = layer_of == k
                _shift_panel(axes, across[own], up[own], significant[row][own])
                axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
                count = f"{int(significant[row][own].sum())} of {int(own.sum())} units"
                axes.set_title(count if row else f"{layer}\n{count}", loc="left")
            panels[0].set_ylabel(f"{contrast}\njudged (s.d.)")
        figure.supxlabel("fitted (s.d.)", fontsize=8)
    return figure


def _shift_panel(
    axes: "Axes",
    across: Float[Tensor, " units"],
    up: Float[Tensor, " units"],
    significant: Bool[Tensor, " units"],
) -> None:
    axes.axline((0, 0), slope=1, color=FAINT, lw=0.7, ls=(0, (4, 3)), zorder=0)
    axes.axhline(0, color=RULE, lw=0.6, zorder=0)
    axes.axvline(0, color=RULE, lw=0.6, zorder=0)
    for which, colour, marker in ((~significant, FAINT, "o"), (significant, PALETTE[0], "D")):
        axes.plot(across[which], up[which], marker, color=colour, ms=3, mew=0, alpha=0.6)
    axes.set(box_aspect=1)
    axes.locator_params(nbins=5)


def planes(
    atlases: Sequence[AtlasResult],
    attributes: Sequence[str],
    values: Sequence[Sequence[str]],
    labels: Int[Tensor, "attributes n"],
) -> "Figure":
    """Draw the planes of several layers, a row of them for each attribute that colours the points."""
    with style():
        panel = min(2.0, (FULL_WIDTH - 1.1) / len(atlases))
        width = min(FULL_WIDTH, 1.3 + panel * len(atlases))
        figure = new_figure(width, 0.3 + (panel + 0.1) * len(attributes))
        grid = figure.subplots(len(attributes), len(atlases), squeeze=False)
        for row, (panels, attribute) in enumerate(zip(grid, attributes, strict=True)):
            for axes, atlas in zip(panels, atlases, strict=True):
                for k, name in enumerate(values[row]):
                    colour, marker = PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]
                    points = atlas.points[labels[row] == k].numpy()
                    axes.plot(*points.T, marker, color=colour, ms=3, mew=0, alpha=0.6, label=name)
                axes.set(xticks=[], yticks=[], box_aspect=1)
                if not row:
                    axes.set_title(atlas.layer, loc="left")
            panels[-1].legend(
                loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=1.4, title=attribute, alignment="left"
            )
    return figure
