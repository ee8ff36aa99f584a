"""Loops that no tensor operation does well, as machine code: compiled by numba when first called, kept on disk."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@cache
def compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Return a plain function of arrays as machine code.

    Args:
        loop: what numba understands; called as it is, it computes the same slowly.
    """
    import numba

    plain = inspect.unwrap(loop)  # tests wrap every function to check its shapes
    machine_code: Callable[..., Any]
    try:
        machine_code = numba.njit(cache=True, nogil=True)(plain)
    except RuntimeError:  # there is no folder to keep it in
        machine_code = numba.njit(nogil=True)(plain)
    return machine_code


def collect_above(values: Any, limits: Any, table: Any, filled: Any) -> int:
    """Write each unit's values above its limit into its row of a table, and return how many the fullest row needs.

    Where there are more than a row has room for, the rest is only counted.

    Args:
        values: [n, units, positions].
        limits: [units].
        table: [units, room], written.
        filled: [units], zeros, written: how many values each unit has.
    """
    most = 0
    for i in range(values.shape[0]):
        for u in range(values.shape[1]):
            limit = limits[u]
            for p in range(values.shape[2]):
                if values[i, u, p] > limit:
                    if filled[u] < table.shape[1]:
                        table[u, filled[u]] = values[i, u, p]
                    filled[u] += 1
            most = max(most, filled[u])
    return most


_LOOPED = (torch.float32, torch.float64)
_WORTH_COMPILING = 1 << 18  # values; importing the compiler takes as long as looking through many more


def exceeding(values: Float[Tensor, "n units positions"], limits: Float[Tensor, " units"]) -> Float[Tensor, "units most"]:
    """Return each unit's values above its limit, filled up with −∞ to as many columns as any unit needs."""
    large = values.numel() >= _WORTH_COMPILING and values.dtype in _LOOPED
    if large and values.device.type == "cpu":
        return _exceeding_looped(values, limits)
    above = values > limits[:, None]
    units, order = above.nonzero()[:, 1].sort(stable=True)
    counts = torch.bincount(units, minlength=len(limits))
    first = counts.cumsum(0) - counts
    table = values.new_full((len(limits), int(counts.amax())), -torch.inf)
    table[units, torch.arange(len(units), device=units.device) - first[units]] = values[above][order]
    return table


def _exceeding_looped(values: Tensor, limits: Tensor) -> Tensor:
    room = 64
    while True:
        table = values.new_full((len(limits), room), -torch.inf)
        filled = torch.zeros(len(limits), dtype=torch.int64)
        arrays = (t.numpy() for t in (values, limits, table, filled))
        most = compiled(collect_above)(*arrays)
        if most <= room:
            return table[:, :most]
        room = most
