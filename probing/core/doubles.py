"""Where float64 is computed: Apple's GPUs and some others have none, and then it is the CPU that adds and compares."""

from functools import cache

import torch
from torch import Tensor


@cache
def has_doubles(device: torch.device) -> bool:
    """Whether a device computes in float64."""
    if device.type in {"cpu", "cuda", "meta"}:
        return True
    try:
        torch.ones((), dtype=torch.float64, device=device).add_(1)
    except (TypeError, RuntimeError):
        return False
    return True


def near(device: torch.device) -> torch.device:
    """Return where what belongs to a device is computed in float64: there, or on the CPU."""
    return device if has_doubles(device) else torch.device("cpu")


def doubled(values: Tensor) -> Tensor:
    """Return values in float64, on their device or on the CPU."""
    return values.to(near(values.device)).double()
