"""How alike two dictionaries are, and how alike they would be by chance."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from concepts.discovery.dictionary import Dictionary, chunks
from concepts.discovery.learners import unit
from probing.core.doubles import doubled
from probing.statistics.hypothesis_tests import permutation_p

_KEPT = 1e-6
"""Variance, as a share of the largest direction's, below which rows are taken not to vary."""


@dataclass(frozen=True)
class Agreement:
    """How far a dictionary's atoms are found again in another one, beside unrelated dictionaries of the same rows."""

    cosine: Float[Tensor, " atoms"]
    """Of each atom with its partner; pairs are those of the largest sum. Of its size where atoms have no sign (0-1)."""
    p: Float[Tensor, " atoms"]
    """Share of unrelated dictionaries in which any atom agrees as much: corrected for all atoms."""
    p_mean: float
    """The same of the mean over atoms."""
    chance: Float[Tensor, " draws"]
    """Mean cosine of each unrelated dictionary."""


def partners(cosine: Float[Tensor, "atoms others"]) -> Int[Tensor, " atoms"]:
    """Return, for each row, its column in the one-to-one matching of the largest sum; -1 for rows left over."""
    from scipy.optimize import linear_sum_assignment

    found = torch.full((len(cosine),), -1)
    rows, columns = linear_sum_assignment(-cosine.cpu().double().numpy())
    found[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return found


def matched_cosine(first: Dictionary, second: Dictionary) -> Float[Tensor, " atoms"]:
    """Return the cosine of each of the first's atoms with its partner in the second; see `Agreement`."""
    return _matched(doubled(first.atoms), doubled(second.atoms), signed=first.signed)


def _matched(first: Tensor, second: Tensor, *, signed: bool) -> Float[Tensor, " atoms"]:
    cosine = first @ second.mT
    cosine = cosine.abs() if signed else cosine
    return cosine.gather(1, partners(cosine)[:, None])[:, 0]


def agreement(first: Dictionary, second: Dictionary, rows: Float[Tensor, "rows m"], draws: int, seed: int) -> Agreement:
    """Compare two dictionaries of as many atoms, learned apart, with unrelated ones.

    An unrelated dictionary is the second with its atoms turned at random, all alike, among the directions in which rows
    vary, each as much as rows do there; how far an atom reaches along the mean of the rows stays. So what two
    dictionaries share because all rows lie about one mean, and vary along few directions, is no agreement. The test is
    exact for rows whose distribution no such turning changes.

    Args:
        first: whose atoms are judged.
        second: learned of other examples.
        rows: of the layer.
        draws: unrelated dictionaries; p is at least `1 / (draws + 1)`.
        seed: of the draws.
    """
    one, other = doubled(first.atoms), doubled(second.atoms)
    cosine = _matched(one, other, signed=first.signed)
    turning = _Turning.of(rows, second)
    rng = np.random.default_rng([seed, 11])
    null = torch.stack([_matched(one, turning(rng), signed=first.signed) for _ in range(draws)])
    return Agreement(
        cosine=cosine,
        p=permutation_p(cosine, null.amax(1, keepdim=True).expand_as(null)),
        p_mean=float(permutation_p(cosine.mean(), null.mean(1))),
        chance=null.mean(1),
    )


@dataclass(frozen=True)
class _Turning:
    """Turns a dictionary's atoms at random among the directions in which rows vary."""

    along: Float[Tensor, "atoms m"]
    """What of each atom lies along the rows' mean, which stays."""
    spread: Float[Tensor, "kept m"]
    """Directions in which rows vary at right angles to the mean, each as long as rows' deviation along it."""
    left: Float[Tensor, "atoms rank"]
    """What a rotation leaves of the rest, in units of these directions: left singular vectors times singular values."""

    @classmethod
    def of(cls, rows: Tensor, dictionary: Dictionary) -> "_Turning":
        center = torch.stack([doubled(part).sum(0) for part in chunks(rows)]).sum(0) / len(rows)
        from_offset = center - doubled(dictionary.offset)
        # By rounding alone an offset that is the mean would leave a direction.
        mean = from_offset / from_offset.norm() if from_offset.norm() > 1e-5 * center.norm() else torch.zeros_like(center)
        covariance = torch.zeros(len(center), len(center), dtype=center.dtype)
        for part in chunks(rows):
            moved = doubled(part) - center
            moved = moved - (moved @ mean)[:, None] * mean
            covariance += moved.mT @ moved
        values, vectors = torch.linalg.eigh(covariance / len(rows))
        kept = values > _KEPT * values[-1]
        deviations = values[kept].sqrt()
        atoms = doubled(dictionary.atoms)
        along = (atoms @ mean)[:, None] * mean
        whitened = (atoms - along) @ vectors[:, kept] / deviations
        left, sizes, _ = torch.linalg.svd(whitened, full_matrices=False)
        return cls(along, (vectors[:, kept] * deviations).mT, left * sizes)

    def __call__(self, rng: np.random.Generator) -> Float[Tensor, "atoms m"]:
        # What a uniform rotation makes of vectors hangs on their products only: right singular vectors are drawn.
        gaussian = torch.from_numpy(rng.standard_normal((len(self.spread), self.left.shape[1])))
        basis, triangle = torch.linalg.qr(gaussian)
        basis = basis * triangle.diagonal().sign()
        return unit(self.along + self.left @ basis.mT @ self.spread)[0]
