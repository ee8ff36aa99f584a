"""What an audit found, as it is saved: plain rows, of which tables, figures and the report are made.

Numbers are None where nothing was measured or tested. Intervals are `low` to `high` at `AuditResults.level`; p-values
are two-sided, and `p_corrected` counts all tests of its kind in the audit.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from probing.core.errors import ProbingError
from probing.results.figures import FULL_WIDTH, INK, PALETTE, new_figure, style
from probing.results.result import Provenance, Result
from probing.results.tables import anchor

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Direction = Literal["up", "down"]


class ResultsError(ProbingError, ValueError):
    """A folder holds no readable results of an audit."""


@dataclass(frozen=True)
class TargetInfo:
    """A class whose logit is explained, chosen beforehand, and why."""

    name: str
    index: int
    group: str
    reason: str
    expected: dict[str, Direction]
    """By contrast: where the logit was expected to go, written down before the audit."""


@dataclass(frozen=True)
class ConceptInfo:
    """A concept: two sets that differ in one attribute (a contrast), or one set against random images."""

    name: str
    positive: str
    negative: str
    matched: bool
    """Whether the two sets are matched, so that swapping one for the other can be measured."""
    positives: int
    negatives: int
    clusters: int
    """Independent groups among these images."""
    fitted: int
    """Images per side that a direction was fitted on, where it was judged on others."""
    judged: int
    """Images per side that it was judged on."""
    relabellings: int
    exact: bool
    """Whether the relabellings are all there are."""


@dataclass(frozen=True)
class LayerRow:
    """One concept at one layer."""

    concept: str
    layer: str
    accuracy: float
    """Share of images never fitted on that are on the right side of the classifier."""
    accuracy_low: float | None
    accuracy_high: float | None
    accuracy_p: float | None
    """One-sided, against chance."""
    cosine: float | None
    """Mean cosine between directions of different runs."""
    linear_tail: bool
    """Whether all inputs have one gradient here, so that a sign score is 0 or 1 by construction."""
    r: float | None = None
    """Correlation over targets of the effect predicted from one half of the clusters and the swap measured on the other:
    the median over random divisions."""
    r_low: float | None = None
    r_high: float | None = None
    """Its interval, which takes targets as independent."""
    r_least: float | None = None
    r_most: float | None = None
    """The middle 95 % of the divisions."""
    slope: float | None = None
    """Measured swap per predicted effect, through the origin."""
    signs_right: int | None = None
    trusted: bool = False
    """Whether `r_low` reaches the bound that the audit file sets."""


@dataclass(frozen=True)
class CellRow:
    """One concept at one layer for one target."""

    concept: str
    layer: str
    target: str
    tcav: float
    """Share of inputs whose logit rises along the direction (0-1)."""
    tcav_low: float | None
    tcav_high: float | None
    tcav_p: float | None
    tcav_p_corrected: float | None
    ties: float
    effect: float
    """Logits."""
    effect_low: float | None
    effect_high: float | None
    effect_p: float | None
    effect_p_corrected: float | None


@dataclass(frozen=True)
class SwapRow:
    """What swapping negatives for their matched positives did to one target's logit."""

    concept: str
    target: str
    swap: float
    low: float | None
    high: float | None
    p: float | None
    p_corrected: float | None
    larger: float
    """Share of all the model's classes whose change is larger in size (0-1)."""


@dataclass(frozen=True)
class ClusterRow:
    """What a contrast's swap did to one target in one cluster alone: intervals of `SwapRow` are made of these."""

    concept: str
    target: str
    cluster: str
    pairs: int
    swap: float
    """Mean over its pairs."""


@dataclass(frozen=True)
class Backdrop:
    """The measured swap over all the model's classes, as quantiles."""

    concept: str
    classes: int
    low: float
    median: float
    high: float
    """`low` to `high` hold the middle 95 %."""


@dataclass(frozen=True)
class PickedRow:
    """A class picked for its change on the clusters that concepts are fitted on, judged on the others."""

    concept: str
    target: str
    index: int
    picked_by: float
    swap: float
    low: float | None
    high: float | None
    p: float | None
    p_corrected: float | None


@dataclass(frozen=True)
class LikenessRow:
    """An image that is among the most or the least like a concept at one layer."""

    concept: str
    layer: str
    among: str
    side: Literal["most", "least"]
    image: str
    """Name of the file under `images`."""
    caption: str
    cosine: float


@dataclass(frozen=True)
class PositionRow:
    """Where a neutral image lies between its matched negatives (-1) and positives (+1) at one layer."""

    concept: str
    layer: str
    cluster: str
    caption: str
    position: float


@dataclass(frozen=True)
class PairRow:
    """The pair of matched images whose change is most like the mean over all pairs, for people to look at."""

    concept: str
    cluster: str
    negative: str
    positive: str
    """Names of the files under `images`."""


TABLES: Mapping[str, tuple[str, str]] = {
    "swaps": ("swaps", "what swapping matched images did to each class"),
    "by_cluster": ("swaps_by_cluster", "the same in each cluster alone: intervals and tests are over these"),
    "cells": ("classes_by_layer", "TCAV score and predicted effect of each concept at each layer for each class"),
    "layer_rows": ("layers", "how well each concept is separated at each layer, and whether effects follow the swap"),
    "backdrops": ("all_classes", "what the swap did to all the model's classes, as quantiles"),
    "picked": ("picked_classes", "classes that move most, judged on other clusters than picked them"),
    "likeness": ("likeness", "images most and least like each concept"),
    "positions": ("positions", "where neutral images lie between their matched negatives (-1) and positives (+1)"),
}
"""The rows of results that are CSV files too: the file's name, and what a row is."""


@dataclass(frozen=True, kw_only=True)
class AuditResults(Result):
    """All an audit found. Equal audits of equal data give equal results, byte for byte, whatever made them."""

    provenance: Provenance = field(default_factory=Provenance.collect, compare=False)
    """What made them: saved beside them, in `provenance.json`."""
    name: str
    title: str
    question: str
    model: str
    weights: str
    layers: tuple[str, ...]
    level: float
    alpha: float
    """A corrected p below this is called evidence."""
    trust: float
    """Smallest lower bound of a layer's correlation that makes it trusted."""
    cluster_by: str
    fitted_on: tuple[str, ...]
    judged_on: tuple[str, ...]
    divisions: int
    pseudo_concepts: int
    inputs: str
    input_count: int
    judged_inputs: int
    targets: tuple[TargetInfo, ...]
    concepts: tuple[ConceptInfo, ...]
    layer_rows: tuple[LayerRow, ...]
    cells: tuple[CellRow, ...]
    swaps: tuple[SwapRow, ...]
    backdrops: tuple[Backdrop, ...]
    picked: tuple[PickedRow, ...]
    likeness: tuple[LikenessRow, ...]
    positions: tuple[PositionRow, ...]
    sources: tuple[tuple[str, str], ...]
    limits: tuple[str, ...]
    """What the audit's author wants said about the data."""
    analyses: tuple[str, ...] = ()
    """What was looked at besides swaps and TCAV; the results lie beside, under `analyses/`."""
    by_cluster: tuple[ClusterRow, ...] = ()
    """None in results of older audits."""
    pairs: tuple[PairRow, ...] = ()
    """One for each contrast; none in results of older audits."""

    def __repr__(self) -> str:
        from probing.results.notebook import in_short

        return in_short(self, f"{type(self).__name__} of {self.name!r}")

    @cached_property
    def _anchors(self) -> dict[object, str]:
        return {row: anchor(name, i) for field, (name, _) in TABLES.items() for i, row in enumerate(getattr(self, field))}

    def at(self, row: object) -> str:
        """Return the id of the place in the report where a row stands with all its numbers."""
        return self._anchors[row]

    def of(self, concept: str) -> ConceptInfo:
        """Return a concept by name."""
        return next(c for c in self.concepts if c.name == concept)

    @cached_property
    def _cells(self) -> dict[tuple[str, str, str], CellRow]:
        return {(c.concept, c.layer, c.target): c for c in self.cells}

    @property
    def clusters(self) -> str:
        """What the independent groups of images are called, in the plural."""
        return f"{self.cluster_by}s"

    @property
    def contrasts(self) -> tuple[ConceptInfo, ...]:
        """The concepts whose swap was measured."""
        return tuple(c for c in self.concepts if c.matched)

    def cell(self, concept: str, layer: str, target: str) -> CellRow:
        """Return one concept at one layer for one target."""
        return self._cells[concept, layer, target]

    def layer(self, concept: str, layer: str) -> LayerRow:
        """Return one concept at one layer."""
        return next(r for r in self.layer_rows if (r.concept, r.layer) == (concept, layer))

    def swap(self, concept: str, target: str) -> SwapRow:
        """Return what the swap did to one target."""
        return next(r for r in self.swaps if (r.concept, r.target) == (concept, target))

    def pair(self, concept: str) -> PairRow | None:
        """Return the pair of images that a contrast is shown by; None in results of older audits."""
        return next((p for p in self.pairs if p.concept == concept), None)

    def trusted(self, concept: str) -> tuple[str, ...]:
        """Return the layers whose effects follow the measured swap of a concept."""
        return tuple(r.layer for r in self.layer_rows if r.concept == concept and r.trusted)

    def shown_layer(self, concept: str) -> str:
        """Return the layer at which a concept is shown."""
        return shown_layer(concept, self.layer_rows)

    def sentences(self) -> tuple[str, ...]:
        """Return what the audit's author wants said about the data."""
        return self.limits

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per concept, layer and class: TCAV score and predicted effect, with intervals and tests."""
        import pandas as pd

        return pd.DataFrame([asdict(cell) for cell in self.cells])

    def plot(self) -> "Figure":
        """Return what swapping matched images does to each class's logit; without any, each class's TCAV scores.

        A panel for each contrast or concept, with intervals at `level`; scores are of the layer that a concept is shown at.
        """
        names = [c.name for c in self.contrasts] or [c.name for c in self.concepts]
        targets = [t.name for t in self.targets]
        with style():
            figure = new_figure(FULL_WIDTH, 0.75 + 0.19 * len(targets))
            panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
            for panel, name in zip(panels, names, strict=True):
                rows = [self._bar(name, target) for target in targets]
                panel.axvline(0.0 if self.contrasts else 0.5, color=INK, lw=0.5)
                for y, (value, low, high) in enumerate(rows):
                    if low is not None and high is not None:
                        panel.plot([low, high], [y, y], color=PALETTE[0], lw=1.2)
                    if value is not None:
                        panel.plot(value, y, "o", color=PALETTE[0], ms=4)
                panel.set(title=name, xlabel="change of the logit" if self.contrasts else "TCAV score")
            panels[0].set_yticks(range(len(targets)), targets)
            panels[0].invert_yaxis()
        return figure

    def _bar(self, concept: str, target: str) -> tuple[float | None, float | None, float | None]:
        if self.contrasts:
            swap = self.swap(concept, target)
            return swap.swap, swap.low, swap.high
        cell = self.cell(concept, self.shown_layer(concept), target)
        return cell.tcav, cell.tcav_low, cell.tcav_high

    def save(self, folder: str | Path) -> Path:
        """Write `results.json`, without what made them: that stands in `provenance.json`, which the audit writes."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        document = {name: value for name, value in asdict(self).items() if name != "provenance"}
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "AuditResults":
        """Read results back.

        Raises:
            ResultsError: if the folder holds none, or damaged ones.
        """
        from pydantic import TypeAdapter, ValidationError

        path = Path(folder) / "results.json"
        try:
            found: AuditResults = TypeAdapter(cls).validate_json(path.read_bytes())
        except FileNotFoundError:
            raise ResultsError(f"{str(folder)!r} holds no results.json: run the audit first.") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ResultsError(f"{str(path)!r} can't be read: {first['msg']} at {where!r}.") from None
        return replace(found, provenance=_maker(Path(folder)))


def _maker(folder: Path) -> Provenance:
    """Return the provenance of saved results; without one nothing is known of it."""
    try:
        made = made_of(folder)
    except ResultsError:
        made = {}
    command, versions = made.get("command"), made.get("versions")
    return Provenance(
        created=str(made.get("created", "")),
        command=tuple(map(str, command)) if isinstance(command, list) else (),
        versions={str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {},
        machine=str(made.get("machine", "")),
        model=str(made.get("model", "")),
        examples=str(made.get("examples", "")),
    )


def shown_layer(concept: str, rows: Sequence[LayerRow]) -> str:
    """Return the layer whose effects follow the swap best; without a swap, the first that tells the concept best."""
    own = [r for r in rows if r.concept == concept]
    return max(own, key=lambda r: r.accuracy if r.r_low is None else r.r_low).layer


def made_of(folder: Path) -> dict[str, object]:
    """Return what made the results in a folder, as `provenance.json` has it.

    Raises:
        ResultsError: if the folder holds none, or a damaged one.
    """
    path = folder / "provenance.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"{str(folder)!r} holds no provenance.json: run the audit first.") from None
    except ValueError as error:
        raise ResultsError(f"{str(path)!r} can't be read: {error}.") from None
    if not isinstance(found, dict):
        raise ResultsError(f"{str(path)!r} can't be read: it holds a {type(found).__name__}.")
    return found


def saved_picture(folder: Path, name: str) -> Image.Image:
    """Return one of the pictures that lie beside the results in a folder, by `LikenessRow.image`.

    Raises:
        OSError: if there is none, or it can't be read.
    """
    with Image.open(folder / "images" / name) as image:
        image.load()
        return image
