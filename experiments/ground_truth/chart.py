"""The figures of both experiments."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pictures import Pictures
from PIL import Image

from probing.results.figures import (
    FAINT,
    FULL_WIDTH,
    INK,
    PALETTE,
    RULE,
    Strip,
    montage,
    new_figure,
    save_figure,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, object]]


def samples_figure(
    stem: Path,
    groups: Sequence[tuple[str, Pictures]],
    caption: Callable[[Pictures, int], str],
) -> None:
    """Draw some pictures of each group."""
    strips = []
    for title, pictures in groups:
        shown = ((pictures.images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        images = [Image.fromarray(one).resize((192, 192), Image.Resampling.NEAREST) for one in shown]
        strips.append(Strip(title, images, [caption(pictures, i) for i in range(len(pictures))]))
    save_figure(montage(strips, columns=len(groups[0][1])), stem)


NAMES = {
    "ig": "integrated gradients",
    "guided_ig": "guided IG",
    "blur_ig": "blur IG",
    "xrai": "XRAI",
    "layer_ig": "IG at a layer",
    "layer_conductance": "conductance",
    "internal_influence": "internal influence",
    "deeplift": "DeepLIFT",
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "guided_gradcam": "guided Grad-CAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "xgradcam": "XGrad-CAM",
    "scorecam": "Score-CAM",
    "eigencam": "Eigen-CAM",
    "finercam": "Finer-CAM",
    "ablationcam": "Ablation-CAM",
    "cam": "CAM",
    "lrp": "LRP",
    "lime": "LIME",
    "smoothgrad": "SmoothGrad",
    "guided_backprop": "guided backprop",
    "gradient_times_input": "gradient times input",
    "expected_gradients": "expected gradients",
    "tcav (effect)": "TCAV, effect",
    "tcav (score)": "TCAV, score",
    "tcav (smooth)": "TCAV, smooth score",
    "dissection (units)": "dissection, units",
    "dissection (ablation)": "dissection, ablation",
}
LOGITS = {"swap of the photograph", "tcav (effect)", "concept attribution"}
"""Readings in logits; the others shown are shares."""
CAPTION = ("tcav (effect)", "tcav (score)", "saliency")
BIAS = (
    "swap of the photograph",
    "tcav (effect)",
    "tcav (score)",
    "concept attribution",
    "saliency",
    "ig",
    "gradcam",
    "lime",
)
"""Readings that are shown net by net."""


def figures_of(document: Mapping[str, Any]) -> dict[str, Callable[[], "Figure"]]:
    """Return how the figures of either experiment are drawn from its `results.json`."""
    known: Any = _with_nan(document)
    if "biased less balanced" in known:
        return {"growth": lambda: growth_figure(known["by net"], known["biased less balanced"], BIAS)}
    parts = known["by net"], known["rank correlation"], known["truth"]
    return {"order": lambda: order_figure(*parts, "noise", CAPTION)}


def _with_nan(value: object) -> object:
    """Return a document in which null is NaN, as it was before it became JSON."""
    if isinstance(value, Mapping):
        return {name: _with_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return np.nan if value is None else value


def order_figure(
    rows: Rows,
    verdicts: Mapping[str, Mapping[str, float]],
    truth: str,
    group: str,
    shown: Sequence[str],
) -> "Figure":
    """Draw each method's rank correlation with the truth, and the readings of a few methods net by net."""
    order = sorted(verdicts, key=lambda name: np.nan_to_num(verdicts[name]["rho"], nan=-2))
    with style():
        figure = new_figure(FULL_WIDTH, 0.16 * len(order) + 1.0)
        left, *right = figure.subplot_mosaic([["order", name] for name in shown], width_ratios=[1.25, 1]).values()
        for y, name in enumerate(order):
            found = verdicts[name]
            network = name.startswith(("tcav", "dissection", "probes", "concept"))
            colour, marker = (PALETTE[1], "s") if network else (PALETTE[0], "o")
            if np.isnan(found["rho"]):
                left.text(0, y, "the same for all nets", va="center", ha="center", color=FAINT, fontsize=6)
                continue
            left.plot([found["low"], found["high"]], [y, y], color=colour, lw=0.9)
            left.plot(found["rho"], y, marker, color=colour)
        left.set_yticks(range(len(order)), [NAMES.get(name, name) for name in order])
        left.axvline(0, color=RULE, zorder=0)
        lows = [found["low"] for found in verdicts.values() if not np.isnan(found["low"])]
        left.set(xlim=(min([-0.05, *lows]) - 0.05, 1.05), ylim=(-0.7, len(order) - 0.3))
        left.set_xlabel(f"rank correlation with the {truth}, over {len(rows)} nets")
        left.plot([], [], "s-", color=PALETTE[1], label="network level")
        left.plot([], [], "o-", color=PALETTE[0], label="local")
        left.legend(loc="upper left")
        for axes, name in zip(right, shown, strict=True):
            _readings(axes, rows, name, truth, group)
        right[0].legend(
            title=group,
            fontsize=6,
            title_fontsize=6,
            ncols=5,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            handletextpad=0.1,
            columnspacing=0.8,
        )
        for axes in right[:-1]:
            axes.tick_params(labelbottom=False)
        right[-1].set_xlabel(truth)
    return figure


def _readings(axes: "Axes", rows: Rows, name: str, truth: str, group: str) -> None:
    levels = sorted({float(row[group]) for row in rows})  # type: ignore[arg-type]
    for i, level in enumerate(levels):
        own = [row for row in rows if row[group] == level]
        axes.plot(
            [row[truth] for row in own],
            [row[name] for row in own],
            "o",
            label=f"{level:g}",
            color=str(0.8 * i / max(len(levels) - 1, 1)),
            markeredgecolor=INK,
            markeredgewidth=0.4,
        )
    axes.set_ylabel(f"{NAMES.get(name, name)}\n{_unit(name)}")


def _unit(name: str) -> str:
    return "(logits)" if name in LOGITS else "(share)"


def growth_figure(
    rows: Rows,
    grown: Mapping[str, Sequence[Mapping[str, float]]],
    names: Sequence[str],
) -> "Figure":
    """Draw readings of some methods by the rate, one point per net, with the intervals of biased less balanced."""
    from matplotlib.lines import Line2D

    rates = sorted({float(row["rate"]) for row in rows})  # type: ignore[arg-type]
    with style():
        figure = new_figure(FULL_WIDTH, 3.4)
        for axes, name in zip(figure.subplots(2, 4, sharex=True).flat, names, strict=True):
            level = [np.mean([r[name] for r in rows if r["rate"] == rate]) for rate in rates]
            axes.plot([r["rate"] for r in rows], [r[name] for r in rows], "o", color=FAINT, ms=2.5)
            axes.plot(rates, level, color=PALETTE[0])
            for step in grown[name]:
                ends = [level[0] + step["low"], level[0] + step["high"]]
                axes.plot([step["rate"]] * 2, ends, color=PALETTE[1], lw=1.2)
            axes.axhline(level[0], color=RULE, zorder=0)
            axes.set_title(f"{NAMES.get(name, name)} {_unit(name)}", loc="left", fontsize=7)
            axes.set_xticks(rates)
        figure.supxlabel("share of vehicles in front of the planted photograph", fontsize=8)
        figure.legend(
            handles=[
                Line2D([], [], marker="o", ls="none", color=FAINT, ms=2.5, label="one network"),
                Line2D([], [], color=PALETTE[0], label="mean"),
                Line2D([], [], color=PALETTE[1], lw=1.2, label=f"95 % interval of the change from {rates[0]:g}"),
            ],
            loc="outside upper left",
            ncols=3,
        )
    return figure
