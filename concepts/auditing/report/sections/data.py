"""An audit's numbers as tables: CSV files, and what the numbers of its report lead to."""

from collections.abc import Iterator

from concepts.auditing.measurement.results import TABLES, AuditResults
from concepts.auditing.report.criteria import reading
from probing.results.tables import DataTable


def audit_tables(results: AuditResults) -> Iterator[DataTable]:
    """Yield a table for each kind of row that results hold; those of older audits may lack some."""
    said = [reading(results, c) if results.of(c.concept).matched else "" for c in results.cells]
    for field, (name, about) in TABLES.items():
        if rows := getattr(results, field):
            yield DataTable.of(name, about, rows, {"reading": said} if field == "cells" else None)
