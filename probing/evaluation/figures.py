"""Pictures of evaluations: similarity under randomisation, removal curves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from probing.figures import FAINT, FULL_WIDTH, INK, MARKERS, PALETTE, RULE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from probing.evaluation.curves import Curves
    from probing.evaluation.sanity import Randomisation

TITLES = {
    "spearman": "rank correlation, signed",
    "spearman_abs": "rank correlation, absolute",
    "ssim": "structural similarity",
    "hog": "oriented gradients",
    "top_iou": "highest places, IoU",
}


def randomisation_figure(found: Mapping[str, "Randomisation"], measures: Sequence[str]) -> "Figure":
    """Return similarity against what was drawn anew, a line per method and a panel per measure.

    Bars are 95 % intervals over inputs. The grey band is what two independent random networks have in common, for
    the first method; below it nothing learned is left.
    """
    with style():
        figure = new_figure(FULL_WIDTH, 2.9)
        panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
        for panel, measure in zip(panels, measures, strict=True):
            first = next(iter(found.values()))
            band = first.band("strangers", measure)
            panel.axhspan(*band, color=RULE, alpha=0.6, linewidth=0)
            panel.axhline(0, color=FAINT, linewidth=0.5)
            for i, (name, result) in enumerate(found.items()):
                _similarity_line(panel, result, measure, name, i)
            panel.set_title(TITLES.get(measure, measure))
            panel.set_xlabel("drawn anew, from the output on")
            _name_layers(panel, first.layers)
        panels[0].set_ylabel("similarity")
        if len(found) > 1:
            handles, names = panels[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    return figure


def _similarity_line(
    panel: "Axes", result: "Randomisation", measure: str, name: str, number: int
) -> None:
    m = result.measures.index(measure)
    mean, (low, high) = result.mean[:, m], result.interval
    steps = range(1, len(result.layers) + 1)
    colour = PALETTE[number % len(PALETTE)]
    panel.errorbar(
        list(steps),
        mean.tolist(),
        yerr=[(mean - low[:, m]).tolist(), (high[:, m] - mean).tolist()],
        color=colour,
        marker=MARKERS[number % len(MARKERS)],
        elinewidth=0.5,
        label=name,
    )


def _name_layers(panel: "Axes", layers: Sequence[str]) -> None:
    shown = range(len(layers)) if len(layers) <= 8 else [0, len(layers) // 2, len(layers) - 1]
    panel.set_xticks([i + 1 for i in shown], [layers[i] for i in shown], rotation=30, ha="right")


def curves_figure(found: Mapping[str, "Curves"], substrate: int = 0) -> "Figure":
    """Return mean scores against the share that was removed, a line per method, beside the order by chance.

    Bars are 95 % intervals over inputs.
    """
    with style():
        figure = new_figure(FULL_WIDTH * 0.6, 2.8)
        panel = figure.subplots()
        for number, (name, curves) in enumerate(found.items()):
            mean, low, high = (t[substrate, 0].tolist() for t in curves.summary)
            colour = PALETTE[number % len(PALETTE)]
            x = [100 * s for s in curves.shares.tolist()]
            panel.plot(x, mean, color=colour, label=name)
            panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            if number == 0 and "random" in curves.orders:
                chance = curves.summary[0][substrate, curves.orders.index("random")].tolist()
                panel.plot(x, chance, color=INK, linestyle="--", label="random order")
        first = next(iter(found.values()))
        panel.set_xlabel(f"{first.changed}, %")
        panel.set_ylabel(first.unit)
        panel.legend(loc="best")
    return figure
