"""All the hooks there are: `capture` records layers' outputs, `edit` replaces them, others tell which run and what with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from inspect import signature
from threading import Lock
from types import FunctionType
from typing import cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from probing.core.errors import ArgumentError, ProbingError
from probing.models.layers import parts_in, resolve, several, split_call, split_parts

Edit = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(layer, its first input, its output) → the output that the rest of the network sees."""


class LayerCallError(ProbingError, RuntimeError):
    """A layer did not run exactly once in a pass, or did not return a tensor, or not the part that is asked for."""


class _StopPass(BaseException):
    """Ends a forward pass that has gone as far as its recorder needs; never leaves this file."""

    def __init__(self, recorder: "_Recorder") -> None:
        super().__init__("a forward pass was stopped")
        self.recorder = recorder


@contextmanager
def capture(
    model: nn.Module,
    layers: Sequence[str],
    *,
    graph: bool = False,
    stop: bool = False,
    reduce: Callable[[str, Tensor], Tensor] | None = None,
    rows: int | None = None,
) -> Iterator[Mapping[str, Tensor]]:
    """Record what layers return while the model runs inside the block.

    The mapping holds the last pass. What it holds is never an alias of what the network goes on
    with, so a later in-place operation can't change it. A layer that runs several times in a pass
    is addressed as `"name:0"`, `"name:1"`, …; its plain name is refused. Blocks may be nested:
    hooks run in the order of entering, so `capture` inside `edit` records edited outputs.

    Args:
        model: any module; every path is resolved before the first hook is set.
        layers: dotted paths, `""` for the model's own output; with a part, as in `"lstm[0]"`, where several tensors are
            returned.
        graph: keep the autograd graph, so that scores can be differentiated with respect to what
            was recorded: along paths that lead through the layer, not past it.
        stop: end the `with` block at the model's call, as soon as all layers have run: what stands
            after that call inside the block does not run. (The first pass with inputs of a shape
            goes to its end, to count calls.)
        reduce: of a path and its output what is kept, to save memory; not with `graph`.
        rows: how many examples pass; a layer that returns another number of rows is refused.

    Raises:
        LayerNotFoundError: if a path names no submodule.
        LayerCallError: if a layer ran twice under its plain name, never, or returned no tensor, or other rows.
    """
    if graph and reduce is not None:
        raise ArgumentError("capture(graph=True) keeps outputs as they are: drop `reduce`, or reduce the gradients.")
    taps = [_Tap.of(model, layer) for layer in dict.fromkeys(several(layers))]
    recorder = _Recorder(model, taps, graph, stop, reduce, rows)
    with _UNFUSED, ExitStack() as hooks:
        recorder.attach(hooks)
        try:
            yield recorder.kept
        except _StopPass as stopped:
            if stopped.recorder is not recorder:  # an outer block's, on its way there
                raise
    recorder.check()


@contextmanager
def edit(model: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Replace layers' outputs while the model runs inside the block.

    An edit that returns an output of equal value with another gradient changes backward passes
    only, as in `z_rule * (z / z_rule).detach()`. A layer that runs several times is edited every
    time. The edit gets a copy of the input made before the layer ran, which may work in place. Of an address with a part,
    as `"lstm[0]"`, that alone is given and replaced.

    Raises:
        LayerNotFoundError: if a path names no submodule.
        LayerCallError: if an edited layer never ran, or it or its edit returned no tensor.
    """
    editors = [_Editor(n, resolve(model, n), change, parts_in(model, n)) for n, change in edits.items()]
    with _UNFUSED, ExitStack() as hooks:
        for editor in editors:
            editor.attach(hooks)
        yield
    if idle := [editor.layer for editor in editors if not editor.ran]:
        raise LayerCallError(_never_ran(model, idle))


@contextmanager
def watch(model: nn.Module, ended: Callable[[str, object], None]) -> Iterator[None]:
    """Tell of each call of a layer, as it ends, the layer's path and what it returned, while the model runs inside.

    These are the calls that `capture` and `edit` meet.
    """

    def telling(path: str) -> Callable[[nn.Module, object, object], None]:
        return lambda module, args, output: ended(path, output)

    with _UNFUSED, ExitStack() as hooks:
        for path, module in model.named_modules():
            hooks.callback(module.register_forward_hook(telling(path)).remove)
        yield


class _Unfused:
    """Holds PyTorch's fused kernels for attention and encoder layers off while any block is inside, in any thread.

    They compute `nn.TransformerEncoderLayer` without calling the layers inside it, and give zeros for padding. PyTorch
    leaves them out by itself where a hook is set inside the layer; then what one layer returns would depend on which
    others are read.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch.backends.mha.set_fastpath_enabled(self._before)


_UNFUSED = _Unfused()


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module in a pass: its path and class, what it was given, by position, then by name, and returned."""

    path: str
    kind: str
    inputs: object
    output: object


@contextmanager
def record_calls(model: nn.Module, only: str | None = None) -> Iterator[list[ModuleCall]]:
    """Record every call of every module while the model runs inside the block, in the order in which calls end.

    Args:
        model: any module.
        only: the path of the one module that is recorded.
    """
    calls: list[ModuleCall] = []
    begun: list[object] = []

    def hook(path: str, module: nn.Module) -> Callable[[nn.Module, object, object], None]:
        def record(_: nn.Module, args: object, output: object) -> None:
            calls.append(ModuleCall(path, type(module).__name__, begun.pop(), _copied(output)))

        return record

    def begins(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        begun.append(_copied((*args, *kwargs.values())))

    with _UNFUSED, ExitStack() as hooks:
        for path, module in model.named_modules():
            if only is not None and path != only:
                continue
            begin = module.register_forward_pre_hook(begins, with_kwargs=True)
            hooks.callback(begin.remove)
            hooks.callback(module.register_forward_hook(hook(path, module)).remove)
        yield calls


# What an argument of this name says is 1 (or True) for tokens that are read …
_READ = {"attention_mask"}
# … or for padding.
_LEFT_OUT = {"key_padding_mask", "src_key_padding_mask", "tgt_key_padding_mask"}
_OTHERS = {"encoder_attention_mask", "memory_key_padding_mask", "attn_mask"}


class MaskError(ProbingError, ValueError):
    """Which tokens of a text are padding can't be told."""


class TokenMasks:
    """Which tokens were read in a pass, as modules of the model were told."""

    def __init__(self) -> None:
        self._seen: list[tuple[str, Tensor]] = []
        self._unknown: list[tuple[str, Tensor]] = []

    def forget(self) -> None:
        """Begin another pass."""
        self._seen.clear()
        self._unknown.clear()

    @property
    def told(self) -> bool:
        """Whether any module was given a mask in this pass so far."""
        return bool(self._seen or self._unknown)

    def note(self, name: str, module: nn.Module, value: object) -> None:
        """Take in an argument of a module's call."""
        if not isinstance(value, Tensor) or value.ndim != 2:
            return
        if name in _READ | _LEFT_OUT:
            # Added to attention's scores, where a text without padding has zeros only.
            additive = value.is_floating_point() and not bool((value > 0).any())
            said = value == 0 if additive else value.bool()
            self._seen.append((name, ~said if name in _LEFT_OUT and not additive else said))
        elif not type(module).__module__.startswith("torch.nn") and not value.is_floating_point():
            self._unknown.append((name, value.bool()))

    def read(self, layer: str, shape: Sequence[int]) -> Tensor | None:
        """Return which positions of a layer's output `[n, tokens, …]` were read; None if all were, as far as is known.

        Raises:
            MaskError: if there is padding, and which positions it takes in this layer can't be told.
        """
        padded = [(name, kept) for name, kept in self._seen if not bool(kept.all())]
        fitting = [kept for _, kept in padded if kept.shape == tuple(shape[:2])]
        if fitting and all(torch.equal(kept, fitting[0]) for kept in fitting):
            return fitting[0]
        if padded:
            name, kept = padded[0]
            why = "several masks of that shape differ" if fitting else f"its tokens are {shape[1]} a text"
            raise MaskError(
                f"the model is told of padding by {name!r} of shape {tuple(kept.shape)}, and which positions of layer "
                f"{layer!r} are padding can't be told, since {why}: give pool='none', or name another layer."
            )
        for name, mask in self._unknown:
            if mask.shape == tuple(shape[:2]) and bool(mask.any()) and not bool(mask.all()):
                raise MaskError(
                    f"the model passes on a mask named {name!r}, which does not tell whether it marks tokens or padding: "
                    "name the argument attention_mask (1 for tokens) or key_padding_mask (True for padding), or give "
                    "pool='none'."
                )
        return None


@contextmanager
def token_masks(model: nn.Module) -> Iterator[TokenMasks]:
    """Note the masks of padding that modules are given while the model runs inside the block.

    They are told by the names of arguments: of layers that end before the first such module begins nothing is known yet.
    """
    masks = TokenMasks()

    def noting(names: Sequence[str], wanted: Sequence[str]) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            given = dict(zip(names, args, strict=False)) | kwargs
            for name in wanted:
                masks.note(name, module, given.get(name))

        return note

    with ExitStack() as hooks:
        begin = model.register_forward_pre_hook(lambda module, args: masks.forget())
        hooks.callback(begin.remove)
        for module in model.modules():
            names = _arguments(module)
            if wanted := _masks_of(names):
                hook = module.register_forward_pre_hook(noting(names, wanted), with_kwargs=True)
                hooks.callback(hook.remove)
        yield masks


def takes_masks(model: nn.Module) -> bool:
    """Whether any module of a model has an argument that `token_masks` looks at."""
    return any(_masks_of(_arguments(module)) for module in model.modules())


def _masks_of(names: Sequence[str]) -> list[str]:
    return [n for n in names if "mask" in n and n not in _OTHERS]


def _arguments(module: nn.Module) -> list[str]:
    forward = module.forward
    function = getattr(forward, "__func__", None)
    if not isinstance(function, FunctionType):
        return _parameters(forward)
    if function not in _PARAMETERS:
        _PARAMETERS[function] = _parameters(function)[1:]
    return _PARAMETERS[function]


_PARAMETERS: WeakKeyDictionary[FunctionType, list[str]] = WeakKeyDictionary()


def _parameters(function: Callable[..., object]) -> list[str]:
    try:
        return list(signature(function).parameters)
    except (TypeError, ValueError):  # written in another language
        return []


def _copied(value: object) -> object:
    """Return copies of the tensors in a value: a later operation may work in place."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, tuple | list) else value


@dataclass
class _Editor:
    layer: str
    module: nn.Module
    change: Edit
    parts: tuple[str, ...]
    ran: bool = False
    inputs: list[object] = field(default_factory=list)

    def attach(self, hooks: ExitStack) -> None:
        keep = self.module.register_forward_pre_hook(self._keep_input, with_kwargs=True)
        hooks.callback(keep.remove)
        hooks.callback(self.module.register_forward_hook(self._edit).remove)

    def _keep_input(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        # transformers gives its layers all that they take by name
        named = (value for value in kwargs.values() if isinstance(value, Tensor))
        before = args[0] if args else next(named, None)
        self.inputs.append(before.clone() if isinstance(before, Tensor) else before)

    def _edit(self, module: nn.Module, args: tuple[object, ...], output: object) -> object:
        self.ran = True
        before, parts = self.inputs.pop(), self.parts
        value = part_at(self.layer, output, parts)
        if not isinstance(value, Tensor) or not isinstance(before, Tensor):
            way = f"name a part, as in '{self.layer}[0]'" if _is_container(value) else "choose a layer inside it"
            raise LayerCallError(
                f"layer {self.layer!r} maps {_kind(before)} to {_kind(value)}, "
                f"expected a tensor given first, and one tensor returned: {way}."
            )
        after: object = self.change(module, before, value)
        if not isinstance(after, Tensor):
            raise LayerCallError(f"the edit of layer {self.layer!r} returned {_kind(after)}, expected a tensor.")
        return _put_at(output, parts, after)


@dataclass(frozen=True)
class _Tap:
    """One address: a module, which of its calls is meant (None: the only one), and which part of what it returns."""

    address: str
    module: nn.Module
    call: int | None
    parts: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, address: str) -> "_Tap":
        name, call = split_call(address)
        return cls(address, resolve(model, name), call, parts_in(model, name))


def parts_of(output: object) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in what a layer returns with what addresses them, such as `[0]`, or nothing for a tensor itself."""
    if isinstance(output, Tensor):
        yield "", output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            if str(key).isidentifier():
                yield from ((f"[{key}]{rest}", tensor) for rest, tensor in parts_of(value))
    elif _is_container(output):
        for i, value in enumerate(cast("Sequence[object]", output)):
            yield from ((f"[{i}]{rest}", tensor) for rest, tensor in parts_of(value))


def part_at(layer: str, output: object, parts: Sequence[str]) -> object:
    """Return a part of what a layer returns.

    Raises:
        LayerCallError: if it has no such part, or nothing stands there.
    """
    found = output
    for part in parts:
        inside: object = None
        if isinstance(found, Mapping):
            inside = found.get(part, found.get(int(part)) if part.isdecimal() else None)
            if inside is None and part.isdecimal() and int(part) < len(found):
                inside = [*found.values()][int(part)]
        elif _is_container(found) and part.isdecimal() and int(part) < len(cast("Sequence[object]", found)):
            inside = cast("Sequence[object]", found)[int(part)]
        if inside is None:
            raise LayerCallError(_no_part(layer, output, [a for a, _ in parts_of(output)]))
        found = inside
    return found


def _no_part(layer: str, output: object, known: Sequence[str]) -> str:
    path = split_parts(layer)[0]
    there = f"it has {[f'{path}{part}' for part in known[:6]]}" if known and known != [""] else "it has none"
    told = ""
    if any(value is None for value in (output if _is_container(output) else ())):  # type: ignore[attr-defined]
        told = (
            "; a fused attention keeps no probabilities: load the model with attn_implementation='eager', or call "
            "nn.MultiheadAttention with need_weights=True"
        )
    return f"layer {path!r} returns {_kind(output)}, in which nothing stands at {layer[len(path) :]!r}: {there}{told}."


def _put_at(output: object, parts: Sequence[str], tensor: Tensor) -> object:
    """Return what a layer returns with another tensor at a part."""
    if not parts:
        return tensor
    first, rest = parts[0], parts[1:]
    if isinstance(output, Mapping):
        key = first if first in output else [*output][int(first)]
        changed = copy(output)
        changed[key] = _put_at(output[key], rest, tensor)  # type: ignore[index]  # of libraries, these can be written to
        return changed
    values = [*cast("Sequence[object]", output)]
    values[int(first)] = _put_at(values[int(first)], rest, tensor)
    make: Callable[[object], object] = getattr(type(output), "_make", type(output))  # of a named tuple
    return make(values)


def _is_container(value: object) -> bool:
    return isinstance(value, tuple | list) and not isinstance(value, nn.utils.rnn.PackedSequence)


_RUNS_ONCE: WeakKeyDictionary[nn.Module, dict[object, WeakSet[nn.Module]]] = WeakKeyDictionary()
"""By model and shapes of its inputs, the modules seen to run exactly once in a whole pass.

Only these may end a pass early: what a loop over time steps calls may run once for short inputs."""


# Compared by identity, as `_StopPass` needs.
@dataclass(eq=False)
class _Recorder:
    model: nn.Module
    taps: Sequence[_Tap]
    graph: bool
    stop: bool
    reduce: Callable[[str, Tensor], Tensor] | None
    rows: int | None
    kept: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[nn.Module, int] = field(default_factory=dict)
    once: WeakSet[nn.Module] = field(default_factory=WeakSet)
    passes: int = 0

    def attach(self, hooks: ExitStack) -> None:
        by_module: dict[nn.Module, list[_Tap]] = {}
        for tap in self.taps:
            by_module.setdefault(tap.module, []).append(tap)
        own = by_module.pop(self.model, [])
        begin = self.model.register_forward_pre_hook(self._begin, with_kwargs=True)
        hooks.callback(begin.remove)
        for module, taps in by_module.items():
            hooks.callback(module.register_forward_hook(self._record(taps)).remove)
        hooks.callback(self.model.register_forward_hook(self._finish(own)).remove)

    def _begin(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self.kept.clear()
        self.calls.clear()
        self.passes += 1
        shapes = _shape((args, kwargs))
        self.once = _RUNS_ONCE.setdefault(self.model, {}).setdefault(shapes, WeakSet())

    def _record(self, taps: Sequence[_Tap]) -> Callable[[nn.Module, object, object], object]:
        def hook(module: nn.Module, args: object, output: object) -> object:
            call = self.calls.get(module, 0)
            self.calls[module] = call + 1
            result: object = None
            for tap in taps:
                if tap.call is None and call:
                    raise LayerCallError(_ran_again(tap.address))
                if tap.call is None or tap.call == call:
                    result = self._keep(tap, output)
                    output = output if result is None else result
            if self.stop and len(self.kept) == len(self.taps) and self._may_stop():
                raise _StopPass(self)
            return result

        return hook

    def _may_stop(self) -> bool:
        return all(tap.call is not None or tap.module in self.once for tap in self.taps)

    def _finish(self, own: Sequence[_Tap]) -> Callable[[nn.Module, object, object], object]:
        record = self._record(own)

        def hook(module: nn.Module, args: object, output: object) -> object:
            result = record(module, args, output) if own else None
            self.once.update(m for m, count in self.calls.items() if count == 1)
            if self.stop:
                self.check()
                raise _StopPass(self)
            return result

        return hook

    def _keep(self, tap: _Tap, whole: object) -> object:
        """Keep what a layer returns, and return what the network goes on with, if that is something else."""
        address, output = tap.address, part_at(tap.address, whole, tap.parts)
        if not isinstance(output, Tensor):
            named = [part for part, _ in parts_of(output)]
            way = f"name a part, as in '{address}{named[0]}'" if named else _instead(tap.module)
            raise LayerCallError(f"layer {address!r} returns {_kind(output)}, expected one tensor; {way}.")
        if self.rows is not None and (not output.ndim or len(output) != self.rows):
            raise LayerCallError(other_rows(address, tuple(output.shape), self.rows))
        if self.graph:
            if not (output.is_floating_point() or output.is_complex()):
                raise LayerCallError(f"layer {address!r} returns {output.dtype}, which has no gradient.")
            # Kept with a node and memory of its own, since a layer may hand on its input, as
            # `Identity` does; the network goes on with a copy, since an in-place ReLU may follow.
            self.kept[address] = source = output.clone().requires_grad_()
            return _put_at(whole, tap.parts, source.clone())
        kept = output.detach() if self.reduce is None else self.reduce(address, output.detach())
        with torch.inference_mode(False):  # else what is kept could never enter autograd
            alias = kept.is_inference() or _shares_memory(kept, output)
            self.kept[address] = kept.clone() if alias else kept
        return None

    def check(self) -> None:
        """Raise unless every address was recorded in the last pass, and there was one."""
        missing = [tap for tap in self.taps if tap.address not in self.kept]
        if not missing:
            return
        names = [tap.address for tap in missing]
        if not self.passes:
            raise LayerCallError(f"layers {names} did not run: no forward pass of this model ran inside the block.")
        for tap in missing:
            if count := self.calls.get(tap.module, 0):
                raise LayerCallError(
                    f"layer {tap.address!r} did not run in the forward pass: "
                    f"{split_call(tap.address)[0]!r} has {count} call{'s' * (count > 1)}, counted from 0."
                )
        raise LayerCallError(_never_ran(self.model, names))


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _shape(value: object) -> object:
    """Return what of an input, tensors' values apart, can decide how often a layer runs."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return tuple((key, _shape(item)) for key, item in value.items())
    if isinstance(value, tuple | list):
        return tuple(map(_shape, value))
    return value if isinstance(value, bool | int | float | str) else type(value)


def _kind(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def other_rows(layer: str, shape: tuple[int, ...], rows: int) -> str:
    """Say that a layer's output has no row for each example."""
    return (
        f"layer {layer!r} returns shape {shape} for {rows} example{'s' if rows > 1 else ''}: its first axis is not that "
        "of the examples, as in attention over windows, where time comes first, and in experts; read a layer around it."
    )


def _ran_again(layer: str) -> str:
    return f"layer {layer!r} runs more than once in a forward pass; name one call: '{layer}:0', '{layer}:1', …"


def _instead(module: nn.Module) -> str:
    if isinstance(module, nn.MultiheadAttention) or not any(True for _ in module.children()):
        return "read the layer that takes it, or wrap it in a module that returns one of them"
    return "read a layer inside it"


def _never_ran(model: nn.Module, layers: Sequence[str]) -> str:
    for layer in layers:
        above = resolve(model, split_call(layer)[0].rpartition(".")[0])
        if isinstance(above, nn.MultiheadAttention):
            return (
                f"layer {layer!r} did not run in the forward pass: nn.MultiheadAttention never calls "
                "it, but computes with its weights itself; read a layer around the attention."
            )
    return (
        f"layers {list(layers)} did not run in the forward pass: they may be unused, a function may "
        "compute with their weights, their forward() may be called directly (call the layer itself, "
        "which runs hooks), or the model was compiled before (pass the uncompiled model)."
    )
