"""Figures of an audit, drawn from its saved results."""

from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from PIL import Image

from concepts.auditing.measurement.results import (
    AuditResults,
    CellRow,
    LikenessRow,
    SwapRow,
    TargetInfo,
)
from concepts.auditing.report.criteria import predicted, used
from probing.results.figures import (
    COLUMN_WIDTH,
    DIVERGING,
    FAINT,
    FULL_WIDTH,
    INK,
    MARKERS,
    PALETTE,
    PAPER,
    RULE,
    Strip,
    look,
    montage,
    new_figure,
    spread,
    style,
)
from probing.results.html_report import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def agreement(results: AuditResults, concept: str) -> "Figure":
    """Draw the predicted effect against the measured swap over all targets, one panel per layer."""
    swaps = {row.target: row for row in results.swaps if row.concept == concept}
    reach = _reach(results, concept)
    with style():
        panel = min(2.4, (FULL_WIDTH - 1.4) / len(results.layers))
        figure = new_figure(min(FULL_WIDTH, 1.6 + panel * len(results.layers)), panel + 0.95)
        grid = figure.add_gridspec(1, len(results.layers))
        panels = [figure.add_subplot(grid[0, i]) for i in range(len(results.layers))]
        for axes, layer in zip(panels, results.layers, strict=True):
            cells = [c for c in results.cells if c.concept == concept and c.layer == layer]
            _agreement_panel(axes, results, cells, swaps, reach)
            axes.set_title(layer, loc="left", fontweight="bold", pad=13)
            said = _correlation(results, concept, layer)
            axes.text(0, 1.03, said, transform=axes.transAxes, fontsize=6.5)
        for axes in panels[1:]:
            axes.tick_params(labelleft=False)
        panels[0].set_ylabel("measured swap (logits)")
        figure.supxlabel("predicted effect (logits)", fontsize=8)
        _name_points(panels[-1], swaps, reach, 2 * reach * _LABEL / panel)
        _group_legend(figure, results)
    return figure


def _reach(results: AuditResults, concept: str) -> float:
    effects = [c.effect for c in results.cells if c.concept == concept]
    measured = [row.swap for row in results.swaps if row.concept == concept]
    ends = [e for r in results.swaps if r.concept == concept for e in (r.low, r.high) if e is not None]
    return 1.08 * max(map(abs, [*effects, *measured, *ends, 1e-6]))


def _agreement_panel(
    axes: "Axes",
    results: AuditResults,
    cells: Sequence[CellRow],
    swaps: Mapping[str, SwapRow],
    reach: float,
) -> None:
    axes.axline((0, 0), slope=1, color=FAINT, lw=0.7, ls=(0, (4, 3)), zorder=0)
    axes.axhline(0, color=RULE, lw=0.6, zorder=0)
    axes.axvline(0, color=RULE, lw=0.6, zorder=0)
    looks = group_looks(results)
    groups = {t.name: t.group for t in results.targets}
    for cell in cells:
        colour, marker = looks[groups[cell.target]]
        swap = swaps[cell.target]
        _whiskers(axes, (cell.effect, cell.effect_low, cell.effect_high), swap.swap, colour, "x")
        _whiskers(axes, (swap.swap, swap.low, swap.high), cell.effect, colour, "y")
        axes.plot(cell.effect, swap.swap, marker, color=colour, mec=PAPER, mew=0.5, ms=4.5)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), box_aspect=1)
    axes.locator_params(nbins=4)


def _whiskers(
    axes: "Axes",
    bar: tuple[float, float | None, float | None],
    at: float,
    colour: str,
    along: str,
) -> None:
    _, low, high = bar
    if low is None or high is None:
        return
    ends, place = [low, high], [at, at]
    axes.plot(*((ends, place) if along == "x" else (place, ends)), color=colour, lw=0.6, alpha=0.45)


def _correlation(results: AuditResults, concept: str, layer: str) -> str:
    row = results.layer(concept, layer)
    if row.r is None:
        return "no correlation"
    return f"r = {number(row.r)} ({number(row.r_low)} to {number(row.r_high)})"


_LABEL = 0.095
"""Inches from one label to the next."""


def _name_points(axes: "Axes", swaps: Mapping[str, SwapRow], reach: float, gap: float) -> None:
    """Name the targets beside the last panel: the measured swap, and so the height, is the same in all."""
    rows = sorted(swaps.values(), key=lambda r: r.swap)
    beside = axes.get_yaxis_transform()
    places = spread([r.swap for r in rows], gap, -1.25 * reach, 1.25 * reach)
    for row, place in zip(rows, places, strict=True):
        axes.plot(
            [1.02, 1.12],
            [row.swap, place],
            color=FAINT,
            lw=0.4,
            transform=beside,
            clip_on=False,
            scalex=False,
            scaley=False,
        )
        axes.text(1.14, place, row.target, fontsize=6, va="center", transform=beside)


def group_looks(results: AuditResults) -> dict[str, tuple[str, str]]:
    """Return each group's colour and marker."""
    groups = list(dict.fromkeys(t.group for t in results.targets))
    return {g: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, g in enumerate(groups)}


def _group_legend(figure: "Figure", results: AuditResults) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker=marker, color=colour, ls="none", ms=4.5, label=group)
        for group, (colour, marker) in group_looks(results).items()
    ]
    handles.append(Line2D([], [], color=FAINT, lw=0.7, ls=(0, (4, 3)), label="equal"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))


def changes(results: AuditResults) -> "Figure":
    """Draw the measured swap of every target with its interval, and what trusted layers predict, per contrast."""
    targets = _ordered_targets(results)
    with style():
        figure = new_figure(FULL_WIDTH, 0.75 + 0.19 * len(targets))
        contrasts = results.contrasts
        first = None
        for i, contrast in enumerate(contrasts):
            axes = figure.add_subplot(1, len(contrasts), i + 1, sharex=first, sharey=first)
            first = first or axes
            _changes_panel(axes, results, contrast.name, targets)
            axes.set_title(f"{contrast.negative} → {contrast.positive}", loc="left", fontweight="bold")
            axes.tick_params(labelleft=i == 0, left=False)
        _changes_legend(figure, results)
    return figure


def _ordered_targets(results: AuditResults) -> list[str]:
    """Return targets group by group, each from the largest rise to the largest fall of the first contrast, if any."""
    first = results.contrasts[0].name if results.contrasts else ""
    swap = {r.target: r.swap for r in results.swaps if r.concept == first}
    groups = list(group_looks(results))

    def place(target: TargetInfo) -> tuple[int, float]:
        return groups.index(target.group), -swap.get(target.name, 0.0)

    return [t.name for t in sorted(results.targets, key=place)]


def _changes_panel(axes: "Axes", results: AuditResults, concept: str, targets: Sequence[str]) -> None:
    backdrop = next(b for b in results.backdrops if b.concept == concept)
    axes.axvspan(backdrop.low, backdrop.high, color=RULE, alpha=0.45, lw=0, zorder=0)
    axes.axvline(0, color=INK, lw=0.5, zorder=1)
    looks, groups = group_looks(results), {t.name: t.group for t in results.targets}
    swaps = {r.target: r for r in results.swaps if r.concept == concept}
    trusted = results.trusted(concept)
    for y, target in enumerate(targets):
        colour, marker = looks[groups[target]]
        row = swaps[target]
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [y, y], color=colour, lw=1.2, zorder=2)
        axes.plot(row.swap, y, marker, color=colour, mec=PAPER, mew=0.5, ms=5, zorder=3)
        for layer in trusted:
            effect = results.cell(concept, layer, target).effect
            axes.plot(effect, y, _sign(results, layer), color=INK, ms=5, mew=0.8, zorder=4)
    axes.set_yticks(range(len(targets)), targets)
    axes.set(ylim=(len(targets) - 0.4, -0.6), xlabel="change of the logit")
    axes.spines["left"].set_visible(False)


def _sign(results: AuditResults, layer: str) -> str:
    """Return the mark of a layer's prediction, counted from the deepest layer."""
    return "x|+1"[(len(results.layers) - 1 - results.layers.index(layer)) % 4]


def _changes_legend(figure: "Figure", results: AuditResults) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Line2D | Patch] = [
        Line2D([], [], marker=marker, color=colour, lw=1.2, ms=5, label=f"measured, {group}")
        for group, (colour, marker) in group_looks(results).items()
    ]
    trusted = {layer for c in results.contrasts for layer in results.trusted(c.name)}
    for layer in (layer for layer in results.layers if layer in trusted):
        mark, label = _sign(results, layer), f"predicted, {layer}"
        handles.append(Line2D([], [], marker=mark, color=INK, ls="none", ms=5, label=label))
    handles.append(Patch(color=RULE, alpha=0.45, lw=0, label="middle 95% of all classes"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


def scores(results: AuditResults) -> "Figure":
    """Draw the TCAV score of every target, concept and layer; a dot marks corrected p below `results.alpha`."""
    targets = _ordered_targets(results)
    columns = [(c.name, layer) for c in results.concepts for layer in results.layers]
    with style():
        figure = new_figure(FULL_WIDTH, 1.9 + 0.16 * len(targets))
        axes = figure.add_subplot()
        values = [[results.cell(*column, t).tcav for column in columns] for t in targets]
        picture = axes.imshow(values, cmap=DIVERGING, vmin=0, vmax=1, aspect="auto")
        for x, column in enumerate(columns):
            for y, target in enumerate(targets):
                p = results.cell(*column, target).tcav_p_corrected
                if p is not None and p < results.alpha:
                    axes.plot(x, y, "o", color=INK, mec=PAPER, mew=0.4, ms=2.6)
        _score_axes(axes, results, targets)
        bar = figure.colorbar(picture, ax=axes, shrink=0.6, aspect=18, pad=0.01)
        bar.set_label("share of inputs whose\nlogit rises along the concept")
        bar.outline.set_visible(False)
    return figure


_LETTER = 0.046
"""Inches of a letter of a heading."""


def _score_axes(axes: "Axes", results: AuditResults, targets: Sequence[str]) -> None:
    depth = len(results.layers)
    axes.set_yticks(range(len(targets)), targets)
    axes.set_xticks(
        range(depth * len(results.concepts)),
        list(results.layers) * len(results.concepts),
        rotation=90,
        fontsize=6,
    )
    for i, concept in enumerate(results.concepts):
        name = concept.name.replace(" against ", "\nagainst\n")
        longest = max(map(len, name.split("\n")))
        fits = longest * _LETTER < (FULL_WIDTH - 1.7) / len(results.concepts)
        axes.text(
            i * depth + (depth - 1) / 2,
            -0.7,
            name,
            ha="center",
            va="bottom",
            fontsize=6,
            rotation=0 if fits else 90,
        )
        if i:
            axes.axvline(i * depth - 0.5, color=PAPER, lw=2)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def told(results: AuditResults) -> "Figure":
    """Draw how many classes have a TCAV score, and how many an effect, beyond chance for each concept at each layer."""
    with style():
        figure = new_figure(FULL_WIDTH, 2.3 + 0.07 * len(results.concepts))
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, title, counts in zip(panels, ("TCAV score", "predicted effect"), (used, predicted), strict=True):
            for i, concept in enumerate(results.concepts):
                cells = [c for c in results.cells if c.concept == concept.name and counts(results, c)]
                found = [sum(c.layer == layer for c in cells) for layer in results.layers]
                _concept_line(axes, results, i, found)
            axes.set_title(title, loc="left", fontweight="bold")
            axes.set_xticks(range(len(results.layers)), results.layers)
            axes.set(
                xlim=(-0.4, len(results.layers) - 0.6), ylim=(-0.03 * len(results.targets), 1.03 * len(results.targets))
            )
            axes.locator_params(axis="y", integer=True, nbins=5)
        panels[0].set_ylabel("classes beyond chance")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def _concept_line(axes: "Axes", results: AuditResults, place: int, values: Sequence[float | int]) -> None:
    """Draw a number of a concept over layers; those that stand beside contrasts for comparison are dotted."""
    concept = results.concepts[place]
    beside = not concept.matched and bool(results.contrasts)
    axes.plot(
        [i + 0.08 * (place % 2) for i in range(len(values))],
        values,
        ":" if beside else "-",
        marker=MARKERS[place % len(MARKERS)],
        color=FAINT if beside else PALETTE[place % len(PALETTE)],
        mec=PAPER,
        mew=0.5,
        ms=3.5 if beside else 5,
        label=concept.name,
        zorder=2 if beside else 3,
    )


def trust(results: AuditResults) -> "Figure":
    """Draw how far predicted effects of each contrast follow the measured swap, layer by layer, and what counts as trust."""
    with style():
        figure = new_figure(COLUMN_WIDTH, 2.0)
        axes = figure.add_subplot()
        axes.axhspan(results.trust, 1, color=RULE, alpha=0.45, lw=0, zorder=0)
        axes.axhline(0, color=FAINT, lw=0.6, zorder=1)
        for i, contrast in enumerate(results.contrasts):
            colour, marker = look(i)
            label = contrast.name  # stands at the first layer that has a value
            for k, layer in enumerate(results.layers):
                row = results.layer(contrast.name, layer)
                if row.r is None:
                    continue
                x = k + 0.14 * (i - (len(results.contrasts) - 1) / 2)
                _whiskers(axes, (row.r, row.r_low, row.r_high), x, colour, "y")
                face = colour if row.trusted else "white"
                axes.plot(x, row.r, marker, color=colour, mfc=face, ms=5, mew=0.8, label=label)
                label = ""
        axes.set_xticks(range(len(results.layers)), results.layers)
        axes.set(xlim=(-0.5, len(results.layers) - 0.5), ylim=(-1.02, 1.02), ylabel="correlation r")
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside upper left", ncols=2)
    return figure


def accuracy(results: AuditResults) -> "Figure":
    """Draw how well each concept's classifier separates held-out images, layer by layer."""
    with style():
        figure = new_figure(COLUMN_WIDTH, 2.3 + 0.09 * len(results.concepts))
        axes = figure.add_subplot()
        axes.axhline(0.5, color=FAINT, lw=0.7, ls=(0, (4, 3)))
        axes.text(-0.35, 0.505, "chance", color=FAINT, fontsize=6, va="bottom")
        for i, concept in enumerate(results.concepts):
            beside = not concept.matched and bool(results.contrasts)
            colour = FAINT if beside else PALETTE[i % len(PALETTE)]
            rows = [r for r in results.layer_rows if r.concept == concept.name]
            for row in rows:
                ends = (row.accuracy, row.accuracy_low, row.accuracy_high)
                _whiskers(axes, ends, results.layers.index(row.layer) + 0.08 * (i % 2), colour, "y")
            _concept_line(axes, results, i, [r.accuracy for r in rows])
        axes.set_xticks(range(len(results.layers)), results.layers)
        axes.set(xlim=(-0.4, len(results.layers) - 0.6), ylim=(0.4, 1.02))
        axes.set_ylabel("accuracy on held-out images")
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def positions(results: AuditResults, concept: str) -> "Figure":
    """Draw where neutral images lie between their matched negatives (-1) and positives (+1)."""
    rows = [r for r in results.positions if r.concept == concept]
    by_cluster: dict[str, list[float]] = {}
    for row in rows:
        by_cluster.setdefault(row.cluster, []).append(row.position)
    means = {cluster: sum(values) / len(values) for cluster, values in by_cluster.items()}
    order = sorted(means, key=lambda cluster: means[cluster])
    contrast = results.of(concept)
    with style():
        figure = new_figure(COLUMN_WIDTH, 0.5 + 0.17 * len(order))
        axes = figure.add_subplot()
        for x in (-1, 0, 1):
            axes.axvline(x, color=RULE if x else INK, lw=0.6, zorder=0)
        for y, cluster in enumerate(order):
            values = by_cluster[cluster]
            axes.plot(values, [y] * len(values), "o", color=PALETTE[0], alpha=0.35, mew=0, ms=3.5)
            axes.plot(means[cluster], y, "|", color=INK, ms=9, mew=1.2)
        axes.set_yticks(range(len(order)), order)
        axes.set(ylim=(-0.6, len(order) - 0.4))
        _symmetric_ticks(axes, contrast.negative, contrast.positive)
        axes.tick_params(axis="y", left=False)
        axes.spines["left"].set_visible(False)
    return figure


def _symmetric_ticks(axes: "Axes", negative: str, positive: str) -> None:
    reach = max(1.25, *(abs(x) for x in axes.get_xlim()))
    axes.set_xlim(-reach, reach)
    axes.set_xticks([-1, 0, 1], [f"as {negative}", "half way", f"as {positive}"])


LINE = 8
"""Images in a line of a montage."""


Picture = Callable[[str], Image.Image]
"""What returns the picture that an audit saved under a name, as `results.saved_picture` does of a folder."""


def likeness(results: AuditResults, concept: str, picture: Picture) -> "Figure":
    """Draw the images most and least like a concept."""
    rows = [r for r in results.likeness if r.concept == concept]
    contrast = results.of(concept)
    names = {"most": contrast.positive, "least": contrast.negative}
    strips = []
    for among in dict.fromkeys(r.among for r in rows):
        for side, name in names.items():
            chosen = [r for r in rows if r.among == among and r.side == side]
            strips.append(_strip(f"{among}: most like {name}", chosen, picture))
    return montage(strips, columns=LINE)


def controls(results: AuditResults, picture: Picture) -> "Figure":
    """Draw the images most like each concept that is given as one set."""
    strips = []
    for concept in (c for c in results.concepts if not c.matched):
        rows = [r for r in results.likeness if r.concept == concept.name and r.side == "most"]
        strips.append(_strip(f"{rows[0].among}: most like {concept.name}", rows, picture))
    return montage(strips, columns=LINE)


def _strip(title: str, rows: Sequence[LikenessRow], picture: Picture) -> Strip:
    images = [picture(row.image) for row in rows]
    captions = [f"{fill(row.caption, 17)}\n{number(row.cosine, sign=True)}" for row in rows]
    return Strip(title, images, captions)
