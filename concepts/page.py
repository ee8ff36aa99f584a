"""The report of an audit and its CSV files, made of its saved results alone."""

from collections.abc import Mapping
from pathlib import Path

from concepts.analyses import ANALYSES
from concepts.results import AuditResults
from concepts.sections.data import audit_tables
from concepts.sections.directions import directions_section, likeness_section, scores_section
from concepts.sections.effects import (
    agreement_section,
    changes_section,
    disagreements_section,
    picked_section,
)
from concepts.sections.method import colophon, limits, method_section, targets_section
from concepts.verdict import verdict
from probing.provenance import Result
from probing.report import Report, Section


def _swapped(results: AuditResults, folder: Path) -> tuple[Section | None, ...]:
    """Return the sections on what exchanging matched images does."""
    return (
        agreement_section(results, folder),
        changes_section(results, folder),
        picked_section(results),
        disagreements_section(results),
    )


def write_report(folder: Path, provenance: Mapping[str, object]) -> AuditResults:
    """Draw all figures and write tables and the report of the results saved in a folder; no model is run.

    Args:
        folder: with `results.json` and the pictures under `images`.
        provenance: what made the results, as saved beside them.

    Raises:
        concepts.results.ResultsError: if there are no readable results.
    """
    results = AuditResults.load(folder)
    found = {name: Result.load(folder / "analyses" / name) for name in results.analyses}
    data = (
        *audit_tables(results),
        *(t for name, result in found.items() for t in ANALYSES[name].tables(results, result)),
    )
    for table in data:
        table.write(folder / "tables")
    sections = [
        *(_swapped(results, folder) if results.contrasts else ()),
        scores_section(results, folder),
        directions_section(results, folder),
        likeness_section(results, folder),
        *(ANALYSES[name].section(results, result, folder) for name, result in found.items()),
        targets_section(results),
        method_section(results),
    ]
    page = Report(
        title=results.title,
        subject=f"Audit “{results.name}” of {results.model}",
        question=results.question,
        findings=(
            *verdict(results),
            *(
                f
                for name, result in found.items()
                for f in ANALYSES[name].findings(results, result)
            ),
        ),
        data=data,
        limits=(*results.limits, *limits(results)),
        sections=tuple(s for s in sections if s is not None),
        colophon=(*colophon(provenance), *results.sources),
    )
    page.save(folder / "report.html")
    return results
