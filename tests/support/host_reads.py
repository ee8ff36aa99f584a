"""Counts what would make a host wait for an accelerator, on tensors of any device."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# The host learns a value, or the shape of what comes out hangs on values.
_WAIT = frozenset(
    [
        *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"),
        *("unique_consecutive", "_unique2", "unique_dim", "bincount"),
    ]
)
# A copy goes to the host, which dispatch does not see where the tensor is there already.
_COPIES = frozenset(["tolist", "numpy", "cpu", "__array__"])


class _Operations(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same
        self._found = found

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        name = str(func._schema.name).partition("::")[2]
        masks = [i for i in args[1] if isinstance(i, Tensor)] if name == "index" else []
        if name in _WAIT or any(mask.dtype in {torch.bool, torch.uint8} for mask in masks):
            self._found.append(name)
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        if getattr(func, "__name__", "") in _COPIES:
            self._found.append(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """Collect the names of operations inside the block by which the host reads values of tensors."""
    found: list[str] = []
    with _Operations(found), _Calls(found):
        yield found
