"""Whether what is read off an audit's layers is what its classes use there, held against the measured swap."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.measurement.setup import Material
from concepts.erasure.read_used_moved import ReadUsedMoved
from concepts.erasure.table import REVERSED, UNPREDICTED, USED, ReadUsedMovedResult
from concepts.local_vs_global.matched_pairs import MatchedConcept
from probing.models.scores import Score
from probing.results.html_report import (
    Finding,
    Link,
    Paragraph,
    Plate,
    Points,
    Section,
    Table,
    interval,
    linked,
    number,
    words,
)
from probing.results.result import Result
from probing.results.tables import DataTable
from probing.store.requests import Request
from probing.store.store import ActivationStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLE = "Read, used, moved"
_CONTROLS = 4
"""Each is a pass of every held-out image at every layer, twice for half of them."""


@dataclass(frozen=True)
class Use:
    """Each contrast at the audit's layers: read, carried, needed, predicted and moved, of held-out clusters.

    Rows and gradients are the audit's own; passes with a layer changed come on top.
    """

    def requests(self, material: Material) -> tuple[Request, ...]:
        """Return nothing: what passes with a layer changed give can't be kept."""
        return ()

    def measure(self, material: Material, store: ActivationStore) -> ReadUsedMovedResult:
        """Return the table of all contrasts, layers and classes."""
        statistics, model = material.file.statistics, material.loaded.model
        method = ReadUsedMoved(
            material.layers,
            controls=_CONTROLS,
            relabellings=statistics.relabellings,
            bootstraps=statistics.bootstraps,
            share=material.file.inputs.fit_share,
            level=1 - statistics.alpha,
            seed=statistics.seed,
        )
        matched = [
            MatchedConcept(c.spec.name, material.subset(c.every.first), material.subset(c.every.second), c.every.cluster)
            for c in material.contrasts
        ]
        return method(
            store,
            {name: Score(model, index) for name, index in material.targets.items()},
            matched,
            inputs=material.subset(material.inputs),
            input_clusters=material.clusters_of(material.inputs),
            fitted_on=material.fitted_on,
        )

    def findings(self, audit: AuditResults, found: Result) -> tuple[Finding, ...]:
        """Say for each contrast how many of the logits that it moves are shown to use what is read, and where."""
        assert isinstance(found, ReadUsedMovedResult)
        return use_findings(found, audit.clusters)

    def tables(self, audit: AuditResults, found: Result) -> tuple[DataTable, ...]:
        """Return a row for each contrast, layer and class."""
        assert isinstance(found, ReadUsedMovedResult)
        return (use_numbers(found),)

    def section(self, audit: AuditResults, found: Result) -> Section:
        """Return the figure of all columns, what it says in words, and the table."""
        assert isinstance(found, ReadUsedMovedResult)
        return use_section(found, audit.clusters)


def use_section(found: ReadUsedMovedResult, clusters: str) -> Section:
    """Return the figure of all columns, what it says in words, and the table; clusters are called so."""
    text = (
        f"Five questions on the same held-out {clusters}. Read: does a linear classifier tell the sides apart at a"
        " layer? Carried: do the directions by which it does, put over from one side's pass into the other's, change"
        " logits? Needed: does less of the swap happen where they are erased? Predicted: the effect in logits, to first"
        " order. Moved: what the swap does. Where they part, to be read does not mean to be used."
    )
    caption = (
        "Of each contrast what its directions at a layer carry, what of the swap needs them, and what is predicted, "
        f"above what the swap of held-out {clusters} does, in logits; dots mark evidence. Left: the error of the "
        f"reader with its {found.level:.0%} interval over {clusters}; one half is chance."
    )
    label, table = "What is read, used and moved", "read_used_moved"
    plate = Plate(partial(_figure, found), label, caption, f"figures/{table}", table)
    return Section(_TITLE, (Paragraph(text), plate, Points(found.sentences()), _table(found)))


def _figure(found: ReadUsedMovedResult) -> "Figure":
    return found.plot()


def use_numbers(found: ReadUsedMovedResult) -> DataTable:
    """Return a row for each attribute, layer and score."""
    return DataTable.of_frame("read_used_moved", "each contrast at each layer for each class", found.to_pandas(), 3)


def use_findings(found: ReadUsedMovedResult, clusters: str) -> tuple[Finding, ...]:
    """Say for each attribute how many of the scores that it moves are shown to use what is read, and where."""
    return tuple(_finding(found, a, clusters) for a in range(len(found.attributes)))


def _finding(found: ReadUsedMovedResult, a: int, called: str) -> Finding:
    name, layers, targets = found.attributes[a], range(len(found.layers)), range(len(found.targets))
    said = [[found.says(a, i, t) for t in targets] for i in layers]
    used = [sum(s in {USED, UNPREDICTED, REVERSED} for s in row) for row in said]
    best = max(layers, key=lambda i: used[i])
    moved = found.shown("moved")[a, best]
    carried = found.shown("carried")[a, best] | found.shown("needed")[a, best]
    count, uses = int(moved.sum()), int((moved & carried).sum())
    layer, clusters = found.layers[best], f"{found.judged[a]} held-out {called}"
    if not count:
        claim = f"{name} is not shown to move any of {len(targets)} logits on {clusters}, whatever can be read."
        return Finding(claim, _reading(found, a), see=_TITLE)
    claim = f"{name} moves {count} of {len(targets)} logits on {clusters}; "
    claim += f"{uses} of them are shown to use what is read at {layer}." if uses else "none is shown to use what is read."
    evidence: tuple[str | Link, ...] = ()
    if uses:
        cells = torch.where(moved & carried, found.moved[a].abs(), -1)
        t = int(cells.argmax())
        share = float(found.share[a, best, t])
        evidence = words(
            f"Largest there: {found.targets[t]}, {number(float(found.moved[a, t]), sign=True)} logits, of which the "
            "directions carry ",
            Link(f"{share:.0%}", use_numbers(found).at(name, layer, found.targets[t])),
            f" ({number(float(found.carried_control[a, best, t]), sign=True)} logits at random). ",
        )
    return Finding(claim, words(*evidence, *words(_reading(found, a))), see=_TITLE)


def _reading(found: ReadUsedMovedResult, a: int) -> str:
    best = int(found.error[a].argmin())
    error, low, high = (float(e[a, best]) for e in (found.error, found.error_low, found.error_high))
    return (
        f"It is read best at {found.layers[best]}, with an error of {error:.0%} ({low:.0%} to {high:.0%}); one half is "
        "chance. That logits use more than these directions is not ruled out."
    )


def _table(found: ReadUsedMovedResult) -> Table:
    numbers = use_numbers(found)
    rows = []
    for a, attribute in enumerate(found.attributes):
        for i, layer in enumerate(found.layers):
            for t, target in enumerate(found.targets):
                cells = [attribute, layer, target, found.says(a, i, t), number(float(found.error[a, i]))]
                for column in ("carried", "needed", "predicted"):
                    value, low, high = (float(getattr(found, f"{column}{e}")[a, i, t]) for e in ("", "_low", "_high"))
                    cells.append(f"{number(value, sign=True)} ({interval(low, high)})")
                cells.append(number(float(found.moved[a, t]), sign=True))
                rows.append(linked(cells, numbers.at(attribute, layer, target), 4))
    header = ("contrast", "layer", "class", "in words", "error", "carried", "needed", "predicted", "moved")
    caption = "What is read, carried, needed, predicted and moved, in logits but for the error, with intervals."
    return Table(caption, header, tuple(rows), 4, folded=True)
