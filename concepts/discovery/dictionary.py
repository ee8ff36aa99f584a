"""Dictionaries: directions whose combinations give a layer's rows, and how a row's combination is found.

All kinds keep one convention of scale. `row ≈ offset + codes @ atoms`; atoms have unit length, so that a code is in the
layer's units of activation: how far the row reaches along its atom.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probing.core.doubles import doubled
from probing.core.errors import ProbingError

CHUNK = 8192
"""Rows that are worked on together; results depend on it by rounding only."""


class DictionaryError(ProbingError, ValueError):
    """Rows that a dictionary can't be made of, or that do not fit one."""


@runtime_checkable
class Coder(Protocol):
    """How codes of rows are found for given atoms; a frozen dataclass."""

    def __call__(self, rows: Float[Tensor, "rows m"], atoms: Float[Tensor, "atoms m"]) -> Float[Tensor, "rows atoms"]:
        """Return codes of rows that the offset was taken from."""


@dataclass(frozen=True)
class Projection:
    """Least squares: codes of either sign."""

    def __call__(self, rows: Float[Tensor, "rows m"], atoms: Float[Tensor, "atoms m"]) -> Float[Tensor, "rows atoms"]:
        inverse: Tensor = torch.linalg.pinv(doubled(atoms))
        return rows @ inverse.to(rows)


@dataclass(frozen=True)
class Nearest:
    """The nearest of the points `length · atom` has its length as code, all others 0."""

    lengths: Float[Tensor, " atoms"]

    def __call__(self, rows: Float[Tensor, "rows m"], atoms: Float[Tensor, "atoms m"]) -> Float[Tensor, "rows atoms"]:
        lengths = self.lengths.to(rows)
        nearest = (lengths.square() - 2 * lengths * (rows @ atoms.mT)).argmin(1, keepdim=True)
        return torch.zeros(len(rows), len(atoms)).to(rows).scatter_(1, nearest, lengths[nearest])


@dataclass(frozen=True)
class NonNegative:
    """Least squares under codes of 0 or more, by coordinate descent on the atoms' products.

    Differentiable in rows, by the optimum's conditions and not through the descent: codes above 0 are least squares on
    their atoms alone, and those at 0 stay there.

    Attributes:
        sweeps: over all atoms, at most.
        tolerance: largest change of a code in a sweep, as a share of the largest code, at which it ends.
    """

    sweeps: int = 500
    tolerance: float = 1e-6

    def __call__(self, rows: Float[Tensor, "rows m"], atoms: Float[Tensor, "atoms m"]) -> Float[Tensor, "rows atoms"]:
        with torch.no_grad():
            gram, cross = doubled(atoms @ atoms.mT), doubled(atoms @ rows.mT)
            codes = torch.zeros_like(cross)
            for _ in range(self.sweeps):
                change = sweep(codes, cross, gram)
                if change <= self.tolerance * float(codes.abs().max()):
                    break
            found = codes.mT.to(rows)
        if not (torch.is_grad_enabled() and rows.requires_grad):
            return found
        with torch.no_grad():
            on = (found > 0).double().to(gram.device)
            own = on[:, :, None] * gram * on[:, None] + torch.diag_embed(1 - on)
            inverse: Tensor = (torch.linalg.pinv(own, hermitian=True) * on[:, :, None] * on[:, None]).to(rows)
        # In value 0; its gradient is that of the codes.
        moved: Tensor = (inverse @ ((rows - rows.detach()) @ atoms.detach().mT)[:, :, None])[:, :, 0]
        return found + moved


@dataclass(frozen=True)
class TopK:
    """The `active` largest outputs of a linear map, those above 0; all others are 0."""

    weight: Float[Tensor, "atoms m"]
    bias: Float[Tensor, " atoms"]
    active: int

    def __call__(self, rows: Float[Tensor, "rows m"], atoms: Float[Tensor, "atoms m"]) -> Float[Tensor, "rows atoms"]:
        return largest(rows @ self.weight.to(rows).mT + self.bias.to(rows), self.active)


def largest(values: Float[Tensor, "rows atoms"], count: int) -> Float[Tensor, "rows atoms"]:
    """Return each row's largest values where they are positive, and 0 elsewhere."""
    top = values.topk(count, 1)
    return torch.zeros_like(values).scatter(1, top.indices, top.values.relu())


def sweep(
    codes: Float[Tensor, "atoms rows"], cross: Float[Tensor, "atoms rows"], gram: Float[Tensor, "atoms atoms"]
) -> float:
    """Set each atom's codes in turn to what is best beside the others' and not below 0; return the largest change.

    Args:
        codes: changed in place; an atom's lie side by side, since they are worked on together.
        cross: products of atoms and rows.
        gram: products of atoms with each other.
    """
    change = torch.zeros((), dtype=codes.dtype, device=codes.device)
    for j, square in enumerate(gram.diagonal().tolist()):
        if square > 0:
            new = ((cross[j] - gram[j] @ codes) / square + codes[j]).clamp(min=0)
            change = torch.maximum(change, (new - codes[j]).abs().max())
            codes[j] = new
    return float(change)


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Directions of unit length, and how codes of rows are found: `row ≈ offset + codes @ atoms`."""

    atoms: Float[Tensor, "atoms m"]
    offset: Float[Tensor, " m"]
    coder: Coder

    @property
    def signed(self) -> bool:
        """Whether codes have either sign, so that an atom and its opposite are the same."""
        return isinstance(self.coder, Projection)

    def __len__(self) -> int:
        return len(self.atoms)

    def codes(self, rows: Float[Tensor, "rows m"]) -> Float[Tensor, "rows atoms"]:
        """Return codes of rows, in units of activation, found a part of the rows at a time.

        Raises:
            DictionaryError: for rows of another length than the atoms.
        """
        if rows.shape[1] != self.atoms.shape[1]:
            raise DictionaryError(f"rows have {rows.shape[1]} values and the atoms {self.atoms.shape[1]}: use one layer.")
        atoms, offset = self.atoms.to(rows), self.offset.to(rows)
        return torch.cat([self.coder(part - offset, atoms) for part in chunks(rows)])

    def decode(self, codes: Float[Tensor, "rows atoms"]) -> Float[Tensor, "rows m"]:
        """Return the rows that codes stand for."""
        return self.offset.to(codes) + codes @ self.atoms.to(codes)

    def unexplained(self, rows: Float[Tensor, "rows m"]) -> float:
        """Return the squared error of rows' reconstructions, as a share of the rows' squared distance from their mean.

        0 is perfect, 1 what the mean alone gives; bad dictionaries exceed 1. NaN for rows that are all equal.
        """
        center = doubled(rows).mean(0) if len(rows) <= CHUNK else sum(doubled(p).sum(0) for p in chunks(rows)) / len(rows)
        missed = whole = 0.0
        for part in chunks(rows):
            missed += float(doubled(part - self.decode(self.codes(part))).square().sum())
            whole += float((doubled(part) - center).square().sum())
        return missed / whole if whole else float("nan")


def chunks(rows: Float[Tensor, "rows m"]) -> Iterator[Float[Tensor, "some m"]]:
    """Yield some rows at a time."""
    return iter(torch.split(rows, CHUNK))
