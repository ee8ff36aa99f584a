"""Where in the network an audit's attributes are linearly readable, on clusters never seen in training."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.measurement.setup import Material
from probing.probes import LayerProbes, ProbeResult, SoftmaxProbe
from probing.results.figures import FULL_WIDTH, figure_of, new_figure, style
from probing.results.html_report import (
    Block,
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
from probing.results.result import Provenance, Result
from probing.results.tables import DataTable, known
from probing.store.requests import Request
from probing.store.store import ActivationStore

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


_TITLE = "Where the attributes are readable"


@dataclass(frozen=True)
class AttributeProbes(Result):
    """Probes of each attribute that the audit contrasts."""

    attributes: tuple[str, ...]
    probes: tuple[ProbeResult, ...]
    """One for each attribute."""

    def sentences(self) -> tuple[str, ...]:
        """Return what must be said beside the numbers."""
        return tuple(dict.fromkeys(note for probe in self.probes for note in probe.sentences()))

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per attribute and layer."""
        import pandas as pd

        pairs = zip(self.attributes, self.probes, strict=True)
        tables = [probe.to_pandas().assign(attribute=name) for name, probe in pairs]
        return pd.concat(tables, ignore_index=True)

    def notebook_table(self) -> "pd.DataFrame":
        """Return the error beside what it is to be compared with."""
        columns = ["attribute", "layer", "error", "low", "high", "untrained_error", "selectivity"]
        return self.to_pandas()[columns]

    def plot(self) -> "Figure":
        """Draw the error over layers, a panel for each attribute."""
        with style():
            figure = new_figure(FULL_WIDTH, 2.4)
            panels = figure.subplots(1, len(self.probes), sharey=True, squeeze=False)[0]
            for axes, name, probe in zip(panels, self.attributes, self.probes, strict=True):
                probe.plot(axes)
                axes.set_title(name, loc="left", fontweight="bold")
                axes.get_legend().remove()
            for axes in panels[1:]:
                axes.set_ylabel("")
            panels[0].autoscale(axis="y")
            panels[0].set_ylim(bottom=0)
            handles, names = panels[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper left", ncols=len(names))
        return figure


@dataclass(frozen=True)
class Probes:
    """Linear probes of the attributes that the audit contrasts, at the audit's layers (Alain & Bengio 2016)."""

    def requests(self, material: Material) -> tuple[Request, ...]:
        """Return rows of the data's images, at random weights too."""
        examples = material.subset(range(len(material.manifests[0].items)))
        return _method(material).requests(material.loaded.model, examples)

    def measure(self, material: Material, store: ActivationStore) -> AttributeProbes:
        """Return probes of all the data's images; no cluster is on two sides of the split."""
        data = material.manifests[0]
        attributes = material.file.attributes
        method = _method(material)
        examples = material.subset(range(len(data.items)))
        clusters = material.data_clusters
        probes = tuple(
            method(store, material.loaded.model, examples, data.attribute(name), groups=clusters) for name in attributes
        )
        return AttributeProbes(Provenance.collect(model=material.loaded.model, method=method), attributes, probes)

    def findings(self, audit: AuditResults, found: Result) -> tuple[Finding, ...]:
        """Say for each attribute how well it can be read at the best layer, and what that is to be compared with."""
        assert isinstance(found, AttributeProbes)
        pairs = zip(found.attributes, found.probes, strict=True)
        numbers = _numbers(found)
        return tuple(_finding(audit, name, probe, numbers) for name, probe in pairs)

    def tables(self, audit: AuditResults, found: Result) -> tuple[DataTable, ...]:
        """Return a row for each attribute and layer."""
        assert isinstance(found, AttributeProbes)
        return (_numbers(found),)

    def section(self, audit: AuditResults, found: Result) -> Section:
        """Return curves and tables of all attributes."""
        assert isinstance(found, AttributeProbes)
        text = (
            f"A linear classifier reads an attribute off each layer. It is fitted on some {audit.clusters} and judged on"
            " others. Readable does not mean used: whether a logit depends on the attribute only a swap of matched"
            " images tells. The same network at random weights shows how much of it is in the images and the architecture,"
            " not in what was learnt."
        )
        blocks: list[Block] = [Paragraph(text)]
        for i, (name, probe) in enumerate(zip(found.attributes, found.probes, strict=True)):
            fitted, chosen, judged = probe.examples
            caption = (
                f"Error of linear probes of {name} ({', '.join(probe.classes)}) with {probe.level:.0%} intervals over"
                f" {probe.groups} {audit.clusters}: fitted on {fitted} images, penalty chosen on {chosen}, judged on"
                f" {judged}."
            )
            label = f"Probes of {name} by layer"
            blocks += [
                Plate(partial(_curve, probe), label, caption, f"figures/probes_{i + 1}", "probes"),
                _table(name, probe, _numbers(found)),
            ]
        notes = found.sentences()
        return Section(_TITLE, (*blocks, *([Points(notes)] if notes else [])))


def _method(material: Material) -> LayerProbes:
    statistics = material.file.statistics
    return LayerProbes(
        material.layers, SoftmaxProbe(tolerance=1e-4), inputs=False, level=statistics.level, seed=statistics.seed
    )


_PER_LAYER = (
    "error",
    "low",
    "high",
    "train_error",
    "control_error",
    "untrained_error",
    "untrained_low",
    "untrained_high",
    "selectivity",
    "bits",
    "compression",
)


def _numbers(found: AttributeProbes) -> DataTable:
    rows = tuple(
        (name, layer, int(p.features[i]), *(known(getattr(p, column)[i]) for column in _PER_LAYER), p.majority_error)
        for name, p in zip(found.attributes, found.probes, strict=True)
        for i, layer in enumerate(p.layers)
    )
    columns = ("attribute", "layer", "features", *_PER_LAYER, "majority_error")
    return DataTable("probes", "linear probes of each attribute at each layer", columns, rows, 2)


def _finding(audit: AuditResults, name: str, probe: ProbeResult, numbers: DataTable) -> Finding:
    inner = [i for i, layer in enumerate(probe.layers) if layer in audit.layers]
    best = min(inner, key=lambda i: float(probe.error[i]))
    error, low, high = (float(v[best]) for v in (probe.error, probe.low, probe.high))
    readable = high < probe.majority_error
    learnt = high < float(probe.untrained_low[best])
    claim = f"{name.capitalize()} is {'' if readable else 'not shown to be '}linearly readable inside the model"
    claim += ", better than at random weights." if readable and learnt else "."
    evidence = words(
        f"Best at {probe.layers[best]}: error ",
        Link(f"{error:.0%}", numbers.at(name, probe.layers[best])),
        f" ({low:.0%} to {high:.0%}) on {probe.groups} {audit.clusters} that no probe was fitted on; the most frequent class"
        f" alone errs in {probe.majority_error:.0%}, the same layer at random weights in"
        f" {float(probe.untrained_error[best]):.0%} ({float(probe.untrained_low[best]):.0%} to"
        f" {float(probe.untrained_high[best]):.0%}). The layer is the best of {len(inner)} on the same images, so its error"
        " is a little too low. Readable does not mean used.",
    )
    return Finding(claim, evidence, see=_TITLE)


def _curve(probe: ProbeResult) -> "Figure":
    return figure_of(probe.plot())


def _table(name: str, probe: ProbeResult, numbers: DataTable) -> Table:
    rows = tuple(
        linked(
            (
                layer,
                f"{int(probe.features[i]):,}",
                number(float(probe.error[i])),
                interval(float(probe.low[i]), float(probe.high[i]), sign=False),
                number(float(probe.train_error[i])),
                number(float(probe.untrained_error[i])),
                number(float(probe.selectivity[i])),
                number(float(probe.compression[i])),
            ),
            numbers.at(name, layer),
        )
        for i, layer in enumerate(probe.layers)
    )
    header = (
        "layer",
        "features",
        "error",
        "interval",
        "training error",
        "random weights",
        "selectivity",
        "compression",
    )
    caption = (
        f"Probes of {name}. Majority class: error {probe.majority_error:.2f}. Selectivity: accuracy less that on random"
        " labels. Compression: how many times shorter the labels become to one who knows the features, by an online code."
    )
    return Table(caption, header, rows, folded=True)
