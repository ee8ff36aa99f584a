"""What two parts of an input do together, beyond what each of them does."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from probing.attribution.base import checked
from probing.attribution.perturbation.contribution_maps import Scored
from probing.attribution.perturbation.cutting import PART_MEAN, SUPERPIXELS, cut_up, part_facts, settled
from probing.attribution.perturbation.parts import Hidden
from probing.attribution.perturbation.superpixels import Segmentation
from probing.attribution.perturbation.surrogate import MOST_EXACT, Value, every_coalition, refuse_single
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.core.content_ids import tensor_id
from probing.core.inputs import Batch, InputError
from probing.core.progress import Progress
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score
from probing.results.figures import COLUMN_WIDTH, new_figure, style
from probing.results.result import Provenance, Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_SHOWN = 10  # pairs of a figure


@dataclass(frozen=True)
class InteractionResult(Result):
    """What pairs of parts of each input do together, in units of the score: above 0 where together they raise it more."""

    values: Float64[Tensor, "n parts parts"]
    """Symmetric. On the diagonal what a part does by itself: the fall without it, or its Shapley value. Parts are as many as
    the input with most has; of others the rest is 0."""
    counts: tuple[int, ...]
    """Parts of each input."""
    parts: Int[Tensor, "n *shape"]
    """The part of each value of the inputs; -1 for padding, which is in none."""
    score: Float64[Tensor, " n"]
    """Of each input."""
    target: tuple[int | str, ...]
    """The class of each input, or the name of what is read of the output instead."""
    unit: str
    by: str
    n_forward: int

    def strongest(self, row: int = 0, count: int = _SHOWN) -> tuple[tuple[int, int, float], ...]:
        """Return the pairs of an input that do most together, by size: two parts and their interaction."""
        size = self.counts[row]
        first, second = torch.triu_indices(size, size, 1)
        found = self.values[row, first, second]
        order = found.abs().argsort(descending=True, stable=True)[:count]
        return tuple((int(first[i]), int(second[i]), float(found[i])) for i in order)

    def to_pandas(self) -> "pd.DataFrame":
        """Return a row for each pair, of each input the strongest first."""
        import pandas as pd

        rows = [
            {"input": row, "first": first, "second": second, "interaction": value}
            for row, size in enumerate(self.counts)
            for first, second, value in self.strongest(row, size * size)
        ]
        return pd.DataFrame(rows, columns=["input", "first", "second", "interaction"])

    def plot(self, row: int = 0) -> "Figure":
        """Return a figure of what each pair of parts of an input does together, the diagonal left out."""
        size = self.counts[row]
        shown = self.values[row, :size, :size].clone().fill_diagonal_(0)
        most = float(shown.abs().max()) or 1.0
        with style():
            figure = new_figure(COLUMN_WIDTH, COLUMN_WIDTH)
            panel = figure.subplots()
            drawn = panel.imshow(shown.numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
            panel.set(xlabel="part", ylabel="part", title=f"what pairs do together, {self.unit} of {self.target[row]}")
            figure.colorbar(drawn, ax=panel, shrink=0.8)
        return figure


@dataclass(frozen=True)
class PairInteractions:
    """What two parts do together: how far what one of them does to the score hangs on the other.

    `removal` looks at the whole input: `f(all) - f(without i) - f(without j) + f(without both)`. It takes a pass for each
    part and each pair. `shapley` is the mean of that difference over all sets of other parts (Grabisch & Roubens 1999),
    exact, for at most 12 parts. Both are 0 for parts whose contributions add up, and the product itself for a product of two
    parts that show 0 where they are hidden; a product of three parts counts in full for each of its pairs by removal, and
    half by Shapley.

    Attributes:
        by: which of both.
        parts: how inputs are cut, as for `LIME`.
        hidden: what shows where a part is hidden: the part's mean colour, or a baseline of one draw.
        batch_size: variants of a pass.
        precision: how passes run; `fast` is fit for these (no gradients are taken).

    Example:
        >>> PairInteractions()(Score(net, 3), images).strongest()
    """

    by: Literal["removal", "shapley"] = "removal"
    parts: Segmentation = SUPERPIXELS
    hidden: Hidden = PART_MEAN
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def __call__(self, score: Score, inputs: Batch) -> InteractionResult:
        """Return the interactions of all pairs of parts.

        Args:
            score: what is explained.
            inputs: one example per row, in model space, as local methods take them.

        Raises:
            InputError: if an input can't be cut, is a single part, looks the same whatever is hidden, or has more than 12
                parts by Shapley.
            ModelModeError, TargetError, OutputError: as `checked` says.
        """
        score, points = checked(score, inputs)
        method = settled(self, score, points)
        with unchanged(score.model):
            passes = Passes.of(score, points, self.batch_size, self.precision)
            cut = cut_up(method, passes, points)
            if self.by == "shapley" and any(part.count > MOST_EXACT for part in cut):
                most = max(part.count for part in cut)
                raise InputError(
                    f"interactions by Shapley take at most {MOST_EXACT} parts, got {most}: cut inputs into fewer, such as "
                    "by Grid(3, 4), or use by='removal'."
                )
            of = _shapley if self.by == "shapley" else _removal
            matrices, wholes = [], []
            with Progress(len(cut), "interactions", unit="inputs") as meter:
                for i, part in enumerate(cut):
                    refuse_single(part.count)
                    matrix, whole = of(Scored(passes, part, i, "interactions"), part.count)
                    matrices.append(matrix)
                    wholes.append(whole)
                    meter.advance(1)
        counts = tuple(part.count for part in cut)
        values = torch.zeros(len(cut), max(counts), max(counts), dtype=torch.float64)
        for row, matrix in enumerate(matrices):
            values[row, : len(matrix), : len(matrix)] = matrix
        return InteractionResult(
            Provenance.collect(model=score.model, examples=tensor_id(points), method=method),
            values,
            counts,
            part_facts(cut, points.device)["parts"],
            torch.stack(wholes),
            score.names(len(points)),
            score.unit,
            self.by,
            passes.n_forward,
        )


def _removal(value: Value, count: int) -> tuple[Float64[Tensor, "parts parts"], Float64[Tensor, ""]]:
    """Return the falls without each part, and what pairs do together in the whole input."""
    first, second = torch.triu_indices(count, count, 1)
    alone = ~torch.eye(count, dtype=torch.bool)
    both = alone[first] & alone[second]
    scores = value(torch.cat([torch.ones(1, count, dtype=torch.bool), alone, both]))
    whole, without, neither = scores[0], scores[1 : count + 1], scores[count + 1 :]
    found = (whole - without).diag()
    found[first, second] = whole - without[first] - without[second] + neither
    found[second, first] = found[first, second]
    return found, whole


def _shapley(value: Value, count: int) -> tuple[Float64[Tensor, "parts parts"], Float64[Tensor, ""]]:
    """Return Shapley values, and the interaction index of each pair."""
    masks = every_coalition(count)
    scores = value(masks)
    found = torch.zeros(count, count, dtype=torch.float64)
    for first in range(count):
        for second in range(first, count):
            players = {first, second}
            without = (~masks[:, list(players)].any(1)).nonzero().squeeze(1)
            others = count - len(players)
            odds = torch.tensor(
                [1 / ((others + 1) * math.comb(others, size)) for size in range(others + 1)], dtype=torch.float64
            )
            gain = scores[without + 2**first] - scores[without]
            if second != first:
                gain = scores[without + 2**first + 2**second] - scores[without + 2**second] - gain
            found[first, second] = found[second, first] = (odds[masks[without].sum(1)] * gain).sum()
    return found, scores[-1]
