"""How dictionaries are learned of a layer's rows: by variance, by clusters, and by non-negative parts.

Every learner goes over the rows a part at a time and keeps sums, so that rows may lie in a file that is mapped into
memory; k-means is scikit-learn's.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from concepts.discovery.dictionary import (
    CHUNK,
    Dictionary,
    DictionaryError,
    Nearest,
    NonNegative,
    Projection,
    chunks,
    sweep,
)
from probing.core.doubles import doubled

_SPREAD = 10_000
"""Rows among which those that atoms start at are chosen."""
_SWEEPS = 3
"""Over codes, and over atoms, for one pass over the rows, at most."""


@runtime_checkable
class Learner(Protocol):
    """A way to make a dictionary of rows: a frozen dataclass that is called."""

    @property
    def atoms(self) -> int:
        """How many directions."""

    def __call__(self, rows: Float[Tensor, "rows m"]) -> Dictionary:
        """Return the dictionary of some rows."""


@dataclass(frozen=True)
class Pca:
    """The directions of most variance, and the mean as offset; exact, of covariances in float64.

    Applies to rows of any sign. Codes have either sign, and so has each direction: its largest entry is made positive.
    What it leaves unexplained of its own rows is the share of the eigenvalues that it leaves out.
    """

    atoms: int

    def __call__(self, rows: Float[Tensor, "rows m"]) -> Dictionary:
        checked(rows, self.atoms)
        if self.atoms > rows.shape[1]:
            raise DictionaryError(f"rows of {rows.shape[1]} values have so many directions, got atoms={self.atoms}.")
        center = sum(doubled(part).sum(0) for part in chunks(rows)) / len(rows)
        assert isinstance(center, Tensor)
        covariance = sum((p := doubled(part) - center).mT @ p for part in chunks(rows))
        assert isinstance(covariance, Tensor)
        directions = torch.linalg.eigh(covariance)[1].flip(1)[:, : self.atoms].mT
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        return Dictionary((directions * largest.sign()).to(rows), center.to(rows), Projection())


@dataclass(frozen=True)
class KMeans:
    """Centres of clusters (scikit-learn's mini-batch k-means, the best of three starts).

    Applies to rows of any sign; each row has one code that is not 0.

    Attributes:
        atoms: clusters.
        seed: of starts and batches.
    """

    atoms: int
    seed: int = 0

    def __call__(self, rows: Float[Tensor, "rows m"]) -> Dictionary:
        from sklearn.cluster import MiniBatchKMeans

        checked(rows, self.atoms)
        fitted = MiniBatchKMeans(self.atoms, n_init=3, batch_size=4096, random_state=self.seed).fit(rows.cpu().numpy())
        centres = torch.from_numpy(fitted.cluster_centers_).to(rows)
        atoms, lengths = unit(centres)
        return Dictionary(atoms, torch.zeros_like(rows[0]), Nearest(lengths))


@dataclass(frozen=True)
class Nmf:
    """Non-negative matrix factorisation: rows of 0 or more as sums of parts of 0 or more (Lee & Seung 1999).

    Applies after a ReLU or another activation without negative values; for others there is `SemiNmf`. Alternating
    coordinate descent (HALS, Cichocki & Phan 2009; several sweeps to a pass over the rows, Gillis & Glineur 2012) on sums
    over the rows, from rows that lie apart (k-means++).

    Attributes:
        atoms: parts.
        seed: of the rows that parts start at. Other seeds may end in other dictionaries: how far they agree is measured.
        iterations: over the rows, at most.
        tolerance: least decrease of the squared error by an iteration, as a share of the error, to go on.

    Raises:
        DictionaryError: for rows with negative values.

    Example:
        >>> dictionary = Nmf(8)(rows)
        >>> dictionary.codes(rows).shape
        torch.Size([48, 8])
    """

    atoms: int
    seed: int = 0
    iterations: int = 200
    tolerance: float = 1e-4

    def __call__(self, rows: Float[Tensor, "rows m"]) -> Dictionary:
        checked(rows, self.atoms)
        if (low := min(float(part.amin()) for part in chunks(rows))) < 0:
            raise DictionaryError(f"NMF takes rows of 0 or more, got {low:.3g}: use SemiNmf, or read a layer after a ReLU.")
        return _alternated(rows, self.atoms, self.seed, self.iterations, self.tolerance, _non_negative_parts)


@dataclass(frozen=True)
class SemiNmf:
    """Semi-NMF: rows of any sign as non-negative combinations of directions of any sign (Ding, Li & Jordan 2010).

    Applies to every layer. Attributes are as of `Nmf`. Many dictionaries may fit equally well, since nothing keeps
    directions from opening the cone that holds the rows: look at how far refits agree.
    """

    atoms: int
    seed: int = 0
    iterations: int = 200
    tolerance: float = 1e-4

    def __call__(self, rows: Float[Tensor, "rows m"]) -> Dictionary:
        checked(rows, self.atoms)
        return _alternated(rows, self.atoms, self.seed, self.iterations, self.tolerance, _any_parts)


def checked(rows: Float[Tensor, "rows m"], atoms: int) -> None:
    """Refuse rows that no dictionary of so many atoms can be learned of.

    Raises:
        DictionaryError: if there are fewer rows than atoms, no atoms, or values that are not finite.
    """
    if not 1 <= atoms <= len(rows):
        raise DictionaryError(
            f"a dictionary has 1 atom or more, and rows at least as many, got {atoms} for {len(rows)} rows."
        )
    if not all(bool(part.isfinite().all()) for part in chunks(rows)):
        raise DictionaryError("rows hold NaN or infinity: drop those examples.")


def unit(directions: Float[Tensor, "atoms m"]) -> tuple[Float[Tensor, "atoms m"], Float[Tensor, " atoms"]]:
    """Return directions of unit length, and their lengths; one without length stays 0."""
    lengths = torch.linalg.vector_norm(directions, dim=1)
    return directions / torch.where(lengths > 0, lengths, 1)[:, None], lengths


def spread_rows(rows: Float[Tensor, "rows m"], count: int, seed: int) -> Float[Tensor, "count m"]:
    """Return rows that lie apart (k-means++, Arthur & Vassilvitskii 2007), chosen among a draw of at most 10,000."""
    from sklearn.cluster import kmeans_plusplus

    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.permutation(len(rows))[: max(_SPREAD, count)])
    some = rows[torch.from_numpy(drawn)]
    _, index = kmeans_plusplus(some.cpu().double().numpy(), count, random_state=int(rng.integers(2**31)))
    return some[torch.from_numpy(index).long()]


def _non_negative_parts(atoms: Tensor, squares: Tensor, products: Tensor) -> Tensor:
    """Return the parts that are best for codes with these sums, each beside the others."""
    for j in range(len(atoms)):
        if squares[j, j] > 0:
            atoms[j] = (atoms[j] + (products[j] - squares[j] @ atoms) / squares[j, j]).clamp(min=0)
    return atoms


def _any_parts(atoms: Tensor, squares: Tensor, products: Tensor) -> Tensor:
    """Return the directions that are best for codes with these sums; those without codes stay."""
    used = squares.diagonal() > 0
    found = atoms.clone()
    found[used] = torch.linalg.pinv(squares[used][:, used], hermitian=True) @ products[used]
    return found


def _alternated(rows: Tensor, count: int, seed: int, iterations: int, tolerance: float, improve: "_Improve") -> Dictionary:
    """Alternate sweeps over codes and over atoms, a part of the rows at a time, until little is gained.

    A sweep takes sums that are there already, so that several cost little beside the products with the rows that make
    them, as long as atoms are few (accelerated HALS, Gillis & Glineur 2012).
    """
    atoms = unit(doubled(spread_rows(rows, count, seed)))[0]
    codes = rows.new_zeros(count, len(rows))
    whole = sum(float(doubled(part).square().sum()) for part in chunks(rows))
    sweeps = max(1, min(_SWEEPS, rows.shape[1] // (4 * count)))
    before = float("inf")
    for _ in range(iterations):
        gram = atoms @ atoms.mT
        squares, products = torch.zeros_like(gram), torch.zeros_like(atoms)
        narrow, gram_of_rows = atoms.to(rows), gram.to(rows)
        for part, own in zip(chunks(rows), torch.split(codes, CHUNK, 1), strict=True):
            cross = narrow @ part.mT
            for _ in range(sweeps):
                sweep(own, cross, gram_of_rows)
            squares += (wide := doubled(own)) @ wide.mT
            products += doubled(own @ part)
        error = whole - 2 * float((products * atoms).sum()) + float((squares * gram).sum())
        for _ in range(sweeps):
            atoms = improve(atoms, squares, products)
        atoms, lengths = unit(atoms)
        codes *= lengths.to(codes)[:, None]
        if before - error <= tolerance * max(error, 1e-12 * whole):
            break
        before = error
    return Dictionary(atoms.to(rows), torch.zeros_like(rows[0]), NonNegative())


@runtime_checkable
class _Improve(Protocol):
    def __call__(self, atoms: Tensor, squares: Tensor, products: Tensor) -> Tensor: ...
