"""Where paths start: inputs that stand for the absence of what is explained."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from probing.core.content_ids import tensor_id
from probing.core.errors import ProbingError
from probing.core.inputs import InputError
from probing.models.explained import Explained


class SamplesError(ProbingError, LookupError):
    """Samples that a method was described with are not in this process."""


@runtime_checkable
class Baseline(Protocol):
    """A frozen dataclass that gives one or several reference inputs for each input."""

    def __call__(self, inputs: Shaped[Tensor, "n *shape"]) -> Shaped[Tensor, "draws n *shape"]:
        """Return the reference inputs, in model space; maps are averaged over draws."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same value everywhere, or one per channel, in model space; the default is zero.

    Attributes:
        values: one, or one per channel (the inputs' second axis).
    """

    values: tuple[float, ...] = (0.0,)

    @classmethod
    def black(cls, mean: tuple[float, ...], std: tuple[float, ...]) -> "Constant":
        """Return black pixels of a model that normalises pixels from 0 to 1: `-mean / std`."""
        return cls(tuple(-m / s for m, s in zip(mean, std, strict=True)))

    @classmethod
    def white(cls, mean: tuple[float, ...], std: tuple[float, ...]) -> "Constant":
        """Return white pixels of a model that normalises pixels from 0 to 1: `(1 - mean) / std`."""
        return cls(tuple((1 - m) / s for m, s in zip(mean, std, strict=True)))

    def __call__(self, inputs: Shaped[Tensor, "n *shape"]) -> Shaped[Tensor, "draws n *shape"]:
        if len(self.values) not in {1, inputs.shape[1]}:
            raise InputError(
                f"a constant baseline has {len(self.values)} values for {inputs.shape[1]} channels: "
                "give one, or one per channel."
            )
        values = torch.tensor(self.values, dtype=inputs.dtype, device=inputs.device)
        return values.reshape(1, -1, *[1] * (inputs.ndim - 2)).expand_as(inputs)[None]


ZERO = Constant()


@dataclass(frozen=True)
class Samples:
    """Given reference inputs, named by their content; each serves for every input, unless they are paired.

    Make them with `Samples.of(tensor)`. A saved description holds the content id only: to rebuild it in another
    process, offer the same tensor to `Samples.of` first.

    Attributes:
        content: id of the tensor's content.
        paired: whether row i is the reference of input i alone.
    """

    content: str
    paired: bool = False

    @classmethod
    def of(cls, tensor: Shaped[Tensor, "n *shape"], *, paired: bool = False) -> "Samples":
        """Return reference inputs, one per row of a tensor in model space."""
        if tensor.ndim < 2 or not len(tensor) or not torch.isfinite(tensor).all():
            raise InputError(f"samples must be finite and [n, …] with at least one row, got {tuple(tensor.shape)}.")
        held = _Held(tensor.detach().clone())
        name = tensor_id(held.tensor)
        held = _OFFERED.setdefault(name, held)
        samples = cls(name, paired)
        object.__setattr__(samples, "_held", held)  # keeps the tensor as long as the samples live
        return samples

    def __post_init__(self) -> None:
        if self.content in _OFFERED:
            object.__setattr__(self, "_held", _OFFERED[self.content])

    @property
    def tensor(self) -> Shaped[Tensor, "n *shape"]:
        """The reference inputs.

        Raises:
            SamplesError: if no tensor of this content was offered in this process.
        """
        held = getattr(self, "_held", None) or _OFFERED.get(self.content)
        if held is None:
            raise SamplesError(
                f"no samples with content {self.content!r} are in this process: pass their tensor to Samples.of first."
            )
        tensor: Tensor = held.tensor
        return tensor

    def like(self, inputs: Shaped[Tensor, "n *shape"]) -> Shaped[Tensor, "samples *shape"]:
        """Return the reference inputs on the device and in the number format of inputs.

        Raises:
            InputError: if they are of another shape.
        """
        tensor = self.tensor
        if tensor.shape[1:] != inputs.shape[1:]:
            raise InputError(
                f"samples have shape {tuple(tensor.shape[1:])}, inputs {tuple(inputs.shape[1:])}: they must be the same."
            )
        return tensor.to(inputs)

    def __call__(self, inputs: Shaped[Tensor, "n *shape"]) -> Shaped[Tensor, "draws n *shape"]:
        tensor = self.like(inputs)
        if not self.paired:
            return tensor[:, None].expand(-1, *inputs.shape)
        if len(tensor) != len(inputs):
            raise InputError(f"{len(tensor)} paired samples can't serve {len(inputs)} inputs.")
        return tensor[None]


class _Held:
    """A tensor that can be referred to weakly."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


_OFFERED: WeakValueDictionary[str, _Held] = WeakValueDictionary()


def samples_of(given: Samples | Tensor) -> Samples:
    """Return samples as they are, or the rows of a tensor as samples."""
    return Samples.of(given) if isinstance(given, Tensor) else given


def baseline_of(given: Baseline | float | Tensor) -> Baseline:
    """Return a baseline: a number stands everywhere; of a tensor each row is the one of its input, a single row of all.

    Raises:
        InputError: for a tensor that is not finite, or whose rows are none.
    """
    if isinstance(given, Tensor):
        return Samples.of(given, paired=len(given) > 1) if given.ndim else Constant((float(given),))
    return Constant((float(given),)) if isinstance(given, int | float) else given


def unmoved(
    baselines: Shaped[Tensor, "draws n *shape"], inputs: Shaped[Tensor, "n *shape"], explained: Explained | None
) -> Float64[Tensor, " n"]:
    """Return the share of values that equal every baseline's, of those that are read: these get 0 whatever they mean."""
    same = (baselines == inputs).all(0).flatten(1).double()
    read = None if explained is None else explained.read
    if read is None or read.shape != inputs.shape:
        return same.mean(1)
    counted = read.flatten(1).to(same)
    return (same * counted).sum(1) / counted.sum(1)


@dataclass(frozen=True)
class Mean:
    """The mean of samples, such as of the training images.

    Attributes:
        samples: averaged.
    """

    samples: Samples

    def __call__(self, inputs: Shaped[Tensor, "n *shape"]) -> Shaped[Tensor, "draws n *shape"]:
        return self.samples.like(inputs).mean(0).expand_as(inputs)[None]


@dataclass(frozen=True)
class Blurred:
    """The input itself, blurred by a Gaussian along its last two axes; edges are repeated outwards.

    Attributes:
        sigma: standard deviation of the Gaussian, in pixels.
    """

    sigma: float = 10.0

    def __call__(self, inputs: Shaped[Tensor, "n *shape"]) -> Shaped[Tensor, "draws n *shape"]:
        if inputs.ndim < 4 or self.sigma <= 0:
            raise InputError(
                "a blurred baseline needs images [n, c, h, w] and sigma above 0, "
                f"got shape {tuple(inputs.shape)} and sigma {self.sigma}."
            )
        rows, columns = (_blur(size, self.sigma).to(inputs) for size in inputs.shape[-2:])
        return (rows @ inputs @ columns.T)[None]


@dataclass(frozen=True)
class Uniform:
    """Uniform noise, independent for each value (Sturmfels et al. 2020); maps are averaged over draws.

    Attributes:
        low: of the noise, in model space; one value, or one per channel.
        high: as `low`.
        draws: noise inputs for each input.
        seed: of the noise.
    """

    low: tuple[float, ...] = (0.0,)
    high: tuple[float, ...] = (1.0,)
    draws: int = 10
    seed: int = 0

    def __call__(self, inputs: Shaped[Tensor, "n *shape"]) -> Shaped[Tensor, "draws n *shape"]:
        low, high = Constant(self.low)(inputs), Constant(self.high)(inputs)
        # One noise for all inputs: what an input gets does not depend on which others are in the batch.
        shape = (self.draws, 1, *inputs.shape[1:])
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(shape, generator=generator, dtype=torch.float64).to(inputs)
        return low + (high - low) * noise


@dataclass(frozen=True)
class Extremes:
    """Two references of each input: everywhere the lowest value of each of its channels, and everywhere the highest.

    For maps from a dark and a bright image where black and white are not known; else give these (`Constant.black`).
    """

    def __call__(self, inputs: Shaped[Tensor, "n *shape"]) -> Shaped[Tensor, "draws n *shape"]:
        if inputs.ndim < 3:
            raise InputError(f"inputs without places have no darkest or brightest place, got shape {tuple(inputs.shape)}.")
        places = tuple(range(2, inputs.ndim))
        ends = [of(inputs, dim=places, keepdim=True).expand_as(inputs) for of in (torch.amin, torch.amax)]
        return torch.stack(ends)


def _blur(size: int, sigma: float) -> Float[Tensor, "size size"]:
    reach = int(4 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = (-0.5 * (offsets / sigma) ** 2).exp()
    weights = weights / weights.sum()
    at = (torch.arange(size)[:, None] + offsets.long()).clamp(0, size - 1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, at, weights.expand(size, -1))
