"""Two context managers are all the hooks there are: `capture` records layers' outputs, `edit` replaces them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from probing.layers import resolve, split_call

Edit = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(layer, its input, its output) → the output that the rest of the network sees."""


class LayerCallError(RuntimeError):
    """A layer did not run exactly once in a pass, or did not return a tensor."""


class _StopPass(BaseException):
    """Ends a forward pass that has gone as far as it needs to; never leaves this file."""


@contextmanager
def capture(
    model: nn.Module,
    layers: Sequence[str],
    *,
    graph: bool = False,
    stop: bool = False,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Mapping[str, Tensor]]:
    """Record what layers return while the model runs inside the block.

    The mapping holds the last pass. What it holds is never an alias of what the network goes on with, so a later
    in-place operation can't change it. A layer that runs several times in a pass is addressed as `"name:0"`,
    `"name:1"`, …; its plain name is refused.

    Args:
        model: any module; every path is resolved before the first hook is set.
        layers: dotted paths, `""` for the model's own output.
        graph: keep the autograd graph, so that scores can be differentiated with respect to what was recorded.
        stop: end the `with` block at the model's call, as soon as all layers have run: what stands after that call
            inside the block does not run. (A model's first pass goes to its end, to count calls.)
        reduce: applied to each output before it is kept, to save memory; not with `graph`.

    Raises:
        LayerNotFoundError: if a path names no submodule.
        LayerCallError: if a layer ran twice under its plain name, never, or returned no tensor.
    """
    if graph and reduce is not None:
        raise ValueError("capture(graph=True) keeps outputs as they are: drop `reduce`, or reduce the gradients.")
    taps = [_Tap.of(model, layer) for layer in dict.fromkeys(layers)]
    recorder = _Recorder(model, taps, graph, stop, reduce)
    handles = recorder.attach()
    try:
        yield recorder.kept
    except _StopPass:
        pass
    finally:
        for handle in handles:
            handle.remove()
    recorder.check()


@contextmanager
def edit(model: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Replace layers' outputs while the model runs inside the block.

    An edit that returns an output of equal value with another gradient changes backward passes only, as in
    `z_rule * (z / z_rule).detach()`. A layer that runs several times is edited every time.

    Raises:
        LayerNotFoundError: if a path names no submodule.
        LayerCallError: if an edited layer never ran, or returned no tensor.
    """
    modules = {layer: resolve(model, layer) for layer in edits}
    ran: set[str] = set()

    def hook_for(layer: str) -> Callable[[nn.Module, tuple[object, ...], object], Tensor]:
        def hook(module: nn.Module, args: tuple[object, ...], output: object) -> Tensor:
            ran.add(layer)
            before = args[0] if args else None
            if not isinstance(output, Tensor) or not isinstance(before, Tensor):
                raise LayerCallError(f"layer {layer!r} maps {_kind(before)} to {_kind(output)}, expected tensors.")
            return edits[layer](module, before, output)

        return hook

    handles = [module.register_forward_hook(hook_for(layer)) for layer, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if idle := [layer for layer in edits if layer not in ran]:
        raise LayerCallError(_never_ran(idle))


@dataclass(frozen=True)
class _Tap:
    """One address: a module and which of its calls is meant (None: the only one)."""

    address: str
    module: nn.Module
    call: int | None

    @classmethod
    def of(cls, model: nn.Module, address: str) -> "_Tap":
        name, call = split_call(address)
        return cls(address, resolve(model, name), call)


_RUNS_ONCE: WeakSet[nn.Module] = WeakSet()
"""Modules seen to run exactly once in a whole pass: only these may end a pass early."""


@dataclass
class _Recorder:
    model: nn.Module
    taps: Sequence[_Tap]
    graph: bool
    stop: bool
    reduce: Callable[[Tensor], Tensor] | None
    kept: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[nn.Module, int] = field(default_factory=dict)
    passes: int = 0

    def attach(self) -> list[RemovableHandle]:
        by_module: dict[nn.Module, list[_Tap]] = {}
        for tap in self.taps:
            by_module.setdefault(tap.module, []).append(tap)
        handles = [self.model.register_forward_pre_hook(self._begin)]
        for module, taps in by_module.items():
            if module is not self.model:
                handles.append(module.register_forward_hook(self._record(taps)))
        # Registered last, so that the model's own output is recorded when the pass is over.
        own = by_module.get(self.model, [])
        handles.append(self.model.register_forward_hook(self._finish(own)))
        return handles

    def _begin(self, module: nn.Module, args: object) -> None:
        self.kept.clear()
        self.calls.clear()
        self.passes += 1

    def _record(self, taps: Sequence[_Tap]) -> Callable[[nn.Module, object, object], Tensor | None]:
        def hook(module: nn.Module, args: object, output: object) -> Tensor | None:
            call = self.calls.get(module, 0)
            self.calls[module] = call + 1
            result: Tensor | None = None
            for tap in taps:
                if tap.call == call or tap.call is None:
                    if call and tap.call is None:
                        raise LayerCallError(_ran_again(tap.address))
                    result = self._keep(tap.address, output)
            if self.stop and len(self.kept) == len(self.taps) and self._may_stop():
                raise _StopPass
            return result

        return hook

    def _may_stop(self) -> bool:
        return all(tap.call is not None or tap.module in _RUNS_ONCE for tap in self.taps)

    def _finish(self, own: Sequence[_Tap]) -> Callable[[nn.Module, object, object], Tensor | None]:
        record = self._record(own)

        def hook(module: nn.Module, args: object, output: object) -> Tensor | None:
            result = record(module, args, output) if own else None
            _RUNS_ONCE.update(m for m, count in self.calls.items() if count == 1)
            if self.stop:
                self.check()
                raise _StopPass
            return result

        return hook

    def _keep(self, address: str, output: object) -> Tensor | None:
        if not isinstance(output, Tensor):
            raise LayerCallError(f"layer {address!r} returns {_kind(output)}, expected one tensor; read a layer inside it.")
        if not self.graph:
            kept = output.detach() if self.reduce is None else self.reduce(output.detach())
            self.kept[address] = kept.clone() if _shares_memory(kept, output) else kept
            return None
        source = output if output.requires_grad else output.detach().requires_grad_()
        self.kept[address] = source
        return source.clone()  # the network goes on with the copy: an in-place ReLU hits that one

    def check(self) -> None:
        """Raise unless every address was recorded in the last pass; a block without a pass is an error too."""
        if missing := [tap.address for tap in self.taps if tap.address not in self.kept]:
            reason = "" if self.passes else " No forward pass of this model ran inside the block."
            raise LayerCallError(_never_ran(missing) + reason)


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _kind(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _ran_again(layer: str) -> str:
    return f"layer {layer!r} runs more than once in a forward pass; name one call: '{layer}:0', '{layer}:1', …"


def _never_ran(layers: Sequence[str]) -> str:
    return (
        f"layers {list(layers)} did not run in the forward pass: they may be unused, have fewer calls than named, "
        "or the model was compiled before (pass the uncompiled model)."
    )


