"""How a forward pass runs: number format, memory layout, folded BatchNorm; and the prepared copy that runs it."""

import copy
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from probing.layers import split_call

Kind = Literal["float32", "fast", "reference", "float64"]


@dataclass(frozen=True)
class Precision:
    """How activations and gradients are computed.

    Attributes:
        kind: `float32`: channels_last layout and BatchNorm folded into convolutions, equal to the model as given up
            to rounding. `fast`: bfloat16 autocast besides (about three digits), with gradients in `float32`.
            `reference`: the model exactly as given. `float64`: double precision throughout.
    """

    kind: Kind = "float32"

    @property
    def gradients(self) -> "Precision":
        """How gradients are computed: bfloat16 is unfit for them (cosine to float32 0.91–0.97)."""
        return Precision("float32") if self.kind == "fast" else self

    @property
    def tolerance(self) -> float:
        """Relative difference (in norm) that rounding and batch shape explain."""
        return {"float32": 1e-3, "fast": 5e-2, "reference": 1e-3, "float64": 1e-9}[self.kind]

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the autocast context that a forward pass runs in."""
        return torch.autocast(device.type, torch.bfloat16) if self.kind == "fast" else nullcontext()

    def inputs(self, batch: Tensor, device: torch.device) -> Tensor:
        """Return a batch as the prepared model takes it."""
        batch = batch.to(device, torch.float64 if self.kind == "float64" and batch.is_floating_point() else None)
        return batch.contiguous(memory_format=torch.channels_last) if self._relaid and batch.ndim == 4 else batch

    def prepare(self, model: nn.Module, layers: Collection[str], device: torch.device) -> nn.Module:
        """Return a frozen copy of the model, ready to run; it shares the weights it need not change.

        Args:
            layers: paths whose outputs will be read, so that what they return stays what it is.
        """
        clone = frozen_copy(model).to(device)
        if self.kind == "float64":
            clone = clone.double()
        if self._relaid:
            fold_batchnorm(clone, {split_call(layer)[0] for layer in layers})
            clone = clone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return clone

    @property
    def _relaid(self) -> bool:
        return self.kind in {"float32", "fast"}


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's tensors are; the CPU if it has none."""
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model's structure that shares its weights, which get no gradients there."""
    memo: dict[int, object] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): b.detach() for b in model.buffers()}
    return copy.deepcopy(model, memo)


def fold_batchnorm(model: nn.Module, keep: Collection[str] = ()) -> int:
    """Fold BatchNorm layers in evaluation mode into the convolutions before them, in place.

    Only pairs that tracing proves are connected by nothing else are folded; a model that can't be traced stays as it
    is. The output of every layer in `keep` stays what it was.

    Returns:
        How many pairs were folded.
    """
    modules = dict(model.named_modules())
    pairs = [pair for pair in _pairs(model, modules) if not _is_read_between(*pair, keep)]
    for conv_name, norm_name in pairs:
        conv, norm = modules[conv_name], modules[norm_name]
        assert isinstance(conv, nn.Conv2d | nn.Conv1d | nn.Conv3d)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )  # type: ignore[arg-type]
        conv.requires_grad_(False)
        model.set_submodule(norm_name, _what_follows(norm))
    return len(pairs)


_CONVOLUTIONS = {"Conv1d", "Conv2d", "Conv3d", "Conv2dSame"}  # the last one is timm's, padding apart an ordinary one
_NORMS = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "BatchNormAct2d"}  # the last: timm's, with its activation inside


def _is_known(module: nn.Module, names: set[str]) -> bool:
    return type(module).__name__ in names and type(module).__module__.split(".")[0] in {"torch", "timm"}


def _what_follows(norm: nn.Module) -> nn.Module:
    if not _is_known(norm, {"BatchNormAct2d"}):
        return nn.Identity()
    return nn.Sequential(OrderedDict(drop=norm.get_submodule("drop"), act=norm.get_submodule("act")))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = _is_known(m, _CONVOLUTIONS | _NORMS)
        return known or super().is_leaf_module(m, module_qualified_name)


def _pairs(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[tuple[str, str]]:
    try:
        nodes = list(_Tracer().trace(model).nodes)
    except Exception:  # tracing runs the model's own code on proxies, which may raise anything: then nothing is folded
        return
    calls = [node.target for node in nodes if node.op == "call_module"]
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv, norm = str(before.target), str(node.target)
        once = calls.count(conv) == 1 and calls.count(norm) == 1
        if once and _is_known(modules[conv], _CONVOLUTIONS) and _is_known(modules[norm], _NORMS):
            if getattr(modules[norm], "running_mean", None) is not None:
                yield conv, norm


def _is_read_between(conv: str, norm: str, keep: Collection[str]) -> bool:
    """Whether a layer in `keep` returns the convolution's own output: the convolution, or a container that ends there."""
    inside = {k for k in keep if conv == k or conv.startswith(f"{k}.")}
    return any(not norm.startswith(f"{k}.") for k in inside if k)


