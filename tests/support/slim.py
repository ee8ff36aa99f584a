"""An accelerator without float64, as Apple's GPUs are, made of the CPU: the device `slim`.

Its tensors hold one of the CPU. Whatever would give float64 there, or mixes devices, raises as such an accelerator does.
Imported only by processes of its own, since PyTorch can't forget a device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

backend_registration._setup_privateuseone_for_python_backend("slim")
SLIM, CPU = torch.device("slim:0"), torch.device("cpu")
_ATEN = torch.ops.aten
_MOVES = {_ATEN._to_copy.default, _ATEN.copy_.default}
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put_.default}  # by tensors of the CPU too
_WIDE = {torch.float64, torch.complex128}


class Slim(Tensor):
    """A tensor on the device."""

    raw: Tensor

    @staticmethod
    def __new__(cls: type["Slim"], raw: Tensor) -> "Slim":
        if raw.dtype in _WIDE:
            raise TypeError("can't convert to float64: the device slim has none")
        own = Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=SLIM
        )
        own.raw = raw
        return own

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        return _run(func, args, kwargs or {})

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.raw.untyped_storage()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def new_tensor(self, data: object, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return Slim(self.raw.new_tensor(data, **kwargs))

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(torch.tensor(index) if isinstance(index, list) else index)

    def __setitem__(self, index: Any, values: Any) -> None:
        super().__setitem__(torch.tensor(index) if isinstance(index, list) else index, values)

    def __deepcopy__(self, memo: dict[int, object]) -> Tensor:
        own: Tensor = Slim(self.raw.detach().clone())
        if isinstance(self, nn.Parameter):
            own = nn.Parameter(own, requires_grad=self.requires_grad)
        memo[id(self)] = own
        return own

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Slim({self.raw})"


class Computing(TorchDispatchMode):
    """Inside the block the device can be used."""

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> object:
    leaves = pytree.tree_leaves((args, kwargs))
    own = [a for a in leaves if isinstance(a, Slim)]
    devices = [a for a in leaves if isinstance(a, torch.device)]
    target = devices[0].type if devices else "slim" if own else "cpu"
    if own and func not in _MOVES | _INDEXING:
        others = [a for a in leaves if isinstance(a, Tensor) and not isinstance(a, Slim)]
        if any(a.ndim for a in others):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    args, kwargs = pytree.tree_map(_inner, (args, kwargs))
    if own and target == "slim" and kwargs.get("dtype") in _WIDE:
        raise TypeError("can't convert to float64: the device slim has none")
    out = func(*args, **kwargs)
    if target != "slim":
        return out
    same = {id(a.raw): a for a in own}  # what an operation wrote in place is handed back itself

    def put(leaf: object) -> object:
        if id(leaf) in same:
            return same[id(leaf)]
        return Slim(leaf) if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(put, out)


def _inner(leaf: object) -> object:
    if isinstance(leaf, torch.device):
        return CPU
    return leaf.raw if isinstance(leaf, Slim) else leaf


def _placed(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a maker of tensors that PyTorch would else fill on the device, past the mode."""

    def made(*args: Any, device: torch.device | str | None = None, **kwargs: Any) -> Tensor:
        found = make(*args, **kwargs)
        return found if device is None else found.to(device)

    return made


torch.tensor = _placed(torch.tensor)
