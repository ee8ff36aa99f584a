"""Figures of an audit of words."""

from typing import TYPE_CHECKING

import torch

from concepts.auditing.word_swaps.result import SWAP, WordResult
from probing.results.figures import FAINT, FULL_WIDTH, MARKERS, PALETTE, RULE, new_figure, style
from probing.results.html_report import interval, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ranked(values: torch.Tensor) -> list[int]:
    """Return places from the largest value to the smallest."""
    found: list[int] = values.argsort(descending=True, stable=True).tolist()
    return found


def middle(values: torch.Tensor) -> tuple[float, float]:
    """Return the bounds of the middle 95% of values."""
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def word_figure(words: WordResult) -> "Figure":
    """Draw the measured change of each word, and what the listed methods predict."""
    order = ranked(-words.value[0])
    places = range(len(order))
    with style():
        figure = new_figure(FULL_WIDTH, 1.0 + 0.16 * len(order))
        panels = figure.subplots(1, len(words.listed), sharex=True, sharey=True, squeeze=False)[0]
        for i, (axes, method) in enumerate(zip(panels, words.listed, strict=True)):
            m = words.methods.index(method)
            value, low, high = (t[m][order].numpy() for t in (words.value, words.low, words.high))
            sure = words.moves()[m][order].numpy()
            if m < len(words.ordinary):
                axes.axvspan(*middle(words.ordinary[m]), color=RULE, alpha=0.5, lw=0)
            axes.axvline(0, color=FAINT, lw=0.6)
            if i:
                axes.plot(words.value[0][order].numpy(), places, ls="", marker="s", ms=2.5, color=FAINT, alpha=0.7)  # fmt: skip
            axes.hlines(places, low, high, color=PALETTE[0], lw=0.8)
            for filled, face in ((True, PALETTE[0]), (False, "white")):
                rows = [k for k in places if sure[k] == filled]
                axes.plot(value[rows], rows, ls="", marker="o", ms=3.5, color=PALETTE[0], mfc=face)
            axes.set(xlabel="logits", title="measured" if method == SWAP else method)
        panels[0].set_yticks(list(places), [words.words[w] for w in order])
        panels[0].set_ylim(-0.7, len(order) - 0.3)
    return figure


def agreement_figure(words: WordResult) -> "Figure":
    """Draw predicted against measured change, one panel per method."""
    methods = [m for m in words.methods if m != SWAP]
    columns = min(3, len(methods))
    rows = -(-len(methods) // columns)
    kinds = list(dict.fromkeys(words.kinds))
    with style():
        figure = new_figure(FULL_WIDTH, 2.4 * rows + 0.4)
        for i, method in enumerate(methods):
            axes = figure.add_subplot(rows, columns, i + 1)
            m = words.methods.index(method)
            for k, kind in enumerate(kinds):
                own = [w for w, of in enumerate(words.kinds) if of == kind]
                axes.plot(
                    words.value[m][own].numpy(), words.value[0][own].numpy(), ls="", ms=3.5, label=kind,
                    marker=MARKERS[k % len(MARKERS)], color=PALETTE[k % len(PALETTE)],
                )  # fmt: skip
            reach = [float(words.value[0].min()), float(words.value[0].max())]
            axes.plot(reach, reach, color=FAINT, lw=0.7, zorder=0)
            r, low, high = words.agreement[m].tolist()
            axes.set(title=f"{method}\nrho {number(r)} ({interval(low, high, sign=False)})", xlabel="predicted (logits)")  # fmt: skip
            axes.set_ylabel("measured (logits)" if i % columns == 0 else "")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
