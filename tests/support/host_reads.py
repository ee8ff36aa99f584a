"""Counts what would make a host wait for an accelerator, without having one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The host learns a value, or the shape of what comes out hangs on values.
_WAIT = frozenset(
    [
        *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"),
        *("unique_consecutive", "_unique2", "unique_dim", "bincount"),
    ]
)
# A copy goes to the host, which dispatch does not see where the tensor is there already.
_COPIES = frozenset(["tolist", "numpy", "cpu", "__array__"])


class _Device:
    """Memory that is taken for an accelerator's: some tensors, and all that is computed from them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._alive = list(tensors)  # so that no place in memory is used twice
        self._places = {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def holds(self, values: object) -> bool:
        return any(
            self._has_memory(leaf) and leaf.untyped_storage().data_ptr() in self._places for leaf in tree_leaves(values)
        )

    def take(self, values: object) -> None:
        for leaf in tree_leaves(values):
            if self._has_memory(leaf):
                self._alive.append(leaf)
                self._places.add(leaf.untyped_storage().data_ptr())

    @staticmethod
    def _has_memory(leaf: object) -> bool:
        return isinstance(leaf, Tensor) and leaf.layout == torch.strided and leaf.numel() > 0 and not leaf.is_meta


class _Operations(TorchDispatchMode):
    def __init__(self, device: _Device, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same
        self._device, self._found = device, found

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        there = self._device.holds((args, kwargs or {}))
        name = str(func._schema.name).partition("::")[2]
        masks = [i for i in args[1] if isinstance(i, Tensor)] if name == "index" else []
        if there and (name in _WAIT or any(mask.dtype in {torch.bool, torch.uint8} for mask in masks)):
            self._found.append(name)
        output = func(*args, **(kwargs or {}))
        if there:
            self._device.take((output, args[0] if func._schema.is_mutable else None))
        return output


class _Calls(TorchFunctionMode):
    def __init__(self, device: _Device, found: list[str]) -> None:
        super().__init__()
        self._device, self._found = device, found

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        name = getattr(func, "__name__", "")
        if name in _COPIES and self._device.holds(args):
            self._found.append(name)
            if name == "cpu":  # a copy, which the host may read as it likes
                return torch.from_numpy(func(*args, **(kwargs or {})).detach().numpy().copy())
        return func(*args, **(kwargs or {}))


@contextmanager
def host_reads(tensors: Sequence[Tensor]) -> Iterator[list[str]]:
    """Collect the names of operations inside the block by which the host reads values.

    Args:
        tensors: what is taken to lie on an accelerator, with all that is computed from it.
    """
    device, found = _Device(tensors), list[str]()
    with _Operations(device, found), _Calls(device, found):
        yield found
