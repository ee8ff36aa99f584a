"""Integrated gradients at a layer, divided among concepts: how much of a change of the score each direction carried."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probing.attribution.base import checked
from probing.attribution.path import read_layer, tail_passes
from probing.attribution.quadrature import Quadrature, nodes
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.core.content_ids import tensor_id
from probing.core.errors import ProbingError
from probing.core.inputs import one_tensor
from probing.models.geometry import channel_axis
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score
from probing.results.figures import FAINT, INK, PALETTE, RULE, new_figure, style
from probing.results.result import Provenance, Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class DirectionError(ProbingError, ValueError):
    """Directions do not fit a layer, or do not tell its changes apart."""


@dataclass(frozen=True)
class ConceptAttribution(Result):
    """What of each input's change of score goes along which concept; all in score units.

    `values` over concepts, `remainder` and `gap` add up to `score - start_score`.
    """

    layer: str
    concepts: tuple[str, ...]
    values: Float[Tensor, "n concepts"]
    remainder: Float[Tensor, " n"]
    """What the part of the layer's change that lies along none of the directions carried."""
    gap: Float[Tensor, " n"]
    """What the steps of the integral missed."""
    score: Float[Tensor, " n"]
    start_score: Float[Tensor, " n"]
    """At the layer's output that the path starts from."""
    explained: Float[Tensor, " n"]
    """Share of the layer's change, as a sum of squares, that lies in the span of the directions (0-1)."""
    maps: Float[Tensor, "n concepts *places"]
    """`values` place by place, for layers that have places."""

    @property
    def change(self) -> Float[Tensor, " n"]:
        """The change of the score that is divided."""
        return self.score - self.start_score

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per input."""
        import pandas as pd

        columns = {name: self.values[:, c].tolist() for c, name in enumerate(self.concepts)}
        rest = {"remainder": self.remainder, "gap": self.gap, "change": self.change}
        return pd.DataFrame(columns | {name: v.tolist() for name, v in rest.items()})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw what each concept carried in each input, and the mean over inputs."""
        names = (*self.concepts, "remainder", "gap", "change")
        if ax is None:
            with style():
                return self.plot(new_figure(4.0, 0.7 + 0.22 * len(names)).add_subplot())
        ax.axvline(0, color=RULE, zorder=0)
        for y, column in enumerate([*self.values.T, self.remainder, self.gap, self.change]):
            colour = PALETTE[0] if y < len(self.concepts) else FAINT
            ax.plot(column, [y] * len(column), "o", color=colour, alpha=0.35, mew=0, ms=3.5)
            ax.plot(float(column.mean()), y, "|", color=INK, ms=9, mew=1.2)
        ax.set_yticks(range(len(names)), names)
        ax.set(ylim=(len(names) - 0.4, -0.6), xlabel="part of the change of the score")
        return ax


@dataclass(frozen=True, eq=False)
class LayerPath:
    """Straight paths between two outputs of a layer, and the score's mean gradient on them; in float64."""

    start: Float[Tensor, "n *features"]
    end: Float[Tensor, "n *features"]
    slope: Float[Tensor, "n *features"]
    start_score: Float[Tensor, " n"]
    end_score: Float[Tensor, " n"]
    axis: int
    """Which axis of the layer's output holds channels."""

    @property
    def way(self) -> Float[Tensor, "n *features"]:
        """How the layer's output changes."""
        return self.end - self.start

    @property
    def by_unit(self) -> Float[Tensor, "n units"]:
        """What of the change of score each channel carries: layer integrated gradients, summed over places."""
        parts = (self.way * self.slope).movedim(self.axis, 1)
        return parts.reshape(*parts.shape[:2], -1).sum(2)


@dataclass(frozen=True)
class ConceptGradients:
    """Divides layer integrated gradients among directions (after Schrouff et al. 2021, arXiv:2106.08641).

    On the path from a start to the input the layer's output moves by `d`, and the score by the sum of `d` times its
    mean gradient (completeness; Dhamdhere et al. 2019). Here `d` is written as the least-squares combination of all
    concepts' directions plus what is left over, at each place of the layer; a concept's part is its coordinate times the
    mean gradient along its direction. A direction's length does not matter. Ours are the joint coordinates, by which
    directions that are not at right angles do not count one change twice, and the remainder, by which the sum holds.

    Attributes:
        layer: a dotted path.
        rule: how the integral is taken.
        steps: its points.
        seed: of random points, for the rule `mc`.
        batch_size: points of a pass.
        precision: how passes run.
        channels_last: whether maps are `[n, h, w, c]`, where that can't be inferred or measured.

    Raises:
        DirectionError: for directions that do not fit the layer, or of which one is a combination of the others.

    Example:
        >>> directions = torch.stack([mean_difference(rows, striped, plain), mean_difference(rows, dotted, plain)])
        >>> ConceptGradients("layer3")(Score(net, 340), zebras, directions, ("stripes", "dots")).to_pandas()
    """

    layer: str
    rule: Quadrature = "midpoint"
    steps: int = 32
    seed: int = 0
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32
    channels_last: bool | None = None

    def __call__(
        self,
        score: Score,
        inputs: Float[Tensor, "n *shape"],
        directions: Float[Tensor, "concepts _"],
        concepts: Sequence[str],
        starts: Float[Tensor, "n *shape"] | None = None,
    ) -> ConceptAttribution:
        """Return the parts.

        Args:
            score: what changes.
            inputs: where paths end.
            directions: CAVs or differences of means, of any length: one number per channel (or feature of a token),
                for every place, or as many as the layer's output of one input has.
            concepts: their names.
            starts: for each input, the input whose output of the layer its path starts from, such as its match without
                the concept; by default paths start from zero output.
        """
        if len(concepts) != len(directions):
            raise DirectionError(f"{len(directions)} directions have {len(concepts)} names: give one each.")
        path = self.path(score, inputs, starts)
        moved, sloping, rows = _by_place(path, directions.to(path.way), self.layer)
        parts, left = _coordinates(moved, rows, concepts)
        maps = (parts * (sloping @ rows.T)).mT
        whole = (path.way * path.slope).flatten(1).sum(1)
        values = maps.sum(2)
        size = moved.square().sum((1, 2))
        return ConceptAttribution(
            provenance=Provenance.collect(
                model=score.model,
                examples=tensor_id(inputs if starts is None else torch.stack([inputs, starts])),
                method=self,
            ),
            layer=self.layer,
            concepts=tuple(concepts),
            values=values,
            remainder=whole - values.sum(1),
            gap=path.end_score - path.start_score - whole,
            score=path.end_score,
            start_score=path.start_score,
            explained=1 - left.square().sum((1, 2)) / torch.where(size > 0, size, 1),
            maps=maps.reshape(*values.shape, *_places(path, rows)),
        )

    def path(
        self,
        score: Score,
        inputs: Float[Tensor, "n *shape"],
        starts: Float[Tensor, "n *shape"] | None = None,
    ) -> LayerPath:
        """Return the paths to inputs' outputs of the layer, from those of `starts` or from zero."""
        score, inputs = checked(score, one_tensor(inputs))
        with unchanged(score.model):
            passes = Passes.of(score, inputs, self.batch_size, self.precision, [self.layer])
            end = read_layer(passes, inputs, self.layer)
            start = torch.zeros_like(end)
            if starts is not None:
                start = read_layer(passes, checked(score, one_tensor(starts))[1], self.layer)
            along = tail_passes(passes, inputs, self.layer, end)
            slope = self._mean_slope(along, start, end)
            axis = self._axis(score.model, inputs, end)
            scores = [along.values(at, torch.arange(len(at))).double() for at in (start, end)]
        return LayerPath(start.double(), end.double(), slope, scores[0], scores[1], axis)

    def _axis(self, model: nn.Module, inputs: Tensor, output: Tensor) -> int:
        """Return which axis of the layer's output holds channels, or features of tokens."""
        if output.ndim != 4:
            return -1 if output.ndim == 3 else 1
        if self.channels_last is not None:
            return -1 if self.channels_last else 1
        return channel_axis(model, inputs, self.layer) or 1

    def _mean_slope(
        self, along: Passes, start: Float[Tensor, "n *shape"], end: Float[Tensor, "n *shape"]
    ) -> Float[Tensor, "n *shape"]:
        """Return the score's mean gradient on the paths."""
        points, weights = nodes(self.rule, self.steps, self.seed)
        mean = torch.zeros(end.shape, dtype=torch.float64, device=end.device)
        for share, weight in zip(points.tolist(), weights.tolist(), strict=True):
            mean += weight * along.gradients(start + share * (end - start))[1].double()
        return mean


def _by_place(
    path: LayerPath, directions: Float[Tensor, "concepts _"], layer: str
) -> tuple[Float[Tensor, "n places m"], Float[Tensor, "n places m"], Float[Tensor, "concepts m"]]:
    """Return changes and gradients as one vector per place, of the directions' length."""
    shape, length = path.way.shape[1:], directions.shape[1]
    both = (path.way, path.slope)
    if length == shape.numel():
        way, slope = (x.flatten(1)[:, None] for x in both)
    elif length == path.way.shape[path.axis]:
        way, slope = (x.movedim(path.axis, -1).flatten(1, -2) for x in both)
    else:
        raise DirectionError(
            f"directions of {length} numbers do not fit layer {layer!r}, which returns {tuple(shape)} per input: give one "
            "number per channel, or as many as that."
        )
    return way, slope, directions


def _coordinates(
    moved: Float[Tensor, "n places m"],
    directions: Float[Tensor, "concepts m"],
    concepts: Sequence[str],
) -> tuple[Float[Tensor, "n places concepts"], Float[Tensor, "n places m"]]:
    """Return changes as combinations of directions, and what is left over."""
    refuse_alike(directions, concepts)
    share = moved @ torch.linalg.pinv(directions)
    return share, moved - share @ directions


def refuse_alike(directions: Float[Tensor, "concepts m"], concepts: Sequence[str]) -> None:
    """Raise `DirectionError` if one direction is a combination of the others, or holds NaN."""
    if undefined := [c for c, d in zip(concepts, directions, strict=True) if not d.isfinite().all()]:
        raise DirectionError(f"the direction of {undefined[0]!r} holds NaN or infinity.")
    lengths = torch.linalg.vector_norm(directions, dim=1, keepdim=True)
    unit = directions / torch.where(lengths > 0, lengths, 1)
    spread = torch.linalg.svdvals(unit)
    if len(unit) > unit.shape[1] or float(spread[-1]) < 1e-6:
        raise DirectionError(
            f"the directions of {list(concepts)} do not differ enough to tell their parts apart: leave one out that is "
            "a combination of the others."
        )


def _places(path: LayerPath, rows: Float[Tensor, "concepts m"]) -> tuple[int, ...]:
    if rows.shape[1] == path.way[0].numel():
        return ()
    return tuple(path.way.movedim(path.axis, 1).shape[2:])
