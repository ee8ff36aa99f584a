"""What a score loses when places of an input are hidden, one set of them after another."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from probing.attribution.score_passes import Passes
from probing.core.doubles import near
from probing.core.progress import Progress

Places = Callable[[Tensor, Tensor], Tensor]
"""(examples `[k]`, numbers of their sets `[k]`) → which places each set holds, `[k, *places]`, boolean."""


def mean_falls(
    passes: Passes,
    inputs: Float[Tensor, "n *shape"],
    hidden: Float[Tensor, "n *shape"],
    counts: Sequence[int],
    places: Places,
    what: str,
) -> tuple[Float64[Tensor, "n *places"], Float[Tensor, " n"]]:
    """Return for each place the mean fall of the score over the sets that hold it, 0 where none does, and the score.

    Sets of all examples fill passes together. Sets that hold nothing, as of padding, cost no pass.

    Args:
        passes: of the score; one for each example, and one for each set.
        inputs: on the passes' device.
        hidden: what shows where places are hidden.
        counts: sets of each example.
        places: which places a set holds, as a tensor that broadcasts to the inputs.
        what: is being made, for the progress line.
    """
    rows, numbers = _pairs(counts, places, passes.origin.beside is not None, passes.device)
    score = passes.values(inputs, torch.arange(len(inputs)))
    place = near(passes.device)
    whole = score.to(place).double()
    total = held = torch.zeros((), device=place)
    with Progress(len(rows), what, unit="passes") as meter:
        for part in passes.slices(len(rows)):
            of, sets = rows[part], places(rows[part], numbers[part])
            variants = torch.where(sets, hidden[of], inputs[of])
            with torch.no_grad():
                fall = whole[of.to(place)] - passes.value(variants, of).to(place).double()
            sets = sets.to(place)
            if not total.ndim:
                total, held = (torch.zeros(len(inputs), *sets.shape[1:], dtype=torch.float64, device=place) for _ in "ab")
            total.index_add_(0, of.to(place), torch.where(sets, fall.view(-1, *[1] * (sets.ndim - 1)), 0.0))
            held.index_add_(0, of.to(place), sets.double())
            meter.advance(len(of))
    return total / held.clamp(min=1), score


def _pairs(
    counts: Sequence[int], places: Places, padded: bool, device: torch.device
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Return the example and the number of every set."""
    each = torch.tensor(counts, device=device)
    rows = torch.arange(len(counts), device=device).repeat_interleave(each, output_size=sum(counts))
    first = (each.cumsum(0) - each).repeat_interleave(each, output_size=sum(counts))
    numbers = torch.arange(len(rows), device=device) - first
    if not padded:
        return rows, numbers
    kept = torch.cat([_any(places(r, k)) for r, k in zip(torch.split(rows, 256), torch.split(numbers, 256), strict=True)])
    return rows[kept], numbers[kept]


def _any(sets: Bool[Tensor, "k *places"]) -> Bool[Tensor, " k"]:
    return sets.flatten(1).any(1)
