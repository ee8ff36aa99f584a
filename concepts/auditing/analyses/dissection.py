"""Which units separate an audit's attributes, and what they detect in scenes with known masks."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from concepts.auditing.analyses import figures
from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.measurement.setup import Material
from concepts.data.segmentation import EmojiScenes, Scenes
from concepts.dissection.dissection import Dissection
from concepts.dissection.result import DissectionResult
from concepts.dissection.unit_contrasts import UnitContrasts, UnitShifts
from probing.data.examples import Subset
from probing.probes import untrained_copy
from probing.results.html_report import (
    NONE,
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
    p_value,
    words,
)
from probing.results.result import Provenance, Result
from probing.results.tables import DataTable, known
from probing.store.requests import Request
from probing.store.store import ActivationStore

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_ALPHA = 0.05
"""At which a unit is coloured where no audit says at which."""
_TITLE = "Units that separate the attributes"
_LISTED = 5
"""Units shown of each layer and contrast."""


@dataclass(frozen=True)
class AttributeUnits(Result):
    """Units of the audit's layers, one layer after the other, and by how much contrasts move them."""

    contrasts: tuple[str, ...]
    layers: tuple[str, ...]
    layer_of: Int[Tensor, " units"]
    unit: Int[Tensor, " units"]
    """Its number in its layer."""
    shifts: UnitShifts
    untrained: UnitShifts
    """Of the same architecture at random weights."""
    pairs: Int[Tensor, " contrasts"]
    """That shifts are judged on."""
    names: DissectionResult | None
    """What the same units detect in drawn scenes, if any were asked for."""

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per contrast and unit, the largest shifts first."""
        import pandas as pd

        s, count = self.shifts, len(self.unit)
        layers = [self.layers[k] for k in self.layer_of.tolist()]
        tables = [
            pd.DataFrame(
                {
                    "contrast": [name] * count,
                    "layer": layers,
                    "unit": self.unit.tolist(),
                    "fitted": s.fitted[k].tolist(),
                    "shift": s.shift[k].tolist(),
                    "low": s.low[k].tolist(),
                    "high": s.high[k].tolist(),
                    "same_way": s.same_way[k].tolist(),
                    "p": s.p[k].tolist(),
                }
            )
            for k, name in enumerate(self.contrasts)
        ]
        return pd.concat(tables).sort_values("shift", key=abs, ascending=False, kind="stable", ignore_index=True)

    def plot(self) -> "Figure":
        """Draw each unit's shift on held-out clusters against that on training clusters."""
        parts = self.contrasts, self.layers, self.layer_of, self.shifts
        return figures.units(*parts, alpha=_ALPHA)

    def strongest(self, contrast: int, layer: int, alpha: float) -> list[int]:
        """Return units that separate a contrast's sides, the largest on training clusters first."""
        significant = self.shifts.significant(alpha)[contrast] & (self.layer_of == layer)
        size = self.shifts.fitted[contrast].abs()
        order = torch.sort(size, descending=True, stable=True).indices
        return [int(unit) for unit in order if significant[unit]]

    def counts(self, alpha: float, *, untrained: bool = False) -> Int[Tensor, "contrasts layers"]:
        """Return how many units of each layer separate each contrast's sides."""
        significant = (self.untrained if untrained else self.shifts).significant(alpha)
        return torch.stack([significant[:, self.layer_of == k].sum(1) for k in range(len(self.layers))], 1)


def _bare(material: Material) -> nn.Module:
    """Return the model at random weights."""
    seed, example = material.file.statistics.seed, _data(material).load([0])
    return untrained_copy(material.loaded.model, seed, example=example)


@dataclass(frozen=True)
class Units:
    """Compares units over the pairs that contrasts match, and dissects the layers by drawn scenes if the audit has any.

    Shifts come from the rows that the audit reads; random weights take one pass over the data's images, which linear
    probes read too. Scenes are passed once.
    """

    def requests(self, material: Material) -> tuple[Request, ...]:
        """Return rows at random weights, and of the scenes."""
        rows = Request(_bare(material), material.layers, _data(material), material.file.model.pool)
        scenes = _scenes(material)
        named = _dissection(material).requests(material.loaded.model, scenes) if scenes else ()
        return (rows, *named)

    def measure(self, material: Material, store: ActivationStore) -> AttributeUnits:
        """Return shifts of all units, each judged on clusters that its sign was not found on."""
        statistics, model = material.file.statistics, material.loaded.model
        method = UnitContrasts(statistics.relabellings, statistics.level, statistics.seed)
        fit, judge = ([getattr(c, side) for c in material.contrasts] for side in ("fit", "judge"))
        trained = _rows(material, store, model)
        bare = _rows(material, store, _bare(material))
        sizes = [rows.shape[1] for rows in trained]
        return AttributeUnits(
            provenance=Provenance.collect(model=model, method=method),
            contrasts=tuple(c.spec.name for c in material.contrasts),
            layers=material.layers,
            layer_of=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
            unit=torch.cat([torch.arange(size) for size in sizes]),
            shifts=method(torch.cat(trained, 1), fit, judge),
            untrained=method(torch.cat(bare, 1), fit, judge),
            pairs=torch.tensor([len(pairs.first) for pairs in judge]),
            names=_names(material, store),
        )

    def findings(self, audit: AuditResults, found: Result) -> tuple[Finding, ...]:
        """Say for each contrast how many units separate its sides, and which do most."""
        assert isinstance(found, AttributeUnits)
        numbers = _numbers(audit, found)
        return tuple(_finding(audit, found, k, numbers) for k in range(len(found.contrasts)))

    def tables(self, audit: AuditResults, found: Result) -> tuple[DataTable, ...]:
        """Return a row for each contrast and unit."""
        assert isinstance(found, AttributeUnits)
        return (_numbers(audit, found),)

    def section(self, audit: AuditResults, found: Result) -> Section:
        """Return the figure of all units, and tables of the strongest."""
        assert isinstance(found, AttributeUnits)
        swaps = "all" if found.shifts.exact else f"{found.shifts.draws:,} random"
        text = (
            "A unit here is one channel, averaged over positions. It separates a contrast's sides if matched images differ"
            f" in it on {audit.clusters} that its sign was not found on, more than where the two sides are swapped in whole"
            f" {audit.clusters} ({swaps} ways to swap; p corrected for all {found.shifts.p.numel():,} pairs of unit and"
            " contrast by the step-down maximum). Such a unit responds to something that differs between the two sides in"
            " these drawings, such as the colour of clothes; it need not stand for the attribute, and need not be used."
        )
        caption = (
            "Mean difference of matched images in each unit, in standard deviations of the unit, by contrast and layer:"
            f" across on {len(audit.fitted_on)} {audit.clusters}, up on the other {len(audit.judged_on)}. Coloured, and"
            " counted above: units that separate the sides."
        )
        parts = found.contrasts, found.layers, found.layer_of, found.shifts
        draw = partial(figures.units, *parts, alpha=audit.alpha)
        blocks: list[Block] = [
            Paragraph(text),
            Plate(draw, "Units that differ between matched images", caption, "figures/units", "units"),
            *(_table(audit, found, k, _numbers(audit, found)) for k in range(len(found.contrasts))),
        ]
        if found.names is not None:
            blocks.append(Points(_named(audit, found, found.names)))
        return Section(_TITLE, tuple(blocks))


def _rows(material: Material, store: ActivationStore, model: nn.Module) -> list[Float[Tensor, "n _"]]:
    pool = material.file.model.pool
    rows = store.activations(model, material.layers, _data(material), pool=pool)
    return [rows[layer].flatten(1).cpu() for layer in material.layers]


def _data(material: Material) -> Subset:
    """Return the images that contrasts are drawn from."""
    return material.subset(range(len(material.manifests[0].items)))


def _scenes(material: Material) -> Scenes | None:
    count, seed = material.file.scenes, material.file.statistics.seed
    return EmojiScenes(count, seed=seed).scenes(material.loaded.preprocess) if count else None


def _dissection(material: Material) -> Dissection:
    return Dissection(material.layers, seed=material.file.statistics.seed)


def _names(material: Material, store: ActivationStore) -> DissectionResult | None:
    scenes = _scenes(material)
    return _dissection(material)(store, material.loaded.model, scenes) if scenes else None


_PER_UNIT = ("fitted", "shift", "low", "high", "same_way", "p")


def _numbers(audit: AuditResults, found: AttributeUnits) -> DataTable:
    significant = found.shifts.significant(audit.alpha)
    rows = tuple(
        (
            contrast,
            found.layers[int(found.layer_of[u])],
            int(found.unit[u]),
            *(known(getattr(found.shifts, name)[k, u]) for name in _PER_UNIT),
            bool(significant[k, u]),
            known(found.untrained.shift[k, u]),
            known(found.untrained.p[k, u]),
            _label(found, u),
        )
        for k, contrast in enumerate(found.contrasts)
        for u in range(len(found.unit))
    )
    columns = (
        "contrast",
        "layer",
        "unit",
        *_PER_UNIT,
        "significant",
        "untrained_shift",
        "untrained_p",
        "in_drawn_scenes",
    )
    return DataTable("units", "by how much each contrast moves each unit", columns, rows, 3)


def _key(found: AttributeUnits, k: int, row: int) -> tuple[str, str, int]:
    """Return what a unit's row in the table of numbers goes by."""
    return found.contrasts[k], found.layers[int(found.layer_of[row])], int(found.unit[row])


def _finding(audit: AuditResults, found: AttributeUnits, k: int, numbers: DataTable) -> Finding:
    counts, bare = (found.counts(audit.alpha, untrained=u)[k] for u in (False, True))
    claim = (
        f"{int(counts.sum())} of {len(found.unit)} units separate {found.contrasts[k]} on {audit.clusters} that they were"
        f" not chosen on; at random weights {int(bare.sum())}."
    )
    by_layer = ", ".join(
        f"{name} {int(n)} of {int((found.layer_of == i).sum())} (at random weights {int(m)})"
        for i, (name, n, m) in enumerate(zip(found.layers, counts, bare, strict=True))
    )
    significant = found.shifts.significant(audit.alpha)[k]
    strongest = torch.where(significant, found.shifts.fitted[k].abs(), -1)
    best = words(
        f" Largest on the other {audit.clusters}: ",
        *_strongest_unit(found, k, int(strongest.argmax()), numbers),
        ".",
    )
    floor = found.shifts.least_p
    powerless = (
        f" No p could be below {floor:.2g}: there are {len(audit.judged_on)} {audit.clusters} to swap."
        if floor >= audit.alpha
        else ""
    )
    untaught = (
        " Training did not make more of them: what separates the sides is in colours and shapes that random weights follow"
        " too."
        if 0 < counts.sum() <= bare.sum()
        else ""
    )
    evidence = words(
        f"{by_layer}.{untaught}",
        best if significant.any() else "",
        f" Corrected p below {audit.alpha:g}.{powerless} That a unit separates the sides does not show that the network"
        " uses it.",
    )
    return Finding(claim, evidence, see=_TITLE)


def _strongest_unit(found: AttributeUnits, k: int, row: int, numbers: DataTable) -> tuple[str | Link, ...]:
    s = found.shifts
    low, high = float(s.low[k, row]), float(s.high[k, row])
    where = f"unit {int(found.unit[row])} of {found.layers[int(found.layer_of[row])]}"
    return (
        f"{where}, ",
        Link(number(float(s.shift[k, row]), sign=True), numbers.at(*_key(found, k, row))),
        (
            f" standard deviations ({interval(low, high)}), the same way in "
            f"{float(s.same_way[k, row]):.0%} of {int(found.pairs[k])} pairs"
        ),
    )


def _table(audit: AuditResults, found: AttributeUnits, k: int, numbers: DataTable) -> Table:
    s, rows = found.shifts, []
    for i, layer in enumerate(found.layers):
        for row in found.strongest(k, i, audit.alpha)[:_LISTED]:
            ends = interval(float(s.low[k, row]), float(s.high[k, row]))
            cells = (
                f"{layer}: {int(found.unit[row])}",
                _label(found, row),
                number(float(s.fitted[k, row]), sign=True),
                number(float(s.shift[k, row]), sign=True),
                ends,
                f"{float(s.same_way[k, row]):.0%}",
                p_value(float(s.p[k, row])),
            )
            rows.append(linked(cells, numbers.at(*_key(found, k, row)), 2))
    header = ("unit", "in drawn scenes", "fitted", "judged", "interval", "same way", "p corrected")
    caption = (
        f"Units that separate {found.contrasts[k]}: of each layer the {_LISTED} largest on {audit.clusters} to fit on, which"
        " have no part in the numbers after. Same way: share of pairs."
    )
    return Table(caption, header, tuple(rows), text_columns=2, folded=True)


def _label(found: AttributeUnits, row: int) -> str:
    """Return what a unit detects in drawn scenes, if anything beyond chance."""
    names = found.names
    if names is None or not (names.detector[row] and names.significant[row]):
        return NONE
    return f"{names.concepts[int(names.best[row])]} (IoU {float(names.best_iou[row]):.2f})"


def _named(audit: AuditResults, found: AttributeUnits, names: DissectionResult) -> tuple[str, ...]:
    """Say what units that separate a contrast's sides detect, beside the others."""
    detects = names.detector & names.significant
    said = []
    for contrast, significant in zip(found.contrasts, found.shifts.significant(audit.alpha), strict=True):
        shares = [f"{int(detects[group].sum())} of {int(group.sum())}" for group in (significant, ~significant)]
        said.append(
            f"In {names.images} drawn scenes, {shares[0]} units that separate {contrast} are detectors (IoU >"
            f" {names.min_iou:g}, and more than shuffled images give), and {shares[1]} of the others. The scenes show"
            " things, textures and colours and no figures: a label says what else moves the unit."
        )
    return (*said, *names.sentences())
