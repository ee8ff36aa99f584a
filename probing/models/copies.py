"""Proof that a copy of a model computes by its own weights, before other weights in it stand for another model.

A copy is none where the model keeps a function that holds on to its parts: a lambda over `self` is shared by all copies,
and so are a list of layers in a closure, a module's layers in a global, and a cached answer.
"""

import copy
import dis
import functools
import inspect
import math
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from probing.core.errors import ProbingError
from probing.core.foreign import take_off
from probing.core.inputs import Batch
from probing.models.calling import run
from probing.models.precision import AS_GIVEN, device_of


class SharedWeightsError(ProbingError, RuntimeError):
    """A copy of a model computes by other weights than its own."""


def own_copy(model: nn.Module) -> nn.Module:
    """Return a copy with weights of its own, in the model's mode, without hooks that libraries left on it."""
    clone = copy.deepcopy(model)
    take_off(clone)
    return clone


def prove_own_weights(clone: nn.Module, model: nn.Module, example: Batch) -> None:
    """Pass an example through a model's copy, and see that it reads none but its own weights.

    Args:
        clone: of the model, in evaluation mode; both on one device.
        model: whose weights it must not read.
        example: one row in model space.

    Raises:
        SharedWeightsError: if it reads weights of the model itself or of neither, or none at all.
    """
    given = AS_GIVEN.prepare(model, (), device_of(clone), example)
    reads = _Reads(clone, model)
    with torch.inference_mode(False), torch.no_grad(), reads:
        run(clone, given.inputs(example))
    kind = type(model).__name__
    if reads.of_model:
        raise SharedWeightsError(
            f"a copy of {kind} computes by {reads.of_model[0]!r} of the model itself, so that weights drawn anew are "
            f"not used: {_WAY_OUT}"
        )
    if reads.of_neither:
        raise SharedWeightsError(
            f"{kind} computes by a weight of shape {max(reads.of_neither, key=math.prod)} that is no parameter of it, and "
            "would not be drawn anew: register what is learned as nn.Parameter, and what is constant as a buffer."
        )
    if not reads.own:
        raise SharedWeightsError(
            f"a copy of {kind} answers without reading any of its weights: keep no answers on the model."
        )


def refuse_held_parts(clone: nn.Module, model: nn.Module) -> None:
    """Look through the functions that a copy keeps and runs, where there is no example to pass.

    Raises:
        SharedWeightsError: if one holds on to a module or a weight that is none of the copy's.
    """
    own = {id(part) for part in (*clone.modules(), *clone.parameters(), *clone.buffers())}
    for path, module in clone.named_modules():
        for name, held in _held(module):
            if id(held) not in own:
                where = f"{path}.{name}".lstrip(".")
                raise SharedWeightsError(
                    f"{where!r} of {type(model).__name__} holds on to a {type(held).__name__} that copies of the model"
                    f" share, so that weights drawn anew are not used: {_WAY_OUT}"
                )


_WAY_OUT = (
    "a function that the model keeps, such as a lambda over self, holds on to it; make that a method of the module, or "
    "register the layer on it."
)

_TIMES_WEIGHTS = frozenset(
    [
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "mv",
        "addmv",
        "dot",
        "convolution",
        "cudnn_convolution",
        "embedding",
        "embedding_bag",
    ]
)
"""Operations whose constant operands are weights, and no masks, positions or means of pixels."""


class _Reads(TorchDispatchMode):
    """Sees which tensors, made before it, the operations of a pass read."""

    def __init__(self, clone: nn.Module, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same
        self._own = {_place(t): name for name, t in _tensors(clone)}
        theirs = {_place(t): name for name, t in _tensors(model)}
        self._theirs = {p: name for p, name in theirs.items() if p not in self._own}
        self._made: dict[int, Tensor] = {}  # kept alive, so that no place is used twice
        self.own: list[str] = []
        self.of_model: list[str] = []
        self.of_neither: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        given = list(_leaves((args, kwargs or {})))
        for tensor in given:
            self._see(str(func._schema.name).partition("::")[2], tensor)
        output = func(*args, **(kwargs or {}))
        there = {_place(tensor) for tensor in given}  # a view of a weight is not made by the pass
        for tensor in _leaves(output):
            if _place(tensor) not in there:
                self._made[_place(tensor)] = tensor
        return output

    def _see(self, operation: str, tensor: Tensor) -> None:
        place = _place(tensor)
        if place in self._own:
            self.own.append(self._own[place])
        elif place in self._theirs:
            self.of_model.append(self._theirs[place])
        elif operation in _TIMES_WEIGHTS and place not in self._made and tensor.is_floating_point():
            self.of_neither.append(tuple(tensor.shape))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _leaves(tree: object) -> Iterator[Tensor]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided and leaf.numel():
            yield leaf


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _held(module: nn.Module) -> Iterator[tuple[str, nn.Module | Tensor]]:
    """Yield modules and weights that functions of a module hold on to, each with the attribute that leads there."""
    kept = {k: v for k, v in vars(module).items() if k not in {"_parameters", "_buffers", "_modules"}}
    seen: set[int] = set()
    for name, value in kept.items():
        for function in _functions(value):
            yield from ((name, part) for part in _parts(_outside(function), seen))
    yield from (("forward", part) for part in _parts(_outside(inspect.getattr_static(type(module), "forward")), seen))


def _functions(value: object) -> Iterator[FunctionType]:
    """Yield functions that copies share: those in bound methods and partials, too, but not what these are bound to."""
    if isinstance(value, FunctionType):
        yield value
    elif isinstance(value, MethodType):
        yield from _functions(value.__func__)
    elif isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _functions(part)
    elif isinstance(value, list | tuple | set | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _functions(part)


def _outside(function: object) -> Iterator[object]:
    """Yield what a function reads that is none of its arguments: cells of closures, defaults and globals."""
    if not isinstance(function, FunctionType):
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for name in _globals(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]


def _globals(code: CodeType) -> Iterator[str]:
    """Yield the names of globals that a function, or one inside it, reads."""
    yield from (i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals(constant)


def _parts(values: Iterator[object], seen: set[int]) -> Iterator[nn.Module | Tensor]:
    """Yield the modules and weights among values, and in containers and functions among these."""
    for value in values:
        if id(value) in seen:
            continue
        seen.add(id(value))
        weight = isinstance(value, Tensor) and (value.requires_grad or isinstance(value, nn.Parameter))
        if weight or (isinstance(value, nn.Module) and any(True for _ in value.parameters())):
            yield value  # type: ignore[misc]  # one of the two
        elif isinstance(value, list | tuple | set | dict):
            yield from _parts(iter(value.values() if isinstance(value, dict) else value), seen)
        elif isinstance(value, FunctionType | MethodType | functools.partial):
            for function in _functions(value):
                yield from _parts(_outside(function), seen)
            yield from _parts(iter(_bound(value)), seen)


def _bound(function: object) -> tuple[object, ...]:
    if isinstance(function, MethodType):
        return (function.__self__,)
    if isinstance(function, functools.partial):
        return (function.func, *function.args, *function.keywords.values())
    return ()
