"""From a layer's output to the features that a probe reads: averages, grids, subsets and projections."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probing.core.errors import ArgumentError, ProbingError
from probing.models.runner import Pool, pooled


class FeatureSizeError(ProbingError, ValueError):
    """A layer has more features than a probe should be fitted on."""


@runtime_checkable
class Reduction(Protocol):
    """What is kept of a layer's output: hyperparameters that can be called."""

    pool: ClassVar[Pool]
    """What the store is asked to keep; the reduction is applied to that."""

    def __call__(self, outputs: Float[Tensor, "n *shape"]) -> Float[Tensor, "n features"]:
        """Reduce rows as the store returns them."""

    def size(self, shape: tuple[int, ...]) -> int:
        """Return how many features an output of a shape, without the axis of examples, gives."""


@dataclass(frozen=True)
class GlobalAverage:
    """The mean over positions, of maps `[c, h, w]` and of tokens `[tokens, features]`; other outputs are flattened."""

    pool: ClassVar[Pool] = "mean"

    def __call__(self, outputs: Float[Tensor, "n *shape"]) -> Float[Tensor, "n features"]:
        return pooled(outputs, "mean") if outputs.ndim in {3, 4, 5} else outputs.flatten(1)

    def size(self, shape: tuple[int, ...]) -> int:
        if len(shape) == 2:
            return shape[1]
        return shape[0] if len(shape) in {3, 4} else math.prod(shape)


@dataclass(frozen=True)
class Grid:
    """The means of maps over `side` by `side` cells, and of tokens over `side²` stretches; others are flattened.

    An output with fewer positions than cells stays as it is.
    """

    pool: ClassVar[Pool] = "none"
    side: int = 2

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ArgumentError(f"side must be 1 or more, got {self.side}: 1 is the mean over all.")

    def __call__(self, outputs: Float[Tensor, "n *shape"]) -> Float[Tensor, "n features"]:
        from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d

        if outputs.ndim == 4:
            cells = (min(self.side, outputs.shape[2]), min(self.side, outputs.shape[3]))
            return adaptive_avg_pool2d(outputs, cells).flatten(1)
        if outputs.ndim == 3:
            stretches = min(self.side**2, outputs.shape[1])
            return adaptive_avg_pool1d(outputs.mT.contiguous(), stretches).flatten(1)
        return outputs.flatten(1)

    def size(self, shape: tuple[int, ...]) -> int:
        if len(shape) == 3:
            return shape[0] * min(self.side, shape[1]) * min(self.side, shape[2])
        if len(shape) == 2:
            return shape[1] * min(self.side**2, shape[0])
        return math.prod(shape)


@dataclass(frozen=True)
class Flat:
    """All of the output."""

    pool: ClassVar[Pool] = "none"

    def __call__(self, outputs: Float[Tensor, "n *shape"]) -> Float[Tensor, "n features"]:
        return outputs.flatten(1)

    def size(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape)


@dataclass(frozen=True)
class RandomSubset:
    """A fixed draw of so many of the output's features (Alain & Bengio 2016, sec. 4.2); all if there are no more."""

    pool: ClassVar[Pool] = "none"
    features: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        _check_features(self.features)

    def __call__(self, outputs: Float[Tensor, "n *shape"]) -> Float[Tensor, "n features"]:
        flat = outputs.flatten(1)
        if flat.shape[1] <= self.features:
            return flat
        drawn = np.random.default_rng(self.seed).choice(flat.shape[1], self.features, replace=False)
        return flat[:, torch.from_numpy(np.sort(drawn)).to(flat.device)]

    def size(self, shape: tuple[int, ...]) -> int:
        return min(self.features, math.prod(shape))


@dataclass(frozen=True)
class RandomProjection:
    """A sparse random projection that keeps distances (Kane & Nelson 2014); all features if there are no more.

    Each feature enters `copies` of the projected ones with random signs, over the root of their number, so that
    squared lengths are right on average and no matrix is kept.
    """

    pool: ClassVar[Pool] = "none"
    features: int = 1000
    copies: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        _check_features(self.features)
        if not 1 <= self.copies <= self.features:
            raise ArgumentError(f"copies must be from 1 to {self.features}, got {self.copies}.")

    def __call__(self, outputs: Float[Tensor, "n *shape"]) -> Float[Tensor, "n features"]:
        flat = outputs.flatten(1)
        if flat.shape[1] <= self.features:
            return flat
        rng = np.random.default_rng(self.seed)
        # One place in each of `copies` stretches of the projected features, so that no two coincide.
        edges = np.linspace(0, self.features, self.copies + 1).astype(np.int64)
        result = flat.new_zeros(len(flat), self.features)
        for low, high in pairwise(edges.tolist()):
            places = torch.from_numpy(rng.integers(low, high, flat.shape[1])).to(flat.device)
            signs = torch.from_numpy(rng.integers(0, 2, flat.shape[1]) * 2 - 1).to(flat)
            result.index_add_(1, places, flat * signs)
        return result / math.sqrt(self.copies)

    def size(self, shape: tuple[int, ...]) -> int:
        return min(self.features, math.prod(shape))


def _check_features(features: int) -> None:
    if features < 1:
        raise ArgumentError(f"features must be 1 or more, got {features}.")


def refuse_size(layer: str, features: int, examples: int, most: int) -> None:
    """Refuse a layer with too many features, with what it would take and what would help.

    Raises:
        FeatureSizeError: if there are more than `most`.
    """
    if features > most:
        size = features * examples * 4 / 1e9
        raise FeatureSizeError(
            f"layer {layer!r} gives {features:,} features per example, {size:,.1f} GB for {examples:,} examples, and at "
            f"most {most:,} are fitted: average them (reduce=GlobalAverage() or Grid(2)), let "
            "oversized=RandomSubset(1000) or RandomProjection(1000) stand in, or raise max_features."
        )
