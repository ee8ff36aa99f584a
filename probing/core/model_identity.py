"""The content id of a model, found once and then proved to stand.

`model_id` reads all that a model is. Here it is asked once; afterwards two readings show that nothing has changed. One walks
what the id is made of — structure, classes, methods, plain attributes — and compares it object by object: whatever is
assigned, appended, replaced or hooked is another object, or another number of them. The other is a checksum of the weights'
bits where they lie, which sees writes through `.data` too. A model with a part that may change otherwise is named by
`model_id` at every call.
"""

import copyreg
import functools
import re
import types
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from operator import is_
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from probing.core.checksums import checksum
from probing.core.content_ids import GRAPH_MACHINERY, MACHINERY, function_of, is_library, model_id
from probing.core.errors import ProbingError
from probing.core.foreign import HOOKS, refuse_global_hooks


@dataclass(frozen=True)
class _Known:
    name: str
    structure: "_Structure"
    weights: object

    def stands(self, model: nn.Module) -> bool:
        now = _Structure.of(model)
        return now is not None and now.same(self.structure) and checksum(now.tensors) == self.weights


_KNOWN: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def identity(model: nn.Module) -> str:
    """Return `model_id` of a model, without making it anew where nothing has changed since it was made.

    Raises:
        ForeignHookError, FingerprintError: as `model_id` does.
    """
    refuse_global_hooks()
    known = _KNOWN.get(model)
    if known is not None and known.stands(model):
        return known.name
    _KNOWN.pop(model, None)
    name = model_id(model)
    structure = _Structure.of(model)
    if structure is not None:
        _KNOWN[model] = _Known(name, structure, checksum(structure.tensors))
        structure.tensors = []  # what is kept keeps no weights alive
    return name


class _UnprovableError(ProbingError, ValueError):
    """A part of a model may change without any assignment that the walk sees."""


_LEAVES = frozenset(
    [
        *(type(None), bool, int, float, complex, str, bytes, range, type(Ellipsis), re.Pattern),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format),
        *(PosixPath, PurePosixPath, PureWindowsPath, WindowsPath),
    ]
)
_SEQUENCES = frozenset([list, tuple, set, frozenset, torch.Size])
_MAPPINGS = frozenset([dict, OrderedDict, defaultdict])
_CONTAINERS = _SEQUENCES | _MAPPINGS
_TENSORS = frozenset([Tensor, nn.Parameter])


@dataclass(eq=False)
class _Structure:
    """What a model is made of, its weights' values apart, in the order of a walk.

    Leaves can't change, so that the same object is the same content; they are kept, so that no other object takes their
    place in memory. What can change is never kept but walked anew, and so no model is kept alive.
    """

    leaves: list[object] = field(default_factory=list)
    marks: list[object] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    _met: dict[object, int] = field(default_factory=dict)
    _referred: list[object] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module) -> "_Structure | None":
        """Walk a model; None where a part of it may change unseen."""
        found = cls()
        try:
            found._module(model)
        except (_UnprovableError, RecursionError):
            return None
        found._met, found._referred = {}, []
        return found

    def same(self, other: "_Structure") -> bool:
        """Whether nothing has changed between two walks."""
        if len(self.leaves) != len(other.leaves) or self.marks != other.marks:
            return False
        return all(map(is_, self.leaves, other.leaves))

    def _again(self, key: object) -> bool:
        """Whether something was met before in this walk; what was is marked by the number of those met before it."""
        number = self._met.get(key)
        self.marks.append(number)
        if number is None:
            self._met[key] = len(self._met)
        return number is not None

    def _module(self, module: nn.Module) -> None:
        if self._again(id(module)):
            return
        leaves, kind, attributes = self.leaves, type(module), vars(module)
        self._class(kind)
        if parameters := attributes["_parameters"]:
            self._tensors(parameters)
        if buffers := attributes["_buffers"]:
            self._tensors(buffers)
        self.marks.append((len(parameters), len(buffers)))
        for hooks in _HOOK_SLOTS:
            if attributes[hooks]:
                raise _UnprovableError  # such as only watch; what they hold is not walked
        unread = GRAPH_MACHINERY if issubclass(kind, fx.GraphModule) else MACHINERY
        for name, value in attributes.items():
            if name not in unread:
                leaves.append(name)
                held = type(value)
                if held in _LEAVES or (held is tuple and _LEAVES.issuperset(map(type, value))):
                    leaves.append(value)
                else:
                    self._value(value)
        for name, child in attributes["_modules"].items():
            leaves.append(name)
            self._value(child)

    def _tensors(self, held: Mapping[str, Tensor | None]) -> None:
        for name, tensor in held.items():
            self.leaves.append(name)
            if tensor is None:
                self.leaves.append(None)
            elif not self._again(id(tensor)):
                self._tensor(tensor)

    def _tensor(self, tensor: Tensor) -> None:
        plain = type(tensor) in _TENSORS and tensor.layout is torch.strided
        if not plain or tensor.is_quantized or tensor.is_meta or tensor.is_conj() or tensor.is_neg():
            raise _UnprovableError
        self.tensors.append(tensor)

    def _value(self, value: object) -> None:
        kind = type(value)
        if kind in _LEAVES or isinstance(value, Enum):
            self.leaves.append(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, type):
            self._class(value)
        elif not self._again(id(value)):
            self._part(value, kind)

    def _part(self, value: object, kind: type) -> None:
        """Walk a value that is met for the first time."""
        if isinstance(value, Tensor):
            self._tensor(value)
        elif kind in _SEQUENCES or (isinstance(value, tuple) and not hasattr(value, "__dict__")):
            assert isinstance(value, list | tuple | set | frozenset)
            self._kind(kind)
            self.marks.append(len(value))
            if _LEAVES.issuperset(map(type, value)):
                self.leaves += value
                return
            for item in value:
                self._value(item)
        elif kind in _MAPPINGS:
            assert isinstance(value, dict)
            self._kind(kind)
            self._mapping(value)
            self._mapping(getattr(value, "__dict__", {}))
        elif hasattr(value, "__dict__") and _keeps_all_in_attributes(kind):
            self._class(kind)
            self._mapping(vars(value))
        else:
            self._callable(value)

    def _callable(self, value: object) -> None:
        """Walk a function, what binds one, or a reference."""
        kind = type(value)
        if kind is types.FunctionType:
            assert isinstance(value, types.FunctionType)
            self._function(value, deep=True)
        elif kind is types.MethodType:
            assert isinstance(value, types.MethodType)
            self._value(value.__func__)
            self._value(value.__self__)
        elif kind is functools.partial:
            assert isinstance(value, functools.partial)
            self._value(value.func)
            self._value(value.args)
            self._mapping(value.keywords)
        elif isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType | None):
            self.leaves.append(value)
        elif kind is ReferenceType:
            assert isinstance(value, ReferenceType)
            self._referred.append(value())  # stays where it is until the walk ends
            self._value(self._referred[-1])
        else:
            raise _UnprovableError

    def _mapping(self, items: Mapping[Any, object]) -> None:
        self.marks.append(len(items))
        for key, value in items.items():
            self._value(key)
            self._value(value)

    def _kind(self, cls: type) -> None:
        """Take note of the class of a container."""
        if cls in _CONTAINERS:
            self.leaves.append(cls)
        else:
            self._class(cls)

    def _class(self, cls: type) -> None:
        """Walk a class: what each of its bases holds, and the code of their methods, as far as ids read them."""
        self.leaves.append(cls)
        if self._again(("class", cls)):
            return
        self.leaves.append(cls.__mro__)
        for base in cls.__mro__[:-1]:
            if self._again(("base", base)):
                continue
            self.marks.append(base.__qualname__)
            members: Mapping[str, object] = vars(base)
            if is_library(base):  # of which ids read nothing else
                members = {"forward": members.get("forward")}
            self.leaves += members
            self.leaves += members.values()
            for member in members.values():
                function = function_of(member)
                if function is not None:
                    self._function(function, deep=False)

    def _function(self, function: types.FunctionType, *, deep: bool) -> None:
        """Walk a function's code, defaults and what it closes over: all of it, or as of methods, constants and functions."""
        if self._again((deep, id(function))):
            return
        keywords = function.__kwdefaults__ or {}
        self.leaves += [function.__code__, *keywords]
        if deep:
            self.leaves += [function.__module__, function.__qualname__]
        held = [*(function.__defaults__ or ()), *keywords.values()]
        for cell in function.__closure__ or ():
            try:
                held.append(cell.cell_contents)
            except ValueError:  # a name that its function has not bound yet
                self.marks.append("unbound")
        self.marks.append(len(held))
        for value in held:
            if deep:
                self._value(value)
            elif type(value) in _LEAVES:
                self.leaves.append(value)
            elif isinstance(value, types.FunctionType):
                self._function(value, deep=False)


_HOOK_SLOTS = [f"_{kind}" for kind in HOOKS]


class _Plain:
    """An object that has attributes and nothing besides."""


def _keeps_all_in_attributes(cls: type) -> bool:
    """Whether objects of a class hold nothing that is no attribute, and are pickled by their attributes."""
    names = ("__reduce_ex__", "__reduce__", "__getstate__")
    return (
        (cls.__basicsize__, cls.__itemsize__) == (_Plain.__basicsize__, _Plain.__itemsize__)
        and all(getattr(cls, name, None) is getattr(_Plain, name, None) for name in names)
        and not hasattr(cls, "__getnewargs__")
        and not hasattr(cls, "__getnewargs_ex__")
        and cls not in copyreg.dispatch_table
        and not hasattr(cls, "__wrapped__")
    )
