"""The tape: every operation of one forward pass on tensors that depend on the input, in the order they ran.

Operations are recorded below autograd, by the tensor library's own dispatcher. Modules, functions, operators and
in-place methods all come down to the same small set there, so nothing has to be replaced in the model, nothing stays
behind on it, and what the tape does not know can't slip by.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from probing.attribution.lrp.operation_names import CREATE, LAYERS, SAME_ORDER, TURNS
from probing.models.geometry import RefusedError


@dataclass(frozen=True)
class Slot:
    """The place of a recorded tensor among an operation's arguments."""

    key: int


@dataclass
class Node:
    """One recorded operation."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int | None, ...]
    """None where an output is no real number."""
    indices: Tensor | None
    """The second output, where it holds positions, as of max-pooling."""
    path: str
    """Of the module whose call this operation ran in."""
    type: str

    @property
    def name(self) -> str:
        """The operation's name, such as `relu`."""
        return op_name(self.func)

    @property
    def where(self) -> str:
        """The module and the operation, for error messages."""
        return f"{place(self.path, self.type)}, operation {self.name!r},"


@dataclass
class Value:
    """A recorded tensor."""

    tensor: Tensor
    lead: int | None
    """How many elements stand before the axis of examples, all axes before it multiplied; None if not known."""
    deep: bool = False
    """Whether a convolution or dense layer stands between it and the input."""
    gate: bool = False
    """Whether it is a weight that other tensors are multiplied with: all relevance of the product is theirs."""


@dataclass
class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it without types
    """Records one forward pass of `model` on `inputs`."""

    model: nn.Module
    inputs: Tensor
    call: Callable[[Tensor], object]
    """Runs the model on the inputs."""
    deep: bool = False
    """Whether the inputs are a layer's outputs already, as of one that looks token ids up."""
    nodes: list[Node] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    users: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same
        self._names = {id(module): name for name, module in self.model.named_modules()}
        self._keys: dict[int, int] = {}
        self._stale: set[int] = set()
        self._held: list[Tensor] = []  # keeps every known tensor alive, so that no id is used twice
        self._shared: dict[int, set[int]] = {}
        if self.inputs.ndim == 4 and self.inputs.device.type == "cpu" and self.inputs.dtype == torch.float32:
            self.inputs = self.inputs.contiguous(memory_format=torch.channels_last)  # convolutions: 0.85 of the time
        self._know(self.inputs, Value(self.inputs, 1, self.deep))

    def record(self) -> object:
        """Run the model and return its output."""
        with torch.no_grad(), _plain_attention(), self:
            return self.call(self.inputs)

    def key_of(self, tensor: Tensor) -> int | None:
        """Return the key of a tensor of the recorded pass; None if it does not depend on the input."""
        self._refuse_stale([tensor], "return")
        return self._keys.get(id(tensor))

    def forget_names(self) -> None:
        """Let go of what recording needed, so that values can be freed one by one."""
        self._held.clear()
        self._keys.clear()
        self._shared.clear()

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RefusedError(f"{self._place()} draws random numbers by {op_name(func)!r}: its relevance is no fixed map.")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        tracked = [t for t in tensors if id(t) in self._keys]
        if not tracked:
            self._refuse_lost(func, tensors)
            return func(*args, **kwargs)
        self._check(func, tensors)
        if op_name(func) in CREATE:
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            return self._replace(func, args, kwargs)
        if func is torch.ops.aten.view.default and not args[0].is_contiguous():
            func = torch.ops.aten.reshape.default  # models written for contiguous memory may ask for a view
        output = func(*args, **kwargs)
        self._add(func, args, kwargs, output)
        return output

    def _replace(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """Run an in-place operation out of place, so that the value it overwrites stays on the tape."""
        target, name = args[0] if args else None, op_name(func)
        if name == "as_strided_" and isinstance(target, Tensor) and _only_relabels(target, args):
            return func(*args, **kwargs)
        twin = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
        twin = getattr(twin, func._overloadname, None)
        key = self._keys.get(id(target))
        if twin is None or key is None or not isinstance(target, Tensor):
            raise RefusedError(f"{self._place()} writes into a tensor in place by {name!r}: do it out of place.")
        output = twin(*args, **kwargs)
        self._stale |= self._shared.pop(_storage(target), set()) - {id(target)}
        self.values[key].tensor = target.detach()  # shares the memory that `target` now gives up
        self._hold(self.values[key].tensor)
        self._add(twin, args, kwargs, output)
        target.set_(output)
        self._keys[id(target)] = self._keys[id(output)]
        self.values[self._keys[id(target)]].tensor = target
        self._shared.setdefault(_storage(target), set()).add(id(target))
        return target

    def _add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        inputs: list[int] = []

        def slot(leaf: object) -> object:
            if isinstance(leaf, Tensor) and id(leaf) in self._keys:
                inputs.append(self._keys[id(leaf)])
                return Slot(inputs[-1])
            return leaf

        slotted, slotted_kwargs = tree_map(slot, (args, kwargs))
        outputs: list[Any] = list(output) if isinstance(output, tuple | list) else [output]
        first = self.values[inputs[0]]
        deep = op_name(func) in LAYERS or any(self.values[key].deep for key in inputs)
        keys = []
        for tensor in outputs:
            real = isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex())
            lead = _lead(op_name(func), args, first, tensor, len(self.inputs)) if real else None
            keys.append(self._know(tensor, Value(tensor, lead, deep)) if real else None)
        indices = outputs[1] if len(outputs) > 1 and keys[1] is None else None
        module = running_module()
        path, kind = self._names.get(id(module), ""), type(module).__name__
        self.nodes.append(Node(func, slotted, slotted_kwargs, tuple(inputs), tuple(keys), indices, path, kind))
        self.users.update(set(inputs))

    def _know(self, tensor: Tensor, value: Value) -> int:
        self._keys[id(tensor)] = len(self.values)
        self.values.append(value)
        self._hold(tensor)
        return self._keys[id(tensor)]

    def _hold(self, tensor: Tensor) -> None:
        self._held.append(tensor)
        self._shared.setdefault(_storage(tensor), set()).add(id(tensor))

    def _check(self, func: Any, tensors: Sequence[Tensor]) -> None:
        name = op_name(func)
        self._refuse_stale(tensors, name)
        if name == "_local_scalar_dense":
            raise RefusedError(
                f"{self._place()} turns an activation into a Python number, whose relevance can't be followed: "
                "keep it a tensor."
            )

    def _refuse_stale(self, tensors: Sequence[Tensor], name: str) -> None:
        if any(id(t) in self._stale for t in tensors):
            raise RefusedError(
                f"{self._place()} reads, by {name!r}, a tensor whose memory an in-place operation has changed through "
                "another view of it: do that operation out of place."
            )

    def _refuse_lost(self, func: Any, tensors: Sequence[Tensor]) -> None:
        if any(t.is_floating_point() and _storage(t) in self._shared and t.numel() for t in tensors):
            raise RefusedError(
                f"{self._place()} reads, by {op_name(func)!r}, a tensor that shares memory with an activation but was "
                "made outside of the tensor library (NumPy, `.data`): make it by an operation."
            )

    def _place(self) -> str:
        module = running_module() or self.model
        return place(self._names.get(id(module), ""), type(module).__name__)


def place(path: str, kind: str) -> str:
    """Return how messages name a module."""
    return f"{path!r} ({kind})" if path else kind


def op_name(func: Any) -> str:
    """Return an operation's name without its namespace and overload."""
    return str(func._schema.name).partition("::")[2]


_CALL = nn.Module._call_impl.__code__


def running_module() -> object:
    """Return the module whose call is the innermost one on the Python stack; None outside of any.

    Read from the stack, since hooks would have to be set on every module of somebody else's model.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL:
            return frame.f_locals["self"]
        frame = frame.f_back  # type: ignore[assignment] # None ends the loop
    return None


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Have attention done by its separate products and softmax: fused kernels hide them."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _only_relabels(tensor: Tensor, args: Sequence[Any]) -> bool:
    """Whether `as_strided_` changes only strides of axes of length one."""
    size, stride = args[1], args[2]
    kept = [(d, s) for d, s in zip(tensor.shape, tensor.stride(), strict=True) if d > 1]
    same_offset = len(args) < 4 or args[3] in (None, tensor.storage_offset())
    return (
        same_offset
        and list(tensor.shape) == list(size)
        and kept == [(d, s) for d, s in zip(size, stride, strict=True) if d > 1]
    )


def _lead(name: str, args: Sequence[Any], source: Value, output: Tensor, n: int) -> int | None:
    """Return the product of the axes before the axis of examples in an operation's output.

    Attention often moves the examples to the second axis, then merges them with tokens or heads; a ledger
    per example needs to know which rows are whose.
    """
    lead, shape = source.lead, source.tensor.shape
    if n == 1:
        return 1
    same_shape = shape == output.shape and name not in TURNS
    if lead is None or name in SAME_ORDER | {"mm", "addmm"} or same_shape:
        return lead
    fitting = (a for a in range(len(shape)) if math.prod(shape[:a]) == lead and shape[a] % n == 0)
    axis = next(fitting, None)  # that examples vary along, possibly merged with what comes after it
    return None if axis is None else _lead_after(name, args, axis, shape, output.shape)


def _lead_after(name: str, args: Sequence[Any], axis: int, shape: Sequence[int], after: Sequence[int]) -> int | None:
    """As `_lead`, where the axis of examples is known and an operation turns, drops or resizes axes."""
    lead = math.prod(shape[:axis])
    dim = args[1] if len(args) > 1 and isinstance(args[1], int) else 0
    if name in TURNS:
        return math.prod(after[: _order(name, args, len(shape)).index(axis)])
    if name in {"select", "unbind"}:
        dim %= len(shape)
        return None if dim == axis else lead // (shape[dim] if dim < axis else 1)
    if name == "stack":
        return math.prod(after[: axis + (dim % len(after) <= axis)])
    if len(after) == len(shape) and after[axis] == shape[axis]:
        return math.prod(after[:axis])
    return 1 if axis == 0 and len(after) and after[0] == shape[0] else None


def _order(name: str, args: Sequence[Any], rank: int) -> list[int]:
    order = list(range(rank))
    if name == "permute":
        return [dim % rank for dim in args[1]]
    one, other = (0, -1) if name == "t" else (args[1], args[2])
    order[one], order[other] = order[other], order[one]
    return order
