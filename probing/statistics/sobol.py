"""Total Sobol indices: which share of a function's variance goes with each of its independent arguments."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probing.core.errors import ArgumentError


def sobol_total(
    function: Callable[[Float[Tensor, "masks parts"]], Float[Tensor, " masks"]], parts: int, masks: int, seed: int
) -> tuple[Float[Tensor, "masks parts"], Float[Tensor, " masks"]]:
    """Return what each pair of masks says of every total index, and of the variance (Jansen 1999).

    The index is the sum of the first over that of the second, as in `ratio`.

    Args:
        function: of masks between 0 and 1.
        parts: how many numbers a mask has.
        masks: pairs; `masks * (parts + 2)` evaluations.
        seed: of the masks.
    """
    if masks < 2:
        raise ArgumentError(f"Sobol indices take 2 pairs of masks or more, got {masks}.")
    rng = np.random.default_rng(seed)
    first, second = torch.from_numpy(rng.uniform(size=(2, masks, parts)))
    mixed = first.repeat(parts, 1, 1)
    mixed[torch.arange(parts), :, torch.arange(parts)] = second.mT
    values = function(torch.cat([first, second, mixed.flatten(0, 1)])).double()
    one, other, changed = values[:masks], values[masks : 2 * masks], values[2 * masks :].reshape(parts, masks)
    mean = values[: 2 * masks].mean()
    # Of both sides' deviations from their common mean one degree of freedom is gone.
    variance = ((one - mean).square() + (other - mean).square()) / 2 * (2 * masks / (2 * masks - 1))
    return (one - changed).square().mT / 2, variance


def ratio(
    shares: Float[Tensor, "units parts"], wholes: Float[Tensor, " units"]
) -> tuple[Float[Tensor, " parts"], Float[Tensor, " parts"]]:
    """Return ratios of sums over independent units, and their standard errors (linearised); NaN where nothing varies."""
    whole, n = wholes.sum(), len(wholes)
    if not float(whole) > 0:
        return torch.full_like(shares[0], torch.nan), torch.full_like(shares[0], torch.nan)
    found = shares.sum(0) / whole
    left = shares - wholes[:, None] * found
    return found, (left.square().sum(0) * n / max(n - 1, 1)).sqrt() / whole
