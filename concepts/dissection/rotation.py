"""Rotated bases of a layer: the same information, along other directions than its units."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """A random rotation of a layer's units, or the share `alpha` of one (Bau et al. 2017, sec. 3.2).

    A linear readout sees as much as before; if units single out concepts only because some directions must, they do
    so as often after it.

    Attributes:
        alpha: 0 is no rotation, 1 the whole one.
        seed: of the rotation, uniform over all (Haar measure).
    """

    alpha: float = 1.0
    seed: int = 0

    def matrix(self, units: int) -> Float[Tensor, "units units"]:
        """Return the rotation in float64; row k is the direction of the new unit k."""
        return power(haar(units, self.seed), self.alpha)


def haar(size: int, seed: int) -> Float[Tensor, "size size"]:
    """Return a rotation drawn uniformly from all, of determinant 1."""
    generator = np.random.default_rng(seed)
    gaussian = generator.standard_normal((size, size))
    basis, triangle = np.linalg.qr(gaussian)
    basis = basis * np.sign(np.diag(triangle))
    if np.linalg.det(basis) < 0:
        basis[:, 0] *= -1
    return torch.from_numpy(np.ascontiguousarray(basis))


def power(rotation: Float[Tensor, "n n"], alpha: float) -> Float[Tensor, "n n"]:
    """Return the share `alpha` of a rotation: every angle of it, between −π and π, times `alpha`."""
    # A rotation is normal: its Schur form is diagonal, with orthonormal vectors even where angles repeat.
    from scipy.linalg import schur

    triangle, vectors = schur(rotation.numpy(), output="complex")
    turned = np.exp(1j * alpha * np.angle(np.diag(triangle)))
    return torch.from_numpy(np.ascontiguousarray((vectors * turned @ vectors.conj().T).real))
