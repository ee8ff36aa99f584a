"""Pictures of evaluations: similarity under randomisation, removal curves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from probing.results.figures import (
    COLUMN_WIDTH,
    FAINT,
    FULL_WIDTH,
    INK,
    PALETTE,
    RULE,
    logarithmic,
    look,
    new_figure,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from probing.evaluation.axioms import AxiomTable, Check
    from probing.evaluation.base import Measurement
    from probing.evaluation.curves import Curves
    from probing.evaluation.randomisation import Randomisation
    from probing.evaluation.retraining import DataRandomisation, Retrained

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
    colour, marker = look(number)
    panel.errorbar(
        list(steps),
        mean.tolist(),
        yerr=[(mean - low[:, m]).tolist(), (high[:, m] - mean).tolist()],
        color=colour,
        marker=marker,
        elinewidth=0.5,
        label=name,
    )


def _name_layers(panel: "Axes", layers: Sequence[str]) -> None:
    shown = range(len(layers)) if len(layers) <= 8 else [0, len(layers) // 2, len(layers) - 1]
    turned = sum(len(layers[i]) for i in shown) > 24
    panel.set_xticks(
        [i + 1 for i in shown], [layers[i] for i in shown], rotation=30 if turned else 0, ha="right" if turned else "center",
    )  # fmt: skip


def curves_figure(found: Mapping[str, "Curves"], substrate: int = 0) -> "Figure":
    """Return mean scores against the share that was removed, a line per method, beside the order by chance.

    Bars are 95 % intervals over inputs.
    """
    with style():
        figure = new_figure(COLUMN_WIDTH, 2.3 + 0.12 * len(found))
        panel = figure.subplots()
        for number, (name, curves) in enumerate(found.items()):
            mean, low, high = (t[substrate, 0].tolist() for t in curves.summary)
            colour, marker = look(number)
            x = [100 * s for s in curves.shares.tolist()]
            every = max(1, len(x) // 6)
            panel.plot(x, mean, color=colour, marker=marker, markevery=every, ms=3, label=name)
            shade = 0.15 if len(found) < 4 else 0.06
            panel.fill_between(x, low, high, color=colour, alpha=shade, linewidth=0)
            if number == 0 and "random" in curves.orders:
                chance = curves.summary[0][substrate, curves.orders.index("random")].tolist()
                panel.plot(x, chance, color=INK, linestyle="--", label="random order")
        first = next(iter(found.values()))
        panel.set_xlabel(f"{first.changed}, %")
        panel.set_ylabel(first.unit)
        if len(found) > 1:
            figure.legend(loc="outside upper left", ncols=3, columnspacing=1.0)
        else:
            panel.legend(loc="best")
    return figure


def measurements_figure(found: Mapping[str, "Measurement"]) -> "Figure":
    """Return the values of single inputs, with mean and interval, a line for each measurement."""
    with style():
        figure = new_figure(COLUMN_WIDTH, 0.6 + 0.26 * len(found))
        panel = figure.subplots()
        for y, measured in enumerate(found.values()):
            values = measured.values.double()
            values = values[~values.isnan()]
            colour = PALETTE[0]
            panel.plot(values, [y] * len(values), "o", color=colour, alpha=0.35, mew=0, ms=3.5)
            panel.plot(list(measured.interval), [y, y], color=INK, lw=0.9)
            panel.plot(measured.mean, y, "|", color=INK, ms=9, mew=1.2)
            if measured.chance is not None:
                panel.plot(float(measured.chance.double().nanmean()), y, "x", color=FAINT, ms=5)
        panel.set_yticks(range(len(found)), list(found))
        panel.set(ylim=(len(found) - 0.4, -0.6))
        better = {m.better for m in found.values()}
        panel.set_xlabel(f"value of each input ({better.pop()} is better)" if len(better) == 1 else "value of each input")  # fmt: skip
    return figure


def check_figure(check: "Check") -> "Figure":
    """Return by how much each trial misses a property, beside what may be missed."""
    known = check.statistic[~check.statistic.isnan()].clamp(min=1e-12)
    with style():
        figure = new_figure(COLUMN_WIDTH, 1.0)
        panel = figure.subplots()
        panel.plot(known, [0] * len(known), "o", color=PALETTE[0], alpha=0.5, mew=0)
        panel.axvline(check.tolerance, color=INK, lw=0.7, ls=(0, (4, 3)))
        panel.set_yticks([0], [f"{check.axiom}\n{check.method}"])
        panel.set(ylim=(-1, 1), xlabel=f"{check.what}; dashed: tolerance")
        if len(known):
            logarithmic(panel)
    return figure


def axioms_figure(table: "AxiomTable") -> "Figure":
    """Return which methods have which properties: filled where one holds, a cross where it fails, nothing if not asked."""
    rows, columns = len(table.methods), len(table.axioms)
    with style():
        figure = new_figure(min(FULL_WIDTH, 1.4 + 0.5 * columns), 1.2 + 0.2 * rows)
        panel = figure.subplots()
        looks = {"holds": ("o", PALETTE[0]), "fails": ("x", PALETTE[1])}
        for outcome, (marker, colour) in looks.items():
            at = [(c, r) for r, said in enumerate(table.outcomes) for c, one in enumerate(said) if one == outcome]  # fmt: skip
            panel.plot([c for c, _ in at], [r for _, r in at], marker, color=colour, ms=5, label=outcome)  # fmt: skip
        panel.set_xticks(range(columns), [a.replace("_", " ") for a in table.axioms], rotation=35, ha="right")  # fmt: skip
        panel.set_yticks(range(rows), list(table.methods))
        panel.set(xlim=(-0.6, columns - 0.4), ylim=(rows - 0.4, -0.6))
        panel.tick_params(length=0)
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def retrained_figure(found: "Retrained") -> "Figure":
    """Return test accuracy after training without (or with only) what maps value most, a line per ranking."""
    mean, low, high = found.summary
    x = [100 * f for f in found.fractions]
    with style():
        figure = new_figure(COLUMN_WIDTH, 2.6)
        panel = figure.subplots()
        for i, name in enumerate(found.rankings):
            colour, marker = look(i)
            panel.plot(x, mean[i], color=colour, marker=marker, label=name)
            panel.fill_between(x, low[i], high[i], color=colour, alpha=0.15, linewidth=0)
            panel.plot(x, found.mask_only[i], color=colour, lw=0.6, ls=":")
        panel.plot([], [], color=FAINT, lw=0.6, ls=":", label="masks alone")
        panel.axhline(found.chance, color=FAINT, lw=0.7, ls=(0, (4, 3)))
        panel.set(xlabel=f"places {found.kind}, %", ylabel="test accuracy")
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def relearned_figure(found: "DataRandomisation") -> "Figure":
    """Return how alike maps are of a network that learned true labels and of one that learned shuffled ones."""
    with style():
        figure = new_figure(COLUMN_WIDTH, 0.7 + 0.26 * len(found.measures))
        panel = figure.subplots()
        mean, low, high = found.summary
        panel.axvline(0, color=RULE, zorder=0)
        for y in range(len(found.measures)):
            values = found.values[y][~found.values[y].isnan()]
            panel.plot(values, torch.full_like(values, y), "o", color=PALETTE[0], alpha=0.35, mew=0, ms=3.5)  # fmt: skip
            panel.plot([float(low[y]), float(high[y])], [y, y], color=INK, lw=0.9)
            panel.plot(float(mean[y]), y, "|", color=INK, ms=9, mew=1.2)
        panel.set_yticks(range(len(found.measures)), [TITLES.get(m, m) for m in found.measures])
        panel.set(
            ylim=(len(found.measures) - 0.4, -0.6), xlabel="similarity of the maps of an input"
        )
    return figure
