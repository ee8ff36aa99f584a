"""How relevance passes through every operation that is no linear layer.

Each handler takes a recorded operation and the relevance of its outputs, and hands relevance to its inputs. What has
no handler is refused by name as soon as relevance reaches it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from probing.attribution.lrp.operation_names import (
    ACTIVATIONS,
    BATCH_NORMS,
    FILLS,
    GATE_KEEPERS,
    GATES,
    IDENTITIES,
    LINEAR,
    MOVES,
    OFFSETS,
    PLAIN_NORMS,
    SOFTMAXES,
)
from probing.attribution.lrp.rules import Relevance
from probing.attribution.lrp.tape import Node, Slot, Tape
from probing.core.doubles import doubled
from probing.models.geometry import RefusedError


@dataclass
class Flow:
    """The relevance of each recorded tensor, and the ledger of what stays behind, while it flows to the input."""

    tape: Tape
    relevance: dict[int, Relevance] = field(default_factory=dict)
    ledger: dict[str, Tensor] = field(default_factory=dict)

    def value(self, key: int | None) -> Tensor:
        """Return a recorded tensor."""
        assert key is not None
        return self.tape.values[key].tensor

    def give(self, key: int, relevance: Relevance) -> None:
        """Add to the relevance of a recorded tensor."""
        self.relevance[key] = self.relevance[key] + relevance if key in self.relevance else relevance

    def keep(self, entry: str, amounts: Tensor, lead: int | None) -> None:
        """Add to the ledger what stays behind in an operation, of any shape whose flat order is that of the rows."""
        n = len(self.tape.inputs)
        if lead is None:
            raise MixedRowsError(entry)
        total = doubled(amounts).reshape(lead, n, -1).sum((0, 2))
        self.ledger[entry] = self.ledger.get(entry, 0) + total


class MixedRowsError(Exception):
    """Rows of a batch can't be told apart by example: explain one example at a time."""


Handler = Callable[[Flow, Node, Relevance], None]


def _real(args: object, flow: Flow) -> Any:
    return tree_map(lambda leaf: flow.value(leaf.key) if isinstance(leaf, Slot) else leaf, args)


def transpose(flow: Flow, node: Node, shares: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """Return the operation's own gradient: shares of its outputs, summed back to its inputs."""
    if node.name == "max_pool2d_with_indices":
        return {node.inputs[0]: _unpool(flow.value(node.inputs[0]), node, shares[0])}
    return pulled(node, {key: flow.value(key) for key in node.inputs}, shares)


def pulled(node: Node, values: Mapping[int, Tensor], shares: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """Return the gradient of a recorded operation at some values of its inputs: shares of its outputs, summed back."""
    leaves = {key: value.detach().requires_grad_() for key, value in values.items()}
    place = lambda leaf: leaves[leaf.key] if isinstance(leaf, Slot) else leaf  # noqa: E731 (a closure, one line)
    with torch.enable_grad():
        args, kwargs = tree_map(place, (node.args, node.kwargs))
        output = node.func(*args, **kwargs)
    outputs = list(output) if isinstance(output, tuple | list) else [output]
    pairs = [(o, s) for o, s in zip(outputs, shares, strict=True) if s is not None and o.requires_grad]
    found = torch.autograd.grad([o for o, _ in pairs], list(leaves.values()), [s for _, s in pairs], allow_unused=True)
    return {key: g for key, g in zip(leaves, found, strict=True) if g is not None}


def _unpool(source: Tensor, node: Node, shares: Tensor | None) -> Tensor:
    """Return the gradient of max-pooling from the positions it found, without pooling anew."""
    defaults: tuple[Any, ...] = (None, None, [], [0, 0], [1, 1], False)
    _, kernel, stride, *rest = node.args + defaults[len(node.args) :]
    backward = torch.ops.aten.max_pool2d_with_indices_backward
    result: Tensor = backward(shares, source, kernel, stride or kernel, *rest, node.indices)
    return result


def move(flow: Flow, node: Node, relevances: Sequence[Relevance | None]) -> None:
    """Each element of an output is one element of an input, or a constant: its relevance goes there."""
    if node.name in IDENTITIES and relevances[0] is not None:
        flow.give(node.inputs[0], relevances[0])
        return
    for part in ("gradient", "extra"):
        shares = [None if r is None else getattr(r, part) for r in relevances]
        if all(s is None for s in shares):
            continue
        given = transpose(flow, node, shares)
        for key, share in given.items():
            flow.give(key, Relevance(**{part: share}))
        if _holds_constants(node):
            _keep_rest(flow, node, part, shares, given)


def linear(flow: Flow, node: Node, relevance: Relevance) -> None:
    """Outputs are sums of multiples of inputs and of constants: each term gets its part of the sum (LRP-0)."""
    output = flow.value(node.outputs[0])
    shares: list[Tensor | None] = [relevance.as_gradient(output)]
    shares += [None] * (len(node.outputs) - 1)
    given = transpose(flow, node, shares)
    for key, share in given.items():
        flow.give(key, Relevance(share))
    _keep_lost(flow, node, relevance)
    if _holds_constants(node):
        _keep_rest(flow, node, "gradient", shares, given)


def _holds_constants(node: Node) -> bool:
    leaves: list[object] = []
    tree_map(leaves.append, (node.args, node.kwargs))
    return node.name in FILLS or any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves)


def _keep_rest(flow: Flow, node: Node, part: str, shares: Sequence[Tensor | None], given: dict[int, Tensor]) -> None:
    """Put into the ledger what constants among the inputs take."""

    def amount(key: int, share: Tensor) -> Tensor:
        return _product(flow.value(key), share) if part == "gradient" else share

    for key, share in zip(node.outputs, shares, strict=True):
        if key is not None and share is not None:
            flow.keep("bias", amount(key, share), flow.tape.values[key].lead)
    for key, share in given.items():
        flow.keep("bias", -amount(key, share), flow.tape.values[key].lead)


def _keep_lost(flow: Flow, node: Node, relevance: Relevance) -> None:
    """Put into the ledger the extra relevance that outputs of zero can't hand on."""
    if relevance.extra is not None:
        key = node.outputs[0]
        assert key is not None
        passed = _product(flow.value(key), Relevance(extra=relevance.extra).as_gradient(flow.value(key)))
        flow.keep("epsilon", relevance.extra - passed, flow.tape.values[key].lead)


def _product(value: Tensor | float, share: Tensor) -> Tensor:
    return torch.where(share == 0, 0, value * share)  # infinite values, as in a mask, take no share


def add(flow: Flow, node: Node, relevance: Relevance) -> None:
    """Each summand gets its part of the sum (residual connections; a constant's part stays in the ledger)."""
    output_key = node.outputs[0]
    assert output_key is not None
    share = relevance.as_gradient(flow.value(output_key))
    _keep_lost(flow, node, relevance)
    factor = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
    factor = -factor if node.name == "sub" else factor
    for term, weight in zip(node.args[:2], (1, factor), strict=True):
        if isinstance(term, Slot):
            given = share if weight == 1 else share * weight
            flow.give(term.key, Relevance(given.sum_to_size(flow.value(term.key).shape)))
        else:
            flow.keep("bias", _product(weight * term, share), flow.tape.values[output_key].lead)


def multiply(flow: Flow, node: Node, relevance: Relevance) -> None:
    """A constant or a gate takes nothing; two factors of equal standing take half each (AttnLRP, eq. 15)."""
    factors = [leaf for leaf in node.args if isinstance(leaf, Slot)]
    values = flow.tape.values
    key = node.outputs[0]
    assert key is not None
    share = relevance.as_gradient(flow.value(key))
    _keep_lost(flow, node, relevance)
    gates = [values[f.key].gate for f in factors]
    if len(factors) == 2 and factors[0].key != factors[1].key and any(gates) and not all(gates):
        given = transpose(flow, node, [share])
        receiver = factors[gates.index(False)].key
        flow.give(receiver, Relevance(given[receiver]))
        return
    for owner, gradient in transpose(flow, node, [share]).items():
        flow.give(owner, Relevance(gradient / len(factors)))


def divide(flow: Flow, node: Node, relevance: Relevance) -> None:
    """All goes to the numerator; what it is divided by counts as a constant, as in normalisation layers."""
    numerator, denominator = node.args[:2]
    if not isinstance(numerator, Slot) or node.kwargs.get("rounding_mode") is not None:
        refuse(flow, node, relevance)
    share = relevance.as_gradient(flow.value(node.outputs[0]))
    _keep_lost(flow, node, relevance)
    given = (share / _real(denominator, flow)).sum_to_size(flow.value(numerator.key).shape)
    flow.give(numerator.key, Relevance(given))


def concatenate(flow: Flow, node: Node, relevance: Relevance) -> None:
    """Each part gets its slice."""
    parts, dim = node.args[0], node.args[1] if len(node.args) > 1 else 0
    tensors = _real(parts, flow)
    if any(t.ndim == 1 and not t.numel() for t in tensors):
        return move(flow, node, [relevance])
    start = 0
    for part, tensor in zip(parts, tensors, strict=True):
        width = tensor.shape[dim]
        piece = Relevance(
            *(None if t is None else t.narrow(dim, start, width) for t in (relevance.gradient, relevance.extra))
        )
        start += width
        if isinstance(part, Slot):
            flow.give(part.key, piece)
        else:
            lead = flow.tape.values[node.inputs[0]].lead
            if piece.gradient is not None:
                flow.keep("bias", _product(tensor, piece.gradient), lead)
            if piece.extra is not None:
                flow.keep("bias", piece.extra, lead)
    return None


def activate(flow: Flow, node: Node, relevance: Relevance) -> None:
    """Relevance passes unchanged from an activation's output to its input."""
    source, output = flow.value(node.inputs[0]), flow.value(node.outputs[0])
    gradient = relevance.gradient
    if gradient is not None:
        gradient = gradient * torch.where(source == 0, 0, output / source)
    flow.give(node.inputs[0], Relevance(gradient, relevance.extra))


def rectify(flow: Flow, node: Node, relevance: Relevance) -> None:
    """As `activate`, for the ReLU: the ratio of output to input is 0 or 1."""
    gradient = relevance.gradient
    if gradient is not None:
        gradient = torch.ops.aten.threshold_backward(gradient, flow.value(node.inputs[0]), 0)
    flow.give(node.inputs[0], Relevance(gradient, relevance.extra))


def offset(flow: Flow, node: Node, relevance: Relevance) -> None:
    """As `activate`, where the output is not zero for a zero input, so that only relevance itself can be passed."""
    flow.give(node.inputs[0], Relevance(extra=relevance.of(flow.value(node.outputs[0]))))


def clamp(flow: Flow, node: Node, relevance: Relevance) -> None:
    """As `activate` if zero stays zero between the bounds, else as `offset`."""
    bounds = [b for b in (*node.args[1:], *node.kwargs.values()) if b is not None]
    names = {"clamp_min": (bounds, []), "clamp_max": ([], bounds), "threshold": (bounds[1:], [])}
    low, high = names.get(node.name, (node.args[1:2], node.args[2:3] or list(node.kwargs.values())))
    low, high = [b for b in low if b is not None], [b for b in high if b is not None]
    if any(isinstance(b, Tensor | Slot) for b in bounds):
        refuse(flow, node, relevance)
    keeps_zero = all(b <= 0 for b in low) and all(b >= 0 for b in high)
    (activate if keeps_zero else offset)(flow, node, relevance)


def power(flow: Flow, node: Node, relevance: Relevance) -> None:
    """As `activate`, for a positive exponent: then zero stays zero."""
    base, exponent = node.args[:2]
    fits = isinstance(base, Slot) and isinstance(exponent, int | float) and exponent > 0
    (activate if fits else refuse)(flow, node, relevance)


def gated_linear(flow: Flow, node: Node, relevance: Relevance) -> None:
    """GLU: the second half is the first half's gate."""
    source, dim = flow.value(node.inputs[0]), node.args[1] if len(node.args) > 1 else -1
    share = relevance.as_gradient(flow.value(node.outputs[0]))
    _keep_lost(flow, node, relevance)
    gate = source.chunk(2, dim)[1].sigmoid()
    flow.give(node.inputs[0], Relevance(torch.cat([share * gate, torch.zeros_like(gate)], dim)))


def softmax(flow: Flow, node: Node, relevance: Relevance) -> None:
    """Gradient times input (AttnLRP, eq. 13); the difference to the relevance that came in is in the ledger."""
    source, key = node.inputs[0], node.outputs[0]
    assert key is not None
    value, output = flow.value(source), flow.value(key)
    share = relevance.as_gradient(output)
    _keep_lost(flow, node, relevance)
    came, weights = _product(output, share), output
    if node.name == "_log_softmax":
        came, weights = share, output.exp()
    gradient = came - _product(weights, came.sum(node.args[1], keepdim=True))
    flow.give(source, Relevance(gradient))
    lead = flow.tape.values[key].lead
    flow.keep("softmax", _product(output, share) - _product(value, gradient), lead)


def normalize(flow: Flow, node: Node, relevance: Relevance) -> None:
    """Layer and group normalisation with the deviation held constant (Ali et al. 2022): what is left is linear."""
    key, source = node.outputs[0], flow.value(node.inputs[0])
    assert key is not None
    share = relevance.as_gradient(flow.value(key))
    _keep_lost(flow, node, relevance)
    scale, bias, groups, deviation = _norm_parts(flow, node, source)
    inner = (share if scale is None else share * scale).reshape(groups) * deviation
    axes = tuple(d for d in range(len(groups)) if deviation.shape[d] == 1 and groups[d] != 1)
    gradient = (inner - inner.mean(axes, keepdim=True) if axes else inner).reshape(source.shape)
    flow.give(node.inputs[0], Relevance(gradient))
    if bias is not None:
        flow.keep("bias", share * bias, flow.tape.values[key].lead)


def _norm_parts(flow: Flow, node: Node, source: Tensor) -> tuple[Tensor | None, Tensor | None, tuple[int, ...], Tensor]:
    """Return scale and bias that broadcast with the input, the shape to average in, and 1 / deviation for it."""
    if node.name == "native_layer_norm":
        return node.args[2], node.args[3], tuple(source.shape), flow.value(node.outputs[2])
    if node.name == "native_group_norm":
        n, channels, groups = len(source), source.shape[1], node.args[6]
    else:  # instance normalisation comes as BatchNorm on one example with n · channels channels
        n, channels, groups = 1, source.shape[1], source.shape[1]
        if len(source) > 1:
            raise RefusedError(
                f"{node.where} averages over the batch, so that examples influence each other: give it running "
                "statistics, or explain one example at a time."
            )
    each = (1, channels, *[1] * (source.ndim - 2))
    scale, bias = (None if w is None else w.view(each) for w in node.args[1:3])
    deviation = flow.value(node.outputs[2]).view(n, groups, 1)
    return scale, bias, (n, groups, source.numel() // (n * groups)), deviation


def unwind(flow: Flow, node: Node) -> None:
    """Take the relevance of an operation's outputs and hand it to its inputs."""
    relevances = [flow.relevance.pop(key, None) if key is not None else None for key in node.outputs]
    if all(r is None for r in relevances):
        return
    if node.name in MOVES:
        move(flow, node, relevances)
    elif relevances[0] is None or any(r is not None for r in relevances[1:]):
        refuse(flow, node, Relevance())
    else:
        HANDLERS.get(node.name, refuse)(flow, node, relevances[0])


def refuse(flow: Flow, node: Node, relevance: Relevance) -> None:
    """Say which operation of which module has no rule."""
    raise RefusedError(
        f"{node.where} has no rule for layer-wise relevance: replace it, or explain the network by a method that "
        "needs gradients only, such as integrated gradients."
    )


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(LINEAR, linear),
    **dict.fromkeys(ACTIVATIONS, activate),
    **dict.fromkeys(OFFSETS, offset),
    **dict.fromkeys(SOFTMAXES | {"_log_softmax"}, softmax),
    **dict.fromkeys(PLAIN_NORMS | BATCH_NORMS, normalize),
    **dict.fromkeys(("hardtanh", "clamp", "clamp_min", "clamp_max", "threshold"), clamp),
    **dict.fromkeys(("add", "sub"), add),
    **dict.fromkeys(("mul", "bmm", "mm", "mv", "dot"), multiply),
    "div": divide,
    "pow": power,
    "cat": concatenate,
    "relu": rectify,
    "glu": gated_linear,
}


def mark_gates(tape: Tape, *, constant_attention: bool) -> None:
    """Find the tensors that weigh others: outputs of gating functions, reshaped or scaled or not."""
    sources = GATES | (SOFTMAXES if constant_attention else frozenset())
    for node in tape.nodes:
        alone = node.name in {"mul", "div"} and len(node.inputs) == 1
        kept = (alone or node.name in GATE_KEEPERS) and tape.values[node.inputs[0]].gate
        for key in node.outputs:
            if key is not None and (node.name in sources or kept):
                tape.values[key].gate = True
