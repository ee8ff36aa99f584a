"""What every analysis of an audit does: measure once, and speak from what was saved."""

from typing import Protocol, runtime_checkable

from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.measurement.setup import Material
from probing.results.html_report import Finding, Section
from probing.results.result import Result
from probing.results.tables import DataTable
from probing.store.requests import Request
from probing.store.store import ActivationStore


@runtime_checkable
class Analysis(Protocol):
    """One more reading of the model that an audit is about, from the rows that the audit reads anyway."""

    def requests(self, material: Material) -> tuple[Request, ...]:
        """Return what `measure` asks of the store beyond the audit's own rows, so that engines can fill it before."""
        ...

    def measure(self, material: Material, store: ActivationStore) -> Result:
        """Return what is found; it is saved before anything is drawn."""
        ...

    def findings(self, audit: AuditResults, found: Result) -> tuple[Finding, ...]:
        """Return what belongs in the verdict."""
        ...

    def tables(self, audit: AuditResults, found: Result) -> tuple[DataTable, ...]:
        """Return all numbers, for CSV files and for the numbers of the report to lead to."""
        ...

    def section(self, audit: AuditResults, found: Result) -> Section:
        """Return the report's section, its figures yet to be drawn; no model is run and nothing is written."""
        ...
