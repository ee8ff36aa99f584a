"""Ridge regression on class indicators: one eigendecomposition, every penalty."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class RidgeFits:
    """Least-squares fits of indicators of +1 and -1, on standardised rows."""

    penalties: tuple[float, ...]
    weights: Float[Tensor, "labellings penalties classes features"]
    intercepts: Float[Tensor, "labellings penalties classes"]
    certificate: Float[Tensor, "labellings penalties"]
    """Largest entry of the objective's half gradient in size; 0 at the optimum."""


class RidgeStatistics:
    """What ridge regression needs of rows, summed over batches in float64: it adds across batches and processes.

    Args:
        classes: of the labels.

    Example:
        >>> statistics = RidgeStatistics(10)
        >>> statistics.add(rows, labels[None])
        >>> fits = statistics.fit([1e-3, 1e-2])
    """

    def __init__(self, classes: int) -> None:
        self._classes, self.count = classes, 0
        self._square = torch.zeros(0, 0, dtype=torch.float64)
        self._sum = torch.zeros(0, dtype=torch.float64)
        self._cross = torch.zeros(0, 0, 0, dtype=torch.float64)
        self._seen = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, rows: Float[Tensor, "n m"], labels: Int[Tensor, "labellings n"]) -> None:
        """Take in rows that are standardised, or centred about, with their classes under each labelling."""
        wide = rows.double()
        truth = torch.nn.functional.one_hot(labels, self._classes).double().mT
        if not self.count:
            m, device = rows.shape[1], rows.device
            self._square = torch.zeros(m, m, dtype=torch.float64, device=device)
            self._sum = torch.zeros(m, dtype=torch.float64, device=device)
            self._cross = torch.zeros(len(labels), self._classes, m, dtype=torch.float64, device=device)
            self._seen = torch.zeros(len(labels), self._classes, dtype=torch.float64, device=device)
        self.count += len(rows)
        self._square += wide.mT @ wide
        self._sum += wide.sum(0)
        self._cross += (truth.flatten(0, 1) @ wide).view_as(self._cross)
        self._seen += truth.sum(2)

    def merge(self, other: "RidgeStatistics") -> None:
        """Take in what another accumulator has seen of other rows."""
        if not self.count:
            self._square, self._sum, self._cross, self._seen = (
                t.clone() for t in (other._square, other._sum, other._cross, other._seen)
            )
        else:
            self._square += other._square
            self._sum += other._sum
            self._cross += other._cross
            self._seen += other._seen
        self.count += other.count

    def fit(self, penalties: Sequence[float]) -> RidgeFits:
        """Return fits that minimise the mean squared error plus `penalty ‖W‖²`, intercepts free."""
        mean, n = self._sum / self.count, self.count
        centred = self._square / n - mean[:, None] * mean
        share = self._seen / n
        # indicators are +1 and -1: twice the ones, less 1
        target = 2 * (self._cross / n - share[:, :, None] * mean)
        variances, directions = torch.linalg.eigh(centred)
        turned = (target @ directions).unsqueeze(1)
        strengths = torch.tensor(penalties, dtype=torch.float64, device=mean.device)
        inverse = 1 / (variances.clamp_min(0) + strengths[:, None])
        weights = turned * inverse[None, :, None] @ directions.mT
        left = weights @ centred + strengths[:, None, None] * weights - target.unsqueeze(1)
        intercepts = (2 * share - 1)[:, None] - weights @ mean
        return RidgeFits(tuple(penalties), weights, intercepts, left.abs().amax((2, 3)))
