"""Formulas of the papers written slowly, in float64, to check the fast code against."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def step_down_max_t(
    observed: Sequence[float], null: Sequence[Sequence[float]], *, exact: bool = False
) -> list[float]:
    """Westfall & Young 1993, algorithm 4.1, with each cell divided by its root mean square over the draws."""
    pool = [*null] if exact else [*null, observed]
    scale = [math.sqrt(sum(row[c] ** 2 for row in pool) / len(pool)) for c in range(len(observed))]
    order = sorted(range(len(observed)), key=lambda c: -observed[c] / scale[c])
    corrected, floor = [0.0] * len(observed), 0.0
    for rank, cell in enumerate(order):
        hits = sum(
            max(row[c] / scale[c] for c in order[rank:]) >= observed[cell] / scale[cell]
            for row in null
        )
        floor = max(floor, hits / len(null) if exact else (1 + hits) / (1 + len(null)))
        corrected[cell] = floor
    return corrected


def logit_effect(
    positive: Tensor, negative: Tensor, gradients: Tensor, names: tuple[Sequence[str], ...]
) -> float:
    """Mean over inputs of gradient · (mean positive - mean negative), each from other clusters than the input's.

    `positive`, `negative`, `gradients`: [n, m]; `names`: the clusters of each.
    """
    total = 0.0
    for gradient, own in zip(gradients.double(), names[2], strict=True):
        means = [
            torch.stack(
                [f for f, name in zip(side.double(), clusters, strict=True) if name != own]
            ).mean(0)
            for side, clusters in ((positive, names[0]), (negative, names[1]))
        ]
        total += float(gradient @ (means[0] - means[1]))
    return total / len(gradients)
