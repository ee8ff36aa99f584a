"""What a score loses without one channel of a layer, with only that computed again which the channel changes.

Most networks end by operations that treat channels apart (rectifiers, pooling), then by a few dense layers. There, a
channel set to zero changes known inputs of the first dense layer only, and from then on differences to the whole are
carried instead of values: fewer products, and no rounding of what is nearly equal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn
from torch.nn import functional

from probing.attribution.score_passes import Passes
from probing.models.precision import agree

Step = Callable[[Tensor], Tensor]
_ELEMENTS = 2**25
"""Differences kept at once."""
_DENSE = 0.8
"""Share of a dense layer's inputs, above which choosing them takes longer than multiplying all."""


@dataclass(frozen=True)
class Head:
    """A tail that treats channels apart and then mixes them in a dense layer.

    Attributes:
        apart: from a layer's output to the input of the first dense layer.
        first: that layer.
        inner: dense layers and functions of single values.
        last: the dense layer that gives the class scores, if it is not the first.
    """

    apart: tuple[Step, ...]
    first: nn.Linear
    inner: tuple[Step, ...]
    last: nn.Linear | None

    def falls(
        self,
        passes: Passes,
        output: Float[Tensor, "n c h w"],
        rows: Int[Tensor, " n"],
        classes: Float[Tensor, "n classes"],
    ) -> Float[Tensor, "n c"] | None:
        """Return how much the score falls when a channel is set to zero; None if this is not the model's head after all.

        Args:
            passes: of the score; what is carried through the head is counted there.
            output: of the layer.
            rows: which examples of the score these are.
            classes: what the model itself made of that output.
        """
        most = max(1, _ELEMENTS // (output.shape[1] * self.first.out_features))
        step, found = min(passes.chunk, most), []
        for start in range(0, len(output), step):
            part = slice(start, start + step)
            falls = self._falls(passes, output[part], rows[part], classes[part])
            if falls is None:
                return None
            found.append(falls)
        return torch.cat(found)

    def _falls(self, passes: Passes, output: Tensor, rows: Tensor, classes: Tensor) -> Float[Tensor, "n c"] | None:
        whole = passes.prepared.inputs(output)
        shown = _through(self.apart, whole).flatten(1)
        hidden = _through(self.apart, torch.zeros_like(whole[:1])).flatten(1)
        n, c = output.shape[:2]
        change = (hidden - shown).view(n, c, -1)
        bases = [self.first(shown)]
        for step in (*self.inner, *([self.last] if self.last else ())):
            bases.append(step(bases[-1].clone()))  # which may work in place
        rounded = torch.bfloat16 if passes.precision.kind == "fast" else classes.dtype
        if not agree(bases[-1].to(classes.device, rounded), classes.to(rounded)):
            return None
        weight = self.first.weight
        blocks = weight.view(len(weight), c, -1).permute(1, 2, 0)
        deltas = torch.bmm(change.transpose(0, 1), blocks).transpose(0, 1)
        found = change.new_zeros(n, c)
        for i, alive in enumerate(change.any(2).cpu().tolist()):  # a silent channel takes nothing
            channels = [k for k, moves in enumerate(alive) if moves]
            at = torch.tensor(channels, device=found.device, dtype=torch.long)
            found[i, at] = self._fall(passes, [b[i] for b in bases], deltas[i, at], rows[i])
            passes.n_forward += len(channels)
        return found

    def _fall(
        self,
        passes: Passes,
        bases: Sequence[Float[Tensor, " _"]],
        delta: Float[Tensor, "k out"],
        row: Int[Tensor, ""],
    ) -> Float[Tensor, " k"]:
        """Return the falls of an example's score from changes of the first layer's output."""
        for step, base, after in zip(self.inner, bases, bases[1:], strict=False):
            delta = _dense(passes, step, delta) if isinstance(step, nn.Linear) else step(base + delta).sub_(after)
        column = passes.score.column
        if column is not None:
            wanted = int(column[row] if isinstance(column, Tensor) else column)
            return -(delta[:, wanted] if self.last is None else delta @ self.last.weight[wanted])
        delta = delta if self.last is None else _dense(passes, self.last, delta)
        kept, each = passes.score.read(bases[-1][None], row[None]), bases[-1] + delta
        return kept - passes.score.read(each, row.expand(len(each)))


def head_of(tail: fx.GraphModule) -> Head | None:
    """Return a tail in two; None for one of another make."""
    modules = dict(tail.named_modules())
    apart: list[Step] = []
    steps: list[Step] = []
    nodes = list(tail.graph.nodes)
    for before, node in pairwise(nodes):
        if node.all_input_nodes != [before] or len(before.users) != 1:
            return None
        if node.op == "output":
            return _assembled(apart, steps) if node.args == (before,) else None
        step = _step(node, modules)
        single = step is not None and _is_single(node, modules)
        if isinstance(step, nn.Linear) or (steps and single):
            assert step is not None
            steps.append(step)
        elif step is not None and not steps and (single or _is_apart(node, modules)):
            apart.append(step)
        else:
            return None
    return None


def _assembled(apart: Sequence[Step], steps: Sequence[Step]) -> Head | None:
    """Return the parts of a tail, if a dense layer comes last."""
    if not steps or not isinstance(steps[-1], nn.Linear):
        return None
    first, *inner = steps
    assert isinstance(first, nn.Linear)
    last = inner.pop() if inner else None
    assert last is None or isinstance(last, nn.Linear)
    return Head(tuple(apart), first, tuple(inner), last)


def _step(node: fx.Node, modules: dict[str, nn.Module]) -> Step | None:
    """Return what a node computes, as a function of its one input."""
    if node.op == "call_module":
        return modules[str(node.target)] if len(node.args) == 1 and not node.kwargs else None
    first, *rest = node.args or (None,)
    named: dict[str, Any] = dict(node.kwargs)
    if not isinstance(first, fx.Node):
        return None
    if node.op == "call_method":
        return lambda x: getattr(x, str(node.target))(*rest, **named)
    target: Any = node.target
    return (lambda x: target(x, *rest, **named)) if node.op == "call_function" else None


# Exactly these: subclasses may compute something else.
_SINGLE = {
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
    nn.Identity,
    nn.Dropout,
}
_APART = {nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.MaxPool2d, nn.BatchNorm2d}
_SINGLE_CALLS = {"relu", "relu_", "hardswish", "silu", "gelu", "sigmoid", "tanh", "dropout", "contiguous"}
_APART_CALLS = {"adaptive_avg_pool2d", "avg_pool2d"}


def _called(node: fx.Node) -> str:
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))


def _is_single(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether each value of a node's output is a function of the value at its place."""
    if node.op == "call_module":
        return type(modules[str(node.target)]) in _SINGLE
    return _called(node) in _SINGLE_CALLS


def _is_apart(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node computes each channel from that channel alone, and keeps them in order."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) in _APART or (type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1))
    arguments = (*node.args[1:], *node.kwargs.values())
    if _called(node) == "flatten":
        return arguments == (1,)
    if _called(node) == "mean":
        axes = arguments[0] if arguments else None
        return isinstance(axes, Sequence) and set(axes) in ({2, 3}, {-2, -1})
    return _called(node) in _APART_CALLS


def _through(steps: Sequence[Step], values: Tensor) -> Tensor:
    values = values.clone()  # a step may work in place
    for step in steps:
        values = step(values)
    return values


def _dense(passes: Passes, layer: nn.Linear, delta: Float[Tensor, "k in"]) -> Float[Tensor, "k out"]:
    """Return how a dense layer's output changes; what is rounded is the change, not the output.

    Inputs that no change reaches, as behind a rectifier, are left out of the product; in bfloat16 choosing them would
    take longer than multiplying all.
    """
    weight, reached = layer.weight, delta.any(0).nonzero()[:, 0]
    if passes.precision.kind != "fast" and len(reached) < _DENSE * delta.shape[1]:
        delta, weight = delta.index_select(1, reached), weight.index_select(1, reached)
    with passes.precision.arithmetic(passes.device):
        return functional.linear(delta, weight).to(delta.dtype)
