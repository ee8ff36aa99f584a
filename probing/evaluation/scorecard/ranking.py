"""How methods stand among those they are compared with: ranks of measured quantities, and how sure they are."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from probing.evaluation.base import LEVEL, Better, EvaluationError, mean_interval
from probing.evaluation.scorecard.criteria import DESIDERATA, QUANTITIES

Values = dict[str, Float[Tensor, " _"]]
"""Of each quantity, one value per input, or a single one; NaN where it is not defined."""
Weights = Callable[[int], Float[Tensor, "draws inputs"]]


def standings(
    rows: Sequence[Values], draws: int = 2000, seed: int = 0
) -> tuple[Float[Tensor, "rows desiderata"], Float[Tensor, "rows desiderata"], Float[Tensor, "rows desiderata"]]:
    """Return each method's standing and its 95 % interval: inputs are drawn again, all methods on the same ones.

    In each draw a quantity's mean over inputs is ranked among the methods that have it, ranks are scaled from 0, the
    worst, to 1 and averaged over the quantities of a desideratum. A quantity that only one method has ranks nobody.

    Raises:
        EvaluationError: for fewer than two methods: nothing can be ranked.
    """
    if len(rows) < 2:
        raise EvaluationError(f"a scorecard compares methods, got {len(rows)}: give at least two.")
    rng = np.random.default_rng(seed)
    drawn: dict[int, Tensor] = {}

    def weights(size: int) -> Tensor:
        if size not in drawn:
            counts = rng.multinomial(size, np.full(size, 1 / size), size=draws)
            drawn[size] = torch.from_numpy(np.concatenate([np.ones((1, size)), counts])).double()
        return drawn[size]

    standing = torch.full((draws + 1, len(rows), len(DESIDERATA)), torch.nan, dtype=torch.float64)
    for d, desideratum in enumerate(DESIDERATA):
        scaled = [
            _scaled([row.get(name) for row in rows], quantity.better, weights)
            for name, quantity in QUANTITIES.items()
            if quantity.desideratum == desideratum and sum(name in row for row in rows) > 1
        ]
        if scaled:
            standing[:, :, d] = torch.stack(scaled).nanmean(0)
    tail = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = standing[1:].nanquantile(tail, dim=0)
    return standing[0], low, high


def _scaled(values: Sequence[Tensor | None], better: Better, weights: Weights) -> Float[Tensor, "draws rows"]:
    """Return ranks of one quantity's mean in every draw, from 0 to 1."""
    means = []
    for own in values:
        if own is None:
            means.append(torch.full((len(weights(1)),), torch.nan, dtype=torch.float64))
            continue
        drawn, known = weights(len(own)), ~own.isnan()
        count, total = drawn @ known.double(), drawn @ own.double().nan_to_num(0.0)
        means.append(torch.where(count > 0, total / count, torch.nan))
    table = torch.stack(means, 1) * (1 if better == "higher" else -1)
    ranks = torch.from_numpy(rankdata(table.numpy(), axis=1, nan_policy="omit"))
    most = (~table.isnan()).sum(1, keepdim=True) - 1
    return torch.where(table.isnan() | (most < 1), torch.nan, (ranks - 1) / most.clamp(min=1))


def ranks(means: Sequence[float], better: Better) -> list[float]:
    """Return ranks, 1 the best and ties averaged, NaN for what has no mean."""
    signed = np.array(means) * (-1 if better == "higher" else 1)
    found: list[float] = rankdata(signed, nan_policy="omit").tolist()
    return found


def summary(
    values: Float[Tensor, " inputs"], bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float, float, int]:
    """Return the mean over inputs, its interval, and how many inputs have no value; a single value is a fact.

    Args:
        values: of each input.
        bounds: of the quantity; its interval ends there.
    """
    mean, *ends = mean_interval(values.double()[:, None], draws=2000)
    if len(values) == 1:
        ends = [mean, mean]
    low, high = (float(t.clamp(*bounds)[0]) for t in ends)
    return float(mean[0]), low, high, int(values.isnan().sum())
