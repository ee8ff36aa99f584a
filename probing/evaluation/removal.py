"""Scores of inputs from which more and more is removed: which places go together, in which order, and what comes instead."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attribution.baselines import Baseline
from probing.attribution.score_passes import Passes
from probing.evaluation.base import EvaluationError

Cuts = tuple[int, ...]
"""How many units are removed at each step, from none to the most."""


@dataclass(frozen=True)
class Units:
    """What is removed at once: single places, or square patches of an image; channels go together.

    Attributes:
        labels: the unit of each place.
        count: number of units.
    """

    labels: Int[Tensor, "*places"]
    count: int

    @classmethod
    def of(cls, inputs: Float[Tensor, "n *shape"], side: int = 1) -> "Units":
        """Return the units of inputs like these.

        Args:
            inputs: images `[n, c, h, w]`, or anything else, whose values are units then.
            side: of the patches, in pixels; those at the lower and right border may be smaller.

        Raises:
            EvaluationError: for patches of what is no image, or below one pixel.
        """
        if side < 1 or (side > 1 and inputs.ndim != 4):
            raise EvaluationError(f"patches of {side} pixels need images, got inputs of shape {tuple(inputs.shape)}.")
        places = inputs.shape[2:] if inputs.ndim == 4 else inputs.shape[1:]
        if side == 1:
            count = math.prod(places)
            return cls(torch.arange(count).view(places), count)
        rows, columns = (torch.arange(s) // side for s in places)
        wide = int(columns[-1]) + 1
        return cls(rows[:, None] * wide + columns, (int(rows[-1]) + 1) * wide)

    def values(self, maps: Float[Tensor, "n *places"]) -> Float[Tensor, "n units"]:
        """Return the mean of each unit's places."""
        flat = maps.flatten(1).cpu().double()
        labels = self.labels.flatten()
        if self.count == len(labels):
            return flat
        total = torch.zeros(len(flat), self.count, dtype=torch.float64).index_add_(1, labels, flat)
        return total / torch.bincount(labels, minlength=self.count)

    def ranks(self, order: Int[Tensor, "n units"]) -> Int[Tensor, "n *places"]:
        """Return for each place when its unit goes, from 0."""
        rank = torch.empty_like(order)
        steps = torch.arange(self.count, device=order.device).expand_as(order)
        rank.scatter_(1, order, steps)
        return rank[:, self.labels.flatten()].view(len(order), *self.labels.shape)


@runtime_checkable
class Filler(Protocol):
    """Gives an input its values where units are removed."""

    def __call__(self, input_: Float[Tensor, "*shape"], removed: Bool[Tensor, "k *places"]) -> Float[Tensor, "k *shape"]:
        """Return the input with each of the sets removed."""
        ...


@dataclass(frozen=True)
class Shown:
    """What is removed shows a substrate, which is the same however much is removed."""

    substrate: Float[Tensor, "*shape"]

    def __call__(self, input_: Float[Tensor, "*shape"], removed: Bool[Tensor, "k *places"]) -> Float[Tensor, "k *shape"]:
        mask = removed[:, None] if input_.ndim == 3 else removed
        return torch.where(mask, self.substrate, input_)


@dataclass(frozen=True)
class Imputed:
    """What is removed is made up from what is around it (Rong et al. 2022, sec. 4.3), so that its place is hard to see.

    Each removed pixel is the weighted mean of its eight neighbours, direct ones 1/6 and diagonal ones 1/12, those
    outside the image left out and the weights of the others scaled up: a linear system, solved exactly. Independent
    noise is added, so that the mask does not show as smoothness. Where all is removed, the input's mean is left.

    Attributes:
        noise: standard deviation of the noise, as a share of the input's own.
        seed: of the noise.
    """

    noise: float = 0.1
    seed: int = 0

    def __call__(self, input_: Float[Tensor, "c h w"], removed: Bool[Tensor, "k h w"]) -> Float[Tensor, "k c h w"]:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(input_.shape, generator=generator, dtype=torch.float64)
        noise = self.noise * float(input_.double().std()) * drawn
        return torch.stack([self._one(input_, mask, noise) for mask in removed])

    def _one(self, input_: Tensor, removed: Tensor, noise: Tensor) -> Tensor:
        if not bool(removed.any()):
            return input_
        if bool(removed.all()):
            filled = input_.double().mean((1, 2), keepdim=True).expand(input_.shape)
        else:
            filled = _harmonic(input_.double().cpu(), removed.cpu())
        return torch.where(removed, (filled + noise).to(input_), input_)


_NEIGHBOURS = [(dr, dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1) if dr or dc]


def _harmonic(image: Float[Tensor, "c h w"], removed: Bool[Tensor, "h w"]) -> Tensor:
    """Return the image with removed pixels solved from their neighbours."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import splu

    height, width = removed.shape
    gone = removed.flatten().numpy()
    places = np.flatnonzero(gone)
    number = np.full(height * width, -1)
    number[places] = np.arange(len(places))
    rows, columns, weights = [], [], []
    degree, known = np.zeros(len(places)), np.zeros((len(places), len(image)))
    flat = image.flatten(1).numpy().T
    for down, across in _NEIGHBOURS:
        r, c = places // width + down, places % width + across
        inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
        weight = 1 / 12 if down and across else 1 / 6
        other = (r * width + c)[inside]
        own = np.flatnonzero(inside)
        degree[own] += weight
        solved = gone[other]
        rows.append(own[solved])
        columns.append(number[other[solved]])
        weights.append(np.full(int(solved.sum()), -weight))
        np.add.at(known, own[~solved], weight * flat[other[~solved]])
    diagonal = np.arange(len(places))
    system = coo_matrix(
        (
            np.concatenate([*weights, degree]),
            (np.concatenate([*rows, diagonal]), np.concatenate([*columns, diagonal])),
        )
    ).tocsc()
    filled = flat.copy()
    filled[places] = splu(system).solve(known)
    return torch.from_numpy(filled.T.reshape(image.shape))


def cuts_of(units: int, steps: int, most: float = 1.0) -> Cuts:
    """Return how many units are gone at each step: evenly spread from none to a share of all, each number once.

    Raises:
        EvaluationError: for no step, or a share outside of 0 to 1.
    """
    if steps < 1 or not 0 < most <= 1:
        raise EvaluationError(f"steps must be at least 1 and the share within 0 to 1, got {steps} and {most}.")
    return tuple(sorted({round(k * most * units / steps) for k in range(steps + 1)}))


def removal_scores(
    passes: Passes,
    inputs: Float[Tensor, "n *shape"],
    fillers: Sequence[Filler],
    ranks: Int[Tensor, "n *places"],
    cuts: Sequence[int],
    *,
    least: bool = False,
) -> Float[Tensor, "n steps"]:
    """Return each input's score after each step, all inputs and steps batched together.

    Args:
        passes: of the score.
        inputs: from which places are removed.
        fillers: one for each input.
        ranks: when each place goes.
        cuts: how many units are gone.
        least: whether places go from the last rank to the first.
    """
    n, k = len(inputs), len(cuts)
    count = int(ranks.max()) + 1 if ranks.numel() else 0
    found = torch.empty(n * k, dtype=torch.float64)
    at = torch.tensor(list(cuts), device=inputs.device)
    when = (count - 1 - ranks if least else ranks).to(inputs.device)
    for part in passes.slices(n * k):
        numbers = torch.arange(part.start, part.stop)
        variants = torch.cat(
            [
                fillers[i](inputs[i], when[i] < at[steps].view(-1, *[1] * (when.ndim - 1)))
                for i, steps in _by_input(numbers, k)
            ]
        )
        with torch.no_grad():
            found[part] = passes.value(variants, numbers // k).cpu().double()
    return found.view(n, k)


def _by_input(numbers: Int[Tensor, " rows"], steps: int) -> Iterator[tuple[int, Tensor]]:
    """Yield each input among rows, with its steps."""
    owners = numbers // steps
    for i in torch.unique(owners).tolist():
        yield i, numbers[owners == i] % steps


def scores_without_each(
    passes: Passes, inputs: Float[Tensor, "n *shape"], units: Units, draws: Float[Tensor, "draws n *shape"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "draws n units"]]:
    """Return each input's score, and its scores with a single unit removed, which shows what was drawn instead."""
    whole = passes.values(inputs, torch.arange(len(inputs))).double().cpu()
    found = torch.empty(len(draws), len(inputs), units.count, dtype=torch.float64)
    for i, x in enumerate(inputs):
        for part in passes.slices(units.count):
            alone = torch.arange(units.count)[part].view(-1, *[1] * units.labels.ndim)
            removed = (units.labels[None] == alone).to(x.device)
            for number, draw in enumerate(draws):
                with torch.no_grad():
                    variants = Shown(draw[i])(x, removed)
                    rows = torch.full((len(variants),), i)
                    found[number, i, part] = passes.value(variants, rows).double().cpu()
    return whole, found


def substrates(baseline: Baseline, inputs: Float[Tensor, "n *shape"]) -> Float[Tensor, "draws n *shape"]:
    """Return what shows where inputs are removed."""
    drawn = baseline(inputs)
    if drawn.shape[1:] != inputs.shape:
        raise EvaluationError(f"the baseline has shape {tuple(drawn.shape[1:])}, expected {tuple(inputs.shape)}.")
    return drawn
