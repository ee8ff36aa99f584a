"""Does what an audit found hold on images of the same things by other hands?

Both audits ask the same of the same model; the images differ, and come in the same clusters (roles). Significance on one
set and not on the other is no evidence that the sets differ, so the difference of the two swaps is tested itself, paired
over the clusters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.measurement.setup import AuditError, Material
from probing.core.content_ids import content_id
from probing.results.figures import FAINT, FULL_WIDTH, PALETTE, new_figure, spread, style
from probing.results.html_report import MINUS, Standing
from probing.results.result import Provenance, Result
from probing.statistics.hypothesis_tests import Correlation, clustered_mean, codes, holm, pearson
from probing.store.store import ActivationStore

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOTH = "both, same sign"
OPPOSITE = "both, opposite signs"
FIRST = "first only"
SECOND = "second only"
NEITHER = "neither"
"""On which set an effect is significant after correction."""

_VERDICTS = {Standing.YES: "replicates", Standing.PARTLY: "replicates in part", Standing.NO: "is not found again"}

Pair = Float[Tensor, "sets contrasts targets"]


@dataclass(frozen=True)
class Replication(Result):
    """The same audit on two sets of images, cell by cell.

    Attributes:
        sets: names of the two sets of images.
        contrasts: attributes whose swap is measured.
        targets: outputs of the model that it is measured on.
        layers: where effects are predicted.
        clusters: of matched images, those that both sets have.
        cluster_by: the column that names an image's cluster.
        level: of the intervals.
        alpha: below which a corrected p counts as significant.
        swap: mean change of the logit from one attribute to the other.
        low, high: its interval over clusters.
        p: of no change, corrected over contrasts and targets of a set.
        effect: predicted change of the logit.
        effect_p: of no effect, corrected within a set.
        by_cluster: the swap in each cluster.
        difference: swap of the second set less that of the first, over clusters.
        difference_low, difference_high: its interval.
        difference_p: of no difference, corrected over contrasts and targets (Holm).
        over_clusters: Pearson's r over clusters of the two sets' swaps, and its interval: whether the same clusters move
            a logit most.
        over_targets: Pearson's r over targets of the two sets' mean swaps, and its interval, which takes targets as
            independent.
        expected: by contrast and target, the direction written down beforehand.
        trusted: by set and contrast, the layers whose predicted effects follow the measured swap.
    """

    sets: tuple[str, str]
    contrasts: tuple[str, ...]
    targets: tuple[str, ...]
    layers: tuple[str, ...]
    clusters: tuple[str, ...]
    cluster_by: str
    level: float
    alpha: float
    expected: dict[str, dict[str, str]]
    trusted: dict[str, dict[str, tuple[str, ...]]]

    swap: Pair
    low: Pair
    high: Pair
    p: Pair
    effect: Float[Tensor, "sets contrasts layers targets"]
    effect_p: Float[Tensor, "sets contrasts layers targets"]
    by_cluster: Float[Tensor, "sets contrasts targets clusters"]
    difference: Float[Tensor, "contrasts targets"]
    difference_low: Float[Tensor, "contrasts targets"]
    difference_high: Float[Tensor, "contrasts targets"]
    difference_p: Float[Tensor, "contrasts targets"]
    over_clusters: Float[Tensor, "contrasts targets 3"]
    over_targets: Float[Tensor, "contrasts 3"]

    def outcome(self, contrast: str, target: str) -> str:
        """Say on which set the swap moves a logit for sure, and whether to the same side."""
        c, k = self.contrasts.index(contrast), self.targets.index(target)
        return _outcome(self.swap[:, c, k], self.p[:, c, k], self.alpha)

    def outcomes(self, contrast: str) -> dict[str, list[str]]:
        """Return the targets by outcome."""
        found: dict[str, list[str]] = {}
        for target in self.targets:
            found.setdefault(self.outcome(contrast, target), []).append(target)
        return found

    def effect_outcomes(self, contrast: str, layer: str) -> dict[str, int]:
        """Return how many targets have each outcome by the effect that is predicted at a layer."""
        c, i = self.contrasts.index(contrast), self.layers.index(layer)
        found: dict[str, int] = {}
        for k in range(len(self.targets)):
            outcome = _outcome(self.effect[:, c, i, k], self.effect_p[:, c, i, k], self.alpha)
            found[outcome] = found.get(outcome, 0) + 1
        return found

    def correlation(self, contrast: str) -> Correlation:
        """Return the correlation of the two sets' mean swaps over targets."""
        r, low, high = self.over_targets[self.contrasts.index(contrast)].tolist()
        return Correlation(r, low, high, len(self.targets))

    def differing(self, contrast: str) -> tuple[str, ...]:
        """Return the targets whose swaps differ between the sets for sure."""
        p = self.difference_p[self.contrasts.index(contrast)]
        return tuple(t for t, value in zip(self.targets, p.tolist(), strict=True) if value < self.alpha)

    def standing(self, contrast: str) -> Standing:
        """Return whether what was found on the first set replicates on the second.

        It does if all logits moved for sure on the first are moved for sure to the same side on the second, and in
        part if more of them are than are moved to the other; in both cases only if the correlation of the two sets'
        changes over targets is above 0 for sure. Where the first set moves nothing it is not tested.
        """
        found = self.outcomes(contrast)
        same, opposite, first = (len(found.get(o, ())) for o in (BOTH, OPPOSITE, FIRST))
        if not same + opposite + first:
            return Standing.UNTESTED
        if not (self.correlation(contrast).low > 0 and same > opposite):
            return Standing.NO
        return Standing.PARTLY if opposite + first else Standing.YES

    def statement(self, contrast: str) -> str:
        """Say in plain words whether what was found on the first set replicates on the second, as `standing` has it."""
        found, differing = self.outcomes(contrast), self.differing(contrast)
        same, opposite, first = (len(found.get(o, ())) for o in (BOTH, OPPOSITE, FIRST))
        moved = same + opposite + first
        one, two = self.sets
        if not moved:
            return f"On {one} {contrast} moves no logit for sure: there is nothing to replicate."
        verdict = _VERDICTS[self.standing(contrast)]
        lost = sum(t in differing for t in found.get(FIRST, ()))
        return (
            f"What {contrast} does to logits on {one} {verdict} on {two}: of {moved} logits that it moves for sure on {one},"
            f" it moves {same} for sure to the same side on {two} and {opposite} to the other; {first} are undecided there,"
            f" and {lost} of these differ for sure from {one}."
        )

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per contrast and target."""
        import pandas as pd

        rows = []
        for c, contrast in enumerate(self.contrasts):
            for k, target in enumerate(self.targets):
                row: dict[str, object] = {"contrast": contrast, "target": target}
                row["expected"] = self.expected.get(contrast, {}).get(target, "")
                for s, name in enumerate(self.sets):
                    cells = {"swap": self.swap, "low": self.low, "high": self.high, "p": self.p}
                    row |= {f"{name} {key}": float(cell[s, c, k]) for key, cell in cells.items()}
                row["outcome"] = self.outcome(contrast, target)
                for name in ("difference", "difference_low", "difference_high", "difference_p"):
                    row[name] = float(getattr(self, name)[c, k])
                names = ("r over clusters", "r low", "r high")
                row |= dict(zip(names, self.over_clusters[c, k].tolist(), strict=True))
                rows.append(row)
        return pd.DataFrame(rows)

    def sentences(self) -> tuple[str, ...]:
        """Return whether what was found on the first set replicates, for each contrast."""
        return tuple(self.statement(contrast) for contrast in self.contrasts)

    def notebook_table(self) -> "pd.DataFrame":
        """Return the swaps on both sets, with the outcome."""
        first, second = self.sets
        return self.to_pandas()[["contrast", "target", f"{first} swap", f"{second} swap", "outcome", "difference_p"]]

    def plot(self) -> "Figure":
        """Draw the swaps on one set against those on the other."""
        with style():
            rows = len(self.contrasts)
            figure = new_figure(FULL_WIDTH, 3.1 * rows)
            for c, contrast in enumerate(self.contrasts):
                left, right = (figure.add_subplot(rows, 2, 2 * c + i) for i in (1, 2))
                _against(self, contrast, left)
                order = self.over_clusters[c, :, 0].nan_to_num(-1).argsort().tolist()
                r, low, high = self.over_clusters[c][order].T.numpy()
                right.axvline(0, color=FAINT, lw=0.6)
                right.hlines(range(len(order)), low, high, color=PALETTE[0], lw=0.8)
                right.plot(r, range(len(order)), ls="", marker="o", ms=3.5, color=PALETTE[0])
                right.set_yticks(range(len(order)), [self.targets[k] for k in order])
                right.set(xlim=(-1, 1), xlabel=f"correlation over {self.cluster_by}s")
        return figure


def _against(found: Replication, contrast: str, axes: "Axes") -> None:
    c = found.contrasts.index(contrast)
    x, y = (found.swap[s, c].numpy() for s in (0, 1))
    reach = [(found.swap[s, c] - found.low[s, c], found.high[s, c] - found.swap[s, c]) for s in (0, 1)]
    bars = [[side.nan_to_num().numpy() for side in each] for each in reach]
    axes.errorbar(x, y, xerr=bars[0], yerr=bars[1], fmt="none", ecolor=FAINT, lw=0.5)
    sure = [found.outcome(contrast, t) in {BOTH, OPPOSITE} for t in found.targets]
    for filled, face in ((True, PALETTE[0]), (False, "white")):
        own = [k for k, s in enumerate(sure) if s == filled]
        axes.plot(x[own], y[own], ls="", marker="o", ms=4, color=PALETTE[0], mfc=face)
    for axis in (axes.axhline, axes.axvline):
        axis(0, color=FAINT, lw=0.6, zorder=0)
    axes.set(xlabel=f"{found.sets[0]} (logits)", ylabel=f"{found.sets[1]} (logits)")
    axes.axline((0, 0), slope=1, color=FAINT, lw=0.6, ls=":", zorder=0)
    axes.locator_params(nbins=5)
    named = [k for k, s in enumerate(sure) if s]
    low, high = axes.get_ylim()
    gap = 0.055 * (high - low)
    for k, height in zip(named, spread(y[named].tolist(), gap, low, high), strict=True):
        axes.annotate(found.targets[k], (x[k], height), (4, 2), textcoords="offset points", fontsize=6)
    axes.set_title(f"{contrast}\n{correlation_in_words(found, contrast)}")


def correlation_in_words(found: Replication, contrast: str) -> str:
    """Return the correlation of both sets' changes over classes, with its interval."""
    return str(found.correlation(contrast)).replace("-", MINUS)


def replicate(
    names: tuple[str, str],
    results: Sequence[AuditResults],
    materials: Sequence[Material],
    store: ActivationStore,
) -> Replication:
    """Return two audits side by side; their rows are in the store already.

    Args:
        names: of the two sets of images.
        results: of the audits, in that order.
        materials: of the audits.
        store: which read them.

    Raises:
        AuditError: if the audits ask different things, or of different models.
    """
    first, second = results
    asked = [(r.layers, [t.name for t in r.targets], [c.name for c in r.contrasts], r.level, r.alpha) for r in results]
    ids = [Provenance.collect(model=m.loaded.model).model for m in materials]
    if asked[0] != asked[1] or ids[0] != ids[1]:
        raise AuditError(
            f"the audits {first.name!r} and {second.name!r} must ask the same of one model: layers, targets, contrasts "
            "and levels."
        )
    contrasts, targets = asked[0][2], asked[0][1]
    clusters = _shared_clusters(materials)
    by_cluster = torch.stack([_cluster_swaps(m, store, clusters) for m in materials])
    change = (by_cluster[1] - by_cluster[0]).permute(2, 0, 1)
    difference = clustered_mean(change, torch.arange(len(clusters)), first.level)
    swaps = [[[r.swap(c, t) for t in targets] for c in contrasts] for r in results]
    cells = [[[[r.cell(c, i, t) for t in targets] for i in r.layers] for c in contrasts] for r in results]
    swap = torch.tensor([[[x.swap for x in row] for row in each] for each in swaps])
    return Replication(
        provenance=Provenance.collect(
            model=materials[0].loaded.model, examples=content_id([list(m.examples.ids) for m in materials])
        ),
        sets=names,
        contrasts=tuple(contrasts),
        targets=tuple(targets),
        layers=first.layers,
        clusters=clusters,
        cluster_by=first.cluster_by,
        level=first.level,
        alpha=first.alpha,
        swap=swap.double(),
        low=_table(swaps, "low"),
        high=_table(swaps, "high"),
        p=_table(swaps, "p_corrected"),
        effect=torch.stack([_table(each, "effect") for each in cells]),
        effect_p=torch.stack([_table(each, "effect_p_corrected") for each in cells]),
        by_cluster=by_cluster,
        difference=difference.mean,
        difference_low=difference.low,
        difference_high=difference.high,
        difference_p=holm(difference.p),
        over_clusters=torch.tensor(
            [[_r(a, b, first.level) for a, b in zip(x, y, strict=True)] for x, y in zip(*by_cluster, strict=True)],
            dtype=torch.float64,
        ),
        over_targets=torch.tensor([_r(a, b, first.level) for a, b in zip(*swap, strict=True)], dtype=torch.float64),
        expected={c: {t.name: t.expected[c] for t in first.targets if c in t.expected} for c in contrasts},
        trusted={name: {c: r.trusted(c) for c in contrasts} for name, r in zip(names, results, strict=True)},
    )


def _outcome(values: Float[Tensor, " sets"], p: Float[Tensor, " sets"], alpha: float) -> str:
    one, two = (p < alpha).tolist()
    if one and two:
        return BOTH if float(values.prod()) > 0 else OPPOSITE
    return FIRST if one else SECOND if two else NEITHER


def _r(first: Float[Tensor, " n"], second: Float[Tensor, " n"], level: float) -> tuple[float, float, float]:
    found = pearson(first, second, level)
    return found.r, found.low, found.high


def _table(rows: Sequence[Sequence[Sequence[object]]], name: str) -> Float[Tensor, "a b c"]:
    """Return one number of each row of a table; NaN where there is none."""
    values = [[[getattr(x, name) for x in row] for row in each] for each in rows]
    nan = float("nan")
    return torch.tensor(
        [[[nan if x is None else x for x in row] for row in each] for each in values],
        dtype=torch.float64,
    )


def _shared_clusters(materials: Sequence[Material]) -> tuple[str, ...]:
    held = [{c for s in m.contrasts for c in s.every.cluster} for m in materials]
    shared = tuple(sorted(held[0] & held[1]))
    if len(shared) < 2:
        raise AuditError(f"the audits share {len(shared)} clusters of images: two are needed.")
    return shared


def _cluster_swaps(
    material: Material, store: ActivationStore, clusters: Sequence[str]
) -> Float[Tensor, "contrasts targets clusters"]:
    """Return the mean change of each target's logit in each cluster."""
    logits = store.activations(material.loaded.model, [""], material.examples)[""].cpu().double()
    logits = logits[:, list(material.targets.values())]
    found = []
    for sets in material.contrasts:
        kept = [i for i, c in enumerate(sets.every.cluster) if c in clusters]
        change = logits[[sets.every.first[i] for i in kept]] - logits[[sets.every.second[i] for i in kept]]
        of = codes([*clusters, *(sets.every.cluster[i] for i in kept)])[len(clusters) :]
        sums = change.new_zeros(len(clusters), change.shape[1]).index_add_(0, of, change)
        found.append((sums / torch.bincount(of, minlength=len(clusters)).unsqueeze(1)).T)
    return torch.stack(found)
