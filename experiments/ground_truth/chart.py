"""The figures of both experiments."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pictures import Pictures
from PIL import Image

from probing.figures import (
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
        images = [
            Image.fromarray(one).resize((192, 192), Image.Resampling.NEAREST) for one in shown
        ]
        strips.append(Strip(title, images, [caption(pictures, i) for i in range(len(pictures))]))
    save_figure(montage(strips, columns=len(groups[0][1])), stem)


def order_figure(
    stem: Path,
    rows: Rows,
    verdicts: Mapping[str, Mapping[str, float]],
    truth: str,
    group: str,
    label: str,
) -> None:
    """Draw each method's rank correlation with the truth, and the readings of the two that the report speaks of."""
    order = sorted(verdicts, key=lambda name: np.nan_to_num(verdicts[name]["rho"], nan=-2))
    with style():
        figure = new_figure(FULL_WIDTH, 0.16 * len(order) + 1.0)
        left, *right = figure.subplot_mosaic(
            [["order", "first"], ["order", "second"]], width_ratios=[1.25, 1]
        ).values()
        for y, name in enumerate(order):
            found = verdicts[name]
            colour = PALETTE[1] if name.startswith(("tcav", "dissection", "probes")) else PALETTE[0]
            if np.isnan(found["rho"]):
                left.text(0, y, "no value", va="center", ha="center", color=FAINT, fontsize=6)
                continue
            left.plot([found["low"], found["high"]], [y, y], color=colour, lw=0.9)
            left.plot(found["rho"], y, "o", color=colour)
        left.set_yticks(range(len(order)), order)
        left.axvline(0, color=RULE, zorder=0)
        left.set(xlim=(-1.05, 1.05), xlabel=f"rank correlation with the {truth}, over nets")
        left.plot([], [], "o-", color=PALETTE[1], label="network level")
        left.plot([], [], "o-", color=PALETTE[0], label="local")
        left.legend(loc="lower left")
        for axes, name in zip(right, ("tcav (score)", "saliency"), strict=True):
            _readings(axes, rows, name, truth, group)
        right[1].set_xlabel(label)
    save_figure(figure, stem)


def _readings(axes: object, rows: Rows, name: str, truth: str, group: str) -> None:
    levels = sorted({float(row[group]) for row in rows})  # type: ignore[arg-type]
    for i, level in enumerate(levels):
        own = [row for row in rows if row[group] == level]
        shade = str(0.75 * i / max(len(levels) - 1, 1))
        axes.plot(  # type: ignore[attr-defined]
            [row[truth] for row in own], [row[name] for row in own], "o", color=shade,
            markeredgecolor=INK, markeredgewidth=0.4, label=f"{level:g}",
        )  # fmt: skip
    axes.set_ylabel(name)  # type: ignore[attr-defined]
    axes.legend(title=group, fontsize=6, title_fontsize=6, ncols=2)  # type: ignore[attr-defined]


def growth_figure(
    stem: Path,
    rows: Rows,
    grown: Mapping[str, Sequence[Mapping[str, float]]],
    names: Sequence[str],
) -> None:
    """Draw readings of some methods by the rate, one point per net, with the intervals of biased less balanced."""
    rates = sorted({float(row["rate"]) for row in rows})  # type: ignore[arg-type]
    with style():
        figure = new_figure(FULL_WIDTH, 3.6)
        for axes, name in zip(figure.subplots(2, 4, sharex=True).flat, names, strict=True):
            level = [np.mean([r[name] for r in rows if r["rate"] == rate]) for rate in rates]
            axes.plot([r["rate"] for r in rows], [r[name] for r in rows], "o", color=FAINT, ms=2.5)
            axes.plot(rates, level, color=PALETTE[0])
            for step in grown[name]:
                ends = [level[0] + step["low"], level[0] + step["high"]]
                axes.plot([step["rate"]] * 2, ends, color=PALETTE[1], lw=1.2)
            axes.axhline(level[0], color=RULE, zorder=0)
            axes.set_title(name)
            axes.set_xticks(rates)
        figure.supxlabel("share of vehicles in front of the planted photograph", fontsize=8)
    save_figure(figure, stem)
