"""Slices: groups of examples that a network errs in more often than elsewhere, found on some clusters, tested on others.

A mixture of Gaussians over a layer's rows, the prediction and the error finds groups in which errors gather (as Domino,
Eyuboglu et al. 2022, arXiv:2203.14960). A mixture that sees errors finds such groups in chance as well; so held-out examples
are put into slices by rows and predictions alone, and whether they err more there is tested by permuting whole clusters.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from concepts.effects.logit_effect import split_clusters
from probing.core.content_ids import content_id
from probing.core.errors import ProbingError
from probing.data.examples import Examples, as_examples
from probing.models.loading import Model, module_of
from probing.models.scores import class_scores
from probing.results.figures import COLUMN_WIDTH, FAINT, INK, PALETTE, new_figure, style
from probing.results.result import Provenance, Result
from probing.statistics.clustered import clustered_share, holm
from probing.statistics.hypothesis_tests import codes, permutation_p
from probing.store.store import ActivationStore

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_LEAST = 5  # clusters that fit a slice, or that a slice holds
_AT_ONCE = 500  # permutations: bounds memory


class SliceError(ProbingError, ValueError):
    """Examples in which no slices can be looked for."""


@dataclass(frozen=True)
class SlicesResult(Result):
    """Slices of held-out examples, those with the largest excess of errors on the fitted ones first.

    Attributes:
        layer: whose rows were mixed.
        size: held-out examples in each slice.
        error: share of them that are misclassified (0-1); NaN in an empty slice.
        low, high: its interval over clusters.
        elsewhere: the error of all other held-out examples.
        p: of erring no more there than elsewhere, by permuting clusters of one size; corrected over slices (Holm). NaN
            for a slice with too few clusters to be tested.
        member: of each example its slice; -1 for those that the mixture was fitted on.
        overall: error of all held-out examples.
        fitted, judged: clusters that the mixture was fitted on, and held-out ones.
        level: of the intervals.
    """

    layer: str
    size: Int[Tensor, " slices"]
    error: Float[Tensor, " slices"]
    low: Float[Tensor, " slices"]
    high: Float[Tensor, " slices"]
    elsewhere: Float[Tensor, " slices"]
    p: Float[Tensor, " slices"]
    member: Int[Tensor, " examples"]
    overall: float
    fitted: int
    judged: int
    level: float

    @property
    def found(self) -> tuple[int, ...]:
        """Slices in which there is evidence of more errors than elsewhere."""
        return tuple(int(i) for i in (self.p < 1 - self.level).nonzero()[:, 0])

    def examples(self, index: int) -> tuple[int, ...]:
        """Return the held-out examples of a slice."""
        return tuple((self.member == index).nonzero()[:, 0].tolist())

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per slice."""
        import pandas as pd

        names = ("size", "error", "low", "high", "elsewhere", "p")
        return pd.DataFrame({"slice": range(len(self.size))} | {name: getattr(self, name).tolist() for name in names})

    def sentences(self) -> tuple[str, ...]:
        """Return what must be said beside the numbers."""
        count = len(self.found)
        told = f"{count} of {len(self.size)} slices err more often than the other held-out examples do"
        return (
            f"{told}, found on {self.fitted} clusters and tested on {self.judged} others; p corrected over slices.",
            "A slice is a place in the layer's space; what its examples have in common must be looked at. That no slice is "
            "found does not say that there is none.",
        )

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw each slice's error with its interval beside the error of all; filled: with evidence."""
        if ax is None:
            with style():
                return self.plot(new_figure(COLUMN_WIDTH, 2.2).add_subplot())
        ax.axhline(self.overall, color=FAINT, lw=0.8, label="all held-out examples")
        for i in range(len(self.size)):
            ax.plot([i, i], [float(self.low[i]), float(self.high[i])], color=INK, lw=0.8)
            face = PALETTE[0] if i in self.found else "white"
            ax.plot(i, float(self.error[i]), "o", color=PALETTE[0], mfc=face)
        ax.set(xlabel="slice", ylabel="error", xticks=range(len(self.size)), ylim=(0, None))
        ax.legend()
        return ax


@dataclass(frozen=True)
class Slices:
    """Looks for groups of examples that a network misclassifies more often than others.

    Attributes:
        layer: dotted path; rows are means over places.
        count: slices.
        features: principal components of the rows that are mixed.
        weight: of predictions and errors beside a row's components, in standard deviations of these.
        share: of the clusters that the mixture is fitted on (0-1).
        permutations: of the test.
        level: of intervals; a corrected p below 1 - level is called evidence.
        seed: of the division, the mixture's starts and the permutations.

    Raises:
        SliceError: for too few examples, or labels that are none of the classes.

    Example:
        >>> found = Slices("layer4", count=2)(store, net, images, labels)
        >>> [found.examples(i)[:5] for i in found.found]
    """

    layer: str
    count: int = 8
    features: int = 12
    weight: float = 1.0
    share: float = 0.5
    permutations: int = 9999
    level: float = 0.95
    seed: int = 0

    def __call__(
        self,
        store: ActivationStore,
        model: Model,
        examples: Examples,
        labels: Sequence[int] | Int[Tensor, " n"],
        *,
        clusters: Sequence[str] = (),
        fitted_on: Collection[str] | None = None,
    ) -> SlicesResult:
        """Return the slices.

        Args:
            store: reads activations and keeps them.
            model: a classifier.
            examples: with a class each.
            labels: the class of each, as the model numbers them.
            clusters: which examples belong together; by default each is its own.
            fitted_on: the clusters that the mixture is fitted on; by default `share` of them, drawn at random.
        """
        model, examples = module_of(model), as_examples(examples)
        names = tuple(clusters) or tuple(f"example {i}" for i in range(len(examples)))
        known = torch.as_tensor(labels)
        if len(known) != len(examples) or len(names) != len(examples):
            raise SliceError(f"{len(examples)} examples need as many labels and clusters, if any.")
        chosen = split_clusters(names, self.share, self.seed)[0] if fitted_on is None else set(fitted_on)
        fit, judge = (torch.tensor([i for i, n in enumerate(names) if (n in chosen) == side]) for side in (True, False))
        if len(fit) < _LEAST * self.count or len(judge) < 2 * _LEAST:
            raise SliceError(
                f"{self.count} slices need {_LEAST * self.count} examples to be fitted on and {2 * _LEAST} others, got "
                f"{len(fit)} and {len(judge)}: ask for fewer, or give more examples."
            )
        layer, out = self.layer, ""
        rows = store.activations(model, [layer], examples, pool="mean")[layer].flatten(1).cpu().double()
        scores = class_scores(store.activations(model, [out], examples)[out], None).cpu().double()
        if int(known.min()) < 0 or int(known.max()) >= scores.shape[1]:
            raise SliceError(f"labels must be classes from 0 to {scores.shape[1] - 1}, got {int(known.max())}.")
        wrong = (scores.argmax(1) != known).double()
        member = self._members(rows, scores.softmax(1), wrong, fit, judge)
        ids = content_id([list(examples.ids), known.tolist(), list(names)])
        return self._tested(Provenance.collect(model=model, examples=ids, method=self), names, member, wrong, judge)

    def _members(
        self,
        rows: Float[Tensor, "n m"],
        probabilities: Float[Tensor, "n classes"],
        wrong: Float[Tensor, " n"],
        fit: Int[Tensor, " fit"],
        judge: Int[Tensor, " judge"],
    ) -> Int[Tensor, " n"]:
        """Return the slice of each held-out example, in the order of the fitted ones' errors."""
        from sklearn.decomposition import PCA
        from sklearn.mixture import GaussianMixture

        count = min(self.features, rows.shape[1], len(fit) - 1)
        reduced = PCA(count, random_state=self.seed).fit(rows[fit].numpy())
        known = torch.from_numpy(reduced.transform(rows.numpy()))
        known = known / known[fit].std(0).amax().clamp_min(torch.finfo(torch.float64).tiny)
        seen = torch.cat([known, self.weight * probabilities], 1)
        whole = torch.cat([seen, self.weight * wrong[:, None] / wrong[fit].std().clamp_min(1e-3)], 1)
        mixture = GaussianMixture(self.count, covariance_type="diag", reg_covar=1e-4, n_init=3, random_state=self.seed)
        mixture.fit(whole[fit].numpy())
        mean, spread = (torch.from_numpy(part)[:, :-1] for part in (mixture.means_, mixture.covariances_))
        apart = (seen[judge][:, None] - mean).square() / spread + spread.log()
        belongs = torch.from_numpy(mixture.weights_).log() - apart.sum(2) / 2  # the error is not looked at
        order = torch.from_numpy(mixture.means_[:, -1].copy()).argsort(descending=True)
        member = torch.full((len(rows),), -1)
        member[judge] = order.argsort()[belongs.argmax(1)]
        return member

    def _tested(
        self,
        provenance: Provenance,
        names: Sequence[str],
        member: Int[Tensor, " n"],
        wrong: Float[Tensor, " n"],
        judge: Int[Tensor, " judge"],
    ) -> SlicesResult:
        own, errors = member[judge], wrong[judge]
        clusters = codes([names[i] for i in judge.tolist()])
        inside = own[:, None] == torch.arange(self.count)
        held = torch.tensor([len(torch.unique(clusters[part])) for part in inside.mT])
        p = _more_errors(inside.double(), errors, clusters, self.permutations, self.seed)
        cells = [_error(errors[part], clusters[part], self.level) for part in inside.mT]
        error, low, high = (torch.tensor(column, dtype=torch.float64) for column in zip(*cells, strict=True))
        elsewhere = (errors @ (~inside).double()) / (~inside).sum(0)
        return SlicesResult(
            provenance=provenance,
            layer=self.layer,
            size=inside.sum(0),
            error=error,
            low=low,
            high=high,
            elsewhere=elsewhere,
            p=holm(torch.where(held >= _LEAST, p, torch.nan)),
            member=member,
            overall=float(errors.mean()),
            fitted=len({n for i, n in enumerate(names) if int(member[i]) < 0}),
            judged=int(clusters.max()) + 1,
            level=self.level,
        )


def _error(errors: Float[Tensor, " k"], clusters: Int[Tensor, " k"], level: float) -> tuple[float, float, float]:
    if not len(errors):
        return (float("nan"),) * 3
    found = clustered_share(errors, torch.unique(clusters, return_inverse=True)[1], level)
    return float(found.share), float(found.low), float(found.high)


def _more_errors(
    inside: Float[Tensor, "n slices"], errors: Float[Tensor, " n"], clusters: Int[Tensor, " n"], draws: int, seed: int
) -> Float[Tensor, " slices"]:
    """Return p of slices holding no more errors than by chance: whole clusters of one size change their errors."""
    rng = np.random.default_rng([seed, 9])
    sizes = torch.bincount(clusters)
    order = torch.split(torch.argsort(clusters, stable=True), sizes.tolist())
    centred = inside - inside.mean(0)
    null = torch.zeros(draws, inside.shape[1], dtype=torch.float64)
    for size in torch.unique(sizes).tolist():
        rows = torch.stack([part for part in order if len(part) == size])
        # What each cluster's errors give in the place of each: a permutation sums some of these.
        given = torch.einsum("as,bsk->abk", errors[rows], centred[rows])
        each = np.arange(len(rows))
        for start in range(0, draws, _AT_ONCE):
            part = null[start : start + _AT_ONCE]
            drawn = torch.from_numpy(rng.permuted(np.tile(each, (len(part), 1)), axis=1))
            part += given[drawn, torch.from_numpy(each)].sum(1)
    return permutation_p(errors @ centred, null)
