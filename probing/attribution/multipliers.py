"""DeepLIFT's multipliers on two recorded passes: by how much a score changed for each unit that a tensor changed.

Both passes, of the inputs and of their references, must run the same operations. A multiplier is handed back from an
operation's output to its inputs so that output and inputs account for the same change: linear operations by their
transpose, functions of one value by the ratio of both changes (rescale), products with each factor at its mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from probing.attribution.lrp.linear_maps import LinearMap
from probing.attribution.lrp.operation_names import ACTIVATIONS, BATCH_NORMS, LAYERS, LINEAR, MOVES, OFFSETS, names
from probing.attribution.lrp.operations import pulled
from probing.attribution.lrp.propagation import batch_norm, linear_parts
from probing.attribution.lrp.tape import Node, Slot, Tape
from probing.core.doubles import doubled
from probing.models.geometry import RefusedError


@dataclass
class Pair:
    """Passes of inputs and of references, and the multipliers of recorded tensors while they are found."""

    ours: Tape
    theirs: Tape
    multipliers: dict[int, Tensor] = field(default_factory=dict)
    missed: list[tuple[str, Tensor]] = field(default_factory=list)
    """Of each operation, by what share of the changes it met its inputs account for another change than its outputs."""
    differing: list[tuple[str, Tensor]] = field(default_factory=list)
    """Of each operation with a mask or positions that were computed, whether these are others for the reference."""

    def __post_init__(self) -> None:
        for one, other in zip(self.ours.nodes, self.theirs.nodes, strict=False):
            if (one.name, one.inputs, one.outputs) != (other.name, other.inputs, other.outputs):
                raise RefusedError(f"{one.where} is not what runs on the baseline: what runs depends on the input.")
        if len(self.ours.nodes) != len(self.theirs.nodes):
            raise RefusedError("the network runs more operations on the input than on the baseline, or fewer.")

    def at(self, key: int) -> tuple[Tensor, Tensor]:
        """Return a recorded tensor of the inputs and of the references."""
        return self.ours.values[key].tensor, self.theirs.values[key].tensor

    def change(self, key: int) -> Tensor:
        """Return how far a recorded tensor is from its reference."""
        one, other = self.at(key)
        return one - other

    def run(self) -> Tensor:
        """Hand all multipliers back and return the inputs'; zero if none arrives."""
        for node, twin in zip(reversed(self.ours.nodes), reversed(self.theirs.nodes), strict=True):
            given = [None if key is None else self.multipliers.pop(key, None) for key in node.outputs]
            if any(g is not None for g in given):
                self._pass(node, twin, given)
        return self.multipliers.get(0, torch.zeros_like(self.ours.inputs))

    def _pass(self, node: Node, twin: Node, given: list[Tensor | None]) -> None:
        self.note_constants(node, twin)
        shares = _rule(node)(self, node, twin, given)
        before, size = self._accounted(node.outputs, given)
        after, other = self._accounted(shares.keys(), shares.values())
        self.missed.append((node.where, (before - after).abs() / (size + other).clamp(min=torch.finfo(torch.float64).tiny)))
        for key, share in shares.items():
            self.multipliers[key] = self.multipliers[key] + share if key in self.multipliers else share

    def note_constants(self, node: Node, twin: Node) -> None:
        """Keep whether what an operation was given besides recorded tensors is another for the reference."""
        pairs = zip(tree_leaves((node.args, node.kwargs)), tree_leaves((twin.args, twin.kwargs)), strict=True)
        made = [(a, b) for a, b in pairs if isinstance(a, Tensor) and a.data_ptr() != b.data_ptr()]
        self.differing += [(node.where, (a != b).any()) for a, b in made]

    def _accounted(self, keys: object, multipliers: object) -> tuple[Tensor, Tensor]:
        """Return the change of the score that tensors account for, and the sum of its parts' sizes."""
        total, size = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for key, m in zip(keys, multipliers, strict=True):  # type: ignore[call-overload]
            if key is not None and m is not None:
                parts = doubled(m * self.change(key))
                total, size = total.to(parts.device) + parts.sum(), size.to(parts.device) + parts.abs().sum()
        return total, size

    def refuse_differing(self) -> None:
        """Refuse an operation whose constants are others for the reference, as a mask made of activations is."""
        if not self.differing:
            return
        flags = torch.stack([flag for _, flag in self.differing]).cpu().tolist()
        if where := next((where for (where, _), flag in zip(self.differing, flags, strict=True) if flag), None):
            raise RefusedError(
                f"{where} goes by a mask or positions that hang on activations and are others for the baseline, which "
                "DeepLIFT has no rule for: use a method that needs gradients only, such as integrated gradients."
            )

    def worst(self) -> str:
        """Return the operation that missed most; the host reads once for all."""
        shares = torch.stack([share.cpu() for _, share in self.missed])
        return self.missed[int(shares.argmax())][0]


Shares = dict[int, Tensor]
Rule = Callable[[Pair, Node, Node, Sequence[Tensor | None]], Shares]


def _transposed(pair: Pair, node: Node, twin: Node, given: Sequence[Tensor | None]) -> Shares:
    """Of a linear operation its transpose; of a product of two the transpose at the mean of both passes, which is exact."""
    if len(node.inputs) == 1:
        return pulled(node, {node.inputs[0]: pair.at(node.inputs[0])[0]}, given)
    return pulled(node, {key: torch.stack(pair.at(key)).mean(0) for key in node.inputs}, given)


def _layer(pair: Pair, node: Node, twin: Node, given: Sequence[Tensor | None]) -> Shares:
    """Of a convolution or dense layer with constant weights: its transpose, without running it again."""
    parts: tuple[int, LinearMap, Tensor, Tensor | None] | None = linear_parts(node)
    if parts is None or given[0] is None:
        return _transposed(pair, node, twin, given)
    source, map_, weight, _ = parts
    return {source: map_.transpose(given[0], weight, pair.at(source)[0])}


def _batch_norm(pair: Pair, node: Node, twin: Node, given: Sequence[Tensor | None]) -> Shares:
    affine = batch_norm(node)
    if affine is None or given[0] is None:
        return _refuse(pair, node, twin, given)
    assert affine.scale is not None
    return {node.inputs[0]: given[0] * affine.scale.view(1, -1, *[1] * (given[0].ndim - 2))}


def _rescale(pair: Pair, node: Node, twin: Node, given: Sequence[Tensor | None]) -> Shares:
    """Of a function of single values: the ratio of the changes of output and input, of next to none the derivative there.

    Shrikumar et al. 2017, sec. 3.5.1, the rescale rule.
    """
    source, key = node.inputs[0], node.outputs[0]
    if len(node.inputs) != 1 or key is None or given[0] is None:
        return _refuse(pair, node, twin, given)
    (one, other), change = pair.at(source), pair.change(source)
    risen = pair.change(key)
    if risen.shape != change.shape:
        return _refuse(pair, node, twin, given)
    still = change.abs() <= torch.finfo(change.dtype).eps ** 0.75 * (one.abs() + other.abs())
    slope = pulled(node, {source: (one + other) / 2}, given)[source]
    return {source: torch.where(still, slope, given[0] * (risen / torch.where(still, 1, change)))}


def _divide(pair: Pair, node: Node, twin: Node, given: Sequence[Tensor | None]) -> Shares:
    """Of a quotient of two activations: a product of the one with the other's inverse, each at its mean."""
    numerator, denominator = node.args[:2]
    if node.kwargs.get("rounding_mode") is not None or given[0] is None:
        return _refuse(pair, node, twin, given)
    if not isinstance(denominator, Slot):
        return _transposed(pair, node, twin, given)
    if not isinstance(numerator, Slot):
        return _rescale(pair, node, twin, given)
    (a, a0), (d, d0) = pair.at(numerator.key), pair.at(denominator.key)
    above = (given[0] * (1 / d + 1 / d0) / 2).sum_to_size(a.shape)
    below = (given[0] * (a + a0) / -2 / (d * d0)).sum_to_size(d.shape)
    if numerator.key == denominator.key:
        return {numerator.key: above + below}
    return {numerator.key: above, denominator.key: below}


def _max_pool(pair: Pair, node: Node, twin: Node, given: Sequence[Tensor | None]) -> Shares:
    """Of a maximum over windows: a rise goes to the place that has it, a fall to the place that had it.

    That place changed at least as far to the same side, so its multiplier is between none and all of the window's.
    """
    source, key = node.inputs[0], node.outputs[0]
    assert key is not None
    if given[0] is None or node.indices is None or twin.indices is None:
        return _refuse(pair, node, twin, given)
    change, risen = pair.change(source), pair.change(key)
    places = {"max_pool3d_with_indices": 3}.get(node.name, 2)
    lead = change.ndim - places
    flat = torch.zeros_like(change.flatten(lead))
    for side, indices in ((risen > 0, node.indices), (risen < 0, twin.indices)):
        amount = torch.where(side, given[0] * risen, 0)
        flat.scatter_add_(lead, indices.flatten(lead), amount.flatten(lead))
    total = flat.view(change.shape)
    return {source: torch.where(change == 0, 0, total / torch.where(change == 0, 1, change))}


def _refuse(pair: Pair, node: Node, twin: Node, given: Sequence[Tensor | None]) -> Shares:
    raise RefusedError(
        f"{node.where} has no rule of DeepLIFT: replace it, or explain the network by a method that needs gradients only, "
        "such as integrated gradients."
    )


_POOLS = names("max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d")
CHOICES = _POOLS | names("max amax min amin maximum minimum sort topk")
"""Moves whose places depend on the values."""
_RECTIFIERS = names("relu hardtanh clamp clamp_min clamp_max threshold")
_SINGLE = ACTIVATIONS | OFFSETS | _RECTIFIERS | names("pow exp log log1p expm1 sin cos rsqrt reciprocal")
_RULES: dict[str, Rule] = {
    **dict.fromkeys((MOVES - CHOICES) | LINEAR | {"add", "sub", "cat", "mul", "bmm", "mv", "dot"}, _transposed),
    **dict.fromkeys(LAYERS, _layer),
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    **dict.fromkeys(_SINGLE, _rescale),
    **dict.fromkeys(_POOLS, _max_pool),
    "div": _divide,
}


def _rule(node: Node) -> Rule:
    alone = node.name in {"maximum", "minimum"} and len(node.inputs) == 1  # with a constant
    return _rescale if alone else _RULES.get(node.name, _refuse)
