"""The report of an audit and its CSV files, made of its saved results alone."""

from collections.abc import Mapping
from pathlib import Path

from concepts.auditing.analyses import ANALYSES
from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.report.sections.data import audit_tables
from concepts.auditing.report.sections.directions import (
    directions_section,
    likeness_section,
    scores_section,
)
from concepts.auditing.report.sections.effects import (
    agreement_section,
    changes_section,
    disagreements_section,
    picked_section,
)
from concepts.auditing.report.sections.method import limits, method_section, targets_section
from concepts.auditing.report.sections.origin import origin_section, reproduction_section
from concepts.auditing.report.verdict import verdict
from probing import __version__
from probing.evaluation.scorecard.page import LIMITS, scorecard_sections
from probing.evaluation.scorecard.scorecard import Scorecard
from probing.results.html_report import Paragraph, Report, Section
from probing.results.result import Result


def _swapped(results: AuditResults, folder: Path) -> tuple[Section | None, ...]:
    """Return the sections on what exchanging matched images does."""
    return (
        changes_section(results, folder),
        picked_section(results),
        agreement_section(results, folder),
        disagreements_section(results),
    )


SCORECARD = "scorecard/result"
_NUMBERS = ("probes", "dissection")  # analyses that come before pictures


def _scorecard(folder: Path, provenance: Mapping[str, object]) -> Section | None:
    """Return what `probing evaluate --out DIR/scorecard` measured of explanations of the audited model, if it was run."""
    if not (folder / SCORECARD).exists():
        return None
    card = Scorecard.load(folder / SCORECARD)
    title = "Which explanations of this model to trust"
    if card.provenance.model != provenance.get("model"):
        text = (
            f"The folder {SCORECARD} holds a scorecard of another model than the audited one (content "
            f"{card.provenance.model}): it is left out."
        )
        return Section(title, (Paragraph(text),))
    said = Paragraph("How methods that explain single inputs, and whole networks, stand on this model. " + LIMITS[0])
    return Section(title, (said, *scorecard_sections(card)))


def write_report(folder: Path, provenance: Mapping[str, object]) -> AuditResults:
    """Draw all figures and write tables and the report of the results saved in a folder; no model is run.

    Args:
        folder: with `results.json` and the pictures under `images`.
        provenance: what made the results, as saved beside them.

    Raises:
        concepts.auditing.measurement.results.ResultsError: if there are no readable results.
    """
    results = AuditResults.load(folder)
    found = {name: Result.load(folder / "analyses" / name) for name in results.analyses}
    data = (
        *audit_tables(results),
        *(t for name, result in found.items() for t in ANALYSES[name].tables(results, result)),
    )
    for table in data:
        table.write(folder / "tables")
    analysed = {n: ANALYSES[n].section(results, r, folder) for n, r in found.items()}
    sections = [
        scores_section(results, folder),
        *(_swapped(results, folder) if results.contrasts else ()),
        directions_section(results, folder),
        *(analysed.pop(name) for name in _NUMBERS if name in analysed),
        likeness_section(results, folder),
        *analysed.values(),
        _scorecard(folder, provenance),
        targets_section(results),
        method_section(results),
        origin_section(results, provenance),
        reproduction_section(results, provenance, folder),
    ]
    page = Report(
        title=results.title,
        subject=f"Audit “{results.name}” of {results.model}",
        question=results.question,
        findings=(
            *verdict(results),
            *(f for name, result in found.items() for f in ANALYSES[name].findings(results, result)),
        ),
        data=data,
        limits=(*results.limits, *limits(results)),
        sections=tuple(s for s in sections if s is not None),
        colophon=(("Made", f"{provenance.get('created', '')} by probing-concepts {__version__}"),),
    )
    page.save(folder / "report.html")
    return results
