"""Two audits of the same images side by side: where do two models, or two trainings of one, differ for sure?

Both audits measured the same swaps in the same clusters, so differences are paired: for each class the change of the
one model less that of the other is taken cluster by cluster. That one change is significant and another is not says
nothing of their difference (Gelman & Stern 2006), which has a test of its own here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from concepts.auditing.measurement.results import AuditResults, ResultsError, SwapRow, made_of
from probing.core.errors import ProbingError
from probing.results.figures import FULL_WIDTH, INK, MARKERS, PALETTE, PAPER, new_figure, style
from probing.results.result import Provenance, Result
from probing.results.tables import known
from probing.statistics.hypothesis_tests import clustered_mean, holm

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class SideBySideError(ProbingError, ValueError):
    """Two audits can't be compared."""


@dataclass(frozen=True)
class Side:
    """One of two audits, as saved."""

    folder: Path
    results: AuditResults
    made: Mapping[str, object]

    @classmethod
    def load(cls, folder: Path) -> "Side":
        """Read an audit back.

        Raises:
            concepts.auditing.measurement.results.ResultsError: if the folder holds none, or a damaged one.
        """
        return cls(folder, AuditResults.load(folder), made_of(folder))

    @property
    def images(self) -> object:
        """Content of the images, whatever a model's preprocessing makes of them; None if it was not saved."""
        manifests = self.made.get("manifests")
        return manifests[0]["content"] if isinstance(manifests, Sequence) and manifests else None

    def swaps_of(self, contrast: str) -> object:
        """Return which values a contrast swaps, as the audit file says."""
        audit = self.made.get("audit")
        contrasts = audit.get("contrasts", []) if isinstance(audit, Mapping) else []
        found = [c for c in contrasts if f"{c['positive']} against {c['negative']}" == contrast]
        return [(c["vary"], c["swaps"]) for c in found]


@dataclass(frozen=True)
class Difference:
    """The change of one class by one swap in both models, and the second less the first."""

    contrast: str
    target: str
    first: float
    first_low: float | None
    first_high: float | None
    second: float
    second_low: float | None
    second_high: float | None
    difference: float
    low: float | None
    high: float | None
    """t interval over clusters, paired by cluster."""
    p: float | None
    p_corrected: float | None
    """Holm, over all contrasts and classes that both audits have."""
    first_moved: bool
    second_moved: bool
    """Whether each change by itself is significant, in its own audit."""
    first_larger: float
    second_larger: float
    """Share of all the model's classes whose change is larger in size (0-1): free of the scale of its logits."""


@dataclass(frozen=True)
class SideBySide(Result):
    """Two audits and the differences of what swaps do in them."""

    first: Side
    second: Side
    contrasts: tuple[str, ...]
    targets: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def labels(self) -> tuple[str, str]:
        """What the two are called: their models where these differ, else their folders, else first and second."""
        for names in (
            (self.first.results.model, self.second.results.model),
            (self.first.folder.name, self.second.folder.name),
        ):
            if names[0] != names[1]:
                return names
        return "first", "second"

    def significant(self, row: Difference) -> bool:
        """Whether a difference is significant, after correction."""
        return row.p_corrected is not None and row.p_corrected < self.first.results.alpha

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per contrast and class: both changes and their difference, with intervals and tests."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.differences])

    def plot(self) -> "Figure":
        """Draw each class's change in both models with intervals, a panel for each contrast; starred where they differ."""
        with style():
            figure = new_figure(FULL_WIDTH, 0.8 + 0.24 * len(self.targets))
            first = None
            for i, contrast in enumerate(self.contrasts):
                axes = figure.add_subplot(1, len(self.contrasts), i + 1, sharex=first, sharey=first)
                first = first or axes
                rows = {d.target: d for d in self.differences if d.contrast == contrast}
                _panel(axes, self, rows)
                axes.set_title(contrast, loc="left", fontweight="bold")
                axes.tick_params(labelleft=i == 0, left=False)
            _legend(figure, self)
        return figure

    def save(self, folder: str | Path) -> Path:
        """Write both audits' results, each into a folder of its own, and how the two are called; the rest follows."""
        folder = Path(folder)
        for name, side in (("first", self.first), ("second", self.second)):
            side.results.save(folder / name)
            made = json.dumps(dict(side.made), indent=1, ensure_ascii=False)
            (folder / name / "provenance.json").write_text(made + "\n", encoding="utf-8")
        names = {"first": self.first.folder.name, "second": self.second.folder.name}
        (folder / _NAMES).write_text(json.dumps(names, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "SideBySide":
        """Read a comparison back.

        Raises:
            concepts.auditing.measurement.results.ResultsError: if the folder holds none, or a damaged one.
        """
        folder = Path(folder)
        try:
            names = json.loads((folder / _NAMES).read_text(encoding="utf-8"))
            first, second = str(names["first"]), str(names["second"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{str(folder)!r} holds no comparison of audits: {error}.") from None
        found = side_by_side(folder / "first", folder / "second")
        sides = (replace(found.first, folder=Path(first)), replace(found.second, folder=Path(second)))
        return replace(found, first=sides[0], second=sides[1])


_NAMES = "side_by_side.json"


def _panel(axes: "Axes", found: SideBySide, rows: dict[str, Difference]) -> None:
    axes.axvline(0, color=INK, lw=0.5, zorder=1)
    for y, target in enumerate(found.targets):
        d = rows[target]
        sides = ((d.first, d.first_low, d.first_high), (d.second, d.second_low, d.second_high))
        for k, (value, low, high) in enumerate(sides):
            at = y + 0.32 * k - 0.16
            if low is not None and high is not None:
                axes.plot([low, high], [at, at], color=PALETTE[k], lw=1.1, zorder=2)
            axes.plot(value, at, MARKERS[k], color=PALETTE[k], mec=PAPER, mew=0.5, ms=4.5, zorder=3)
        if found.significant(d):
            axes.text(1.005, y, "*", transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.set_yticks(range(len(found.targets)), found.targets)
    axes.set(ylim=(len(found.targets) - 0.4, -0.6), xlabel="change of the logit")
    axes.spines["left"].set_visible(False)


def _legend(figure: "Figure", found: SideBySide) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker=MARKERS[k], color=PALETTE[k], lw=1.1, ms=4.5, label=label)
        for k, label in enumerate(found.labels)
    ]
    handles.append(Line2D([], [], marker="*", color=INK, ls="none", mew=0, ms=5.5, label="differ for sure"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


def side_by_side(first: Path, second: Path) -> SideBySide:
    """Compare two audits of the same images from what was saved.

    Raises:
        SideBySideError: if they can't be compared, and why.
        concepts.auditing.measurement.results.ResultsError: if a folder holds no readable audit.
    """
    sides = Side.load(first), Side.load(second)
    if fault := _fault(*sides):
        raise SideBySideError(f"{str(first)!r} and {str(second)!r} can't be compared: {fault}.")
    a, b = (side.results for side in sides)
    contrasts = tuple(c.name for c in a.contrasts if c.name in {d.name for d in b.contrasts})
    targets = tuple(t.name for t in a.targets if t.name in {u.name for u in b.targets})
    rows = _differences(a, b, contrasts, targets)
    return SideBySide(Provenance.collect(), *sides, contrasts, targets, rows)


def _fault(a: Side, b: Side) -> str:
    """Return why two audits can't be compared, or nothing."""
    return _not_two(a, b) or _not_alike(a.results, b.results) or _not_same_swaps(a, b)


def _not_two(a: Side, b: Side) -> str:
    if a.folder.resolve() == b.folder.resolve():
        return "they are one folder"
    if None in {a.images, b.images} or not (a.results.by_cluster and b.results.by_cluster):
        old = a if a.images is None or not a.results.by_cluster else b
        if not old.results.contrasts:
            return f"nothing was swapped in {old.folder.name!r}, which has no matched images"
        return f"{old.folder.name!r} lacks what each cluster did: run that audit again with this version"
    if a.images != b.images:
        return "their images differ, so that a difference would be of images as well as of models"
    if a.made.get("model") == b.made.get("model"):
        return f"both are of one model on the same images (content {a.made.get('model')})"
    return ""


def _not_alike(a: AuditResults, b: AuditResults) -> str:
    if (a.level, a.alpha) != (b.level, b.alpha):
        return f"their intervals and tests are at {a.level:g} and {a.alpha:g}, and at {b.level:g} and {b.alpha:g}"
    names = [[c.name for c in side.contrasts] for side in (a, b)]
    if not set(names[0]) & set(names[1]):
        return f"they have no contrast in common, but {names[0]} and {names[1]}"
    if not {t.name for t in a.targets} & {t.name for t in b.targets}:
        return "they have no class in common"
    return ""


def _not_same_swaps(a: Side, b: Side) -> str:
    shared = {t.name for t in a.results.targets} & {t.name for t in b.results.targets}
    pairs = [
        {(r.concept, r.target, r.cluster, r.pairs) for r in side.results.by_cluster if r.target in shared} for side in (a, b)
    ]
    for name in sorted({c.name for c in a.results.contrasts} & {c.name for c in b.results.contrasts}):
        own = [{row for row in found if row[0] == name} for found in pairs]
        if a.swaps_of(name) != b.swaps_of(name) or own[0] != own[1]:
            return f"the contrast {name!r} does not swap the same images in both"
    return ""


def _differences(
    a: AuditResults, b: AuditResults, contrasts: Sequence[str], targets: Sequence[str]
) -> tuple[Difference, ...]:
    sides = [{(r.concept, r.target, r.cluster): r for r in side.by_cluster} for side in (a, b)]
    found = []
    for contrast in contrasts:
        clusters = list(dict.fromkeys(r.cluster for r in a.by_cluster if r.concept == contrast))
        pairs = torch.tensor([sides[0][contrast, targets[0], c].pairs for c in clusters])
        first, second = (
            torch.tensor([[rows[contrast, t, c].swap for t in targets] for c in clusters], dtype=torch.float64)
            for rows in sides
        )
        # Each cluster's mean stands for its pairs: only their sum enters the cluster-robust error.
        which = torch.arange(len(clusters)).repeat_interleave(pairs)
        found.append(clustered_mean((second - first)[which], which, a.level))
    corrected = holm(torch.stack([one.p for one in found]))
    return tuple(
        _difference(
            (a.swap(contrast, target), b.swap(contrast, target)),
            (float(one.mean[t]), known(one.low[t]), known(one.high[t])),
            (known(one.p[t]), known(corrected[k, t])),
            a.alpha,
        )
        for k, (contrast, one) in enumerate(zip(contrasts, found, strict=True))
        for t, target in enumerate(targets)
    )


def _difference(
    rows: tuple[SwapRow, SwapRow],
    difference: tuple[float, float | None, float | None],
    p: tuple[float | None, float | None],
    alpha: float,
) -> Difference:
    a, b = rows
    moved_a, moved_b = (row.p_corrected is not None and row.p_corrected < alpha for row in rows)
    ends = a.swap, a.low, a.high, b.swap, b.low, b.high
    return Difference(a.concept, a.target, *ends, *difference, *p, moved_a, moved_b, a.larger, b.larger)
