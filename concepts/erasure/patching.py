"""Patching: what a layer carries of a measured swap, by putting one member's activations into the other's pass.

Causal mediation (Vig et al. 2020, arXiv:2004.12265) and tracing (Meng et al. 2022, arXiv:2202.05262): a swap of matched
inputs changes a score by a measured amount. With all of a layer's activations put over, a layer that everything passes
carries all of it; some of its units, places or directions carry a share, beside what as many at random carry. To first
order the same is the gradient times the difference of activations (attribution patching, Syed et al. 2023,
arXiv:2310.10348); both are measured, so that its error is known.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from concepts.erasure.eraser import CrossCovariance, Eraser, ErasureError, random_eraser
from concepts.erasure.passes import ROWS, Variants, activations, everywhere, feature_axis, outputs
from concepts.local_vs_global.matched_pairs import MatchedConcept
from probing.core.content_ids import content_id
from probing.core.inputs import Batch
from probing.core.seeds import seed_of
from probing.models.calling import run
from probing.models.gradients import frozen_parameters, score_gradients
from probing.models.hooks import Edit, capture
from probing.models.layers import several
from probing.models.precision import device_of
from probing.models.scores import Score, refuse_training
from probing.results.figures import COLUMN_WIDTH, FAINT, INK, PALETTE, new_figure, style
from probing.results.result import Provenance, Result
from probing.statistics.clustered import clustered_mean
from probing.statistics.hypothesis_tests import codes
from probing.statistics.rounding import beyond_rounding, of_weights
from probing.store.requests import model_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Rows = Float[Tensor, "n *places features"]
Cells = Float[Tensor, "layers targets"]


@runtime_checkable
class Part(Protocol):
    """What of a layer's activations is put over; features are the last axis here."""

    def of(self, difference: Rows) -> Rows:
        """Return the part of a difference of activations that is put over."""
        ...

    def at_random(self, features: int, seed: int) -> "Part | None":
        """Return as large a part, drawn at random; None where there is none of that size but this."""
        ...


@dataclass(frozen=True)
class Whole:
    """All of a layer's activations."""

    def of(self, difference: Rows) -> Rows:
        return difference

    def at_random(self, features: int, seed: int) -> Part | None:
        return None


WHOLE = Whole()


@dataclass(frozen=True)
class Units:
    """Some channels, or features, at every place.

    Attributes:
        units: their numbers.
    """

    units: tuple[int, ...]

    def of(self, difference: Rows) -> Rows:
        if self.units and not 0 <= min(self.units) <= max(self.units) < difference.shape[-1]:
            raise ErasureError(f"units {self.units} are not all among the layer's {difference.shape[-1]}.")
        kept = torch.zeros(difference.shape[-1], dtype=torch.bool, device=difference.device)
        kept[list(self.units)] = True
        return torch.where(kept, difference, 0)

    def at_random(self, features: int, seed: int) -> Part | None:
        if len(self.units) >= features:
            return None
        generator = torch.Generator().manual_seed(seed)
        return Units(tuple(torch.randperm(features, generator=generator)[: len(self.units)].tolist()))


@dataclass(frozen=True, eq=False)
class Places:
    """Some places of maps, or some tokens, with all their channels.

    Attributes:
        where: of a map's rows and columns, or of tokens.
    """

    where: Bool[Tensor, "*places"]

    def of(self, difference: Rows) -> Rows:
        if difference.shape[1:-1] != self.where.shape:
            raise ErasureError(
                f"places of shape {tuple(self.where.shape)} are not those of the layer, {tuple(difference.shape[1:-1])}."
            )
        return torch.where(self.where.to(difference.device)[..., None], difference, 0)

    def at_random(self, features: int, seed: int) -> Part | None:
        order = torch.randperm(self.where.numel(), generator=torch.Generator().manual_seed(seed))
        return None if bool(self.where.all()) else Places(self.where.flatten()[order].view(self.where.shape))


@dataclass(frozen=True, eq=False)
class Subspace:
    """The span of some directions among a layer's channels, at every place: a CAV, an atom, what an eraser removes.

    Attributes:
        directions: one in each row; they need be neither of unit length nor orthogonal.
    """

    directions: Float[Tensor, "r features"]

    def of(self, difference: Rows) -> Rows:
        if self.directions.shape[1] != difference.shape[-1]:
            raise ErasureError(f"directions have {self.directions.shape[1]} components, the layer {difference.shape[-1]}.")
        basis = torch.linalg.qr(self.directions.double().mT).Q.to(difference)
        projected: Tensor = difference @ basis @ basis.mT
        return projected

    def at_random(self, features: int, seed: int) -> Part | None:
        count = len(self.directions)
        generator = torch.Generator().manual_seed(seed)
        return None if count >= features else Subspace(torch.randn(count, features, generator=generator))


@dataclass(frozen=True, eq=False)
class Removed:
    """What an eraser takes away, at every place: of linear readers' directions the one that they read the attribute by.

    Attributes:
        eraser: fitted to an attribute.
        found: the rows' covariance, from which random directions are drawn.
        whitened: whether they are drawn uniformly among those of white rows, as for LEACE.
    """

    eraser: Eraser
    found: CrossCovariance
    whitened: bool

    def of(self, difference: Rows) -> Rows:
        if self.eraser.left.shape[0] != difference.shape[-1]:
            raise ErasureError(
                f"the eraser is of {self.eraser.left.shape[0]} features, the layer has {difference.shape[-1]}."
            )
        return self.eraser.taken(difference)

    def at_random(self, features: int, seed: int) -> "Removed":
        return Removed(random_eraser(self.found, self.eraser.rank, seed, whitened=self.whitened), self.found, self.whitened)


@dataclass(frozen=True)
class PatchingResult(Result):
    """What layers carry of a swap, in score units.

    Attributes:
        concept: that the swap is of.
        part: what of the activations was put over.
        layers: where activations were put over, one layer at a time.
        targets: names of the scores.
        swap: mean change of each score from negatives to positives.
        swap_low, swap_high: its interval over clusters.
        carried: mean change when the part of the positive's activations is put into the negative's pass.
        low, high: its interval over clusters.
        p: of nothing being carried, two-sided, not corrected.
        share: what is carried over the swap: 1 where all of it is. NaN where the swap's interval holds zero.
        control: mean over random parts of the same size; NaN where there are none.
        beyond_low, beyond_high: interval over clusters of what is carried less the control, the parts drawn taken as
            they are.
        first_order: the same by the gradient at the negative, as attribution patching estimates it.
        pairs: matched inputs.
        controls: random parts.
        level: of the intervals.
    """

    concept: str
    part: str
    layers: tuple[str, ...]
    targets: tuple[str, ...]
    pairs: int
    controls: int
    level: float
    swap: Float[Tensor, " targets"]
    swap_low: Float[Tensor, " targets"]
    swap_high: Float[Tensor, " targets"]
    carried: Cells
    low: Cells
    high: Cells
    p: Cells
    share: Float[Tensor, "layers targets"]
    control: Float[Tensor, "layers targets"]
    beyond_low: Float[Tensor, "layers targets"]
    beyond_high: Float[Tensor, "layers targets"]
    first_order: Float[Tensor, "layers targets"]

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per layer and target."""
        import pandas as pd

        names = ("carried", "low", "high", "p", "share", "control", "beyond_low", "beyond_high", "first_order")
        return pd.DataFrame(
            {"layer": layer, "target": target, "swap": float(self.swap[t])}
            | {name: float(getattr(self, name)[i, t]) for name in names}
            for i, layer in enumerate(self.layers)
            for t, target in enumerate(self.targets)
        )

    def sentences(self) -> tuple[str, ...]:
        """Return what must be said beside the numbers."""
        said = [
            "What is put over leaves the rest of the pass at the other input, a state that the network may never be in; "
            "shares of parts need not add up to 1."
        ]
        still = [t for i, t in enumerate(self.targets) if self.swap_low[i] <= 0 <= self.swap_high[i]]
        if still:
            said.append(f"The swap is not shown to move {', '.join(still)}: there is no share of it.")
        return tuple(said)

    def plot(self) -> "Figure":
        """Draw what each layer carries of each score's swap."""
        with style():
            figure = new_figure(max(COLUMN_WIDTH, 0.9 + 0.55 * len(self.layers)), 0.9 + 1.25 * len(self.targets))
            panels = figure.subplots(len(self.targets), 1, squeeze=False, sharex=True)[:, 0]
            places = list(range(len(self.layers)))
            for t, (panel, target) in enumerate(zip(panels, self.targets, strict=True)):
                panel.axhspan(float(self.swap_low[t]), float(self.swap_high[t]), color=FAINT, alpha=0.3, lw=0)
                panel.axhline(float(self.swap[t]), color=INK, lw=0.7, ls=(0, (4, 3)), label="swap")
                panel.axhline(0, color=FAINT, lw=0.5)
                ends = torch.stack([self.carried[:, t] - self.low[:, t], self.high[:, t] - self.carried[:, t]])
                panel.errorbar(places, self.carried[:, t], ends.tolist(), fmt="o-", color=PALETTE[0], label="carried")
                if not bool(self.control[:, t].isnan().all()):
                    panel.plot(places, self.control[:, t], "s-", color=FAINT, label="random parts")
                panel.set_title(target)
            panels[-1].set_xticks(places, self.layers, rotation=30, ha="right")
            figure.supylabel("change of the score", fontsize=8)
            handles, names = panels[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper center", ncols=3)
        return figure


@dataclass(frozen=True)
class Patching:
    """Puts activations of each positive into the pass of its negative, layer by layer.

    Attributes:
        layers: dotted paths.
        controls: random parts of the same size, where there are any.
        level: of intervals.
        seed: of the random parts.

    Raises:
        ErasureError: for a part that a layer has not.

    Example:
        >>> found = Patching(("layer3", "layer4"))({"zebra": Score(net, 3)}, concept, Units((0, 7)))
        >>> found.to_pandas()[["layer", "swap", "carried", "share", "first_order"]]
    """

    layers: str | tuple[str, ...]
    controls: int = 10
    level: float = 0.95
    seed: int = 0

    def __call__(self, scores: Mapping[str, Score], concept: MatchedConcept, part: Part = WHOLE) -> PatchingResult:
        """Return what each layer carries of the swap from negatives to positives.

        Args:
            scores: by name, of one model, with one class each.
            concept: matched inputs, and what they belong to.
            part: of the activations: `Whole`, `Units`, `Places` or `Subspace`.
        """
        model, clusters = model_of(list(scores.values())), codes(concept.names)
        refuse_training(model)
        swap = clustered_mean(swap_of(scores, concept), clusters, self.level)
        readings = [self._layer(scores, concept, part, layer, clusters) for layer in several(self.layers)]
        told = (swap.low > 0) | (swap.high < 0)

        def stack(name: str) -> Float[Tensor, "layers targets"]:
            return torch.stack([reading[name] for reading in readings])

        return PatchingResult(
            provenance=Provenance.collect(
                model=model,
                examples=content_id([*concept.negative.ids, *concept.positive.ids, part]),
                method=self,
            ),
            concept=concept.name,
            part=type(part).__name__,
            layers=tuple(several(self.layers)),
            targets=tuple(scores),
            swap=swap.mean,
            swap_low=swap.low,
            swap_high=swap.high,
            pairs=len(clusters),
            controls=self.controls,
            level=self.level,
            share=torch.where(told, stack("carried") / swap.mean, torch.nan),
            **{n: stack(n) for n in ("carried", "low", "high", "p", "control", "beyond_low", "beyond_high", "first_order")},
        )

    def _layer(
        self, scores: Mapping[str, Score], concept: MatchedConcept, part: Part, layer: str, clusters: Int[Tensor, " n"]
    ) -> dict[str, Tensor]:
        seeds = [seed_of(self.seed, layer, k) for k in range(self.controls)]
        carried, control = carried_of(scores, concept, layer, part, seeds)
        found = clustered_mean(carried, clusters, self.level)
        beyond = clustered_mean(carried - control, clusters, self.level)
        return {
            "carried": found.mean,
            "low": found.low,
            "high": found.high,
            "p": found.p,
            "control": control.mean(0),
            "beyond_low": beyond.low,
            "beyond_high": beyond.high,
            "first_order": _first_order(scores, concept, layer, part).mean(0),
        }


def swap_of(scores: Mapping[str, Score], concept: MatchedConcept) -> Float[Tensor, "n targets"]:
    """Return by how much each pair's positive scores higher than its negative."""
    model = model_of(list(scores.values()))
    return _change(model, *(outputs(model, scores, side) for side in (concept.positive, concept.negative)))


def carried_of(
    scores: Mapping[str, Score], concept: MatchedConcept, layer: str, part: Part, seeds: Sequence[int]
) -> tuple[Float[Tensor, "n targets"], Float[Tensor, "n targets"]]:
    """Return by how much each negative's scores change when a part of its positive's activations is put into its pass.

    Second: the same in the mean over random parts of that size, one for each seed; NaN where there are none.
    """
    model = model_of(list(scores.values()))
    variants, found = Variants(model, scores, layer), []
    for negative, given, before, axis in _batches(model, concept, layer):
        difference = (given - before).movedim(axis, -1)
        parts = [part, *(p for seed in seeds if (p := part.at_random(difference.shape[-1], seed)) is not None)]
        found.append(variants(negative, [_as_is, *(_put(p.of(difference), axis) for p in parts)]))
    plain, patched, *controls = torch.cat(found, 1)
    control = torch.stack(controls).mean(0) if controls else torch.full_like(plain, torch.nan)
    return _change(model, patched, plain), _change(model, control, plain)


def lost_of(
    scores: Mapping[str, Score], concept: MatchedConcept, layer: str, erasers: Sequence[Eraser]
) -> Float[Tensor, "erasers n targets"]:
    """Return by how much less each pair's sides differ in their scores with the layer erased, by eraser."""
    model = model_of(list(scores.values()))
    variants, sides = Variants(model, scores, layer), []
    for side in (concept.positive, concept.negative):
        found = []
        for start in range(0, len(side), ROWS):
            batch = side.load(range(start, min(start + ROWS, len(side)))).to(device_of(model))
            if not start:
                axis = feature_axis(model, batch, layer, activations(model, layer, batch).ndim)
            found.append(variants(batch, [_as_is, *(everywhere(eraser, axis) for eraser in erasers)]))
        sides.append(torch.cat(found, 1))
    swaps = [_change(model, positive, negative) for positive, negative in zip(*sides, strict=True)]
    return torch.stack([_change(model, swaps[0], swap) for swap in swaps[1:]])


def _first_order(scores: Mapping[str, Score], concept: MatchedConcept, layer: str, part: Part) -> Float[Tensor, "n targets"]:
    """Return the gradient at each negative times the part of the difference that is put over."""
    model, found = model_of(list(scores.values())), []
    for negative, given, _, axis in _batches(model, concept, layer):
        before, slopes = _gradients(model, scores, layer, negative)
        moved = part.of((given - before).movedim(axis, -1))
        found.append(torch.stack([(s.movedim(axis, -1) * moved).flatten(1).sum(1) for s in slopes], 1).cpu().double())
    return torch.cat(found)


def _batches(
    model: nn.Module, concept: MatchedConcept, layer: str
) -> Iterator[tuple[Batch, Float[Tensor, "n ..."], Float[Tensor, "n ..."], int]]:
    """Yield negatives, what the layer returns for their positives and for them, and the axis of its features."""
    one = concept.negative.load([0])
    for start in range(0, len(concept.negative), ROWS):
        rows = range(start, min(start + ROWS, len(concept.negative)))
        negative, positive = (s.load(rows).to(device_of(model)) for s in (concept.negative, concept.positive))
        given, before = (activations(model, layer, side) for side in (positive, negative))
        yield negative, given, before, feature_axis(model, one, layer, given.ndim)


def _change(model: nn.Module, new: Float[Tensor, "n targets"], old: Float[Tensor, "n targets"]) -> Tensor:
    """Return the difference of scores; what rounding explains is none."""
    return beyond_rounding(new - old, old, of_weights(model))


def _gradients(
    model: nn.Module, scores: Mapping[str, Score], layer: str, batch: Batch
) -> tuple[Float[Tensor, "n ..."], list[Float[Tensor, "n ..."]]]:
    """Return a layer's activations, and the gradient of each score there."""
    with torch.inference_mode(False), torch.enable_grad(), frozen_parameters(model):
        with capture(model, [layer], graph=True, rows=len(batch)) as kept:
            output = run(model, batch)
        slopes = score_gradients(list(scores.values()), output, [kept[layer]], [layer])
    return kept[layer].detach(), [by_layer[0] for by_layer in slopes]


def _put(part: Rows, axis: int) -> Edit:
    """Return the edit that adds a part of a difference."""
    return lambda module, before, output: output + part.movedim(-1, axis)


def _as_is(module: nn.Module, before: Tensor, output: Tensor) -> Tensor:
    return output
