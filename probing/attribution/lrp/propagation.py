"""Linear layers of a recorded pass: their weights with BatchNorm folded in, and the rule that each gets."""

from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probing.attribution.lrp.composites import Composite, LrpLayer
from probing.attribution.lrp.linear_maps import Convolution, Dense, LinearMap
from probing.attribution.lrp.operation_names import BATCH_NORMS, LAYERS, PLAIN_NORMS, RESHAPES
from probing.attribution.lrp.operations import Flow, unwind
from probing.attribution.lrp.rules import LinearCall, Pass, Relevance
from probing.attribution.lrp.tape import Node, Slot


@dataclass(frozen=True)
class Affine:
    """What follows a linear layer before anything else does: a factor and an offset per unit."""

    scale: Float[Tensor, " units"] | None
    shift: Float[Tensor, " units"]

    def folded(self, map_: LinearMap, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return weights and bias of one layer that computes both."""
        if self.scale is None:
            return weight, self.shift if bias is None else bias + self.shift
        return map_.scaled(weight, self.scale), self.shift if bias is None else bias * self.scale + self.shift


@runtime_checkable
class Tap(Protocol):
    """Takes the relevance of one recorded tensor when all of it has arrived, and says what goes on from there."""

    @property
    def key(self) -> int:
        """Of the tensor."""

    def __call__(self, value: Tensor, relevance: Relevance, flow: Flow, *, folded: bool) -> Relevance | None:
        """Return the relevance that goes on; None ends the walk.

        Args:
            value: of the tensor, or of the normalisation after it that is folded into the layer that made it.
            relevance: of that value.
            flow: with the ledger so far, and relevance that goes past the tensor.
            folded: whether `value` is the normalisation's.
        """


@dataclass
class Backward:
    """Walks a tape from its end to its start, with a rule for each layer."""

    flow: Flow
    composite: Composite
    tap: Tap | None = None
    """If given, only relevance that goes through its tensor goes on, as it says; the ledger begins anew there."""
    met: list[LrpLayer] = field(default_factory=list)
    """The layers that got a rule."""

    def __post_init__(self) -> None:
        tape = self.flow.tape
        self._maker = {key: node for node in tape.nodes for key in node.outputs if key is not None}
        self._folded: dict[int, tuple[Affine, Tensor]] = {}
        self._non_negative: set[int] = set()

    def run(self) -> None:
        """Bring all relevance to the tape's input, forgetting what is no longer needed on the way."""
        nodes = self.flow.tape.nodes
        self._non_negative = _without_negatives(self.flow)
        while nodes:
            node = nodes[-1]
            if self.tap is not None and self.tap.key in node.outputs:
                self._tap(self.tap)
            if node.outputs[0] in self.flow.relevance and (node.name in LAYERS or node.name in BATCH_NORMS | PLAIN_NORMS):
                self._layer(node) if node.name in LAYERS else self._norm(node)
            elif not self._is_bias(node) or not self._fold(node, Affine(None, node.args[1])):
                unwind(self.flow, node)
            nodes.pop()
            for key in node.outputs:
                if key is not None:
                    self.flow.tape.values[key].tensor = _FORGOTTEN
        if self.tap is not None and self.tap.key == 0:  # a layer that returns the network's input as it is
            self._tap(self.tap)

    def _tap(self, tap: Tap) -> None:
        flow, folded = self.flow, self._folded.get(tap.key)
        value = flow.value(tap.key) if folded is None else folded[1].reshape(flow.value(tap.key).shape)
        relevance = flow.relevance.pop(tap.key, Relevance())
        passed = tap(value, relevance, flow, folded=folded is not None)
        flow.relevance.clear()
        flow.ledger.clear()
        if passed is not None:
            flow.relevance[tap.key] = passed

    def _layer(self, node: Node) -> None:
        parts = linear_parts(node)
        key = node.outputs[0]
        assert key is not None
        if parts is None:
            unwind(self.flow, node)
            return
        source, map_, weight, bias = parts
        output = self.flow.value(key)
        if key in self._folded:
            affine, after = self._folded.pop(key)
            weight, bias = affine.folded(map_, weight, bias)
            output = after.reshape(output.shape)
        kind: Literal["convolution", "dense"] = "convolution" if isinstance(map_, Convolution) else "dense"
        layer = LrpLayer(node.path, node.type, kind, not self.flow.tape.values[source].deep)
        call = LinearCall(
            node.where,
            map_,
            self.flow.value(source),
            weight,
            bias,
            output,
            self.flow.relevance.pop(key),
            source in self._non_negative,
        )
        self._apply(layer, call, source, self.flow.tape.values[key].lead)

    def _apply(self, layer: LrpLayer, call: LinearCall, source: int, lead: int | None) -> None:
        self.met.append(layer)
        share = self.composite(layer)(call)
        self.flow.give(source, share.inputs)
        self.flow.keep("bias", share.by_bias, lead)
        self.flow.keep("epsilon", share.by_epsilon, lead)
        if share.fallbacks is not None:
            self.flow.keep("fallbacks", share.fallbacks, lead)

    def _norm(self, node: Node) -> None:
        source, key = node.inputs[0], node.outputs[0]
        assert key is not None
        affine = None if node.name in PLAIN_NORMS else batch_norm(node)
        if affine is not None and self._fold(node, affine):
            return
        layer = LrpLayer(node.path, node.type, "norm", not self.flow.tape.values[source].deep)
        self.met.append(layer)
        if isinstance(self.composite(layer), Pass):
            total = self.flow.relevance.pop(key).of(self.flow.value(key))
            self.flow.give(source, Relevance(extra=total))
        elif affine is None:
            unwind(self.flow, node)
        else:
            self._affine(node, affine)

    def _affine(self, node: Node, affine: Affine) -> None:
        source, key = node.inputs[0], node.outputs[0]
        assert key is not None
        assert affine.scale is not None
        value = self.flow.value(key)
        relevance = self.flow.relevance.pop(key)
        share = relevance.as_gradient(value)
        each = (1, -1, *[1] * (value.ndim - 2))
        lead = self.flow.tape.values[key].lead
        self.flow.give(source, Relevance(share * affine.scale.view(each)))
        self.flow.keep("bias", share * affine.shift.view(each), lead)
        if relevance.extra is not None:
            self.flow.keep("epsilon", relevance.of(value) - share * value, lead)

    def _is_bias(self, node: Node) -> bool:
        """Whether an operation adds one number per unit of the last axis, as a dense layer's bias does."""
        if node.name != "add" or len(node.args) != 2 or node.kwargs or node.outputs[0] not in self.flow.relevance:
            return False
        term = node.args[1]
        shape = self.flow.value(node.outputs[0]).shape
        return isinstance(node.args[0], Slot) and isinstance(term, Tensor) and term.shape == shape[-1:]

    def _fold(self, node: Node, affine: Affine) -> bool:
        """Fold an affine operation into the layer before it, if that layer feeds nothing else."""
        key, source = node.outputs[0], node.inputs[0]
        assert key is not None
        maker = self._maker_of(source, through=RESHAPES if node.name == "add" else frozenset())
        if maker is None or maker.outputs[0] in self._folded:
            return False
        parts = linear_parts(maker)
        made = maker.outputs[0]
        if parts is None or made is None or (node.name == "add" and not isinstance(parts[1], Dense)):
            return False
        if node.name == "add" and self.flow.value(made).shape[-1:] != node.args[1].shape:
            return False
        self._folded[made] = (affine, self.flow.value(key))
        self.flow.give(source, self.flow.relevance.pop(key))
        return True

    def _maker_of(self, key: int, through: frozenset[str]) -> Node | None:
        """Return the layer that made a tensor, apart from reshapes, if all in between is used once."""
        while self.flow.tape.users[key] == 1:
            node = self._maker.get(key)
            if node is None or node.name in LAYERS:
                return node
            if node.name not in through:
                return None
            key = node.inputs[0]
        return None


_FORGOTTEN = torch.empty(0)


def _without_negatives(flow: Flow) -> set[int]:
    """Return which inputs of linear layers hold nothing below zero; the host reads once for all, however deep a network."""
    parts = [linear_parts(node) for node in flow.tape.nodes if node.name in LAYERS]
    sources = list(dict.fromkeys(source for source, *_ in filter(None, parts) if flow.value(source).numel()))
    if not sources:
        return set()
    found = torch.stack([flow.value(source).amin() >= 0 for source in sources]).cpu().tolist()
    return {source for source, is_so in zip(sources, found, strict=True) if is_so}


def linear_parts(node: Node) -> tuple[int, LinearMap, Tensor, Tensor | None] | None:
    """Return a layer's input, geometry, weights and bias; None if its weights depend on the network's input."""
    if node.name == "convolution":
        source, weight, bias, *geometry = node.args
        map_: LinearMap = Convolution(*geometry)
    else:
        bias, source, weight = node.args if node.name == "addmm" else (None, *node.args)
        weight = weight.t() if isinstance(weight, Tensor) else weight
        map_ = Dense()
    plain = isinstance(source, Slot) and isinstance(weight, Tensor) and not isinstance(bias, Slot) and not node.kwargs
    units = plain and (bias is None or bias.ndim == 1)
    return (source.key, map_, weight, bias) if units else None


def batch_norm(node: Node) -> Affine | None:
    """Return what BatchNorm computes from its running statistics; None for one that averages over the batch."""
    weight, bias, mean, variance = node.args[1:5]
    flags = [a for a in node.args[5:] if isinstance(a, bool)]
    eps = node.args[-1]
    if mean is None or any(flags):
        return None
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    return Affine(scale, -mean * scale if bias is None else bias - mean * scale)
