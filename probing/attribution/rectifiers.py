"""Backward rules of rectifiers: found as modules or functions alike, and proved complete on the autograd graph."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from probing.models.geometry import RefusedError

Rule = Literal["guided", "deconvolution"]
Which = Literal["rectifiers", "all"]
Ceiling = float | None

_RELU = {"relu", "relu_"}
_RELU6 = {"relu6"}
_HARDTANH = {"hardtanh", "hardtanh_"}
_CLAMP = {"clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_"}
_THRESHOLD = {"threshold", "threshold_", "_threshold"}
_SMOOTH = {
    f"{name}{end}"
    for name in ("leaky_relu", "elu", "selu", "celu", "gelu", "silu", "softplus", "hardswish", "mish", "prelu", "rrelu")
    for end in ("", "_")
}
# What is left in a graph by a non-linearity that no rule was put on: from C++, from `torch.where` …
_NODES = {
    "ReluBackward0": "ReLU",
    "ThresholdBackward0": "threshold",
    "HardtanhBackward0": "hardtanh",
    "ClampBackward0": "clamp",
    "ClampBackward1": "clamp",
    "ClampMinBackward0": "clamp",
    "ClampMinBackward1": "clamp",
    "MaximumBackward0": "maximum",
    "WhereBackward0": "where",
    "LeakyReluBackward0": "LeakyReLU",
    "EluBackward0": "ELU",
    "CeluBackward0": "CELU",
    "GeluBackward0": "GELU",
    "SiluBackward0": "SiLU",
    "SoftplusBackward0": "Softplus",
    "HardswishBackward0": "Hardswish",
    "MishBackward0": "Mish",
    "PreluKernelBackward0": "PReLU",
    "RreluWithNoiseBackward0": "RReLU",
}


class Gates(TorchFunctionMode):
    """Gives the rectifiers that run inside the block another backward rule.

    Modules and functions (`F.relu`, `torch.relu`, `x.clamp(min=0)`, in place or not) come here alike. No
    module is touched.

    Args:
        rule: `guided` keeps what the gradient keeps where it is positive; `deconvolution` keeps what is positive.
        which: `rectifiers` (ReLU, ReLU6, clamps from 0), or `all`: smooth and leaky gates too.
    """

    def __init__(self, rule: Rule, which: Which) -> None:
        super().__init__()
        self._rule: Rule = rule
        self._which: Which = which
        self.count = 0

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Put the rule on a call of a gate; other calls pass."""
        named = dict(kwargs or {})
        x = args[0] if args else named.get("input")
        gate = self._ceiling(getattr(func, "__name__", ""), args[1:], named)
        if gate is None or not isinstance(x, Tensor) or not x.requires_grad:
            return func(*args, **named)
        named.pop("input", None)
        self.count += 1
        return _Gate.apply(x, lambda u: func(u, *args[1:], **named), gate[0], self._rule)

    def _ceiling(self, name: str, args: tuple[object, ...], named: dict[str, object]) -> tuple[Ceiling] | None:
        """Return where a gate saturates (infinity: nowhere; None: a smooth gate); nothing for other calls."""
        high = rectifier_ceiling(name, args, named)
        if high is not None:
            return (high,)
        return (None,) if self._which == "all" and name in _SMOOTH else None

    def check(self, value: Tensor) -> None:
        """Prove on the graph of a score that every gate it depends on follows the rule.

        Raises:
            RefusedError: if one does not, or there is none; the message names its kind.
        """
        left = sorted({kind for node in _nodes(value) if (kind := _gate_kind(node))})
        if not left and not self.count:
            raise RefusedError(
                f"{self._rule} rules change what rectifiers pass back, and none is met between the input and the score: the "
                "map would be the plain gradient, which Saliency() gives by its own name."
            )
        if left:
            mend = "" if self._which == "all" else " or ask for gates='all'"
            raise RefusedError(
                f"{self._rule} rules are put on {self.count} rectifiers of this network, but it also has "
                f"{', '.join(left)}: replace them by ReLU{mend}; else part of the map would be a plain gradient."
            )


def rectifier_ceiling(name: str, args: tuple[object, ...], named: dict[str, object]) -> float | None:
    """Return where a rectifier saturates, infinity for a plain ReLU; None for any other function.

    Args:
        name: of a function that is called.
        args: by position, after the input.
        named: by keyword.
    """
    if name in _RELU or (name in _THRESHOLD and _bounds(args, named, "threshold", "value") == (0.0, 0.0)):
        return torch.inf
    if name in _RELU6:
        return 6.0
    low: float | None = None
    high: float | None = None
    if name in _CLAMP:
        low, high = _bounds(args, named, "min", "max")
    elif name in _HARDTANH:
        low, high = _bounds(args, named, "min_val", "max_val")
    if low == 0.0:
        return torch.inf if high is None else high
    return None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, call, ceiling, rule):  # type: ignore[no-untyped-def]
        ctx.rule, ctx.ceiling = rule, ceiling
        if ceiling is None and rule == "guided":
            with torch.enable_grad():
                u = x.detach().clone().requires_grad_()
                (slope,) = torch.autograd.grad(call(u.clone()).sum(), u)
        out = call(x)
        if out is x:
            ctx.mark_dirty(x)
        if rule == "guided":
            ctx.save_for_backward(slope if ceiling is None else out)
        return out

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        kept = gradient.clamp(min=0)
        if ctx.rule == "guided":
            (saved,) = ctx.saved_tensors
            if ctx.ceiling is None:
                kept = kept.mul_(saved)
            else:
                kept = torch.ops.aten.threshold_backward(kept, saved, 0)
                if ctx.ceiling < torch.inf:
                    kept = kept.masked_fill_(saved >= ctx.ceiling, 0)
        return kept, None, None, None


def _bounds(
    args: tuple[object, ...], named: dict[str, object], first: str, second: str
) -> tuple[float | None, float | None]:
    def number(place: int, name: str) -> float | None:
        value = args[place] if len(args) > place else named.get(name)
        if isinstance(value, Tensor):
            return float(value) if value.numel() == 1 else torch.nan
        return float(value) if isinstance(value, int | float) else None

    return number(0, first), number(1, second)


def _nodes(value: Tensor) -> Iterator[Node]:
    seen: set[Node] = set()
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [before for before, _ in node.next_functions]


def _gate_kind(node: Node) -> str | None:
    """Return what kind of gate a node of a graph is; None for one that is none, such as a clamp above zero."""
    kind = _NODES.get(node.name())
    if kind in {"clamp", "hardtanh"}:
        low = getattr(node, "_saved_min_val" if kind == "hardtanh" else "_saved_min", None)
        return kind if isinstance(low, int | float) and low == 0 else None
    if kind == "maximum":
        sides = (node._saved_self, node._saved_other)  # type: ignore[attr-defined]
        return None if all(bool(side.any()) for side in sides) else kind
    return kind
