"""Which examples made this direction: ridge classifiers fitted without each example, or group, all from one fit.

A penalised least-squares fit without some rows follows from that with them by the Woodbury identity (Cook & Weisberg 1982,
sec. 2.2 and 3.6; with dual variables Cawley & Talbot 2004): with `X` the rows and a column of ones, `A = XᵀX + α I` (the
intercept without penalty), and residuals `e` of a fit at `α`, the residuals of rows `C` under a fit without them are
`(I - X_C A⁻¹ X_Cᵀ)⁻¹ e_C`, exactly. The penalty here weighs a mean over rows, so that `α` is of one group's rows fewer.

An example that classifiers without it put into another class is mislabelled, or unlike its class: those come first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.core.content_ids import content_id
from probing.core.errors import ArgumentError
from probing.data.examples import Examples, as_examples
from probing.models.layers import several
from probing.models.loading import Model, module_of
from probing.probes.feature_tables import RowSpace, TableRows
from probing.probes.split import encode, group_numbers
from probing.results.figures import COLUMN_WIDTH, FAINT, PALETTE, new_figure, style
from probing.results.result import Provenance, Result
from probing.statistics.clustered import clustered_share
from probing.statistics.row_products import SharedRows
from probing.store.store import ActivationStore

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class LeftOut:
    """What classifiers say of rows that they were fitted without."""

    outputs: Float[Tensor, "n k"]
    """Of each row, by the fit without its group."""
    turn: Float[Tensor, "n k"]
    """By how much each direction turns when the row's group is left out: 1 - cosine (0-2)."""


def leave_out(
    rows: Float[Tensor, "n m"], targets: Float[Tensor, "n k"], penalty: float, groups: Int[Tensor, " n"] | None = None
) -> LeftOut:
    """Return outputs and turns of ridge fits without each row's group: mean squared error plus `penalty ‖w‖²`.

    Rows are taken as they are: what standardised them is not fitted anew.

    Args:
        rows: standardised features, or coordinates with the same products.
        targets: what is fitted, such as indicators of +1 and -1.
        penalty: on the mean of squared errors.
        groups: which group each row belongs to, numbers from 0; each is its own by default.

    Raises:
        ArgumentError: for a penalty of 0 or less, or where nothing is left to fit on.

    Example:
        >>> without = leave_out(rows, targets, 1e-2)
        >>> order = (without.outputs * targets).sum(1).argsort()  # mislabelled rows first
    """
    if not penalty > 0:
        raise ArgumentError(f"penalty must be above 0, got {penalty}: without one a fit may have no single best direction.")
    groups = torch.arange(len(rows)) if groups is None else groups
    sizes = torch.bincount(groups)
    if int(sizes.max()) > len(rows) - 2:
        raise ArgumentError(f"leaving out a group of {int(sizes.max())} of {len(rows)} rows leaves too few to fit on.")
    wide = torch.cat([rows.double(), rows.new_ones(len(rows), 1).double()], 1)
    outputs, turn = torch.empty_like(targets, dtype=torch.float64), torch.empty_like(targets, dtype=torch.float64)
    whole = (_solved(wide, penalty * len(rows)) @ targets.double())[:-1]
    for size in torch.unique(sizes).tolist():
        solved = _solved(wide, penalty * (len(rows) - size))
        known = solved @ targets.double()
        residual = targets - wide @ known
        for group in (sizes == size).nonzero().flatten().tolist():
            out = (groups == group).nonzero().flatten()
            inner = torch.eye(len(out), dtype=torch.float64) - wide[out] @ solved[:, out]
            left = torch.linalg.solve(inner, residual[out])
            outputs[out] = targets[out].double() - left
            without = (known - solved[:, out] @ left)[:-1]
            turn[out] = 1 - torch.nn.functional.cosine_similarity(whole, without, dim=0)
    return LeftOut(outputs, turn)


def _solved(wide: Float[Tensor, "n w"], alpha: float) -> Float[Tensor, "w n"]:
    """Return `A⁻¹ Xᵀ`: times targets, weights and at last an intercept, which is not penalised."""
    ridge = torch.full((wide.shape[1],), alpha, dtype=torch.float64)
    ridge[-1] = 0
    factor = torch.linalg.cholesky(wide.mT @ wide + torch.diag(ridge))
    found: Tensor = torch.cholesky_solve(wide.mT, factor)
    return found


def leave_out_of_cav(
    rows: SharedRows,
    positive: Int[Tensor, " p"],
    negative: Int[Tensor, " q"],
    penalty: float = 1e-2,
    groups: Int[Tensor, " n"] | None = None,
) -> LeftOut:
    """Return what CAVs by `Ridge` say of the rows that they were fitted without, positives first.

    Args:
        rows: of a layer, whose products the CAV is fitted from.
        positive: row indices of the concept.
        negative: row indices of what it is compared with.
        penalty: as `probing.statistics.estimators.Ridge` takes it.
        groups: of the rows, positives first, as `leave_out` takes them.

    Example:
        >>> without = leave_out_of_cav(SharedRows(activations), striped, plain)
        >>> doubtful = without.outputs[: len(striped), 0].argsort()[:5]  # least like the others of the concept
    """
    index = torch.cat([positive, negative])
    known, places = torch.unique(index, return_inverse=True)
    products = rows.gram(-2)[known[:, None], known].double().cpu()
    squares, turned = torch.linalg.eigh(products)
    kept = squares > squares[-1] * len(squares) * torch.finfo(squares.dtype).eps
    signs = torch.cat([torch.ones(len(positive)), -torch.ones(len(negative))]).double()
    return leave_out((turned[:, kept] * squares[kept].sqrt())[places], signs[:, None], penalty, groups)


@dataclass(frozen=True)
class LeaveOneOutResult(Result):
    """How classifiers of each layer judge examples that they were fitted without.

    Attributes:
        layers: where features were read.
        classes: names of the labels.
        labels: of each example, a place among the classes.
        margin: of the example's own class over the best of the others, by a fit without its group; below 0 it is put into
            another class. Indicators are +1 and -1, so that 2 is what a fit aims at.
        turn: by how much the direction of the example's own class turns without its group: 1 - cosine (0-2).
        error: share of examples with a margin below 0 (0-1).
        low, high: its interval over groups.
        penalty: of the fits.
        level: of the intervals.
    """

    layers: tuple[str, ...]
    classes: tuple[str, ...]
    labels: Int[Tensor, " examples"]
    margin: Float[Tensor, "layers examples"]
    turn: Float[Tensor, "layers examples"]
    error: Float[Tensor, " layers"]
    low: Float[Tensor, " layers"]
    high: Float[Tensor, " layers"]
    penalty: float
    level: float

    def doubtful(self, layer: str, most: int = 10) -> tuple[int, ...]:
        """Return the examples that fits without them are least ready to put into their class, those first."""
        order: list[int] = self.margin[self.layers.index(layer)].argsort(stable=True)[:most].tolist()
        return tuple(order)

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per layer and example."""
        import pandas as pd

        return pd.DataFrame(
            {
                "layer": layer,
                "example": e,
                "label": self.classes[int(self.labels[e])],
                "margin": float(self.margin[i, e]),
                "turn": float(self.turn[i, e]),
            }
            for i, layer in enumerate(self.layers)
            for e in range(len(self.labels))
        )

    def sentences(self) -> tuple[str, ...]:
        """Return what must be said beside the numbers."""
        return (
            "A margin below 0 says that an example is unlike its class at this layer, for a linear classifier: it may be "
            "mislabelled, or a rare kind. Look at it.",
        )

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the margins of each layer in order: those that cross zero are put into another class."""
        if ax is None:
            with style():
                return self.plot(new_figure(COLUMN_WIDTH, 2.4).add_subplot())
        ax.axhline(0, color=FAINT, lw=0.6)
        for i, layer in enumerate(self.layers):
            ax.plot(self.margin[i].sort().values.tolist(), color=PALETTE[i % len(PALETTE)], label=layer)
        ax.set(xlabel="examples, in order of their margin", ylabel="margin")
        ax.legend()
        return ax


@dataclass(frozen=True)
class LeaveOneOutProbes:
    """Fits ridge classifiers of layers without each example, or group, and says how they judge it.

    Features are means over places, standardised over all examples.

    Attributes:
        layers: dotted paths.
        penalty: on the mean squared error of indicators of +1 and -1.
        level: of the intervals.

    Raises:
        ArgumentError: where groups leave too little to fit on.
        probing.probes.split.SplitError: for labels that are missing or all the same.

    Example:
        >>> found = LeaveOneOutProbes(("layer3", "layer4"))(store, net, images, labels)
        >>> found.doubtful("layer4", 5)  # whose labels to look at first
    """

    layers: str | tuple[str, ...]
    penalty: float = 1e-2
    level: float = 0.95

    def __call__(
        self,
        store: ActivationStore,
        model: Model,
        examples: Examples,
        labels: Sequence[object] | Int[Tensor, " n"],
        *,
        groups: Sequence[str] | None = None,
    ) -> LeaveOneOutResult:
        """Return how examples are judged.

        Args:
            store: reads activations and keeps them.
            model: whose layers are read.
            examples: with a label each.
            labels: classes, of any kind that can be sorted.
            groups: what each example belongs to: left out together.
        """
        model, examples = module_of(model), as_examples(examples)
        known, names = encode(labels, len(examples))
        numbers = group_numbers(groups, len(examples))
        targets = 2 * torch.nn.functional.one_hot(known, len(names)).double() - 1
        layers = several(self.layers)
        found = store.activations(model, layers, examples, pool="mean")
        margins, turns = [], []
        for features in found.values():
            table = TableRows.of(features.flatten(1).cpu().double())
            rows = RowSpace.of(table).rows.table if table.features > table.count else table.table
            left = leave_out(rows, targets, self.penalty, numbers)
            own = left.outputs.gather(1, known[:, None])[:, 0]
            others = left.outputs.scatter(1, known[:, None], -torch.inf).amax(1)
            margins.append(own - others)
            turns.append(left.turn.gather(1, known[:, None])[:, 0])
        margin = torch.stack(margins)
        share = clustered_share((margin < 0).double().mT, numbers, self.level)
        ids = [list(examples.ids), known.tolist(), list(groups or ())]
        return LeaveOneOutResult(
            provenance=Provenance.collect(model=model, examples=content_id(ids), method=self),
            layers=tuple(found),
            classes=names,
            labels=known,
            margin=margin,
            turn=torch.stack(turns),
            error=share.share,
            low=share.low,
            high=share.high,
            penalty=self.penalty,
            level=self.level,
        )
