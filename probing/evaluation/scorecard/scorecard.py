"""The lecture's table of which method is good for what, filled with measurements.

One row per method and one column per desideratum; never one number for all. Each column is the mean rank of a few
measured quantities among the methods compared, with an interval over inputs; the quantities stand beside it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probing.evaluation.base import EvaluationError
from probing.evaluation.scorecard.cost import Cost
from probing.evaluation.scorecard.criteria import (
    DECK,
    DESIDERATA,
    QUANTITIES,
    QUESTIONS,
    Family,
    Mark,
    answered,
    third,
)
from probing.evaluation.scorecard.ranking import ranks, standings, summary
from probing.results.csv_files import write_csv
from probing.results.result import Provenance, Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Record = dict[str, object]
"""A line of a table, by column."""


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
            {"quantity": name}
            | dict(zip(named, summary(values, QUANTITIES[name].range), strict=True))
            for name, values in self.values.items()
        )

    def plot(self) -> "Figure":
        """Return every quantity with its interval."""
        from probing.evaluation.scorecard.figures import row_figure

        return row_figure(self)


@dataclass(frozen=True)
class Disagreement:
    """Where measurement and lecture part."""

    method: str
    desideratum: str
    measured: Mark
    deck: Mark
    certain: bool
    """Whether the whole interval lies outside the lecture's third."""

    def __str__(self) -> str:
        how = "" if self.certain else ", but the interval reaches the lecture's third"
        return f"{self.method}, {self.desideratum}: measured {sign(self.measured)}, the lecture says {sign(self.deck)}{how}."


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
        """Where the measured third is not the lecture's."""
        found = []
        for r, row in enumerate(self.rows):
            for d, desideratum in enumerate(DESIDERATA):
                mark, deck = self.mark(r, d), DECK[row.family][d]
                if mark is not None and mark != deck:
                    ends = {third(float(b[r, d])) for b in (self.low, self.high)}
                    certain = deck not in ends and ends != {"+", "-"}
                    found.append(Disagreement(row.name, desideratum, mark, deck, certain))
        return tuple(found)

    def sentences(self) -> tuple[str, ...]:
        """Return where measurement and lecture part."""
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
                        ("standing", self.standing[r, d]), ("low", self.low[r, d]), ("high", self.high[r, d]),
                        ("rank", ranked[d][r]),
                    )
                } | {f"{name}: lecture": DECK[row.family][d]}  # fmt: skip
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
                        "method": row.name, "family": row.family, "desideratum": quantity.desideratum,
                        "quantity": name, "better": quantity.better, "mean": mean, "low": low, "high": high,
                        "rank": rank, "of": len(have), "inputs": len(row.values[name]), "excluded": excluded,
                    }
                )  # fmt: skip
        return found

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per method and quantity, as `evidence` does."""
        import pandas as pd

        return pd.DataFrame(self.evidence())

    def notebook_table(self) -> None:
        """Return nothing: the figure is the table."""

    def plot(self) -> "Figure":
        """Return the lecture's table, measured, with its opinion beside it."""
        from probing.evaluation.scorecard.figures import table_figure

        return table_figure(self)

    def plot_evidence(self) -> "Figure":
        """Return every quantity with its interval."""
        from probing.evaluation.scorecard.figures import evidence_figure

        return evidence_figure(self)

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write the table and the evidence as CSV, both as JSON, and a figure of each as PNG and PDF; return the paths."""
        from probing.results.figures import save_figure

        folder.mkdir(parents=True, exist_ok=True)
        tables = {"scorecard.csv": self.table(), "evidence.csv": self.evidence()}
        for name, lines in tables.items():
            write_csv(folder / name, list(lines[0]), (list(line.values()) for line in lines))
        text = json.dumps(_finite(self._document()), indent=1, ensure_ascii=False, allow_nan=False)
        document = folder / "scorecard.json"
        document.write_text(text + "\n", encoding="utf-8")
        figures = (*save_figure(self.plot(), folder / "scorecard"), *save_figure(self.plot_evidence(), folder / "evidence"))  # fmt: skip
        return (*(folder / name for name in tables), document, *figures)

    def _document(self) -> Record:
        return {
            "table": self.table(),
            "evidence": self.evidence(),
            "quantities": {name: asdict(quantity) for name, quantity in QUANTITIES.items()},
            "questions": QUESTIONS,
            "answered": {row.name: answered(row.kind) for row in self.rows},
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
