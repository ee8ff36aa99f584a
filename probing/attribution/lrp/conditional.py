"""Relevance of one concept: what of a map goes through some part of a layer's output (Achtibat et al. 2023, CRP).

Relevance arrives at a layer as a number for each value of its output. Where the output is a sum of parts, each part takes of
a value's relevance its share of that value, and everything below the layer shares relevance linearly. So the maps of
parts that sum to the output sum to the map of all that goes through the layer. A value of 0 has no relevance, nor have
its parts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probing.attribution.base import Attribution, attribution, checked
from probing.attribution.lrp.lrp import LRP
from probing.attribution.lrp.operations import Flow
from probing.attribution.lrp.rules import Relevance
from probing.attribution.lrp.tape import Tape
from probing.core.doubles import doubled
from probing.core.errors import ProbingError
from probing.models.geometry import RefusedError, channel_axis
from probing.models.hooks import LayerCallError, other_rows, watch
from probing.models.layers import resolve, split_call, split_parts
from probing.models.loading import Model
from probing.models.scores import Score, Target


class PartError(ProbingError, ValueError):
    """A part that a layer's output has not."""


@runtime_checkable
class Part(Protocol):
    """Which part of a layer's output is a concept's; parts of a complete set sum to the output."""

    def __call__(self, output: Float[Tensor, "n units *places"]) -> Float[Tensor, "n units *places"]:
        """Return the part of each example's output, whose units come second."""


@dataclass(frozen=True)
class UnitPart:
    """One unit: a channel of maps, a feature of tokens, a neuron. All units are a complete set."""

    unit: int

    def __call__(self, output: Float[Tensor, "n units *places"]) -> Float[Tensor, "n units *places"]:
        if not 0 <= self.unit < output.shape[1]:
            raise PartError(f"there is no unit {self.unit} among {output.shape[1]}, which are counted from 0.")
        part = torch.zeros_like(output)
        part[:, self.unit] = output[:, self.unit]
        return part


@dataclass(frozen=True, eq=False)
class DirectionPart:
    """What lies along a direction, such as a CAV or a probe's: its length does not matter.

    Directions at right angles, as many as units, are a complete set. Others are not: what they share counts for each.
    """

    vector: Float[Tensor, " units"]

    def __call__(self, output: Float[Tensor, "n units *places"]) -> Float[Tensor, "n units *places"]:
        vector = self.vector.to(output)
        if len(vector) != output.shape[1] or not float(vector.norm()) > 0:
            raise PartError(
                f"a direction of {len(vector)} values and length {float(vector.norm()):.3g} does not fit "
                f"{output.shape[1]} units: give one value per unit, not all 0."
            )
        shape = (1, -1, *[1] * (output.ndim - 2))
        along = (output * vector.view(shape)).sum(1, keepdim=True) / vector.square().sum()
        return along * vector.view(shape)


@dataclass(frozen=True)
class ConditionalLRP:
    """Layer-wise relevance of a part of a layer's output: maps of one concept for one image.

    As in CRP, relevance starts at the score, and at the layer all but the part's is dropped, relevance that goes past the
    layer too. A unit's part is that of Achtibat et al. (2023, eq. 6); a direction's is the same in a turned basis (a virtual
    layer, Chormai et al. 2022).

    `diagnostics`, each `[n]`: `at_layer`, the part's relevance; `through_layer`, that of all parts; `past_layer`, what goes
    another way; and the ledger of `LRP` below the layer, whose entries sum to `at_layer`.

    Attributes:
        layer: a dotted path, `"name:call"` where it runs several times.
        lrp: composite, start and the rest.

    Raises:
        RefusedError: as of `LRP`; and for other parts than units of a layer with a normalisation that is folded into it.
        LayerNotFoundError, LayerCallError: for a layer that can't be read.
        PartError: for a part that does not fit.

    Example:
        >>> ConditionalLRP("layer3")(Score(model, 3), images, UnitPart(5)).diagnostics["at_layer"]
    """

    layer: str
    lrp: LRP = field(default_factory=LRP)

    def __call__(
        self,
        score: Score | Model,
        inputs: Float[Tensor, "n *shape"],
        part: Part | Sequence[Part],
        target: Target = None,
    ) -> Attribution:
        """Return the map of a part for each input.

        Args:
            score: what is explained, or a model, of which that is the logit of the target.
            inputs: one example per row, in model space.
            part: of the layer's output, for all inputs or one for each.
            target: of a model: a class, or one per input; by default the top class of each.
        """
        score, inputs = checked(score if isinstance(score, Score) else Score(score, target), inputs)
        parts = list(part) if isinstance(part, Sequence) else [part] * len(inputs)
        if len(parts) != len(inputs):
            raise PartError(f"there are {len(parts)} parts for {len(inputs)} inputs: give one, or one for each.")
        taps: list[tuple[int, _PartTap]] = []
        last = _units_last(score, inputs, self.layer)

        def at(rows: slice) -> _PartTap:
            taps.append((rows.start, _PartTap(score, self.layer, parts[rows], last)))
            return taps[-1][1]

        found, how = self.lrp.walk(score, inputs, at)
        amounts = {name: torch.zeros(len(inputs), dtype=torch.float64) for name in _AMOUNTS}
        for start, tap in taps:  # rows that were walked again one by one come last
            for name, values in tap.amounts.items():
                amounts[name][start : start + len(values)] = values.cpu()
        return attribution(
            self,
            score,
            inputs,
            found.values.to(inputs),
            found.score.to(inputs),
            n_forward=len(inputs),
            n_backward=len(inputs),
            diagnostics={k: v.to(inputs.device) for k, v in (amounts | found.ledger).items()},
            layer=self.layer,
            prepared=how,
        )


@dataclass(frozen=True, eq=False)
class LayerRelevance:
    """A layer's output for each example, and its relevance per unit of it: `output * slope` is the relevance."""

    output: Float[Tensor, "n units *places"]
    slope: Float[Tensor, "n units *places"]


def layer_relevance(method: LRP, score: Score, inputs: Float[Tensor, "n *shape"], layer: str) -> LayerRelevance:
    """Return the relevance that arrives at a layer, from which that of any of its parts follows: `part * slope`.

    Args:
        method: composite and start.
        score: what is explained.
        inputs: one example per row, in model space.
        layer: a dotted path.

    Raises:
        RefusedError, LayerNotFoundError, LayerCallError: as `ConditionalLRP`.
    """
    score, inputs = checked(score, inputs)
    taps: list[tuple[int, _SlopeTap]] = []
    last = _units_last(score, inputs, layer)

    def at(rows: slice) -> _SlopeTap:
        taps.append((rows.start, _SlopeTap(score, layer, last)))
        return taps[-1][1]

    method.walk(score, inputs, at)
    found = {start: tap.kept for start, tap in taps if tap.kept is not None}  # rows walked again one by one come last
    pieces: list[LayerRelevance] = []
    while (start := sum(len(p.output) for p in pieces)) < len(inputs):
        pieces.append(found[start])
    return LayerRelevance(torch.cat([p.output for p in pieces]), torch.cat([p.slope for p in pieces]))


_AMOUNTS = ("at_layer", "through_layer", "past_layer")


def _units_last(score: Score, inputs: Tensor, layer: str) -> bool | None:
    """Return whether a map's units come last; None where that hangs on its number of axes."""
    if split_parts(layer)[1]:
        raise LayerCallError(f"{layer!r} is a part of what a layer returns: name a layer after it that returns one tensor.")
    resolve(score.model, split_call(layer)[0])
    axis = channel_axis(score.model, inputs, layer) if inputs.ndim == 4 else None
    return None if axis is None else axis == -1


class _AtLayer:
    """Learns the key of what a layer returns while a pass is recorded."""

    def __init__(self, score: Score, layer: str, last: bool | None) -> None:
        self._model, self._layer, self._last = score.model, layer, last
        self._keys: list[int] = []

    @property
    def key(self) -> int:
        return self._keys[0] if self._keys else -1

    @contextmanager
    def noting(self, tape: Tape) -> Iterator[None]:
        name, call = split_call(self._layer)
        module, seen = resolve(self._model, name), 0
        own = next(path for path, one in self._model.named_modules() if one is module)

        def ended(path: str, output: object) -> None:
            nonlocal seen
            if path != own:
                return
            seen += 1
            if call is not None and seen != call + 1:
                return
            if not isinstance(output, Tensor) or (key := tape.key_of(output)) is None:
                raise LayerCallError(f"layer {self._layer!r} returns no tensor that depends on the input: name another.")
            if output.shape[:1] != tape.inputs.shape[:1]:
                raise LayerCallError(other_rows(self._layer, tuple(output.shape), len(tape.inputs)))
            self._keys.append(key)

        with watch(self._model, ended):
            yield
        if len(self._keys) != 1:
            often = f"{len(self._keys)} times" if self._keys else "never"
            raise LayerCallError(f"layer {self._layer!r} ran {often}, expected once: name a call, as 'layer:0'.")

    def by_unit(self, value: Tensor) -> Tensor:
        """Return a layer's output, or what lies where it does, with units second."""
        return value.movedim(self.axis(value), 1)

    def axis(self, value: Tensor) -> int:
        """Return which axis units are along."""
        return -1 if value.ndim == 3 or self._last else 1

    def refuse_folded(self) -> None:
        raise RefusedError(
            f"the normalisation after layer {self._layer!r} is folded into it, so that relevance belongs to the "
            "normalisation's output: name that layer."
        )


class _PartTap(_AtLayer):
    """Lets go on what is a part's."""

    def __init__(self, score: Score, layer: str, parts: Sequence[Part], last: bool | None) -> None:
        super().__init__(score, layer, last)
        self._parts = parts
        self.amounts: dict[str, Tensor] = {}

    def __call__(self, value: Tensor, relevance: Relevance, flow: Flow, *, folded: bool) -> Relevance:
        if folded and not all(isinstance(p, UnitPart) for p in self._parts):
            self.refuse_folded()
        units = self.by_unit(value)
        part = torch.cat([p(row[None]) for p, row in zip(self._parts, units, strict=True)]).movedim(1, self.axis(value))
        share = torch.where(value == 0, 0, part / value)
        gone_on = Relevance(*(None if r is None else r * share for r in (relevance.gradient, relevance.extra)))
        own, whole = (doubled(r.of(value).flatten(1)).sum(1) for r in (gone_on, relevance))
        before = sum((v for k, v in flow.ledger.items() if k != "fallbacks"), torch.zeros_like(own))
        self.amounts = {"at_layer": own, "through_layer": whole, "before": before}
        return gone_on

    def begun(self, start: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        self.amounts["past_layer"] = start - self.amounts.pop("before") - self.amounts["through_layer"]
        return self.amounts["at_layer"]


class _SlopeTap(_AtLayer):
    """Keeps what arrives, and ends the walk."""

    def __init__(self, score: Score, layer: str, last: bool | None) -> None:
        super().__init__(score, layer, last)
        self.kept: LayerRelevance | None = None

    def __call__(self, value: Tensor, relevance: Relevance, flow: Flow, *, folded: bool) -> None:
        if folded:
            self.refuse_folded()
        slope = torch.where(value == 0, 0, relevance.as_gradient(value))
        self.kept = LayerRelevance(self.by_unit(value).clone(), self.by_unit(slope))

    def begun(self, start: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return torch.zeros_like(start)
