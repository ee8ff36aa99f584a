"""The scorecard as a page, or a section of one: the table, where it differs from what was expected, the evidence."""

from collections.abc import Sequence

from probing.evaluation.scorecard.criteria import DESIDERATA, QUANTITIES, QUESTIONS
from probing.evaluation.scorecard.scorecard import Record, Scorecard, sign
from probing.evaluation.scorecard.summary import scorecard_summary
from probing.results.html_report import (
    NONE,
    Block,
    Finding,
    Plate,
    Points,
    Report,
    Section,
    Table,
    interval,
    number,
)

LIMITS = (
    "Ranks compare the methods of this table only: another method, or other inputs, change them.",
    "Fidelity is measured by removal, by randomising the network and by sums, which can disagree; the evidence shows each.",
    "Where few quantities apply to a method, as to those that read whole networks, its standing rests on these alone.",
    "Questions answered, demands on the network and settings are counted from what a method is, not measured on inputs.",
    "Whether a person understands an explanation is not measured: that takes people.",
)
_TABLE = "Measured standing of each method among those shown, and what was expected of its family."
_EVIDENCE = "The quantities behind the table: means over inputs and 95 % intervals; the arrow points to what is better."


def scorecard_page(card: Scorecard, subject: str) -> Report:
    """Return the scorecard as a page of its own."""
    return Report(
        title="Which explanation should I trust?",
        subject=subject,
        question="Which method is faithful, readable, sufficient, easy to set up, quick?",
        findings=tuple(_finding(card, d) for d in range(len(DESIDERATA))),
        summary=scorecard_summary(card),
        limits=LIMITS,
        sections=scorecard_sections(card),
        colophon=(
            ("made", card.provenance.created),
            ("model", card.provenance.model),
            ("inputs", card.provenance.examples),
        ),
    )


def _finding(card: Scorecard, desideratum: int) -> Finding:
    """Return who stands in which third of a desideratum, and for whom another was expected for sure."""
    name = DESIDERATA[desideratum]
    marks = {row.name: card.mark(r, desideratum) for r, row in enumerate(card.rows)}
    thirds = ((sign(m), [n for n, own in marks.items() if own == m]) for m in ("+", "0", "-"))
    claim = "; ".join(f"{mark} {', '.join(names)}" for mark, names in thirds if names)
    parted = [f"{d.method} (expected {sign(d.expected)})" for d in card.disagreements if d.certain and d.desideratum == name]
    evidence = f"What was expected lies outside the interval of {', '.join(parted)}." if parted else ""
    return Finding(f"{name.capitalize()}: {claim or 'not measured'}.", evidence)


def scorecard_sections(card: Scorecard) -> tuple[Section, ...]:
    """Return the parts of a report that show the table, where it differs from what was expected, and the evidence.

    The files of their figures are those that `Scorecard.write` writes.
    """
    evidence = card.evidence()
    return (
        Section("The table, measured", tuple(_table(card))),
        Section("Evidence", (_plate(card),)),
        *(Section(d.capitalize(), tuple(_behind(card, d, evidence))) for d in DESIDERATA),
    )


def _table(card: Scorecard) -> list[Block]:
    blocks: list[Block] = [Plate(card.plot, "methods against desiderata", _TABLE, "scorecard", written=False)]
    open_ = [str(d) for d in card.disagreements if not d.certain]
    refused = [f"{row.name} refused: {row.refused}" for row in card.rows if row.refused]
    notes = [f"{row.name}: {note}" for row in card.rows for note in row.notes]
    if said := (*refused, *notes, *open_):
        blocks.append(Points(said))
    return blocks


def _plate(card: Scorecard) -> Plate:
    return Plate(card.plot_evidence, "all quantities", _EVIDENCE, "evidence", written=False)


def _behind(card: Scorecard, desideratum: str, evidence: Sequence[Record]) -> list[Block]:
    """Return what a column rests on: what its quantities are, and their values."""
    own = {n: q for n, q in QUANTITIES.items() if q.desideratum == desideratum}
    told = tuple(f"{q.title} ({q.better} is better): {q.what}." for q in own.values())
    rows = tuple(_line(r) for r in evidence if r["quantity"] in own)
    header = ("quantity", "method", "better", "mean", "95 %", "rank", "inputs", "left out")
    blocks: list[Block] = [Points(told), Table(f"{desideratum.capitalize()}: every quantity", header, rows, 3, folded=True)]
    return [*blocks, _questions(card)] if "questions" in own else blocks


def _line(record: Record) -> tuple[str, ...]:
    mean, low, high, rank = (_known(record[k]) for k in ("mean", "low", "high", "rank"))
    digits = 0 if mean is not None and abs(mean) >= 100 else 3
    sampled = record["inputs"] != 1
    return (
        QUANTITIES[str(record["quantity"])].title,
        str(record["method"]),
        str(record["better"]),
        number(mean, digits if sampled or (mean or 0) % 1 else 0),
        interval(low, high, digits, sign=False) if sampled else NONE,
        NONE if rank is None else f"{rank:g} of {record['of']}",
        str(record["inputs"]) if sampled else NONE,
        str(record["excluded"]),
    )


def _questions(card: Scorecard) -> Table:
    rows = tuple(
        (question, ", ".join(r.name for r in card.rows if i in (r.answers or ())) or NONE)
        for i, question in enumerate(QUESTIONS, 1)
    )
    return Table("Which method answers which question", ("question", "methods"), rows, 2, folded=True)


def _known(value: object) -> float | None:
    found = float(str(value))
    return None if found != found else found  # noqa: PLR0124 (NaN)
