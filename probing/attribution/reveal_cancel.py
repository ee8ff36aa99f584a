"""DeepLIFT's reveal-cancel rule: what raises and what lowers a unit are carried apart, so that they can't hide each other.

Of each recorded tensor the difference from its reference is the sum of a raising and a lowering part, and each part has a
multiplier of its own. Linear operations send what a weight above zero brings to the same part, and what one below zero
brings to the other. Functions of one value that never fall give each part the mean of what it changes alone and beside the
other.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from probing.attribution.lrp.operation_names import BATCH_NORMS, LAYERS, LINEAR, MOVES, names
from probing.attribution.lrp.propagation import batch_norm, linear_parts
from probing.attribution.lrp.tape import Node, Slot
from probing.attribution.multipliers import CHOICES, Pair
from probing.core.doubles import doubled
from probing.models.geometry import RefusedError

Parts = tuple[Tensor, Tensor]
"""Of a difference, what raises and what lowers; or the multiplier of each."""
Map = Callable[[Mapping[int, Tensor]], list[Tensor]]
"""A linear operation, from what it reads, by key, to what it returns."""


def reveal_cancel(pair: Pair, key: int, slope: Tensor) -> Tensor:
    """Return what each value of the input gave to the change of the score (Shrikumar et al. 2017).

    Args:
        pair: passes of the inputs and of the references.
        key: the recorded tensor that the score is read of.
        slope: its multipliers.

    Raises:
        RefusedError: for an operation that has no such rule.
    """
    change = pair.change(0)
    parts: dict[int, Parts] = {0: (change.clamp(min=0), change.clamp(max=0))}
    leading = _leading(pair, key)
    for node, twin in leading:
        pair.note_constants(node, twin)
        made = zip(node.outputs, _forward(pair, node, parts), strict=False)
        parts |= {output: found for output, found in made if output is not None}
    multipliers: dict[int, Parts] = {key: (slope, slope)}
    for node, _ in reversed(leading):
        arrived = {k: multipliers.pop(k) for k in node.outputs if k is not None and k in multipliers}
        back = _back(pair, node, parts, arrived)
        before, after = (_accounted(parts, side) for side in (arrived, back))
        tiny = torch.finfo(torch.float64).tiny
        pair.missed.append((node.where, (before[0] - after[0]).abs() / (before[1] + after[1]).clamp(min=tiny)))
        for source, (up, down) in back.items():
            own = multipliers.get(source)
            multipliers[source] = (up, down) if own is None else (own[0] + up, own[1] + down)
    if 0 not in multipliers:
        return torch.zeros_like(change)
    return sum(m * part for m, part in zip(multipliers[0], parts[0], strict=True))  # type: ignore[return-value]


def _leading(pair: Pair, key: int) -> list[tuple[Node, Node]]:
    """Return the operations that lead to a recorded tensor, in their order, each with that of the reference."""
    wanted, found = {key}, []
    for node, twin in zip(reversed(pair.ours.nodes), reversed(pair.theirs.nodes), strict=True):
        if wanted.intersection(k for k in node.outputs if k is not None):
            wanted.update(node.inputs)
            found.append((node, twin))
    return found[::-1]


def _accounted(parts: dict[int, Parts], multipliers: dict[int, Parts]) -> tuple[Tensor, Tensor]:
    """Return the change of the score that tensors account for, and the sum of its parts' sizes."""
    each = [doubled(m * p).flatten() for k, both in multipliers.items() for m, p in zip(both, parts[k], strict=True)]
    whole = torch.cat(each) if each else torch.zeros(1, dtype=torch.float64)
    return whole.sum(), whole.abs().sum()


def _forward(pair: Pair, node: Node, parts: dict[int, Parts]) -> list[Parts]:
    if node.name in _RISING:
        return [_revealed(pair, node, *parts[node.inputs[0]])]
    keeps, turns = _signed(pair, node)
    up, down = ({k: parts[k][side] for k in node.inputs} for side in (0, 1))
    return [(a + b, c + d) for a, b, c, d in zip(keeps(up), turns(down), keeps(down), turns(up), strict=True)]


def _back(pair: Pair, node: Node, parts: dict[int, Parts], arrived: dict[int, Parts]) -> dict[int, Parts]:
    if node.name in _RISING:
        source, output = node.inputs[0], next(iter(arrived))
        both = zip(arrived[output], parts[output], parts[source], strict=True)
        up, down = (m * torch.where(p == 0, 0, made / torch.where(p == 0, 1, p)) for m, made, p in both)
        return {source: (up, down)}
    keeps, turns = _signed(pair, node)
    like = {k: pair.at(k)[0] for k in node.inputs}
    risen, fallen = ([arrived[k][side] if k in arrived else None for k in node.outputs] for side in (0, 1))
    ways = [_pulled(map_, like, m) for map_, m in ((keeps, risen), (turns, fallen), (keeps, fallen), (turns, risen))]
    return {k: (ways[0][k] + ways[1][k], ways[2][k] + ways[3][k]) for k in like}


def _pulled(map_: Map, like: Mapping[int, Tensor], shares: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """Return the transpose of a linear map, of what arrives at each of its outputs."""
    with torch.enable_grad():
        leaves = {k: torch.zeros_like(t).requires_grad_() for k, t in like.items()}
        outputs = map_(leaves)
    pairs = [(o, s) for o, s in zip(outputs, shares, strict=False) if s is not None and o.requires_grad]
    if not pairs:
        return {k: torch.zeros_like(t) for k, t in like.items()}
    found = torch.autograd.grad(
        [o for o, _ in pairs], list(leaves.values()), [m for _, m in pairs], allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def _revealed(pair: Pair, node: Node, up: Tensor, down: Tensor) -> Parts:
    """Return of each part the mean of what it changes alone and of what it changes beside the other."""
    source = node.inputs[0]
    one, other = pair.at(source)
    none, raised, lowered, both = (_called(node, {source: at})[0] for at in (other, other + up, other + down, one))
    return ((raised - none) + (both - lowered)) / 2, ((lowered - none) + (both - raised)) / 2


def _called(node: Node, values: Mapping[int, Tensor]) -> list[Tensor]:
    """Run a recorded operation on other values of what it reads."""
    place = lambda leaf: values[leaf.key] if isinstance(leaf, Slot) else leaf  # noqa: E731 (a closure, one line)
    args, kwargs = tree_map(place, (node.args, node.kwargs))
    output = node.func(*args, **kwargs)
    return list(output) if isinstance(output, tuple | list) else [output]


def _signed(pair: Pair, node: Node) -> tuple[Map, Map]:
    """Return what an operation does by its weights above zero, and by those below.

    Raises:
        RefusedError: for one that is not linear, or whose weights are made of activations.
    """
    if node.name in LAYERS and (layer := linear_parts(node)) is not None:
        source, map_, weight, _ = layer
        high, low = weight.clamp(min=0), weight.clamp(max=0)
        return lambda x: [map_(x[source], high, None)], lambda x: [map_(x[source], low, None)]
    if node.name in BATCH_NORMS and len(node.inputs) == 1 and (affine := batch_norm(node)) is not None:
        assert affine.scale is not None
        places = [1] * (pair.at(node.inputs[0])[0].ndim - 2)
        return _weighed(pair, node, [(0, affine.scale.view(1, -1, *places))])
    if node.name in _WEIGHTS and (terms := _WEIGHTS[node.name](node)) is not None:
        return _weighed(pair, node, terms)
    if node.name in _KEEPING:
        return lambda x: _from_zero(node, x), lambda x: [torch.zeros_like(y) for y in _called(node, x)]
    raise RefusedError(
        f"{node.where} has no reveal-cancel rule of DeepLIFT: use rule='rescale', or a method that needs gradients only, "
        "such as integrated gradients."
    )


def _from_zero(node: Node, values: Mapping[int, Tensor]) -> list[Tensor]:
    """Run an operation without the constants that it brings in."""
    none = _called(node, {k: torch.zeros_like(v) for k, v in values.items()})
    return [y - y0 for y, y0 in zip(_called(node, values), none, strict=True)]


Terms = list[tuple[int, Tensor | float]]
"""Which arguments are multiplied by what, and added up."""


def _weighed(pair: Pair, node: Node, terms: Terms) -> tuple[Map, Map]:
    key = node.outputs[0]
    assert key is not None
    like = pair.at(key)[0]

    def side(least: float | None, most: float | None) -> Map:
        def total(x: Mapping[int, Tensor]) -> list[Tensor]:
            found = torch.zeros_like(like)
            for place, weight in terms:
                if isinstance(slot := node.args[place], Slot):
                    found = found + x[slot.key] * torch.as_tensor(weight, dtype=like.dtype).to(like).clamp(least, most)
            return [found]

        return total

    return side(0.0, None), side(None, 0.0)


def _product(node: Node) -> Terms | None:
    one, other = node.args[:2]
    if isinstance(one, Slot) and isinstance(other, Slot):
        return None
    return [(0, _number(other))] if isinstance(one, Slot) else [(1, _number(one))]


def _quotient(node: Node) -> Terms | None:
    if isinstance(node.args[1], Slot) or node.kwargs.get("rounding_mode") is not None:
        return None
    return [(0, 1 / _number(node.args[1]))]


def _number(given: Tensor | int | float) -> Tensor | float:
    return given if isinstance(given, Tensor) else float(given)


_WEIGHTS: dict[str, Callable[[Node], Terms | None]] = {
    "add": lambda node: [(0, 1.0), (1, float(node.kwargs.get("alpha", 1)))],
    "sub": lambda node: [(0, 1.0), (1, -float(node.kwargs.get("alpha", 1)))],
    "rsub": lambda node: [(0, -float(node.kwargs.get("alpha", 1)))],
    "neg": lambda node: [(0, -1.0)],
    "mul": _product,
    "div": _quotient,
}
_KEEPING = (MOVES - CHOICES) | {"cat"} | (LINEAR - names("neg rsub upsample_bicubic2d _upsample_bicubic2d_aa"))
"""Linear operations without a weight below zero."""
_RISING = names(
    """relu leaky_relu elu celu tanh hardtanh clamp clamp_min clamp_max sigmoid hardsigmoid softplus log_sigmoid_forward
    softshrink hardshrink erf exp expm1"""
)
"""Functions of one value, each of any number, that never fall."""
