"""Which method is good for what, by measurement, beside what was expected.

One row per method and one column per desideratum; never one number for all. Each column is the mean rank of a few
measured quantities among the methods compared, with an interval over inputs; the quantities stand beside it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probing.attribution.base import Family
from probing.evaluation.base import EvaluationError
from probing.evaluation.scorecard.cost import Cost
from probing.evaluation.scorecard.criteria import (
    DESIDERATA,
    EXPECTED,
    QUANTITIES,
    QUESTIONS,
    Mark,
    third,
)
from probing.evaluation.scorecard.ranking import ranks, standings, summary
from probing.results.csv_files import write_csv
from probing.results.figures import (
    FAINT,
    FULL_WIDTH,
    INK,
    PALETTE,
    RULE,
    logarithmic,
    new_figure,
    save_figure,
    style,
)
from probing.results.result import Provenance, Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, object]
"""A line of a table, by column."""

_LINE, _HEAD, _FOOT = 0.27, 0.5, 0.62
_NAMES, _COLUMN = 1.25, 0.87
_BAR, _RANK, _EXPECTED = (0.17, 0.44), 0.52, 0.74
_MARKS = {"+": "+", "0": "0", "-": "\N{MINUS SIGN}", None: "\N{EN DASH}"}
_COLOURS = {"+": PALETTE[0], "0": FAINT, "-": PALETTE[1], None: FAINT}
_FAMILIES = {"backprop": PALETTE[0], "local": PALETTE[1], "network": PALETTE[2]}
_TITLES = {"backprop": "backpropagation", "local": "local model", "network": "network level"}
_COSTS = ("passes", "time", "MB")


@dataclass(frozen=True)
class Row(Result):
    """All that was measured of one method."""

    name: str
    kind: str
    """The method's type."""
    family: Family
    key: str
    """Content id of the model, the inputs, the method and the settings: a row is reused if it is the same."""
    values: dict[str, Tensor]
    """Of each quantity, one value per input, or a single one; NaN where it is not defined."""
    cost: Cost
    refused: str = ""
    """Why the method could not explain this network; then there are no values."""
    notes: tuple[str, ...] = ()
    """What a reader of the values must know."""
    answers: tuple[int, ...] | None = None
    """The questions that it answers, by number; None in rows of versions that did not save them."""

    def sentences(self) -> tuple[str, ...]:
        """Return what a reader of the values must know, or why there are none."""
        return (
            *self.notes,
            *([f"{self.name} refused the network: {self.refused}"] if self.refused else []),
        )

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per quantity: mean over inputs, interval, and how many inputs have no value."""
        import pandas as pd

        named = ("mean", "low", "high", "excluded")
        return pd.DataFrame(
            {"quantity": name} | dict(zip(named, summary(values, QUANTITIES[name].range), strict=True))
            for name, values in self.values.items()
        )

    def plot(self) -> "Figure":
        """Return every quantity with its interval."""
        return _row(self)


@dataclass(frozen=True)
class Disagreement:
    """Where measurement and expectation differ."""

    method: str
    desideratum: str
    measured: Mark
    expected: Mark
    certain: bool
    """Whether the whole interval lies outside the expected third."""

    def __str__(self) -> str:
        how = "" if self.certain else ", but the interval reaches the expected third"
        return f"{self.method}, {self.desideratum}: measured {sign(self.measured)}, expected {sign(self.expected)}{how}."


@dataclass(frozen=True)
class Scorecard(Result):
    """Rows of methods with their standing in each desideratum."""

    rows: tuple[Row, ...]
    standing: Float[Tensor, "rows desiderata"]
    """Mean rank from 0 (worst of those compared) to 1 (best); NaN where nothing was measured."""
    low: Float[Tensor, "rows desiderata"]
    high: Float[Tensor, "rows desiderata"]
    """Bounds of 95 % of bootstrap draws of inputs."""

    @classmethod
    def of(cls, rows: Sequence[Row], facts: Provenance, seed: int = 0) -> "Scorecard":
        """Rank rows among each other; those of methods that refused the network have no standing.

        Raises:
            EvaluationError: if fewer than two methods explain the network.
        """
        explained = [r for r, row in enumerate(rows) if not row.refused]
        if len(explained) < 2:
            said = "; ".join(f"{row.name}: {row.refused}" for row in rows if row.refused)
            raise EvaluationError(
                f"a scorecard compares methods, and {len(explained)} explain this network: give at least two. {said}".strip()
            )
        found = torch.full((3, len(rows), len(DESIDERATA)), torch.nan, dtype=torch.float64)
        found[:, explained] = torch.stack(standings([rows[r].values for r in explained], seed=seed))
        return cls(facts, tuple(rows), *(t.clone() for t in found))

    def mark(self, row: int, desideratum: int) -> Mark | None:
        """Return the third in which a method stands among those compared."""
        return third(float(self.standing[row, desideratum]))

    def places(self, desideratum: int) -> list[float]:
        """Return the methods' ranks in a desideratum, 1 the best, NaN where there is no standing."""
        return ranks(self.standing[:, desideratum].tolist(), "higher")

    @property
    def disagreements(self) -> tuple[Disagreement, ...]:
        """Where the measured third is not the expected one."""
        found = []
        for r, row in enumerate(self.rows):
            for d, desideratum in enumerate(DESIDERATA):
                mark, expected = self.mark(r, d), EXPECTED[row.family][d]
                if mark is not None and mark != expected:
                    ends = {third(float(b[r, d])) for b in (self.low, self.high)}
                    certain = expected not in ends and ends != {"+", "-"}
                    found.append(Disagreement(row.name, desideratum, mark, expected, certain))
        return tuple(found)

    def sentences(self) -> tuple[str, ...]:
        """Return where measurement and expectation differ."""
        return tuple(map(str, self.disagreements))

    def table(self) -> list[Record]:
        """Return one line per method: mark, standing, interval and rank in each desideratum, and the cost."""
        found: list[Record] = []
        ranked = [self.places(d) for d in range(len(DESIDERATA))]
        for r, row in enumerate(self.rows):
            line: Record = {"method": row.name, "family": row.family}
            for d, name in enumerate(DESIDERATA):
                line[name] = self.mark(r, d)
                line |= {
                    f"{name}: {what}": float(value)
                    for what, value in (
                        ("standing", self.standing[r, d]),
                        ("low", self.low[r, d]),
                        ("high", self.high[r, d]),
                        ("rank", ranked[d][r]),
                    )
                } | {f"{name}: expected": EXPECTED[row.family][d]}
            found.append(line | asdict(row.cost) | {"refused": row.refused})
        return found

    def evidence(self) -> list[Record]:
        """Return one line per method and quantity: mean, interval, rank, and how many inputs have no value."""
        found: list[Record] = []
        for name, quantity in QUANTITIES.items():
            have = [row for row in self.rows if name in row.values]
            stats = [summary(row.values[name], quantity.range) for row in have]
            ranked = ranks([s[0] for s in stats], quantity.better) if have else []
            for row, (mean, low, high, excluded), rank in zip(have, stats, ranked, strict=True):
                found.append(
                    {
                        "method": row.name,
                        "family": row.family,
                        "desideratum": quantity.desideratum,
                        "quantity": name,
                        "better": quantity.better,
                        "mean": mean,
                        "low": low,
                        "high": high,
                        "rank": rank,
                        "of": len(have),
                        "inputs": len(row.values[name]),
                        "excluded": excluded,
                    }
                )
        return found

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per method and quantity, as `evidence` does."""
        import pandas as pd

        return pd.DataFrame(self.evidence())

    def notebook_table(self) -> None:
        """Return nothing: the figure is the table."""

    def plot(self) -> "Figure":
        """Return the measured table, with what was expected beside it."""
        return _table(self)

    def plot_evidence(self) -> "Figure":
        """Return every quantity with its interval."""
        return _evidence(self)

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write the table and the evidence as CSV, both as JSON, and a figure of each as PNG and PDF; return the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = {"scorecard.csv": self.table(), "evidence.csv": self.evidence()}
        for name, lines in tables.items():
            write_csv(folder / name, list(lines[0]), (list(line.values()) for line in lines))
        text = json.dumps(_finite(self._document()), indent=1, ensure_ascii=False, allow_nan=False)
        document = folder / "scorecard.json"
        document.write_text(text + "\n", encoding="utf-8")
        figures = (*save_figure(self.plot(), folder / "scorecard"), *save_figure(self.plot_evidence(), folder / "evidence"))
        return (*(folder / name for name in tables), document, *figures)

    def _document(self) -> Record:
        return {
            "table": self.table(),
            "evidence": self.evidence(),
            "quantities": {name: asdict(quantity) for name, quantity in QUANTITIES.items()},
            "questions": QUESTIONS,
            "answered": {row.name: row.answers or () for row in self.rows},
            "methods": {row.name: row.provenance.method for row in self.rows},
            "notes": {row.name: row.notes for row in self.rows},
            "disagreements": [asdict(d) for d in self.disagreements],
            "provenance": asdict(self.provenance),
        }


def sign(mark: Mark) -> str:
    """Return a mark as it is printed."""
    return "\N{MINUS SIGN}" if mark == "-" else mark


def _finite(value: object) -> object:
    """Return a document in which numbers that JSON does not know are null."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _table(card: Scorecard) -> "Figure":
    """Return one line per method: for each desideratum its third, standing with interval, rank, and the expected mark."""
    height = _HEAD + _FOOT + _LINE * len(card.rows)
    ranked = [card.places(d) for d in range(len(DESIDERATA))]
    with style():
        figure = new_figure(FULL_WIDTH, height, fitted=False)
        axes = figure.add_axes((0, 0, 1, 1))
        _heads(axes, height)
        for r, row in enumerate(card.rows):
            y = height - _HEAD - _LINE * (r + 0.5)
            axes.text(0.05, y, row.name, va="center", fontsize=7)
            axes.axhline(y - _LINE / 2, color=RULE, linewidth=0.4)
            for d in range(len(DESIDERATA)):
                _cell(axes, card, (r, d), ranked[d][r], (_NAMES + _COLUMN * d, y))
            _cost(axes, row, y)
        _foot(axes, max(len(v) for row in card.rows for v in row.values.values()))
        axes.set(xlim=(0, FULL_WIDTH), ylim=(0, height))
        axes.set_axis_off()
    return figure


def _heads(axes: "Axes", height: float) -> None:
    for d, name in enumerate(DESIDERATA):
        x = _NAMES + _COLUMN * d
        axes.text(x + 0.03, height - 0.2, name, fontsize=5.6, fontweight="bold", va="center")
        for at, what in ((0.22, "measured"), (_RANK, "rank"), (_EXPECTED, "prior")):
            axes.text(x + at, height - 0.38, what, fontsize=4.6, color=FAINT, va="center", ha="center")
    for k, name in enumerate(_COSTS):
        axes.text(_cost_at(k), height - 0.38, name, fontsize=4.8, color=FAINT, va="center", ha="right")
    axes.text(_cost_at(2), height - 0.2, "cost of one", fontsize=5.6, fontweight="bold", va="center", ha="right")
    axes.axhline(height - _HEAD, color=INK, linewidth=0.6)


def _cost_at(column: int) -> float:
    return _NAMES + _COLUMN * len(DESIDERATA) + (0.5, 0.88, 1.22)[column]


def _cell(axes: "Axes", card: Scorecard, cell: tuple[int, int], rank: float, at: tuple[float, float]) -> None:
    (r, d), (x, y) = cell, at
    standing, low, high = (float(t[r, d]) for t in (card.standing, card.low, card.high))
    mark, expected = third(standing), EXPECTED[card.rows[r].family][d]
    colour = _COLOURS[mark]
    axes.text(x + 0.08, y, _MARKS[mark], fontsize=9, fontweight="bold", color=colour, va="center", ha="center")
    axes.text(
        x + _EXPECTED, y, _MARKS[expected], fontsize=7, color=INK if expected != mark else FAINT, va="center", ha="center"
    )
    if mark is None:
        return
    left, right = (x + end for end in _BAR)
    wide = right - left
    axes.plot([left, right], [y, y], color=RULE, linewidth=2.2, solid_capstyle="butt")
    axes.plot(
        [left + wide * low, left + wide * high], [y, y], color=colour, linewidth=2.2, alpha=0.45, solid_capstyle="butt"
    )
    axes.plot([left + wide * standing], [y], "o", color=colour, markersize=3)
    axes.text(x + _RANK, y, f"{rank:g}", fontsize=5.5, color=FAINT, va="center", ha="center")


def _cost(axes: "Axes", row: Row, y: float) -> None:
    cost = row.cost
    facts = (f"{cost.n_forward:,}+{cost.n_backward:,}", _short(cost.relative), _short(cost.peak_mb))
    for k, fact in enumerate(("refused", "", "") if row.refused else facts):
        axes.text(_cost_at(k), y, fact, va="center", ha="right", fontsize=6)


def _foot(axes: "Axes", inputs: int) -> None:
    lines = (
        (
            f"Measured on {inputs} inputs. Dot: mean rank of the column's quantities among the methods shown, from worst"
            " (left) to best (right); bar: 95 % of"
        ),
        (
            "bootstrap draws of the inputs. +, 0, \N{MINUS SIGN}: the upper, middle and lower third. Prior: marks of"
            " families of methods in a lecture (L. Rieger, DTU Compute), black where"
        ),
        "they differ. Passes: forward + backward; time: in forward passes of one input; MB: growth of memory.",
    )
    for k, line in enumerate(lines):
        axes.text(0.05, 0.46 - 0.14 * k, line, fontsize=5.3, color=FAINT, va="center")


def _evidence(card: Scorecard) -> "Figure":
    """Return a panel for each quantity in which methods differ: mean and 95 % interval of each method."""
    records = card.evidence()
    own = {n: [r for r in records if r["quantity"] == n] for n in QUANTITIES}
    names = [n for n in QUANTITIES if len({str(r["mean"]) for r in own[n]}) > 1]
    columns = 4
    lines = -(-len(names) // columns)
    methods = [row.name for row in card.rows if not row.refused]
    with style():
        figure = new_figure(FULL_WIDTH, lines * (0.62 + 0.125 * len(methods)))
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
        for panel, name in zip(panels, [*names, *[None] * (lines * columns - len(names))], strict=True):
            if name is None:
                panel.set_axis_off()
                continue
            _dots(panel, own[name], methods)
            quantity = QUANTITIES[name]
            arrow = "\N{RIGHTWARDS ARROW}" if quantity.better == "higher" else "\N{LEFTWARDS ARROW}"
            panel.set_title(f"{quantity.desideratum}\n{quantity.title} {arrow}", fontsize=5.8)
            panel.tick_params(labelsize=5.5)
        _families(figure, card)
    return figure


def _row(row: Row) -> "Figure":
    """Return a panel for each quantity of one method: values of single inputs, mean and 95 % interval."""
    columns = 4
    lines = max(1, -(-len(row.values) // columns))
    with style():
        figure = new_figure(FULL_WIDTH, 0.75 * lines)
        panels = list(figure.subplots(lines, columns, squeeze=False).flat)
        for panel, (name, values) in zip(panels, row.values.items(), strict=False):
            mean, low, high, _ = summary(values, QUANTITIES[name].range)
            known = values[~values.isnan()].tolist()
            panel.plot(known, [0] * len(known), "o", color=PALETTE[0], alpha=0.35, mew=0, ms=3.5)
            panel.plot([low, high], [0, 0], color=INK, linewidth=0.9)
            panel.plot(mean, 0, "|", color=INK, markersize=9, markeredgewidth=1.2)
            panel.set_title(QUANTITIES[name].title, fontsize=5.8)
            panel.set_yticks([])
            panel.spines["left"].set_visible(False)
            panel.tick_params(labelsize=5.5)
            panel.locator_params(axis="x", nbins=3)
        for panel in panels[len(row.values) :]:
            panel.set_axis_off()
    return figure


def _families(figure: "Figure", card: Scorecard) -> None:
    from matplotlib.lines import Line2D

    shown = [f for f in _FAMILIES if any(row.family == f for row in card.rows)]
    handles = [Line2D([], [], color=_FAMILIES[f], marker="o", markersize=2.8) for f in shown]
    figure.legend(handles, [_TITLES[f] for f in shown], loc="outside lower right", ncols=len(shown), fontsize=5.8)


def _dots(panel: "Axes", records: list[Record], methods: list[str]) -> None:
    known = [r for r in records if not math.isnan(float(str(r["mean"])))]
    for record in known:
        y = len(methods) - 1 - methods.index(str(record["method"]))
        mean, low, high = (float(str(record[k])) for k in ("mean", "low", "high"))
        colour = _FAMILIES[str(record["family"])]
        if not math.isnan(low):
            panel.plot([low, high], [y, y], color=colour, linewidth=0.9)
        panel.plot([mean], [y], "o", color=colour, markersize=2.8)
    panel.set_yticks(range(len(methods)), methods[::-1])
    panel.set_ylim(-0.6, len(methods) - 0.4)
    panel.grid(axis="y", color=RULE, linewidth=0.4)
    values = [float(str(r["mean"])) for r in known]
    if min(values) > 0 and max(values) > 30 * min(values):
        logarithmic(panel)


def _short(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
