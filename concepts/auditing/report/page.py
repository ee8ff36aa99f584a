"""The report of an audit and its CSV files, made of its saved results alone."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from concepts.auditing.analyses import ANALYSES
from concepts.auditing.measurement.results import AuditResults, saved_picture
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
from concepts.auditing.report.summary import audit_summary
from concepts.auditing.report.verdict import verdict
from probing import __version__
from probing.evaluation.scorecard.page import LIMITS, scorecard_sections
from probing.evaluation.scorecard.scorecard import Scorecard
from probing.results.html_report import Paragraph, Report, Section, nothing_last
from probing.results.result import Result


def _swapped(results: AuditResults) -> tuple[Section | None, ...]:
    """Return the sections on what swapping matched images does."""
    return (
        changes_section(results),
        picked_section(results),
        agreement_section(results),
        disagreements_section(results),
    )


SCORECARD = "scorecard/result"
_NUMBERS = ("probes", "read_used_moved", "dissection")  # analyses that come before pictures


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


def _files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that the report is made of, by its path in the folder."""
    paths = [folder / "results.json", *sorted((folder / "analyses").rglob("*.safetensors"))]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def write_report(folder: Path, provenance: Mapping[str, object]) -> AuditResults:
    """Draw all figures and write tables and the report of the results saved in a folder; no model is run.

    Args:
        folder: with `results.json` and the pictures under `images`.
        provenance: what made the results, as saved beside them.

    Raises:
        concepts.auditing.measurement.results.ResultsError: if there are no readable results.
        probing.results.result.SavedResultError: if those of an analysis can't be read.
        OSError: if a picture is missing, or something can't be written.
    """
    results = AuditResults.load(folder)
    audit_page(results, folder, provenance).save(folder / "report.html")
    return results


def audit_page(results: AuditResults, folder: Path, provenance: Mapping[str, object]) -> Report:
    """Return the report of an audit, its figures yet to be drawn; the folder is read, and nothing is written.

    Args:
        results: of the audit.
        folder: that they were loaded from, with those of its analyses, and the pictures that figures show.
        provenance: what made the results, as saved beside them.

    Raises:
        probing.results.result.SavedResultError: if the results of an analysis can't be read.
    """
    found = {name: Result.load(folder / "analyses" / name) for name in results.analyses}
    analysed = {n: ANALYSES[n].section(results, r) for n, r in found.items()}
    sections = [
        scores_section(results),
        *(_swapped(results) if results.contrasts else ()),
        directions_section(results),
        *(analysed.pop(name) for name in _NUMBERS if name in analysed),
        likeness_section(results, partial(saved_picture, folder)),
        *analysed.values(),
        _scorecard(folder, provenance),
    ]
    about = (
        targets_section(results),
        method_section(results),
        origin_section(results, provenance),
        reproduction_section(results, provenance, folder.name, _files(folder)),
    )
    return Report(
        title=results.title,
        subject=f"Audit “{results.name}” of {results.model}",
        question=results.question,
        findings=(
            *verdict(results),
            *(f for name, result in found.items() for f in ANALYSES[name].findings(results, result)),
        ),
        data=(
            *audit_tables(results),
            *(t for name, result in found.items() for t in ANALYSES[name].tables(results, result)),
        ),
        summary=audit_summary(results, partial(saved_picture, folder)),
        limits=(*results.limits, *limits(results)),
        sections=(*nothing_last([s for s in sections if s is not None]), *about),
        colophon=(("Made", f"{provenance.get('created', '')} by probing-concepts {__version__}"),),
    )
